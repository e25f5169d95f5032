"""The GPU backends on a real GPU, where there is one: ``pytest -m gpu``.

Without one a single test for each backend is skipped, with what its probe says.
"""

from __future__ import annotations

import pytest
from edges import CUPY_EDGES, DIVIDED_GEMM, EDGES, IMPLICIT_GEMM, LARGE_IMPLICIT_GEMM

from convjit import registry
from convjit.spec import ConvSpec
from convjit.testing.cases import Case
from convjit.testing.check import check
from convjit.testing.requirements import Requirements as Base

pytestmark = pytest.mark.gpu


def answers() -> dict[str, str | None]:
    """convjit's own backends for GPUs, and why each cannot work here (None: it can)."""
    ours = [name for name in registry.names() if registry.is_builtin(name)]
    return {
        name: registry.probe_answer(name)
        for name in ours
        if registry.without_device(name).device == "cuda"
    }


ANSWERS = answers()
WORKING = tuple(name for name, answer in ANSWERS.items() if answer is None)

if WORKING:
    from convjit.testing.suite import *  # noqa: F403


class Requirements(Base):
    """The whole suite, every case, on each backend that works."""

    backend = WORKING
    must_take = ("*_f32_*", "*_f64_*", "*_f16_*", "*_bf16_*", "*_c64_*", "*_c128_*", "*_[iu]8_*")


@pytest.mark.parametrize("name", ANSWERS)
def test_a_gpu_is_here(name: str) -> None:
    if ANSWERS[name] is not None:
        pytest.skip(f"{name}: {ANSWERS[name]}")
    assert registry.get(name).target().device == "cuda"


GEMM_EDGES = [
    ("implicit_gemm", text) for text in (*IMPLICIT_GEMM, *LARGE_IMPLICIT_GEMM, *DIVIDED_GEMM)
]
EVERY_EDGE = [
    (name, *edge)
    for name, edges in (("numba_cuda", EDGES), ("cupy", CUPY_EDGES + GEMM_EDGES))
    for edge in edges
    if name in WORKING
]


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize(("name", "solver", "text"), EVERY_EDGE)
def test_tiles_are_cut_at_their_edges(name: str, solver: str, text: str, dtype: str) -> None:
    case = Case("edge", ConvSpec.parse(f"conv_{dtype}_{text}"))
    choice = {"precision": "fast"}
    outcome = check(case, name, algorithm=f"{name}.{solver}", choice=choice)
    assert outcome.passed, str(outcome)
