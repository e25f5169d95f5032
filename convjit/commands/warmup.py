"""``python -m convjit warmup``: kernels compiled ahead."""

from __future__ import annotations

import argparse

from convjit.commands.common import FAILED, OK, print_json, tell
from convjit.commands.problem import add_input_shape
from convjit.commands.values import one_or_more, positive, words

TOLD = "compile ahead what convolutions need, so that no first call waits for it"
EXAMPLES = (
    "  python -m convjit warmup resnet50 mobilenet_v2\n"
    "  python -m convjit warmup layers.json --batch 8 --dtype float64\n"
    "  python -m convjit warmup conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "problems", nargs="+", metavar="SPEC | NETWORK | FILE",
        help="a spec, a network that bench knows, a JSON file of layers by network, or an ONNX "
        "model (extra onnx)",
    )  # fmt: skip
    parser.add_argument("--dtype", default="float32", help="of layers (default: float32)")
    parser.add_argument("--batch", type=positive, help="of layers")
    add_input_shape(parser)
    parser.add_argument("--backend", type=words, metavar="NAME[,NAME]")
    parser.add_argument("--quiet", action="store_true", help="no progress on the error stream")


def run(options: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from convjit import warmup

    specs = warmup.specs(
        options.problems, batch=options.batch, dtype=options.dtype, input_shape=options.input_shape
    )
    quiet = options.quiet or options.json
    found = warmup.run(specs, one_or_more(options.backend), quiet=quiet)
    if options.json:
        print_json(warmup.as_dict(found))
    else:
        tell(warmup.text(found))
    return FAILED if any(row.failure for row in found) else OK
