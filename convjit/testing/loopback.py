"""A backend that is the oracle, watches the contract, and fails when dispatch is bypassed.

Between the public calls and a solver lie parsing, lowering, allocation, packing and caching.  The
loopback's one solver takes every problem, so that nothing is lowered away, checks that the core
hands it exactly what the protocol promises, and computes with the plain loop nest::

    with Loopback() as loop:
        y = convjit.conv(x, w)
    assert loop.calls == 1
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from types import TracebackType
from typing import Any, Self

import numpy as np

from convjit import config, precision, registry
from convjit.algorithms.oracle import oracle
from convjit.spec import ConvSpec
from convjit.spi import (
    DEFAULT_CONFIG,
    SPI_VERSION,
    Array,
    Config,
    Executable,
    Phase,
    Refusal,
    Solver,
    Target,
    Work,
)

NAME = "loopback"
WORKSPACE = 192  # bytes asked for, so that the core's allocation is checked too
WATCHED = ("conv", "conv_transpose", "conv_input_grad", "conv_weight_grad")


class Counter:
    """How often solvers ran, in all and in each thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._here = threading.local()
        self.runs = 0
        self.packs = 0
        self.specs: list[ConvSpec] = []

    @property
    def here(self) -> int:
        """Runs in this thread."""
        return int(getattr(self._here, "runs", 0))

    def packed(self) -> None:
        with self._lock:
            self.packs += 1

    def ran(self, spec: ConvSpec) -> None:
        with self._lock:
            self.runs += 1
            self.specs.append(spec)
        self._here.runs = self.here + 1


def _require(condition: bool, text: str) -> None:
    """An AssertionError also under ``python -O``."""
    if not condition:
        raise AssertionError(f"loopback: {text}")


class _Packed:
    """What pack returns: opaque, and bound to the problem."""

    __slots__ = ("rhs", "spec")

    def __init__(self, spec: ConvSpec, rhs: Array) -> None:
        self.spec = spec
        self.rhs = rhs


