"""``python -m convjit demo``: a tour in pictures and tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from convjit.commands.common import OK, UsageError, print_json, tell

TOLD = "convolve a photograph and the layers of ResNet-50, explaining every choice"
EXAMPLES = "  python -m convjit demo\n  python -m convjit demo --image me.jpg --output pictures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "--output", type=Path, default=Path("convjit-demo"), metavar="DIR",
        help="where to write the pictures (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--image", type=Path, metavar="FILE", help="another photograph")


def run(options: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from convjit import demo

    try:
        show = demo.run(
            options.output,
            image=options.image,
            told=(lambda line: None) if options.json else tell,
        )
    except (demo.MissingError, OSError) as error:
        raise UsageError(str(error)) from error
    if options.json:
        print_json(
            {
                "peak": show.peak, "filters": show.filters, "layers": show.layers,
                "pictures": show.pictures, "seconds": show.seconds,
            }
        )  # fmt: skip
    else:
        tell(f"{show.seconds:.0f} s")
    return OK
