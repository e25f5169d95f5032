"""The steps of lowering: for each feature a solver may lack, a simpler problem, same answer.

A step says what runs before (on either operand), what runs after (on the result), and what moves.
It describes data movement with views and assignments alone, so that it runs on any array type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from convjit import layout as layouts
from convjit import precision
from convjit.algorithms import adjoint, geometry
from convjit.algorithms.fills import Copy, Fill, View, move
from convjit.algorithms.spacetodepth import SpaceToDepth
from convjit.algorithms.workspace import aligned, nbytes
from convjit.layout import to_channels_first, to_channels_last
from convjit.spec import ConvSpec, Direction
from convjit.spi import Array, Feature, Phase, Refusal


@dataclass(frozen=True, slots=True)
class Step:
    """One simplification of a problem.

    Attributes
    ----------
    name : str
        As explain shows it: ``"pad reflect"``, ``"NHWC to NCHW"``.
    outer, inner : ConvSpec
        The problem before and after the step.
    fill_lhs, view_lhs
        How the inner problem's first operand comes from the outer one's: by a copy into a buffer
        of its shape, or as a view; neither when it is the same array.
    fill_rhs, view_rhs
        The same for the second operand, run by ``pack``.
    fill_result, view_result
        A copy from a buffer with the inner result to the outer one, or a view of the outer result
        into which the inner problem writes.
    fill_bias
        The inner problem's bias, where it is not the outer one's.
    repeats : int
        Number of inner problems (one per group), sliced by :class:`_Groups`.
    spreads_nonfinite : bool
        Whether the step lets a NaN or Inf reach outputs outside its receptive field.
    exact : bool
        Whether summation in the inner dtype makes no rounding error at all.
    """

    name: str
    outer: ConvSpec
    inner: ConvSpec
    fill_lhs: Fill | None = None
    view_lhs: View | None = None
    fill_rhs: Fill | None = None
    view_rhs: View | None = None
    fill_result: Fill | None = None
    view_result: View | None = None
    fill_bias: View | None = None
    repeats: int = 1
    spreads_nonfinite: bool = False
    exact: bool = False

    @property
    def epilogue_outside(self) -> bool:
        """Whether bias and activation are applied after this step instead of inside it."""
        return (self.outer.bias and not self.inner.bias) or (
            self.outer.activation is not None and self.inner.activation is None
        )

    @property
    def lhs_bytes(self) -> int:
        return nbytes(self.inner.lhs_shape, self.inner.dtype) if self.fill_lhs else 0

    @property
    def result_bytes(self) -> int:
        shape, dtype = self.inner.result_shape, self.inner.result_dtype
        return nbytes(shape, dtype) if self.fill_result else 0

    @property
    def level(self) -> str:
        """What the fills are bound by: copies of the backend's, or casts of the array library's."""
        outer, inner = (precision.REAL_OF.get(s.dtype, s.dtype) for s in (self.outer, self.inner))
        return "copy" if outer == inner else "elementwise"

    @property
    def workspace(self) -> int:
        return aligned(self.lhs_bytes) + aligned(self.result_bytes)

    def moved(self, role: str) -> float:
        """Bytes that the fill of ``"lhs"``, ``"rhs"`` or ``"result"`` reads and writes.

        Lines of either side are moved whole, so that a fill which takes every second sample of an
        array still reads all of it.
        """
        sizes = [
            nbytes(
                getattr(spec, f"{role}_shape"),
                spec.result_dtype if role == "result" else spec.dtype,
            )
            for spec in (self.outer, self.inner)
        ]
        return float(sizes[0] + sizes[1] * self.repeats)

    def phases(self) -> tuple[list[Phase], list[Phase]]:
        """What runs before and after the inner problem, as traffic of strided copies."""
        before, after = [], []
        if self.fill_lhs:
            before.append(Phase(self.name, bytes={self.level: self.moved("lhs")}))
        if self.fill_result:
            after.append(Phase(self.name, bytes={self.level: self.moved("result")}))
        if self.epilogue_outside:
            size = nbytes(self.outer.result_shape, self.outer.result_dtype)
            after.append(Phase("bias, activation", bytes={"elementwise": 2.0 * size}))
        return before, after


@dataclass(frozen=True, slots=True)
class Split:
    """A problem whose result several simpler ones compute, each a part of its own.

    Attributes
    ----------
    name : str
        As explain shows it.
    outer : ConvSpec
    parts : tuple of Step
        From ``outer`` to each inner problem; what their ``fill_result`` write does not overlap.
    has_gaps : bool
        Whether there are elements that no part writes: those are empty sums, to which bias and
        activation are still applied.
    """

    name: str
    outer: ConvSpec
    parts: tuple[Step, ...]
    has_gaps: bool

    def phases(self) -> list[Phase]:
        """What runs before the parts."""
        if not self.has_gaps:
            return []
        size = nbytes(self.outer.result_shape, self.outer.result_dtype)
        return [Phase(f"{self.name}, gaps", bytes={"memory": float(size)})]


# -------------------------------------------------------------------- the steps, by feature


def next_step(feature: Feature, spec: ConvSpec) -> Step | Split | Refusal | None:
    """The step that removes a feature, or first one that it needs; None when there is none."""
    rule = RULES.get(feature)
    return None if rule is None else rule(spec)


def _strided(spec: ConvSpec) -> Step | None:
    if not spec.strided:
        return None
    return Step("contiguous copy", spec, spec.replace(strided=False), fill_lhs=move)


def _layout(spec: ConvSpec) -> Step:
    """Channels-first to channels-last, or back."""
    ndim = spec.ndim
    forward, backward = to_channels_last(ndim), to_channels_first(ndim)
    names = layouts.CHANNELS_LAST
    if spec.channels_last:
        forward, backward, names = backward, forward, layouts.CHANNELS_FIRST

    def enter(copy: Copy, destination: Array, source: Array) -> None:
        copy(destination, source.transpose(forward))

    def leave(copy: Copy, destination: Array, source: Array) -> None:
        copy(destination, source.transpose(backward))

    inner = spec.replace(layout=names[ndim], strided=False)
    wgrad = spec.direction is Direction.WEIGHT_GRAD
    return Step(
        f"{spec.layout} to {names[ndim]}",
        spec,
        inner,
        fill_lhs=enter,
        fill_rhs=enter if wgrad else None,
        fill_result=None if wgrad else leave,
    )


LARGEST = {
    "bool": 1, "int8": 2**7, "uint8": 2**8 - 1, "int16": 2**15, "uint16": 2**16 - 1,
    "int32": 2**31, "uint32": 2**32 - 1, "int64": 2**63, "uint64": 2**64 - 1,
}  # fmt: skip
_WHOLE_UP_TO = {"float32": 2**24, "float64": 2**53}


def _dtype(spec: ConvSpec) -> Step | Refusal | None:
    if spec.dtype in precision.HALF:
        return _cast("half to float32", spec, "float32")
    if spec.dtype == "float32":
        return _cast("float32 to float64", spec, "float64")
    if spec.dtype in precision.COMPLEX:
        return _complex(spec)
    if spec.dtype in precision.INTEGER:
        largest = LARGEST[spec.dtype] ** 2 * max(spec.reduction, 1)
        for dtype, limit in _WHOLE_UP_TO.items():
            if largest <= limit:
                inner = spec.replace(dtype=dtype, bias=False, activation=None, strided=False)
                return Step(
                    f"{spec.dtype} to {dtype}, exact", spec, inner, fill_lhs=move,
                    fill_rhs=move, fill_result=move, exact=True,
                )  # fmt: skip
        wide = precision.result_dtype(spec.dtype)
        if spec.dtype != wide:
            # Products and sums modulo 2**64 are those of the wide type.
            inner = spec.replace(dtype=wide, strided=False)
            return Step(f"{spec.dtype} to {wide}", spec, inner, fill_lhs=move, fill_rhs=move)
        return Refusal(
            Feature.DTYPE,
            f"{spec.reduction} products of {spec.dtype} may reach {largest:.1e}, beyond the whole "
            f"numbers that float64 holds (2**53)",
        )
    return None


def _cast(name: str, spec: ConvSpec, dtype: str) -> Step:
    inner = spec.replace(dtype=dtype, strided=False)
    return Step(name, spec, inner, fill_lhs=move, fill_rhs=move, fill_result=move)


def _complex(spec: ConvSpec) -> Step | None:
    """A complex problem as a real one with twice the channels.

    With channel ``2c`` the real and ``2c + 1`` the imaginary part of channel c, the weights
    ``[[re, -im], [im, re]]`` for each pair of channels make the real problem compute the complex
    one: four real products for a complex one, as the direct sum does.  The pairs stay inside their
    group.  Channels-last data is already stored like that, so there a view does.
    """
    if spec.flip:
        return _flip(spec)
    real = precision.REAL_OF[spec.dtype]
    last = spec.channels_last
    inner = spec.replace(
        dtype=real, in_channels=2 * spec.in_channels, out_channels=2 * spec.out_channels,
        bias=False, activation=None, strided=False,
    )  # fmt: skip
    conjugate = -1 if spec.direction is Direction.INPUT_GRAD else 1
    wgrad = spec.direction is Direction.WEIGHT_GRAD
    kind = precision.numpy_dtype(real)
    other = precision.numpy_dtype(spec.dtype)

    def split(copy: Copy, destination: Array, source: Array) -> None:
        copy(destination[:, 0::2], source.real)
        copy(destination[:, 1::2], source.imag)

    def join(copy: Copy, destination: Array, source: Array) -> None:
        copy(destination.real, source[:, 0::2])
        copy(destination.imag, source[:, 1::2])

    def weights(copy: Copy, destination: Array, source: Array) -> None:
        copy(destination[0::2, 0::2], source.real)
        copy(destination[1::2, 1::2], source.real)
        copy(destination[0::2, 1::2], source.imag)
        copy(destination[1::2, 0::2], source.imag)
        # Row 2k makes the real part: re*re - im*im; a conjugated kernel swaps the two signs.
        # The adjoint reads the block matrix transposed, which conjugates: (M^T) ~ conj(w).
        minus = destination[0::2, 1::2] if sign > 0 else destination[1::2, 0::2]
        minus *= -1

    # Forward: y = M x.  TRANSPOSED and INPUT_GRAD read M transposed, and M(w)^T = M(conj(w)).
    sign = 1 if spec.direction is Direction.FORWARD else -conjugate

    def blocks(copy: Copy, destination: Array, source: Array) -> None:
        # conj(x) g = (xr gr + xi gi) + i (xr gi - xi gr); rows of the source are g, columns x.
        destination.real = source[0::2, 0::2]
        destination.real += source[1::2, 1::2]
        destination.imag = source[1::2, 0::2]
        destination.imag -= source[0::2, 1::2]

    def as_real(array: Array) -> Array:
        return array.view(kind)

    contiguous = last and not spec.strided
    if not last:
        enter: dict[str, Any] = {"fill_lhs": split}
    elif contiguous:
        enter = {"view_lhs": as_real}
    else:

        def enter_last(copy: Copy, destination: Array, source: Array) -> None:
            copy(destination.view(other), source)

        enter = {"fill_lhs": enter_last}
    if wgrad:
        second: dict[str, Any] = {"view_rhs": as_real} if last else {"fill_rhs": split}
        leave: dict[str, Any] = {"fill_result": blocks}
    else:
        second = {"fill_rhs": weights}
        leave = {"view_result": as_real} if last else {"fill_result": join}
    return Step("complex as pairs of channels", spec, inner, **enter, **second, **leave)


def _conjugate(spec: ConvSpec) -> Step | Refusal | None:
    """The input's gradient of a complex problem: the transposed operator of conj(w)."""
    if spec.direction is not Direction.INPUT_GRAD:
        return _complex(spec) if spec.conjugates else None

    def conjugate(copy: Copy, destination: Array, source: Array) -> None:
        copy(destination, source)
        destination.imag *= -1

    inner = spec.replace(direction=Direction.TRANSPOSED)
    return Step("conjugate", spec, inner, fill_rhs=conjugate)


