"""Kernels compiled ahead of the first call: what ``python -m convjit warmup`` does.

A problem is prepared by running it, once as a plan runs it (the weights packed ahead) and once as a
plain call does, where another algorithm may be the better one; on zeros, whose pages the system
hands out when they are read.  Whatever these calls compile is kept by the backends themselves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from convjit import calls, config, dispatch, precision, registry
from convjit.bench import cases
from convjit.errors import BackendError, ConvSpecError, UnsupportedError
from convjit.guard import Guarded
from convjit.plans import Plan
from convjit.spec import ConvSpec
from convjit.tables import table


@dataclass(frozen=True, slots=True)
class Prepared:
    """What became of one problem.

    Attributes
    ----------
    spec : str
    planned, plain : str
        What runs it with packed weights, and in a plain call.
    compiled : tuple of str
        Kernels that were not there before.
    seconds : float
    failure : str
        Why it cannot be computed, else empty.
    """

    spec: str
    planned: str
    plain: str
    compiled: tuple[str, ...]
    seconds: float
    failure: str = ""


def specs(words: Iterable[str], **options: Any) -> list[str]:
    """The problems that words name, each once; takes what :func:`named` takes."""
    return list(dict.fromkeys(named(words, **options)))


def named(
    words: Iterable[str],
    *,
    batch: int | None = None,
    dtype: str = "float32",
    input_shape: tuple[int, ...] | None = None,
) -> list[str]:
    """The problems that words name, in the order of the networks' layers.

    Parameters
    ----------
    words : iterable of str
        Specs, networks that ``bench`` knows, files like its own (names that end in ``.json``), and
        ONNX models (``.onnx``).
    batch, dtype
        Of the layers of networks.
    input_shape : tuple of int, optional
        Of an ONNX model's input, where its file leaves sizes open.

    Raises
    ------
    ConvSpecError
        For a word that is none of these.
    """
    dtype = precision.DTYPES.get(dtype, dtype)
    chosen: list[cases.Case] = []
    for word in words:
        source = None
        if cases.is_file(word):
            source = cases.read_networks(word, batch=batch, input_shape=input_shape)
        if source is not None or word in cases.networks():
            names = [word] if source is None else list(source)
            chosen += cases.network_cases(names, source, batch=batch, dtype=dtype)
            continue
        try:
            chosen += cases.spec_cases([word])
        except ConvSpecError as error:
            raise ConvSpecError(
                f"{error} Nor is it a file that ends in .json or .onnx, or one of the networks "
                f"{', '.join(cases.networks())}."
            ) from error
    return [case.spec for case in chosen]


def compiled() -> list[str]:
    """Kernels that the backends loaded so far compiled in this process."""
    names: list[str] = []
    for backend in registry.loaded():
        told = getattr(backend, "compiled", None)
        names += [f"{backend.name}: {name}" for name in told()] if callable(told) else []
    return names


def prepare(
    words: Iterable[str],
    *,
    backend: str | Sequence[str] | None = None,
    began: Callable[[str], None] = lambda spec: None,
) -> Iterator[Prepared]:
    """Run every problem once as a plan and once as a plain call.

    Parameters
    ----------
    words : iterable of str
        Specs.
    backend : str or sequence of str, optional
    began : callable
        Called with each spec before it is prepared.
    """
    for word in words:
        began(word)
        before, start = set(compiled()), time.perf_counter()
        labels, failure = ["", ""], ""
        try:
            for place, packed in enumerate((True, False)):
                labels[place] = _run(ConvSpec.parse(word), backend, packed).label
        except (UnsupportedError, BackendError, MemoryError) as error:
            failure = f"{type(error).__name__}: {error}"
        new = tuple(name for name in compiled() if name not in before)
        yield Prepared(word, labels[0], labels[1], new, time.perf_counter() - start, failure)


def _run(spec: ConvSpec, backend: str | Sequence[str] | None, packed: bool) -> Plan:
    shapes, given = calls.described(spec)
    bias, direction = given.pop("bias"), given.pop("direction")
    dtype = precision.numpy_dtype(given.pop("dtype"))
    problem, request, kind = calls.problem_and_request(
        *shapes, bias, direction, dtype, packed, given | {"backend": backend}
    )
    plan = dispatch.select(problem, request, kind)
    lhs, rhs = np.zeros(problem.lhs_shape, dtype), np.zeros(problem.rhs_shape, dtype)
    weights = plan.pack(rhs) if packed else rhs
    plan(lhs, weights)
    if isinstance(plan.executable, Guarded):
        lhs.reshape(-1)[0] = np.nan  # so that what computes such data is prepared too
        plan(lhs, weights)
    return plan


# -------------------------------------------------------------------- on the command line


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on the error stream that says which spec is prepared, and which kernel is compiled.

    Kernels are told by the logger ``"convjit"``, to which the bar listens.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        started = 0

        def began(spec: str) -> None:
            nonlocal started
            bar.update(task, completed=started, description=escape(spec))
            started += 1

        class Listener(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                bar.update(task, description=escape(record.getMessage()))

        logger, listener = logging.getLogger("convjit"), Listener(logging.INFO)
        level = logger.level
        logger.addHandler(listener)
        logger.setLevel(min(level, logging.INFO) if level else logging.INFO)
        try:
            yield began
            bar.update(task, completed=total, description="")
        finally:
            logger.removeHandler(listener)
            logger.setLevel(level)


def as_dict(found: Sequence[Prepared]) -> dict[str, Any]:
    """For JSON."""
    return {
        "specs": [asdict(row) for row in found],
        "compiled": [name for row in found for name in row.compiled],
        "seconds": sum(row.seconds for row in found),
        "cache_dir": str(config.cache_dir()),
    }


def text(found: Sequence[Prepared]) -> str:
    """What was prepared, what failed, and one line on what was compiled."""
    rows = [
        (row.spec, row.planned, "" if row.plain == row.planned else row.plain,
         len(row.compiled), f"{row.seconds:.2f}")
        for row in found
        if not row.failure
    ]  # fmt: skip
    lines = [table(["spec", "planned", "plain, if other", ">kernels", ">seconds"], rows)]
    lines += [f"failed: {row.spec}: {row.failure}" for row in found if row.failure]
    kernels = [name for row in found for name in row.compiled]
    lines += [f"compiled {name}" for name in kernels]
    took = sum(row.seconds for row in found)
    what = f"{len(kernels)} kernels compiled" if kernels else "nothing had to be compiled"
    lines.append(f"{what} for {len(rows)} problems in {took:.1f} s; kept in {config.cache_dir()}")
    return "\n".join(lines)


def run(
    words: Sequence[str], backend: str | Sequence[str] | None, *, quiet: bool
) -> list[Prepared]:
    """Prepare specs, with a progress bar unless ``quiet``."""
    if quiet:
        return list(prepare(words, backend=backend))
    with progress(len(words)) as began:
        return list(prepare(words, backend=backend, began=began))
