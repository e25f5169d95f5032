"""The problems that are timed: layers of real networks, plain images, plain signals.

A case is a spec (its one spelling, so that it travels between processes) and what it stands for.
Images are correlated with ``padding="same"``; signals are convolved (flipped) in full, as
:func:`numpy.convolve` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from convjit.algorithms.geometry import transposed_size
from convjit.errors import ConvSpecError
from convjit.spec import ConvSpec, Direction

Layer = Mapping[str, Any]

_LIKE = (
    'it must be like {"network": [{"x": [1, 3, 8, 8], "w": [4, 3, 3, 3], "stride": [1, 1], ...}]}.'
)
_EACH = "a list of whole numbers, one for each spatial axis of w"
_NUMBER, _TRUE = "a whole number above 0", "true or false"
# What a layer of a file may say, and how.
_KEYS = {
    "w": "a list of 3 to 5 sizes, (K, C/groups, *kernel)",
    "x": "a list of sizes, as many as w has",
    "stride": _EACH,
    "padding": "a list of pairs [lo, hi], one for each spatial axis of w",
    "dilation": _EACH,
    "output_padding": _EACH,
    "groups": _NUMBER,
    "bias": _TRUE,
    "transposed": _TRUE,
    "count": _NUMBER,
    "name": "a string",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One problem to be timed.

    Attributes
    ----------
    group : str
        A network's or a kind's name, ``"images"``, ``"signals"``, ``"specs"``, or a family's name.
    kind : {"layer", "image", "signal"}
        A layer's weights are prepared once; an image's or a signal's kernel is new in every call.
    spec : str
    count : int
        How often the layer occurs in its network.
    algorithm : str
        The family of algorithms that convjit has to take; empty where it chooses.
    """

    group: str
    kind: str
    spec: str
    count: int = 1
    algorithm: str = ""

    @property
    def problem(self) -> ConvSpec:
        return ConvSpec.parse(self.spec)

    @property
    def title(self) -> str:
        """For people: sizes for images and signals, the spec for layers."""
        spec = self.problem
        if self.kind == "layer":
            return f"{self.spec} by {self.algorithm}" if self.algorithm else self.spec
        data = "x".join(map(str, spec.in_size))
        return f"{self.kind} {data} * {'x'.join(map(str, spec.kernel_size))} {spec.dtype}"


@cache
def networks() -> Mapping[str, list[Layer]]:
    """Layers by network, from the file that the package ships."""
    text = resources.files("convjit.bench").joinpath("networks.json").read_text(encoding="utf-8")
    found: dict[str, list[Layer]] = json.loads(text)
    return found


def is_file(word: str) -> bool:
    """Whether a word names a file that :func:`read_networks` reads."""
    return word.endswith((".json", ".onnx"))


def read_networks(
    path: str | Path, *, batch: int | None = None, input_shape: tuple[int, ...] | None = None
) -> Mapping[str, list[Layer]]:
    """Layers by network, from a file of the same form, or from an ONNX model.

    ``batch`` and ``input_shape`` are those of a model's input, where its file leaves them open.

    Raises
    ------
    ConvSpecError
        If the file is neither, or the package onnx is missing.
    """
    if str(path).endswith(".onnx"):
        from convjit.bench import onnxfile

        return {Path(path).stem: onnxfile.read(path, batch=batch, input_shape=input_shape)}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConvSpecError(f"{path} is not a file of layers ({error}); {_LIKE}") from error
    rows = list(found.values()) if isinstance(found, dict) else []
    if not any(rows) or not all(isinstance(layers, list) for layers in rows):
        raise ConvSpecError(f"{path} is not a file of layers by network; {_LIKE}")
    for name, layers in found.items():
        for number, layer in enumerate(layers):
            _check_layer(path, f"layer {number} of {name!r}", layer)
    checked: dict[str, list[Layer]] = found
    return checked


