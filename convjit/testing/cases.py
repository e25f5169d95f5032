"""The named cases: a curated list of convolutions that covers the operator.

A case is a :class:`~convjit.spec.ConvSpec` (whose spelling is the test's id), the form in which the
user holds the data, and the group that says what it is there for.  The operands follow from the
spec and a seed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from convjit import layout as layouts
from convjit import precision
from convjit.spec import ConvSpec, Direction

FORMS = ("batched", "unbatched", "plain", "stack")
Array = np.ndarray[Any, np.dtype[Any]]


class Operands(NamedTuple):
    """The arrays of a case, as the spec describes them (batched, with channels)."""

    lhs: Array
    rhs: Array
    bias: Array | None


@dataclass(frozen=True, slots=True)
class Case:
    """One convolution to be tried.

    Attributes
    ----------
    group : str
        What the case is there for.
    spec : ConvSpec
    form : {"batched", "unbatched", "plain", "stack"}
        How the user holds the data: as the spec says, without the batch axis (of length 1), without
        batch and channels (both of length 1), or without channels (of length 1).
    """

    group: str
    spec: ConvSpec
    form: str = "batched"

    def __str__(self) -> str:
        return str(self.spec) if self.form == "batched" else f"{self.spec}:{self.form}"

    @property
    def layout(self) -> str:
        """The value of ``layout=`` that belongs to the form."""
        if self.form in ("plain", "stack"):
            return layouts.PLAIN[self.spec.ndim]
        return self.spec.layout

    def operands(self, seed: int = 0) -> Operands:
        """Random operands; equal for equal cases and seeds.

        Floating-point numbers are normal; integers span the type's range in its narrow half, so
        that 64-bit sums wrap.
        """
        spec = self.spec
        rng = np.random.default_rng([zlib.crc32(str(self).encode()), seed])
        lhs = random_array(rng, spec.lhs_shape, spec.dtype)
        if spec.strided:
            lhs = strided_copy(lhs)
        rhs = random_array(rng, spec.rhs_shape, spec.dtype)
        bias = None
        if spec.bias:
            bias = random_array(rng, (spec.result_channels,), spec.result_dtype)
        return Operands(lhs, rhs, bias)

    def user_shape(self, role: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape in the case's form of an operand: role ``"data"`` or ``"weights"``."""
        if self.form == "unbatched":
            return shape[1:] if role == "data" else shape
        if self.form in ("plain", "stack"):
            if role == "weights":
                return shape[2:]
            return shape[2:] if self.form == "plain" else (shape[0], *shape[2:])
        return shape

    def call(self) -> Call:
        """The public call that means this case."""
        spec = self.spec
        keywords: dict[str, Any] = {
            "stride": spec.stride,
            "padding": spec.padding,
            "dilation": spec.dilation,
            "groups": spec.groups,
            "pad_mode": spec.pad_mode,
            "flip": spec.flip,
            "layout": self.layout,
        }
        if spec.direction in (Direction.FORWARD, Direction.TRANSPOSED):
            keywords["activation"] = spec.activation
        if spec.direction is Direction.TRANSPOSED:
            keywords["output_size"] = spec.in_size
        roles = {
            Direction.FORWARD: ("data", "weights", "data"),
            Direction.TRANSPOSED: ("data", "weights", "data"),
            Direction.INPUT_GRAD: ("data", "weights", "data"),
            Direction.WEIGHT_GRAD: ("data", "data", "weights"),
        }[spec.direction]
        shapes = (spec.lhs_shape, spec.rhs_shape, spec.result_shape)
        lhs, rhs, result = (self.user_shape(r, s) for r, s in zip(roles, shapes, strict=True))
        return Call(lhs, rhs, result, keywords)


class Call(NamedTuple):
    """Shapes as the user sees them, and the keywords of the public call."""

    lhs_shape: tuple[int, ...]
    rhs_shape: tuple[int, ...]
    result_shape: tuple[int, ...]
    keywords: dict[str, Any]