class LoopbackExecutable:
    """Checks what it is handed, then computes with the oracle."""

    workspace = WORKSPACE

    def __init__(self, spec: ConvSpec, counter: Counter) -> None:
        self._spec = spec
        self._counter = counter

    def pack(self, rhs: Array) -> _Packed:
        self._check("rhs", rhs, self._spec.rhs_shape, self._spec.dtype)
        self._counter.packed()
        return _Packed(self._spec, rhs.copy())

    def run(
        self, lhs: Array, packed: Any, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        spec = self._spec
        _require(isinstance(packed, _Packed), f"packed is a {type(packed).__name__}, not pack()'s")
        _require(packed.spec == spec, f"packed for {packed.spec}, run for {spec}")
        self._check("lhs", lhs, spec.lhs_shape, spec.dtype, contiguous=not spec.strided)
        self._check("out", out, spec.result_shape, spec.result_dtype)
        _require(out.flags.writeable, "out is read-only")
        _require(not np.may_share_memory(out, lhs), "out shares memory with the first operand")
        _require((bias is not None) == spec.bias, f"bias given: {bias is not None}, spec: {spec}")
        if bias is not None:
            self._check("bias", bias, (spec.result_channels,), spec.result_dtype)
        if workspace is None:
            raise AssertionError("loopback: no workspace was given")
        _require(workspace.nbytes >= WORKSPACE, f"a workspace of {workspace.nbytes} bytes")
        _require(workspace.ctypes.data % 64 == 0, "the workspace is not aligned to 64 bytes")
        workspace.view(np.uint8)[:WORKSPACE] = 0xA5
        out[...] = oracle(spec, lhs, packed.rhs, bias).astype(out.dtype)
        self._counter.ran(spec)

    @staticmethod
    def _check(
        what: str, array: Array, shape: tuple[int, ...], dtype: str, *, contiguous: bool = True
    ) -> None:
        _require(array.shape == shape, f"{what} has shape {array.shape}, promised {shape}")
        wanted = precision.numpy_dtype(dtype)
        _require(array.dtype == wanted, f"{what} is {array.dtype}, promised {wanted}")
        if contiguous:
            _require(array.flags.c_contiguous, f"{what} is not C-contiguous")
            _require(array.flags.aligned, f"{what} is not aligned")
            _require(array.dtype.isnative, f"{what} is not in native byte order")


class LoopbackSolver:
    """The oracle as a solver; it refuses nothing."""

    id = f"{NAME}.oracle"
    algorithm = "direct"

    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        return None

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        phase = Phase("loop nest", float(spec.flops), "loop", {"memory": 8.0 * spec.macs})
        # The oracle sums in float64 and rounds once.
        wide = "complex128" if spec.dtype in precision.COMPLEX else "float64"
        exact = spec.dtype in precision.INTEGER
        numerics = precision.Numerics(
            "exact" if exact else "direct", accumulate="" if exact else wide
        )
        return Work((phase,), numerics, Phase("pack"), workspace=WORKSPACE)

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        return (DEFAULT_CONFIG,)

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return LoopbackExecutable(spec, self._counter)


class LoopbackBackend:
    """The backend ``"loopback"``; :attr:`counter` tells what went through it."""

    name = NAME
    device = "cpu"
    spi_version = SPI_VERSION
    array_types: tuple[str, ...] = ("numpy:ndarray",)

    def __init__(self) -> None:
        self.counter = Counter()
        self._solvers = (LoopbackSolver(self.counter),)

    def probe(self) -> str | None:
        return None

    def array_namespace(self) -> Any:
        return np

    def target(self, device_id: int = 0) -> Target:
        rate = dict.fromkeys(("loop", "float32", "float64"), 1e8)
        return Target(
            fingerprint="loopback", device="cpu", description="the oracle", cores=1, peak=rate,
            rates=rate, bandwidth={"memory": 1e10, "copy": 1e9}, caches={}, launch=1e-6,
        )  # fmt: skip

    def solvers(self) -> Sequence[Solver]:
        return self._solvers


class Loopback:
    """A context in which every call goes to the loopback, or fails.

    Inside it ``convjit.conv`` and the other functions of :data:`WATCHED` raise an AssertionError
    when they return a result that no solver computed (an empty problem excepted, which has nothing
    to compute).  Names imported from convjit beforehand are not watched, but counted.
    """

    def __init__(self, backend: LoopbackBackend | None = None) -> None:
        self.backend = LoopbackBackend() if backend is None else backend
        self._is_ours = backend is None  # one that was given is registered already
        self._originals: dict[str, Callable[..., Any]] = {}

    @property
    def calls(self) -> int:
        """Runs of the loopback's solver so far."""
        return self.backend.counter.runs

    @property
    def specs(self) -> list[ConvSpec]:
        """What was computed, in order."""
        return list(self.backend.counter.specs)

    def __enter__(self) -> Self:
        import convjit

        if self._is_ours:
            registry.register(self.backend)
        config.push({"backend": NAME, "algorithm": None})
        for name in WATCHED:
            self._originals[name] = getattr(convjit, name)
            setattr(convjit, name, self._watch(name, self._originals[name]))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import convjit

        for name, original in self._originals.items():
            setattr(convjit, name, original)
        self._originals.clear()
        config.pop()
        if self._is_ours:
            registry.unregister(NAME)

    def _watch(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        counter = self.backend.counter

        @wraps(original)
        def watched(*arguments: Any, **keywords: Any) -> Any:
            before = counter.here
            result = original(*arguments, **keywords)
            shapes = [getattr(a, "shape", a) for a in arguments[:3]]
            empty = 0 in result.shape or any(isinstance(s, tuple) and 0 in s for s in shapes)
            if counter.here == before and not empty:
                raise AssertionError(
                    f"convjit.{name} returned a result of shape {result.shape} that no solver "
                    "computed: dispatch was bypassed"
                )
            return result

        return watched