def _check_layer(path: str | Path, place: str, layer: Any) -> None:
    """Raise a ConvSpecError unless :func:`layer_spec` understands all of a layer."""
    if not isinstance(layer, dict):
        raise ConvSpecError(f"{path}: {place} is {layer!r}; {_LIKE}")
    if missing := [key for key in ("x", "w") if key not in layer]:
        raise ConvSpecError(f"{path} has a layer without {', '.join(missing)}: {place}; {_LIKE}")
    if unknown := sorted(layer.keys() - set(_KEYS)):
        raise ConvSpecError(
            f"{path}: {place} has {', '.join(map(repr, unknown))}, which is not known; choose from "
            f"{', '.join(_KEYS)}."
        )
    for key in (key for key in _KEYS if key in layer):
        if not _is_right(key, layer):
            raise ConvSpecError(f"{path}: {place} has {key}={layer[key]!r}; give {_KEYS[key]}.")
    channels, groups = layer["x"][1], layer.get("groups", 1)
    taken = layer["w"][0] if layer.get("transposed") else layer["w"][1] * groups
    if channels != taken or layer["w"][0] % groups:
        raise ConvSpecError(
            f"{path}: {place} has x={layer['x']} and w={layer['w']} with groups={groups}, but such "
            f"a w takes {taken} channels, {groups} groups of them."
        )
    spec = layer_spec(layer)
    if min(spec.in_size + spec.out_size) < 1:
        raise ConvSpecError(
            f"{path}: {place} has a kernel {layer['w'][2:]} that does not fit into x="
            f"{layer['x']} with its padding; pad more, or use a smaller one."
        )


def _is_right(key: str, layer: Layer) -> bool:
    """Whether the value of a key is of the form that :data:`_KEYS` says."""
    value = layer[key]
    if _KEYS[key] == _NUMBER:
        return _is_size(value) and value > 0
    if _KEYS[key] == _TRUE:
        return isinstance(value, bool)
    if key == "name":
        return isinstance(value, str)
    if not isinstance(value, list):
        return False
    if key == "padding":
        return len(value) == len(layer["w"]) - 2 and all(
            isinstance(pair, list) and len(pair) == 2 and all(map(_is_size, pair)) for pair in value
        )
    count = {"w": len(value) if len(value) in (3, 4, 5) else -1, "x": len(layer["w"])}
    return len(value) == count.get(key, len(layer["w"]) - 2) and all(map(_is_size, value))


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def layer_spec(layer: Layer, *, batch: int | None = None, dtype: str = "float32") -> ConvSpec:
    """The problem of one row of a file of layers; padding is (lo, hi) for each axis."""
    x, w = tuple(layer["x"]), tuple(layer["w"])
    ndim = len(w) - 2
    stride = tuple(layer.get("stride", (1,) * ndim))
    dilation = tuple(layer.get("dilation", (1,) * ndim))
    padding = tuple((lo, hi) for lo, hi in layer.get("padding", ((0, 0),) * ndim))
    groups, n = int(layer.get("groups", 1)), batch or x[0]
    if not layer.get("transposed"):
        return ConvSpec.forward(
            (n, *x[1:]), w, dtype=dtype, stride=stride, padding=padding, dilation=dilation,
            groups=groups, bias=bool(layer.get("bias")),
        )  # fmt: skip
    more = layer.get("output_padding", (0,) * ndim)
    size = tuple(
        transposed_size(i, k, s, lo, hi, d, extra)
        for i, k, s, (lo, hi), d, extra in zip(
            x[2:], w[2:], stride, padding, dilation, more, strict=True
        )
    )
    # A transposed layer's x is the forward problem's y, and its w has the forward order.
    spec = ConvSpec.forward(
        (n, w[1] * groups, *size), w, dtype=dtype, stride=stride, padding=padding,
        dilation=dilation, groups=groups, bias=bool(layer.get("bias")),
        direction=Direction.TRANSPOSED,
    )  # fmt: skip
    return spec.replace(out_size=x[2:])


