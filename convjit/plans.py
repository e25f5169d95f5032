"""Plans and packed weights: a problem that was thought about once and runs many times.

A :class:`Plan` ties a problem to an executable.  Calling it checks the operands, allocates the
result and the workspace, packs the second operand unless that was done, and runs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from math import prod
from typing import Any, Protocol

import numpy as np

from convjit import arena, devices, precision, profiling
from convjit.algorithms.epilogue import epilogue
from convjit.algorithms.fills import namespace as namespace_of
from convjit.arguments import Problem, Request
from convjit.errors import BackendError, ConvSpecError
from convjit.locks import lock_held_over_forks
from convjit.spec import ConvSpec, Direction
from convjit.spi import Array, Config, Executable, Work

_OPERANDS = {
    Direction.FORWARD: ("x", "w"),
    Direction.TRANSPOSED: ("x", "w"),
    Direction.INPUT_GRAD: ("gy", "w"),
    Direction.WEIGHT_GRAD: ("x", "gy"),
}
# Bytes up to which a plan keeps a workspace itself instead of sharing the thread's, which takes
# longer than a tiny kernel.  4096 plans of that size stay below 64 MiB.
KEPT_WORKSPACE = 16 << 10
_forms_lock = lock_held_over_forks()
PACKED_FORMS = 16  # how many plans' forms one Weights object remembers


def empty(allocate: Callable[..., Array], shape: tuple[int, ...], dtype: Any, what: str) -> Array:
    """Uninitialised array, or a MemoryError that says how much was wanted for what."""
    try:
        return allocate(shape, dtype)
    except (MemoryError, ValueError) as error:
        if isinstance(error, ValueError) and "too big" not in str(error):
            raise
        wanted = prod(shape) * np.dtype(dtype).itemsize
        raise MemoryError(
            f"{wanted} bytes were wanted for {what} and could not be had; nothing was computed. "
            "Use a smaller batch, or workspace_limit= to rule out algorithms that need much."
        ) from error


class Packed:
    """The second operand in one plan's own form, made by :meth:`Plan.pack`."""

    __slots__ = ("_payload", "_plan", "shape")

    def __init__(self, plan: Plan, payload: Any) -> None:
        self._plan = plan
        self._payload = payload
        self.shape = plan.problem.rhs_shape

    def __repr__(self) -> str:
        return f"<packed {self.shape} for {self._plan.label} of {self._plan.spec}>"


class Packer(Protocol):
    """What has a form of its own for weights: a plan, or a half of a separable layer."""

    def pack_operand(self, rhs: Array) -> Any: ...


