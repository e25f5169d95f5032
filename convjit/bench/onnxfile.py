"""The convolutions of an ONNX file, as rows of the form of ``networks.json``.

ONNX numbers sizes as we do: ``Conv`` takes w as (K, C/groups, *kernel), ``ConvTranspose`` as
(C_in, C_out/groups, *kernel), both channels-first.  The sizes of what a node reads are found by
ONNX's own shape inference.  Quantised convolutions are other operators, and left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from convjit.algorithms.geometry import same_padding, transposed_size
from convjit.errors import ConvSpecError

_OPERATORS = ("Conv", "ConvTranspose")
_SAME = ("SAME_UPPER", "SAME_LOWER")


def read(
    path: str | Path, *, batch: int | None = None, input_shape: tuple[int, ...] | None = None
) -> list[Mapping[str, Any]]:
    """The convolutions of a model, equal ones counted.

    Parameters
    ----------
    path : str or Path
        Weights in files of their own need not be there.
    batch : int, optional
        Of the model's inputs, where the file leaves it open (1 if not given).
    input_shape : tuple of int, optional
        Of the model's first input, where the file leaves sizes open.

    Returns
    -------
    list of dict
        As rows of ``networks.json``.

    Raises
    ------
    ConvSpecError
        If onnx is not installed, the file is no model, has no convolution, or leaves a size open.
    """
    try:
        import onnx
    except ImportError as error:
        raise ConvSpecError(
            f"{path}: reading it needs the package onnx: pip install convjit[onnx]."
        ) from error
    try:
        model = onnx.load(str(path), load_external_data=False)
        _fix_inputs(model.graph, path, batch, input_shape)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except ConvSpecError:
        raise
    except Exception as error:  # protobuf's and ONNX's own errors have no common base
        raise ConvSpecError(f"{path} is not an ONNX model that can be read ({error}).") from error
    rows: list[dict[str, Any]] = []
    for node, shapes in _nodes(model.graph, {}):
        row = _row(path, node, shapes)
        same = next((r for r in rows if {**r, "count": 1} == row), None)
        if same is None:
            rows.append(row)
        else:
            same["count"] += 1
    if not rows:
        raise ConvSpecError(f"{path} has no node that is {' or '.join(_OPERATORS)}.")
    return [*rows]


def _fix_inputs(
    graph: Any, path: str | Path, batch: int | None, input_shape: tuple[int, ...] | None
) -> None:
    """Give the inputs the sizes that the file leaves open."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    for number, value in enumerate(inputs):
        dims = value.type.tensor_type.shape.dim
        if number == 0 and input_shape is not None:
            if len(dims) != len(input_shape):
                raise ConvSpecError(
                    f"input_shape={input_shape} has {len(input_shape)} numbers, the input "
                    f"{value.name!r} of {path} has {len(dims)} axes; give one for each."
                )
            for dim, size in zip(dims, input_shape, strict=True):
                dim.Clear()
                dim.dim_value = size
        elif dims and not dims[0].dim_value:
            dims[0].Clear()
            dims[0].dim_value = batch or 1


def _nodes(
    graph: Any, outer: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[Any, dict[str, tuple[int, ...]]]]:
    """The convolutions of a graph and of the graphs inside it, with the shapes known there."""
    shapes = dict(outer)
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in _OPERATORS and node.domain in ("", "ai.onnx"):
            yield node, shapes
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _nodes(inner, shapes)


def _row(path: str | Path, node: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    x, w = (shapes.get(name, ()) for name in node.input[:2])
    if len(x) < 3 or len(w) != len(x) or 0 in x or 0 in w:
        gives = f"{node.op_type} that gives {node.output[0]!r}"
        told = f"node {node.name!r}" if node.name else gives
        raise ConvSpecError(
            f"{path}: the {told} reads {_told(x)} and "
            f"{_told(w)}, whose sizes the file leaves open; say the shape of the model's input "
            "(--input-shape 1,3,224,224)."
        )
    import onnx

    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    kernel, ndim = w[2:], len(w) - 2
    row: dict[str, Any] = {
        "x": list(x), "w": list(w), "stride": list(given.get("strides", (1,) * ndim)),
        "dilation": list(given.get("dilations", (1,) * ndim)), "groups": given.get("group", 1),
        "bias": len(node.input) > 2 and bool(node.input[2]), "count": 1,
    }  # fmt: skip
    pads = given.get("pads", (0,) * 2 * ndim)
    row["padding"] = [[lo, hi] for lo, hi in zip(pads[:ndim], pads[ndim:], strict=True)]
    auto = given.get("auto_pad", b"NOTSET").decode()
    axes = list(zip(x[2:], kernel, row["stride"], row["dilation"], strict=True))
    if node.op_type == "ConvTranspose":
        row |= {
            "transposed": True,
            "output_padding": list(given.get("output_padding", (0,) * ndim)),
        }
        wanted = given.get("output_shape")
        if wanted is None and auto in _SAME:
            wanted = [n * s for n, _, s, _ in axes]
        if wanted is not None:
            row |= _reaching(wanted[-ndim:], axes, row["output_padding"], auto == "SAME_UPPER")
    elif auto in _SAME:
        row["padding"] = [
            list(same_padding(n, k, s, d, lower=auto == "SAME_LOWER")) for n, k, s, d in axes
        ]
    return row


def _reaching(
    wanted: Sequence[int], axes: Sequence[tuple[int, ...]], extra: Sequence[int], upper: bool
) -> dict[str, Any]:
    """Padding and output_padding with which a transposed result has the sizes wanted.

    ONNX computes the padding from the size; the odd sample of SAME_UPPER is at the end, otherwise
    at the start.  What is still missing is output_padding.
    """
    padding, more = [], []
    for size, (n, k, s, d), e in zip(wanted, axes, extra, strict=True):
        total = transposed_size(n, k, s, 0, 0, d, e) - size
        half, odd = divmod(max(total, 0), 2)
        padding.append([half, half + odd] if upper else [half + odd, half])
        more.append(e + max(-total, 0))
    return {"padding": padding, "output_padding": more}


def _told(shape: tuple[int, ...]) -> str:
    return f"({', '.join(str(n or '?') for n in shape)})" if shape else "an array of unknown shape"
