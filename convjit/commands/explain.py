"""``python -m convjit explain``: what would run, what else could, and why not the rest."""

from __future__ import annotations

import argparse
from pathlib import Path

from convjit.commands import machinecode
from convjit.commands.common import FAILED, OK, UsageError, check_budget, print_json, tell
from convjit.commands.problem import add_choice, add_convolution, described
from convjit.commands.values import activation, seconds, shape

TOLD = "rank what could compute a convolution, and say what rules out the rest"
EXAMPLES = (
    "  python -m convjit explain 1,64,56,56 64,64,3,3 --padding 1\n"
    "  python -m convjit explain conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1 --compare\n"
    "  python -m convjit explain 512,512 9,9 --padding same --pad-mode reflect --json\n"
    "  python -m convjit explain 1,64,56,56 64,64,3,3 --padding 1 --plot choice.png\n"
    "  python -m convjit explain 1,56,56,64 64,1,3,3 128,64 --layout NHWC --padding 1\n"
    "  python -m convjit explain 1,64,56,56 64,64,3,3 --padding 1 --repro > test_it.py\n"
    "  python -m convjit explain 8,64,56,56 64,64,3,3 --padding 1 --ptx 8.0,9.0\n"
    "  python -m convjit explain kernels.ptx --ptx 9.0 --threads 256"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "problem", nargs="+", metavar="SPEC | X W [W_POINT]",
        help="a spec, or the shapes of x and w, such as 1,64,56,56 64,64,3,3; a third shape is of "
        "the pointwise weights of a separable layer, such as 1,56,56,64 64,1,3,3 128,64",
    )  # fmt: skip
    add_convolution(parser)
    parser.add_argument(
        "--depth-activation", type=activation, metavar="NAME[,NUMBER]",
        help="of a separable layer, between its two convolutions",
    )  # fmt: skip
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
        "--budget", type=seconds, default=30.0, metavar="SECONDS",
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
    machinecode.add_arguments(group)


def run(options: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    check_budget(options.budget)
    if options.ptx is not None:
        return machinecode.show(options)
    if len(options.problem) == 3:
        return _separable(options)
    import convjit
    from convjit import pictures

    if options.depth_activation is not None:
        raise UsageError("--depth-activation is of separable layers; give three shapes")
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


def _separable(options: argparse.Namespace) -> int:
    """A depthwise convolution and the pointwise one after it."""
    import convjit

    if options.plot is not None or options.repro:
        raise UsageError("--plot and --repro are of one convolution; give two shapes")
    shapes, given = described(options.problem[:2], options)
    try:
        point = shape(options.problem[2])
        explanation = convjit.explain_separable(
            *shapes, point, depth_activation=options.depth_activation, packed=options.packed,
            **given,
        )  # fmt: skip
    except (TypeError, argparse.ArgumentTypeError) as error:
        raise UsageError(str(error)) from error
    if options.compare:
        explanation = explanation.compare()
    if options.json:
        print_json(explanation.as_dict())
    else:
        tell(str(explanation))
    return OK if explanation.runs is not None else FAILED
