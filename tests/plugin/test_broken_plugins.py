"""Plugins that are broken in every way the registry must survive.

The rules are the same for all: other calls work, one warning names the distribution, its version
and the cause, the table says ``broken``, and asked for by name the plugin raises its error again.
"""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest

import convjit
from convjit import registry

X = np.arange(12.0).reshape(3, 4)
W = np.ones((2, 2))
Y = np.array([[10.0, 14.0, 18.0], [26.0, 30.0, 34.0]])

# kind -> (what is added to a healthy module, what the reason says)
BROKEN = {
    "raises on import": ("raise OSError('no such library')", "OSError: no such library"),
    "imports what is missing": ("import no_such_module_at_all", "No module named 'no_such_module"),
    "exits on import": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "does not parse": ("def (", "SyntaxError"),
    "has no such attribute": ("del Backend", "has no attribute 'Backend'"),
    "another SPI version": ("Backend.spi_version = 99", "version 99 of convjit's SPI"),
    "is not callable": ("Backend = 7", "names a int, which is not callable"),
    "is no backend": ("class Backend: name = 'bad'", "Backend is not a backend: it has no device"),
    "raises when made": (
        "def Backend(): raise RuntimeError('no licence')",
        "RuntimeError: no licence",
    ),
    "exits when made": ("def Backend(): raise SystemExit", "SystemExit"),
    "calls itself otherwise": ("Backend.name = 'other'", "calls itself 'other'"),
    "an unknown device": ("Backend.device = 'abacus'", "device is 'abacus', not one of cpu, cuda"),
    "array types that are no names": (
        "Backend.array_types = 'numpy'",
        "its array_types is 'numpy'; give a tuple",
    ),
    "a method that is none": ("Backend.target = 3", "its target is not callable"),
    "a property that raises": (
        "Backend.device = property(lambda self: 1 / 0)",
        "ZeroDivisionError",
    ),
    "a probe that raises": ("Backend.probe = lambda self: 1 / 0", "ZeroDivisionError"),
    "a probe with another type": ("Backend.probe = lambda self: True", "its probe returned True"),
    "solvers that raise": ("Backend.solvers = lambda self: [][0]", "IndexError"),
    "solvers that exit": ("Backend.solvers = lambda self: exit(1)", "SystemExit: 1"),
    "no solvers": ("Backend.solvers = lambda self: []", "it offers no solvers"),
    "solvers that are none": ("Backend.solvers = lambda self: [3]", "int is not a solver"),
    "a solver of another name": (
        "Solver.id = 'scipy.fft'",
        "id 'scipy.fft' does not start with 'bad.'",
    ),
    "solvers with one id": (
        "Backend.solvers = lambda self: [Solver(self.counter)] * 2",
        "two solvers have the id 'bad.oracle'",
    ),
    "an algorithm that is no name": ("Solver.algorithm = 7", "algorithm of bad.oracle is 7"),
    "a solver's method that is none": ("Solver.plan = 1", "plan of bad.oracle is not callable"),
}


def info(name):
    (row,) = [row for row in convjit.backends() if row.name == name]
    return row


@pytest.fixture(params=BROKEN)
def broken(request, site):
    """A broken plugin, and what its reason says."""
    extra, said = BROKEN[request.param]
    site.backend("bad", "\n" + extra)
    return said


def test_is_left_alone_by_a_plain_call(broken, site):
    np.testing.assert_allclose(convjit.conv(X, W), Y)
    assert not set(site.modules) & set(sys.modules), "a plain call imported a stranger's plugin"
    assert info("bad").state == "lazy"


def test_opted_in_warns_once_and_another_runs(broken):
    with convjit.use(priority="bad"):
        with pytest.warns(convjit.ConvjitWarning) as caught:
            np.testing.assert_allclose(convjit.conv(X, W), Y)
        assert len(caught) == 1
        message = str(caught[0].message)
        assert message.startswith("backend 'bad' of convjit-bad 1.2 is broken and not used:")
        assert broken in message
        # warnings are errors here: a second one would raise
        np.testing.assert_allclose(convjit.conv(X, W, padding=1)[1:-1, 1:-1], Y)
    row = info("bad")
    assert (row.state, row.distribution, row.version) == ("broken", "convjit-bad", "1.2")
    assert broken in row.reason


