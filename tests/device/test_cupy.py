"""``convjit_cupy`` runs the suite that strangers run, on the stand-in for CuPy: the quick tier."""

from emulated_cupy_suite import WITHOUT_DIRECT, EmulatedCupyRequirements

from convjit.testing.suite import *  # noqa: F403

del test_solver  # noqa: F821  (of the slow tier)
from emulated_cupy_suite import *  # noqa: E402, F403  (parametrises by the emulated backend)


class Requirements(EmulatedCupyRequirements):
    backend = WITHOUT_DIRECT.name
    quick = True
    max_examples = 10