def separable_pairs(specs: Iterable[ConvSpec]) -> Iterator[tuple[ConvSpec, ConvSpec]]:
    """Each depthwise layer with the pointwise one that comes next and takes its result."""
    for depth, point in pairwise(specs):
        if (
            depth.direction is point.direction is Direction.FORWARD
            and 1 < depth.groups == depth.in_channels
            and depth.y_shape == point.x_shape
            and point == ConvSpec.forward(
                depth.y_shape, (point.out_channels, depth.out_channels, *(1,) * depth.ndim),
                dtype=depth.dtype, layout=depth.layout, bias=point.bias,
                activation=point.activation,
            )
        ):  # fmt: skip
            yield depth, point


def directed(spec: ConvSpec, direction: Direction) -> ConvSpec:
    """A layer itself, what its gradients compute, or the transposed layer of the same geometry.

    A transposed layer is the gradient of a forward one, whose own is the forward layer.
    """
    if direction is Direction.FORWARD:
        return spec
    backwards = {
        Direction.INPUT_GRAD: Direction.FORWARD, Direction.TRANSPOSED: Direction.FORWARD,
    }  # fmt: skip
    if spec.direction is Direction.TRANSPOSED:
        direction = backwards.get(direction, direction)
    return spec.replace(direction=direction, bias=False)


def network_cases(
    names: Iterable[str],
    source: Mapping[str, list[Layer]] | None = None,
    *,
    batch: int | None = None,
    dtype: str = "float32",
    direction: str = "forward",
) -> Iterator[Case]:
    """The layers of networks, or what ``direction`` makes of each (see :func:`directed`).

    Raises
    ------
    ConvSpecError
        For a network that the source does not have.
    """
    known = networks() if source is None else source
    for name in names:
        if name not in known:
            raise ConvSpecError(f"network {name!r} is not known; choose from {', '.join(known)}.")
        for layer in known[name]:
            spec = directed(layer_spec(layer, batch=batch, dtype=dtype), Direction(direction))
            yield Case(name, "layer", str(spec), int(layer.get("count", 1)))


_IMAGES = (
    (512, 3, "f32"), (512, 5, "f32"), (512, 7, "f32"), (1024, 11, "f32"), (1024, 31, "f32"),
    (1024, 63, "f32"), (2048, 15, "f32"), (4096, 31, "f32"), (1024, 5, "f64"), (1024, 15, "f64"),
)  # fmt: skip
_SIGNALS = (
    (1_000, 9, "f64"), (100_000, 100, "f64"), (100_000, 5_000, "f64"), (1_000_000, 64, "f64"),
    (1_000_000, 64, "f32"), (1_000_000, 5_000, "f32"), (1_000_000, 5_000, "f64"),
)  # fmt: skip


