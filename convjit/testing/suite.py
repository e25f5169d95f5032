"""The conformance suite: what every backend must do, ours and strangers'.

A backend's whole test file is::

    from convjit.testing.requirements import Requirements as Base
    from convjit.testing.suite import *

    class Requirements(Base):
        backend = "example"

Problems go through the public calls, forced on the backend (``test_case``, ``test_solver``,
``test_random``), and, for each solver, through the protocol itself, with guarded memory.  What is
refused is a skip that prints the refusal; what is wrong fails.  Without a ``Requirements`` class
the backend comes from ``--convjit-backend NAME``::

    pytest --convjit-backend example --pyargs convjit.testing.suite
"""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from convjit import precision, registry
from convjit.algorithms.oracle import oracle
from convjit.algorithms.policies import policy_refusal
from convjit.dispatch import error_bound
from convjit.errors import BackendError, UnsupportedError
from convjit.lowering import Lowered, copy_of, lower
from convjit.spec import ConvSpec
from convjit.spi import DEFAULT_CONFIG, Array, Backend, Executable, Refusal, Solver
from convjit.testing import strategies
from convjit.testing.cases import QUICK, Case
from convjit.testing.check import (
    call,
    check,
    measured_error,
    poison,
    reference,
    why,
)
from convjit.testing.plugin import chosen
from convjit.testing.requirements import Requirements as _Requirements

__all__ = [
    "convjit_requirements",
    "pytest_generate_tests",
    "test_backend_works",
    "test_case",
    "test_estimate_is_sane",
    "test_nonfinite_stays_local",
    "test_plan_holds_no_data",
    "test_random",
    "test_refuse_is_pure",
    "test_run_keeps_to_its_memory",
    "test_solver",
    "test_solver_ids_are_permanent",
    "test_threads_share_an_executable",
]

GUARD = 64  # bytes on both sides of guarded memory
CANARY = 0xC3
CONFIGS = 3  # configurations of a solver that are tried
# Cases for the tests of the protocol: empty problems never reach a solver.
PROTOCOL = tuple(case for case in QUICK if not case.spec.is_empty)[::5]
WIDEST = precision.Policy(precision="fast", nonfinite="spread")
LARGE = Case("large", ConvSpec.parse("conv_f32_NCHW_n1c32k32g1_i64x64_w3x3_p1"))
NONFINITE = tuple(
    Case("nonfinite", ConvSpec.parse(text))
    for text in (
        "conv_f32_NCHW_n1c2k3g1_i21x18_w3x3_p1",
        "conv_f32_NCHW_n1c1k1g1_i40x37_w11x9_p5x4",
        "conv_f64_NHWC_n1c4k4g2_i14x15_w3x3_s2_d2_p2",
        "convt_f32_NCHW_n1c2k3g1_i17x15_w3x3_s2_p1",
        "conv_f32_NCL_n1c1k1g1_i300_w31",
    )
)


# ------------------------------------------------------------------------ parameters


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise the suite's tests over backends, solvers and cases."""
    wanted = set(metafunc.fixturenames)
    if "convjit_under_test" not in wanted:
        return
    requirements = getattr(metafunc.module, "Requirements", _Requirements)
    names = chosen(metafunc.config) or requirements.backends()
    if "convjit_case" in wanted and "convjit_solver" not in wanted:
        rows = [(n, c) for n in names for c in _cases_of(metafunc.function, requirements)]
        metafunc.parametrize(
            ("convjit_under_test", "convjit_case"), rows, ids=[f"{n}-{c}" for n, c in rows]
        )
    elif "convjit_solver" in wanted:
        cases = _cases_of(metafunc.function, requirements) if "convjit_case" in wanted else (None,)
        table = [(n, s, c) for n in names for c in cases for s in _solver_ids(n)]
        ids = [f"{s}-{c}" if c is not None else s for _, s, c in table]
        if cases == (None,):
            metafunc.parametrize(
                ("convjit_under_test", "convjit_solver"), [row[:2] for row in table], ids=ids
            )
        else:
            metafunc.parametrize(
                ("convjit_under_test", "convjit_solver", "convjit_case"), table, ids=ids
            )
    else:
        metafunc.parametrize("convjit_under_test", names)


@pytest.fixture
def convjit_requirements(request: pytest.FixtureRequest) -> type[_Requirements]:
    """The ``Requirements`` of the test file."""
    found: type[_Requirements] = getattr(request.module, "Requirements", _Requirements)
    return found


