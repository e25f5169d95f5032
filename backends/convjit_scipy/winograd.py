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
from convjit.algorithms.composed_winograd import ComposedWinograd, tile_of, winograd_counts
from convjit.spec import ConvSpec, Direction
from convjit.spi import Config, Executable, Feature, Numerics, Phase, Refusal, Target, Work

DTYPES = ("float32", "float64")
TAPS = 3

# KiB of transformed tiles and products in one block: the default fits a share of a last-level
# cache, the smaller one an L2, the larger one gives BLAS more rows where channels are many.
BLOCKS = (4096, 1024, 16384)

# A single NumPy call takes about a microsecond beside its arithmetic, a fifth of a step.
CALLS_PER_STEP = 5


class WinogradSolver:
    """``scipy.winograd.f2x3`` and ``scipy.winograd.f4x3``: m outputs of 3 taps per axis."""

    algorithm = "winograd"

    def __init__(self, m: int) -> None:
        self.id = f"scipy.winograd.f{m}x{TAPS}"
        self._m = m

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if spec.is_empty:
            return Refusal(Feature.SIZE, "an operand is empty, there is nothing to multiply")
        if spec.dtype not in DTYPES:
            return Refusal(
                Feature.DTYPE, f"the transforms are for {', '.join(DTYPES)}; this is {spec.dtype}"
            )
        if not set(spec.kernel_size) <= {1, TAPS} or set(spec.kernel_size) == {1}:
            taps = "x".join(map(str, spec.kernel_size))
            return Refusal(
                Feature.SIZE,
                f"F({self._m}, {TAPS}) takes {TAPS} taps per axis (or 1 on some), not {taps}",
            )
        if spec.direction is Direction.WEIGHT_GRAD:
            return Refusal(Feature.SIZE, "the weights' gradient has as many taps as outputs")
        if spec.direction is not Direction.FORWARD:
            return Refusal(
                Feature.DIRECTION, f"only the forward direction is taken, not {spec.direction}"
            )
        if set(spec.stride) != {1}:
            return Refusal(Feature.STRIDE, f"winograd needs stride 1, got {_sizes(spec.stride)}")
        if set(spec.dilation) != {1}:
            return Refusal(
                Feature.DILATION, f"winograd needs dilation 1, got {_sizes(spec.dilation)}"
            )
        if spec.pad_mode != "zeros":
            return Refusal(Feature.PAD_MODE, f"tiles are padded with zeros, not {spec.pad_mode}")
        return None

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        counts = winograd_counts(spec, self._m, _budget(()))
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
                "winograd", tile=tile_of(spec, self._m), spreads_nonfinite=True, deterministic=False
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

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        return [(("block_kib", size),) for size in BLOCKS]

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return ComposedWinograd(np, spec, self._m, _budget(config))


def _budget(config: Config) -> int:
    return dict(config).get("block_kib", BLOCKS[0]) * 2**10


def _sizes(values: tuple[int, ...]) -> str:
    return "x".join(map(str, values))
