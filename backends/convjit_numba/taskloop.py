"""The loop around the tasks of a kernel: each is taken by whichever thread is free next."""

from __future__ import annotations

from collections.abc import Callable

from convjit_numba.problem import FIELD


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
    from convjit_numba.microkernel import atomic_add, load_int

    f = dict(FIELD)
    TASKS, GRAIN, SLOT_BYTES = f["tasks"], f["grain"], f["slot_bytes"]

    def kernel(g, lhs, packed, bias, out, workspace, control):
        tasks, grain = load_int(g + TASKS), load_int(g + GRAIN)
        slot = 0
        if control != 0:
            slot = atomic_add(control + 64, 1)
        mine = workspace + slot * load_int(g + SLOT_BYTES)
        first = 0
        fresh = 1
        while True:
            if control != 0:
                first = atomic_add(control, grain)
            if first >= tasks:
                break
            if fresh != 0:
                start(g, mine)
                fresh = 0
            last = min(first + grain, tasks)
            for task in range(first, last):
                run(g, lhs, packed, bias, out, mine, task)
            if control == 0:
                first = last

    return kernel
