"""Overlap-save with cuFFT (:mod:`convjit.algorithms.fft`); spectra of w are packed once.

``cupy.fft`` keeps cuFFT's plans by shape, dtype and device, so that a repeated problem makes none;
all full blocks of tiles have one shape.  cuFFT plans 2^31 points at most, which the blocks stay
far below.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

from convjit import precision
from convjit.algorithms import fft as tiles
from convjit.algorithms.composed import OverlapSave, fft_counts, spectra_as_matrices
from convjit.blockwise import BlockSizes, refuse_fft
from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Feature, Numerics, Phase, Refusal, Target, Work
from convjit_cupy.gemm import multiplying

DTYPES = ("float32", "float64", "complex64", "complex128")

# MiB of all arrays of one block of tiles: the default gives every multiprocessor many transforms,
# the second stays near a large GPU's L2, the smallest are for a workspace_limit.
BLOCKS = BlockSizes("block_mib", 2**20, (128, 32, 512, 8, 2))

MOST_POINTS = 2**31

# Times that a transform along several axes reads and writes its data: cuFFT does an axis or two at
# a time.
PASSES = 2.0


class FftSolver:
    """``cupy.fft``."""

    algorithm = "fft"

    def __init__(self, backend: str, cupy: Any) -> None:
        self.id = f"{backend}.fft"
        self._cupy = cupy

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if (refusal := refuse_fft(spec, DTYPES, "cuFFT")) is not None:
            return refusal
        # Of one tile, of which a block has at least one.
        points = prod(tiles.tiling(spec).lengths) * max(spec.in_channels, spec.out_channels)
        if points >= MOST_POINTS:
            return Refusal(Feature.SIZE, f"a tile of {points} points is more than cuFFT plans")
        return None

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        counts = fft_counts(spec, BLOCKS.budget(()))
        itemsize = precision.numpy_dtype(spec.dtype).itemsize
        matrices = spectra_as_matrices(spec)
        real = precision.REAL_OF.get(spec.dtype, spec.dtype)
        blocks = -(-spec.batch // counts.images) * -(-counts.tiling.tiles // counts.tiles)
        points = spec.batch * counts.tiling.tiles * prod(counts.tiling.lengths)
        channels = spec.in_channels + spec.out_channels
        data = float(points * channels * itemsize)
        phases = [
            Phase("tiles", bytes={"copy": counts.moved}),
            Phase(
                "transform", counts.transform, f"{self.id}.{real}",
                {"memory": 2.0 * PASSES * data},
            ),
            Phase(
                "multiply", counts.multiply, f"{self.id.rpartition('.')[0]}.gemm.{real}",
                {"memory": data + float(blocks * counts.packed_bytes)},
                multiplying(
                    spec.out_channels // spec.groups, counts.images * counts.tiles,
                    spec.in_channels // spec.groups, spec.groups * prod(counts.tiling.lengths),
                    target,
                ),
            ),
        ]  # fmt: skip
        if spec.bias or spec.activation:
            result = itemsize * prod(spec.result_shape)
            phases.append(Phase("bias, activation", bytes={"memory": 4.0 * result}))
        return Work(
            tuple(phases),
            Numerics(
                "fft", counts.tiling.lengths, spreads_nonfinite=True, deterministic=not matrices
            ),
            Phase("pack", counts.pack, f"{self.id}.{real}", {"copy": 3.0 * counts.packed_bytes}),
            # A tile is a copy in and one out; a block its transforms and products.
            blocks * 8 + 2 * counts.tiling.tiles * -(-spec.batch // counts.images),
            counts.workspace,
            counts.packed_bytes,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        return BLOCKS.configs(lambda budget: fft_counts(spec, budget))

    def workspace_of(self, spec: ConvSpec, target: Target, config: Config) -> int:
        return fft_counts(spec, BLOCKS.budget(config)).workspace

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return OverlapSave(self._cupy, self._cupy.fft, spec, budget=BLOCKS.budget(config))
