"""Taking turns: every engine in a process of its own, one of them working at a time.

Two OpenMP runtimes in one process spin against each other, hence the processes.  For each case the
engines take ``rounds`` turns; an engine's time is the least, over its turns, of the lower quartile
of its repeats, so that a disturbance has to last for all the turns to be seen.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from convjit.bench.cases import Case
from convjit.errors import BackendError

OURS = "convjit"
ANSWER_WITHIN = 300.0  # seconds; a library that takes longer for one turn is given up

# What keeps a library from starting more threads than it was told to use.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS", "CONVJIT_NUM_THREADS",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timing:
    """What an engine took for a case.

    Attributes
    ----------
    seconds : float or None
        None where it did not run.
    label : str
        What computed it, where the engine tells.
    algorithm : str
        The family of what computed it, where the engine tells.
    predicted : float or None
        Seconds that convjit's cost model predicted.
    error : float or None
        Largest error at the points that were checked.
    reason : str
        Why it did not run.
    failed : bool
        Whether the reason is a failure (not something that the library does not offer).
    """

    seconds: float | None = None
    label: str = ""
    predicted: float | None = None
    error: float | None = None
    reason: str = ""
    failed: bool = False
    algorithm: str = ""


@dataclass(slots=True)
class Row:
    """A case and its timings by engine."""

    case: Case
    timings: dict[str, Timing] = field(default_factory=dict)

    def seconds(self, engine: str) -> float | None:
        timing = self.timings.get(engine)
        return timing.seconds if timing is not None else None

    def best_peer(self) -> tuple[str, float] | None:
        """(name, seconds) of the fastest engine that is not ours."""
        return _best({name: t.seconds for name, t in self.timings.items()})

    @property
    def ratio(self) -> float | None:
        """The best peer's time over ours: above 1, convjit is faster."""
        return _ratio(self.best_peer(), self.seconds(OURS))


@dataclass(slots=True)
class Total:
    """A group of rows: sums, weighted by how often each layer occurs."""

    group: str
    layers: int
    flops: float
    seconds: dict[str, float]

    def best_peer(self) -> tuple[str, float] | None:
        return _best(dict(self.seconds))

    @property
    def ratio(self) -> float | None:
        return _ratio(self.best_peer(), self.seconds.get(OURS))


