"""The conformance suite finds what is wrong; the cases, the loopback and the option work."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import convjit
from convjit import registry
from convjit.precision import DTYPES
from convjit.spec import ConvSpec, Direction
from convjit.testing import CASES, QUICK, Case, Loopback, LoopbackBackend, suite
from convjit.testing.cases import FORMS
from convjit.testing.check import check, make_plan
from convjit.testing.loopback import LoopbackExecutable, LoopbackSolver

CASE = Case("this test", ConvSpec.parse("conv_f32_NCHW_n2c3k4g1_i9x8_w3x3_p1"))
ALL = pytest.mark.parametrize("case", CASES, ids=str)

# ------------------------------------------------------------------------ the cases


def test_ids_are_unique_and_parse():
    assert len({str(case) for case in CASES}) == len(CASES)
    for case in CASES:
        assert ConvSpec.parse(str(case).partition(":")[0]) == case.spec


def test_cases_cover_the_operator():
    specs = [case.spec for case in CASES]
    assert {s.direction for s in specs} == set(Direction)
    assert {s.dtype for s in specs} == set(DTYPES.values())
    assert {s.ndim for s in specs} == {1, 2, 3}
    assert {c.form for c in CASES} == set(FORMS)
    for direction in Direction:
        mine = [s for s in specs if s.direction is direction]
        assert {s.pad_mode for s in mine} == {
            "zeros", "reflect", "replicate", "circular", "symmetric",
        }  # fmt: skip
        assert {s.channels_last for s in mine} == {False, True}
        assert any(s.flip for s in mine)
        assert any(s.strided for s in mine)
        assert any(s.is_empty for s in mine)
        assert any(s.is_depthwise and s.out_channels > s.in_channels > 1 for s in mine)
    assert {c.group for c in QUICK} == {c.group for c in CASES}
    assert len(QUICK) < len(CASES) / 4


@ALL
def test_call_means_the_case(case):
    """The public call's arguments come back to the case's own spec."""
    with Loopback():
        spec = make_plan(case).spec
    assert spec.replace(strided=case.spec.strided) == case.spec


def test_operands_are_reproducible_and_of_the_case():
    for case in QUICK:
        first, again, other = case.operands(), case.operands(), case.operands(1)
        np.testing.assert_array_equal(first.lhs, again.lhs)
        assert first.lhs.shape == case.spec.lhs_shape
        assert (not first.lhs.flags.c_contiguous) == case.spec.strided
        if first.lhs.size > 4:
            assert not np.array_equal(first.lhs, other.lhs)


# ------------------------------------------------------------------------ the loopback


def test_loopback_counts_and_is_right():
    x, w = np.arange(24.0).reshape(1, 2, 3, 4), np.ones((3, 2, 2, 2))
    with Loopback() as loop:
        y = convjit.conv(x, w)
        convjit.conv_transpose(y, w)
        convjit.conv_input_grad(x.shape, w, y)
        convjit.conv_weight_grad(x, w.shape, y)
    assert loop.calls == 4
    assert [s.direction for s in loop.specs] == list(Direction)
    assert y[0, 0, 0, 0] == x[0, :, :2, :2].sum()
    assert "loopback" not in registry.names()


def test_loopback_fails_when_dispatch_is_bypassed(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(convjit, "conv", lambda x, w, bias=None: np.zeros(3))
        with (
            Loopback(),
            pytest.raises(AssertionError, match=r"convjit.conv returned .* dispatch was bypassed"),
        ):
            convjit.conv(np.ones(4), np.ones(2))


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_the_core_keeps_its_promises(case):
    """Everything between the public call and a solver that takes all, against the oracle."""
    with Loopback() as loop:
        outcome = check(case, "loopback")
        assert outcome.passed, str(outcome)
        assert loop.calls == (0 if case.spec.is_empty else 3)


# ------------------------------------------------------------------------ the suite finds mistakes


class _Wrong(LoopbackExecutable):
    """An executable that makes one mistake; the subclasses say which."""

    def mistake(self, lhs, out, workspace):
        raise NotImplementedError

    def run(self, lhs, packed, bias, out, workspace):
        super().run(lhs, packed, bias, out, workspace)
        self.mistake(lhs, out, workspace)


class SlightlyWrong(_Wrong):
    def mistake(self, lhs, out, workspace):
        out.reshape(-1)[-1] *= 1.001


class LeavesOneOut(LoopbackExecutable):
    def run(self, lhs, packed, bias, out, workspace):
        kept = out.reshape(-1)[-1].copy()
        super().run(lhs, packed, bias, out, workspace)
        out.reshape(-1)[-1] = kept


class ModifiesItsInput(_Wrong):
    def mistake(self, lhs, out, workspace):
        lhs.reshape(-1)[0] += 1


class WritesBeyond(_Wrong):
    def mistake(self, lhs, out, workspace):
        wider = np.lib.stride_tricks.as_strided(out.reshape(-1), (out.size + 1,))
        wider[-1] = 0


class WritesBeforeTheWorkspace(_Wrong):
    def mistake(self, lhs, out, workspace):
        base = workspace.base
        start = workspace.ctypes.data - base.ctypes.data
        base[start - 1] = 0


class PacksAView(LoopbackExecutable):
    def pack(self, rhs):
        packed = super().pack(rhs)
        packed.rhs = rhs
        return packed


class PacksNothing(LoopbackExecutable):
    """Allowed: the operand itself is the packed form."""

    def pack(self, rhs):
        return rhs

    def run(self, lhs, packed, bias, out, workspace):
        super().run(lhs, super().pack(packed), bias, out, workspace)


class SpreadsNaN(_Wrong):
    def mistake(self, lhs, out, workspace):
        if np.isnan(lhs).any():
            out[...] = np.nan


class RemembersItsLastInput(LoopbackExecutable):
    last = None

    def run(self, lhs, packed, bias, out, workspace):
        self.last = lhs if self.last is None else self.last
        super().run(self.last, packed, bias, out, workspace)


@pytest.fixture
def bad(request):
    """A registered backend with a wrong executable or solver."""
    executable = request.param if issubclass(request.param, LoopbackExecutable) else None
    solver_class = LoopbackSolver if executable else request.param

    class Solver(solver_class):
        id = "bad.oracle"

        def plan(self, spec, target, config):
            if executable is None:
                return super().plan(spec, target, config)
            return executable(spec, self._counter)

    class Bad(LoopbackBackend):
        name = "bad"

        def __init__(self):
            super().__init__()
            self._solvers = (Solver(self.counter),)

    convjit.register(Bad())
    yield ("bad", "bad.oracle")
    registry.unregister("bad")


class FlipFlops(LoopbackSolver):
    def refuse(self, spec, target):
        from convjit.spi import Feature, Refusal

        self.asked = getattr(self, "asked", 0) + 1
        return Refusal(Feature.OTHER, "not now") if self.asked % 2 else None


class EstimatesNothing(LoopbackSolver):
    def estimate(self, spec, target):
        from dataclasses import replace

        return replace(super().estimate(spec, target), workspace=7)


class HoldsData(LoopbackSolver):
    def plan(self, spec, target, config):
        executable = super().plan(spec, target, config)
        executable.scratch = np.empty(spec.x_shape)
        return executable


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (SlightlyWrong, "above the bound"),
        (LeavesOneOut, "above the bound"),
        (ModifiesItsInput, "was modified"),
        (WritesBeyond, "bytes around out"),
        (WritesBeforeTheWorkspace, "bytes around the workspace"),
        (PacksAView, "above the bound"),
    ],
    indirect=["bad"],
)
def test_guarded_memory_finds(bad, said):
    with pytest.raises(AssertionError, match=said):
        suite.test_run_keeps_to_its_memory(*bad, CASE)


@pytest.mark.parametrize("bad", [PacksNothing], indirect=True)
def test_packed_weights_are_a_copy_also_where_nothing_is_packed(bad):
    suite.test_case(bad[0], CASE, suite._Requirements)
    suite.test_run_keeps_to_its_memory(*bad, CASE)


@pytest.mark.parametrize("bad", [SlightlyWrong, LeavesOneOut], indirect=True)
def test_public_calls_find(bad):
    name, solver = bad
    with pytest.raises(AssertionError, match="above the bound"):
        suite.test_case(name, CASE, suite._Requirements)
    with pytest.raises(AssertionError, match="above the bound"):
        suite.test_solver(name, solver, CASE)


@pytest.mark.parametrize("bad", [SlightlyWrong], indirect=True)
def test_random_problems_find(bad):
    with pytest.raises(AssertionError, match="above the bound"):
        suite.test_random(bad[0], suite._Requirements)


@pytest.mark.parametrize("bad", [ModifiesItsInput], indirect=True)
def test_public_calls_find_a_modified_operand(bad):
    with pytest.raises(AssertionError, match=r"operand was modified|is wrong"):
        suite.test_case(bad[0], CASE, suite._Requirements)


@pytest.mark.parametrize("bad", [SpreadsNaN], indirect=True)
def test_nonfinite_test_finds(bad):
    with pytest.raises(AssertionError, match="outside the receptive field"):
        suite.test_nonfinite_stays_local(bad[0], suite.NONFINITE[0])


@pytest.mark.parametrize("bad", [RemembersItsLastInput], indirect=True)
def test_thread_test_finds(bad):
    with pytest.raises(AssertionError, match="above the bound"):
        suite.test_threads_share_an_executable(*bad, CASE)


@pytest.mark.parametrize("bad", [FlipFlops], indirect=True)
def test_purity_test_finds(bad):
    with pytest.raises(AssertionError, match="refuse said"):
        suite.test_refuse_is_pure(*bad, CASE)


@pytest.mark.parametrize("bad", [EstimatesNothing], indirect=True)
def test_estimate_test_finds(bad):
    with pytest.raises(AssertionError, match="wants a workspace of 192 bytes"):
        suite.test_estimate_is_sane(*bad, CASE)


@pytest.mark.parametrize("bad", [HoldsData], indirect=True)
def test_plan_test_finds(bad):
    with pytest.raises(AssertionError, match="the plan holds"):
        suite.test_plan_holds_no_data(*bad)


# ------------------------------------------------------------------------ the pytest plugin


def run_pytest(tmp_path, *arguments):
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "--rootdir", str(tmp_path), *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.subprocess
def test_the_option_runs_the_suite(tmp_path):
    """As a stranger runs it without a test file; refusals are skips, the header tells."""
    done = run_pytest(
        tmp_path, "--convjit-backend", "loopback", "--pyargs", "convjit.testing.suite",
        "-k", "test_backend_works or test_nonfinite or (test_case and n2c8k8g1)",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "convjit backend loopback (cpu, (registered)) loaded" in done.stdout
    assert " passed" in done.stdout


@pytest.mark.subprocess
def test_the_option_is_in_force_elsewhere(tmp_path):
    (tmp_path / "test_mine.py").write_text(
        "import convjit, numpy as np\n"
        "def test_mine():\n"
        "    assert convjit.plan((5,), (2,)).backend == 'loopback'\n"
        "    assert convjit.conv(np.ones(3), np.ones(2)).sum() == 4\n"
        "def test_fixture(convjit_backend):\n"
        "    assert convjit_backend == 'loopback'\n"
    )
    done = run_pytest(tmp_path, "--convjit-backend", "loopback", "test_mine.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


@pytest.mark.subprocess
def test_an_unknown_backend_is_an_error(tmp_path):
    done = run_pytest(
        tmp_path, "--convjit-backend", "no_such", "--pyargs", "convjit.testing.suite"
    )  # fmt: skip
    assert done.returncode != 0
    assert "'no_such' is not known" in done.stdout + done.stderr


@pytest.mark.subprocess
def test_importing_the_plugin_is_light(tmp_path):
    """pytest imports the plugin in every session of an environment that has convjit."""
    code = (
        "import sys, convjit.testing.plugin\n"
        "heavy = {'numba', 'scipy', 'hypothesis', 'llvmlite', 'convjit.testing.suite'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
