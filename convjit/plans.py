"""Plans: a problem that was thought about once and runs many times.

A :class:`Plan` ties a problem to an executable.  Calling it checks the operands, allocates the
result and the workspace, packs the second operand unless that was done, and runs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from convjit import arena, profiling
from convjit.algorithms.epilogue import epilogue
from convjit.algorithms.fills import namespace as namespace_of
from convjit.arguments import Problem, Request
from convjit.errors import BackendError, ConvSpecError
from convjit.operands import Operands, empty, is_plain
from convjit.packing import Packed, Weights
from convjit.spec import ConvSpec
from convjit.spi import Array, Config, Executable, Work

# Bytes up to which a plan keeps a workspace itself instead of sharing the thread's, which takes
# longer than a tiny kernel.  4096 plans of that size stay below 64 MiB.
KEPT_WORKSPACE = 16 << 10


class Fill:
    """What runs when no product is summed: zeros, bias, activation."""

    workspace = 0

    def __init__(self, spec: ConvSpec) -> None:
        self._spec = spec

    def pack(self, rhs: Array) -> None:
        return None

    def run(
        self, lhs: Array, packed: Any, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        out[...] = 0
        epilogue(namespace_of(out), self._spec, out, bias)


class Plan:
    """A problem with its solver chosen; callable, printable, safe from several threads.

    ``plan(x, w, bias=None, *, out=None)``; for the input's gradient the operands are ``(gy, w)``,
    for the weights' gradient ``(x, gy)``.  The second may be what :meth:`pack` returned, or a
    :class:`Weights`.

    Attributes
    ----------
    spec : ConvSpec
    label : str
        Lowering and solver: ``"pad reflect + numba.direct"``.
    backend, solver, algorithm : str
    reason : str
        Which rule of the selection won.
    workspace : int
        Bytes allocated for each call beside the result.
    work : Work or None
        What a call costs (None when nothing is summed).
    error_bound : float
        Modelled bound on the error, relative to the largest sum of magnitudes.
    seconds : float
        Predicted time of a call with packed weights.
    config : tuple of (name, size)
        Block sizes: the solver's default, unless others were measured to be faster.
    fallback : str
        What better there would be and why it does not run, empty where nothing better is known.
    """

    __slots__ = (
        "_dtype", "_empty", "_lhs_view", "_namespace", "_operands", "_peak", "_result_dtype",
        "_result_view", "_rhs_view", "_spare", "_warm", "algorithm", "array_type", "backend",
        "config", "error_bound", "executable", "fallback", "label", "problem", "reason",
        "request", "seconds", "solver", "spec", "work", "workspace",
    )  # fmt: skip

    def __init__(
        self,
        problem: Problem,
        executable: Executable,
        *,
        request: Request,
        namespace: Any,
        array_type: Any,
        backend: str,
        solver: str,
        algorithm: str,
        label: str,
        reason: str,
        work: Work | None,
        error_bound: float,
        seconds: float,
        peak: float,
        config: Config = (),
        fallback: str = "",
    ) -> None:
        self.problem, self.request = problem, request
        self.spec = problem.spec
        self.executable = executable
        self.backend, self.solver, self.algorithm = backend, solver, algorithm
        self.label, self.reason = label, reason
        self.work, self.error_bound, self.seconds = work, error_bound, seconds
        self.workspace = executable.workspace
        self.config, self.fallback = config, fallback
        self.array_type: Any = array_type
        self._namespace = namespace
        self._peak = peak
        self._operands = Operands(problem, request, namespace, array_type)
        self._dtype, self._result_dtype = self._operands.dtype, self._operands.result_dtype
        self._empty = namespace.empty
        if namespace is np:
            self._empty = arena.allocator(problem.result_shape, self._result_dtype)
        # The batched shapes, where they differ from the user's and matter.
        shapeless = getattr(executable, "shapeless", False)
        self._lhs_view = None if shapeless else _if_other(self.spec.lhs_shape, problem.lhs_shape)
        self._rhs_view = _if_other(self.spec.rhs_shape, problem.rhs_shape)
        self._result_view = (
            None if shapeless else _if_other(self.spec.result_shape, problem.result_shape)
        )
        self._spare: list[Array] = []  # popped and appended by any thread, each step atomic
        self._warm = False

    # ---------------------------------------------------------------- packing

    def pack(self, w: Array) -> Packed:
        """The second operand (w; gy for the weights' gradient) in the solver's own form.

        Raises
        ------
        ConvSpecError
            If its shape is not the planned one.
        TypeError
            If its dtype cannot be cast to the planned one without loss of kind.
        """
        # A solver may take the operand itself as its packed form, and the caller may change it.
        with profiling.phase("pack", profiling.PACK, self.spec):
            return Packed(self, self.pack_operand(self._operands.operand(1, w).copy()))

    def pack_operand(self, rhs: Array) -> Any:
        flags = rhs.flags
        # As is_plain, but that what is of this very dtype is native: this is on every call's way.
        if not (
            rhs.dtype is self._dtype
            and flags.c_contiguous
            and (self._namespace is not np or flags.aligned)
        ):
            rhs = self._namespace.asarray(rhs, dtype=self._dtype, order="C")
            if self._namespace is np and not rhs.flags.aligned:
                rhs = rhs.copy()
        if self._rhs_view is not None:
            rhs = rhs.reshape(self._rhs_view)
        try:
            return self.executable.pack(rhs)
        except MemoryError:
            raise
        except Exception as error:
            raise self._failure("packed for", error) from error

    def _payload(self, rhs: Any) -> Any:
        if type(rhs) is Packed:
            if rhs.plan is self or rhs.plan.executable is self.executable:
                return rhs.payload
            raise ConvSpecError(
                f"{self._operands.names[1]} was packed by another plan "
                f"({rhs.plan.label} of {rhs.plan.spec}); pack it with this plan's pack()."
            )
        if type(rhs) is Weights:
            if rhs.shape != self.problem.rhs_shape or rhs.dtype != self._dtype:
                self._operands.operand(1, rhs.array)
            return rhs.form_for(self)
        rhs = self._operands.operand(1, rhs)
        if profiling.enabled:
            with profiling.phase("pack", profiling.PACK):
                return self.pack_operand(rhs)
        return self.pack_operand(rhs)

    # ---------------------------------------------------------------- execution

    def __call__(self, x: Any, w: Any, bias: Any = None, *, out: Any = None) -> Any:
        """Run: ``y = plan(x, w, bias)``.

        Parameters
        ----------
        x : array
            The first operand, of the planned shape.
        w : array, Packed or Weights
            The second operand.
        bias : array, (channels of the result,), optional
        out : array, optional
            Exactly the result's shape and dtype; may overlap the operands.

        Returns
        -------
        array
            ``out``, or fresh memory.
        """
        if profiling.enabled:
            with self._recorded():
                return self._checked(x, w, bias, out)
        return self._checked(x, w, bias, out)

    def run_known(self, x: Array, w: Any, bias: Any, out: Any) -> Any:
        """Run for the plan cache, whose key vouches for the operands' types, shapes and dtypes."""
        if profiling.enabled:
            with self._recorded():
                return self._known(x, w, bias, out)
        return self._known(x, w, bias, out)

    def _recorded(self) -> AbstractContextManager[None]:
        return profiling.call(
            spec=str(self.spec), backend=self.backend, solver=self.solver, label=self.label,
            flops=self.spec.flops, peak=self._peak, cold=not self._warm, fallback=self.fallback,
        )  # fmt: skip

    def _checked(self, x: Any, w: Any, bias: Any, out: Any) -> Any:
        if (
            type(x) is not self.array_type
            or x.shape != self.problem.lhs_shape
            or x.dtype != self._dtype
            or not (self.spec.strided or is_plain(x))
        ):
            x = self._operands.contiguous(self._operands.operand(0, x))
        return self._run(x, w, self._payload(w), bias, out)

    def _known(self, x: Array, w: Any, bias: Any, out: Any) -> Any:
        if x.dtype is not self._dtype:
            x = self._operands.contiguous(x)
        if profiling.enabled:
            packed = self._payload(w)
        else:
            packed = w.form_for(self) if type(w) is Weights else self.pack_operand(w)
        return self._run(x, w, packed, bias, out)

    def _run(self, x: Array, w: Any, packed: Any, bias: Any, out: Any) -> Any:
        spec, problem = self.spec, self.problem
        if bias is not None or spec.bias:
            bias = self._operands.bias(bias)
        target = self._operands.target(out, x, w, bias) if out is not None else None
        if target is None:
            target = empty(self._empty, problem.result_shape, self._result_dtype, "the result")
        inner_x = x if self._lhs_view is None else x.reshape(self._lhs_view)
        inner_out = target if self._result_view is None else target.reshape(self._result_view)
        block = self._take_block() if self.workspace else None
        workspace = None if block is None else block[: self.workspace]
        try:
            if profiling.enabled:
                with profiling.phase(self.solver):
                    self.executable.run(inner_x, packed, bias, inner_out, workspace)
            else:
                self.executable.run(inner_x, packed, bias, inner_out, workspace)
        except MemoryError:
            raise
        except Exception as error:
            raise self._failure("ran", error) from error
        finally:
            if block is not None:
                self._give_back(block)
        self._warm = True
        if out is None:
            return target
        if target is not out:
            out[...] = target
        return out

    def _failure(self, doing: str, error: Exception) -> BackendError:
        return BackendError(
            f"backend {self.backend!r}: solver {self.solver!r} failed while it {doing} "
            f"{self.spec}: {type(error).__name__}: {error}"
        )

    def _take_block(self) -> Array:
        """What the workspace of one call is the beginning of."""
        if self._namespace is not np:
            return self._allocate(self.workspace)
        if self.workspace > KEPT_WORKSPACE:
            return arena.take(self.workspace, self._allocate)
        try:
            return self._spare.pop()
        except IndexError:
            return arena.fresh(self.workspace, self._allocate)

    def _give_back(self, block: Array) -> None:
        if self._namespace is np:
            if self.workspace > KEPT_WORKSPACE:
                arena.give_back(block)
            else:
                self._spare.append(block)

    def _allocate(self, size: int) -> Array:
        return empty(self._namespace.empty, (size,), np.uint8, f"the workspace of {self.label}")

    def __repr__(self) -> str:
        return f"<convjit.Plan {self.spec}: {self.label}>"

    def __str__(self) -> str:
        lines = [
            f"plan of       {self.spec}",
            f"operands      {', '.join(self._operands.names)}: "
            f"{self.problem.lhs_shape}, {self.problem.rhs_shape} {self.spec.dtype}",
            f"result        {self.problem.result_shape} {self.spec.result_dtype}",
            f"runs          {self.label}{_blocks(self.config)}",
            f"because       {self.reason}",
            f"predicted     {self.seconds * 1e3:.4g} ms",
            f"workspace     {self.workspace} bytes",
            f"error bound   {self.error_bound:.1e} of the largest sum of magnitudes",
        ]
        return "\n".join(lines)


def _blocks(config: Config) -> str:
    return f" ({', '.join(f'{name}={size}' for name, size in config)})" if config else ""


def _if_other(shape: tuple[int, ...], than: tuple[int, ...]) -> tuple[int, ...] | None:
    return None if shape == than else shape
