"""``python -m convjit explain --ptx``: what the assembler makes of kernels, without a GPU."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convjit.commands.common import FAILED, OK, UsageError, complain, print_json, tell
from convjit.commands.problem import described
from convjit.commands.values import capabilities, positive

if TYPE_CHECKING:
    from convjit.spec import ConvSpec
    from convjit.spi import DeviceCode

GENERATIONS = ((8, 0), (9, 0), (10, 0))

# Of the keyword arguments that describe a problem, those that are parsed apart.
_PARSED = {"bias": None, "direction": "forward", "dtype": None}


def add_arguments(group: Any) -> None:
    """The arguments that ``explain`` has for it."""
    group.add_argument(
        "--ptx", type=capabilities, nargs="?", const=GENERATIONS, metavar="CC[,CC]",
        help="what the assembler makes of the GPU backends' kernels, for compute capabilities "
        "(default: 8.0,9.0,10.0): registers, spills, occupancy, share of multiply-adds; needs no "
        "GPU (extra gpu-test).  The problem may also be a file that ends in .ptx",
    )  # fmt: skip
    group.add_argument(
        "--threads", type=positive, default=256, metavar="N",
        help="of a block, for the kernels of a .ptx file (default: %(default)d)",
    )  # fmt: skip


def show(options: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from convjit import machinecode
    from convjit.errors import BackendError

    if (reason := machinecode.missing()) is not None:
        raise BackendError(f"{reason}.")
    found = []
    for capability in options.ptx:
        # A kernel that two solvers launch is shown once.
        kernels = {code.name: code for code in _device_code(options, capability)}
        found += [(machinecode.measure(k, capability), k.solver) for k in kernels.values()]
    if options.json:
        print_json([
            {"kernel": f.kernel, "architecture": f.architecture, "solver": solver, **f.as_dict()}
            for f, solver in found
        ])  # fmt: skip
    elif found:
        tell(machinecode.text(figures for figures, _ in found))
    else:
        complain("no solver has kernels for this problem as it is; try NCHW, zero-padded, forward")
    return OK if found else FAILED


def _device_code(options: argparse.Namespace, capability: tuple[int, int]) -> Iterator[DeviceCode]:
    """The kernels of a .ptx file, or those that GPU backends would launch for a problem."""
    from convjit import calls, machinecode, registry
    from convjit.spi import DeviceCode

    if options.problem[0].endswith(".ptx"):
        try:
            text = Path(options.problem[0]).read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{options.problem[0]} cannot be read: {error.strerror}") from error
        for entry in machinecode.entries(text):
            yield DeviceCode(entry, text, options.threads, entry=entry)
        return
    shapes, given = described(options.problem, options)
    names = options.backend or registry.names()
    bias, direction, dtype = (given.pop(n, d) for n, d in _PARSED.items())
    try:
        problem, _, _ = calls.problem_and_request(*shapes, bias, direction, dtype, True, given)
    except TypeError as error:
        raise UsageError(str(error)) from error
    for name in names:
        offer = getattr(registry.without_device(name), "device_code", None)
        if offer is None and options.backend:
            raise UsageError(f"backend {name!r} has no kernels for GPUs to show")
        for code in _offered(name, offer, problem.spec, capability) if offer is not None else ():
            if not options.algorithm or _is_of(code.solver, options.algorithm):
                yield code


def _offered(
    name: str,
    offer: Callable[..., Iterable[DeviceCode]],
    spec: ConvSpec,
    capability: tuple[int, int],
) -> Iterator[DeviceCode]:
    from convjit.errors import BackendError

    try:
        yield from offer(spec, capability)
    except ImportError as error:
        missing = f"{name}'s kernels cannot be compiled: {error}"
        raise BackendError(f"{missing}; pip install 'convjit[gpu-test]'.") from error


def _is_of(solver: str, algorithm: str) -> bool:
    """Whether ``algorithm`` is a solver's id or its family."""
    return solver == algorithm or algorithm in solver.split(".")[1:]
