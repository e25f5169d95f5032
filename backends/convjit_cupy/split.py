"""Products whose depth is divided over blocks, because their outputs are too few for a GPU.

Each part of the depth has its sums written to the workspace, in the layout of the outputs; a second
kernel adds the parts up, always in the same order, so that results do not depend on which block is
done first, and applies bias and activation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

from convjit import planes, precision
from convjit.occupancy import Block, busy, held
from convjit.planes import unsigned
from convjit.spec import ConvSpec
from convjit.spi import Phase, Target
from convjit_cupy.kernels import ACTIVATION, load
from convjit_cupy.tiles import C_TYPES

Array = Any

LEAST_STEPS = 4  # of a part: before the first product its copies are waited for
THREADS = 256
BLOCK = Block(THREADS, registers=26)

# Macros: SUM, the type of the parts and of the arithmetic, and REAL, that of bias and results.
SOURCE = (
    ACTIVATION
    + r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>

using Sum = SUM;
using Real = REAL;

// Results that follow each other share an output, and its bias if there is one, in runs of `inner`.
extern "C" __global__ void __launch_bounds__(256) sum_parts(
    const Sum *__restrict__ sums, const Real *__restrict__ bias, Real *__restrict__ y,
    unsigned total, unsigned parts, unsigned inner, unsigned outputs, unsigned biased, Sum slope,
    Sum lowest, Sum highest
) {
    const unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i >= total) return;
    Sum sum = sums[i];
#pragma unroll 4
    for (unsigned part = 1; part < parts; part++) sum += sums[size_t(part) * total + i];
    if (biased) sum += Sum(bias[i / inner % outputs]);
    y[i] = Real(finish(sum, slope, lowest, highest));
}
"""
)


def parts_for(steps: int, blocks: int, slots: int) -> int:
    """Parts to divide ``steps`` into, where without there are ``blocks``, to fill ``slots``."""
    wanted = min(slots // blocks, steps // LEAST_STEPS)
    return -(-steps // steps_of_a_part(steps, max(1, wanted)))


def choices(steps: int, blocks: int, block: Block, target: Target) -> Iterator[int]:
    """Parts worth a thought: one, and those that give all multiprocessors a block, two, ..."""
    rounds = range(held(block, target) + 1)
    yield from dict.fromkeys(parts_for(steps, blocks, n * target.cores) for n in rounds)


def steps_of_a_part(steps: int, parts: int) -> int:
    """Steps of each part but the last, which has the rest, one at least."""
    return -(-steps // parts)


def sum_up(
    cupy: Any, spec: ConvSpec, parts: int, sums: Array, bias: Array | None, y: Array
) -> None:
    """Add up the parts, which lie one after the other, to the results of a problem."""
    dtype = precision.accumulator_dtype(spec.dtype)
    macros = (f"-DSUM={C_TYPES[dtype]}", f"-DREAL={C_TYPES[spec.dtype]}")
    kernel = load(cupy, SOURCE, "sum_parts", macros)
    inner = 1 if spec.channels_last else prod(spec.out_size)
    numbers = unsigned(y.size, parts, inner, spec.out_channels, bias is not None)
    given = sums if bias is None else bias  # any array, that is not read
    arguments = (sums, given, y, *numbers, *planes.activation(spec))
    kernel((-(-y.size // THREADS),), (THREADS,), arguments)


def workspace_bytes(spec: ConvSpec, parts: int) -> int:
    """Bytes of the parts; none where there is one, which is written where the outputs are."""
    itemsize = precision.numpy_dtype(precision.accumulator_dtype(spec.dtype)).itemsize
    return parts * prod(spec.y_shape) * itemsize if parts > 1 else 0


def phases(
    spec: ConvSpec, target: Target, multiply: Phase, blocks: int, block: Block, parts: int
) -> tuple[Phase, ...]:
    """What a product costs whose depth is divided into parts, and adding them up.

    Parameters
    ----------
    spec : ConvSpec
    target : Target
    multiply : Phase
        The product, as if all of the GPU were at work.
    blocks : int
        Of the outputs, each of which there is once for each part.
    block : Block
    parts : int
    """
    product = replace(multiply, busy=busy(blocks * parts, block, target))
    if parts == 1:
        return (product,)
    moved = {"l2": 2.0 * workspace_bytes(spec, parts)}
    filled = busy(-(-prod(spec.y_shape) // THREADS), BLOCK, target)
    return product, Phase("sum parts", bytes=moved, busy=filled)
