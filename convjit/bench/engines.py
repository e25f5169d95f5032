"""One maker for each library: from a case to a call that computes it as well as the library can.

A maker prepares all that a user would prepare once (models, constant weights, contiguous arrays)
and returns an :class:`Engine`; only ``run`` is timed.  It raises :class:`NotOffered` for what the
library cannot do.  Libraries are imported here and nowhere else, each in a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from convjit.bench.cases import Case
from convjit.explanation import HOPELESS, Array
from convjit.spec import ConvSpec, Direction

# Beyond this many multiply-adds a library without a fast algorithm takes seconds a call.
SLOW = 2e9


class NotOffered(Exception):
    """The library does not do this; the message says what."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A prepared computation.

    Attributes
    ----------
    run : callable
        Computes once; what is timed.
    result : callable
        From what ``run`` returned to a NumPy array, channels first.
    facts : mapping
        What the library tells about its choice.
    """

    run: Callable[[], Any]
    result: Callable[[Any], Any] = np.asarray
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """What a maker is given: the case, its operands (channels first), and the threads to use."""

    case: Case
    spec: ConvSpec
    lhs: Array
    rhs: Array
    bias: Array | None
    threads: int
    plain: bool  # time plain calls of layers, not planned ones

    @property
    def transposed(self) -> bool:
        return self.spec.direction is Direction.TRANSPOSED

    @property
    def gradient(self) -> bool:
        return self.spec.direction in (Direction.INPUT_GRAD, Direction.WEIGHT_GRAD)

    @property
    def kernel(self) -> Array:
        """The weights as cross-correlation wants them: reversed where the spec says flip."""
        if not self.spec.flip:
            return self.rhs
        axes = tuple(range(2, self.rhs.ndim))
        return np.ascontiguousarray(np.flip(self.rhs, axes))


def _layers_only(job: Job) -> None:
    if job.case.kind != "layer":
        raise NotOffered("for layers only")


def _float32_only(job: Job) -> None:
    if job.spec.dtype != "float32":
        raise NotOffered("for float32 only")


# -------------------------------------------------------------------- convjit


def chosen(
    case: Case, x: tuple[int, ...], w: tuple[int, ...], *, packed: bool, **options: Any
) -> dict[str, Any]:
    """The facts of what convjit chooses, within the case's algorithm if it names one.

    Raises
    ------
    NotOffered
        If that algorithm cannot compute the case, or is predicted to take ``HOPELESS`` times as
        long as the choice without one.
    """
    import convjit

    winner = convjit.explain(x, w, packed=packed, **options).winner
    if case.algorithm and winner is not None:
        best = winner.total(packed)
        found = convjit.explain(x, w, packed=packed, algorithm=case.algorithm, **options)
        if found.winner is None:
            reasons = [c.refusal.reason for c in found.refused if c.refusal is not None]
            raise NotOffered(next(iter(reasons), f"nothing computes this by {case.algorithm}"))
        winner = found.winner
        if winner.total(packed) > HOPELESS * best:
            times = winner.total(packed) / best
            raise NotOffered(f"predicted to take {times:.0f} times as long as the choice")
    if winner is None:
        return {}
    return {
        "label": winner.label, "algorithm": winner.algorithm, "predicted": winner.total(packed),
    }  # fmt: skip


def convjit_engine(job: Job, layout: str | None = None) -> Engine:
    """Layers by a plan with packed weights, images and signals by plain calls."""
    import convjit

    spec, last = job.spec, layout is not None
    options: dict[str, Any] = {
        "stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation,
        "groups": spec.groups, "flip": spec.flip, "layout": layout,
    }  # fmt: skip
    if job.case.kind != "layer":
        if last:
            raise NotOffered("for layers only")
        x, w = np.ascontiguousarray(job.lhs[0, 0]), np.ascontiguousarray(job.rhs[0, 0])
        del options["groups"], options["layout"]
        facts = chosen(job.case, x.shape, w.shape, packed=False, dtype=x.dtype, **options)
        options["algorithm"] = job.case.algorithm or None
        return Engine(lambda: convjit.conv(x, w, **options), lambda y: y[None, None], facts)
    x = np.ascontiguousarray(np.moveaxis(job.lhs, 1, -1)) if last else job.lhs
    back = (lambda y: np.moveaxis(y, -1, 1)) if last else np.asarray
    if job.transposed:
        options["output_size"] = spec.in_size
    described: dict[str, Any] = {
        "dtype": x.dtype, "bias": spec.bias, "direction": spec.direction.value,
    }  # fmt: skip
    facts = chosen(job.case, x.shape, job.rhs.shape, packed=not job.plain, **described, **options)
    options["algorithm"] = job.case.algorithm or None
    if job.plain:
        call = convjit.conv_transpose if job.transposed else convjit.conv
        return Engine(lambda: call(x, job.rhs, job.bias, **options), back, facts)
    made = convjit.plan(x.shape, job.rhs.shape, **described, **options)
    packed = made.pack(job.rhs)
    return Engine(lambda: made(x, packed, job.bias), back, facts)


def convjit_last(job: Job) -> Engine:
    """convjit on channels-last data."""
    return convjit_engine(job, {1: "NLC", 2: "NHWC", 3: "NDHWC"}[job.spec.ndim])


# -------------------------------------------------------------------- torch


def torch_engine(job: Job, channels_last: bool = False) -> Engine:
    """torch.nn.functional, inference mode."""
    import torch
    import torch.nn.functional as functional

    torch.set_num_threads(job.threads)
    torch.set_grad_enabled(False)
    spec = job.spec
    if job.case.kind != "layer" and spec.macs > SLOW:
        raise NotOffered("direct summation only: seconds a call")
    if channels_last and (spec.ndim != 2 or job.case.kind != "layer"):
        raise NotOffered("for 2-D layers only")
    x, w = torch.from_numpy(job.lhs), torch.from_numpy(job.kernel)
    bias = None if job.bias is None else torch.from_numpy(job.bias)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
        w = w.to(memory_format=torch.channels_last)
    keywords: dict[str, Any] = {
        "stride": spec.stride, "dilation": spec.dilation, "groups": spec.groups,
    }  # fmt: skip
    even = all(lo == hi for lo, hi in spec.padding)
    lows = [lo for lo, _ in spec.padding]
    if job.transposed:
        if not even:
            raise NotOffered("no uneven padding of transposed convolutions")
        name = f"conv_transpose{spec.ndim}d"
        keywords |= {"padding": lows, "output_padding": job.spec.output_padding}
    else:
        name = f"conv{spec.ndim}d"
        keywords |= {"padding": lows if even else 0}
    function = getattr(functional, name)
    if even or job.transposed:
        return Engine(lambda: function(x, w, bias, **keywords), lambda y: y.numpy())
    widths = [width for pair in reversed(spec.padding) for width in pair]
    return Engine(
        lambda: function(functional.pad(x, widths), w, bias, **keywords), lambda y: y.numpy()
    )


def torch_last(job: Job) -> Engine:
    """torch in its channels_last memory format."""
    return torch_engine(job, channels_last=True)


# -------------------------------------------------------------------- graph runtimes


def onnxruntime_engine(job: Job) -> Engine:
    """A model of one node, weights as initialisers, the CPU provider."""
    _layers_only(job)
    _float32_only(job)
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    spec = job.spec
    constants = [numpy_helper.from_array(job.kernel, "w")]
    if job.bias is not None:
        constants.append(numpy_helper.from_array(job.bias, "b"))
    attributes: dict[str, Any] = {
        "strides": spec.stride, "dilations": spec.dilation, "group": spec.groups,
        "pads": [lo for lo, _ in spec.padding] + [hi for _, hi in spec.padding],
    }  # fmt: skip
    if job.transposed:
        attributes["output_padding"] = job.spec.output_padding
    kind = "ConvTranspose" if job.transposed else "Conv"
    node = helper.make_node(kind, ["x", *(c.name for c in constants)], ["y"], **attributes)
    data = helper.make_tensor_value_info("x", TensorProto.FLOAT, job.lhs.shape)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "convolution", [data], [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8  # of opset 17, so that older runtimes load it too
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {"x": job.lhs}
    return Engine(lambda: session.run(None, feed)[0])


def openvino_engine(job: Job) -> Engine:
    """A compiled model with constant weights, latency hint, float32 kept."""
    _layers_only(job)
    _float32_only(job)
    import openvino
    from openvino import opset8 as op

    spec = job.spec
    groups = spec.groups
    data = op.parameter(list(job.lhs.shape), openvino.Type.f32)
    w = job.kernel
    if groups > 1:
        w = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    weights = op.constant(np.ascontiguousarray(w))
    begin, end = [lo for lo, _ in spec.padding], [hi for _, hi in spec.padding]
    stride, dilation = list(spec.stride), list(spec.dilation)
    if job.transposed:
        make = op.group_convolution_backprop_data if groups > 1 else op.convolution_backprop_data
        node = make(
            data, weights, stride, pads_begin=begin, pads_end=end, dilations=dilation,
            output_padding=list(job.spec.output_padding),
        )  # fmt: skip
    else:
        make = op.group_convolution if groups > 1 else op.convolution
        node = make(data, weights, stride, begin, end, dilation)
    if job.bias is not None:
        node = op.add(node, op.constant(job.bias.reshape(1, -1, *(1,) * spec.ndim)))
    settings = {
        "INFERENCE_NUM_THREADS": job.threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(openvino.Model([node], [data]), "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(job.lhs, shared_memory=True))
    return Engine(request.infer, lambda _: np.array(request.get_output_tensor().data))


# ncnn's numbers of a convolution's parameters (its wiki, "operation param weight table").
_NCNN = {
    "num_output": 0, "kernel_w": 1, "dilation_w": 2, "stride_w": 3, "pad_left": 4, "bias": 5,
    "weights": 6, "group": 7, "kernel_h": 11, "dilation_h": 12, "stride_h": 13, "pad_top": 14,
    "pad_right": 15, "pad_bottom": 16, "output_pad_right": 18, "output_pad_bottom": 19,
}  # fmt: skip


def ncnn_engine(job: Job) -> Engine:
    """A net of one layer; two spatial axes, one image, float32 storage and arithmetic."""
    _layers_only(job)
    _float32_only(job)
    spec = job.spec
    if spec.ndim != 2 or spec.batch != 1:
        raise NotOffered("for 2-D layers and one image only")
    import tempfile

    import ncnn

    groups, w = spec.groups, job.kernel
    if job.transposed:  # ncnn wants the output channel first, inside each group
        w = w.reshape(groups, -1, *w.shape[1:]).swapaxes(1, 2)
    (top, bottom), (left, right) = spec.padding
    values = {
        "num_output": spec.result_channels, "weights": w.size, "bias": int(job.bias is not None),
        "kernel_h": spec.kernel_size[0], "kernel_w": spec.kernel_size[1],
        "stride_h": spec.stride[0], "stride_w": spec.stride[1],
        "dilation_h": spec.dilation[0], "dilation_w": spec.dilation[1],
        "pad_top": top, "pad_bottom": bottom, "pad_left": left, "pad_right": right,
    }  # fmt: skip
    if groups > 1:
        values["group"] = groups
    if job.transposed:
        values["output_pad_bottom"], values["output_pad_right"] = job.spec.output_padding
    name = ("Deconvolution" if job.transposed else "Convolution") + (
        "DepthWise" if groups > 1 else ""
    )
    parameters = " ".join(f"{_NCNN[key]}={value}" for key, value in values.items())
    net = ncnn.Net()
    net.opt.num_threads = job.threads
    net.opt.use_vulkan_compute = False
    for option in ("bf16_storage", "fp16_storage", "fp16_arithmetic", "fp16_packed"):
        setattr(net.opt, f"use_{option}", False)
    with tempfile.TemporaryDirectory() as folder:
        param, binary = os.path.join(folder, "net.param"), os.path.join(folder, "net.bin")
        with open(param, "w", encoding="ascii") as file:  # magic number, counts, layers
            file.write(f"7767517\n2 2\nInput in 0 1 x\n{name} conv 1 1 x y {parameters}\n")
        with open(binary, "wb") as raw:  # a zero tag: the weights are plain float32
            raw.write(bytes(4) + np.ascontiguousarray(w).tobytes())
            raw.write(b"" if job.bias is None else job.bias.tobytes())
        net.load_param(param)
        net.load_model(binary)
    image = np.ascontiguousarray(job.lhs[0])
    data = ncnn.Mat(image)

    def run(_keep: Any = (net, image)) -> Any:
        extractor = net.create_extractor()
        extractor.input("x", data)
        return extractor.extract("y")[1]

    return Engine(run, lambda y: np.array(y)[None])


# -------------------------------------------------------------------- image and signal libraries


def _plain(job: Job) -> tuple[Array, Array, str]:
    """(data, kernel, mode) of an image or signal: "same" or "full"."""
    if job.case.kind == "layer":
        raise NotOffered("for images and signals only")
    mode = "full" if job.case.kind == "signal" else "same"
    return np.ascontiguousarray(job.lhs[0, 0]), np.ascontiguousarray(job.rhs[0, 0]), mode


def _with_axes(y: Any) -> Any:
    return np.asarray(y)[None, None]


def opencv_engine(job: Job) -> Engine:
    """cv2.filter2D, which correlates."""
    x, w, _ = _plain(job)
    if job.case.kind != "image":
        raise NotOffered("for images only")
    import cv2

    cv2.setNumThreads(job.threads)
    return Engine(lambda: cv2.filter2D(x, -1, w, borderType=cv2.BORDER_CONSTANT), _with_axes)


def _scipy_signal(job: Job, name: str) -> Engine:
    x, w, mode = _plain(job)
    import scipy.signal

    # scipy.signal convolves; an image's kernel is given to it reversed, to correlate.
    kernel = w if job.spec.flip else np.ascontiguousarray(np.flip(w))
    function = getattr(scipy.signal, name)
    return Engine(lambda: function(x, kernel, mode=mode), _with_axes)


def scipy_fft(job: Job) -> Engine:
    """scipy.signal.fftconvolve."""
    return _scipy_signal(job, "fftconvolve")


def scipy_oa(job: Job) -> Engine:
    """scipy.signal.oaconvolve."""
    return _scipy_signal(job, "oaconvolve")


def scipy_ndimage(job: Job) -> Engine:
    """scipy.ndimage.correlate."""
    x, w, _ = _plain(job)
    if job.case.kind != "image":
        raise NotOffered("for images only")
    if prod(x.shape) * prod(w.shape) > SLOW / 3:
        raise NotOffered("direct summation only: seconds a call")
    import scipy.ndimage

    return Engine(lambda: scipy.ndimage.correlate(x, w, mode="constant"), _with_axes)


def numpy_engine(job: Job) -> Engine:
    """numpy.convolve."""
    x, w, _ = _plain(job)
    if job.case.kind != "signal":
        raise NotOffered("for signals only")
    if prod(x.shape) * prod(w.shape) > 4 * SLOW:
        raise NotOffered("direct summation only: seconds a call")
    return Engine(lambda: np.convolve(x, w), _with_axes)


Maker = Callable[[Job], Engine]
ENGINES: dict[str, Maker] = {
    "convjit": convjit_engine,
    "convjit_nhwc": convjit_last,
    "torch": torch_engine,
    "torch_nhwc": torch_last,
    "onnxruntime": onnxruntime_engine,
    "ncnn": ncnn_engine,
    "openvino": openvino_engine,
    "opencv": opencv_engine,
    "scipy_fft": scipy_fft,
    "scipy_oa": scipy_oa,
    "scipy_ndimage": scipy_ndimage,
    "numpy": numpy_engine,
}
PEERS = tuple(name for name in ENGINES if not name.startswith("convjit"))

# What has to be importable for an engine.
MODULES: dict[str, tuple[str, ...]] = {
    "convjit": ("convjit",),
    "convjit_nhwc": ("convjit",),
    "torch": ("torch",),
    "torch_nhwc": ("torch",),
    "onnxruntime": ("onnxruntime", "onnx"),
    "ncnn": ("ncnn",),
    "openvino": ("openvino",),
    "opencv": ("cv2",),
    "scipy_fft": ("scipy.signal",),
    "scipy_oa": ("scipy.signal",),
    "scipy_ndimage": ("scipy.ndimage",),
    "numpy": ("numpy",),
}

# A library of these inside convjit's own process would compute or disturb what is timed.
STRANGERS = ("torch", "cv2", "ncnn", "openvino", "onnxruntime", "jax", "tensorflow")
