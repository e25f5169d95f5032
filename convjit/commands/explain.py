"""``python -m convjit explain``: what would run, what else could, and why not the rest."""

from __future__ import annotations

import argparse
from pathlib import Path

from convjit.commands.common import FAILED, OK, UsageError, print_json, tell
from convjit.commands.problem import add_choice, add_convolution, described

TOLD = "rank what could compute a convolution, and say what rules out the rest"
EXAMPLES = (
    "  python -m convjit explain 1,64,56,56 64,64,3,3 --padding 1\n"
    "  python -m convjit explain conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1 --compare\n"
    "  python -m convjit explain 512,512 9,9 --padding same --pad-mode reflect --json\n"
    "  python -m convjit explain 1,64,56,56 64,64,3,3 --padding 1 --plot choice.png\n"
    "  python -m convjit explain 1,64,56,56 64,64,3,3 --padding 1 --repro > test_it.py"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "problem", nargs="+", metavar="SPEC | X W",
        help="a spec, or the shapes of x and w, such as 1,64,56,56 64,64,3,3",
    )  # fmt: skip
    add_convolution(parser)
    group = add_choice(parser)
    group.add_argument(
        "--packed", action="store_true",
        help="as a plan runs it: the weights are packed once, and packing is not counted",
    )  # fmt: skip
    group = parser.add_argument_group("what to do")
    group.add_argument(
        "--compare", action="store_true",
        help="measure every candidate's time and error (and what --plot shows)",
    )  # fmt: skip
    group.add_argument(
        "--budget", type=float, default=30.0, metavar="SECONDS",
        help="of --compare, for the candidates and for each panel of --plot (default: %(default)g)",
    )  # fmt: skip
    group.add_argument(
        "--plot", type=Path, metavar="FILE",
        help="draw the ranking, and where algorithms cross over kernel size and channels, as PNG "
        "or SVG (extra plot)",
    )  # fmt: skip
    group.add_argument(
        "--repro", action="store_true",
        help="print a test of the choice for pytest instead of the table",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    import convjit
    from convjit import pictures

    shapes, given = described(options.problem, options)
    try:
        explanation = convjit.explain(*shapes, packed=options.packed, **given)
    except TypeError as error:  # of an argument's value: the names are ours
        raise UsageError(str(error)) from error
    if options.plot is not None:
        pictures.prepare(options.plot)
    if options.compare:
        explanation = explanation.compare(budget=options.budget)
    if options.plot is not None:
        explanation.plot(options.plot, compare=options.compare, budget=options.budget)
    repro = {"repro": explanation.repro()} if options.repro else {}
    if options.json:
        print_json(explanation.as_dict() | repro)
    else:
        tell(repro["repro"].rstrip() if repro else str(explanation))
    return OK if explanation.winner is not None or explanation.spec.is_empty else FAILED
