"""Policies are hard filters: what they promise holds for whatever is chosen, not for one kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import convjit
from convjit import calibration, calls, dispatch, registry
from convjit.arguments import Request
from convjit.bench import heldout
from convjit.explanation import Explanation, explain_problem, plan_of, random_operands
from convjit.lowering import lower
from convjit.precision import Policy
from convjit.spec import ConvSpec
from convjit.spi import Refusal
from convjit.store import Store

TRIALS = list(heldout.trials(0, 3))
THREADS = (1, 2, 3, 8)
DETERMINISTIC = Request(policy=Policy(deterministic=True))


def choice(spec: ConvSpec, request: Request) -> dispatch.Candidate:
    first = dispatch.candidates(spec, request)[0]
    assert first.refusal is None, (str(spec), first.refusal)
    return first


# -------------------------------------------------------------------- deterministic


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.title)
def test_the_deterministic_choice_is_the_same_for_any_number_of_threads(
    trial: heldout.Trial,
) -> None:
    nonfinite = "local" if trial.plain else "spread"
    policy = Policy(deterministic=True, nonfinite=nonfinite)
    found = set()
    for threads in THREADS:
        with convjit.use(num_threads=threads):
            request = Request(policy=policy, packed=trial.packed)
            found.add(choice(trial.problem, request).label)
    assert len(found) == 1


def test_nor_does_a_calibration_change_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With absurd figures the usual choice is another, the deterministic one is not."""
    spec = ConvSpec.parse("conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1x1")
    usual, kept = choice(spec, Request()), choice(spec, DETERMINISTIC)
    store = Store(str(tmp_path / "calibration.json"), 1)
    monkeypatch.setattr(calibration, "STORE", store)
    for name in ("numba", "scipy"):
        target = registry.get(name).target()
        slow = {key: 1.0 for key in target.rates if f".{usual.algorithm}." in key}
        store.update({calibration._key(name, target.fingerprint): {"rates": slow}})
    assert choice(spec, Request()).algorithm != usual.algorithm
    assert choice(spec, DETERMINISTIC).label == kept.label


# Every family of kernels, and enough work for several threads to be woken.
COMPUTED = [
    "conv_f32_NCHW_n2c32k48g1_i40x40_w3x3_p1x1_bias",
    "conv_f32_NHWC_n1c48k64g1_i40x40_w1x1",
    "conv_f32_NCHW_n1c96k96g96_i50x50_w3x3_p1x1",
    "conv_f32_NCHW_n1c1k1g1_i300x300_w9x9_p4x4",
    "conv_f64_NCL_n1c1k1g1_i30000_w900_p899_flip",
    "convt_f32_NCHW_n1c32k16g1_i50x50_w4x4_s2x2_p1x1",
    "wgrad_f32_NCHW_n4c24k32g1_i40x40_w3x3_p1x1",
    "igrad_f32_NCHW_n1c32k32g1_i40x40_w3x3_p1x1",
]


@pytest.mark.parametrize("text", COMPUTED)
def test_deterministic_results_are_equal_bit_by_bit(text: str) -> None:
    """The chosen candidate and the next: on 1, 2 and 3 threads, and again."""
    explained = explained_as(text, deterministic=True)
    for candidate in explained.admitted[:2]:
        results = []
        for threads in (1, 2, 3, 2):
            with convjit.use(num_threads=threads):
                plan = plan_of(explained.problem, explained.request, candidate)
                lhs, rhs, bias = random_operands(explained.problem)
                results.append(plan(lhs, plan.pack(rhs), bias))
        assert all(np.array_equal(r, results[0]) for r in results), candidate.label


def explained_as(text: str, **policy: Any) -> Explanation:
    shapes, options = calls.described(ConvSpec.parse(text))
    options.update(nonfinite="spread", **policy)
    bias, direction, dtype = (options.pop(name) for name in ("bias", "direction", "dtype"))
    problem, request, _ = calls.problem_and_request(*shapes, bias, direction, dtype, True, options)
    return explain_problem(problem, request)


# -------------------------------------------------------------------- all of them


