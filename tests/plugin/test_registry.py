"""The registry with healthy plugins: laziness, opt-in, blocking, registration, threads."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import convjit
from convjit import registry, staleness
from convjit.testing.loopback import LoopbackBackend

X = np.arange(12.0).reshape(3, 4)
W = np.ones((2, 2))
Y = np.array([[10.0, 14.0, 18.0], [26.0, 30.0, 34.0]])


def rows():
    return {row.name: row for row in convjit.backends()}


def runs(name):
    """How often the solver of a healthy plugin ran."""
    return registry.get(name).counter.runs


# ------------------------------------------------------------------------ finding


def test_our_backends_come_through_the_same_entry_points():
    ours = {r.name for r in convjit.backends() if r.distribution == "convjit"}
    assert {"numba", "scipy"} <= ours
    assert all(registry.is_builtin(name) for name in ours)


def test_the_table_imports_nothing(site):
    module = site.backend("good", version="4.5.6")
    row = rows()["good"]
    assert (row.state, row.distribution, row.version) == ("lazy", "convjit-good", "4.5.6")
    assert module not in sys.modules
    assert "good" in str(convjit.backends())


def test_a_plain_call_imports_no_stranger_and_changes_no_choice(site):
    module = site.backend("good")
    before = convjit.plan(X, W).label
    np.testing.assert_allclose(convjit.conv(X, W), Y)
    assert convjit.plan(X, W).label == before
    assert module not in sys.modules
    assert not registry.is_builtin("good")


def test_named_it_is_loaded_and_runs(site):
    site.backend("good")
    np.testing.assert_allclose(convjit.conv(X, W, backend="good"), Y)
    assert runs("good") == 1
    assert rows()["good"].state == "loaded"
    assert rows()["good"].device == "cpu"


def test_a_plugin_found_later(site):
    assert "good" not in rows()
    with pytest.raises(convjit.ConfigError, match=r"backend='good' is not known; choose one of"):
        convjit.conv(X, W, backend="good")
    site.backend("good")  # installs and refreshes
    np.testing.assert_allclose(convjit.conv(X, W, backend="good"), Y)


def test_a_distribution_seen_twice_counts_once(site, tmp_path_factory, monkeypatch):
    site.backend("good")
    other = tmp_path_factory.mktemp("other")
    folder = other / "convjit_good-0.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: convjit-good\nVersion: 0.1\n")
    (folder / "entry_points.txt").write_text("[convjit.backends]\ngood = nowhere:Backend\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(other)])
    convjit.refresh()
    assert [r.version for r in convjit.backends() if r.name == "good"] == ["1.2"]


# ------------------------------------------------------------------------ opt-in and blocking


def test_priority_lets_a_stranger_take_part(site):
    site.backend("good")
    with convjit.use(priority="good"):
        np.testing.assert_allclose(convjit.conv(X, W), Y)
        assert registry.default_pool()[0].name == "good"
        assert "good" in [b.name for b in registry.resolve("cpu")]
    assert runs("good") == 1
    np.testing.assert_allclose(convjit.conv(X, W), Y)
    assert runs("good") == 1
    assert "good" not in [b.name for b in registry.resolve("cpu")]


def test_priority_from_the_environment(site, monkeypatch):
    site.backend("good")
    monkeypatch.setenv("CONVJIT_PRIORITY", "scipy,good")
    convjit.refresh()
    pool = [b.name for b in registry.default_pool("cpu")]
    assert pool[:2] == ["scipy", "good"]
    assert "numba" in pool[2:]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CONVJIT_PRIORITY", "no_such", r"CONVJIT_PRIORITY names 'no_such'.*choose from .*scipy"),
        ("CONVJIT_DISABLE", "no_such", r"CONVJIT_DISABLE names 'no_such'.*a solver's id"),
        ("CONVJIT_BACKEND", "no_such", r"CONVJIT_BACKEND='no_such' is not known; choose one of"),
    ],
)
def test_unknown_names_in_the_environment(site, monkeypatch, variable, value, said):
    monkeypatch.setenv(variable, value)
    convjit.refresh()
    with pytest.raises(convjit.ConfigError, match=said):
        convjit.conv(X, W)


def test_unknown_names_in_use():
    with (
        convjit.use(priority="no_such"),
        pytest.raises(convjit.ConfigError, match="priority names 'no_such'"),
    ):
        convjit.conv(X, W)


def test_blocked_by_use(site):
    module = site.backend("good")
    with convjit.use(disable="good", priority="good"):
        np.testing.assert_allclose(convjit.conv(X, W), Y)
        assert rows()["good"].state == "blocked"
        said = r"'good' of convjit-good 1.2 is blocked by convjit.use\(disable=\('good',\)\)"
        with pytest.raises(convjit.BackendError, match=said):
            convjit.conv(X, W, backend="good")
    assert module not in sys.modules
    np.testing.assert_allclose(convjit.conv(X, W, backend="good"), Y)


def test_blocked_by_the_environment(site, monkeypatch):
    site.backend("good")
    monkeypatch.setenv("CONVJIT_DISABLE", "good,numba")
    convjit.refresh()
    with pytest.raises(convjit.BackendError, match="blocked by CONVJIT_DISABLE=good,numba"):
        convjit.conv(X, W, backend="good")
    assert rows()["numba"].state == "blocked"
    assert [b.name for b in registry.default_pool()] == ["scipy"]
    np.testing.assert_allclose(convjit.conv(X, W), Y)


def test_disabled_solver_is_not_chosen(site):
    site.backend("good")
    with convjit.use(priority="good"):
        assert convjit.plan(X, W).solver == "good.oracle"
        with convjit.use(disable="good.oracle"):
            assert convjit.plan(X, W).solver != "good.oracle"
            with pytest.raises(convjit.UnsupportedError, match="disabled"):
                convjit.conv(X, W, backend="good")


# ------------------------------------------------------------------------ resolving


def test_resolve_a_tuple_and_a_device():
    assert [b.name for b in registry.resolve(("scipy", "numba", "scipy"))] == ["scipy", "numba"]
    assert [b.name for b in registry.resolve("cpu")] == ["numba", "scipy"]
    with pytest.raises(convjit.ConfigError, match="names no backend"):
        registry.resolve(())
    with pytest.raises(TypeError, match="must be a name, a tuple of names, or None"):
        registry.resolve(3)


def test_a_device_without_a_healthy_backend(site):
    with (
        convjit.use(disable=tuple(n for n in registry.names() if n.endswith(("cuda", "cupy")))),
        pytest.raises(convjit.BackendError, match="no backend works on the device 'cuda'"),
    ):
        registry.resolve("cuda")


def test_no_backend_left():
    with (
        convjit.use(disable=registry.names()),
        pytest.raises(convjit.BackendError, match=r"no backend is left \(numba is blocked: by"),
    ):
        convjit.conv(X, W)


def test_unknown_name_lists_the_choices():
    said = r"backend='nunba' is not known; choose one of numba, scipy.*or a device: cpu, cuda\."
    with pytest.raises(convjit.ConfigError, match=said):
        convjit.conv(X, W, backend="nunba")


# ------------------------------------------------------------------------ registering


@pytest.fixture
def loopback():
    """A registered loopback backend."""
    backend = LoopbackBackend()
    convjit.register(backend)
    yield backend
    registry.unregister("loopback")


def test_registered_backend_is_used_where_it_is_named(loopback):
    np.testing.assert_allclose(convjit.conv(X, W), Y)
    assert loopback.counter.runs == 0
    np.testing.assert_allclose(convjit.conv(X, W, backend="loopback"), Y)
    assert loopback.counter.runs == 1
    assert rows()["loopback"].distribution == "(registered)"
    convjit.refresh()
    np.testing.assert_allclose(convjit.conv(X, W, backend="loopback"), Y)


def test_registered_twice(loopback):
    said = r"the name 'loopback' is taken by \(registered\)"
    with pytest.raises(convjit.BackendError, match=said):
        convjit.register(LoopbackBackend())


def test_register_says_what_is_missing():
    with pytest.raises(TypeError, match="give LoopbackBackend\\(\\)"):
        convjit.register(LoopbackBackend)
    with pytest.raises(TypeError, match=r"object is not a backend: it has no name, device"):
        convjit.register(object())

    class NoProbe(LoopbackBackend):
        probe = None

    with pytest.raises(TypeError, match="its probe is not callable"):
        convjit.register(NoProbe())


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("name", "scipy", "the name 'scipy' is taken by convjit"),
        ("name", "No Name", "'No Name' is not a name for a backend"),
        ("name", "cuda", "'cuda' is the name of a device kind"),
        ("spi_version", 0, "version 0 of convjit's SPI and this is version 1"),
    ],
)
def test_register_a_bad_name_or_version(attribute, value, said):
    backend = LoopbackBackend()
    setattr(backend, attribute, value)
    with pytest.raises(convjit.BackendError, match=said):
        convjit.register(backend)
    assert "No Name" not in rows()


def test_unregister_what_is_not_registered():
    with pytest.raises(convjit.BackendError, match="no backend was registered as 'numba'"):
        registry.unregister("numba")


def test_changes_are_seen_by_the_generation(site):
    before = staleness.generation()
    convjit.refresh()
    assert staleness.generation() > before
    site.backend("bad", "\nraise OSError")
    before = staleness.generation()
    with (
        pytest.warns(convjit.ConvjitWarning),
        pytest.raises(convjit.BackendError),
    ):
        registry.get("bad")
    assert staleness.generation() > before


# ------------------------------------------------------------------------ re-entrancy and threads

_REENTRANT = """
import convjit
import numpy as np

