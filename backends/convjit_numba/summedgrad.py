"""What weights' gradients have in common whose parts a second kernel sums.

Where the weights are few and the pixels many, tasks share out the pixels, each with sums of its
own, which a second kernel adds.  Into how many is decided by the problem alone and the sums are
added in their order, so that results do not depend on the number of threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from convjit.precision import Numerics
from convjit.spec import ConvSpec, Direction
from convjit.spi import Array, Config, Executable, Feature, Phase, Refusal, Target, Work
from convjit_numba import problem, targets, threads
from convjit_numba.executable import PanelExecutable, as_it_is
from convjit_numba.problem import Problem
from convjit_numba.targets import Tile

# Pixels for which another split of the sums costs a twentieth of the products.
SPLIT_PIXELS = 640
MAX_SPLITS = 16
# A number that the second kernel reads costs a quarter of a cycle and more.
SECONDS_PER_NUMBER = 1e-10


def splits_of(p: Problem, units: int) -> int:
    """Sums of which the result is the total, each of whole blocks of outputs (``units`` in all)."""
    return max(1, min(p.batch * p.pixels // SPLIT_PIXELS, MAX_SPLITS, units))


class Blocking(Protocol):
    """What a solver's sizes of loops say of the whole.

    Attributes
    ----------
    problem : Problem
    tile : Tile
    splits : int
        Sums of which the result is the total.
    tasks : int
    cycles, makespan : float
        The model's: of all tasks together, and until the last of them ends.
    chain : int
        Products that one of the splits sums.
    partial_bytes : int
        Of the sums that are added up.
    """

    @property
    def problem(self) -> Problem: ...
    @property
    def tile(self) -> Tile: ...
    @property
    def splits(self) -> int: ...
    @property
    def tasks(self) -> int: ...
    @property
    def cycles(self) -> float: ...
    @property
    def makespan(self) -> float: ...
    @property
    def chain(self) -> int: ...
    @property
    def partial_bytes(self) -> int: ...


B = TypeVar("B", bound=Blocking)


class SummedGrad(ABC, Generic[B]):
    """A matrix product with the output's gradient, and the addition of its parts.

    A solver says its blocking, a thread's part of the workspace, and its two kernels.
    """

    id: str
    algorithm = "gemm"

    @abstractmethod
    def blocking(self, p: Problem, last: bool, isa: str, cores: int, tile: Tile | None = None) -> B:
        """The sizes of the loops; ``last`` for channels-last data."""

    @abstractmethod
    def places(self, b: B) -> tuple[dict[str, int], int]:
        """Where the regions of a thread's part of the workspace begin; the bytes of all."""

    @abstractmethod
    def fields(self, b: B) -> dict[str, int]:
        """Of the geometry, what the blocking alone says."""

    @abstractmethod
    def product(self, spec: ConvSpec, b: B) -> Any:
        """The compiled kernel of the product."""

    @abstractmethod
    def total(self, b: B) -> tuple[Any, int]:
        """The compiled kernel that adds the parts, and its tasks."""

    # ---------------------------------------------------------------- the solver

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if spec.direction is not Direction.WEIGHT_GRAD:
            return Refusal(Feature.OTHER, "computes the weights' gradient alone")
        refusal = problem.refuse(spec.replace(direction=Direction.FORWARD), channels_last=True)
        if refusal is not None:
            return refusal
        if self.places(self._blocking_of(spec, target))[1] > problem.MAX_SLOT:
            return Refusal(Feature.SIZE, "the pixels of one block of outputs exceed 1 GiB")
        return None

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p, isa = Problem.of(spec), problem.isa_of(target)
        b = self._blocking_of(spec, target)
        wakes = problem.wakes_helpers(target, p, isa, b.cycles, min(target.cores, b.tasks))
        # The model's cycles as flops of full tiles; threads without a task count as computing.
        flops = b.makespan * target.cores if wakes else b.cycles * target.cores
        rate = f"numba.weight_grad.{p.dtype}"
        moved = p.moved(2.0 * b.partial_bytes)
        return Work(
            (Phase(self.algorithm, flops * 4.0 * b.tile.vl, rate, moved),),
            Numerics("gemm", chain=b.chain),
            launches=int(wakes) * (2 if b.splits > 1 else 1),
            workspace=self._workspace(b, target),
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        p, isa = Problem.of(spec), problem.isa_of(target)
        chosen = partial(self.blocking, p, spec.channels_last, isa, target.cores)
        return problem.configs(
            targets.row_tiles(isa, p.dtype),
            lambda config: chosen(targets.tile_of(isa, p.dtype, config)),
            divided=False,
        )

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        p, isa = Problem.of(spec), problem.isa_of(target)
        b = self._blocking_of(spec, target, targets.tile_of(isa, p.dtype, config))
        seconds = b.cycles / problem.cycles_per_second(target, p.dtype, isa)
        slots = min(target.cores, b.tasks)

        def executable(kernel: Any, tasks: int, seconds: float) -> PanelExecutable:
            geometry = self._geometry(b, tasks, targets.grain(tasks, slots, seconds))
            return PanelExecutable(
                kernel, as_it_is, geometry, (),
                slots=slots, slot_bytes=self.places(b)[1], seconds=seconds,
            )  # fmt: skip

        product = executable(self.product(spec, b), b.tasks, seconds)
        total = None
        if b.splits > 1:
            numbers = b.partial_bytes / p.bytes
            total = executable(*self.total(b), SECONDS_PER_NUMBER * numbers)
        return SummedExecutable(product, total, self._workspace(b, target))

    def _blocking_of(self, spec: ConvSpec, target: Target, tile: Tile | None = None) -> B:
        isa = problem.isa_of(target)
        return self.blocking(Problem.of(spec), spec.channels_last, isa, target.cores, tile)

    def _workspace(self, b: B, target: Target) -> int:
        slots = min(target.cores, b.tasks)
        return b.partial_bytes + threads.slots_bytes(slots, self.places(b)[1])

    def _geometry(self, b: B, tasks: int, grain: int) -> Any:
        p = b.problem
        places, slot_bytes = self.places(b)
        one = np.array([1.0, 0.0], p.dtype).view(np.int64)[0]
        return problem.pack_geometry(
            p.geometry()
            | places
            | self.fields(b)
            | {
                "tasks": tasks,
                "grain": grain,
                "slot_bytes": slot_bytes,
                "splits": b.splits,
                "partial_bytes": b.partial_bytes,
                "slope0": int(one),
            }
        )


class SummedExecutable:
    """The product, and where it was split the addition of its parts."""

    __slots__ = ("_product", "_sum", "workspace")

    def __init__(
        self, product: PanelExecutable, total: PanelExecutable | None, workspace: int
    ) -> None:
        self._product = product
        self._sum = total
        self.workspace = workspace

    pack = staticmethod(as_it_is)

    def run(
        self, lhs: Array, packed: Any, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        """Compute into ``out``."""
        self._product.run(lhs, packed, None, out, workspace)
        if self._sum is not None:
            self._sum.run(lhs, packed, None, out, workspace)