POLICIES: dict[str, Policy] = {
    "precision": Policy(precision="exact"),
    "nonfinite": Policy(nonfinite="local"),
    "deterministic": Policy(deterministic=True),
    "workspace_limit": Policy(workspace_limit=0),
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_a_filter_with_a_reason(name: str) -> None:
    """Whatever it admits fulfils it, whatever it refuses does not and is told so in a sentence."""
    policy, refusals = POLICIES[name], 0
    for trial in TRIALS:
        spec = trial.problem
        free = {c.label: c for c in dispatch.candidates(spec, Request(policy=Policy("fast")))}
        for candidate in dispatch.candidates(spec, Request(policy=policy)):
            if candidate.refusal is None:
                assert candidate.work is not None
                assert fulfils(name, candidate), (trial.spec, candidate.label)
            elif candidate.label in free and free[candidate.label].refusal is None:
                refusals += 1
                assert name in str(candidate.refusal) or "precision" in str(candidate.refusal)
                if name != "precision" and "precision" not in str(candidate.refusal):
                    assert not fulfils(name, candidate), (trial.spec, candidate.label)
    assert refusals > 20 or name == "nonfinite"  # which a finite check nearly always serves


def fulfils(name: str, candidate: dispatch.Candidate) -> bool:
    assert candidate.work is not None
    numerics = candidate.work.numerics
    return {
        "precision": numerics.is_summation,
        "nonfinite": not numerics.spreads_nonfinite,
        "deterministic": numerics.deterministic,
        "workspace_limit": candidate.workspace == 0,
    }[name]


def test_a_workspace_limit_holds_for_what_runs() -> None:
    """What a plan allocates, lowerings and the finite check's fallback included."""
    spec = ConvSpec.parse("conv_f32_NCHW_n1c1k1g1_i200x200_w31x31")
    for limit in (0, 1 << 12, 1 << 16, 1 << 20):
        policy = Policy(workspace_limit=limit, nonfinite="local")
        admitted = [
            c for c in dispatch.candidates(spec, replace(Request(), policy=policy)) if not c.refusal
        ]
        for candidate in admitted:
            assert candidate.workspace <= limit
        if admitted:
            x, w = np.ones((200, 200), np.float32), np.ones((31, 31), np.float32)
            plan = convjit.plan(x, w, workspace_limit=limit)
            assert plan.workspace <= limit


@pytest.mark.parametrize(
    ("algorithm", "text"),
    [
        ("scipy.gemm", "conv_f32_NCHW_n2c8k8g1_i64x60_w3x3_p1"),
        ("scipy.gemm", "wgrad_f64_NCHW_n2c8k8g1_i64x60_w3x3_p1"),
        ("scipy.fft", "conv_f32_NCHW_n2c8k8g1_i64x60_w5x5_p2"),
        ("scipy.winograd.f4x3", "conv_f32_NCHW_n2c8k8g1_i64x60_w3x3_p1"),
        ("scipy.gemm", "conv_f32_NCHW_n2c8k8g1_i64x60_w3x3_p1x1_reflect"),
    ],
)
def test_blocks_shrink_to_the_workspace_that_is_allowed(algorithm: str, text: str) -> None:
    """A plan says what it needs, and computes the same with less."""
    spec = ConvSpec.parse(text)
    rng = np.random.default_rng(0)
    lhs, rhs = (rng.standard_normal(s).astype(spec.dtype) for s in (spec.lhs_shape, spec.rhs_shape))

    def of(limit: int | None) -> dispatch.Candidate:
        policy = Policy(workspace_limit=limit, precision="fast", nonfinite="spread")
        asked = replace(Request(), backend="scipy", algorithm=algorithm, policy=policy)
        return dispatch.candidates(spec, asked)[0]

    free = of(None)
    assert free.refusal is None
    allowed = of(free.workspace - 1)
    assert allowed.refusal is None, allowed.refusal
    assert allowed.workspace < free.workspace
    assert of(0).refusal is not None
    results = []
    for candidate in (free, allowed):
        backend = registry.get("scipy")
        (solver,) = (s for s in backend.solvers() if s.id == algorithm)
        lowered = lower(solver, spec, backend.target())
        assert not isinstance(lowered, Refusal)
        config = candidate.config or next(iter(solver.configs(lowered.spec, backend.target())))
        executable = lowered.plan(backend.target(), config)
        assert executable.workspace == candidate.workspace
        out = np.empty(spec.result_shape, spec.dtype)
        workspace = np.empty(executable.workspace, np.uint8)
        executable.run(lhs, executable.pack(rhs), None, out, workspace)
        results.append(out)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-3, atol=1e-3)
