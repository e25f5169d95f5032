"""``convjit_scipy``, the reference that takes everything, runs the suite that strangers run."""

from convjit.testing.requirements import Requirements as Base
from convjit.testing.suite import *  # noqa: F403


class Requirements(Base):
    backend = "scipy"
    max_examples = 100
    must_take = ("*",)
