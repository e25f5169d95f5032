"""The conformance suite for the emulated CuPy backend: what both of its tiers have in common."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from emulated_cupy import EmulatedCupy, registered

from convjit.testing import suite
from convjit.testing.requirements import Requirements as Base

__all__ = [
    "WITHOUT_DIRECT", "EmulatedCupyRequirements", "pytest_generate_tests",
    "registered_for_the_module",
]  # fmt: skip

BACKEND = EmulatedCupy()
# Direct kernels are compiled for their taps, seconds each: test_cupy_solvers.py has some.
WITHOUT_DIRECT = EmulatedCupy("cupy_emulated_more", without=("direct",))


class EmulatedCupyRequirements(Base):
    backend = BACKEND.name
    must_take = ("*",)  # every direction, layout, dtype and padding mode, by lowering at least


@pytest.fixture(scope="module", autouse=True)
def registered_for_the_module() -> Iterator[None]:
    with registered(BACKEND), registered(WITHOUT_DIRECT):
        yield


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # The suite asks for the backend's solvers while tests are collected.
    with registered(BACKEND), registered(WITHOUT_DIRECT):
        suite.pytest_generate_tests(metafunc)
