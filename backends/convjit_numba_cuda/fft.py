"""FFT, refused: numba.cuda has no transforms, and one of our own would not reach cuFFT's."""

from __future__ import annotations

from collections.abc import Iterable

from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Feature, Refusal, Target, Work

REASON = (
    "numba.cuda has no Fourier transforms; take algorithm='gemm' or 'winograd' here, or 'fft' on "
    "the CPU"
)


class FftSolver:
    """``numba_cuda.fft``: there to say why there is none."""

    algorithm = "fft"

    def __init__(self, backend: str) -> None:
        self.id = f"{backend}.fft"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        return Refusal(Feature.OTHER, REASON)

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        raise NotImplementedError(REASON)

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        return ()

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        raise NotImplementedError(REASON)
