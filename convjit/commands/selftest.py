"""``python -m convjit selftest``: the named cases on this machine; of a GPU, a whole report."""

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
    parser.add_argument(
        "--device", choices=("cpu", "cuda"),
        help="backends on it alone; cuda runs all cases on every solver, times layers beside "
        "PyTorch where that is installed, and prints a report in Markdown",
    )  # fmt: skip
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

    def progress(line: str) -> None:
        print(line, file=sys.stderr)

    on_gpu = options.device == "cuda"
    results = selftest.run(chosen, full=options.full or on_gpu, each_solver=on_gpu, told=progress)
    failed = any(result.failures for result in results)
    found = {"results": [result.as_dict() for result in results], "passed": not failed}
    if on_gpu:
        from convjit.bench import gpu

        names = [name for name, _ in chosen]
        facts, timed = gpu.facts(names), gpu.measure(names, told=progress)
        found |= {"facts": facts, "layers": gpu.as_dicts(timed)}
        shown = selftest.report(results, gpu.text(facts, timed))
    else:
        shown = selftest.text(results)
    if options.json:
        print_json(found)
    else:
        tell(shown)
        tell("failed" if failed else "all is well")
    return FAILED if failed else OK
