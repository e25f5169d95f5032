"""Random convolutions for hypothesis: every field of a spec, always one that means something."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from convjit import layout as layouts
from convjit import precision
from convjit.algorithms import geometry
from convjit.spec import ConvSpec, Direction
from convjit.testing.cases import Case


@st.composite
def axes(draw: Any, pad_mode: str) -> tuple[int, int, int, tuple[int, int], int]:
    """(n, kernel, stride, (lo, hi), dilation) of one axis, with at least one output."""
    n = draw(st.integers(1, 12))
    limit = geometry.border_limit(pad_mode, n)
    most = 5 if limit is None else min(limit, 5)
    lo, hi = draw(st.integers(0, most)), draw(st.integers(0, most))
    dilation = draw(st.integers(1, 3))
    # extent = dilation * (k - 1) + 1 <= n + lo + hi
    kernel = draw(st.integers(1, min(5, (n + lo + hi - 1) // dilation + 1)))
    return n, kernel, draw(st.integers(1, 3)), (lo, hi), dilation


@st.composite
def activations(draw: Any, dtype: str) -> tuple[Any, ...] | None:
    """An activation that a dtype has."""
    if dtype in precision.COMPLEX:
        return None
    kinds: list[Any] = [None, ("relu",), ("clip", -1.0, 3.0)]
    if dtype not in precision.INTEGER:
        kinds.append(("leaky_relu", 0.25))
    return draw(st.sampled_from(kinds))  # type: ignore[no-any-return]


@st.composite
def specs(draw: Any, dtypes: tuple[str, ...] = tuple(precision.SHORT), most: int = 3) -> ConvSpec:
    """A small problem in any direction, dtype, layout and geometry.

    Parameters
    ----------
    dtypes : tuple of str
        Names to draw from.
    most : int
        Largest number of spatial axes.
    """
    direction = draw(st.sampled_from(list(Direction)))
    dtype = draw(st.sampled_from(dtypes))
    ndim = draw(st.integers(1, most))
    pad_mode = draw(st.sampled_from(geometry.PAD_MODES))
    size, kernel, stride, padding, dilation = zip(
        *(draw(axes(pad_mode)) for _ in range(ndim)), strict=True
    )
    groups = draw(st.integers(1, 3))
    epilogue = direction in (Direction.FORWARD, Direction.TRANSPOSED)
    spec = ConvSpec(
        direction=direction,
        dtype=dtype,
        layout=draw(st.sampled_from([layouts.CHANNELS_FIRST, layouts.CHANNELS_LAST]))[ndim],
        batch=draw(st.integers(1, 3)),
        in_channels=groups * draw(st.integers(1, 4)),
        out_channels=groups * draw(st.integers(1, 4)),
        groups=groups,
        in_size=size,
        kernel_size=kernel,
        out_size=(0,) * ndim,
        stride=stride,
        padding=padding,
        dilation=dilation,
        pad_mode=pad_mode,
        flip=draw(st.booleans()),
        bias=epilogue and draw(st.booleans()),
        activation=draw(activations(dtype)) if epilogue else None,
        strided=draw(st.booleans()),
    )
    outputs = spec.formula_out_size
    if direction is Direction.TRANSPOSED:
        outputs = tuple(draw(st.integers(_fewest(spec, i, m), m)) for i, m in enumerate(outputs))
    return spec.replace(out_size=outputs)


def _fewest(spec: ConvSpec, axis: int, outputs: int) -> int:
    """Fewest samples of y from which an admitted output_padding reaches the size of x."""
    stride, dilation = spec.stride[axis], spec.dilation[axis]
    base = geometry.transposed_size(
        outputs, spec.kernel_size[axis], stride, *spec.padding[axis], dilation
    )
    room = max(stride, dilation) - 1 - (spec.in_size[axis] - base)
    return max(1, outputs - room // stride)


@st.composite
def cases(draw: Any, dtypes: tuple[str, ...] = tuple(precision.SHORT), most: int = 3) -> Case:
    """A :class:`~convjit.testing.cases.Case` of a random problem."""
    return Case("random", draw(specs(dtypes, most)))
