"""From what a user writes to a :class:`~convjit.spec.ConvSpec`: how the arguments fit together.

The public calls accept unbatched data, plain signals and images (:mod:`convjit.views`), integers
for tuples, names for paddings (:mod:`convjit.parsing`).  All of that ends here: a :class:`Problem`
holds the spec (batched, with channels, every size explicit) and the shapes the user sees, so that
the rest of the library knows one form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convjit import precision
from convjit.algorithms import geometry
from convjit.errors import ConvSpecError
from convjit.parsing import (
    Shape,
    explicit_padding,
    flag,
    integer,
    parse_activation,
    parse_pad_mode,
    per_axis,
)
from convjit.spec import ConvSpec, Direction, Padding
from convjit.spi import DEVICES
from convjit.views import DataView, view_data

DEFAULT_POLICY = precision.Policy()


@dataclass(frozen=True, slots=True)
class Problem:
    """A spec, and the shapes in which the user gives its operands and gets its result."""

    spec: ConvSpec
    lhs_shape: Shape
    rhs_shape: Shape
    result_shape: Shape
    is_plain: bool


@dataclass(frozen=True, slots=True)
class Request:
    """What the caller allows: everything beside the spec that decides the choice.

    Attributes
    ----------
    backend : str or tuple of str or None
    algorithm : str or None
        A family or a solver's id.
    policy : Policy
    packed : bool
        Whether the second operand is packed once for many calls, so that packing is not counted.
    array_type : str
        ``"module:qualname"`` of the data, ``"numpy:ndarray"`` when only shapes are known.
    """

    backend: str | tuple[str, ...] | None = None
    algorithm: str | None = None
    policy: precision.Policy = DEFAULT_POLICY
    packed: bool = True
    array_type: str = "numpy:ndarray"

    @property
    def is_forced(self) -> bool:
        """Whether one backend or algorithm was named, so that a failure has no substitute."""
        one = isinstance(self.backend, str) and self.backend not in DEVICES
        return one or self.algorithm is not None


def _check_groups(
    groups: int, data: int, w_shape: Shape, x: str, *, transposed: bool = False
) -> None:
    """The three rules that tie groups, the channels of the data and the shape of w.

    ``data`` counts the channels of the first operand: C of the forward problem, or the number of
    rows of w where the operator is transposed.
    """
    what = "C_in" if transposed else "C"
    w_text = "(C_in, C_out/groups, *kernel)" if transposed else "(K, C/groups, *kernel)"
    rows, columns, *kernel = w_shape
    here = f"{x}, w is {w_shape}"
    if data % groups:
        best = max(g for g in range(1, groups + 1) if data % g == 0)
        repaired = (data, columns, *kernel) if transposed else (rows, data // best, *kernel)
        raise ConvSpecError(
            f"groups={groups} does not divide {what}={data}. {here}; for groups={best} w would be "
            f"{repaired}."
        )
    if transposed:
        if rows != data:
            raise ConvSpecError(
                f"w is {w_shape}, its first axis must be C_in={data}: w is {w_text}. {here}; w "
                f"would be {(data, columns, *kernel)}."
            )
        return
    if columns * groups != data:
        hint = ""
        if columns and data % columns == 0 and rows % (data // columns) == 0:
            hint = f", or groups={data // columns}"
        raise ConvSpecError(
            f"w is {w_shape}, its second axis must be C/groups={data // groups}. {here}, "
            f"groups={groups}; w would be {(rows, data // groups, *kernel)}{hint}."
        )
    if rows % groups:
        raise ConvSpecError(
            f"groups={groups} does not divide K={rows}, the first axis of w. {here}; give w a "
            f"first axis that is a multiple of {groups}."
        )


def _check_sizes(spec: ConvSpec, names: str) -> None:
    """Kernel at least 1, fitting into the padded input; borders within their limits."""
    for axis, k in enumerate(spec.kernel_size):
        if k < 1:
            raise ConvSpecError(
                f"w has {k} taps on spatial axis {axis}; a kernel has at least one. {names}"
            )
    for axis, (n, (lo, hi)) in enumerate(zip(spec.in_size, spec.padding, strict=True)):
        most = geometry.border_limit(spec.pad_mode, n)
        if most is not None and max(lo, hi) > most:
            raise ConvSpecError(
                f"padding=({lo}, {hi}) on spatial axis {axis} is too wide for "
                f"pad_mode={spec.pad_mode!r}: {n} samples allow at most {most}. {names}"
            )
    for axis, m in enumerate(spec.formula_out_size):
        if m < 1:
            n, k, d = spec.in_size[axis], spec.kernel_size[axis], spec.dilation[axis]
            lo, hi = spec.padding[axis]
            span = geometry.extent(k, d)
            raise ConvSpecError(
                f"the kernel spans {span} samples on spatial axis {axis} ({k} taps, dilation {d}) "
                f"but the padded input has {n} + {lo} + {hi} = {n + lo + hi}; pad by at least "
                f"{span - n - lo - hi} more, or use a smaller kernel. {names}"
            )


def _describe(name: str, shape: Shape, view: DataView) -> str:
    return f"{name} is {shape} " + ("plain" if view.plain else view.layout[0 if view.lead else 1 :])


@dataclass(frozen=True, slots=True)
class _Read:
    """What both kinds of problem read from their arguments first."""

    view: DataView
    kernel: Shape
    groups: int
    stride: Shape
    dilation: Shape
    names: str  # the operands, for messages

    def spec(
        self,
        *,
        dtype: str,
        padding: Padding,
        pad_mode: Any,
        flip: Any,
        activation: Any,
        **sizes: Any,
    ) -> ConvSpec:
        """The spec of what was read, with the sizes that each kind of problem works out itself."""
        return ConvSpec(
            dtype=dtype,
            layout=self.view.layout,
            batch=self.view.batch,
            groups=self.groups,
            kernel_size=self.kernel,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            pad_mode=parse_pad_mode(pad_mode),
            flip=flag("flip", flip),
            activation=parse_activation(activation, dtype),
            **sizes,
        )


def _read(
    x_shape: Shape,
    w_shape: Shape,
    layout: str | None,
    groups: Any,
    stride: Any,
    dilation: Any,
    *,
    transposed: bool = False,
) -> _Read:
    view = view_data("x", x_shape, w_shape, layout)
    number_of_groups = integer("groups", groups, 1)
    kernel = w_shape if view.plain else w_shape[2:]
    described = _describe("x", x_shape, view)
    names = f"{described}, w is {w_shape}."
    if not view.plain:
        _check_groups(number_of_groups, view.channels, w_shape, described, transposed=transposed)
    elif number_of_groups != 1:
        raise ConvSpecError(f"groups={groups} needs channels, {names} Use groups=1.")
    return _Read(
        view,
        kernel,
        number_of_groups,
        per_axis("stride", stride, len(kernel), 1),
        per_axis("dilation", dilation, len(kernel), 1),
        names,
    )


def forward_problem(
    x_shape: Shape,
    w_shape: Shape,
    *,
    direction: Direction,
    dtype: str,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    pad_mode: Any,
    flip: Any,
    layout: str | None,
    activation: Any = None,
    bias: bool = False,
    strided: bool = False,
) -> Problem:
    """The problem of ``conv`` and of its two gradients, from the shapes of x and w.

    Gradients have neither bias nor activation: the one's own gradient is a sum over gy, and the
    other's is applied to gy before.
    """
    for name, value in (("bias", bias or None), ("activation", activation)):
        if direction is not Direction.FORWARD and value is not None:
            raise ConvSpecError(
                f"{name} belongs to the forward and transposed directions; {name}={value!r} was "
                f"given with direction={direction.value!r}, leave it out."
            )
    given = _read(x_shape, w_shape, layout, groups, stride, dilation)
    view, kernel, names = given.view, given.kernel, given.names
    ndim, strides, dilations = len(kernel), given.stride, given.dilation
    pads = explicit_padding(padding, view.spatial, kernel, strides, dilations)
    spec = given.spec(
        direction=direction, dtype=dtype, in_channels=view.channels,
        out_channels=1 if view.plain else w_shape[0], in_size=view.spatial, out_size=(0,) * ndim,
        padding=pads, pad_mode=pad_mode, flip=flip, bias=bias, activation=activation,
        strided=strided,
    )  # fmt: skip
    _check_sizes(spec, names)
    spec = spec.replace(out_size=spec.formula_out_size)
    y_shape = view.user_shape(spec.out_channels, spec.out_size)
    shapes = {
        Direction.FORWARD: (x_shape, w_shape, y_shape),
        Direction.INPUT_GRAD: (y_shape, w_shape, x_shape),
        Direction.WEIGHT_GRAD: (x_shape, y_shape, w_shape),
    }
    return Problem(spec, *shapes[direction], view.plain)


def transposed_problem(
    x_shape: Shape,
    w_shape: Shape,
    *,
    dtype: str,
    stride: Any,
    padding: Any,
    output_padding: Any,
    output_size: Any,
    dilation: Any,
    groups: Any,
    pad_mode: Any,
    flip: Any,
    layout: str | None,
    activation: Any = None,
    bias: bool = False,
    strided: bool = False,
) -> Problem:
    """The problem of ``conv_transpose``: the forward problem whose adjoint it is."""
    given = _read(x_shape, w_shape, layout, groups, stride, dilation, transposed=True)
    view, kernel, names = given.view, given.kernel, given.names
    ndim, strides, dilations = len(kernel), given.stride, given.dilation
    for axis, k in enumerate(kernel):
        if k < 1:
            raise ConvSpecError(
                f"w has {k} taps on spatial axis {axis}; a kernel has at least one. {names}"
            )
    for axis, n in enumerate(view.spatial):
        if n < 1:
            raise ConvSpecError(
                f"x has no sample on spatial axis {axis}; the size of a transposed result needs at "
                f"least one. {names}"
            )
    extra = per_axis("output_padding", output_padding, ndim, 0)
    for axis, (e, s, d) in enumerate(zip(extra, strides, dilations, strict=True)):
        if e >= max(s, d):
            raise ConvSpecError(
                f"output_padding[{axis}]={e} must be less than max(stride, dilation)={max(s, d)} "
                f"on that axis. {names}"
            )
    if output_size is not None and any(extra):
        raise ConvSpecError(
            f"output_size={output_size!r} and output_padding={output_padding!r} say the same thing "
            "twice; give one of them."
        )
    if padding in ("same", "same_lower") and isinstance(padding, str):
        base = tuple(n * s for n, s in zip(view.spatial, strides, strict=True))
        pads = explicit_padding(padding, base, kernel, strides, dilations)
    else:
        pads = explicit_padding(padding, view.spatial, kernel, strides, dilations)
        base = tuple(
            geometry.transposed_size(n, k, s, lo, hi, d)
            for n, k, s, (lo, hi), d in zip(
                view.spatial, kernel, strides, pads, dilations, strict=True
            )
        )
    in_size = tuple(b + e for b, e in zip(base, extra, strict=True))
    if output_size is not None:
        in_size = per_axis("output_size", output_size, ndim, 0)
        for axis, (wanted, b, s, d) in enumerate(
            zip(in_size, base, strides, dilations, strict=True)
        ):
            if not b <= wanted < b + max(s, d):
                raise ConvSpecError(
                    f"output_size[{axis}]={wanted} cannot be reached: these arguments give "
                    f"{b} to {b + max(s, d) - 1} on that axis. {names}"
                )
    for axis, n in enumerate(in_size):
        if n < 1:
            raise ConvSpecError(
                f"the result would have {n} samples on spatial axis {axis}: the padding "
                f"{pads[axis]} removes more than the kernel adds; pad less. {names}"
            )
    spec = given.spec(
        direction=Direction.TRANSPOSED, dtype=dtype,
        in_channels=1 if view.plain else w_shape[1] * given.groups, out_channels=view.channels,
        in_size=in_size, out_size=view.spatial, padding=pads, pad_mode=pad_mode, flip=flip,
        bias=bias, activation=activation, strided=strided,
    )  # fmt: skip
    _check_sizes(spec, names)
    return Problem(spec, x_shape, w_shape, view.user_shape(spec.in_channels, in_size), view.plain)


def expect_shape(name: str, given: Sequence[int], wanted: Shape, because: str) -> None:
    """Raise a ConvSpecError when an operand does not have the shape that the others imply."""
    if tuple(given) != wanted:
        raise ConvSpecError(f"{name} has shape {tuple(given)}, it must be {wanted}: {because}.")
