"""The subcommands of ``python -m convjit``, a module each.

A module has ``TOLD`` (a line of help, without a capital), ``EXAMPLES`` (lines of a shell),
``add_arguments(parser)`` and ``run(options)``, which returns the exit code.  It imports what is
heavy inside ``run``: the help of all commands imports every module.
"""

COMMANDS = (
    "info",
    "demo",
    "explain",
    "bench",
    "calibrate",
    "regret",
    "tune",
    "warmup",
    "selftest",
)  # in the order of the help
