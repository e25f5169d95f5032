"""How the threads of a kernel call share its tasks.

Tasks are divided into as many ranges of neighbours as threads were asked for.  A thread takes those
of a range of its own first and then what is left of the others' (work stealing, Blumofe and
Leiserson 1999, "Scheduling multithreaded computations by work stealing"; a shared counter for each
range does for numbers what their deques do for closures).  So no thread waits while there is a task
left, and a processor meets the same part of the arrays as in the call before, whose lines are still
in its own cache: of layers that fit there, that is a third of the time.

The control block of a call (:mod:`convjit_numba.threads`) has the next slot of workspace at
``SLOT``, the number of ranges at ``RANGES`` and, from ``TAKEN`` on, how much of every range is
taken, each on a line of its own.  A thread's address of it says in its lowest bits which range is
its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from convjit_numba.problem import FIELD
from convjit_numba.threads import LINE, RANGES, SLOT, TAKEN


@lru_cache(maxsize=1)
def sharing() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``(slot_of, take)``, for kernels to call (imports numba).

    ``slot_of(control)`` is the number of the calling thread's part of the workspace.

    ``first, last, turn = take(control, tasks, grain, turn)`` are the next tasks of the thread, at
    most ``grain`` of them where there are others to share with; none are left where ``first`` is
    ``last``.  ``turn`` begins with 0.
    """
    from numba import njit

    from convjit_numba.memory import atomic_add, load_int
    from convjit_numba.vectorcode import OPTIONS

    @njit(**OPTIONS)
    def slot_of(control):
        if control == 0:
            return 0
        return atomic_add((control & -LINE) + SLOT, 1)

    @njit(**OPTIONS)
    def take(control, tasks, grain, turn):
        if control == 0:
            return tasks * min(turn, 1), tasks, 1
        block, own = control & -LINE, control & (LINE - 1)
        ranges = load_int(block + RANGES)
        while turn < ranges:
            place = (own + turn) % ranges
            first = place * tasks // ranges
            end = (place + 1) * tasks // ranges
            first += atomic_add(block + TAKEN + place * LINE, grain)
            if first < end:
                return first, min(first + grain, end), turn
            turn += 1
        return tasks, tasks, turn

    return slot_of, take


def build(run: Callable[..., None], start: Callable[..., None]) -> Callable[..., None]:
    """A kernel of tasks (imports numba).

    Parameters
    ----------
    run : compiled function
        ``run(geometry, lhs, packed, bias, out, mine, task)`` computes one task; ``mine`` is the
        thread's own part of the workspace.
    start : compiled function
        ``start(geometry, mine)`` prepares that part, once before a thread's first task.
    """
    from convjit_numba.memory import load_int

    slot_of, take = sharing()
    f = dict(FIELD)
    TASKS, GRAIN, SLOT_BYTES = f["tasks"], f["grain"], f["slot_bytes"]

    def kernel(g, lhs, packed, bias, out, workspace, control):
        tasks, grain = load_int(g + TASKS), load_int(g + GRAIN)
        mine = workspace + slot_of(control) * load_int(g + SLOT_BYTES)
        first, last, turn = take(control, tasks, grain, 0)
        if first < last:
            start(g, mine)
        while first < last:
            for task in range(first, last):
                run(g, lhs, packed, bias, out, mine, task)
            first, last, turn = take(control, tasks, grain, turn)

    return kernel