def test_asked_for_by_name_raises_and_again(broken):
    for attempt in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with pytest.raises(convjit.BackendError) as error:
                convjit.conv(X, W, backend="bad")
        assert len(caught) == (1 if attempt == 0 else 0)
        assert "backend 'bad' of convjit-bad 1.2 is broken" in str(error.value)
        assert broken in str(error.value)
    np.testing.assert_allclose(convjit.conv(X, W), Y)


def test_where_warnings_are_errors_the_error_is_the_backends(broken):
    with pytest.raises(convjit.BackendError, match=r"'bad' of convjit-bad .* is broken"):
        convjit.conv(X, W, backend=("bad", "scipy"))


def test_error_is_raised_from_the_original(site):
    site.backend("bad", "\nraise OSError('no such library')")
    with (
        pytest.warns(convjit.ConvjitWarning),
        pytest.raises(convjit.BackendError, match="no such library") as error,
    ):
        convjit.conv(X, W, backend="bad")
    assert isinstance(error.value.__cause__, OSError)


def test_ctrl_c_on_import_is_not_swallowed(site):
    site.backend("bad", "\nraise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        convjit.conv(X, W, backend="bad")
    assert info("bad").state == "lazy"


def test_probe_with_a_reason(site):
    site.backend("bad", "\nBackend.probe = lambda self: 'no abacus is attached.'")
    said = "backend 'bad' of convjit-bad 1.2 is unavailable: no abacus is attached."
    with (
        pytest.warns(convjit.ConvjitWarning, match="no abacus"),
        pytest.raises(convjit.BackendError) as error,
    ):
        convjit.conv(X, W, backend="bad")
    assert str(error.value) == said
    assert error.value.__cause__ is None
    assert registry.probe_answer("bad") == "no abacus is attached."
    assert info("bad").state == "unavailable"


def test_refresh_tries_again(site):
    module = site.backend("bad", "\nraise OSError('not yet')")
    with pytest.warns(convjit.ConvjitWarning), convjit.use(priority="bad"):
        convjit.conv(X, W)
    assert info("bad").state == "broken"
    source = (site.path / f"{module}.py").read_text()
    (site.path / f"{module}.py").write_text(source.replace("raise OSError('not yet')", ""))
    convjit.refresh()
    assert info("bad").state == "lazy"
    np.testing.assert_allclose(convjit.conv(X, W, backend="bad"), Y)
    assert info("bad").state == "loaded"


# ------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Shiny", "'Shiny' is not a name for a backend"),
        ("my-backend", "'my-backend' is not a name for a backend"),
        ("9lives", "'9lives' is not a name for a backend"),
        ("cpu", "'cpu' is the name of a device kind"),
        ("cuda", "'cuda' is the name of a device kind"),
    ],
)
def test_bad_name(site, name, said):
    site.backend(name, distribution="convjit-odd")
    with pytest.warns(convjit.ConvjitWarning, match=f"of convjit-odd 1.2 is broken.*{said}"):
        np.testing.assert_allclose(convjit.conv(X, W), Y)
    assert info(name).state == "broken"
    np.testing.assert_allclose(convjit.conv(X, W, padding=1)[1:-1, 1:-1], Y)
    assert not set(site.modules) & set(sys.modules)


def test_a_strangers_duplicate_of_our_name_is_the_broken_one(site):
    site.backend("scipy", distribution="convjit-imposter")
    said = "the name 'scipy' is reserved: convjit registers it itself"
    with pytest.warns(convjit.ConvjitWarning, match=f"of convjit-imposter 1.2 is broken.*{said}"):
        np.testing.assert_allclose(convjit.conv(X, W, backend="scipy"), Y)
    ours, theirs = [row for row in convjit.backends() if row.name == "scipy"]
    assert (ours.distribution, ours.state) == ("convjit", "loaded")
    assert (theirs.distribution, theirs.state) == ("convjit-imposter", "broken")
    assert theirs.reason == said
    assert not set(site.modules) & set(sys.modules)


def test_blocking_ours_does_not_free_its_name(site):
    site.backend("scipy", distribution="convjit-imposter")
    with (
        pytest.warns(convjit.ConvjitWarning, match="reserved"),
        convjit.use(disable="scipy"),
        pytest.raises(convjit.BackendError, match="blocked"),
    ):
        convjit.conv(X, W, backend="scipy")


