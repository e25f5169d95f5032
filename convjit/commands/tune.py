"""``python -m convjit tune``: measure what could compute convolutions, and remember the fastest."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from convjit.commands.common import FAILED, OK, UsageError, check_budget, print_json, tell
from convjit.commands.problem import (
    add_choice,
    add_convolution,
    add_input_shape,
    choice_of,
    described,
    is_given,
)
from convjit.commands.values import positive, seconds, shape

TOLD = "measure what could compute convolutions here, and remember what is fastest"
EXAMPLES = (
    "  python -m convjit tune resnet50 --budget 120\n"
    "  python -m convjit tune mobilenet_v2 --layout NHWC\n"
    "  python -m convjit tune model.onnx --batch 8\n"
    "  python -m convjit tune layers.json conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1\n"
    "  python -m convjit tune 1,64,56,56 64,64,3,3 --padding 1\n"
    "  python -m convjit tune 1,56,56,64 64,1,3,3 128,64 --padding 1 --layout NHWC\n"
    "  python -m convjit tune --list\n"
    "  python -m convjit tune --export tuned.json\n"
    "  python -m convjit tune --import tuned.json"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "problems", nargs="*", metavar="SPEC | NETWORK | FILE | X W [W_POINT]",
        help="specs, networks that bench knows, JSON files of layers by network, ONNX models "
        "(extra onnx); or the shapes of x and w, such as 1,64,56,56 64,64,3,3, and of the "
        "pointwise weights of a separable layer, such as 1,56,56,64 64,1,3,3 128,64",
    )  # fmt: skip
    group = parser.add_argument_group("how")
    group.add_argument(
        "--budget", type=seconds, metavar="SECONDS",
        help="for all problems together, compiling included (default: 30 for each)",
    )  # fmt: skip
    group.add_argument(
        "--again", action="store_true",
        help="measure also what is remembered, of the same sizes or of others in their bucket",
    )  # fmt: skip
    group.add_argument("--threads", type=positive, help="(default: all usable cores)")
    group.add_argument("--batch", type=positive, help="of layers of networks")
    add_input_shape(group)
    group.add_argument("--quiet", action="store_true", help="no progress on the error stream")
    group = parser.add_argument_group("what is remembered")
    group.add_argument("--list", action="store_true", help="print it")
    group.add_argument("--export", type=Path, metavar="FILE", help="write all of it to a file")
    group.add_argument(
        "--import", type=Path, metavar="FILE", dest="imported",
        help="take over an exported file, in place of what is remembered of the same problems",
    )  # fmt: skip
    group.add_argument("--forget", action="store_true", help="remove all of it first")
    add_convolution(parser)
    add_choice(parser)


def run(options: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from convjit import tunedb, tuner

    check_budget(options.budget)
    wants = (options.list, options.export, options.imported, options.forget)
    if not options.problems and not any(wants):
        raise UsageError("name what to tune, or give --list, --export, --import or --forget")
    jobs = _jobs(options)
    told: dict[str, Any] = {"database": str(tunedb.DATABASE.path)}
    lines = []
    if options.forget:
        told["forgotten"] = tunedb.forget()
        lines.append(f"{told['forgotten']} entries are forgotten")
    if options.imported is not None:
        told["imported"] = tunedb.import_file(options.imported)
        lines.append(f"{told['imported']} entries from {options.imported} are remembered")
    found: list[tuner.Tuned] = []
    try:
        _tune(jobs, options, found)
    finally:  # an interrupt shows what is done, which is remembered
        if found and not options.json:
            tell(tuner.text(found))
    if options.export is not None:
        told["exported"] = tunedb.export_file(options.export)
        lines.append(f"{told['exported']} entries are written to {options.export}")
    if options.list:
        lines.append(tuner.listing())
    if options.json:
        problems = [
            {"spec": one.spec, "failure": one.failure}
            if one.tuning is None
            else one.tuning.as_dict()
            for one in found
        ]
        if options.list:
            told["remembered"] = [
                {"backend": backend, "target": target, **entry.as_dict()}
                for backend, target, entry in tunedb.everything()
            ]
        print_json(told | {"problems": problems})
    elif lines:
        tell("\n".join(lines))
    return FAILED if any(one.failure for one in found) else OK


def _jobs(options: argparse.Namespace) -> list[Any]:
    """The problems, each once; then the pairs of them that one pass may compute."""
    from convjit import tuner, warmup
    from convjit.bench import cases
    from convjit.spec import ConvSpec

    words = options.problems
    if len(words) in (2, 3) and all(_is_shape(word) for word in words):
        shapes, given = described(words[:2], options)
        return [tuner.Job(" ".join(words), (*shapes, *map(shape, words[2:])), given)]
    named = [name for name in is_given(options) if name not in ("--dtype", "--layout")]
    if named:
        raise UsageError(f"{', '.join(named)} go with the shapes of x and w alone")
    named = warmup.named(
        words, batch=options.batch, dtype=options.dtype or "float32",
        input_shape=options.input_shape,
    )  # fmt: skip
    specs = [_laid_out(ConvSpec.parse(word), options.layout) for word in named]
    choice = choice_of(options)
    jobs = [tuner.Job.of_spec(str(spec), **choice) for spec in dict.fromkeys(specs)]
    if options.algorithm is None:  # which is one of the two convolutions
        pairs = dict.fromkeys(cases.separable_pairs(specs))
        jobs += [tuner.Job.of_layer(*pair, **choice) for pair in pairs]
    return jobs


def _laid_out(spec: Any, layout: str | None) -> Any:
    """The problem in a layout, if one was given."""
    from convjit import layout as layouts

    if layout is None:
        return spec
    known = layouts.CHANNELS_FIRST[spec.ndim], layouts.CHANNELS_LAST[spec.ndim]
    if layout not in known:
        raise UsageError(f"--layout {layout} is none of {spec}; it may be {' or '.join(known)}")
    return spec.replace(layout=layout)


def _is_shape(word: str) -> bool:
    try:
        return bool(shape(word))
    except argparse.ArgumentTypeError:
        return False


def _tune(jobs: list[Any], options: argparse.Namespace, found: list[Any]) -> None:
    """Tune all, with a progress bar unless it is not wanted; ``found`` grows."""
    from contextlib import nullcontext

    import convjit
    from convjit import tuner, turns, warmup

    budget = options.budget or turns.BUDGET * max(len(jobs), 1)
    is_quiet = options.quiet or options.json or not jobs
    bar = nullcontext(lambda name: None) if is_quiet else warmup.progress(len(jobs))
    try:
        with convjit.use(num_threads=options.threads), bar as began:
            for one in tuner.tune_jobs(jobs, budget=budget, again=options.again, began=began):
                found.append(one)
    except TypeError as error:  # of an argument's value: the names are ours
        raise UsageError(str(error)) from error
