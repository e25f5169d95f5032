"""The direct sum, tap by tap: the reference that takes every problem.

One image and one block of its outputs at a time, each tap is a contraction over the channels of
its group (``numpy.einsum``, whose loops are NumPy's own and the same on every number of threads)
that is added to the block, which stays in L2.  Borders other than zeros are written out around the
image before, or folded back onto it after, in an order that makes the two adjoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import numpy as np

from convjit import layout as layouts
from convjit import precision
from convjit.algorithms import geometry, im2col
from convjit.algorithms.epilogue import epilogue
from convjit.algorithms.workspace import Carver, aligned
from convjit.spec import ConvSpec, Direction
from convjit.spi import (
    DEFAULT_CONFIG,
    Array,
    Config,
    Executable,
    Numerics,
    Phase,
    Refusal,
    Target,
    Work,
)

# Bytes of one block of the result, which every tap reads and writes.
BLOCK_BYTES = 2**18

# Sums that NumPy's inner loops keep apart at least: vectors of 16 bytes.
LANES = 4

# What NumPy's iterator costs for each innermost row, as bytes that L1 would move meanwhile (6 ns).
ROW_BYTES = 600.0


class DirectSolver:
    """``scipy.direct``."""

    id = "scipy.direct"
    algorithm = "direct"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        return None

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        executable = DirectSum(spec)
        wide = precision.accumulator_dtype(spec.dtype)
        itemsize = precision.numpy_dtype(spec.dtype).itemsize
        operands = itemsize * (prod(spec.lhs_shape) + prod(spec.rhs_shape))
        result = precision.numpy_dtype(spec.result_dtype).itemsize * prod(spec.result_shape)
        products = spec.batch * spec.out_channels * (spec.in_channels // max(spec.groups, 1))
        for axis in range(spec.ndim):
            n, m, k = spec.in_size[axis], spec.out_size[axis], spec.kernel_size[axis]
            s, (lo, _), d = spec.stride[axis], spec.padding[axis], spec.dilation[axis]
            inside = geometry.inside_taps(n, m, k, s, lo, d)
            products *= inside if spec.pad_mode == "zeros" else m * k
        flops = products * (8.0 if spec.dtype in precision.COMPLEX else 2.0)
        # Each product of a tap is written once and added: five accesses beside the contraction.
        depth = spec.out_channels if spec.computes_input else spec.in_channels
        added = 5.0 * itemsize * products / max(1, depth // max(spec.groups, 1))
        method = "exact" if spec.dtype in precision.INTEGER else "direct"
        return Work(
            (
                Phase(
                    "taps",
                    flops,
                    f"scipy.direct.{wide}",
                    {"l2": added, "memory": float(operands + result)},
                ),
                Phase("rows", bytes={"l1": ROW_BYTES * products / max(spec.out_size[-1], 1)}),
                Phase("images", bytes={"copy": 2.0 * executable.copied * spec.batch}),
            ),
            Numerics(method, chain=executable.chain),
            Phase("pack", bytes={"copy": 2.0 * itemsize * prod(spec.rhs_shape)}),
            executable.steps,
            executable.workspace,
            precision.numpy_dtype(wide).itemsize * prod(spec.rhs_shape),
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        return (DEFAULT_CONFIG,)

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return DirectSum(spec)


class DirectSum:
    """The executable.

    Everything inside is channels-first, one image at a time, in the accumulator's dtype; an operand
    or a result that is so already is used in place.

    Attributes
    ----------
    workspace : int
    copied : int
        Bytes that each image copies into the workspace and out of it.
    steps : int
        Taps times blocks times images.
    """

    def __init__(self, spec: ConvSpec) -> None:
        self._spec = spec
        self._wide = precision.numpy_dtype(precision.accumulator_dtype(spec.dtype))
        self._first = spec.replace(
            layout=layouts.CHANNELS_FIRST[spec.ndim], batch=min(spec.batch, 1)
        )
        self._bordered = spec.pad_mode != "zeros"
        inner = self._first
        if self._bordered:
            size = (n + lo + hi for n, (lo, hi) in zip(spec.in_size, spec.padding, strict=True))
            inner = inner.replace(
                in_size=tuple(size), padding=((0, 0),) * spec.ndim, pad_mode="zeros"
            )
        self._inner = inner
        same = spec.dtype == self._wide.name
        wgrad = spec.direction is Direction.WEIGHT_GRAD
        # Which images pass through the workspace.
        self._copies_lhs = not same or (self._bordered and not spec.computes_input)
        self._copies_result = not wgrad and (
            self._wide.name != spec.result_dtype or (self._bordered and spec.computes_input)
        )
        self._copies_sum = wgrad and self._wide.name != spec.result_dtype
        self._blocks = [] if spec.is_empty else self._cut()
        self._taps = im2col.taps_of_blocks(inner, self._blocks)
        per_image = [inner.lhs_shape if spec.computes_input else inner.x_shape]
        self.copied = 0
        self.workspace = 0
        if self._copies_lhs:
            self.copied += aligned(prod(per_image[0]) * self._wide.itemsize)
        if self._copies_result:
            self.copied += aligned(prod(inner.result_shape) * self._wide.itemsize)
        self.workspace = self.copied
        if self._copies_sum:
            self.workspace += aligned(prod(spec.w_shape) * self._wide.itemsize)
        self.workspace += aligned(self._product_size() * self._wide.itemsize)
        self.steps = max(1, spec.batch * len(self._blocks) * prod(spec.kernel_size))

    @property
    def chain(self) -> int:
        """Products that one contraction sums, whose results the taps or blocks then add up."""
        spec = self._spec
        if spec.direction is Direction.WEIGHT_GRAD:
            # Within a block einsum sums row by row, or all of it in the lanes of a vector.
            block = max((prod(map(len, block)) for block in self._blocks), default=0)
            return min(block, max(spec.out_size[-1], -(-block // LANES)))
        channels = spec.out_channels if spec.computes_input else spec.in_channels
        return channels // max(1, spec.groups)

    def _cut(self) -> list[tuple[geometry.Range, ...]]:
        """Blocks of rows of y."""
        inner = self._inner
        channels = max(inner.out_channels, inner.in_channels)
        rows = max(1, BLOCK_BYTES // (channels * prod(inner.out_size[1:]) * self._wide.itemsize))
        blocking = im2col.Blocking(1, (rows, *inner.out_size[1:]))
        return [block for _, block in blocking.blocks(inner)]

    def _product_size(self) -> int:
        """Elements of the largest product that is added."""
        spec = self._spec
        if spec.direction is Direction.WEIGHT_GRAD:
            return spec.out_channels * (spec.in_channels // max(spec.groups, 1))
        channels = spec.in_channels if spec.computes_input else spec.out_channels
        return channels * max((prod(map(len, block)) for block in self._blocks), default=0)

    def pack(self, rhs: Array) -> Array:
        """The second operand, wide, y channels-first; conjugated if need be."""
        spec = self._spec
        if spec.conjugates:
            rhs = np.conjugate(rhs)
        if spec.direction is Direction.WEIGHT_GRAD and spec.channels_last:
            rhs = rhs.transpose(layouts.to_channels_first(spec.ndim)).copy()
        return rhs.astype(self._wide, copy=False)

    def run(
        self, lhs: Array, packed: Any, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        spec, wgrad = self._spec, self._spec.direction is Direction.WEIGHT_GRAD
        with np.errstate(all="ignore"):  # Inf, NaN and wrapping are data here
            if spec.is_empty:
                out[...] = 0
                epilogue(np, spec, out, bias)
            elif wgrad:
                self._weight_grad(lhs, packed, out, workspace)
            else:
                g = spec.groups
                w = packed.reshape(g, spec.out_channels // g, -1, *spec.kernel_size)
                for n in range(spec.batch):
                    self._image(lhs, w, bias, out, n, Carver(workspace))

    def _view(self, data: Array, n: int) -> Array:
        """Image ``n`` of a data operand, channels-first."""
        image = data[n]
        return np.moveaxis(image, -1, 0) if self._spec.channels_last else image

    def _load(self, data: Array, n: int, carver: Carver) -> Array:
        """Image ``n`` of the first operand, wide, and with its border if it has one."""
        image = self._view(data, n)
        if not self._copies_lhs:
            return image
        inner = self._inner
        wide = carver.take(inner.lhs_shape[1:], self._wide)
        if not self._bordered or inner.computes_input:
            wide[...] = image
            return wide
        wide[(slice(None), *self._middle())] = image
        for border, origin in self._border():
            wide[border] = wide[origin]
        return wide

    def _middle(self) -> tuple[slice, ...]:
        spec = self._spec
        return tuple(
            slice(lo, lo + n) for n, (lo, _) in zip(spec.in_size, spec.padding, strict=True)
        )

    def _border(self) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
        """(position of the border, position it repeats), axis by axis.

        Later axes repeat what earlier ones have written, the corners included.
        """
        spec = self._spec
        for axis, (n, (lo, hi)) in enumerate(zip(spec.in_size, spec.padding, strict=True)):
            before = (slice(None),) * (axis + 1)
            for position in (*range(-lo, 0), *range(n, n + hi)):
                source = geometry.source_index(position, n, spec.pad_mode)
                if source is not None:
                    yield (*before, lo + position), (*before, lo + source)

    def _image(
        self, lhs: Array, w: Array, bias: Array | None, out: Array, n: int, carver: Carver
    ) -> None:
        spec, inner, g = self._spec, self._inner, self._spec.groups
        source = self._load(lhs, n, carver)
        place = self._view(out, n)
        total = carver.take(inner.result_shape[1:], self._wide) if self._copies_result else place
        total[...] = 0
        space = carver.take((self._product_size(),), self._wide)
        axes = "xyz"[: spec.ndim]
        rule = f"gkc,gk{axes}->gc{axes}" if spec.computes_input else f"gkc,gc{axes}->gk{axes}"
        for block in self._blocks:
            for tap in self._taps(block):
                if tap.is_empty:
                    continue
                outputs = _offset(tap.outputs, block)
                reads, writes = tap.inputs, outputs
                if spec.computes_input:
                    reads, writes = writes, reads
                values = source[(slice(None), *reads)]
                values = values.reshape(g, -1, *values.shape[1:])
                sums = total[(slice(None), *writes)]
                product = space[: sums.size].reshape(g, -1, *sums.shape[1:])
                np.einsum(rule, w[(..., *tap.tap)], values, out=product)
                sums += product.reshape(sums.shape)
        if self._copies_result and self._bordered and spec.computes_input:
            for border, origin in reversed(list(self._border())):
                total[origin] += total[border]
            total = total[(slice(None), *self._middle())]
        # An activation that is applied before the last rounding is applied to a wider number.
        wide_bias = None if bias is None else bias.astype(self._wide, copy=False)
        epilogue(np, self._first, total[None], wide_bias)
        if self._copies_result:
            place[...] = total

    def _weight_grad(self, x: Array, y: Array, out: Array, workspace: Array | None) -> None:
        spec, g = self._spec, self._spec.groups
        k, c = spec.out_channels // g, spec.in_channels // g
        whole = Carver(workspace)
        total = whole.take(spec.w_shape, self._wide) if self._copies_sum else out
        space = whole.take((g, k, c), self._wide)
        total[...] = 0
        grouped = total.reshape(g, k, c, *spec.kernel_size)
        axes = "xyz"[: spec.ndim]
        start = whole.used
        for n in range(spec.batch):
            rest = workspace if workspace is None else workspace[start:]
            source = self._load(x, n, Carver(rest))
            for block in self._blocks:
                for tap in self._taps(block):
                    if tap.is_empty:
                        continue
                    values = source[(slice(None), *tap.inputs)]
                    gradient = y[(n, slice(None), *_offset(tap.outputs, block))]
                    np.einsum(
                        f"gk{axes},gc{axes}->gkc",
                        gradient.reshape(g, k, *gradient.shape[1:]),
                        values.reshape(g, c, *values.shape[1:]),
                        out=space,
                    )
                    grouped[(..., *tap.tap)] += space
        if spec.conjugates:  # conj(x) y = conj(x conj(y)), and pack conjugated y
            np.conjugate(total, out=total)
        if self._copies_sum:
            out[...] = total


def _offset(relative: tuple[slice, ...], block: tuple[geometry.Range, ...]) -> tuple[slice, ...]:
    """Slices relative to a block as slices of the whole."""
    return tuple(
        slice(b.start + r.start, b.start + r.stop) for r, b in zip(relative, block, strict=True)
    )
