"""The rules of lowering: for each feature that a solver may lack, the step that removes it.

How the arrays of the longer ones are filled is in :mod:`convjit.algorithms`, a file each: borders,
complex numbers as pairs of channels, adjoints, space to depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convjit import layout as layouts
from convjit import precision
from convjit.algorithms import adjoint, geometry
from convjit.algorithms.borders import Border
from convjit.algorithms.complexpairs import ComplexPairs
from convjit.algorithms.fills import Copy, Fill, move
from convjit.algorithms.spacetodepth import SpaceToDepth
from convjit.layout import to_channels_first, to_channels_last
from convjit.spec import ConvSpec, Direction
from convjit.spi import Array, Feature, Refusal
from convjit.steps import Split, Step


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


_WHOLE_UP_TO = {"float32": 2**24, "float64": 2**53}


def _dtype(spec: ConvSpec) -> Step | Refusal | None:
    if spec.dtype in precision.HALF:
        return _cast("half to float32", spec, "float32")
    if spec.dtype == "float32":
        return _cast("float32 to float64", spec, "float64")
    if spec.dtype in precision.COMPLEX:
        return _complex(spec)
    if spec.dtype in precision.INTEGER:
        largest = precision.LARGEST[spec.dtype] ** 2 * max(spec.reduction, 1)
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
    """A real problem, by :mod:`convjit.algorithms.complexpairs`."""
    if spec.flip:
        return _flip(spec)
    pairs, last = ComplexPairs(spec), spec.channels_last
    if not last:
        enter: dict[str, Any] = {"fill_lhs": pairs.split}
    elif spec.strided:
        enter = {"fill_lhs": pairs.fill_last}
    else:
        enter = {"view_lhs": pairs.as_real}
    if spec.direction is Direction.WEIGHT_GRAD:
        second: dict[str, Any] = {"view_rhs": pairs.as_real} if last else {"fill_rhs": pairs.split}
        leave: dict[str, Any] = {"fill_result": pairs.fill_from_w}
    else:
        second = {"fill_rhs": pairs.fill_w}
        leave = {"view_result": pairs.as_real} if last else {"fill_result": pairs.join}
    return Step("complex as pairs of channels", spec, pairs.inner, **enter, **second, **leave)


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
    zeros = spec.pad_mode == "zeros"
    if zeros and all(p == (0, 0) for p in spec.padding):
        return None
    border = Border(spec)
    if not spec.computes_input:
        name = "pad" if zeros else f"pad {spec.pad_mode}"
        return Step(name, spec, border.inner.replace(strided=False), fill_lhs=border.pad)
    if zeros:
        return Step("crop", spec, border.inner, fill_result=border.fold)
    inner = border.inner.replace(bias=False, activation=None)
    return Step(f"fold {spec.pad_mode}", spec, inner, fill_result=border.fold)


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
    """Stride 1 over phases of x, each a channel: as many products, but for taps filled up.

    Taps are dealt out to phases in their order, so that a flipped kernel is turned round before.
    """
    if spec.flip:
        return _flip(spec)
    if spec.pad_mode != "zeros":
        return _pad(spec)
    split = SpaceToDepth(spec)
    name, inner = "space to depth", split.inner
    if spec.direction is Direction.WEIGHT_GRAD:
        return Step(
            name, spec, inner, fill_lhs=split.fill_x, fill_result=split.fill_from_w,
            copies=split.copies,
        )  # fmt: skip
    # Taps filled up are zeros, and a zero times a NaN is a NaN.
    return Step(
        name, spec, inner, fill_lhs=split.fill_x, fill_rhs=split.fill_w,
        copies=split.copies, pack_copies=split.phases, spreads_nonfinite=split.is_filled,
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
