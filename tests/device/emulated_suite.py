"""The conformance suite for the emulated backend: what both of its tiers have in common."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from emulated import EmulatedBackend, EmulatedDevice, registered

from convjit.testing import suite
from convjit.testing.requirements import Requirements as Base

__all__ = ["EmulatedRequirements", "pytest_generate_tests", "registered_for_the_module"]

BACKEND = EmulatedBackend(EmulatedDevice())


class EmulatedRequirements(Base):
    backend = BACKEND.name
    must_take = ("*_f32_*", "*_f64_*", "*_f16_*", "*_bf16_*", "*_c64_*", "*_c128_*", "*_[iu]8_*")


@pytest.fixture(scope="module", autouse=True)
def registered_for_the_module() -> Iterator[None]:
    with registered(BACKEND):
        yield


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # The suite asks for the backend's solvers while tests are collected.
    with registered(BACKEND):
        suite.pytest_generate_tests(metafunc)
