"""``convjit_numba_cuda`` runs the suite that strangers run, its PTX on the CPU: the quick tier."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from emulated import EmulatedBackend, EmulatedDevice, registered

from convjit.testing import suite
from convjit.testing.requirements import Requirements as Base
from convjit.testing.suite import *  # noqa: F403

del test_solver  # noqa: F821  (of the slow tier)

BACKEND = EmulatedBackend(EmulatedDevice())


class Requirements(Base):
    backend = BACKEND.name
    quick = True
    max_examples = 10
    must_take = ("*_f32_*", "*_f64_*", "*_f16_*", "*_bf16_*", "*_c64_*", "*_c128_*", "*_[iu]8_*")


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with registered(BACKEND):
        yield


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # The suite asks for the backend's solvers while tests are collected.
    with registered(BACKEND):
        suite.pytest_generate_tests(metafunc)
