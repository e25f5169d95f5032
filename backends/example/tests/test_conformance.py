"""All that convjit asks of a backend, asked of ours."""

from convjit.testing.requirements import Requirements as Base
from convjit.testing.suite import *  # noqa: F403


class Requirements(Base):
    backend = "example"
    # Our solver does one thing; the lowerings bring every problem to it, so these must work.
    must_take = ("conv_f32_*",)
