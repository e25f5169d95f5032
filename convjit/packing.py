"""Packed weights: the second operand in the form in which a solver reads it, kept for later calls.

What one plan packed belongs to that plan (:class:`Packed`).  :class:`Weights` are packed for every
plan that they meet, and remember the forms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from convjit import profiling
from convjit.locks import lock_held_over_forks
from convjit.spi import Array

if TYPE_CHECKING:
    from convjit.plans import Plan

_forms_lock = lock_held_over_forks()
PACKED_FORMS = 16  # how many plans' forms one Weights object remembers


class Packed:
    """The second operand in one plan's own form, made by :meth:`~convjit.plans.Plan.pack`."""

    __slots__ = ("payload", "plan", "shape")

    def __init__(self, plan: Plan, payload: Any) -> None:
        self.plan = plan
        self.payload = payload
        self.shape = plan.problem.rhs_shape

    def __repr__(self) -> str:
        return f"<packed {self.shape} for {self.plan.label} of {self.plan.spec}>"


class Packer(Protocol):
    """What has a form of its own for weights: a plan, or a half of a separable layer."""

    def pack_operand(self, rhs: Array) -> Any: ...


class Weights:
    """An immutable copy of weights that remembers its packed forms.

    Accepted wherever w is; the first call that uses a plan packs, later ones do not.

    Attributes
    ----------
    array : array
        The copy, C-contiguous; NumPy's is read-only.
    shape, dtype
        Of the array.
    """

    __slots__ = ("_forms", "array", "dtype", "shape")

    def __init__(self, array: Array) -> None:
        self.array = array
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype = array.dtype
        self._forms: dict[int, tuple[Packer, Any]] = {}

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __repr__(self) -> str:
        return f"<convjit.weights {self.shape} {self.dtype}, {len(self._forms)} packed forms>"

    def form_for(self, plan: Packer) -> Any:
        """The packed form for a plan, made when first asked for."""
        found = self._forms.get(id(plan))
        if found is not None:
            return found[1]
        with profiling.phase("pack", profiling.PACK):
            payload = plan.pack_operand(self.array)
        with _forms_lock:
            while len(self._forms) >= PACKED_FORMS:
                del self._forms[next(iter(self._forms))]
            # The plan is kept beside its form: an id is not used again while its object lives.
            self._forms[id(plan)] = (plan, payload)
        return payload
