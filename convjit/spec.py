"""ConvSpec: a convolution problem as a value with one spelling.

A spec holds sizes, never arrays.  It always describes the *forward* operator

    y[n, k, o] = sum over c, t of x[n, g(k) + c, o * stride - lo + t * dilation] * w[k, c, t]

and ``direction`` says which of ``x``, ``w``, ``y`` is computed from the other two, so that the
transposed convolution and both gradients share every size with the forward problem they are the
adjoints of.  ``str(spec)`` is the pytest id, the benchmark's parameter, the key of the tuning
database and the line of a trace; :meth:`ConvSpec.parse` inverts it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod
from typing import Any, Self

from convjit import layout as layouts
from convjit import precision
from convjit.algorithms import geometry
from convjit.errors import ConvSpecError

Activation = tuple[str, *tuple[float, ...]]
Padding = tuple[tuple[int, int], ...]


class Direction(StrEnum):
    """Which operand of ``y = conv(x, w)`` is the result."""

    FORWARD = "forward"  # x, w -> y
    TRANSPOSED = "transposed"  # y, w -> x, never conjugating, with bias and activation
    INPUT_GRAD = "input_grad"  # y, w -> x, the adjoint (conjugates w)
    WEIGHT_GRAD = "weight_grad"  # x, y -> w, the adjoint (conjugates x)


_DIRECTION_WORD = {
    Direction.FORWARD: "conv",
    Direction.TRANSPOSED: "convt",
    Direction.INPUT_GRAD: "igrad",
    Direction.WEIGHT_GRAD: "wgrad",
}
_DIRECTION_OF = {word: direction for direction, word in _DIRECTION_WORD.items()}
_LETTER = {"o": "out_size", "s": "stride", "p": "padding", "d": "dilation"}
_ACTIVATION_ARGUMENTS = {"relu": 0, "leaky_relu": 1, "clip": 2}


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """One convolution problem; hashable, comparable, printable, without arrays.

    Attributes
    ----------
    direction : Direction
    dtype : str
        dtype of both operands (a name in :data:`convjit.precision.DTYPES`).
    layout : str
        Layout of the data operands x and y: channels-first or channels-last, never a plain one
        (plain signals are problems with one channel).
    batch, in_channels, out_channels, groups : int
        N, C and K of the forward problem, and the number of groups that divides C and K.
    in_size, kernel_size, out_size : tuple of int
        Spatial sizes of x, w and y.  ``out_size`` is the forward formula's, or less in the
        transposed direction when ``output_padding`` lengthens x beyond what y needs.
    stride, dilation : tuple of int
    padding : tuple of (lo, hi)
    pad_mode : str
        One of :data:`convjit.algorithms.geometry.PAD_MODES`.
    flip : bool
        True for the mathematical convolution (the kernel is reversed along its spatial axes).
    bias : bool
        Whether one number per channel of the result is added.
    activation : tuple or None
        ``("relu",)``, ``("leaky_relu", slope)`` or ``("clip", lo, hi)``.
    strided : bool
        Whether the first operand is not C-contiguous, aligned and in native byte order.
    """

    direction: Direction
    dtype: str
    layout: str
    batch: int
    in_channels: int
    out_channels: int
    groups: int
    in_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    out_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Padding
    dilation: tuple[int, ...]
    pad_mode: str = "zeros"
    flip: bool = False
    bias: bool = False
    activation: Activation | None = None
    strided: bool = False

    @classmethod
    def forward(
        cls,
        x_shape: tuple[int, ...],
        w_shape: tuple[int, ...],
        *,
        dtype: str = "float32",
        layout: str | None = None,
        stride: int | tuple[int, ...] = 1,
        padding: int | Padding = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        direction: Direction = Direction.FORWARD,
        **more: Any,
    ) -> Self:
        """A spec from the shapes of x and w in their layouts (for tests and tools).

        Nothing is checked beyond the sizes; the public calls check everything.
        """
        ndim = len(w_shape) - 2
        name = layout or layouts.CHANNELS_FIRST[ndim]
        if layouts.is_channels_last(name):
            batch, *size, channels = x_shape
        else:
            batch, channels, *size = x_shape
        per_axis = [(p, p) for p in [padding] * ndim] if isinstance(padding, int) else padding
        strides = (stride,) * ndim if isinstance(stride, int) else tuple(stride)
        dilations = (dilation,) * ndim if isinstance(dilation, int) else tuple(dilation)
        pads = tuple((int(lo), int(hi)) for lo, hi in per_axis)
        spec = cls(
            direction, dtype, name, batch, channels, w_shape[0], groups, tuple(size),
            tuple(w_shape[2:]), (0,) * ndim, strides, pads, dilations, **more,
        )  # fmt: skip
        return replace(spec, out_size=spec.formula_out_size)

    # ---------------------------------------------------------------- sizes

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel_size)

    @property
    def formula_out_size(self) -> tuple[int, ...]:
        """Spatial size of y by the forward formula."""
        return tuple(
            geometry.output_size(n, k, s, lo, hi, d)
            for n, k, s, (lo, hi), d in zip(
                self.in_size, self.kernel_size, self.stride, self.padding, self.dilation,
                strict=True,
            )
        )  # fmt: skip

    @property
    def output_padding(self) -> tuple[int, ...]:
        """What x has along each axis beyond the shortest one that gives this y."""
        return tuple(
            n - geometry.transposed_size(o, k, s, lo, hi, d)
            for n, o, k, s, (lo, hi), d in zip(
                self.in_size, self.out_size, self.kernel_size, self.stride, self.padding,
                self.dilation, strict=True,
            )
        )  # fmt: skip

    @property
    def x_shape(self) -> tuple[int, ...]:
        return layouts.data_shape(self.layout, self.batch, self.in_channels, self.in_size)

    @property
    def w_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return layouts.data_shape(self.layout, self.batch, self.out_channels, self.out_size)

    @property
    def lhs_shape(self) -> tuple[int, ...]:
        """Shape of the first operand: x, or y where x is the result."""
        return self.y_shape if self.computes_input else self.x_shape

    @property
    def rhs_shape(self) -> tuple[int, ...]:
        """Shape of the second operand, which ``pack`` prepares: w, or y where w is the result."""
        return self.y_shape if self.direction is Direction.WEIGHT_GRAD else self.w_shape

    @property
    def result_shape(self) -> tuple[int, ...]:
        if self.direction is Direction.FORWARD:
            return self.y_shape
        return self.x_shape if self.computes_input else self.w_shape

    @property
    def computes_input(self) -> bool:
        """Whether the result is x (transposed convolution and the input's gradient)."""
        return self.direction in (Direction.TRANSPOSED, Direction.INPUT_GRAD)

    @property
    def conjugates(self) -> bool:
        """Whether the second factor enters conjugated (the gradients of complex problems)."""
        return self.dtype in precision.COMPLEX and self.direction in (
            Direction.INPUT_GRAD,
            Direction.WEIGHT_GRAD,
        )

    @property
    def result_channels(self) -> int:
        """Length of the bias."""
        return self.in_channels if self.computes_input else self.out_channels

    @property
    def result_dtype(self) -> str:
        return precision.result_dtype(self.dtype)

    @property
    def channels_last(self) -> bool:
        return layouts.is_channels_last(self.layout)

    @property
    def is_depthwise(self) -> bool:
        """One input channel per group (with any number of outputs each)."""
        return self.groups == self.in_channels

    @property
    def is_empty(self) -> bool:
        """Whether no product is summed: an empty operand or an empty result."""
        return 0 in self.lhs_shape or 0 in self.rhs_shape or 0 in self.result_shape

    @property
    def macs(self) -> int:
        """Multiply-adds of the direct algorithm, padding included (one is 2 flops)."""
        return (
            self.batch * self.out_channels * prod(self.out_size)
            * (self.in_channels // max(self.groups, 1)) * prod(self.kernel_size)
        )  # fmt: skip

    @property
    def flops(self) -> int:
        """Arithmetic operations of the direct algorithm: 2 a multiply-add, 8 a complex one."""
        return self.macs * (8 if self.dtype in precision.COMPLEX else 2)

    @property
    def reduction(self) -> int:
        """Products summed for one element of the result (an upper bound, padding included)."""
        taps = prod(self.kernel_size)
        if self.direction is Direction.FORWARD:
            return self.in_channels // max(self.groups, 1) * taps
        if self.direction is Direction.WEIGHT_GRAD:
            return self.batch * prod(self.out_size)
        used = prod(-(-k // s) for k, s in zip(self.kernel_size, self.stride, strict=True))
        taps = used if all(d == 1 for d in self.dilation) else taps
        if self.pad_mode == "replicate":  # a corner collects all of the border around it
            taps *= prod(1 + lo + hi for lo, hi in self.padding)
        elif self.pad_mode != "zeros":  # a sample collects its images on either side
            taps *= 3**self.ndim
        return self.out_channels // max(self.groups, 1) * taps

    def replace(self, **changes: Any) -> Self:
        """A spec with some fields changed."""
        return replace(self, **changes)

    # ---------------------------------------------------------------- one spelling

    def __str__(self) -> str:
        words = [
            _DIRECTION_WORD[self.direction],
            precision.SHORT[self.dtype],
            self.layout,
            f"n{self.batch}c{self.in_channels}k{self.out_channels}g{self.groups}",
            "i" + _sizes(self.in_size),
            "w" + _sizes(self.kernel_size),
        ]
        if self.out_size != self.formula_out_size:
            words.append("o" + _sizes(self.out_size))
        if set(self.stride) != {1}:
            words.append("s" + _sizes(self.stride))
        if set(self.padding) != {(0, 0)}:
            pairs = (f"{lo}" if lo == hi else f"{lo}.{hi}" for lo, hi in self.padding)
            words.append("p" + _sizes(tuple(pairs)))
        if set(self.dilation) != {1}:
            words.append("d" + _sizes(self.dilation))
        if self.pad_mode != "zeros":
            words.append(self.pad_mode)
        words += [word for word in ("flip", "bias", "strided") if getattr(self, word)]
        if self.activation is not None:
            name, *arguments = self.activation
            words.append(f"act={name}" + "".join(f",{a!r}" for a in arguments))
        return "_".join(words)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The spec whose ``str`` is ``text``.

        Raises
        ------
        ConvSpecError
            Naming the word that is not understood.
        """
        head, _, activation = text.strip().partition("_act=")
        words = head.split("_")
        try:
            direction = _DIRECTION_OF[words[0]]
            dtype = precision.DTYPES[words[1]]
            ndim = layouts.spatial_ndim(words[2])
            counts = re.fullmatch(r"n(\d+)c(\d+)k(\d+)g(\d+)", words[3])
            if counts is None or words[4][0] != "i" or words[5][0] != "w":
                raise KeyError(words[3])
        except (KeyError, IndexError) as error:
            raise ConvSpecError(
                f"spec={text!r} is not understood at {error.args[0]!r}; a spec reads like "
                "'conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1'."
            ) from None
        batch, channels, outputs, groups = map(int, counts.groups())
        fields: dict[str, Any] = {
            "stride": (1,) * ndim,
            "padding": ((0, 0),) * ndim,
            "dilation": (1,) * ndim,
            "out_size": None,
        }
        for word in words[6:]:
            if word in geometry.PAD_MODES:
                fields["pad_mode"] = word
            elif word in ("flip", "bias", "strided"):
                fields[word] = True
            else:
                name = _LETTER.get(word[:1])
                if name is None:
                    raise ConvSpecError(f"spec={text!r}: the word {word!r} has no meaning.")
                fields[name] = _parse_sizes(word, ndim, text)
        if activation:
            name, *arguments = activation.split(",")
            if _ACTIVATION_ARGUMENTS.get(name) != len(arguments):
                raise ConvSpecError(f"spec={text!r} has the unknown activation {activation!r}.")
            fields["activation"] = (name, *map(float, arguments))
        out_size = fields.pop("out_size")
        spec = cls(
            direction=direction, dtype=dtype, layout=words[2], batch=batch, in_channels=channels,
            out_channels=outputs, groups=groups, in_size=_parse_sizes(words[4], ndim, text),
            kernel_size=_parse_sizes(words[5], ndim, text), out_size=(0,) * ndim, **fields,
        )  # fmt: skip
        return replace(spec, out_size=out_size or spec.formula_out_size)


def _sizes(values: tuple[Any, ...]) -> str:
    return "x".join(str(v) for v in values)


def _parse_sizes(word: str, ndim: int, text: str) -> tuple[Any, ...]:
    """``i56x56`` -> (56, 56); ``p1x0.2`` -> ((1, 1), (0, 2)); one number stands for every axis."""
    letter, *values = word[0], *word[1:].split("x")
    try:
        sizes: tuple[Any, ...]
        if letter == "p":
            pairs = [v.split(".") for v in values]
            sizes = tuple((int(p[0]), int(p[-1])) for p in pairs if len(p) <= 2)
        else:
            sizes = tuple(int(v) for v in values)
        if len(sizes) == 1:
            sizes *= ndim
        if len(sizes) != ndim:
            raise ValueError
    except ValueError:
        raise ConvSpecError(
            f"spec={text!r}: {word!r} does not give {ndim} sizes; write {letter}3x3 or the like."
        ) from None
    return sizes