def _pad(spec: ConvSpec) -> Step | None:
    """The border made explicit, so that the inner problem has none.

    Forward and for the weights' gradient x is copied into its padded form.  Where x is the result,
    the inner problem computes the padded x, whose border folds back onto the samples it came from.
    """
    if all(p == (0, 0) for p in spec.padding) and spec.pad_mode == "zeros":
        return None
    size = tuple(n + lo + hi for n, (lo, hi) in zip(spec.in_size, spec.padding, strict=True))
    inner = spec.replace(in_size=size, padding=((0, 0),) * spec.ndim, pad_mode="zeros")
    axes = layouts.spatial_axes(spec.layout, spec.ndim)
    middle = _window(spec, axes)
    mode = spec.pad_mode

    def pad(copy: Copy, destination: Array, source: Array) -> None:
        if mode == "zeros":
            destination[...] = 0
        copy(destination[middle], source)
        if mode != "zeros":
            for axis, n, (lo, hi) in zip(axes, spec.in_size, spec.padding, strict=True):
                for border, origin in _borders(mode, axis, n, lo, hi):
                    destination[border] = destination[origin]

    def fold(copy: Copy, destination: Array, source: Array) -> None:
        if mode != "zeros":
            borders = zip(axes, spec.in_size, spec.padding, strict=True)
            for axis, n, (lo, hi) in reversed(list(borders)):
                for border, origin in _borders(mode, axis, n, lo, hi):
                    if mode == "replicate":
                        source[origin] += source[border].sum(axis=axis, keepdims=True)
                    else:
                        source[origin] += source[border]
        copy(destination, source[middle])

    name = "pad" if mode == "zeros" else f"pad {mode}"
    if not spec.computes_input:
        return Step(name, spec, inner.replace(strided=False), fill_lhs=pad)
    if mode != "zeros":
        inner = inner.replace(bias=False, activation=None)
    name = name.replace("pad", "crop" if mode == "zeros" else "fold")
    return Step(name, spec, inner, fill_result=fold)