@dataclass(slots=True)
class Report:
    """Everything that a run of the benchmark found.

    Attributes
    ----------
    rows : list of Row
    engines : list of str
        Those that could be imported.
    left_out : mapping of engine to reason
    threads : int
    peak : mapping of dtype to {"peak", "how"}
    bandwidth : {"bandwidth", "how"}
        Bytes per second by level of memory; empty if nobody asked.
    """

    rows: list[Row]
    engines: list[str]
    left_out: dict[str, str]
    threads: int
    peak: dict[str, dict[str, Any]]
    bandwidth: dict[str, Any] = field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        """One line for each failure of each engine."""
        return [
            f"{name} on {row.case.spec}: {timing.reason}"
            for row in self.rows
            for name, timing in row.timings.items()
            if timing.failed
        ]

    @property
    def ours_failed(self) -> bool:
        return any(
            timing.failed
            for row in self.rows
            for name, timing in row.timings.items()
            if name.startswith(OURS)
        )

    def share_of_peak(self, dtype: str, flops: float, seconds: float | None) -> float | None:
        """Effective rate over the measured peak."""
        peak = self.peak.get(dtype, {}).get("peak", 0.0)
        return flops / seconds / peak if peak and seconds else None

    def totals(self) -> list[Total]:
        """Sums over each network, for the engines that did all of its layers."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.case.group, []).append(row)
        found = []
        for group, rows in groups.items():
            if any(row.case.kind != "layer" for row in rows) or group == "specs":
                continue
            sums: dict[str, float] = {}
            for engine in self.engines:
                times = [row.seconds(engine) for row in rows]
                known = [t for t in times if t is not None]
                if len(known) == len(rows):
                    sums[engine] = sum(
                        t * row.case.count for t, row in zip(known, rows, strict=True)
                    )
            flops = sum(row.case.problem.flops * row.case.count for row in rows)
            found.append(Total(group, sum(row.case.count for row in rows), flops, sums))
        return found

    def ratios(self) -> dict[str, float]:
        """Best peer over convjit: a network at a time, images and signals case by case."""
        totals = {t.group: t.ratio for t in self.totals()}
        plain = {r.case.title: r.ratio for r in self.rows if r.case.group not in totals}
        return {name: ratio for name, ratio in (totals | plain).items() if ratio is not None}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        ratios = self.ratios()
        return {
            "threads": self.threads,
            "engines": self.engines,
            "left_out": self.left_out,
            "peak": self.peak,
            **({"bandwidth": self.bandwidth} if self.bandwidth else {}),
            "cases": [
                {
                    **asdict(row.case),
                    "flops": row.case.problem.flops,
                    "ratio": row.ratio,
                    "timings": {name: asdict(t) for name, t in row.timings.items()},
                }
                for row in self.rows
            ],
            "networks": [
                {"network": t.group, "layers": t.layers, "flops": t.flops, "seconds": t.seconds,
                 "ratio": t.ratio}
                for t in self.totals()
            ],
            "ratios": ratios,
            "geometric_mean": geometric_mean(list(ratios.values())),
            "failures": self.failures,
        }  # fmt: skip


def _best(seconds: dict[str, float | None]) -> tuple[str, float] | None:
    peers = [(n, t) for n, t in seconds.items() if t is not None and not n.startswith(OURS)]
    return min(peers, key=lambda item: item[1], default=None)


def _ratio(peer: tuple[str, float] | None, ours: float | None) -> float | None:
    return peer[1] / ours if peer is not None and ours else None


def geometric_mean(values: Sequence[float]) -> float | None:
    """None for no values."""
    if not values:
        return None
    return math.exp(sum(math.log(v) for v in values) / len(values))


class Process:
    """A worker and the line to it."""

    def __init__(self, name: str, threads: int) -> None:
        environment = dict(os.environ)
        environment.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
        self.name = name
        self._child = subprocess.Popen(
            [sys.executable, "-m", "convjit.bench.worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, name=f"from {name}", daemon=True).start()

    def _read(self) -> None:
        """Pass the answers on; an empty line says that the worker ended."""
        if self._child.stdout is not None:
            for line in self._child.stdout:
                self._lines.put(line)
        self._lines.put("")

    def ask(self, request: dict[str, Any], within: float = ANSWER_WITHIN) -> dict[str, Any]:
        """One request, one answer; a worker that died or hangs answers with an error."""
        ended = {"error": f"the worker of {self.name} ended with status {self._child.poll()}"}
        if self._child.stdin is None:
            return ended
        try:
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
            line = self._lines.get(timeout=within)
        except queue.Empty:
            self.close()
            return {"error": f"no answer of {self.name} within {within:.0f} s"}
        except OSError:
            return ended
        if not line:
            self._lines.put("")
            return {"error": f"the worker of {self.name} ended with status {self._child.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the worker."""
        if self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it ended before it read a request
                self._child.stdin.close()
        try:
            self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def run(
    cases: Iterable[Case],
    engines: Sequence[str],
    *,
    threads: int,
    seconds: float = 0.12,
    rounds: int = 3,
    plain: bool = False,
    bandwidth: bool = False,
    told: Callable[[Row], None] | None = None,
) -> Report:
    """Time the cases by the engines.

    Parameters
    ----------
    cases : iterable of Case
    engines : sequence of str
        Names in :data:`convjit.bench.engines.ENGINES`.
    threads : int
    seconds : float
        Of repeats in each turn.
    rounds : int
    plain : bool
        Time plain calls of layers by convjit, not a plan's.
    bandwidth : bool
        Report the bandwidth of the caches and of memory too.
    told : callable, optional
        Given each row when it is done.
    """
    processes = {name: Process(name, threads) for name in engines}
    report = Report([], list(engines), {}, threads, {})
    try:
        if bandwidth and OURS in processes:
            found = processes[OURS].ask({"bandwidth": True})
            report.bandwidth = found if "bandwidth" in found else {}
        for case in cases:
            row = Row(case)
            dtype = case.problem.dtype
            if OURS in processes and dtype not in report.peak:
                found = processes[OURS].ask({"peak": dtype})
                report.peak[dtype] = found if "peak" in found else {"peak": 0.0, "how": "unknown"}
            request = {
                "group": case.group, "kind": case.kind, "spec": case.spec, "threads": threads,
                "seconds": seconds, "plain": plain, "algorithm": case.algorithm,
            }  # fmt: skip
            for _ in range(rounds):
                for name in list(processes):
                    earlier = row.timings.get(name)
                    if earlier is not None and earlier.seconds is None:
                        continue
                    answer = processes[name].ask(request)
                    if "missing" in answer:
                        report.left_out[name] = answer["missing"]
                        report.engines.remove(name)
                        processes.pop(name).close()
                        continue
                    row.timings[name] = _timing(answer, earlier)
            report.rows.append(row)
            if told is not None:
                told(row)
    finally:
        for process in processes.values():
            process.close()
    if OURS in engines and OURS not in report.engines:
        raise BackendError(f"convjit cannot be imported by its worker: {report.left_out[OURS]}")
    return report


def _timing(answer: dict[str, Any], earlier: Timing | None) -> Timing:
    if "left_out" in answer:
        return Timing(reason=answer["left_out"])
    if "error" in answer:
        return Timing(reason=answer["error"], failed=True)
    best = answer["seconds"]
    if earlier is not None and earlier.seconds is not None:
        best = min(best, earlier.seconds)
    return Timing(
        best, answer.get("label", ""), answer.get("predicted"), answer["error_found"],
        algorithm=answer.get("algorithm", ""),
    )  # fmt: skip
