"""im2col and BLAS: every direction as a matrix product (:mod:`convjit.algorithms.im2col`)."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import numpy as np

from convjit import precision
from convjit.algorithms import im2col
from convjit.algorithms.composed import Im2colGemm, gemm_workspace
from convjit.blockwise import BlockSizes, refuse_gemm
from convjit.spec import ConvSpec, Direction
from convjit.spi import Config, Executable, Numerics, Phase, Refusal, Target, Work
from convjit_scipy.targets import blas_chain, longest

DTYPES = ("float32", "float64", "complex64", "complex128")

# KiB of columns in one block: the default fits a share of a last-level cache, the smaller one an
# L2, the larger one pays where rows of the image are long.  The smallest is for a workspace_limit.
BLOCKS = BlockSizes("block_kib", 2**10, (4096, 1024, 16384, 128))

# What NumPy's iterator costs for each innermost row, as bytes that L2 would move meanwhile (20 ns).
ROW_BYTES = 1000.0

# A GEMM inside a batch costs about a microsecond beside its arithmetic, a quarter of a step.
PRODUCTS_PER_STEP = 4


class GemmSolver:
    """``scipy.gemm``."""

    id = "scipy.gemm"
    algorithm = "gemm"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        return refuse_gemm(spec, DTYPES, "BLAS")

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        itemsize = precision.numpy_dtype(spec.dtype).itemsize
        budget = BLOCKS.budget(())
        plan = im2col.blocking(spec, itemsize, budget)
        blocks = plan.count(spec)
        _, p, depth = im2col.gemm_shape(spec)
        columns = float(spec.batch * spec.groups * depth * p * itemsize)
        operands = itemsize * (prod(spec.x_shape) + prod(spec.w_shape) + prod(spec.y_shape))
        phases = []
        steps = 1
        if im2col.needs_columns(spec):
            # Reading and writing; columns that are added into x are read and written once more.
            passes = 3.0 if spec.computes_input else 2.0
            rows = columns / itemsize / max(spec.out_size[-1], 1)
            phases.append(Phase("im2col", bytes={"l2": passes * columns + ROW_BYTES * rows}))
            steps += 1 if _is_one_copy(spec) else prod(spec.kernel_size)
        # With few rows the product waits for its columns, which the last-level cache holds.
        phases.append(
            Phase(
                "gemm",
                float(spec.flops),
                f"scipy.gemm.{spec.dtype}",
                {"l3": columns, "memory": float(operands)},
            )
        )
        if spec.bias or spec.activation:
            result = itemsize * prod(spec.result_shape)
            phases.append(Phase("bias, activation", bytes={"memory": 2.0 * result}))
        rhs = itemsize * prod(spec.rhs_shape)
        copied = spec.channels_last or spec.conjugates
        return Work(
            tuple(phases),
            # OpenBLAS splits the sums differently for other numbers of threads.
            Numerics(
                "gemm",
                deterministic=False,
                chain=self._chain(spec, plan, target.features.get("isa", "")),
            ),
            Phase("pack", bytes={"copy": 2.0 * rhs}) if copied else None,
            blocks * steps + spec.batch * spec.groups // PRODUCTS_PER_STEP,
            gemm_workspace(spec, budget),
            rhs if copied else 0,
        )

    @staticmethod
    def _chain(spec: ConvSpec, plan: im2col.Blocking, isa: str) -> int:
        """Products that one accumulator sums: those of a block's matrix product, or of BLAS's own.

        Of smaller blocks, for a ``workspace_limit``, the sums may be longer, as far as a sequence.
        """
        m, p, depth = im2col.gemm_shape(spec)
        if spec.direction is Direction.WEIGHT_GRAD:
            pixels = -(-spec.batch * p // plan.count(spec))
            chain = blas_chain(m, depth, pixels, spec.dtype, isa, rows=True)
            return min(pixels, chain or pixels)
        sizes = {prod(plan.outputs), plan.least_outputs(spec)}
        if spec.computes_input:  # what the taps give is added where they meet
            return min(m, longest(blas_chain(depth, n, m, spec.dtype, isa) for n in sizes) or m)
        if spec.channels_last:
            return longest(blas_chain(n, m, depth, spec.dtype, isa) for n in sizes)
        return longest(blas_chain(m, n, depth, spec.dtype, isa) for n in sizes)

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        itemsize = precision.numpy_dtype(spec.dtype).itemsize
        return BLOCKS.configs(lambda budget: im2col.blocking(spec, itemsize, budget))

    def workspace_of(self, spec: ConvSpec, target: Target, config: Config) -> int:
        return gemm_workspace(spec, BLOCKS.budget(config))

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return Im2colGemm(np, spec, BLOCKS.budget(config))


def _is_one_copy(spec: ConvSpec) -> bool:
    """Whether a window view makes the columns at once."""
    return (
        set(spec.padding) == {(0, 0)}
        and not spec.flip
        and not spec.channels_last
        and not spec.computes_input
    )