def _window(spec: ConvSpec, axes: tuple[int, ...]) -> tuple[slice, ...]:
    """Index of the image inside its padded form."""
    index = [slice(None)] * (spec.ndim + 2)
    for axis, n, (lo, _) in zip(axes, spec.in_size, spec.padding, strict=True):
        index[axis] = slice(lo, lo + n)
    return tuple(index)


def _borders(
    mode: str, axis: int, n: int, lo: int, hi: int
) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """(border, origin) along one axis of the padded array; one slice each, by the limits.

    In padded coordinates the image is ``lo .. lo + n``.  The origin of a border runs backwards for
    the mirrored modes; replicate has one sample for all of it.
    """
    first, end = lo, lo + n

    def index(start: int, stop: int, step: int = 1) -> tuple[slice, ...]:
        # A reversed slice that ends at position 0 has no non-negative stop.
        return (slice(None),) * axis + (slice(start, None if stop < 0 else stop, step),)

    origins = {
        "replicate": ((first, first + 1, 1), (end - 1, end, 1)),
        "circular": ((end - lo, end, 1), (first, first + hi, 1)),
        "reflect": ((first + lo, first, -1), (end - 2, end - 2 - hi, -1)),
        "symmetric": ((first + lo - 1, first - 1, -1), (end - 1, end - 1 - hi, -1)),
    }[mode]
    pairs = []
    if lo:
        pairs.append((index(0, lo), index(*origins[0])))
    if hi:
        pairs.append((index(end, end + hi), index(*origins[1])))
    return pairs


