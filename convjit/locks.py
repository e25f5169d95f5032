"""Locks that no forked child finds held."""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from typing import Any


def lock_held_over_forks() -> AbstractContextManager[Any]:
    """A reentrant lock that a fork takes first and gives back in parent and child.

    A child has the thread that forked and no other: a lock that another thread held at that moment
    would never be released, and what it protects might be half changed.
    """
    lock = threading.RLock()
    taken: list[bool] = []  # empty if a fork began before this lock was made, and ended after

    def take() -> None:
        lock.acquire()
        taken.append(True)

    def give_back() -> None:
        if taken:
            taken.pop()
            lock.release()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=take, after_in_parent=give_back, after_in_child=give_back)
    return lock
