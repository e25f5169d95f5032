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
from convjit.spec import ConvSpec, Direction
from convjit.spi import Config, Executable, Feature, Numerics, Phase, Refusal, Target, Work

DTYPES = ("float32", "float64", "complex64", "complex128")

# KiB of all arrays of one block of tiles.
BLOCKS = (FFT_BLOCK_BYTES // 2**10, 4096, 65536)


class FftSolver:
    """``scipy.fft``."""

    id = "scipy.fft"
    algorithm = "fft"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if spec.dtype not in DTYPES:
            return Refusal(
                Feature.DTYPE, f"scipy.fft transforms {', '.join(DTYPES)}; this is {spec.dtype}"
            )
        if spec.is_empty:
            return Refusal(Feature.SIZE, "an operand is empty, there is nothing to transform")
        if spec.direction is not Direction.FORWARD:
            return Refusal(Feature.DIRECTION, f"overlap-save is forward, not {spec.direction}")
        if prod(spec.kernel_size) == 1:
            return Refusal(Feature.SIZE, "a kernel of one tap gains nothing from a transform")
        if spec.pad_mode != "zeros":
            return Refusal(Feature.PAD_MODE, f"tiles are padded with zeros, not {spec.pad_mode}")
        if spec.channels_last:
            return Refusal(
                Feature.LAYOUT, f"the spatial axes are transformed innermost, not {spec.layout}"
            )
        return None

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
        return [(("block_kib", size),) for size in BLOCKS]

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        import scipy.fft  # as long as all else that a first call imports

        budget = dict(config).get("block_kib", BLOCKS[0]) * 2**10
        return OverlapSave(np, scipy.fft, spec, {"workers": target.cores}, budget)