# Layers of kinds that the networks above have few or none of.
_KINDS: Mapping[str, tuple[str, ...]] = {
    # DeepLab v3 (its pyramid, its last block), a context module, WaveNet.
    "dilated": (
        "conv_f32_NCHW_n1c2048k256g1_i33x33_w3x3_p6_d6",
        "conv_f32_NCHW_n1c2048k256g1_i33x33_w3x3_p18_d18",
        "conv_f32_NCHW_n1c512k512g1_i33x33_w3x3_p2_d2",
        "conv_f32_NCHW_n1c64k64g1_i128x128_w3x3_p4_d4",
        "conv_f32_NCL_n1c64k128g1_i16000_w2_p8.0_d8",
    ),
    # ResNeXt-50, ShuffleNet.
    "grouped": (
        "conv_f32_NCHW_n1c128k128g32_i56x56_w3x3_p1",
        "conv_f32_NCHW_n1c256k256g32_i56x56_w3x3_s2_p1",
        "conv_f32_NCHW_n1c512k512g32_i14x14_w3x3_p1",
        "conv_f32_NCHW_n1c240k240g3_i28x28_w1x1",
    ),
    # U-Net, an encoder-decoder, DCGAN.
    "transposed": (
        "convt_f32_NCHW_n1c256k512g1_i56x56_w2x2_s2",
        "convt_f32_NCHW_n1c64k128g1_i128x128_w3x3_s2_p1",
        "convt_f32_NCHW_n1c256k256g1_i64x64_w4x4_s2_p1",
        "convt_f32_NCHW_n1c3k64g1_i256x256_w4x4_s2_p1",
    ),
    # C3D, R(2+1)D.
    "3-D": (
        "conv_f32_NCDHW_n1c3k64g1_i16x112x112_w3x3x3_p1",
        "conv_f32_NCDHW_n1c64k128g1_i8x56x56_w3x3x3_p1",
        "conv_f32_NCDHW_n1c64k144g1_i8x56x56_w1x3x3_p0x1x1",
        "conv_f32_NCDHW_n1c144k64g1_i8x56x56_w3x1x1_p1x0x0",
    ),
    # wav2vec 2.0, Whisper.
    "1-D": (
        "conv_f32_NCL_n1c512k512g1_i3199_w3_s2",
        "conv_f32_NCL_n1c768k768g16_i499_w128_p64",
        "conv_f32_NCL_n1c80k384g1_i3000_w3_p1",
    ),
    # ResNet-50, MobileNet v2.
    "float64": (
        "conv_f64_NCHW_n1c3k64g1_i224x224_w7x7_s2_p3",
        "conv_f64_NCHW_n1c64k64g1_i56x56_w3x3_p1",
        "conv_f64_NCHW_n1c256k64g1_i56x56_w1x1",
        "conv_f64_NCHW_n1c512k512g1_i7x7_w3x3_p1",
        "conv_f64_NCHW_n1c96k96g96_i56x56_w3x3_p1",
    ),
}


def kind_cases() -> Iterator[Case]:
    """Layers by kind, and both gradients of ResNet-50's; a kind is a group as a network is."""
    for kind, specs in _KINDS.items():
        for spec in specs:
            yield Case(kind, "layer", str(ConvSpec.parse(spec)))
    for direction, name in (("input_grad", "gradients, x"), ("weight_grad", "gradients, w")):
        for case in network_cases(["resnet50"], direction=direction):
            yield replace(case, group=name)


def image_cases() -> Iterator[Case]:
    """Square images with square kernels, correlated to the same size."""
    for n, k, dtype in _IMAGES:
        spec = f"conv_{dtype}_NCHW_n1c1k1g1_i{n}x{n}_w{k}x{k}_p{k // 2}x{k // 2}"
        yield Case("images", "image", spec)


def signal_cases() -> Iterator[Case]:
    """Signals convolved in full."""
    for n, k, dtype in _SIGNALS:
        yield Case("signals", "signal", f"conv_{dtype}_NCL_n1c1k1g1_i{n}_w{k}_p{k - 1}_flip")


def spec_cases(words: Iterable[str]) -> Iterator[Case]:
    """Specs as a user spells them."""
    for word in words:
        yield Case("specs", "layer", str(ConvSpec.parse(word)))


def small_cases() -> list[Case]:
    """A minute's worth: what each kind of kernel is for."""
    layers = (
        "conv_f32_NCHW_n1c3k64g1_i224x224_w7x7_s2x2_p3x3",
        "conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1x1",
        "conv_f32_NCHW_n1c256k64g1_i56x56_w1x1",
        "conv_f32_NCHW_n1c512k512g1_i7x7_w3x3_p1x1",
        "conv_f32_NCHW_n1c96k96g96_i56x56_w3x3_p1x1",
    )
    images = [case for case in image_cases() if "i1024x1024" in case.spec and "f32" in case.spec]
    signals = [case for case in signal_cases() if "_w64_" in case.spec or "_w5000_" in case.spec]
    return [*spec_cases(layers), *images[:2], *signals[1:3]]
