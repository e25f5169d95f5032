"""A step of lowering: a simpler problem with the same answer.

A step says what runs before (on either operand), what runs after (on the result), and what moves.
It describes data movement with views and assignments alone, so that it runs on any array type.
Which step there is for which feature, :mod:`convjit.rules` says.
"""

from __future__ import annotations

from dataclasses import dataclass

from convjit import precision
from convjit.algorithms.fills import Fill, View
from convjit.algorithms.workspace import aligned, nbytes
from convjit.spec import ConvSpec
from convjit.spi import Phase


@dataclass(frozen=True, slots=True)
class Step:
    """One simplification of a problem.

    Attributes
    ----------
    name : str
        As explain shows it: ``"pad reflect"``, ``"NHWC to NCHW"``.
    outer, inner : ConvSpec
        The problem before and after the step.
    fill_lhs, view_lhs
        How the inner problem's first operand comes from the outer one's: by a copy into a buffer
        of its shape, or as a view; neither when it is the same array.
    fill_rhs, view_rhs
        The same for the second operand, run by ``pack``.
    fill_result, view_result
        A copy from a buffer with the inner result to the outer one, or a view of the outer result
        into which the inner problem writes.
    fill_bias
        The inner problem's bias, where it is not the outer one's.
    copies, pack_copies : int
        Assignments that the fills of the first and of the second operand consist of.
    repeats : int
        Number of inner problems (one per group), sliced by :class:`_Groups`.
    spreads_nonfinite : bool
        Whether the step lets a NaN or Inf reach outputs outside its receptive field.
    exact : bool
        Whether summation in the inner dtype makes no rounding error at all.
    """

    name: str
    outer: ConvSpec
    inner: ConvSpec
    fill_lhs: Fill | None = None
    view_lhs: View | None = None
    fill_rhs: Fill | None = None
    view_rhs: View | None = None
    fill_result: Fill | None = None
    view_result: View | None = None
    fill_bias: View | None = None
    copies: int = 1
    pack_copies: int = 1
    repeats: int = 1
    spreads_nonfinite: bool = False
    exact: bool = False

    @property
    def epilogue_outside(self) -> bool:
        """Whether bias and activation are applied after this step instead of inside it."""
        return (self.outer.bias and not self.inner.bias) or (
            self.outer.activation is not None and self.inner.activation is None
        )

    @property
    def lhs_bytes(self) -> int:
        return nbytes(self.inner.lhs_shape, self.inner.dtype) if self.fill_lhs else 0

    @property
    def result_bytes(self) -> int:
        shape, dtype = self.inner.result_shape, self.inner.result_dtype
        return nbytes(shape, dtype) if self.fill_result else 0

    @property
    def level(self) -> str:
        """What the fills are bound by: copies of the backend's, or its casts."""
        outer, inner = (precision.REAL_OF.get(s.dtype, s.dtype) for s in (self.outer, self.inner))
        return "copy" if outer == inner else "cast"

    @property
    def workspace(self) -> int:
        return aligned(self.lhs_bytes) + aligned(self.result_bytes)

    def moved(self, role: str) -> float:
        """Bytes that the fill of ``"lhs"``, ``"rhs"`` or ``"result"`` reads and writes.

        Lines of either side are moved whole, so that a fill which takes every second sample of an
        array still reads all of it.
        """
        sizes = [
            nbytes(
                getattr(spec, f"{role}_shape"),
                spec.result_dtype if role == "result" else spec.dtype,
            )
            for spec in (self.outer, self.inner)
        ]
        return float(sizes[0] + sizes[1] * self.repeats)

    def phases(self) -> tuple[list[Phase], list[Phase]]:
        """What runs before and after the inner problem, as traffic of strided copies."""
        before, after = [], []
        if self.fill_lhs:
            before.append(Phase(self.name, bytes={self.level: self.moved("lhs")}))
        if self.fill_result:
            after.append(Phase(self.name, bytes={self.level: self.moved("result")}))
        if self.epilogue_outside:
            size = nbytes(self.outer.result_shape, self.outer.result_dtype)
            after.append(Phase("bias, activation", bytes={"elementwise": 2.0 * size}))
        return before, after


@dataclass(frozen=True, slots=True)
class Split:
    """A problem whose result several simpler ones compute, each a part of its own.

    Attributes
    ----------
    name : str
        As explain shows it.
    outer : ConvSpec
    parts : tuple of Step
        From ``outer`` to each inner problem; what their ``fill_result`` write does not overlap.
    has_gaps : bool
        Whether there are elements that no part writes: those are empty sums, to which bias and
        activation are still applied.
    """

    name: str
    outer: ConvSpec
    parts: tuple[Step, ...]
    has_gaps: bool

    def phases(self) -> list[Phase]:
        """What runs before the parts."""
        if not self.has_gaps:
            return []
        size = nbytes(self.outer.result_shape, self.outer.result_dtype)
        return [Phase(f"{self.name}, gaps", bytes={"memory": float(size)})]
