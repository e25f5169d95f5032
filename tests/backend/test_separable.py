"""The separable layer: in one pass and in two, alike in results, arguments and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import convjit
from convjit import dispatch, separable
from convjit.algorithms.error import error_bound
from convjit.algorithms.oracle import magnitudes, oracle
from convjit.spec import ConvSpec
from convjit_numba import NumbaBackend, problem
from convjit_numba.problem import Problem
from convjit_numba.separable import SeparableLayer, blocking

BACKEND = NumbaBackend()
LAYER = SeparableLayer()


def data(*shape, dtype="float32", seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def pair(text: str, mixed: int, activation=None) -> tuple[ConvSpec, ConvSpec]:
    """A depthwise spec, and the pointwise one after it with ``mixed`` channels."""
    depth = ConvSpec.parse(text)
    ones = (1,) * len(depth.kernel_size)
    point = ConvSpec.forward(
        depth.y_shape, (mixed, depth.out_channels, *ones), layout=depth.layout, dtype=depth.dtype,
        bias=depth.bias, activation=activation,
    )  # fmt: skip
    return depth, point


@pytest.mark.parametrize(
    ("text", "mixed", "activation"),
    [
        ("conv_f32_NHWC_n2c17k17g17_i9x11_w3x3_p1_bias_act=relu", 5, ("clip", -1.0, 1.0)),
        ("conv_f32_NHWC_n1c40k40g40_i14x14_w3x3_s2_p1", 64, None),
        ("conv_f32_NHWC_n2c5k15g5_i9x11_w3x3_s2_p1_bias_act=leaky_relu,0.25", 70, ("relu",)),
        ("conv_f32_NHWC_n1c16k16g16_i12x9_w5x5_p9_d3", 33, None),
        ("conv_f64_NHWC_n1c3k27g3_i9x40_w5x5_p2_bias", 33, None),
        ("conv_f64_NLC_n2c1k1g1_i300_w1", 3, ("relu",)),
        ("conv_f32_NLC_n1c33k33g33_i2000_w9_p4_bias", 16, None),
        ("conv_f32_NDHWC_n1c18k18g18_i5x6x7_w3x3x3_p1_bias", 100, None),
    ],
)
def test_one_pass_matches_the_oracle_and_stays_inside(text, mixed, activation) -> None:
    depth, point = pair(text, mixed, activation)
    target = BACKEND.target()
    assert LAYER.refuse(depth, point, target) is None
    executable = LAYER.plan(depth, point, target, ())
    assert LAYER.estimate(depth, point, target).workspace == executable.workspace
    x, w, v = (data(*s, dtype=depth.dtype) for s in (depth.x_shape, depth.w_shape, point.w_shape))
    depth_bias, bias = None, None
    if depth.bias:
        depth_bias = data(depth.out_channels, dtype=depth.dtype)
        bias = data(mixed, dtype=depth.dtype)
    memory = np.full(int(np.prod(point.y_shape)) + 512, 7.25, depth.dtype)
    out = memory[256:-256].reshape(point.y_shape)
    workspace = np.empty(executable.workspace + 64, np.uint8)
    workspace = workspace[-workspace.ctypes.data % 64 :][: executable.workspace]
    packed = executable.pack_depth(w), executable.pack_point(v)
    executable.run(x, packed[0], depth_bias, packed[1], bias, out, workspace)
    assert (memory[:256] == 7.25).all()
    assert (memory[-256:] == 7.25).all()
    # What both convolutions may err, the first one's error through the second's weights.
    middle = oracle(depth, x, w, depth_bias)
    numerics = LAYER.estimate(depth, point, target).numerics
    first = error_bound(depth, numerics) * float(np.max(magnitudes(depth, x, w, depth_bias)))
    share = float(np.abs(v).sum(axis=1).max())
    middle = middle.astype(depth.dtype)
    allowed = error_bound(point, numerics) * float(np.max(magnitudes(point, middle, v, bias)))
    error = np.abs(out - oracle(point, middle, v, bias)).max()
    assert error <= allowed + (first + np.finfo(depth.dtype).eps * np.abs(middle).max()) * share


def test_block_sizes_to_choose_from() -> None:
    depth, point = pair("conv_f32_NHWC_n1c64k64g64_i56x56_w3x3_p1", 128)
    target = BACKEND.target()
    configs = list(LAYER.configs(depth, point, target))
    assert configs[0] == ()
    assert 3 <= len(configs) <= 12
    p, q, isa = Problem.of(depth), Problem.of(point), problem.isa_of(target)
    found = [blocking(p, q, isa, target.cores, config) for config in configs]
    assert len(set(found)) == len(found)
    for config, chosen in zip(configs, found, strict=True):
        sizes = dict(config)
        assert (chosen.tile.mr, chosen.tile.nv) == (sizes.get("mr", chosen.tile.mr),
                                                    sizes.get("nv", chosen.tile.nv))  # fmt: skip
        share = sizes.get("tasks_percent", 100) / 100
        assert "mr" in sizes or 0.7 <= chosen.tasks / (share * found[0].tasks) <= 1.4
    # A remembered share that no division comes near is the default, not an error.
    assert blocking(p, q, isa, target.cores, (("tasks_percent", 1),)) == found[0]


@pytest.mark.parametrize(
    "tiles", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["tasks", "tiles"]
)
def test_block_sizes_change_no_result(tiles: bool) -> None:
    depth, point = pair("conv_f32_NHWC_n2c40k40g40_i14x15_w3x3_p1", 64)
    target = BACKEND.target()
    x, w, v = (data(*s) for s in (depth.x_shape, depth.w_shape, point.w_shape))
    results = []
    for config in LAYER.configs(depth, point, target):
        if not tiles and "mr" in dict(config):
            continue
        executable = LAYER.plan(depth, point, target, config)
        results.append(np.full(point.y_shape, np.nan, np.float32))
        workspace = np.empty(executable.workspace, np.uint8)
        packed = executable.pack_depth(w), executable.pack_point(v)
        executable.run(x, packed[0], None, packed[1], None, results[-1], workspace)
    assert len(results) > 1
    assert all(np.array_equal(result, results[0]) for result in results)


def found(monkeypatch) -> list:
    """What the calls from here on find to run in one pass."""
    layers: list = []
    find = separable.find

    def spy(*arguments):
        layers.append(find(*arguments))
        return layers[-1]

    monkeypatch.setattr(separable, "find", spy)
    return layers


X, DEPTH, POINT = data(2, 30, 33, 40), data(40, 1, 3, 3), data(24, 40)
DEPTH_BIAS, BIAS = data(40), data(24)
OPTIONS = {"stride": 2, "padding": 1, "layout": "NHWC"}


def halves(x=X, **options):
    middle = convjit.conv(x, DEPTH, DEPTH_BIAS, groups=40, activation="relu", **OPTIONS, **options)
    return convjit.conv(
        middle, POINT[:, :, None, None], BIAS, activation=("clip", -1.0, 1.0), layout="NHWC",
        **options,
    )  # fmt: skip


def whole(x=X, depth=DEPTH, point=POINT, **options):
    arguments = {
        "depth_bias": DEPTH_BIAS, "depth_activation": "relu", "activation": ("clip", -1.0, 1.0),
        **OPTIONS, **options,
    }  # fmt: skip
    return convjit.depthwise_separable(x, depth, point, BIAS, **arguments)


def test_a_call_runs_in_one_pass(monkeypatch) -> None:
    layers = found(monkeypatch)
    expected = halves()
    np.testing.assert_allclose(whole(), expected, atol=1e-5)
    out = np.empty_like(expected)
    kept = convjit.weights(DEPTH), convjit.weights(POINT[:, :, None, None])
    assert whole(depth=kept[0], point=kept[1], out=out) is out
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(whole(X[0]), expected[0], atol=1e-5)
    assert all(layer is not None for layer in layers)
    with convjit.profile() as profile:
        whole()
    assert profile.records[0].solver == "numba.separable"


def test_what_one_pass_does_not_take_runs_in_two(monkeypatch) -> None:
    layers = found(monkeypatch)
    expected = halves()
    strided = np.repeat(X, 2, axis=1)[:, ::2]
    for result in (
        whole(strided),
        whole(X.astype("float64")),
        whole(algorithm="direct"),
        whole(out=np.empty((*expected.shape[:-1], 48), "float32")[..., ::2]),
        whole(depth_bias=DEPTH_BIAS.astype("float64")),
    ):
        np.testing.assert_allclose(result, expected, atol=1e-5)
    first = np.moveaxis(X, -1, 1).copy()
    result = whole(first, layout="NCHW")
    np.testing.assert_allclose(np.moveaxis(result, 1, -1), expected, atol=1e-5)
    assert layers == [None] * 6


def test_out_may_be_the_data(monkeypatch) -> None:
    layers = found(monkeypatch)
    x, point = data(1, 8, 8, 40), data(40, 40)
    expected = convjit.depthwise_separable(x, DEPTH, point, padding=1, layout="NHWC")
    result = convjit.depthwise_separable(x, DEPTH, point, padding=1, layout="NHWC", out=x)
    assert result is x
    np.testing.assert_allclose(x, expected, atol=1e-5)
    assert layers[1] is None


def test_errors_are_those_of_the_halves() -> None:
    whole()
    with pytest.raises(convjit.ConvSpecError, match=r"bias has shape \(3,\), it must be \(24,\)"):
        convjit.depthwise_separable(X, DEPTH, POINT, data(3), **OPTIONS)
    with pytest.raises(convjit.ConvSpecError, match="out is"):
        whole(out=np.empty((2, 3), "float32"))
    with pytest.raises((convjit.ConvSpecError, TypeError), match="stride"):
        whole(stride=2.5)
    with pytest.raises(convjit.ConfigError, match="backend='nowhere' is not known"):
        whole(backend="nowhere")


def test_a_failing_pass_is_replaced_by_the_halves(monkeypatch) -> None:
    whole()

    def fail(*arguments):
        raise RuntimeError("no power")

    monkeypatch.setattr("convjit_numba.separable.SeparableExecutable.run", fail)
    try:
        with pytest.warns(convjit.ConvjitWarning, match="no power"):
            result = whole()
        assert dispatch.has_failed("numba.separable")
        np.testing.assert_allclose(result, halves(), atol=1e-5)
        np.testing.assert_allclose(whole(), halves(), atol=1e-5)
    finally:
        dispatch.forget_failures()


# -------------------------------------------------------------------- explaining


def explained(**changes: Any) -> Any:
    # The two calls of one backend: which backend is best for a half depends on the machine.
    given = {"layout": "NHWC", "padding": 1, "packed": True, "backend": "numba", **changes}
    return convjit.explain_separable((1, 28, 28, 64), (64, 1, 3, 3), (128, 64), **given)


def test_what_is_explained_is_what_runs() -> None:
    made = explained()
    assert made.runs == "one pass"
    assert made.offer.solver == "numba.separable"
    assert made.offer.seconds < made.offer.halves_seconds
    assert "numba.separable runs" in str(made)
    assert "one pass" in str(made)
    assert [way["way"] for way in made.as_dict()["ways"]] == ["one pass", "two calls"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"algorithm": "gemm"}, "algorithm='gemm' is of the two calls"),
        ({"backend": "scipy"}, "the backend scipy has no such pass"),
        ({"workspace_limit": 10_000}, "workspace_limit is"),
        ({"pad_mode": "reflect"}, "reflect"),
    ],
)
def test_why_there_is_no_single_pass_is_told(changes: dict[str, Any], told: str) -> None:
    made = explained(**changes)
    assert made.runs == "two calls"
    assert told in made.offer.refusal
    assert f"two calls run; no single pass: {made.offer.refusal}" in str(made)


def test_both_ways_are_measured() -> None:
    made = convjit.explain_separable(
        (1, 8, 8, 16), (16, 1, 3, 3), (16, 16), True, depth_bias=True, layout="NHWC", padding=1
    ).compare(seconds=0.0)
    assert set(made.measured) == {way for way, *_ in made._ways()}
    assert "measured ms" in str(made)


def test_an_unknown_argument_is_told() -> None:
    with pytest.raises(TypeError, match="explain_separable does not take 'groups'"):
        explained(groups=64)
