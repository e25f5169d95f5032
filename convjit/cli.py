"""The command line: ``python -m convjit COMMAND``, one of :data:`convjit.commands.COMMANDS`.

Exit codes: 0 all is well; 1 a check or a library of ours failed; 2 the arguments, the settings or
the environment are wrong, told in one line on the standard error stream; 3 the device asked for is
not there.  ``--json`` prints one JSON document on the standard output and nothing else there.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

from convjit._version import __version__
from convjit.commands import COMMANDS
from convjit.commands.common import OK, USAGE, UsageError, complain
from convjit.errors import (
    BackendError,
    ConfigError,
    ConvjitWarning,
    ConvSpecError,
    UnsupportedError,
)

_EXIT_CODES = "exit codes: 0 well, 1 failed, 2 wrong arguments or settings, 3 no such device"


class _Parser(argparse.ArgumentParser):
    """Tells of a wrong argument in one line, and where the right ones are listed."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; {self.prog} --help lists what there is")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m convjit",
        description="Convolutions of NumPy arrays: what would run, why, how fast, and how exactly.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"convjit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f"convjit.commands.{name}")
        made = commands.add_parser(
            name,
            help=module.TOLD,
            description=f"{module.TOLD[0].upper()}{module.TOLD[1:]}.",
            epilog=f"examples:\n{module.EXAMPLES}\n\n{_EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.add_argument("--json", action="store_true", help="print JSON, for programs")
        module.add_arguments(made)
        made.set_defaults(run=module.run)
    return parser


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Ours are for people who know nothing of files and lines of Python."""
    before = warnings.formatwarning

    def told(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
        if issubclass(category, ConvjitWarning):
            return f"convjit: warning: {' '.join(str(message).split())}\n"
        return before(message, category, *where, **more)

    warnings.formatwarning = told
    try:
        yield
    finally:
        warnings.formatwarning = before


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a narrow encoding must not break a table
            stream.reconfigure(errors="replace")
    try:
        options = _parser().parse_args(arguments)
        with _warnings_in_one_line():
            code: int = options.run(options)
    except (ConvSpecError, ConfigError, UnsupportedError, BackendError, UsageError) as error:
        kind = "usage" if isinstance(error, UsageError) else type(error).__name__
        complain(f"{kind}: {error}")
        return USAGE
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return OK
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    return code