def random_array(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Random numbers of a dtype, by name."""
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    target = precision.numpy_dtype(dtype)
    if dtype in precision.INTEGER:
        info = np.iinfo(target)
        return rng.integers(info.min // 2, info.max // 2, shape, target, endpoint=True)
    values = rng.standard_normal(shape)
    if dtype in precision.COMPLEX:
        return np.asarray(values + 1j * rng.standard_normal(shape)).astype(target)
    return values.astype(target)


def strided_copy(array: Array) -> Array:
    """The same numbers, with gaps and a negative stride: not contiguous even where sizes are 1."""
    spread = np.zeros((*array.shape[:-1], 2 * array.shape[-1] + 1), array.dtype)
    view = spread[..., array.shape[-1] * 2 - 1 :: -2][..., : array.shape[-1]]
    view[...] = array
    return view


# ------------------------------------------------------------------------ the list

_DIRECTIONS = ("conv", "convt", "igrad", "wgrad")
_LAYOUTS = {1: ("NCL", "NLC"), 2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}

# What every direction must get right in two dimensions; the first rows are the quick ones.
_PLANE = (
    "n2c3k4g1_i9x8_w3x3",
    "n2c3k4g1_i9x8_w3x3_s2_p1",
    "n1c4k6g2_i9x8_w3x3_p1.2x0.1",
    "n1c3k2g1_i9x10_w2x3_d2x3_p2x3",
    "n2c5k5g5_i8x9_w3x3_p1",
    "n1c2k3g1_i7x6_w3x4_p2x1.3_reflect",
    "n2c8k8g1_i11x13_w3x3_p1",
    "n1c3k4g1_i6x7_w1x1",
    # stride, dilation and padding together
    "n2c3k4g1_i11x10_w3x2_s2x3_p1.2x2.0",
    "n1c2k3g1_i12x11_w3x3_s2_d2_p2",
    "n1c2k3g1_i13x12_w3x2_s3x2_d2x5_p3x4",
    "n1c2k3g1_i9x9_w2x2_s3",
    "n1c2k2g1_i8x8_w3x3_p5x4",
    "n1c3k2g1_i5x4_w5x4",
    "n1c3k2g1_i5x4_w5x4_p4x3",
    "n2c3k4g1_i8x9_w1x1_s2",
    "n2c3k4g1_i8x9_w1x1_p1",
    # groups, depthwise, multipliers
    "n2c6k9g3_i7x8_w3x2_s2_p1",
    "n1c4k12g4_i8x7_w3x3_s2x1_p1",
    "n1c4k4g4_i9x8_w3x3_d2_p2",
    "n1c4k4g2_i9x8_w1x3_p0x1_flip",
    # borders
    "n1c2k3g1_i7x6_w4x3_p3x2_reflect",
    "n1c2k3g1_i7x6_w3x3_p2.0x0.4_replicate",
    "n1c2k3g1_i7x6_w3x3_p9x8_replicate",
    "n1c2k3g1_i7x6_w3x4_p1x3_circular",
    "n1c2k3g1_i4x5_w3x3_p4x5_circular",
    "n1c2k3g1_i7x6_w4x3_p2x1_symmetric",
    "n1c2k3g1_i4x3_w3x3_p4x3_symmetric",
    "n1c4k4g2_i9x8_w3x3_s2_p2_reflect",
    "n1c2k2g1_i9x8_w3x3_d2_p2.3x1_circular",
    "n1c2k3g1_i7x6_w3x4_p1x3_circular_flip",
    # flip with uneven borders
    "n1c2k3g1_i9x8_w3x4_p1.2x0.3_flip",
    "n1c2k3g1_i9x8_w3x4_s2_p1.2x0.3_d2x1_flip",
    # sizes of vectors, tiles and blocks, and one more or less
    "n1c16k16g1_i12x12_w3x3_p1",
    "n1c17k33g1_i10x7_w3x3_p1",
    "n1c1k1g1_i37x35_w3x3_p1",
    "n3c7k5g1_i17x31_w3x3_p1",
    "n1c3k8g1_i33x35_w7x7_s2_p3",
    "n1c2k2g1_i24x29_w11x9_p5x4",
    "n1c1k1g1_i40x40_w17x17",
    "n1c64k32g1_i6x6_w3x3_p1",
    "n1c160k14g1_i9x13_w3x3_s2_p1",  # sums longer than a block of channels, short rows
    "n1c96k7g1_i5x11_w3x3_p1",
    "n5c3k2g1_i4x4_w3x3_p1",
    "n1c2k3g1_i1x40_w1x5_p0x2",
    "n1c2k3g1_i40x1_w5x1_p2x0",
)
_LINE = (
    "n2c3k4g1_i17_w3",
    "n2c3k4g1_i17_w4_s2_p1.2",
    "n1c4k6g2_i19_w3_d2_p2",
    "n1c4k4g4_i16_w5_p2_reflect",
    "n1c1k1g1_i200_w31",
    "n1c2k3g1_i20_w3_p2_flip",
    "n2c2k2g1_i9_w4_s3_p3_circular",
)
_VOLUME = (
    "n1c2k3g1_i5x6x4_w3x2x3",
    "n2c2k4g2_i6x5x7_w3x3x3_s2x1x2_p1",
    "n1c2k2g1_i5x6x7_w2x3x2_d2x1x3_p1.2x1x2",
    "n1c3k3g3_i5x4x6_w3x3x3_p1",
    "n1c1k2g1_i4x5x4_w3x3x2_p2x1x1_symmetric",
    "n1c2k2g1_i4x5x6_w3x2x3_p1_flip",
)
_QUICK_ROWS = {_PLANE: 8, _LINE: 2, _VOLUME: 2}

# One problem for each thing that a data type can get wrong.
_DTYPE_ROWS = ("n2c3k4g1_i9x8_w3x3_p1", "n1c4k6g2_i10x9_w3x2_s2x1_d1x2_p1x2_reflect")

_EPILOGUES = (
    "bias",
    "act=relu",
    "bias_act=relu",
    "bias_act=leaky_relu,0.1",
    "bias_act=clip,0.0,6.0",
    "bias_act=clip,-inf,1.5",
)
_EMPTY = (
    "n0c3k4g1_i9x8_w3x3_p1",
    "n2c0k4g1_i9x8_w3x3_p1",
    "n2c3k0g1_i9x8_w3x3_p1",
    "n1c1k1g1_i1x1_w1x1",
    "n1c1k1g1_i1x1_w3x3_p1",
    "n1c1k1g1_i1x1_w1x1_s5_d7",
)


def _parse(group: str, words: Iterable[str], form: str = "batched") -> Iterator[Case]:
    for text in words:
        yield Case(group, ConvSpec.parse(text), form)


def _geometry(rows: tuple[str, ...], ndim: int) -> Iterator[str]:
    first, last = _LAYOUTS[ndim]
    for number, row in enumerate(rows):
        for direction in _DIRECTIONS:
            yield f"{direction}_f32_{first}_{row}"
            if number < 8:
                yield f"{direction}_f32_{last}_{row}"


def _all() -> Iterator[Case]:
    yield from _parse("plane", _geometry(_PLANE, 2))
    yield from _parse("line", _geometry(_LINE, 1))
    yield from _parse("volume", _geometry(_VOLUME, 3))
    yield from _parse(
        "dtype",
        (
            f"{direction}_{dtype}_NCHW_{row}"
            for row in _DTYPE_ROWS
            for dtype in precision.DTYPES
            for direction in _DIRECTIONS
            if dtype != "f32"
        ),
    )
    yield from _parse(
        "dtype",
        (
            f"{direction}_{dtype}_{layout}"
            for dtype in ("f64", "f16", "bf16", "c64", "i16", "u8")
            for direction in _DIRECTIONS
            for layout in (
                "NLC_n2c3k4g1_i17_w4_s2_p1.2",
                "NDHWC_n1c2k4g2_i5x6x4_w3x2x3_p1",
                "NHWC_n2c3k4g1_i9x8_w3x3_p1_flip",
            )
        ),
    )
    yield from _parse(
        "epilogue",
        (
            f"{direction}_{dtype}_{layout}_{row}_{epilogue}"
            for direction in ("conv", "convt")
            for dtype in ("f32", "f64", "f16", "bf16")
            for layout, row in (
                ("NCHW", "n2c3k4g1_i9x8_w3x3_s2_p1"),
                ("NHWC", "n2c4k8g2_i8x7_w3x3_p1"),
            )
            for epilogue in _EPILOGUES
        ),
    )
    yield from _parse(
        "epilogue",
        (
            *(f"{d}_c64_NCHW_n2c3k4g1_i9x8_w3x3_p1_bias" for d in ("conv", "convt")),
            *(f"{d}_i32_NCHW_n2c3k4g1_i9x8_w3x3_p1_bias_act=relu" for d in ("conv", "convt")),
            *(f"{d}_u8_NHWC_n2c3k4g1_i9x8_w3x3_bias_act=clip,3.0,90.0" for d in ("conv", "convt")),
        ),
    )
    yield from _parse("empty", (f"{d}_f32_NCHW_{row}" for d in _DIRECTIONS for row in _EMPTY))
    yield from _parse(
        "empty",
        (
            "conv_f32_NCHW_n2c0k4g1_i9x8_w3x3_p1_bias_act=relu",
            "conv_i8_NCHW_n0c3k4g1_i9x8_w3x3",
            "convt_f32_NHWC_n2c3k0g1_i9x8_w3x3_p1_bias",
        ),
    )
    yield from _parse(
        "strided",
        (
            f"{direction}_{dtype}_{row}"
            for direction in _DIRECTIONS
            for dtype in ("f32", "f64")
            for row in (
                "NCHW_n2c3k4g1_i9x8_w3x3_p1_strided",
                "NHWC_n2c3k4g1_i9x8_w3x3_s2_strided",
                "NCHW_n1c2k3g1_i7x6_w3x3_p2_reflect_strided",
            )
        ),
    )
    # A transposed result longer than the last output needs: output_padding.
    yield from _parse(
        "output size",
        (
            "convt_f32_NCHW_n1c3k4g1_i10x9_w3x3_s2_p1",
            "convt_f32_NCHW_n1c3k4g1_i12x8_w2x3_o3x4_s4x2_p0x1",
            "convt_f32_NHWC_n1c3k4g1_i10x5_w3x3_o4x2_d3x2_p1",
            "convt_f32_NCL_n1c3k4g1_i12_w3_s3_p1",
        ),
    )
    for form, rows in (
        ("unbatched", ("NCHW_n1c3k4g1_i9x8_w3x3_p1", "NHWC_n1c3k4g1_i9x8_w3x3_s2",
                       "NCL_n1c3k4g1_i17_w3_p1", "NCDHW_n1c2k3g1_i5x6x4_w3x2x3")),
        ("plain", ("NCL_n1c1k1g1_i50_w7_p3", "NCHW_n1c1k1g1_i19x21_w5x3_p2x1_reflect",
                   "NCHW_n1c1k1g1_i19x21_w4x4_p3_flip", "NCDHW_n1c1k1g1_i6x7x8_w3x3x3_p1")),
        ("stack", ("NCHW_n3c1k1g1_i12x11_w3x3_p1", "NCL_n4c1k1g1_i30_w5_p2_circular")),
    ):  # fmt: skip
        for direction in _DIRECTIONS:
            words = (f"{direction}_{dtype}_{row}" for dtype in ("f32", "f64") for row in rows)
            yield from _parse("form", words, form)


def _unique(cases: Iterable[Case]) -> tuple[Case, ...]:
    return tuple({str(case): case for case in cases}.values())


def _quick() -> Iterator[Case]:
    """A few of each group, every direction and every dtype among them."""
    for group, rows, ndim in (("plane", _PLANE, 2), ("line", _LINE, 1), ("volume", _VOLUME, 3)):
        layout = _LAYOUTS[ndim][0]
        chosen = rows[: _QUICK_ROWS[rows]]
        words = (f"{direction}_f32_{layout}_{row}" for row in chosen for direction in _DIRECTIONS)
        yield from _parse(group, words)
    by_group: dict[str, list[Case]] = {}
    for case in CASES:
        by_group.setdefault(case.group, []).append(case)
    for group, step in (
        ("dtype", 5), ("epilogue", 7), ("empty", 4), ("strided", 5), ("output size", 2), ("form", 7)
    ):  # fmt: skip
        yield from by_group[group][::step]


CASES: tuple[Case, ...] = _unique(_all())
QUICK: tuple[Case, ...] = _unique(_quick())
