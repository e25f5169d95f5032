"""What the commands share: exit codes, and what they print where."""

from __future__ import annotations

import json
import sys
from typing import Any

OK, FAILED, USAGE, NO_DEVICE = 0, 1, 2, 3


class UsageError(Exception):
    """An argument that argparse cannot judge; the message is the line to print."""


def check_budget(seconds: float | None) -> None:
    """What ``--budget`` says; raises :class:`UsageError` unless it is more than 0."""
    if seconds is not None and not seconds > 0:
        raise UsageError(f"--budget {seconds:g} must be more than 0 seconds")


def print_json(value: Any) -> None:
    """One document on the standard output."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def tell(text: str) -> None:
    """Lines on the standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(message: str) -> None:
    """One line on the error stream."""
    sys.stderr.write("convjit: " + " ".join(message.split()) + "\n")
