"""``convjit_numba_cuda`` runs the suite that strangers run, its PTX on the CPU: the slow tier."""

import pytest
from emulated_suite import *  # noqa: F403
from emulated_suite import EmulatedRequirements

from convjit.testing.suite import (  # noqa: F401
    convjit_requirements,
    test_case,
    test_random,
    test_solver,
)

pytestmark = pytest.mark.slow


class Requirements(EmulatedRequirements):
    max_examples = 100
