"""``python -m convjit bench``: times, beside those of other libraries."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from convjit import config
from convjit.commands.common import FAILED, OK, UsageError, print_json, tell
from convjit.commands.values import positive, shape, words

TOLD = "time convolutions, beside other libraries with --peers"
EXAMPLES = (
    "  python -m convjit bench\n"
    "  python -m convjit bench --peers --network resnet50,vgg19\n"
    "  python -m convjit bench --peers --images --signals --markdown\n"
    "  python -m convjit bench conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1 --engines convjit\n"
    "  python -m convjit bench --network resnet50 --family channels=64,size=56 --plot it.png"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("specs", nargs="*", metavar="SPEC", help="specs to time")
    group = parser.add_argument_group("what to time (without any: a small workload)")
    group.add_argument(
        "--network", type=words, action="extend", default=[], metavar="NAME[,NAME]",
        help="layers of networks; all for every one",
    )  # fmt: skip
    group.add_argument(
        "--networks-file", type=Path, metavar="FILE", help="a JSON file of layers, or an ONNX model"
    )
    group.add_argument(
        "--layers", action="store_true",
        help="layers by kind: dilated, grouped, transposed, 3-D, 1-D, float64, gradients",
    )  # fmt: skip
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


def run(options: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from convjit import pictures, precision
    from convjit.bench import cases, engines, family, plot, report, runner

    if options.kernels is not None and not options.family:
        raise UsageError("--kernels are those of a family; name it with --family")
    families = [family.parse(text, options.kernels) for text in options.family]
    dtype = precision.DTYPES.get(options.dtype, options.dtype)
    chosen: list[Any] = list(cases.spec_cases(options.specs))
    source = None
    names = options.network
    if options.networks_file is not None:
        source = cases.read_networks(options.networks_file, batch=options.batch)
        names = names or ["all"]
    if "all" in names:
        names = list(cases.networks() if source is None else source)
    chosen += cases.network_cases(
        names, source, batch=options.batch, dtype=dtype, direction=options.direction
    )
    chosen += cases.kind_cases() if options.layers else ()
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
            pictures.prepare(options.plot)
        except pictures.PlotError as error:
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
        print_json(found.as_dict() | more | drawn)
    else:
        tell(report.text(found, detail=options.detail, as_markdown=options.markdown))
        for one in sweeps:
            tell("\n" + family.text(one, as_markdown=options.markdown))
    if options.plot is not None:
        try:
            plot.draw(options.plot, found, sweeps)
        except pictures.PlotError as error:
            raise UsageError(str(error)) from error
    return FAILED if found.ours_failed or any(one.failures for one in sweeps) else OK


def _check_timed(case: Any) -> None:
    from convjit.bench import verify

    verify.check_supported(case.problem)
