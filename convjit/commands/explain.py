"""``python -m convjit explain``: what would run, what else could, and why not the rest."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from convjit.commands.common import FAILED, OK, UsageError, print_json, tell
from convjit.commands.values import activation, one_or_more, padding, positive, shape, sizes, words

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
    group = parser.add_argument_group("the convolution (with shapes)")
    group.add_argument("--direction", help="forward, transposed, input_grad or weight_grad")
    group.add_argument("--dtype", help="of both operands (default: float32)")
    group.add_argument("--stride", type=sizes, metavar="N[,N]")
    group.add_argument("--padding", type=padding, metavar="P", help="1 or 1,2 or 0:1,2:2 or same")
    group.add_argument("--dilation", type=sizes, metavar="N[,N]")
    group.add_argument("--groups", type=positive, metavar="N")
    group.add_argument("--pad-mode", metavar="MODE")
    group.add_argument("--flip", action="store_true", default=None)
    group.add_argument("--layout", help="such as NCHW, NHWC, HW")
    group.add_argument("--bias", action="store_true", default=None)
    group.add_argument("--activation", type=activation, metavar="NAME[,NUMBER]")
    group.add_argument("--output-padding", type=sizes, metavar="N[,N]")
    group.add_argument("--output-size", type=sizes, metavar="N[,N]")
    group = parser.add_argument_group("the choice")
    group.add_argument("--backend", type=words, metavar="NAME[,NAME]")
    group.add_argument("--algorithm", metavar="NAME", help="a family or a solver's id")
    group.add_argument("--precision", help="exact, default or fast")
    group.add_argument("--nonfinite", help="local or spread")
    group.add_argument("--workspace-limit", type=int, metavar="BYTES")
    group.add_argument("--deterministic", action="store_true", default=None)
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


_PROBLEM = (
    "direction", "dtype", "stride", "padding", "dilation", "groups", "pad_mode", "flip", "layout",
    "bias", "activation", "output_padding", "output_size",
)  # fmt: skip
_CHOICE = ("algorithm", "precision", "nonfinite", "workspace_limit", "deterministic")


def run(options: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    import convjit
    from convjit import calls, pictures

    first, *rest = options.problem
    given = {
        name: getattr(options, name) for name in _PROBLEM if getattr(options, name) is not None
    }
    if len(rest) > 1:
        raise UsageError(f"explain takes a spec, or two shapes, not {len(rest) + 1} of them")
    if rest:
        try:
            shapes = shape(first), shape(rest[0])
        except argparse.ArgumentTypeError as error:
            raise UsageError(str(error)) from error
    else:
        if "_" not in first:
            raise UsageError(f"{first!r} is neither a spec nor followed by the shape of w")
        if given:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(f"a spec says everything about the convolution; leave out {named}")
        shapes, given = calls.described(convjit.ConvSpec.parse(first))
    for name in _CHOICE:
        given[name] = getattr(options, name)
    given["backend"] = one_or_more(options.backend)
    if "dtype" in given:
        given["dtype"] = _dtype(given["dtype"])
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


def _dtype(name: str) -> Any:
    from convjit import precision

    full = precision.DTYPES.get(name, name)
    if full not in precision.SHORT:
        raise UsageError(f"--dtype {name} is not known; choose one of {', '.join(precision.SHORT)}")
    return precision.numpy_dtype(full)
