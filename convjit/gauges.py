"""What a backend tells the core about measuring its device: one :class:`Gauge` for each figure.

A backend that can be calibrated has a method ``gauges(target)``, which yields gauges; ``target`` is
the one that its own :meth:`~convjit.spi.Backend.target` returns.  The core runs them several times
over, takes the least disturbed, compares them with the table, keeps them on disk by the target's
fingerprint, and lays them over the target from then on.  A backend therefore neither times nor
stores::

    class MyBackend:
        def gauges(self, target):
            yield Gauge("bandwidth", "memory", self._copy)
            spec = ConvSpec.parse("conv_f32_NCHW_n1c64k96g1_i56x56_w3x3_p1")
            yield of_solver(self.solvers()[0], spec, target, "mine.gemm.float32")

        def _copy(self):
            source, out = np.ones(2**23), np.empty(2**23)
            return Run(lambda: np.copyto(out, source), 2 * source.nbytes)

What has no gauge keeps the table's figure, a rate scaled as the peak of its dtype was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from convjit import precision
from convjit.algorithms.fills import Copy
from convjit.spec import ConvSpec
from convjit.spi import DEFAULT_CONFIG, Solver, Target

# The fields of a Target that are measured: mappings by key, and seconds.
TABLES = ("peak", "rates", "bandwidth")
SECONDS = ("launch", "call")


@dataclass(frozen=True, slots=True)
class Run:
    """A figure's experiment, its operands allocated.

    Attributes
    ----------
    call : callable
        The work; returns when it is done (a device is waited for).
    amount : float
        Flops or bytes of one call, whose rate is the figure; for seconds, how many there are of
        what costs them.
    without : callable, optional
        What to subtract: the same call without that of which the figure is.
    beside : mapping
        Flops of other rates in the same call, by their keys.  Their time at the rates that are
        found is subtracted too, so that gauges in which two kinds of work take turns, one with
        much of the first, one with much of the second, tell them apart.
    """

    call: Callable[[], Any]
    amount: float
    without: Callable[[], Any] | None = None
    beside: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Gauge:
    """One figure of a target, and how it is measured.

    Attributes
    ----------
    figure : str
        The field of :class:`~convjit.spi.Target`: one of :data:`TABLES` or :data:`SECONDS`.
    key : str
        The key in that field; empty for seconds.
    prepare : callable
        Makes the :class:`Run`.  It is called again for every pass and what it returns is dropped
        after, so that the operands of two gauges are never alive together.
    solver : Solver, optional
        Whose kernels a rate is of: once they are others, the figure counts no more.
    """

    figure: str
    key: str
    prepare: Callable[[], Run]
    solver: Solver | None = None

    def __post_init__(self) -> None:
        if self.figure not in TABLES + SECONDS:
            known = ", ".join(TABLES + SECONDS)
            raise ValueError(f"figure={self.figure!r} is none of a Target's: give one of {known}.")
        if bool(self.key) != (self.figure in TABLES):
            raise ValueError(f"key={self.key!r} of {self.figure}: tables have keys, seconds none.")

    @property
    def name(self) -> str:
        """``"rates numba.gemm.float32"``, ``"launch"``."""
        return f"{self.figure} {self.key}".rstrip()


def strided_copies(xp: Any, copy: Copy | None = None) -> Run:
    """The copies that lowerings make, level ``"copy"``: one of each kind, beyond private caches.

    One goes into the middle of a padded array, the other changes the layout.

    Parameters
    ----------
    xp : module
        The array library.
    copy : callable, optional
        The backend's ``copy``, if it has one, else ``xp.copyto``; returns when it is done.
    """
    move = xp.copyto if copy is None else copy
    source = xp.ones((1, 512, 96, 96), "float32")
    inner = xp.zeros((1, 512, 98, 98), "float32")[:, :, 1:-1, 1:-1]
    last = xp.empty((1, 96, 96, 512), "float32")

    def call() -> None:
        move(inner, source)
        move(last, source.transpose(0, 2, 3, 1))

    return Run(call, 4.0 * source.nbytes)


def casts(xp: Any, copy: Copy | None = None) -> Run:
    """Two casts, level ``"cast"``; by the array library level ``"elementwise"``.

    One is a vector instruction on every processor, the other (from half precision) is not.

    Parameters
    ----------
    xp : module
        The array library.
    copy : callable, optional
        The backend's ``copy``, if it has one, else ``xp.copyto``; returns when it is done.
    """
    move = xp.copyto if copy is None else copy
    half, single = xp.ones(1 << 20, "float16"), xp.ones(1 << 20, "float32")
    double = xp.empty(1 << 20, "float64")

    def call() -> None:
        move(double, single)
        move(single, half)

    return Run(call, float(double.nbytes + 2 * single.nbytes + half.nbytes))


def resident_call(
    solver: Solver,
    spec: ConvSpec,
    target: Target,
    xp: Any = None,
    wait: Callable[[], None] | None = None,
) -> Callable[[], None]:
    """A call of a solver on operands in its device's memory, which returns when it is done.

    Parameters
    ----------
    solver : Solver
    spec : ConvSpec
    target : Target
    xp : module, optional
        The array library, NumPy if not given.
    wait : callable, optional
        Waits for a device on which calls return at once.
    """
    if xp is None:
        import numpy as xp
    dtype = precision.numpy_dtype(spec.dtype)
    executable = solver.plan(spec, target, next(iter(solver.configs(spec, target)), DEFAULT_CONFIG))
    lhs = xp.full(spec.lhs_shape, 1, dtype)
    packed = executable.pack(xp.full(spec.rhs_shape, 1, dtype))
    result = precision.numpy_dtype(spec.result_dtype)
    bias = xp.full((spec.result_channels,), 0, result) if spec.bias else None
    out = xp.empty(spec.result_shape, result)
    workspace = xp.empty(executable.workspace, "uint8") if executable.workspace else None

    def call() -> None:
        executable.run(lhs, packed, bias, out, workspace)
        if wait is not None:
            wait()

    return call


def lasting(spec: ConvSpec, work: float, per_second: float, *, most: int = 1024) -> ConvSpec:
    """A problem with as many images as take two milliseconds, of ``work`` for one at a rate.

    So a small GPU, and an emulated one, is measured as quickly as a large one.
    """
    images = int(2e-3 * per_second / work)
    return spec.replace(batch=min(max(images, 1), most))


def flops_of(solver: Solver, spec: ConvSpec, target: Target, key: str) -> float:
    """Flops of a solver's phases of a rate key."""
    phases = solver.estimate(spec, target).phases
    return sum(phase.flops for phase in phases if phase.rate == key)