def _cases_of(function: Any, requirements: type[_Requirements]) -> tuple[Case, ...]:
    fixed: dict[str, tuple[Case, ...]] = {
        "test_solver": QUICK,
        "test_nonfinite_stays_local": NONFINITE,
    }
    if function.__name__ == "test_case":
        return requirements.cases()
    allowed = requirements.dtypes
    cases = fixed.get(function.__name__, PROTOCOL)
    return tuple(c for c in cases if not allowed or c.spec.dtype in allowed)


@cache
def _solver_ids(name: str) -> tuple[str, ...]:
    """Ids of a backend's solvers; ``test_backend_works`` says why there are none."""
    try:
        return tuple(solver.id for solver in registry.solvers(_backend(name)))
    except BackendError:
        return ()


def _backend(name: str) -> Backend:
    return registry.get(name)


def _works(name: str) -> Backend:
    """The backend; a skip where its probe says that it cannot work on this machine."""
    answer = registry.probe_answer(name)
    if answer is not None:
        pytest.skip(f"{name}: {answer}")
    return _backend(name)


def _solver(name: str, identity: str) -> tuple[Backend, Solver]:
    backend = _backend(name)
    return backend, next(s for s in registry.solvers(backend) if s.id == identity)


def _reach(name: str, identity: str, spec: ConvSpec) -> tuple[Backend, Lowered]:
    """A solver and the problem it gets for a spec, as dispatch would have it."""
    backend, solver = _solver(name, identity)
    lowered = lower(solver, spec, backend.target())
    if isinstance(lowered, Refusal):
        pytest.skip(f"{identity} refuses: {lowered.reason}")
    bound = error_bound(spec, lowered.spec, lowered.work)
    ruled_out = policy_refusal(spec, lowered.work.numerics, WIDEST, bound=bound)
    if ruled_out is not None:
        pytest.skip(f"{identity}: {ruled_out}")
    return backend, lowered


# ------------------------------------------------------------------------ the operator


def test_backend_works(convjit_under_test: str) -> None:
    """The backend loads, is healthy, and offers solvers; or its probe says why it cannot."""
    backend = _works(convjit_under_test)
    assert registry.solvers(backend), f"{convjit_under_test} offers no solvers"


def test_case(
    convjit_under_test: str, convjit_case: Case, convjit_requirements: type[_Requirements]
) -> None:
    """A named case, through the public calls forced on the backend."""
    if reason := convjit_requirements.reason_to_skip(convjit_case):
        pytest.skip(reason)
    _works(convjit_under_test)
    outcome = check(convjit_case, convjit_under_test)
    if outcome.refusal:
        if convjit_requirements.demands(convjit_case):
            pytest.fail(f"may not be refused: {outcome}")
        pytest.skip(outcome.refusal)
    assert outcome.passed, str(outcome)


def test_solver(convjit_under_test: str, convjit_solver: str, convjit_case: Case) -> None:
    """A quick case, forced on one solver, whatever lowering reaches it."""
    outcome = check(
        convjit_case,
        convjit_under_test,
        algorithm=convjit_solver,
        choice={"precision": WIDEST.precision, "nonfinite": WIDEST.nonfinite},
    )
    if outcome.refusal:
        pytest.skip(outcome.refusal)
    assert outcome.passed, str(outcome)


