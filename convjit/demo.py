"""The main job, shown: a photograph and the layers of a real network, with every choice explained.

The photograph is the portrait of Grace Hopper that matplotlib ships (official photograph of the
United States Navy, in the public domain).  Every result is compared with the oracle, which is a
plain loop nest in float64, on windows of the result (its corners among them).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

import convjit
from convjit.algorithms import policies
from convjit.algorithms.oracle import magnitudes, oracle
from convjit.bench.cases import networks
from convjit.bench.peak import measured_peak
from convjit.errors import ConvSpecError
from convjit.explanation import Array, Explanation
from convjit.spec import ConvSpec
from convjit.tables import milliseconds, percent, table

PHOTO = ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg")
NETWORK = "resnet50"
DETAILED = (64, 64, 3, 3)  # the weights of the layer whose every candidate is shown
HOPELESS = 8.0  # times slower than the choice: predicted, but not worth the demo's time
WINDOW_MACS = 4e6  # multiply-adds that the oracle spends on one window
NUMPY_PAD = {
    "zeros": "constant", "replicate": "edge", "reflect": "reflect", "circular": "wrap",
    "symmetric": "symmetric",
}  # fmt: skip


class MissingError(Exception):
    """Something that the demo needs is not installed; the message says how to get it."""


# -------------------------------------------------------------------- pictures


def find_photo() -> Path:
    """The photograph, in an installed package.

    Raises
    ------
    MissingError
        If the package that ships it is not installed.
    """
    package, inside = PHOTO
    found = find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        if (path := Path(folder) / inside).is_file():
            return path
    raise MissingError(
        "the demo's photograph comes with matplotlib, which is not installed; install "
        "convjit[demo], or give --image FILE."
    )


def read_photo(path: Path) -> Array:
    """A picture as float32 in 0 to 1, (3, H, W)."""
    image = _pillow().open(path).convert("RGB")
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255)
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def to_picture(pixels: Array) -> Any:
    """A Pillow image of (3, H, W) numbers, clipped to 0 to 1."""
    bounded = np.clip(np.moveaxis(pixels, 0, -1), 0, 1)
    return _pillow().fromarray((bounded * 255 + 0.5).astype(np.uint8))


def _pillow() -> Any:
    if find_spec("PIL") is None:
        raise MissingError("the demo needs Pillow for pictures; install convjit[demo].")
    from PIL import Image

    return Image


def contact_sheet(pictures: Sequence[tuple[str, Array]], columns: int = 3) -> Any:
    """Pictures beside each other, each with its title below."""
    from PIL import Image, ImageDraw

    _, height, width = pictures[0][1].shape
    caption, gap = 18, 6
    rows = -(-len(pictures) // columns)
    sheet = Image.new(
        "RGB", (columns * (width + gap) + gap, rows * (height + caption + gap) + gap), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for number, (title, pixels) in enumerate(pictures):
        row, column = divmod(number, columns)
        left, top = gap + column * (width + gap), gap + row * (height + caption + gap)
        sheet.paste(to_picture(pixels), (left, top))
        draw.text((left, top + height + 2), title, fill="black")
    return sheet


# -------------------------------------------------------------------- kernels


def gaussian(size: int, sigma: float) -> Array:
    """A normalised Gaussian."""
    t = np.arange(size) - (size - 1) / 2
    line = np.exp(-(t**2) / (2 * sigma**2))
    kernel = np.outer(line, line)
    return np.asarray(kernel / kernel.sum(), np.float32)


def disc(size: int) -> Array:
    """A normalised disc: the blur of a lens out of focus (bokeh)."""
    t = np.arange(size) - (size - 1) / 2
    kernel = np.hypot(t[:, None], t[None, :]) <= size / 2
    return np.asarray(kernel / kernel.sum(), np.float32)


def streak(size: int) -> Array:
    """A normalised diagonal line: the blur of a moving camera."""
    kernel = np.eye(size)[::-1] + 0.5 * (np.eye(size, k=1) + np.eye(size, k=-1))[::-1]
    return np.asarray(kernel / kernel.sum(), np.float32)


SOBEL = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)
SHARPEN = np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]], np.float32)


@dataclass(frozen=True, slots=True)
class Filter:
    """A picture filter: kernels, and what their results become."""

    name: str
    title: str
    kernels: tuple[Array, ...]
    join: Callable[[list[Array]], Array] = lambda results: results[0]


def _length(results: list[Array]) -> Array:
    """Of the gradient, the same for the three colours so that edges come out grey."""
    length = np.sqrt(sum(r**2 for r in results)).max(axis=0)
    joined: Array = np.broadcast_to(1 - length / length.max(), results[0].shape)
    return joined


FILTERS = (
    Filter("gaussian", "Gaussian blur, 13x13", (gaussian(13, 2.2),)),
    Filter("edges", "Sobel edges, 3x3 twice", (SOBEL, np.ascontiguousarray(SOBEL.T)), _length),
    Filter("sharpen", "sharpened, 3x3", (SHARPEN,)),
    Filter("motion", "motion blur, 31x31", (streak(31),)),
    Filter("bokeh", "bokeh, 31x31 disc", (disc(31),)),
)


# -------------------------------------------------------------------- error against the oracle


class Reference:
    """What the oracle says on windows of a forward result: its corners and its middle.

    Each window is a small problem of its own: the padded data that it reads, without padding.
    """

    def __init__(self, spec: ConvSpec, x: Array, w: Array, bias: Array | None = None) -> None:
        mode: Any = NUMPY_PAD[spec.pad_mode]
        padded = np.pad(x, ((0, 0), (0, 0), *spec.padding), mode=mode)
        self._spec = spec
        self._expected: list[tuple[Any, Array]] = []
        self.scale = 0.0
        for window in _windows(spec):
            reads = tuple(
                slice(o.start * s, (o.stop - 1) * s + d * (k - 1) + 1)
                for o, s, d, k in zip(
                    window, spec.stride, spec.dilation, spec.kernel_size, strict=True
                )
            )
            data = padded[(slice(None), slice(None), *reads)]
            small = ConvSpec.forward(
                data.shape, w.shape, dtype=spec.dtype, stride=spec.stride,
                dilation=spec.dilation, groups=spec.groups, flip=spec.flip, bias=spec.bias,
                activation=spec.activation,
            )  # fmt: skip
            found = oracle(small, data, w, bias)
            self._expected.append(((slice(None), slice(None), *window), found))
            self.scale = max(self.scale, float(magnitudes(small, data, w, bias).max()))

    def error(self, result: Array) -> float:
        """Largest error in the windows over the largest sum of magnitudes there."""
        shaped = result.reshape(self._spec.result_shape)
        worst = max(
            float(np.abs(shaped[window].astype(np.float64) - expected).max())
            for window, expected in self._expected
        )
        return worst / self.scale if self.scale else worst


def _windows(spec: ConvSpec) -> Iterator[tuple[slice, ...]]:
    """Windows of a result: the first and the last corner, and the middle."""
    one = spec.macs / max(1, prod(spec.out_size))
    side = max(1, int((WINDOW_MACS / max(one, 1.0)) ** (1 / spec.ndim)))
    for where in (0.0, 0.5, 1.0):
        starts = [int(where * max(0, n - side)) for n in spec.out_size]
        yield tuple(slice(s, min(s + side, n)) for s, n in zip(starts, spec.out_size, strict=True))


# -------------------------------------------------------------------- the show


@dataclass(slots=True)
class Show:
    """What was shown, for JSON."""

    peak: dict[str, Any]
    filters: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def with_peak(self, explanation: Explanation) -> Explanation:
        """Shares of the measured peak, not of what a backend assumes."""
        peak = (float(self.peak["peak"]), True)
        return replace(explanation, peaks=dict.fromkeys(explanation.peaks, peak))


def show_filters(
    photo: Array, folder: Path, show: Show, seconds: float, told: Callable[[str], None]
) -> None:
    """Convolve the photograph with each kernel, explain, write the pictures."""
    options: dict[str, Any] = {"padding": "same", "pad_mode": "replicate", "layout": "HW"}
    pictures = [("before", photo)]
    for item in FILTERS:
        results = [convjit.conv(photo, kernel, **options) for kernel in item.kernels]
        pictures.append((item.title, item.join(results)))
        kernel = item.kernels[0]
        explanation = show.with_peak(convjit.explain(photo, kernel, **options))
        reference = Reference(explanation.spec, photo[:, None], kernel[None, None])
        measured = explanation.compare(
            seconds=seconds, budget=4.0, hopeless=HOPELESS, operands=(photo, kernel, None),
            reference=reference.error,
        )  # fmt: skip
        told(f"\n{item.title}\n{measured.table(refused=False)}")
        show.filters.append({"filter": item.name, **measured.as_dict()})
    folder.mkdir(parents=True, exist_ok=True)
    names = ["before", *(item.name for item in FILTERS)]
    for name, (_, pixels) in zip(names, pictures, strict=True):
        path = folder / f"{name}.png"
        to_picture(pixels).save(path)
        show.pictures.append(str(path))
    sheet = folder / "before-after.png"
    contact_sheet(pictures).save(sheet)
    show.pictures.append(str(sheet))


def show_layers(show: Show, seconds: float, told: Callable[[str], None]) -> None:
    """Each layer of the network by a plan with packed weights, and the table of them all."""
    rows: list[Sequence[object]] = []
    total = predicted = flops = 0.0
    for number, layer in enumerate(networks()[NETWORK]):
        options: dict[str, Any] = {
            "stride": tuple(layer["stride"]), "groups": layer["groups"],
            "padding": tuple((lo, hi) for lo, hi in layer["padding"]),
            "dilation": tuple(layer["dilation"]), "bias": layer["bias"], "packed": True,
        }  # fmt: skip
        explanation = show.with_peak(
            convjit.explain(tuple(layer["x"]), tuple(layer["w"]), **options)
        )
        spec = explanation.spec
        rng = np.random.default_rng(number)
        x = rng.standard_normal(spec.x_shape, np.float32)
        w = rng.standard_normal(spec.w_shape, np.float32)
        bias = rng.standard_normal(spec.out_channels, np.float32) if spec.bias else None
        # All candidates of one layer in the middle of the network, the choice alone of the others.
        whole = tuple(layer["w"]) == DETAILED
        measured = explanation.compare(
            seconds=seconds, budget=12.0 if whole else 0.0, hopeless=HOPELESS,
            operands=(x, w, bias), reference=Reference(spec, x, w, bias).error,
        )  # fmt: skip
        if whole:
            told(f"\nOne layer of {NETWORK}, every candidate\n{measured.table(refused=True)}")
        winner = measured.winner
        if winner is None:
            raise ConvSpecError(f"no backend computes {spec}: {measured.reason}")
        taken = measured.measured[winner.label]
        count = int(layer["count"])
        total += count * taken.seconds
        predicted += count * (winner.seconds or 0.0)
        flops += count * spec.flops
        rows.append(
            (str(spec), count, winner.label, milliseconds(winner.seconds),
             milliseconds(taken.seconds), f"{spec.flops / taken.seconds / 1e9:.1f}",
             percent(measured.share_of_peak(winner, taken.seconds)), f"{taken.error:.1e}")
        )  # fmt: skip
        show.layers.append({"count": count, **measured.as_dict()})
    share = flops / total / show.peak["peak"] if total and show.peak["peak"] else None
    rows.append(
        ("all layers", sum(int(str(row[1])) for row in rows), "", milliseconds(predicted),
         milliseconds(total), f"{flops / total / 1e9:.1f}", percent(share), "")
    )  # fmt: skip
    told(f"\n{NETWORK}, every layer, weights packed once")
    told(
        table(
            ["layer", ">count", "algorithm", ">predicted ms", ">measured ms", ">GFLOP/s",
             ">% peak", ">error"],
            rows,
        )
    )  # fmt: skip


def run(
    folder: Path,
    *,
    image: Path | None = None,
    seconds: float = 0.05,
    told: Callable[[str], None] = print,
) -> Show:
    """The demo: pictures into ``folder``, tables by ``told``.

    Raises
    ------
    MissingError
        If the photograph or Pillow is not there.
    """
    from convjit import config, environment

    start = time.perf_counter()
    source = image or find_photo()
    photo = read_photo(source)
    show = Show(measured_peak("float32"))
    told(
        f"{environment.cpu_name()}, {config.num_threads()} threads; peak "
        f"{show.peak['peak'] / 1e9:.1f} GFLOP/s in float32 ({show.peak['how']})\n"
        f"photograph {source.name}: {photo.shape[2]} x {photo.shape[1]} pixels, three colours\n"
        "errors are against the oracle in float64, relative to the largest sum of magnitudes; "
        f"the default precision admits {policies.limit('float32'):.0e}"
    )
    show_filters(photo, folder, show, seconds, told)
    show_layers(show, seconds, told)
    show.seconds = time.perf_counter() - start
    told(f"\npictures: {', '.join(show.pictures)}")
    return show