def _pad_mode(spec: ConvSpec) -> Step | None:
    return None if spec.pad_mode == "zeros" else _pad(spec)


def _flip(spec: ConvSpec) -> Step | None:
    if not spec.flip:
        return None
    index = (slice(None), slice(None), *(slice(None, None, -1),) * spec.ndim)

    def reverse(copy: Copy, destination: Array, source: Array) -> None:
        copy(destination, source[index])

    inner = spec.replace(flip=False)
    if spec.direction is Direction.WEIGHT_GRAD:
        return Step("flip", spec, inner, fill_result=reverse)
    return Step("flip", spec, inner, fill_rhs=reverse)


def _spread(steps: tuple[int, ...], axes: tuple[int, ...]) -> tuple[Fill, Fill]:
    """(insert, pick): place an array at every step-th position among zeros, and the inverse."""

    def every(array: Array, sizes: tuple[int, ...]) -> tuple[slice, ...]:
        index = [slice(None)] * array.ndim
        for axis, step in zip(axes, steps, strict=True):
            index[axis] = slice(0, (sizes[axis] - 1) * step + 1, step)
        return tuple(index)

    def insert(copy: Copy, destination: Array, source: Array) -> None:
        destination[...] = 0
        copy(destination[every(destination, source.shape)], source)

    def pick(copy: Copy, destination: Array, source: Array) -> None:
        copy(destination, source[every(source, destination.shape)])

    return insert, pick