def test_random(convjit_under_test: str, convjit_requirements: type[_Requirements]) -> None:
    """Random problems: each is computed rightly or refused with a reason."""
    _works(convjit_under_test)
    dtypes = convjit_requirements.dtypes or tuple(precision.SHORT)

    @settings(
        max_examples=convjit_requirements.max_examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(strategies.cases(dtypes))
    def holds(case: Case) -> None:
        outcome = check(case, convjit_under_test)
        assert outcome.refusal or outcome.passed, str(outcome)

    holds()


def test_nonfinite_stays_local(convjit_under_test: str, convjit_case: Case) -> None:
    """Under nonfinite="local" a NaN reaches no output outside its receptive field."""
    _works(convjit_under_test)
    spec = convjit_case.spec
    operands = convjit_case.operands()
    lhs = operands.lhs.copy()
    lhs.reshape(-1)[lhs.size // 3] = np.nan
    marked = operands._replace(lhs=lhs)
    try:
        result = call(convjit_case, marked, backend=convjit_under_test, nonfinite="local")
    except UnsupportedError as error:
        pytest.skip(why(error))
    expected = oracle(spec, marked.lhs, marked.rhs, marked.bias)
    wrong = np.isfinite(expected) & ~np.isfinite(result.reshape(expected.shape))
    assert not wrong.any(), f"{wrong.sum()} outputs outside the receptive field are not finite"
    lost = ~np.isfinite(expected) & np.isfinite(result.reshape(expected.shape))
    assert not lost.any(), f"{lost.sum()} outputs inside the receptive field lost the NaN"


# ------------------------------------------------------------------------ the protocol


def test_solver_ids_are_permanent(convjit_under_test: str) -> None:
    """Asking again gives the same solvers in the same order."""
    backend = _works(convjit_under_test)
    first = [(s.id, s.algorithm) for s in registry.solvers(backend)]
    again = [(s.id, s.algorithm) for s in backend.solvers()]
    assert first == again, f"solvers() gave {first}, then {again}"


def test_refuse_is_pure(convjit_under_test: str, convjit_solver: str, convjit_case: Case) -> None:
    """Asked twice, a solver answers alike; a refusal names a feature and gives a sentence."""
    backend, solver = _solver(convjit_under_test, convjit_solver)
    target = backend.target()
    first, again = (solver.refuse(convjit_case.spec, target) for _ in range(2))
    assert first == again, f"refuse said {first}, then {again}"
    assert first is None or isinstance(first, Refusal), f"refuse returned {first!r}"
    assert first is None or first.reason.strip(), "the refusal gives no reason"


def test_estimate_is_sane(convjit_under_test: str, convjit_solver: str, convjit_case: Case) -> None:
    """Work is finite and not negative, and rounds as the error model can say."""
    backend, lowered = _reach(convjit_under_test, convjit_solver, convjit_case.spec)
    target = backend.target()
    work = lowered.solver.estimate(lowered.spec, target)
    assert work == lowered.solver.estimate(lowered.spec, target), "two estimates differ"
    assert work.phases, "no phases"
    for phase in (*work.phases, *((work.pack,) if work.pack else ())):
        amounts = (phase.flops, *phase.bytes.values())
        assert all(math.isfinite(a) and a >= 0 for a in amounts), f"{phase} has {amounts}"
        assert not phase.flops or not phase.rate or isinstance(phase.rate, str)
        assert 0 < phase.busy <= 1, f"{phase} is busy for {phase.busy} of its time"
    assert work.workspace >= 0, f"workspace of {work.workspace} bytes"
    assert work.packed_bytes >= 0, f"{work.packed_bytes} packed bytes"
    assert work.launches >= 0, f"{work.launches} launches"
    bound = error_bound(convjit_case.spec, lowered.spec, lowered.work)
    assert 0 <= bound < 1, f"error bound {bound}"
    executable = lowered.solver.plan(lowered.spec, target, _configs(lowered, backend)[0])
    assert executable.workspace == work.workspace, (
        f"the plan wants a workspace of {executable.workspace} bytes, "
        f"the estimate said {work.workspace}"
    )


def test_run_keeps_to_its_memory(
    convjit_under_test: str, convjit_solver: str, convjit_case: Case
) -> None:
    """In every configuration: all of ``out`` is written and right, and nothing else is touched."""
    backend, lowered = _reach(convjit_under_test, convjit_solver, convjit_case.spec)
    for config in _configs(lowered, backend):
        executable = lowered.plan(backend.target(), config, copy_of(backend))
        run = _Run(backend, executable, convjit_case)
        run()
        complaint = run.complaint(lowered)
        assert not complaint, f"config {config}: {complaint}"


def test_plan_holds_no_data(convjit_under_test: str, convjit_solver: str) -> None:
    """A plan allocates no arrays of the problem's size."""
    backend, lowered = _reach(convjit_under_test, convjit_solver, LARGE.spec)
    target = backend.target()
    config = _configs(lowered, backend)[0]
    lowered.plan(target, config)  # what is compiled or measured once does not count
    domain = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    started = not tracemalloc.is_tracing()
    if started:
        tracemalloc.start()
    try:
        before = _held(domain)
        executable = lowered.plan(target, config)
        held = _held(domain) - before
    finally:
        if started:
            tracemalloc.stop()
    assert executable.workspace >= 0
    limit = math.prod(LARGE.spec.x_shape)  # bytes, a quarter of x
    assert held < limit, f"the plan holds {held} bytes of arrays"


def test_threads_share_an_executable(
    convjit_under_test: str, convjit_solver: str, convjit_case: Case
) -> None:
    """Two threads run one executable at once, each in memory of its own."""
    backend, lowered = _reach(convjit_under_test, convjit_solver, convjit_case.spec)
    config = _configs(lowered, backend)[0]
    executable = lowered.plan(backend.target(), config, copy_of(backend))
    runs = [_Run(backend, executable, convjit_case, seed) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(run.repeat, 3) for run in runs]:
            future.result()
    for run in runs:
        complaint = run.complaint(lowered)
        assert not complaint, complaint


def _configs(lowered: Lowered, backend: Backend) -> list[Any]:
    offered = lowered.solver.configs(lowered.spec, backend.target())
    return list(islice(offered, CONFIGS)) or [DEFAULT_CONFIG]


def _held(domain: tracemalloc.DomainFilter) -> int:
    traces = tracemalloc.take_snapshot().filter_traces([domain])
    return sum(s.size for s in traces.statistics("filename"))


# ------------------------------------------------------------------------ guarded memory


def _host(array: Array) -> Any:
    """A device's array as NumPy's."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


class _Guarded:
    """Memory between two guards of known bytes, of the backend's own array type."""

    def __init__(self, xp: Any, nbytes: int) -> None:
        self._block = xp.full(nbytes + 3 * GUARD, CANARY, np.uint8)
        # The core promises an address that is a multiple of 64.
        address = self._block.ctypes.data if xp is np else self._block.data.ptr
        self._start = GUARD + -address % GUARD
        self._stop = self._start + nbytes
        self.bytes = self._block[self._start : self._stop]

    def as_array(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.bytes.view(dtype).reshape(shape)

    def intact(self) -> bool:
        block = _host(self._block)
        around = np.concatenate([block[: self._start], block[self._stop :]])
        return bool((around == CANARY).all())


class _Run:
    """One execution in guarded memory, and what is to be said about it."""

    def __init__(self, backend: Backend, executable: Executable, case: Case, seed: int = 0) -> None:
        self._xp = backend.array_namespace()
        self._executable = executable
        self._case = case
        spec = case.spec
        self._operands = case.operands(seed)
        self._expected, self._scale = reference(case, seed)
        lhs, rhs, bias = case.operands(seed)
        self._lhs = self._xp.asarray(lhs)
        self._bias = None if bias is None else self._xp.asarray(bias)
        # pack() promises not to alias its argument, unless it returns the argument itself.
        given = self._xp.asarray(rhs).copy()
        self._packed = executable.pack(given)
        self._packs_in_place = self._packed is given
        if not self._packs_in_place:
            poison(given)
        dtype = precision.numpy_dtype(spec.result_dtype)
        self._result = _Guarded(self._xp, math.prod(spec.result_shape) * dtype.itemsize)
        self._out = self._result.as_array(spec.result_shape, dtype)
        self._workspace = _Guarded(self._xp, executable.workspace)

    def __call__(self) -> None:
        poison(self._out)
        space = self._workspace.bytes if self._executable.workspace else None
        if space is not None:
            space[...] = 0xFF  # NaN in every floating-point type: stale workspace must not matter
        self._executable.run(self._lhs, self._packed, self._bias, self._out, space)

    def repeat(self, times: int) -> None:
        for _ in range(times):
            self()

    def complaint(self, lowered: Lowered) -> str:
        """What is wrong, or nothing."""
        return next(self._complaints(lowered), "")

    def _complaints(self, lowered: Lowered) -> Iterator[str]:
        spec = self._case.spec
        if not self._result.intact():
            yield "bytes around out were written"
        if not self._workspace.intact():
            yield "bytes around the workspace were written"
        for name, kept, array in zip(
            ("lhs", "bias"),
            (self._operands.lhs, self._operands.bias),
            (self._lhs, self._bias),
            strict=True,
        ):
            if kept is not None and not np.array_equal(_host(array), kept):
                yield f"{name} was modified"
        out = np.asarray(_host(self._out))
        error = measured_error(spec, out, self._expected, self._scale)
        bound = error_bound(spec, lowered.spec, lowered.work)
        if not error <= bound:
            yield f"{lowered.label}: error {error:.2e} above the bound {bound:.2e}"