def _flops_by_rate(solver: Solver, spec: ConvSpec, target: Target) -> dict[str, float]:
    """Flops of a solver's phases by their rate keys, with those that idle cores could have done.

    So what they are divided by is the time of busy cores, which is what a rate is of.
    """
    found: dict[str, float] = {}
    for phase in solver.estimate(spec, target).phases:
        if phase.flops:
            found[phase.rate] = found.get(phase.rate, 0.0) + phase.flops / phase.busy
    return found


def of_solver(
    solver: Solver,
    spec: ConvSpec,
    target: Target,
    key: str,
    xp: Any = None,
    wait: Callable[[], None] | None = None,
) -> Gauge:
    """The gauge of a rate: flops of a solver's phases of that key, by the time of a whole call.

    Parameters
    ----------
    solver : Solver
    spec : ConvSpec
        A problem that suits it, of some milliseconds at most, in which the phases of the key take
        most of the time.
    target : Target
    key : str
        The rate key.
    xp, wait
        As :func:`resident_call` takes them.
    """

    def prepare() -> Run:
        flops = _flops_by_rate(solver, spec, target)
        own = flops.pop(key, 0.0)
        return Run(resident_call(solver, spec, target, xp, wait), own, None, flops)

    return Gauge("rates", key, prepare, solver)
