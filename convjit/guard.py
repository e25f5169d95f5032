"""The finite check: a fast algorithm that spreads a NaN or Inf, kept for the data that has none.

A transform mixes all samples of a tile, so one NaN becomes a tile of them.  But data is nearly
always finite, and looking at it costs one pass over memory.  A guarded executable looks at the
first operand before and at the result after; only where something is not finite does it compute
again, with the best candidate that keeps such values inside their receptive field.  A NaN or Inf in
the second operand, and a sum that overflows inside a transform, show in the result.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from convjit import precision, profiling
from convjit.algorithms.fills import namespace
from convjit.spec import ConvSpec
from convjit.spi import Array, Executable, Phase

BLOCK = 1 << 16  # numbers looked at together: their flags stay in the cache


def check_phase(spec: ConvSpec) -> Phase:
    """What looking at the first operand and the result moves."""
    sizes = (
        prod(spec.lhs_shape) * precision.numpy_dtype(spec.dtype).itemsize,
        prod(spec.result_shape) * precision.numpy_dtype(spec.result_dtype).itemsize,
    )
    return Phase("finite check", bytes={"elementwise": float(sum(sizes))})


def is_finite(array: Array) -> bool:
    """Whether no element is NaN or Inf; of a device's array, once the device has looked."""
    if not isinstance(array, np.ndarray):
        return bool(namespace(array).isfinite(array).all())
    if not array.flags.c_contiguous:
        return bool(np.isfinite(array).all())
    flat = array.reshape(-1)
    if flat.dtype.kind == "c":
        # NumPy looks at the parts of complex numbers one by one, at real numbers by vectors.
        flat = flat.view(flat.real.dtype)
    return all(
        bool(np.isfinite(flat[start : start + BLOCK]).all()) for start in range(0, flat.size, BLOCK)
    )


class Guarded:
    """An executable for finite data, and what computes the rest.

    Parameters
    ----------
    spec : ConvSpec
    fast : Executable
        Used while everything is finite.
    plan_local : callable
        Plans the executable for the rest; called when it is needed for the first time.
    """

    def __init__(
        self, spec: ConvSpec, fast: Executable, plan_local: Callable[[], Executable]
    ) -> None:
        self._fast = fast
        self._plan_local = plan_local
        self._local: Executable | None = None
        # An activation can make a finite number of what is not (clip), so it may hide the spread.
        self._result_tells = spec.activation is None
        self.workspace = fast.workspace

    def pack(self, rhs: Array) -> _Operand:
        # The caller's memory may change before the other form is made.
        kept = rhs.copy()
        trusted = self._result_tells or is_finite(kept)
        return _Operand(self._fast.pack(kept), kept, trusted)

    def run(
        self, lhs: Array, packed: Any, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        if packed.is_trusted and is_finite(lhs):
            self._fast.run(lhs, packed.form, bias, out, workspace)
            if is_finite(out):
                return
        with profiling.phase("not finite"):
            local = self._local_executable()
            space = None
            if local.workspace:
                space = namespace(out).empty((local.workspace,), np.uint8)
            local.run(lhs, packed.local_form(local), bias, out, space)

    def _local_executable(self) -> Executable:
        if self._local is None:  # planned twice at worst, by two threads
            self._local = self._plan_local()
        return self._local


class _Operand:
    """The second operand in the fast form, and as given for the other form."""

    __slots__ = ("_given", "_local", "form", "is_trusted")

    def __init__(self, form: Any, given: Array, is_trusted: bool) -> None:
        self.form = form
        self.is_trusted = is_trusted
        self._given = given
        self._local: tuple[Any] | None = None

    def local_form(self, executable: Executable) -> Any:
        """Packed for the local executable, once (twice at worst, by two threads)."""
        if self._local is None:
            self._local = (executable.pack(self._given),)
        return self._local[0]