def _stride(spec: ConvSpec) -> Step | None:
    """Stride 1: over phases of x, or what is left.

    That is every stride-th output of more for depthwise layers, which stay depthwise, and zeros
    between the samples of a y that is given.
    """
    if set(spec.stride) == {1}:
        return None
    if not spec.computes_input and not spec.is_depthwise:
        return _space_to_depth(spec)
    inner = spec.replace(stride=(1,) * spec.ndim)
    inner = inner.replace(out_size=inner.formula_out_size)
    insert, pick = _spread(spec.stride, layouts.spatial_axes(spec.layout, spec.ndim))
    if spec.direction is Direction.FORWARD:
        return Step("subsample", spec, inner, fill_result=pick)
    if spec.computes_input:
        return Step("zeros between", spec, inner.replace(strided=False), fill_lhs=insert)
    return Step("zeros between", spec, inner, fill_rhs=insert)


def _space_to_depth(spec: ConvSpec) -> Step | None:
    """Stride 1 over phases of x, each a channel: as many products, but for taps filled up."""
    if spec.pad_mode != "zeros":
        return _pad(spec)
    split = SpaceToDepth(spec)
    name, inner = "space to depth", split.inner
    if spec.direction is Direction.WEIGHT_GRAD:
        return Step(name, spec, inner, fill_lhs=split.fill_x, fill_result=split.fill_from_w)
    # Taps filled up are zeros, and a zero times a NaN is a NaN.
    return Step(
        name, spec, inner, fill_lhs=split.fill_x, fill_rhs=split.fill_w,
        spreads_nonfinite=split.is_filled,
    )  # fmt: skip


def _dilation(spec: ConvSpec) -> Step | None:
    """Zeros between the taps: a zero times a NaN is a NaN, so the step spreads them."""
    if set(spec.dilation) == {1}:
        return None
    kernel = tuple(
        geometry.extent(k, d) for k, d in zip(spec.kernel_size, spec.dilation, strict=True)
    )
    inner = spec.replace(kernel_size=kernel, dilation=(1,) * spec.ndim)
    insert, pick = _spread(spec.dilation, tuple(range(2, spec.ndim + 2)))
    if spec.direction is Direction.WEIGHT_GRAD:
        return Step("zeros between taps", spec, inner, fill_result=pick)
    return Step("zeros between taps", spec, inner, fill_rhs=insert, spreads_nonfinite=True)


def _groups(spec: ConvSpec) -> Step | None:
    if spec.groups == 1:
        return None
    inner = spec.replace(
        in_channels=spec.in_channels // spec.groups,
        out_channels=spec.out_channels // spec.groups,
        groups=1,
        strided=False,
    )
    return Step(
        "one group at a time", spec, inner, fill_lhs=move, fill_rhs=move, fill_result=move,
        repeats=spec.groups,
    )  # fmt: skip


def _epilogue(spec: ConvSpec) -> Step | None:
    if not spec.bias and spec.activation is None:
        return None
    return Step("epilogue", spec, spec.replace(bias=False, activation=None))


def _ndim(spec: ConvSpec) -> Step | Split | Refusal | None:
    if spec.ndim == 1:
        return _one_to_two(spec)
    if spec.ndim == 3:
        return _three_to_two(spec)
    return None


def _one_to_two(spec: ConvSpec) -> Step:
    """A signal as an image of one row: views on both sides."""
    names = layouts.CHANNELS_LAST if spec.channels_last else layouts.CHANNELS_FIRST
    inner = spec.replace(
        layout=names[2], in_size=(1, *spec.in_size), kernel_size=(1, *spec.kernel_size),
        out_size=(1, *spec.out_size), stride=(1, *spec.stride),
        padding=((0, 0), *spec.padding), dilation=(1, *spec.dilation),
    )  # fmt: skip
    data = layouts.spatial_axes(spec.layout, 1)[0]
    data_row = (slice(None),) * data + (None,)
    kernel_row = (slice(None), slice(None), None)
    wgrad = spec.direction is Direction.WEIGHT_GRAD

    def data_view(array: Array) -> Array:
        return array[data_row]

    def kernel_view(array: Array) -> Array:
        return array[kernel_row]

    return Step(
        "1-D as 2-D", spec, inner, view_lhs=data_view,
        view_rhs=data_view if wgrad else kernel_view,
        view_result=kernel_view if wgrad else data_view,
    )  # fmt: skip


