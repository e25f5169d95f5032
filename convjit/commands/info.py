"""``python -m convjit info``: versions, the machine, the settings and the backends."""

from __future__ import annotations

import argparse

from convjit.commands.common import OK, print_json, tell

TOLD = "show versions, the machine, the settings in force and the backends"
EXAMPLES = "  python -m convjit info\n  python -m convjit info --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "--lazy", action="store_true", help="import no backend to ask for its health"
    )


def run(options: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from convjit import environment

    if options.json:
        print_json(environment.facts(load=not options.lazy))
    else:
        tell(environment.describe(load=not options.lazy))
    return OK
