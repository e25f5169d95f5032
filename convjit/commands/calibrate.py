"""``python -m convjit calibrate``: the machine measured, for the cost model."""

from __future__ import annotations

import argparse

from convjit.commands.common import FAILED, OK, print_json, tell
from convjit.commands.values import words

TOLD = "measure the machine, so that choices are made by its own figures"
EXAMPLES = (
    "  python -m convjit calibrate\n"
    "  CONVJIT_NUM_THREADS=1 python -m convjit calibrate --backend numba\n"
    "  python -m convjit calibrate --forget"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "--backend", type=words, default=[], metavar="NAME[,NAME]", help="these alone"
    )
    parser.add_argument(
        "--forget", action="store_true", help="go back to the tables, and measure nothing"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on the error stream")


def run(options: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from convjit import calibration, config, registry, warmup

    if options.forget:
        for name in options.backend:
            registry.get(name)
        count = calibration.forget(options.backend)
        if options.json:
            print_json({"forgotten": count})
        else:
            tell(f"{count} calibrations forgotten" if count != 1 else "1 calibration forgotten")
        return OK
    quiet = options.quiet or options.json
    found = calibration.calibrate(
        options.backend,
        progress=None if quiet else warmup.progress,
        processes=config.available_cores(),
    )
    if options.json:
        print_json(found.as_dict())
    else:
        tell(str(found))
    return OK if found.kept else FAILED
