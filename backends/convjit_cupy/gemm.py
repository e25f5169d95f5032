"""im2col and cuBLAS: every direction as a matrix product (:mod:`convjit.algorithms.im2col`).

``cupy.matmul`` multiplies stacks of matrices: of float32, float64 and complex numbers by cuBLAS, of
64-bit integers, modulo 2^64, by a kernel of CuPy's.  Columns are made in blocks, as many as the
workspace has room for.  float16 is what ``cupy.matmul`` would
multiply in float32, after a cast of each stack: that cast is the core's, which casts x itself, a
kernel's size smaller than its columns.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from math import prod
from typing import Any

from convjit import planes, precision
from convjit.algorithms import im2col
from convjit.algorithms.composed import Im2colGemm, gemm_workspace
from convjit.blockwise import BlockSizes, refuse_gemm
from convjit.occupancy import Block, busy
from convjit.spec import ConvSpec, Direction
from convjit.spi import Config, Executable, Feature, Numerics, Phase, Refusal, Target, Work
from convjit_cupy import split

DTYPES = ("float32", "float64", "complex64", "complex128", "int64", "uint64")

# MiB of columns in one block: the default fills any GPU with work; the smaller one stays in the L2
# of a large GPU, the larger one saves launches.  The smallest are for a workspace_limit.
BLOCKS = BlockSizes("block_mib", 2**20, (64, 16, 256, 4, 1))

MOST_ROWS = 2**31  # of a matrix; its elements are addressed by 64 bits


# cuBLAS as :mod:`convjit.occupancy` sees it: tiles of 64 x 64 by four warps, and where those are
# few the depth divided too (cuBLAS Library, "cublasLtReductionScheme_t"), in steps of 32.
TILE, STEP = 64, 32
BLOCK = Block(4 * planes.LANES, registers=128, shared_bytes=32 << 10)


def multiplying(rows: int, columns: int, depth: int, matrices: int, target: Target) -> float:
    """How busy cuBLAS keeps a GPU with a stack of products."""
    blocks = -(-rows // TILE) * -(-columns // TILE) * matrices
    return busy(blocks * split.parts_for(-(-depth // STEP), blocks, target.cores), BLOCK, target)


class GemmSolver:
    """``cupy.gemm``."""

    algorithm = "gemm"

    def __init__(self, backend: str, cupy: Any) -> None:
        self.id = f"{backend}.gemm"
        self._cupy = cupy

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if (refusal := refuse_gemm(spec, DTYPES, "cuBLAS")) is not None:
            return refusal
        if max(im2col.gemm_shape(spec)) >= MOST_ROWS:
            return Refusal(Feature.SIZE, "cuBLAS counts rows and columns by 32 bits (2**31)")
        return None

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        itemsize = precision.numpy_dtype(spec.dtype).itemsize
        budget = BLOCKS.budget(())
        blocking = im2col.blocking(spec, itemsize, budget)
        blocks = blocking.count(spec)
        _, p, depth = im2col.gemm_shape(spec)
        columns = float(spec.batch * spec.groups * depth * p * itemsize)
        operands = itemsize * (prod(spec.x_shape) + prod(spec.w_shape) + prod(spec.y_shape))
        phases = []
        steps = 1
        if im2col.needs_columns(spec):
            # Columns that are added into x are read and written once more; for the gradient of
            # several groups' weights cupy.matmul transposes them by a copy.
            again = spec.computes_input or (
                spec.direction is Direction.WEIGHT_GRAD and spec.groups > 1
            )
            passes = 3.0 if again else 2.0
            phases.append(Phase("im2col", bytes={"memory": passes * columns}))
            steps += prod(spec.kernel_size)
        phases.append(
            Phase(
                "gemm",
                float(spec.flops),
                f"{self.id}.{spec.dtype}",
                {"memory": columns + float(operands)},
                multiplying(*_block_shape(spec, blocking), target),
            )
        )
        if spec.bias or spec.activation:
            result = itemsize * prod(spec.result_shape)
            phases.append(Phase("bias, activation", bytes={"memory": 4.0 * result}))
        rhs = itemsize * prod(spec.rhs_shape)
        copied = spec.channels_last or spec.conjugates
        return Work(
            tuple(phases),
            # cuBLAS promises the same result for the same call on the same GPU, and no more.
            Numerics("exact")
            if spec.dtype in precision.INTEGER
            else Numerics("gemm", operands=_operands(spec), deterministic=False),
            Phase("pack", bytes={"copy": 2.0 * rhs}) if copied else None,
            blocks * steps,
            gemm_workspace(spec, budget),
            rhs if copied else 0,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        itemsize = precision.numpy_dtype(spec.dtype).itemsize
        return BLOCKS.configs(lambda budget: im2col.blocking(spec, itemsize, budget))

    def workspace_of(self, spec: ConvSpec, target: Target, config: Config) -> int:
        return gemm_workspace(spec, BLOCKS.budget(config))

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return Im2colGemm(self._cupy, spec, BLOCKS.budget(config))


def _block_shape(spec: ConvSpec, blocking: im2col.Blocking) -> tuple[int, int, int, int]:
    """(rows, columns, depth, matrices) of the products of a block."""
    outputs, _, depth = im2col.gemm_shape(spec)
    positions, matrices = prod(blocking.outputs), blocking.images * spec.groups
    if spec.computes_input:
        return depth, positions, outputs, matrices
    if spec.direction is Direction.WEIGHT_GRAD:
        return outputs, depth, positions, matrices
    return outputs, positions, depth, matrices


def _operands(spec: ConvSpec) -> str:
    """What cuBLAS rounds operands to: CUPY_TF32=1 has CuPy ask it for TF32."""
    single = spec.dtype in ("float32", "complex64")
    return "tf32" if single and os.environ.get("CUPY_TF32", "0") == "1" else ""
