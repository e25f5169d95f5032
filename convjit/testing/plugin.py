"""The pytest plugin: ``pytest --convjit-backend NAME``.

The option puts a backend in force for the whole session, as ``convjit.use(backend=NAME)`` would,
and makes it the one that a conformance suite tests; give it several times for several suites' runs
(the last one is in force elsewhere).  Without the option the plugin does nothing: pytest loads it
in every session of an environment that has convjit, so that it imports nothing at the top.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from convjit.testing.loopback import Loopback, LoopbackBackend

OPTION = "--convjit-backend"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("convjit").addoption(
        OPTION,
        action="append",
        default=[],
        metavar="NAME",
        dest="convjit_backend",
        help="run the conformance suite, and every call that names no backend, on this backend "
        "of convjit ('loopback' for the one that fails when dispatch is bypassed)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Put the backend in force, where the option is used."""
    if names := chosen(config):
        config.pluginmanager.register(_InForce(names[-1]), "convjit-in-force")


class _InForce:
    """Every test runs with one backend in force."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loopback: LoopbackBackend | None = None
        if name == "loopback":
            from convjit import registry
            from convjit.testing.loopback import LoopbackBackend

            self._loopback = LoopbackBackend()
            registry.register(self._loopback)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        if self._loopback is not None:
            from convjit.testing.loopback import Loopback

            with Loopback(self._loopback):
                return (yield)
        from convjit import config

        config.push({"backend": self._name})
        try:
            return (yield)
        finally:
            config.pop()


def chosen(pytestconfig: pytest.Config) -> tuple[str, ...]:
    """The names given with the option."""
    return tuple(pytestconfig.getoption("convjit_backend", default=[]))


def header(names: Iterable[str]) -> list[str]:
    """A line for each backend; those named are loaded and tell their probe's answer."""
    from convjit import registry

    lines = []
    for row in registry.status(load=names):
        where = f"{row.distribution} {row.version}".strip()
        told = f": {row.reason}" if row.reason else ""
        lines.append(f"convjit backend {row.name} ({row.device or '?'}, {where}) {row.state}{told}")
    return lines


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Tell about the backends where the option is used."""
    names = chosen(config)
    return header(names) if names else []


@pytest.fixture
def convjit_loopback() -> Iterator[Loopback]:
    """A :class:`convjit.testing.Loopback` in force: calls go to the oracle, or fail."""
    from convjit.testing.loopback import Loopback

    with Loopback() as loop:
        yield loop


@pytest.fixture
def convjit_backend(pytestconfig: pytest.Config) -> Any:
    """The name given with ``--convjit-backend``, or None."""
    names = chosen(pytestconfig)
    return names[-1] if names else None
