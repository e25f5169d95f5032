"""Products whose depth is divided over blocks, because their outputs are too few for a GPU.

Each part of the depth has its sums written to the workspace, in the layout of the outputs; a second
kernel adds the parts up, always in the same order, so that results do not depend on which block is
done first, and applies bias and activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convjit.planes import unsigned
from convjit_cupy.kernels import ACTIVATION, load

Array = Any

BLOCKS = 2  # that each multiprocessor is to get
LEAST_STEPS = 4  # of a part: before the first product its copies are waited for
THREADS = 256

# Macros: SUM, the type of the parts and of the arithmetic.
SOURCE = (
    ACTIVATION
    + r"""
using Sum = SUM;

// Outputs that follow each other share a bias in runs of `inner`.
extern "C" __global__ void __launch_bounds__(256) sum_parts(
    const Sum *__restrict__ sums, const Sum *__restrict__ bias, Sum *__restrict__ y,
    unsigned total, unsigned parts, unsigned inner, unsigned outputs, Sum slope, Sum lowest,
    Sum highest
) {
    const unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i >= total) return;
    Sum sum = sums[i];
#pragma unroll 4
    for (unsigned part = 1; part < parts; part++) sum += sums[size_t(part) * total + i];
    y[i] = finish(sum + bias[i / inner % outputs], slope, lowest, highest);
}
"""
)


def parts_for(steps: int, blocks: int, cores: int) -> int:
    """Parts to divide ``steps`` into, where without there are ``blocks`` for ``cores``."""
    wanted = min(BLOCKS * cores // blocks, steps // LEAST_STEPS)
    return -(-steps // steps_of_a_part(steps, max(1, wanted)))


def steps_of_a_part(steps: int, parts: int) -> int:
    """Steps of each part but the last, which has the rest, one at least."""
    return -(-steps // parts)


def sum_up(
    cupy: Any,
    kind: str,
    arrays: tuple[Array, Array, Array],
    parts: int,
    inner: int,
    activation: Sequence[Any],
) -> None:
    """Add up the parts: ``arrays`` are those, the bias of all outputs and the results, all flat.

    ``kind`` is the type of all of them in CUDA C++, ``inner`` how many neighbours share an output,
    and ``activation`` what :func:`convjit.planes.activation` gives.
    """
    _, bias, y = arrays
    kernel = load(cupy, SOURCE, "sum_parts", (f"-DSUM={kind}",))
    numbers = unsigned(y.size, parts, inner, bias.size)
    kernel((-(-y.size // THREADS),), (THREADS,), (*arrays, *numbers, *activation))


def workspace_bytes(parts: int, outputs: int, itemsize: int) -> int:
    """Bytes of the parts; none where there is one, which is written where the outputs are."""
    return parts * outputs * itemsize if parts > 1 else 0
