"""``python -m convjit selftest``: the named cases on this machine."""

from __future__ import annotations

import argparse
import sys

from convjit.commands.common import FAILED, NO_DEVICE, OK, complain, print_json, tell
from convjit.commands.values import words
from convjit.errors import BackendError

TOLD = "check that every healthy backend computes the named cases correctly"
EXAMPLES = (
    "  python -m convjit selftest\n"
    "  python -m convjit selftest --backend numba --full\n"
    "  python -m convjit selftest --device cuda"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("--backend", type=words, default=[], metavar="NAME[,NAME]")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--full", action="store_true", help="all cases instead of the quick ones")


def run(options: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from convjit import selftest

    try:
        chosen, told = selftest.backends_to_test(options.backend, options.device)
    except BackendError as error:
        complain(str(error))
        return NO_DEVICE if options.device is not None else FAILED
    for line in told:
        sys.stderr.write(f"not tested: {line}\n")
    results = selftest.run(
        chosen, full=options.full, told=lambda line: print(line, file=sys.stderr)
    )
    failed = any(result.failures for result in results)
    if options.json:
        print_json({"results": [result.as_dict() for result in results], "passed": not failed})
    else:
        tell(selftest.text(results))
        tell("failed" if failed else "all is well")
    return FAILED if failed else OK
