"""Overlap-save with scipy.fft (:mod:`convjit.algorithms.fft`); spectra of w are packed once."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import numpy as np

from convjit import precision
from convjit.algorithms.composed import (
    FFT_BLOCK_BYTES,
    OverlapSave,
    fft_counts,
    spectra_as_matrices,
)
from convjit.blockwise import BlockSizes, refuse_fft
from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Numerics, Phase, Refusal, Target, Work

DTYPES = ("float32", "float64", "complex64", "complex128")

# KiB of all arrays of one block of tiles; the smallest is for a workspace_limit.
BLOCKS = BlockSizes("block_kib", 2**10, (FFT_BLOCK_BYTES // 2**10, 4096, 65536, 512))


class FftSolver:
    """``scipy.fft``."""

    id = "scipy.fft"
    algorithm = "fft"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        return refuse_fft(spec, DTYPES, "scipy.fft")

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        counts = fft_counts(spec)
        itemsize = precision.numpy_dtype(spec.dtype).itemsize
        matrices = spectra_as_matrices(spec)
        product = "matmul" if matrices else "multiply"
        blocks = -(-spec.batch // counts.images) * -(-counts.tiling.tiles // counts.tiles)
        phases = [
            Phase("tiles", bytes={"copy": counts.moved}),
            Phase("transform", counts.transform, f"scipy.fft.{spec.dtype}"),
            Phase("multiply", counts.multiply, f"scipy.fft.{product}.{spec.dtype}"),
        ]
        if spec.bias or spec.activation:
            result = itemsize * prod(spec.result_shape)
            phases.append(Phase("bias, activation", bytes={"memory": 2.0 * result}))
        return Work(
            tuple(phases),
            Numerics(
                "fft", counts.tiling.lengths, spreads_nonfinite=True, deterministic=not matrices
            ),
            Phase(
                "pack", counts.pack, f"scipy.fft.{spec.dtype}", {"copy": 3.0 * counts.packed_bytes}
            ),
            # A transform is some steps of Python, a tile is one to fill and one to empty.
            blocks * 10 + counts.tiling.tiles * -(-spec.batch // counts.images),
            counts.workspace,
            counts.packed_bytes,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        return BLOCKS.configs(lambda budget: fft_counts(spec, budget))

    def workspace_of(self, spec: ConvSpec, target: Target, config: Config) -> int:
        return fft_counts(spec, BLOCKS.budget(config)).workspace

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        import scipy.fft  # as long as all else that a first call imports

        budget = BLOCKS.budget(config)
        return OverlapSave(np, scipy.fft, spec, {"workers": target.cores}, budget)