def test_strangers_with_one_name_are_both_broken_until_one_is_disabled(site):
    first = site.backend("twin", distribution="convjit-first")
    second = site.backend("twin", distribution="convjit-second")
    with pytest.warns(convjit.ConvjitWarning) as caught:
        np.testing.assert_allclose(convjit.conv(X, W), Y)
    assert len(caught) == 2
    assert "of convjit-first 1.2 is broken" in str([str(w.message) for w in caught])
    assert [r.state for r in convjit.backends() if r.name == "twin"] == ["broken", "broken"]
    with pytest.raises(convjit.BackendError, match=r"disable all but one.*twin@convjit-"):
        convjit.conv(X, W, backend="twin")
    with convjit.use(disable="twin@convjit-first"):
        np.testing.assert_allclose(convjit.conv(X, W, backend="twin"), Y)
        states = {r.distribution: r.state for r in convjit.backends() if r.name == "twin"}
    assert states == {"convjit-first": "blocked", "convjit-second": "loaded"}
    assert second in sys.modules
    assert first not in sys.modules


def test_unreadable_metadata_hides_nobody(site):
    folder = site.path / "convjit_garbled-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: convjit-garbled\nVersion: 1\n")
    (folder / "entry_points.txt").write_bytes(b"[convjit.backends]\nx = \xff\xfe\n")
    convjit.refresh()
    with pytest.warns(convjit.ConvjitWarning, match="metadata of .*garbled.* cannot be read"):
        np.testing.assert_allclose(convjit.conv(X, W), Y)
    assert "scipy" in registry.names()


def test_a_target_that_raises_opted_in(site):
    site.backend("bad", "\nBackend.target = lambda self, device_id=0: 1 / 0")
    with convjit.use(priority="bad"):
        with pytest.warns(convjit.ConvjitWarning, match=r"target\(\) failed: ZeroDivisionError"):
            np.testing.assert_allclose(convjit.conv(X, W), Y)
        np.testing.assert_allclose(convjit.conv(X, W), Y)
    assert info("bad").state == "broken"


def test_a_target_that_raises_forced(site):
    site.backend("bad", "\nBackend.target = lambda self, device_id=0: 1 / 0")
    for backend in ("bad", ("scipy", "bad")):
        with pytest.raises(convjit.BackendError, match=r"target\(\) failed") as error:
            convjit.conv(X, W, backend=backend)
        assert isinstance(error.value.__cause__, ZeroDivisionError)


# ------------------------------------------------------------------------ solvers that raise

_RAISES = """
def fail(*arguments):
    raise ArithmeticError("the oracle is closed")
{what} = fail
"""
PHASES = {
    "refuse": ("Solver.refuse", "refuse"),
    "estimate": ("Solver.estimate", "estimate"),
    "configs": ("Solver.configs", "plan"),
    "plan": ("Solver.plan", "plan"),
    "pack": ("Executable.pack", "ran|pack"),
    "run": ("Executable.run", "ran"),
}


@pytest.fixture(params=PHASES)
def failing(request, site):
    what, said = PHASES[request.param]
    site.backend("bad", _RAISES.format(what=what))
    return said


def test_failing_solver_opted_in_warns_once_and_the_next_runs(failing):
    with convjit.use(priority="bad"):
        with pytest.warns(convjit.ConvjitWarning) as caught:
            np.testing.assert_allclose(convjit.conv(X, W), Y)
        assert len(caught) == 1
        message = str(caught[0].message)
        assert "'bad'" in message
        assert "bad.oracle" in message
        assert "ArithmeticError: the oracle is closed" in message
        np.testing.assert_allclose(convjit.conv(X, W), Y)


def test_failing_solver_forced_raises_from_the_original(failing):
    for _ in range(2):
        with pytest.raises(convjit.BackendError, match=failing) as error:
            convjit.conv(X, W, backend="bad")
        assert "'bad'" in str(error.value)
        assert "bad.oracle" in str(error.value)
        assert isinstance(error.value.__cause__, ArithmeticError)
    np.testing.assert_allclose(convjit.conv(X, W), Y)
