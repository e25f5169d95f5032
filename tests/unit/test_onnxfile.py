"""The convolutions of ONNX files, held to what ONNX's own shape inference says of their results."""

from __future__ import annotations

import sys

import pytest

from convjit import warmup
from convjit.bench import cases, onnxfile
from convjit.errors import ConvSpecError

onnx = pytest.importorskip("onnx")


def write(path, nodes, weights, x=(1, 4, 9, 8)):
    """A model whose nodes read "x" and "w0", "w1", ... one after the other."""
    from onnx import TensorProto, helper

    tensors = [
        helper.make_tensor(f"w{n}", TensorProto.FLOAT, shape, [0.0] * _size(shape))
        for n, shape in enumerate(weights)
    ]
    made, name = [], "x"
    for n, (operator, attributes) in enumerate(nodes):
        inputs = [name] if operator == "Relu" else [name, f"w{n}"]
        name = f"y{n}"
        made.append(helper.make_node(operator, inputs, [name], name=f"node{n}", **attributes))
    graph = helper.make_graph(
        made, "graph", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)], tensors,
    )  # fmt: skip
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), str(path))
    return path


def _size(shape):
    size = 1
    for n in shape:
        size *= n
    return size


def result_size(path):
    """Spatial size of the last result, as ONNX infers it."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    return tuple(d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim)[2:]


CASES = {
    "plain": ("Conv", (6, 4, 3, 2), {}),
    "pads": ("Conv", (6, 4, 3, 2), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    "dilated": ("Conv", (6, 4, 3, 3), {"dilations": [2, 1], "pads": [2, 1, 2, 1]}),
    "grouped": ("Conv", (8, 2, 3, 3), {"group": 2}),
    "same upper": ("Conv", (6, 4, 2, 5), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    "same lower": ("Conv", (6, 4, 2, 5), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    "valid": ("Conv", (6, 4, 3, 3), {"auto_pad": "VALID"}),
    "transposed": ("ConvTranspose", (4, 6, 3, 3), {"strides": [2, 2], "pads": [1, 0, 1, 0]}),
    "longer": ("ConvTranspose", (4, 6, 3, 3), {"strides": [2, 3], "output_padding": [1, 2]}),
    "transposed groups": ("ConvTranspose", (4, 3, 2, 2), {"strides": [2, 2], "group": 2}),
    "shaped": ("ConvTranspose", (4, 6, 3, 3), {"strides": [2, 2], "output_shape": [18, 15]}),
    "stretched": ("ConvTranspose", (4, 6, 3, 3), {"strides": [2, 2], "output_shape": [20, 18]}),
    "transposed same": (
        "ConvTranspose", (4, 6, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("operator", "weights", "attributes"), CASES.values(), ids=CASES)
def test_a_node_is_the_problem_with_its_result(operator, weights, attributes, tmp_path):
    path = write(tmp_path / "model.onnx", [(operator, attributes)], [weights])
    (row,) = onnxfile.read(path)
    spec = cases.layer_spec(row)
    batch, _, *size = spec.result_shape
    assert batch == 1
    assert tuple(size) == result_size(path)
    assert spec.lhs_shape == (1, 4, 9, 8)
    assert spec.w_shape == weights


def test_odd_padding_is_where_onnx_has_it(tmp_path):
    found = {}
    for name in ("same upper", "same lower"):
        path = write(tmp_path / "model.onnx", [CASES[name][::2]], [CASES[name][1]])
        (row,) = onnxfile.read(path)
        found[name] = row["padding"]
    assert found["same upper"] == [[0, 1], [1, 2]]
    assert found["same lower"] == [[1, 0], [2, 1]]


def test_equal_nodes_are_counted_and_others_left_out(tmp_path):
    same = ("Conv", {"pads": [1, 1, 1, 1]})
    path = write(tmp_path / "m.onnx", [same, ("Relu", {}), same], [(4, 4, 3, 3)] * 3)
    (row,) = onnxfile.read(path)
    assert row["count"] == 2
    assert cases.read_networks(path) == {"m": [row]}
    assert warmup.specs([str(path)], batch=2) == ["conv_f32_NCHW_n2c4k4g1_i9x8_w3x3_p1x1"]


def test_sizes_that_a_file_leaves_open(tmp_path):
    path = write(tmp_path / "m.onnx", [("Conv", {})], [(6, 4, 3, 3)], x=("N", 4, "H", "W"))
    with pytest.raises(ConvSpecError, match=r"'node0' reads \(1, 4, \?, \?\) and .*--input-shape"):
        onnxfile.read(path)
    (row,) = onnxfile.read(path, input_shape=(2, 4, 7, 5))
    assert row["x"] == [2, 4, 7, 5]
    with pytest.raises(ConvSpecError, match=r"has 3 numbers, the input 'x' of .* has 4 axes"):
        onnxfile.read(path, input_shape=(4, 7, 5))
    path = write(tmp_path / "m.onnx", [("Conv", {})], [(6, 4, 3, 3)], x=("N", 4, 7, 5))
    assert onnxfile.read(path, batch=3)[0]["x"] == [3, 4, 7, 5]


def test_what_is_no_model(tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(ConvSpecError, match=r"m.onnx is not an ONNX model that can be read"):
        onnxfile.read(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ConvSpecError, match=r"m.onnx is not an ONNX model that can be read"):
        onnxfile.read(path)
    write(path, [("Relu", {})], [])
    with pytest.raises(ConvSpecError, match="has no node that is Conv or ConvTranspose"):
        onnxfile.read(path)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConvSpecError, match=r"pip install convjit\[onnx\]"):
        onnxfile.read(tmp_path / "m.onnx")
