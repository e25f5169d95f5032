"""The tensor-core kernel: edges of its tiles in checked mode, what it takes and refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import edges
import numpy as np
import pytest
import standin_cupy
from emulated_cupy import EmulatedCupy, missing, registered

import convjit
from convjit.spec import ConvSpec
from convjit.spi import Feature
from convjit.testing.cases import Case
from convjit.testing.check import check
from convjit_cupy import tensor_core
from convjit_cupy.tensor_core import TensorCoreSolver

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

BACKEND = EmulatedCupy("cupy_tensor_core")
SOLVER = f"{BACKEND.name}.tensor_core"


@pytest.fixture(autouse=True)
def backend() -> Iterator[None]:
    with registered(BACKEND):
        yield


@pytest.fixture
def in_checked_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standin_cupy.RawModule, "checked", True)


def verify(text: str) -> None:
    case = Case("edge", ConvSpec.parse(f"conv_{text}"))
    outcome = check(case, BACKEND.name, algorithm=SOLVER, choice={"precision": "fast"})
    assert outcome.passed, str(outcome)


def parameters() -> list[Any]:
    """Both tiles of outputs for one dtype in the quick tier; every dtype in the other."""
    found = []
    for text in edges.TENSOR_CORE:
        for dtype in ("f16", "bf16", "f32"):
            quick = dtype == "f16" and text in edges.TENSOR_CORE_QUICK
            marks = [] if quick else [pytest.mark.slow]
            if not quick and len(found) % 3:  # of what is left, a third
                marks.append(pytest.mark.exhaustive)
            found.append(pytest.param(f"{dtype}_{text}", marks=marks, id=f"{dtype}_{text}"))
    return found


# In checked mode, whose kernels are those that the gates count.
@pytest.mark.parametrize("text", parameters())
def test_edges(text: str, in_checked_mode: None) -> None:
    verify(text)


@pytest.mark.slow
@pytest.mark.parametrize("text", edges.TENSOR_CORE_LARGE)
def test_edges_of_large_tiles(
    text: str, monkeypatch: pytest.MonkeyPatch, in_checked_mode: None
) -> None:
    monkeypatch.setattr(tensor_core, "TILES", {128: (128,), 64: (256,)})
    verify(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(t, marks=[pytest.mark.slow] * bool(i))
        for i, t in enumerate(edges.TENSOR_CORE_DIVIDED)
    ],
)
def test_depths_are_divided(text: str, in_checked_mode: None) -> None:
    verify(text)
    names, grids, _ = zip(*standin_cupy.RawModule.launches[-2:], strict=True)
    assert names == ("tensor_core", "sum_parts")
    s = tensor_core.sizes(ConvSpec.parse(f"conv_{text}"))
    (blocks,) = grids[0]
    assert blocks >= 2 * s.blocks(min(tensor_core.TILES[s.columns]))


def test_depths_are_not_divided_without_room_for_the_parts() -> None:
    text = edges.TENSOR_CORE_DIVIDED[0]
    case = Case("divided", ConvSpec.parse(f"conv_{text}"))
    outcome = check(case, BACKEND.name, algorithm=SOLVER, choice={"workspace_limit": 0})
    assert outcome.passed, str(outcome)
    assert standin_cupy.RawModule.launches[-1][0] == "tensor_core"


def test_weights_are_rounded_to_tf32() -> None:
    ulp = 2.0**-10  # of TF32 numbers from 1 to 2
    given = [1, 1 + 0.4 * ulp, 1 + 0.5 * ulp, -1 - 1.6 * ulp, 2 - 0.5 * ulp]
    given += [np.inf, -np.inf, np.nan]
    w = np.zeros((8, 8, 1, 1), np.float32)
    w[:, 0, 0, 0] = given
    choice = {"backend": BACKEND.name, "algorithm": SOLVER, "layout": "NHWC", "precision": "fast"}
    x = np.eye(1, 8, dtype=np.float32).reshape(1, 1, 1, 8)
    y = convjit.conv(standin_cupy.asarray(x), standin_cupy.asarray(w), **choice)
    rounded = [1, 1, 1 + ulp, -1 - 2 * ulp, 2, np.inf, -np.inf, np.nan]
    np.testing.assert_array_equal(y.get().reshape(-1), np.array(rounded, np.float32))


def test_another_librarys_arrays_begin_anywhere(in_checked_mode: None) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 5, 4, 16)).astype(np.float16)
    w = rng.standard_normal((64, 16, 1, 1)).astype(np.float16)
    memory, result = (standin_cupy.empty(n, np.float16) for n in (1 + x.size, 3 + 20 * 64))
    shifted, out = memory[1:].reshape(x.shape), result[3:].reshape(1, 5, 4, 64)
    shifted[...] = standin_cupy.asarray(x)
    choice = {"backend": BACKEND.name, "algorithm": SOLVER, "layout": "NHWC"}
    told = convjit.conv(shifted, standin_cupy.asarray(w), out=out, **choice)
    assert told is out
    expected = convjit.conv(standin_cupy.asarray(x), standin_cupy.asarray(w), **choice)
    np.testing.assert_array_equal(out.get(), expected.get())


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("conv_f64_NHWC_n1c16k64g1_i8x8_w3x3", Feature.DTYPE),
        ("conv_f16_NCHW_n1c16k64g1_i8x8_w3x3", Feature.LAYOUT),
        ("conv_f16_NHWC_n1c64k64g64_i8x8_w3x3", Feature.SIZE),  # a channel of a group
        ("conv_f16_NLC_n1c16k64g1_i80_w63_p31", Feature.SIZE),  # more taps than bits
        # One more than the kernel's int: a sample of the last tap, positions, channels.
        (f"conv_f16_NLC_n1c8k16g1_i{2**28 + 1}_w2_d{2**28}", Feature.SIZE),
        (f"conv_f16_NLC_n{2**31}c8k16g1_i1_w1", Feature.SIZE),
        (f"conv_f16_NLC_n1c{2**31}k16g1_i1_w1", Feature.SIZE),
        ("conv_f16_NHWC_n70000c8k64g1_i256x256_w1x1", Feature.SIZE),
    ],
)
def test_refuses_with_the_feature_to_lower(text: str, feature: Feature) -> None:
    solver = TensorCoreSolver("cupy", standin_cupy)
    refusal = solver.refuse(ConvSpec.parse(text), BACKEND.target())
    assert refusal is not None
    assert refusal.feature is feature


def test_what_it_takes_that_is_near_to_a_refusal() -> None:
    solver = TensorCoreSolver("cupy", standin_cupy)
    for text in (
        "conv_f16_NLC_n1c16k64g1_i80_w62_p31",
        "conv_f16_NLC_n1c16k64g1_i80_w71",  # no taps lie outside
        "conv_f16_NHWC_n40c4096k64g1_i256x256_w1x1",  # 2**33 elements
        "conv_f16_NHWC_n1c32768k64g1_i256x256_w1x1",  # 2**31 of one image
        f"conv_f16_NLC_n1c8k16g1_i{2**28}_w2_d{2**28 - 1}",
        f"conv_f16_NLC_n{2**31 - 1}c8k16g1_i1_w1",
        f"conv_f16_NLC_n1c{2**31 - 8}k16g1_i1_w1",
    ):
        assert solver.refuse(ConvSpec.parse(text), BACKEND.target()) is None, text


def test_older_gpus_and_precision() -> None:
    spec = ConvSpec.parse("conv_f16_NHWC_n1c16k64g1_i8x8_w3x3")
    turing = replace(BACKEND.target(), features={"sm": "75"})
    refusal = TensorCoreSolver("cupy", standin_cupy).refuse(spec, turing)
    assert refusal is not None
    assert refusal.feature is Feature.TARGET
    x, w = standin_cupy.zeros((1, 8, 8, 16), "f4"), standin_cupy.zeros((64, 16, 1, 1), "f4")
    with pytest.raises(convjit.UnsupportedError, match="takes precision='fast'"):
        convjit.conv(x, w, layout="NHWC", backend=BACKEND.name, algorithm=SOLVER)
