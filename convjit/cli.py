"""The command line: ``python -m convjit {info,demo,explain,bench,warmup,selftest}``.

Exit codes: 0 all is well; 1 a check or a library of ours failed; 2 the arguments, the settings or
the environment are wrong, told in one line on the standard error stream; 3 the device asked for is
not there.  ``--json`` prints one JSON document on the standard output and nothing else there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convjit import config
from convjit._version import __version__
from convjit.cli_values import activation, padding, positive, shape, sizes, words
from convjit.errors import BackendError, ConfigError, ConvSpecError, UnsupportedError

OK, FAILED, USAGE, NO_DEVICE = 0, 1, 2, 3

_EXIT_CODES = "exit codes: 0 well, 1 failed, 2 wrong arguments or settings, 3 no such device"


class UsageError(Exception):
    """An argument that argparse cannot judge; the message is the line to print."""


# -------------------------------------------------------------------- the parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convjit",
        description="Convolutions of NumPy arrays: what would run, why, how fast, and how exactly.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"convjit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, told: str, examples: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=told,
            description=f"{told[0].upper()}{told[1:]}.",
            epilog=f"examples:\n{examples}\n\n{_EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.add_argument("--json", action="store_true", help="print JSON, for programs")
        return made

    _add_info(add)
    _add_demo(add)
    _add_explain(add)
    _add_bench(add)
    _add_warmup(add)
    _add_selftest(add)
    return parser


def _add_info(add: Any) -> None:
    parser = add(
        "info",
        "show versions, the machine, the settings in force and the backends",
        "  python -m convjit info\n  python -m convjit info --measure --json",
    )
    parser.add_argument(
        "--measure", action="store_true",
        help="measure what the machine can do first (some seconds; the backends remember it)",
    )  # fmt: skip
    parser.add_argument(
        "--lazy", action="store_true", help="import no backend to ask for its health"
    )
    parser.set_defaults(run=_info)


def _add_demo(add: Any) -> None:
    parser = add(
        "demo",
        "convolve a photograph and the layers of ResNet-50, explaining every choice",
        "  python -m convjit demo\n  python -m convjit demo --image me.jpg --output pictures",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("convjit-demo"), metavar="DIR",
        help="where to write the pictures (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--image", type=Path, metavar="FILE", help="another photograph")
    parser.set_defaults(run=_demo)


def _add_explain(add: Any) -> None:
    parser = add(
        "explain",
        "rank what could compute a convolution, and say what rules out the rest",
        "  python -m convjit explain 1,64,56,56 64,64,3,3 --padding 1\n"
        "  python -m convjit explain conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1 --measure\n"
        "  python -m convjit explain 512,512 9,9 --padding same --pad-mode reflect --json",
    )
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
    group.add_argument("--measure", action="store_true", help="time the candidates too")
    parser.set_defaults(run=_explain)


def _add_bench(add: Any) -> None:
    parser = add(
        "bench",
        "time convolutions, beside other libraries with --peers",
        "  python -m convjit bench\n"
        "  python -m convjit bench --peers --network resnet50,vgg19\n"
        "  python -m convjit bench --peers --images --signals --markdown\n"
        "  python -m convjit bench conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1 --engines convjit\n"
        "  python -m convjit bench --network resnet50 --family channels=64,size=56 --plot it.png",
    )
    parser.add_argument("specs", nargs="*", metavar="SPEC", help="specs to time")
    group = parser.add_argument_group("what to time (without any: a small workload)")
    group.add_argument(
        "--network", type=words, action="extend", default=[], metavar="NAME[,NAME]",
        help="layers of networks; all for every one",
    )  # fmt: skip
    group.add_argument("--networks-file", type=Path, metavar="FILE", help="a JSON file of layers")
    group.add_argument("--images", action="store_true", help="plain images")
    group.add_argument("--signals", action="store_true", help="plain signals")
    group.add_argument("--dtype", default="float32", help="of network layers (default: float32)")
    group.add_argument("--batch", type=positive, help="of network layers")
    group.add_argument(
        "--direction", choices=["forward", "transposed", "input_grad", "weight_grad"],
        default="forward", help="of network layers (default: forward)",
    )  # fmt: skip
    group.add_argument(
        "--family", action="append", default=[], metavar="FAMILY",
        help="a layer by kernel size and algorithm: channels=64,size=56 (also out, batch, groups, "
        "stride, dilation, dtype, layout), or a spec; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--kernels", type=shape, metavar="N[,N]", help="kernel sizes of the families"
    )
    group = parser.add_argument_group("how")
    group.add_argument(
        "--peers", action="store_true", help="beside every other library that is installed"
    )
    group.add_argument(
        "--engines", type=words, metavar="NAME[,NAME]", help="these alone; list names one by one"
    )
    group.add_argument("--plain", action="store_true", help="plain calls of layers, not plans")
    group.add_argument("--threads", type=positive, help="(default: all usable cores)")
    group.add_argument("--seconds", type=float, default=0.12, help="a turn (default: %(default)s)")
    group.add_argument("--rounds", type=positive, default=3, help="turns (default: %(default)s)")
    group = parser.add_argument_group("what to print")
    group.add_argument("--detail", action="store_true", help="every layer of the networks too")
    group.add_argument("--markdown", action="store_true", help="tables in Markdown")
    group.add_argument(
        "--plot", type=Path, metavar="PATH",
        help="draw the roofline, and the families below it, as PNG or SVG (extra plot)",
    )  # fmt: skip
    group.add_argument("--quiet", action="store_true", help="no progress on the error stream")
    parser.set_defaults(run=_bench)


def _add_warmup(add: Any) -> None:
    parser = add(
        "warmup",
        "compile ahead what convolutions need, so that no first call waits for it",
        "  python -m convjit warmup resnet50 mobilenet_v2\n"
        "  python -m convjit warmup layers.json --batch 8 --dtype float64\n"
        "  python -m convjit warmup conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1",
    )
    parser.add_argument(
        "problems", nargs="+", metavar="SPEC | NETWORK | FILE",
        help="a spec, a network that bench knows, or a JSON file of layers by network",
    )  # fmt: skip
    parser.add_argument("--dtype", default="float32", help="of layers (default: float32)")
    parser.add_argument("--batch", type=positive, help="of layers")
    parser.add_argument("--backend", type=words, metavar="NAME[,NAME]")
    parser.add_argument("--quiet", action="store_true", help="no progress on the error stream")
    parser.set_defaults(run=_warmup)


def _add_selftest(add: Any) -> None:
    parser = add(
        "selftest",
        "check that every healthy backend computes the named cases correctly",
        "  python -m convjit selftest\n"
        "  python -m convjit selftest --backend numba --full\n"
        "  python -m convjit selftest --device cuda",
    )
    parser.add_argument("--backend", type=words, default=[], metavar="NAME[,NAME]")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--full", action="store_true", help="all cases instead of the quick ones")
    parser.set_defaults(run=_selftest)


# -------------------------------------------------------------------- the commands


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _info(options: argparse.Namespace) -> int:
    from convjit import environment

    if options.measure:
        environment.measure()
    if options.json:
        _print_json(environment.facts(load=not options.lazy))
    else:
        _tell(environment.describe(load=not options.lazy))
    return OK


def _demo(options: argparse.Namespace) -> int:
    from convjit import demo

    try:
        show = demo.run(
            options.output,
            image=options.image,
            told=(lambda line: None) if options.json else _tell,
        )
    except (demo.MissingError, OSError) as error:
        raise UsageError(str(error)) from error
    if options.json:
        _print_json(
            {
                "peak": show.peak, "filters": show.filters, "layers": show.layers,
                "pictures": show.pictures, "seconds": show.seconds,
            }
        )  # fmt: skip
    else:
        _tell(f"{show.seconds:.0f} s")
    return OK


_PROBLEM = (
    "direction", "dtype", "stride", "padding", "dilation", "groups", "pad_mode", "flip", "layout",
    "bias", "activation", "output_padding", "output_size",
)  # fmt: skip
_CHOICE = ("algorithm", "precision", "nonfinite", "workspace_limit", "deterministic")


def _explain(options: argparse.Namespace) -> int:
    import convjit
    from convjit import calls

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
    given["backend"] = _one_or_more(options.backend)
    if "dtype" in given:
        given["dtype"] = _dtype(given["dtype"])
    try:
        explanation = convjit.explain(*shapes, packed=options.packed, **given)
    except TypeError as error:  # of an argument's value: the names are ours
        raise UsageError(str(error)) from error
    if options.measure:
        explanation = explanation.measure()
    if options.json:
        _print_json(explanation.as_dict())
    else:
        _tell(str(explanation))
    return OK if explanation.winner is not None or explanation.spec.is_empty else FAILED


def _dtype(name: str) -> Any:
    from convjit import precision

    full = precision.DTYPES.get(name, name)
    if full not in precision.SHORT:
        raise UsageError(f"--dtype {name} is not known; choose one of {', '.join(precision.SHORT)}")
    return precision.numpy_dtype(full)


def _bench(options: argparse.Namespace) -> int:
    from convjit import precision
    from convjit.bench import cases, engines, family, plot, report, runner

    if options.kernels is not None and not options.family:
        raise UsageError("--kernels are those of a family; name it with --family")
    families = [family.parse(text, options.kernels) for text in options.family]
    dtype = precision.DTYPES.get(options.dtype, options.dtype)
    chosen: list[Any] = list(cases.spec_cases(options.specs))
    source = None
    names = options.network
    if options.networks_file is not None:
        source = cases.read_networks(options.networks_file)
        names = names or ["all"]
    if "all" in names:
        names = list(cases.networks() if source is None else source)
    chosen += cases.network_cases(
        names, source, batch=options.batch, dtype=dtype, direction=options.direction
    )
    chosen += cases.image_cases() if options.images else ()
    chosen += cases.signal_cases() if options.signals else ()
    chosen = chosen or [case for one in families for case in one.cases()] or cases.small_cases()
    for case in chosen:
        _check_timed(case)
    wanted = options.engines or ["convjit", *(engines.PEERS if options.peers else ())]
    unknown = [name for name in wanted if name not in engines.ENGINES]
    if unknown:
        raise UsageError(
            f"--engines: {unknown[0]!r} is not known; choose from {', '.join(engines.ENGINES)}"
        )
    if families and "convjit" not in wanted:
        raise UsageError("--family is timed by convjit; name it among --engines")
    if options.plot is not None:
        if "convjit" not in wanted:
            raise UsageError("--plot shows what convjit does; name it among --engines")
        try:
            plot.prepare(options.plot)
        except plot.PlotError as error:
            raise UsageError(str(error)) from error
    progress = not (options.quiet or options.json)

    def told(row: Any) -> None:
        if progress:
            ours = row.seconds("convjit")
            ratio = f"  ratio {row.ratio:.2f}" if row.ratio else ""
            took = f"{ours * 1e3:.3f} ms" if ours else "-"
            sys.stderr.write(f"{row.case.title}: {took}{ratio}\n")

    how: dict[str, Any] = {
        "threads": options.threads or config.num_threads(), "seconds": options.seconds,
        "rounds": options.rounds, "plain": options.plain, "told": told,
    }  # fmt: skip
    found = runner.run(chosen, wanted, bandwidth=options.plot is not None, **how)
    sweeps = [family.sweep(one, **how) for one in families]
    if options.json:
        more = {"families": [one.as_dict() for one in sweeps]} if sweeps else {}
        drawn = {"roofline": plot.as_dict(found)} if options.plot is not None else {}
        _print_json(found.as_dict() | more | drawn)
    else:
        _tell(report.text(found, detail=options.detail, as_markdown=options.markdown))
        for one in sweeps:
            _tell("\n" + family.text(one, as_markdown=options.markdown))
    if options.plot is not None:
        try:
            plot.draw(options.plot, found, sweeps)
        except plot.PlotError as error:
            raise UsageError(str(error)) from error
    return FAILED if found.ours_failed or any(one.failures for one in sweeps) else OK


def _check_timed(case: Any) -> None:
    from convjit.bench import verify

    verify.check_supported(case.problem)


def _warmup(options: argparse.Namespace) -> int:
    from convjit import warmup

    specs = warmup.specs(options.problems, batch=options.batch, dtype=options.dtype)
    quiet = options.quiet or options.json
    found = warmup.run(specs, _one_or_more(options.backend), quiet=quiet)
    if options.json:
        _print_json(warmup.as_dict(found))
    else:
        _tell(warmup.text(found))
    return FAILED if any(row.failure for row in found) else OK


def _one_or_more(names: list[str] | None) -> str | tuple[str, ...] | None:
    if not names:
        return None
    return names[0] if len(names) == 1 else tuple(names)


def _selftest(options: argparse.Namespace) -> int:
    from convjit import selftest

    try:
        chosen, told = selftest.backends_to_test(options.backend, options.device)
    except BackendError as error:
        _complain(str(error))
        return NO_DEVICE if options.device is not None else FAILED
    for line in told:
        sys.stderr.write(f"not tested: {line}\n")
    results = selftest.run(
        chosen, full=options.full, told=lambda line: print(line, file=sys.stderr)
    )
    failed = any(result.failures for result in results)
    if options.json:
        _print_json({"results": [result.as_dict() for result in results], "passed": not failed})
    else:
        _tell(selftest.text(results))
        _tell("failed" if failed else "all is well")
    return FAILED if failed else OK


# -------------------------------------------------------------------- entry


def _complain(message: str) -> None:
    """One line on the error stream."""
    sys.stderr.write("convjit: " + " ".join(message.split()) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a narrow encoding must not break a table
            stream.reconfigure(errors="replace")
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except (ConvSpecError, ConfigError, UnsupportedError, BackendError, UsageError) as error:
        kind = "usage" if isinstance(error, UsageError) else type(error).__name__
        _complain(f"{kind}: {error}")
        return USAGE
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return OK
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    return code
