"""Winograd F(m, 3) by array operations and BLAS (:mod:`convjit.algorithms.composed_winograd`).

The transforms are additions of whole arrays, which NumPy runs on one core at the speed of its
cache: F(4, 3) saves three quarters of the products and gives much of that back, so that it pays
where there are many channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import numpy as np

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
from convjit_scipy.targets import lane_chain, longest

DTYPES = ("float32", "float64")
TAPS = 3

# KiB of transformed tiles and products in one block: the default fits a share of a last-level
# cache, the second an L2, the third gives BLAS more rows where channels are many; the smallest is
# for a workspace_limit.
BLOCKS = BlockSizes("block_kib", 2**10, (4096, 1024, 16384, 128))

# A single NumPy call takes about a microsecond beside its arithmetic, a fifth of a step.
CALLS_PER_STEP = 5


class WinogradSolver:
    """``scipy.winograd.f2x3`` and ``scipy.winograd.f4x3``: m outputs of 3 taps per axis."""

    algorithm = "winograd"

    def __init__(self, m: int) -> None:
        self.id = f"scipy.winograd.f{m}x{TAPS}"
        self._m = m

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        return refuse_winograd(spec, DTYPES, self._m, TAPS)

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        counts = winograd_counts(spec, self._m, BLOCKS.budget(()))
        itemsize = precision.numpy_dtype(spec.dtype).itemsize
        x, y = itemsize * prod(spec.x_shape), itemsize * prod(spec.y_shape)
        transform, matmul = (
            f"scipy.winograd.{kind}.{spec.dtype}" for kind in ("transform", "matmul")
        )
        phases = [
            Phase("tiles", bytes={"copy": counts.copied}),
            Phase("data transform", counts.data, transform, {"memory": float(x)}),
            # Every block reads all of the packed weights.
            Phase(
                "gemm", counts.multiply, matmul, {"l3": float(counts.blocks * counts.packed_bytes)}
            ),
            Phase("output transform", counts.output, transform, {"memory": float(y)}),
        ]
        if spec.bias or spec.activation:
            phases.append(Phase("bias, activation", bytes={"memory": 2.0 * y}))
        return Work(
            tuple(phases),
            # OpenBLAS splits the sums differently for other numbers of threads.
            Numerics(
                "winograd",
                tile=tile_of(spec, self._m),
                spreads_nonfinite=True,
                deterministic=False,
                chain=self._chain(spec, (), target),
            ),
            Phase(
                "pack",
                counts.pack,
                "scipy.winograd.matmul.float64",
                {"copy": 3.0 * counts.packed_bytes},
            ),
            launches=counts.blocks * counts.calls // CALLS_PER_STEP,
            workspace=counts.workspace,
            packed_bytes=counts.packed_bytes,
        )

    def _chain(self, spec: ConvSpec, config: Config, target: Target) -> int:
        """Products that one accumulator sums of a point's."""
        plan = blocking(spec, self._m, BLOCKS.budget(config))
        channels, results = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        rows, isa = {plan.rows, plan.least_rows(spec)}, target.features["isa"]
        return longest(lane_chain(m, results, channels, spec.dtype, isa) for m in rows)

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        """Those whose blocks do not sum in longer chains: a single tile's may."""
        offered = BLOCKS.configs(lambda budget: winograd_counts(spec, self._m, budget))
        chain = self._chain(spec, (), target)
        return [c for c in offered if longest((chain, self._chain(spec, c, target))) == chain]

    def workspace_of(self, spec: ConvSpec, target: Target, config: Config) -> int:
        return winograd_counts(spec, self._m, BLOCKS.budget(config)).workspace

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return ComposedWinograd(np, spec, self._m, BLOCKS.budget(config))
