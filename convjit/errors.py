"""The exceptions and the warning that convjit raises, from one place.

Every message names the argument, what was given, the rule, and the repair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convjit.spi import Refusal


class ConvSpecError(ValueError):
    """The arguments do not describe a convolution; nothing was computed."""


class ConfigError(ValueError):
    """An environment variable or a field of :func:`convjit.use` has a bad value."""


class BackendError(RuntimeError):
    """A backend is broken, blocked or unknown, or it failed while it planned or ran."""


class UnsupportedError(RuntimeError):
    """A forced backend, algorithm or policy leaves no solver for this convolution.

    Attributes
    ----------
    refusals : tuple of (solver id, Refusal)
        What each candidate of the pool said, in the order in which it was asked.
    """

    def __init__(self, message: str, refusals: Sequence[tuple[str, Refusal]] = ()) -> None:
        super().__init__(message)
        self.refusals: tuple[tuple[str, Refusal], ...] = tuple(refusals)


class ConvjitWarning(UserWarning):
    """Something local is broken or wasteful (a plugin, a cache); results are not affected."""
