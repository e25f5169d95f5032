"""A candidate as a test: source for pytest that needs convjit and NumPy alone."""

from __future__ import annotations

import platform
import re
import textwrap
from typing import Any

from convjit import calls, config, precision, registry
from convjit import layout as layouts
from convjit._version import __version__
from convjit.arguments import Problem, Request
from convjit.dispatch import Candidate
from convjit.environment import PACKAGES, cpu_name, versions
from convjit.errors import BackendError
from convjit.parsing import Shape
from convjit.precision import Policy
from convjit.spec import Direction

_LINE = 96
# The public call, and what it takes first.
_CALLS = {
    Direction.FORWARD: ("convjit.conv", "x", "w"),
    Direction.TRANSPOSED: ("convjit.conv_transpose", "x", "w"),
    Direction.INPUT_GRAD: ("convjit.conv_input_grad", "{result}", "w", "gy"),
    Direction.WEIGHT_GRAD: ("convjit.conv_weight_grad", "x", "{result}", "gy"),
}
_NAMES = {
    Direction.FORWARD: ("x", "w"),
    Direction.TRANSPOSED: ("x", "w"),
    Direction.INPUT_GRAD: ("gy", "w"),
    Direction.WEIGHT_GRAD: ("x", "gy"),
}
_LOOSEST = Policy(precision="fast", nonfinite="spread")  # refuses nothing that computes a problem


def source(problem: Problem, request: Request, candidate: Candidate, seed: int) -> str:
    """The test of a problem by one candidate, held to the bound that the error model gives.

    Parameters
    ----------
    problem : Problem
    request : Request
        Its policy is the call's, unless it refuses the candidate: then nothing is ruled out.
    candidate : Candidate
        With an error bound; it is forced.
    seed : int
        Of the operands, which are drawn as :func:`convjit.explanation.random_operands` does.
    """
    spec = problem.spec
    first, second = _NAMES[spec.direction]
    operands = [
        _drawn(first, problem.lhs_shape, spec.dtype),
        *([_GAPS.format(name=first)] if spec.strided else []),
        _drawn(second, problem.rhs_shape, spec.dtype),
        *([_drawn("bias", (spec.result_channels,), spec.result_dtype)] if spec.bias else []),
    ]
    keywords = {**_operator(problem), **_choice(request, candidate, problem)}
    name, *arguments = (part.format(result=problem.result_shape) for part in _CALLS[spec.direction])
    arguments += ["bias"] if spec.bias else []
    arguments += [f"{word}={value!r}".replace("'", '"') for word, value in keywords.items()]
    given = f"spec, {first}.reshape(spec.lhs_shape), {second}.reshape(spec.rhs_shape)"
    given += ", bias" if spec.bias else ""
    half = precision.HALF & {spec.dtype, spec.result_dtype} - {"float16"}
    lines = [
        f'"""{spec} by {candidate.label}, against the plain loop nest."""',
        "",
        *(
            wrap
            for line in _circumstances(candidate)
            for wrap in textwrap.wrap(line, _LINE, initial_indent="# ", subsequent_indent="# ")
        ),
        *(["", "import ml_dtypes"] if half else [""]),
        "import numpy as np",
        "",
        "import convjit",
        "from convjit.algorithms.error import relative_error",
        "from convjit.algorithms.oracle import magnitudes, oracle",
        "",
        "",
        f"def test_{re.sub('[^0-9a-z]+', '_', str(spec).lower())}():",
        f'    spec = convjit.ConvSpec.parse("{spec}")',
        f"    rng = np.random.default_rng({seed})",
        *(f"    {line}" for line in operands),
        f"    with convjit.use(num_threads={config.num_threads()}):",
        *_wrapped(f"        result = {name}", arguments),
        f"    given = {given}",
        "    result = result.reshape(spec.result_shape)",
        "    error = relative_error(spec, result, oracle(*given), magnitudes(*given))",
        "    # What the error model admits, relative to the largest sum of magnitudes.",
        f"    assert error <= {candidate.error_bound!r}",
    ]
    return "\n".join(lines) + "\n"


_GAPS = "{name} = np.repeat({name}, 2, axis=-1)[..., ::2]  # the same numbers, not contiguous"


def _drawn(name: str, shape: Shape, dtype: str) -> str:
    """The statement that draws an operand."""
    kind = "ml_dtypes.bfloat16" if dtype == "bfloat16" else f'"{dtype}"'
    if dtype in precision.INTEGER:
        return f"{name} = rng.integers(0, {2 if dtype == 'bool' else 100}, {shape}).astype({kind})"
    values = f"rng.standard_normal({shape}, np.float32)"
    if dtype in precision.COMPLEX:
        values = f"({values} + 1j * {values})"
    if dtype == "float32":
        return f"{name} = {values}"
    return f"{name} = {values}.astype({kind})"


def _operator(problem: Problem) -> dict[str, Any]:
    """The keywords that describe the convolution, where they are not the defaults."""
    spec = problem.spec
    _, given = calls.described(spec.replace(strided=False))
    weights = problem.result_shape if spec.direction is Direction.WEIGHT_GRAD else problem.rhs_shape
    if len(weights) == spec.ndim:  # plain data has no channels, nor have its weights
        given["layout"] = layouts.PLAIN[spec.ndim]
    defaults = {
        **calls.OPERATOR, "activation": None, "stride": (1,) * spec.ndim,
        "padding": ((0, 0),) * spec.ndim, "dilation": (1,) * spec.ndim,
        "layout": layouts.CHANNELS_FIRST[spec.ndim],
    }  # fmt: skip
    for name in ("direction", "dtype", "bias"):
        del given[name]
    if spec.direction in (Direction.INPUT_GRAD, Direction.WEIGHT_GRAD):
        del given["activation"]
    return {k: v for k, v in given.items() if k not in defaults or v != defaults[k]}


def _choice(request: Request, candidate: Candidate, problem: Problem) -> dict[str, Any]:
    """The keywords that force the candidate, and the policies that are not the defaults."""
    usual = Policy(nonfinite="local" if problem.is_plain else "spread")
    wanted = request.policy if candidate.refusal is None else _LOOSEST
    policy = {
        name: getattr(wanted, name)
        for name in ("precision", "nonfinite", "workspace_limit", "deterministic")
        if getattr(wanted, name) != getattr(usual, name)
    }
    return {"backend": candidate.backend, "algorithm": candidate.solver_id, **policy}


def _circumstances(candidate: Candidate) -> list[str]:
    """Where the test was written: versions, the machine, and what ruled the candidate out."""
    packages = ", ".join(f"{name} {v}" for name, v in versions(PACKAGES).items())
    lines = [
        f"convjit {__version__}, Python {platform.python_version()}, {platform.system()} "
        f"{platform.machine()}",
        packages,
        f"{cpu_name()}, {config.num_threads()} threads",
    ]
    if candidate.refusal is not None:
        lines.append(f"ruled out where it was explained: {candidate.refusal.reason}")
    try:
        target = registry.get(candidate.backend).target()
    except BackendError:
        return lines
    return [*lines, f"{candidate.backend}: {target.description} ({target.fingerprint})"]


def _wrapped(head: str, arguments: list[str]) -> list[str]:
    """A call, its arguments on lines of their own where one line is too long."""
    line = f"{head}({', '.join(arguments)})"
    if len(line) <= _LINE:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    rows: list[str] = []
    for argument in arguments:
        if rows and len(rows[-1]) + len(argument) + 2 <= _LINE:
            rows[-1] += f" {argument},"
        else:
            rows.append(f"{indent}    {argument},")
    return [f"{head}(", *rows, f"{indent})"]
