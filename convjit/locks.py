"""Locks that no forked child finds held."""

from __future__ import annotations

import os
import threading


def lock_held_over_forks() -> threading._RLock:
    """A reentrant lock that a fork takes first and gives back in parent and child.

    A child has the thread that forked and no other: a lock that another thread held at that moment
    would never be released, and what it protects might be half changed.
    """
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )
    return lock
