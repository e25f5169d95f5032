"""When choices become stale: a counter that everything which decides them moves on.

Plans are kept together with the generation in which they were chosen.  A backend that breaks or is
registered, a measurement that is remembered and a new calibration begin another generation.
"""

from __future__ import annotations

from convjit.locks import lock_held_over_forks

_lock = lock_held_over_forks()
_generation = 0


def generation() -> int:
    """A number that grows whenever a kept choice may no longer hold."""
    return _generation


def outdate() -> None:
    """Have every kept choice be made anew: what decides it changed."""
    global _generation
    with _lock:
        _generation += 1
