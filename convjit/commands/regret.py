"""``python -m convjit regret``: the choice beside the best that it could have been."""

from __future__ import annotations

import argparse
import sys

from convjit.commands.common import FAILED, OK, UsageError, print_json, tell
from convjit.commands.values import positive, words

TOLD = "time what is chosen against everything it is chosen from, on problems held out from fitting"
EXAMPLES = (
    "  python -m convjit regret\n"
    "  python -m convjit regret --group dense,image --each 3 --detail\n"
    "  python -m convjit regret conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1 --detail"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("specs", nargs="*", metavar="SPEC", help="these instead, planned")
    group = parser.add_argument_group("the problems")
    group.add_argument(
        "--group", type=words, default=[], metavar="NAME[,NAME]", help="kinds of problems (all)"
    )
    group.add_argument(
        "--each", type=positive, default=6, help="problems of each kind (default: %(default)s)"
    )
    group.add_argument(
        "--seed", type=int, default=0, help="another set: 0 is what is reported and never fitted"
    )
    group = parser.add_argument_group("how")
    group.add_argument(
        "--seconds", type=float, default=0.03, help="on each candidate (default: %(default)s)"
    )
    group.add_argument("--detail", action="store_true", help="every candidate that was timed")
    group.add_argument("--quiet", action="store_true", help="no progress on the error stream")


def run(options: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from convjit.bench import heldout, regret
    from convjit.errors import BackendError
    from convjit.spec import ConvSpec

    unknown = [name for name in options.group if name not in heldout.GROUPS]
    if unknown:
        raise UsageError(
            f"--group: {unknown[0]!r} is not known; choose from {', '.join(heldout.GROUPS)}"
        )
    if options.specs and options.group:
        raise UsageError("--group chooses from the set; leave it out, or the specs")
    trials = [heldout.Trial("given", str(ConvSpec.parse(word))) for word in options.specs]
    trials = trials or list(heldout.trials(options.seed, options.each, tuple(options.group)))
    rows, failed = [], False
    for trial in trials:
        try:
            rows.append(regret.measured(trial, options.seconds))
        except BackendError as error:
            sys.stderr.write(f"{trial.title}: {error}\n")
            failed = True
            continue
        if not (options.quiet or options.json):
            sys.stderr.write(f"{rows[-1].regret:5.2f}  {trial.title}\n")
    if options.json:
        print_json(regret.as_dict(rows))
    else:
        tell(regret.text(rows, detail=options.detail))
    return FAILED if failed else OK