class Weights:
    """An immutable copy of weights that remembers its packed forms.

    Accepted wherever w is; the first call that uses a plan packs, later ones do not.

    Attributes
    ----------
    array : array
        The copy, C-contiguous; NumPy's is read-only.
    shape, dtype
        Of the array.
    """

    __slots__ = ("_forms", "array", "dtype", "shape")

    def __init__(self, array: Array) -> None:
        self.array = array
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype = array.dtype
        self._forms: dict[int, tuple[Packer, Any]] = {}

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __repr__(self) -> str:
        return f"<convjit.weights {self.shape} {self.dtype}, {len(self._forms)} packed forms>"

    def form_for(self, plan: Packer) -> Any:
        """The packed form for a plan, made when first asked for."""
        found = self._forms.get(id(plan))
        if found is not None:
            return found[1]
        with profiling.phase("pack", profiling.PACK):
            payload = plan.pack_operand(self.array)
        with _forms_lock:
            while len(self._forms) >= PACKED_FORMS:
                del self._forms[next(iter(self._forms))]
            # The plan is kept beside its form: an id is not used again while its object lives.
            self._forms[id(plan)] = (plan, payload)
        return payload


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
        "_dtype", "_empty", "_lhs_view", "_namespace", "_peak", "_result_dtype", "_result_view",
        "_rhs_view", "_spare", "_warm", "_zero_bias", "algorithm", "array_type", "backend",
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
        self._dtype = precision.numpy_dtype(self.spec.dtype)
        self._result_dtype = precision.numpy_dtype(self.spec.result_dtype)
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
        self._zero_bias: Array | None = None
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
            return Packed(self, self.pack_operand(self._operand(1, w).copy()))

    def pack_operand(self, rhs: Array) -> Any:
        flags = rhs.flags
        # As _is_plain, but that what is of this very dtype is native: this is on every call's way.
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
            if rhs._plan is self or rhs._plan.executable is self.executable:
                return rhs._payload
            raise ConvSpecError(
                f"{_OPERANDS[self.spec.direction][1]} was packed by another plan "
                f"({rhs._plan.label} of {rhs._plan.spec}); pack it with this plan's pack()."
            )
        if type(rhs) is Weights:
            if rhs.shape != self.problem.rhs_shape or rhs.dtype != self._dtype:
                self._operand(1, rhs.array)
            return rhs.form_for(self)
        rhs = self._operand(1, rhs)
        if profiling.enabled:
            with profiling.phase("pack", profiling.PACK):
                return self.pack_operand(rhs)
        return self.pack_operand(rhs)

    # ---------------------------------------------------------------- checks

    def _operand(self, position: int, array: Any) -> Array:
        """An operand as an array of the planned shape and a dtype that casts to the planned one."""
        name = _OPERANDS[self.spec.direction][position]
        wanted = self.problem.lhs_shape if position == 0 else self.problem.rhs_shape
        if type(array) is not self.array_type:
            array = self._of_own_kind(name, array)
        if array.shape != wanted:
            raise ConvSpecError(
                f"{name} has shape {tuple(array.shape)}, this plan takes {wanted}; make a plan for "
                "the new shape, or call convjit.conv, which keeps plans itself."
            )
        if array.dtype != self._dtype and not np.can_cast(array.dtype, self._dtype, "same_kind"):
            raise TypeError(
                f"{name} has dtype {array.dtype}, this plan takes {self._dtype}; cast it, or plan "
                "for its dtype."
            )
        return array

    def _of_own_kind(self, name: str, array: Any) -> Array:
        """An operand as an array of the planned library, on whose device it has to lie."""
        if self._namespace is np:
            if not devices.is_on_device(array):
                return np.asarray(array)
        elif devices.is_on_device(array):
            return devices.adopt(name, array, self.request.backend)
        there = "a device's arrays" if self._namespace is not np else "arrays in the host's memory"
        raise TypeError(
            f"{name} is a {devices.kind_of(array)}, and this plan takes {there}: convjit moves no "
            "operand to another device; copy it."
        )

    def _contiguous(self, lhs: Array) -> Array:
        """The first operand in the planned dtype, contiguous unless strided ones were planned."""
        if lhs.dtype != self._dtype or (not self.spec.strided and not _is_plain(lhs)):
            cast = lhs.dtype != self._dtype
            name, kind = ("cast", "") if cast else ("contiguous copy", profiling.LAYOUT)
            with profiling.phase(name, kind):
                converted = empty(
                    self._namespace.empty, lhs.shape, self._dtype, "a contiguous copy"
                )
                converted[...] = lhs
                return converted
        return lhs

    def _bias(self, bias: Any) -> Array | None:
        if not self.spec.bias:
            if bias is not None:
                raise ConvSpecError(
                    "bias was given to a plan made without one; the gradients have none, and "
                    "plan(..., bias=False) rules it out."
                )
            return None
        channels = self.spec.result_channels
        if bias is None:
            if self._zero_bias is None:
                self._zero_bias = self._namespace.zeros(channels, self._result_dtype)
            return self._zero_bias
        if type(bias) is not self.array_type:
            bias = self._of_own_kind("bias", bias)
        if bias.shape != (channels,):
            if not (self.problem.is_plain and bias.size == 1):
                raise ConvSpecError(
                    f"bias has shape {tuple(bias.shape)}, it must be ({channels},): one number "
                    "for each channel of the result."
                )
            bias = bias.reshape(1)
        if bias.dtype != self._result_dtype:
            if not np.can_cast(bias.dtype, self._result_dtype, "same_kind"):
                raise TypeError(
                    f"bias has dtype {bias.dtype}, which does not cast to the result's "
                    f"{self._result_dtype} within its kind; cast it yourself."
                )
            return bias.astype(self._result_dtype)
        return bias if _is_plain(bias) else bias.copy()

    def _check_out(self, out: Any) -> None:
        shape = self.problem.result_shape
        own = isinstance(out, np.ndarray if self._namespace is np else self.array_type)
        if not own:
            raise TypeError(
                f"out is a {devices.kind_of(out)}; give an array of the operands' library and of "
                f"shape {shape}."
            )
        if out.shape != shape or out.dtype != self._result_dtype:
            raise ConvSpecError(
                f"out is {tuple(out.shape)} {out.dtype}; it must be exactly {shape} "
                f"{self._result_dtype}."
            )
        if isinstance(out, np.ndarray) and not out.flags.writeable:
            raise ConvSpecError("out is read-only; give a writable array.")

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
            or not (self.spec.strided or _is_plain(x))
        ):
            x = self._contiguous(self._operand(0, x))
        return self._run(x, w, self._payload(w), bias, out)

    def _known(self, x: Array, w: Any, bias: Any, out: Any) -> Any:
        if x.dtype is not self._dtype:
            x = self._contiguous(x)
        if profiling.enabled:
            packed = self._payload(w)
        else:
            packed = w.form_for(self) if type(w) is Weights else self.pack_operand(w)
        return self._run(x, w, packed, bias, out)

    def _run(self, x: Array, w: Any, packed: Any, bias: Any, out: Any) -> Any:
        spec, problem = self.spec, self.problem
        if bias is not None or spec.bias:
            bias = self._bias(bias)
        target = self._target(out, x, w, bias) if out is not None else None
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

    def _target(self, out: Array, *operands: Any) -> Array | None:
        """``out`` itself where a kernel may write straight into it, else None."""
        self._check_out(out)
        if not _is_plain(out):
            return None
        for operand in operands:
            array = operand.array if type(operand) is Weights else operand
            is_array = isinstance(array, np.ndarray if self._namespace is np else self.array_type)
            if is_array and self._namespace.may_share_memory(array, out):
                return None
        return out

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
            f"operands      {', '.join(_OPERANDS[self.spec.direction])}: "
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


def _is_plain(array: Array) -> bool:
    """Whether a kernel can take an array as it is."""
    flags = array.flags
    return bool(
        flags.c_contiguous
        and (not isinstance(array, np.ndarray) or (flags.aligned and array.dtype.isnative))
    )
