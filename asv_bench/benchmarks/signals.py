"""Plain signals: ``convjit.conv(signal, taps, padding="full")``, from a few samples to millions."""

from __future__ import annotations

import numpy as np

import convjit

from .common import skip, warmed_up


class Signals:
    params = ([100, 10_000, 1_000_000], [3, 33, 513, 4097], ["float32", "float64", "complex64"])
    param_names = ("samples", "taps", "dtype")
    timeout = 120

    def setup(self, samples: int, taps: int, dtype: str) -> None:
        if taps > samples:
            skip("more taps than samples")
        rng = np.random.default_rng(0)
        signal = rng.standard_normal(samples).astype(dtype)
        kernel = rng.standard_normal(taps).astype(dtype)
        self.call = warmed_up(lambda: convjit.conv(signal, kernel, padding="full"))

    def time_full(self, samples: int, taps: int, dtype: str) -> None:
        self.call()


class Stacks:
    """A stack of signals in one call."""

    params = ([(4096, 100), (64, 10_000)], [9, 129])
    param_names = ("shape", "taps")

    def setup(self, shape: tuple[int, int], taps: int) -> None:
        rng = np.random.default_rng(0)
        signals = rng.standard_normal(shape, np.float32)
        kernel = rng.standard_normal(taps, np.float32)
        self.call = warmed_up(lambda: convjit.conv(signals, kernel, padding="same", layout="L"))

    def time_same(self, shape: tuple[int, int], taps: int) -> None:
        self.call()