convjit.backends()
{when} = convjit.conv(np.arange(12.0).reshape(3, 4), np.ones((2, 2)))
"""


def test_a_plugin_that_convolves_while_it_is_imported(site):
    site.backend("good", _REENTRANT.format(when="DURING_IMPORT"))
    with convjit.use(priority="good"):
        np.testing.assert_allclose(convjit.conv(X, W), Y)
    assert runs("good") >= 1
    np.testing.assert_allclose(sys.modules["convjit_good_module"].DURING_IMPORT, Y)


def test_a_plugin_that_asks_for_itself_while_it_is_imported(site):
    site.backend("good", "\nimport convjit\nconvjit.conv([1.0], [1.0], backend='good')")
    with (
        pytest.warns(convjit.ConvjitWarning, match="asked for while it loads"),
        pytest.raises(convjit.BackendError, match="asked for while it loads"),
    ):
        convjit.conv(X, W, backend="good")


def test_a_plugin_that_looks_again_while_it_is_imported(site):
    site.backend("good", "\nimport convjit\nconvjit.refresh()\nconvjit.backends()")
    np.testing.assert_allclose(convjit.conv(X, W, backend="good"), Y)


def test_two_plugins_that_use_each_other_in_two_threads(site):
    for name, other in (("left", "right"), ("right", "left")):
        site.backend(
            name,
            "\nimport time, convjit\n"
            "class Backend(Backend):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        time.sleep(0.05)\n"
            f"        with convjit.use(priority='{other}'):\n"
            "            convjit.conv([1.0, 2.0], [1.0])\n",
        )
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(convjit.conv, X, W, backend=n) for n in ("left", "right")]
        for future in futures:
            np.testing.assert_allclose(future.result(timeout=60), Y)


def test_a_first_call_from_many_threads_at_once(site):
    site.backend("good", "\nimport time; time.sleep(0.05)")
    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(convjit.conv, X, W, backend="good") for _ in range(16)]
        for result in results:
            np.testing.assert_allclose(result.result(timeout=60), Y)
    assert runs("good") == 16  # all of them ran on the one object that was kept
