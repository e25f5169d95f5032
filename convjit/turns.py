"""Ways of computing one thing, measured in turns until the fastest is known.

What is measured, and in which order:

1. Every way with its default block sizes, in the order given.  What is twice as slow as another
   drops out after one short turn.
2. What is left takes turns: each turn is the lower quartile of some calls, and the best turn
   counts.  Turns alternate between the ways, so that a machine that is busy for a while slows all
   of them down, and between calls with packed and with plain weights.
3. The other block sizes of the fastest way, then of the next of those that are left; after
   :data:`PATIENCE` ways in turn whose block sizes gain less than :data:`GAIN` it ends.
4. The fastest once more, beside the model's choice; after the budget, too, but then in one turn.

Compiling counts to the budget, and cannot be broken off.  What it will take is expected from what
it took in this search, with the same solvers or else with others; of a way whose kernels have to be
compiled first, and will not be in time, nothing is begun.  The first way is always measured.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from convjit import dispatch, registry
from convjit.errors import BackendError
from convjit.explanation import low_quartile
from convjit.spi import Config
from convjit.tunedb import THEN, Row, sizes

BUDGET = 30.0  # seconds for a problem; compiling all its kernels takes most of it, once
COMPILING = 3.0  # seconds of it that a way is expected to take before any has told more
GAIN, PATIENCE = 1.03, 2
DROP, CONTEND = 2.0, 1.25  # times the fastest: what drops out at once, and what stays after a turn
PROBE, TURN = 0.01, 0.04  # seconds of the first turn, and of each later one
LONG = 0.1  # seconds of a call that is not repeated within a turn
ROUNDS = 3
FINALISTS = 3
KINDS = (True, False)  # calls with packed weights, and with plain ones

_log = logging.getLogger("convjit")

Calls = Mapping[bool, Callable[[], object]]


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """What can be measured.

    Attributes
    ----------
    label : str
    solvers, revisions : tuple of str
        Of what computes it, one after the other.
    backend, target : str
        Under whose name it is remembered, and that backend's fingerprint.
    configs : tuple of Config
        Block sizes to choose from, the default first.
    plan : callable
        From block sizes to what is called; raises whatever a solver raises.  None where these need
        more workspace than is allowed.
    calls : callable
        From a plan to its calls, by whether the weights are packed before; the packed one alone
        where packing takes nothing.
    """

    label: str
    solvers: tuple[str, ...]
    revisions: tuple[str, ...]
    backend: str
    target: str
    configs: tuple[Config, ...]
    plan: Callable[[Config], Any]
    calls: Callable[[Any], Calls]


@dataclass(slots=True, eq=False)
class Contender:
    """A way with one choice of block sizes, and the times that it took so far.

    ``calls`` is None once it dropped out: packed weights may be large.
    """

    way: Way
    config: Config
    plan: Any
    calls: Calls | None
    taken: dict[bool, float] = field(default_factory=lambda: dict.fromkeys(KINDS, inf))

    @property
    def row(self) -> Row:
        way = self.way
        return Row(
            THEN.join(way.solvers), way.label, THEN.join(way.revisions), self.config,
            self.taken[True], self.taken[False],
        )  # fmt: skip


class Search:
    """The measuring of one problem: what was measured, and the seconds that are left.

    Parameters
    ----------
    ways : sequence of Way
        The likely ones first.
    model : str
        The label of what the cost model would choose.
    budget : float
        Seconds, after which nothing further is begun.
    """

    def __init__(self, ways: Sequence[Way], model: str, budget: float) -> None:
        self.ways, self.model = ways, model
        self.done: list[Contender] = []
        self.failures: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.ended, self.finished = "", False
        self._compiled: dict[tuple[str, ...], list[float]] = {}  # seconds of beginnings, by solvers
        self._end = time.perf_counter() + budget

    def run(self) -> None:
        """All stages, or as many as the budget allows; the last one in any case."""
        self._search()
        self._confirm()
        if self._is_late():
            return
        if self.skipped:
            self.ended = "ended by the budget, into which nothing more fits: tune again to go on"
        else:
            self.ended, self.finished = "everything that promised a gain was measured", True

    # ---------------------------------------------------------------- measuring

    def _best(self, packed: bool) -> float:
        """Seconds of the fastest so far."""
        return min((c.taken[packed] for c in self.done), default=inf)

    def _is_near(self, contender: Contender, factor: float) -> bool:
        """Whether it takes less than ``factor`` times the fastest, packed or plain."""
        return any(contender.taken[kind] <= factor * self._best(kind) for kind in KINDS)

    def _is_late(self) -> bool:
        """Whether the budget is spent; says so."""
        if time.perf_counter() < self._end:
            return False
        self.ended = "ended by the budget: tune again to go on"
        return True

    def _turn(self, contender: Contender, seconds: float = TURN, least: int = 3) -> None:
        """Measure once more, both kinds of call; the best turn counts."""
        taken, calls = contender.taken, contender.calls
        assert calls is not None
        if LONG < taken[True] < inf:
            least = 1
        for kind, call in calls.items():
            taken[kind] = min(taken[kind], low_quartile(call, seconds, least))
        if False not in calls:
            taken[False] = taken[True]

    def _begin(self, way: Way, config: Config) -> Contender | None:
        """Plan, compile and measure for the first time; None if that fails or is much too slow."""
        compiles = self.compiles(way, config)
        if compiles and self._is_too_long(way, config):
            return None
        _log.info("measuring %s (%s)", way.label, sizes(config))
        start = time.perf_counter()
        try:
            plan = way.plan(config)
            if plan is None:
                return None
            contender = Contender(way, config, plan, way.calls(plan))
            self._turn(contender, PROBE, 1)
        except MemoryError as error:
            self.failures[way.label] = str(error)
            return None
        except Exception as error:  # whatever a solver raises
            told = (
                str(error)
                if isinstance(error, BackendError)
                else f"{type(error).__name__}: {error}"
            )
            self.failures[way.label] = told
            if config == way.configs[0] and len(way.solvers) == 1:  # as where it fails in a call
                dispatch.exclude(way.solvers[0], told)
            return None
        finally:
            if compiles:
                taken = time.perf_counter() - start
                self._compiled.setdefault(way.solvers, []).append(taken)
        self.done.append(contender)
        if self._is_near(contender, DROP):
            return contender
        contender.calls = None
        return None

    def compiles(self, way: Way, config: Config) -> bool:
        """Whether a kernel has to be compiled first, as far as the backend can tell."""
        ask = getattr(registry.get(way.backend), "uncompiled", None)
        return callable(ask) and bool(ask(lambda: way.plan(config)))

    def _is_too_long(self, way: Way, config: Config) -> bool:
        """Whether what it compiles is expected not to be ready in time; says so.

        A solver's kernels take alike: the longest of its own counts, else the mean of the others.
        """
        if not self.done:
            return False
        own = self._compiled.get(way.solvers)
        others = [taken for each in self._compiled.values() for taken in each]
        expected = max(own) if own else sum(others) / len(others) if others else COMPILING
        left = self._end - time.perf_counter()
        if expected <= left:
            return False
        self.skipped[f"{way.label} ({sizes(config)})"] = (
            f"compiling it takes some {expected:.1f} s, "
            f"of the budget {max(left, 0.0):.1f} s are left"
        )
        return True

    def _rounds(self, contenders: Iterable[Contender], count: int) -> list[Contender]:
        """Turns of each in turn; what falls behind drops out.  The rest is left."""
        left = list(contenders)
        for number in range(count + 1):
            near = CONTEND if number else DROP
            for contender in left:
                if not self._is_near(contender, near):
                    contender.calls = None
            left = [contender for contender in left if contender.calls is not None]
            for contender in left if number < count else ():
                if self._is_late():
                    return left
                self._turn(contender)
        return left

    # ---------------------------------------------------------------- the stages

    def _search(self) -> None:
        left = self._rounds(self._begun((way, way.configs[0]) for way in self.ways), ROUNDS)
        in_vain = 0
        for contender in sorted(left, key=self._behind):
            if self._is_late() or in_vain == PATIENCE:
                return
            way = contender.way
            if len(way.configs) == 1:
                continue
            others = self._begun((way, config) for config in way.configs[1:])
            self._rounds([contender, *others], ROUNDS)
            gain = max(
                contender.taken[kind] / min((c.taken[kind] for c in others), default=inf)
                for kind in KINDS
            )
            in_vain = 0 if gain >= GAIN else in_vain + 1

    def _begun(self, wanted: Iterable[tuple[Way, Config]]) -> list[Contender]:
        """Those of them that are worth more turns."""
        found: list[Contender] = []
        for way, config in wanted:
            if self.done and self._is_late():
                break
            begun = self._begin(way, config)
            found += [begun] if begun is not None else []
        return found

    def _behind(self, contender: Contender) -> float:
        """Its time over the fastest one's, packed or plain, whichever is nearer."""
        return min(contender.taken[kind] / self._best(kind) for kind in KINDS)

    def _confirm(self) -> None:
        """Turns of the fastest beside the model's choice, which a disturbed turn may have cost."""
        last = [
            c for c in self.done if c.way.label == self.model and c.config == c.way.configs[0]
        ]  # fmt: skip
        for kind in KINDS:
            fastest = sorted(self.done, key=lambda c: c.taken[kind])[:FINALISTS]
            last += [contender for contender in fastest if contender not in last]
        for contender in last:
            if contender.calls is None:
                contender.calls = contender.way.calls(contender.plan)
        for _ in range(1 if self._is_late() else ROUNDS):
            for contender in last:
                self._turn(contender)