def _three_to_two(spec: ConvSpec) -> Step | Split | Refusal | None:
    """A volume as a batch of images, the taps of the first axis being channels.

    Image (n, o) has channel (c, t) = x[n, c, o * stride - lo + t * dilation], so that the kernel
    (K, C/groups, depth, ...) is, unchanged in memory, (K, C/groups * depth, ...).
    """
    if spec.direction is not Direction.FORWARD:
        return _direction(spec)
    if spec.pad_mode != "zeros":
        return _pad(spec)
    if spec.flip:
        return _flip(spec)
    if spec.channels_last:
        return _layout(spec)
    depth, outputs, n = spec.kernel_size[0], spec.out_size[0], spec.in_size[0]
    stride, (lo, _), dilation = spec.stride[0], spec.padding[0], spec.dilation[0]
    inner = spec.replace(
        layout=layouts.CHANNELS_FIRST[2], batch=spec.batch * outputs,
        in_channels=spec.in_channels * depth, in_size=spec.in_size[1:],
        kernel_size=spec.kernel_size[1:], out_size=spec.out_size[1:], stride=spec.stride[1:],
        padding=spec.padding[1:], dilation=spec.dilation[1:], strided=False,
    )  # fmt: skip

    def slices(copy: Copy, destination: Array, source: Array) -> None:
        split = destination.reshape(spec.batch, outputs, spec.in_channels, depth, *spec.in_size[1:])
        for tap in range(depth):
            inside = geometry.outputs_of_tap(tap, n, outputs, stride, lo, dilation)
            split[:, : inside.start, :, tap] = 0
            split[:, inside.stop :, :, tap] = 0
            if len(inside):
                first = inside.start * stride - lo + tap * dilation
                last = first + (len(inside) - 1) * stride
                chosen = source[:, :, first : last + 1 : stride]
                copy(split[:, inside.start : inside.stop, :, tap], chosen.swapaxes(1, 2))

    def taps(array: Array) -> Array:
        return array.reshape(inner.w_shape)

    def stack(copy: Copy, destination: Array, source: Array) -> None:
        images = source.reshape(spec.batch, outputs, *inner.y_shape[1:])
        copy(destination, images.swapaxes(1, 2))

    return Step("3-D as 2-D", spec, inner, fill_lhs=slices, view_rhs=taps, fill_result=stack)


def _direction(spec: ConvSpec) -> Step | Split | Refusal | None:
    """An adjoint as forward problems, by :mod:`convjit.algorithms.adjoint`."""
    if spec.direction is Direction.FORWARD:
        return None
    if (step := _pad_mode(spec)) is not None:
        return step
    if spec.conjugates:
        return _conjugate(spec)
    if spec.direction is Direction.WEIGHT_GRAD:
        if spec.channels_last:
            return _layout(spec)
        return _recipe("weights' gradient as forward", spec, adjoint.weight_grad_as_forward(spec))
    parts, has_gaps = adjoint.input_grad_as_forward(spec)
    if set(spec.stride) == {1}:
        return _recipe("adjoint as forward", spec, parts[0])
    name = "adjoint by phases"
    return Split(name, spec, tuple(_recipe(name, spec, part) for part in parts), has_gaps)


def _recipe(name: str, spec: ConvSpec, recipe: adjoint.AsForward) -> Step:
    return Step(
        name, spec, recipe.inner, fill_lhs=recipe.fill_lhs, fill_rhs=recipe.fill_rhs,
        fill_result=recipe.fill_result, fill_bias=recipe.fill_bias,
    )  # fmt: skip


RULES: dict[Feature, Callable[[ConvSpec], Step | Split | Refusal | None]] = {
    Feature.STRIDED: _strided,
    Feature.LAYOUT: _layout,
    Feature.DTYPE: _dtype,
    Feature.DIRECTION: _direction,
    Feature.NDIM: _ndim,
    Feature.PAD_MODE: _pad_mode,
    Feature.PADDING: _pad,
    Feature.FLIP: _flip,
    Feature.STRIDE: _stride,
    Feature.DILATION: _dilation,
    Feature.GROUPS: _groups,
    Feature.EPILOGUE: _epilogue,
    Feature.CONJUGATE: _conjugate,
}
