"""Problems that no constant of the cost model was fitted to: drawn at random, the same every time.

Each group is a kind of problem with the ranges that its sizes are drawn from, evenly in the
logarithm.  ``seed=0`` is the set that is reported; whoever fits a constant uses other seeds.
The layers of :mod:`convjit.bench.cases`, by which kernels are developed, are none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, exp, log, prod
from random import Random
from typing import Any, TypeVar

from convjit.spec import ConvSpec, Direction

T = TypeVar("T")

# A problem of more operations than this takes too long by the slower algorithms.
MOST_FLOPS = 3e9
# Samples of all operands together, so that a set can be timed in minutes.
MOST_SAMPLES = 1 << 23


@dataclass(frozen=True, slots=True)
class Trial:
    """One problem, and how it is called.

    Attributes
    ----------
    group : str
    spec : str
    packed : bool
        Whether a plan runs it whose weights are packed once; else every call packs them.
    plain : bool
        Whether it is a plain signal, image or volume, in which a NaN stays where it belongs.
    """

    group: str
    spec: str
    packed: bool = True
    plain: bool = False

    @property
    def problem(self) -> ConvSpec:
        return ConvSpec.parse(self.spec)

    @property
    def title(self) -> str:
        return self.spec if self.packed else f"{self.spec} (plain call)"


class Draw:
    """Random numbers whose sequence Python promises to keep: ``Random.random`` alone."""

    def __init__(self, seed: str) -> None:
        self._random = Random(seed)

    def one(self, *values: T) -> T:
        """One of the values; a value given twice is twice as likely."""
        return values[int(self._random.random() * len(values))]

    def size(self, least: int, most: int, step: int = 1) -> int:
        """A multiple of ``step``, evenly in the logarithm."""
        drawn = exp(log(least) + self._random.random() * (log(most) - log(least)))
        return max(least, ceil(drawn / step) * step)


def _same(kernel: tuple[int, ...], dilation: int) -> tuple[tuple[int, int], ...]:
    return tuple((dilation * (k - 1) // 2,) * 2 for k in kernel)


def _layer(
    draw: Draw, ndim: int, *, channels: tuple[int, int], size: tuple[int, int],
    kernels: tuple[int, ...], strides: tuple[int, ...] = (1,), dilations: tuple[int, ...] = (1,),
    dtypes: tuple[str, ...] = ("float32",), direction: Direction = Direction.FORWARD,
    batches: tuple[int, ...] = (1, 1, 2, 4), last: bool = True,
) -> ConvSpec:  # fmt: skip
    """A layer of cubes: both numbers of channels, size, kernel, stride, dilation, padding."""
    c, k = draw.size(*channels, 4 if channels[0] % 4 == 0 else 1), draw.size(*channels, 4)
    taps, n = (draw.one(*kernels),) * ndim, draw.size(*size)
    names = {1: ("NCL", "NLC"), 2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}[ndim]
    layout = draw.one(*names) if last else names[0]
    dilation = draw.one(*dilations)
    padding = draw.one(_same(taps, dilation), _same(taps, dilation), ((0, 0),) * ndim)
    batch = draw.one(*batches)
    x = (batch, c, *(n,) * ndim) if layout == names[0] else (batch, *(n,) * ndim, c)
    return ConvSpec.forward(
        x, (k, c, *taps), layout=layout, dtype=draw.one(*dtypes), stride=draw.one(*strides),
        padding=padding, dilation=dilation, direction=direction,
    )  # fmt: skip


def _dense(draw: Draw) -> ConvSpec:
    return _layer(
        draw, 2, channels=(16, 512), size=(7, 112), kernels=(1, 1, 3, 3, 3, 5, 7),
        strides=(1, 1, 1, 2), dtypes=("float32", "float32", "float32", "float64"),
    )  # fmt: skip


def _first(draw: Draw) -> ConvSpec:
    spec = _layer(
        draw, 2, channels=(16, 96), size=(64, 256), kernels=(3, 5, 7, 11), strides=(1, 2, 2, 4),
        batches=(1, 1, 2),
    )  # fmt: skip
    return spec.replace(in_channels=draw.one(1, 3, 3, 4))


def _dilated(draw: Draw) -> ConvSpec:
    return _layer(
        draw, 2, channels=(16, 256), size=(20, 80), kernels=(3, 3, 5), dilations=(2, 3, 4)
    )


def _grouped(draw: Draw) -> ConvSpec:
    spec = _layer(draw, 2, channels=(4, 48), size=(7, 80), kernels=(1, 3, 3, 5), strides=(1, 1, 2))
    groups = draw.one(2, 4, 8, 32)
    return spec.replace(
        groups=groups, in_channels=spec.in_channels * groups,
        out_channels=spec.out_channels * groups,
    )  # fmt: skip


def _depthwise(draw: Draw) -> ConvSpec:
    spec = _layer(
        draw, 2, channels=(16, 640), size=(7, 112), kernels=(3, 3, 5, 7), strides=(1, 1, 2),
        dtypes=("float32", "float32", "float64"),
    )  # fmt: skip
    return spec.replace(groups=spec.in_channels, out_channels=spec.in_channels)


def _transposed(draw: Draw) -> ConvSpec:
    return _layer(
        draw, 2, channels=(8, 256), size=(14, 112), kernels=(2, 3, 4, 5), strides=(2, 2, 3, 1),
        direction=Direction.TRANSPOSED,
    )  # fmt: skip


def _gradient(draw: Draw) -> ConvSpec:
    return _layer(
        draw, 2, channels=(16, 256), size=(7, 80), kernels=(1, 3, 3, 5), strides=(1, 1, 2),
        direction=draw.one(Direction.INPUT_GRAD, Direction.WEIGHT_GRAD),
    )  # fmt: skip


def _sequence(draw: Draw) -> ConvSpec:
    return _layer(
        draw, 1, channels=(8, 256), size=(200, 20_000), kernels=(2, 3, 5, 9, 15),
        dilations=(1, 1, 2, 16), strides=(1, 1, 2), dtypes=("float32", "float32", "float64"),
    )  # fmt: skip


def _spatial(draw: Draw) -> ConvSpec:
    return _layer(
        draw, 3, channels=(4, 64), size=(8, 40), kernels=(1, 2, 3, 3, 5), strides=(1, 1, 2),
        batches=(1,),
    )  # fmt: skip


def _converted(draw: Draw) -> ConvSpec:
    return _layer(
        draw, 2, channels=(8, 128), size=(14, 56), kernels=(1, 3, 3, 5),
        dtypes=("float16", "bfloat16", "complex64", "complex128", "int16", "int32"),
    )  # fmt: skip


def _plain(draw: Draw, ndim: int, size: tuple[int, int], kernel: tuple[int, int]) -> ConvSpec:
    n, k = draw.size(*size), draw.size(*kernel)
    padding = draw.one("same", "full", "valid")
    edge = {"same": (k // 2, (k - 1) // 2), "full": (k - 1, k - 1), "valid": (0, 0)}[padding]
    bordered = padding == "same" and n > k
    return ConvSpec.forward(
        (1, 1, *(n,) * ndim), (1, 1, *(min(n, k),) * ndim),
        dtype=draw.one("float32", "float32", "float64", "float64", "uint8", "complex64"),
        padding=(edge,) * ndim,
        pad_mode=draw.one("zeros", "zeros", "reflect", "replicate") if bordered else "zeros",
        flip=draw.one(True, False),
    )  # fmt: skip


def _image(draw: Draw) -> ConvSpec:
    return _plain(draw, 2, (64, 1600), (2, 70))


def _signal(draw: Draw) -> ConvSpec:
    return _plain(draw, 1, (100, 1_000_000), (2, 6000))


def _volume(draw: Draw) -> ConvSpec:
    return _plain(draw, 3, (16, 110), (2, 12))


GROUPS: dict[str, Callable[[Draw], ConvSpec]] = {
    "dense": _dense,
    "first": _first,
    "dilated": _dilated,
    "grouped": _grouped,
    "depthwise": _depthwise,
    "transposed": _transposed,
    "gradient": _gradient,
    "sequence": _sequence,
    "spatial": _spatial,
    "converted": _converted,
    "image": _image,
    "signal": _signal,
    "volume": _volume,
}
PLAIN = ("image", "signal", "volume")


def trials(seed: int = 0, each: int = 6, groups: tuple[str, ...] = ()) -> Iterator[Trial]:
    """``each`` problems of every group, or of those named; layers in turns planned and called.

    Parameters
    ----------
    seed : int
        Names the set.  More of ``each`` adds problems to it and changes none.
    each : int
    groups : tuple of str
        Names in :data:`GROUPS`; all if empty.
    """
    for group in groups or GROUPS:
        draw = Draw(f"{group} {seed}")
        for number in range(each):
            spec = GROUPS[group](draw)
            while not _is_fit(spec):
                spec = GROUPS[group](draw)
            plain = group in PLAIN
            yield Trial(group, str(spec), packed=not plain and number % 3 != 2, plain=plain)


def _is_fit(spec: ConvSpec) -> bool:
    """Whether there is something to compute, and not too much."""
    shapes: tuple[Any, ...] = (spec.x_shape, spec.w_shape, spec.y_shape)
    samples = sum(prod(shape) for shape in shapes)
    return not spec.is_empty and spec.flops <= MOST_FLOPS and samples <= MOST_SAMPLES
