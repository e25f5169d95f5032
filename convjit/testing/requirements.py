"""What a backend asks of the conformance suite: a class to derive from in a test file.

The whole test file of a backend is::

    from convjit.testing.requirements import Requirements as Base
    from convjit.testing.suite import *

    class Requirements(Base):
        backend = "example"
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from convjit.testing.cases import CASES, QUICK, Case


class Requirements:
    """Knobs of the suite; derive from it, set what differs, in the module that imports the suite.

    What a backend refuses needs no knob: it is a skip that prints the refusal.  A wrong answer
    cannot be excused.

    Attributes
    ----------
    backend : str or tuple of str
        Name of the backend under test (``--convjit-backend`` overrides it).
    quick : bool
        Whether to run the short list of cases instead of the whole one.
    groups : tuple of str
        Groups of cases to run, all when empty; see :mod:`convjit.testing.cases`.
    dtypes : tuple of str
        Names of dtypes to run, all when empty.
    skip : mapping of pattern to reason
        Cases left out, by a shell pattern over their ids.
    max_examples : int
        Random problems that hypothesis tries in each test.
    must_take : tuple of str
        Patterns of the cases that may not be refused: a refusal of one fails.
    """

    backend: str | tuple[str, ...] = ()
    quick: bool = False
    groups: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    skip: Mapping[str, str] = {}
    max_examples: int = 40
    must_take: tuple[str, ...] = ()

    @classmethod
    def backends(cls) -> tuple[str, ...]:
        """Names of the backends under test."""
        return (cls.backend,) if isinstance(cls.backend, str) else cls.backend

    @classmethod
    def cases(cls) -> tuple[Case, ...]:
        """The cases to run."""
        return tuple(
            case
            for case in (QUICK if cls.quick else CASES)
            if (not cls.groups or case.group in cls.groups)
            and (not cls.dtypes or case.spec.dtype in cls.dtypes)
        )

    @classmethod
    def reason_to_skip(cls, case: Case) -> str | None:
        """Why a case is left out, or None."""
        text = str(case)
        return next((why for pattern, why in cls.skip.items() if fnmatchcase(text, pattern)), None)

    @classmethod
    def demands(cls, case: Case) -> bool:
        """Whether a refusal of the case is a failure."""
        return any(fnmatchcase(str(case), pattern) for pattern in cls.must_take)
