"""Winograd F(m, 3) in three phases (:mod:`convjit.algorithms.composed_winograd`).

Transforms are operations on whole arrays, and products of all tiles at one point are a matrix
product of cuBLAS.  Transformed tiles go through memory, three times as many bytes as x for F(2, 3)
and more for its results, which pays where there are so many channels that the products dominate;
where there are fewer, a fused kernel keeps the tiles on the chip.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from math import prod
from typing import Any

from convjit import precision
from convjit.algorithms.composed_winograd import (
    ComposedWinograd,
    blocking,
    tile_of,
    winograd_counts,
)
from convjit.blockwise import BlockSizes, refuse_winograd
from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Numerics, Phase, Refusal, Target, Work
from convjit_cupy.gemm import multiplying

DTYPES = ("float32", "float64")
TAPS = 3

# MiB of transformed tiles and products in one block; the smallest are for a workspace_limit.
BLOCKS = BlockSizes("block_mib", 2**20, (64, 16, 256, 4, 1))

# An addition of two arrays reads both and writes a third, for each operation that it counts.
BYTES_PER_FLOP = 3.0


class BatchedWinogradSolver:
    """``cupy.winograd.batched.f2x3``, ``.f4x3`` and ``.f6x3``."""

    algorithm = "winograd"

    def __init__(self, backend: str, cupy: Any, m: int) -> None:
        self.id = f"{backend}.winograd.batched.f{m}x{TAPS}"
        self._backend = backend
        self._cupy = cupy
        self._m = m

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        return refuse_winograd(spec, DTYPES, self._m, TAPS)

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        counts = winograd_counts(spec, self._m, BLOCKS.budget(()))
        block = blocking(spec, self._m, BLOCKS.budget(()))
        itemsize = precision.numpy_dtype(spec.dtype).itemsize
        y = itemsize * prod(spec.y_shape)
        additions = BYTES_PER_FLOP * itemsize
        phases = [
            Phase("tiles", bytes={"copy": counts.copied}),
            Phase("data transform", bytes={"memory": additions * counts.data}),
            # Every block reads all of the packed weights.
            Phase(
                "gemm",
                counts.multiply,
                f"{self._backend}.winograd.matmul.{spec.dtype}",
                {"memory": float(counts.blocks * counts.packed_bytes)},
                multiplying(
                    spec.out_channels // spec.groups,
                    block.rows,
                    spec.in_channels // spec.groups,
                    spec.groups * block.points,
                    target,
                ),
            ),
            Phase("output transform", bytes={"memory": additions * counts.output}),
        ]
        if spec.bias or spec.activation:
            phases.append(Phase("bias, activation", bytes={"memory": 4.0 * y}))
        tf32 = spec.dtype == "float32" and os.environ.get("CUPY_TF32", "0") == "1"
        return Work(
            tuple(phases),
            # cuBLAS promises the same result for the same call on the same GPU, and no more.
            Numerics(
                "winograd", tile=tile_of(spec, self._m), operands="tf32" if tf32 else "",
                spreads_nonfinite=True, deterministic=False,
            ),
            Phase(
                "pack",
                counts.pack,
                f"{self._backend}.winograd.matmul.float64",
                {"copy": 3.0 * counts.packed_bytes},
            ),
            launches=counts.blocks * counts.calls,
            workspace=counts.workspace,
            packed_bytes=counts.packed_bytes,
        )  # fmt: skip

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        return BLOCKS.configs(lambda budget: winograd_counts(spec, self._m, budget))

    def workspace_of(self, spec: ConvSpec, target: Target, config: Config) -> int:
        return winograd_counts(spec, self._m, BLOCKS.budget(config)).workspace

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return ComposedWinograd(self._cupy, spec, self._m, BLOCKS.budget(config))
