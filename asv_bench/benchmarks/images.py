"""Plain images with a plain kernel: ``convjit.conv(image, kernel, padding="same")``."""

from __future__ import annotations

import numpy as np

import convjit

from .common import skip, warmed_up


class Images:
    params = ([256, 1024, 4096], [3, 11, 31, 101], ["float32", "float64"])
    param_names = ("size", "kernel", "dtype")
    timeout = 120

    def setup(self, size: int, kernel: int, dtype: str) -> None:
        if size == 4096 and dtype == "float64":
            skip("one dtype is enough at this size")
        rng = np.random.default_rng(0)
        image = rng.standard_normal((size, size)).astype(dtype)
        taps = rng.standard_normal((kernel, kernel)).astype(dtype)
        self.call = warmed_up(lambda: convjit.conv(image, taps, padding="same"))

    def time_same(self, size: int, kernel: int, dtype: str) -> None:
        self.call()


class Borders:
    """How much each way to continue an image beyond its border costs."""

    params = ["zeros", "reflect", "replicate", "circular", "symmetric"]
    param_names = ("pad_mode",)

    def setup(self, pad_mode: str) -> None:
        rng = np.random.default_rng(0)
        image = rng.standard_normal((1024, 1024), np.float32)
        taps = rng.standard_normal((11, 11), np.float32)
        self.call = warmed_up(lambda: convjit.conv(image, taps, padding="same", pad_mode=pad_mode))

    def time_same(self, pad_mode: str) -> None:
        self.call()


class Views:
    """Images that are not contiguous."""

    params = ["contiguous", "reversed", "transposed", "every second"]
    param_names = ("view",)

    def setup(self, view: str) -> None:
        rng = np.random.default_rng(0)
        image = rng.standard_normal((1024, 1024), np.float32)
        taps = rng.standard_normal((5, 5), np.float32)
        wide = np.repeat(image, 2, axis=1)
        views = {
            "contiguous": image,
            "reversed": image[::-1, ::-1],
            "transposed": image.T,
            "every second": wide[:, ::2],
        }
        chosen = views[view]
        self.call = warmed_up(lambda: convjit.conv(chosen, taps, padding="same"))

    def time_same(self, view: str) -> None:
        self.call()
