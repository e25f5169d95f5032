"""``convjit_numba_cuda`` runs the suite that strangers run, its PTX on the CPU: the quick tier."""

from emulated_suite import EmulatedRequirements

from convjit.testing.suite import *  # noqa: F403

del test_solver  # noqa: F821  (of the slow tier)
from emulated_suite import *  # noqa: E402, F403  (parametrises by the emulated backend)


class Requirements(EmulatedRequirements):
    quick = True
    max_examples = 10
