"""``convjit_cupy`` runs the suite that strangers run, on the stand-in for CuPy: the slow tier."""

import pytest
from emulated_cupy_suite import *  # noqa: F403
from emulated_cupy_suite import WITHOUT_DIRECT, EmulatedCupyRequirements

from convjit.testing.suite import (  # noqa: F401
    convjit_requirements,
    test_case,
    test_random,
    test_solver,
)

pytestmark = pytest.mark.slow


class Requirements(EmulatedCupyRequirements):
    backend = WITHOUT_DIRECT.name
    max_examples = 100
