"""``convjit_numba`` runs the suite that strangers run."""

from convjit.testing.requirements import Requirements as Base
from convjit.testing.suite import *  # noqa: F403


class Requirements(Base):
    backend = "numba"
    max_examples = 100
    # Integers are taken where float64 holds their sums, which depends on the problem.
    must_take = ("*_f32_*", "*_f64_*", "*_f16_*", "*_bf16_*", "*_c64_*", "*_c128_*", "*_[iu]8_*")
