"""The separable layer as one call of a backend, where a backend offers that.

A depthwise and a pointwise convolution are two calls in general.  A backend may offer both in one
(:class:`convjit.spi.SeparableSolver`), which saves writing and reading the result in between.  It
runs where both halves would go to that backend, the operands are as a kernel takes them, and the
model predicts less time for one call than for two.  Whatever else there is to do or to say (casts,
copies, lowerings, errors) the halves do and say: then :func:`find` gives None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import is_
from typing import Any, cast

import numpy as np

from convjit import (
    arena,
    arguments,
    calibration,
    calls,
    config,
    cost,
    dispatch,
    profiling,
    registry,
)
from convjit.arguments import Problem, Request
from convjit.calls import kinds_of
from convjit.errors import BackendError, ConvSpecError
from convjit.locks import lock_held_over_forks
from convjit.plans import Weights, empty
from convjit.ranking import Candidate
from convjit.spec import Direction
from convjit.spi import SeparableExecutable, Work

LAYERS_KEPT = 1024

# What was found, with the arguments that it was found for.
_layers: dict[tuple[Any, ...], tuple[tuple[Any, ...], Layer | None]] = {}
_generation = -1
_lock = lock_held_over_forks()


class _Operand:
    """One kernel of a layer, for :class:`Weights` to keep its packed form by."""

    def __init__(self, pack: Callable[[Any], Any]) -> None:
        self._pack = pack

    def pack_operand(self, rhs: Any) -> Any:
        return self._pack(rhs)


class Layer:
    """A separable layer that a backend computes in one call."""

    def __init__(
        self,
        depth: Problem,
        point: Problem,
        executable: SeparableExecutable,
        *,
        backend: str,
        solver: str,
        peak: float,
    ) -> None:
        self.depth, self.point = depth, point
        self.executable = executable
        self.backend, self.solver = backend, solver
        self._peak = peak
        self._dtype = np.dtype(depth.spec.dtype)
        self._depth = _Operand(executable.pack_depth)
        self._point = _Operand(executable.pack_point)
        self._warm = False

    def takes(self, bias: Any, channels: int) -> bool:
        """Whether the kernel can take a bias as it is."""
        return bias is None or (_is_plain(bias, self._dtype) and bias.shape == (channels,))

    def writes(self, out: Any, operands: tuple[Any, ...]) -> bool:
        """Whether the kernel can write straight into ``out``."""
        if out is None:
            return True
        return (
            _is_plain(out, self._dtype)
            and out.shape == self.point.result_shape
            and out.flags.writeable
            and not any(a is not None and np.may_share_memory(_array(a), out) for a in operands)
        )

    def __call__(
        self, x: Any, w_depth: Any, w_point: Any, depth_bias: Any, bias: Any, out: Any
    ) -> Any:
        """The result, in ``out`` or in fresh memory."""
        if not profiling.enabled:
            return self._run(x, w_depth, w_point, depth_bias, bias, out)
        with profiling.call(
            spec=str(self.depth.spec), backend=self.backend, solver=self.solver, label=self.solver,
            flops=self.depth.spec.flops + self.point.spec.flops, peak=self._peak,
            cold=not self._warm,
        ):  # fmt: skip
            return self._run(x, w_depth, w_point, depth_bias, bias, out)

    def _run(self, x: Any, w_depth: Any, w_point: Any, depth_bias: Any, bias: Any, out: Any) -> Any:
        if out is None:
            out = empty(np, self.point.result_shape, self._dtype, "the result")
        size = self.executable.workspace
        block = arena.take(size, self._allocate)
        try:
            depth, point = _packed(self._depth, w_depth), _packed(self._point, w_point)
            self.executable.run(
                x.reshape(self.depth.spec.x_shape), depth, depth_bias, point, bias,
                out.reshape(self.point.spec.y_shape), block[:size],
            )  # fmt: skip
        except MemoryError:
            raise
        except Exception as error:
            raise BackendError(
                f"backend {self.backend!r}: solver {self.solver!r} failed while it ran "
                f"{self.depth.spec}: {type(error).__name__}: {error}"
            ) from error
        finally:
            arena.give_back(block)
        self._warm = True
        return out

    def _allocate(self, size: int) -> arena.Block:
        block: arena.Block = empty(np, (size,), np.uint8, f"the workspace of {self.solver}")
        return block


def _packed(operand: _Operand, weights: Any) -> Any:
    if type(weights) is Weights:
        return weights.form_for(operand)
    with profiling.phase("pack", profiling.PACK):
        return operand.pack_operand(weights)


def _array(operand: Any) -> Any:
    return operand.array if type(operand) is Weights else operand


def _is_plain(array: Any, dtype: Any) -> bool:
    """Whether a kernel can take an array as it is."""
    array = _array(array)
    return (
        type(array) is np.ndarray
        and array.dtype == dtype
        and array.dtype.isnative
        and array.flags.c_contiguous
        and array.flags.aligned
    )


def find(
    x: Any,
    w_depth: Any,
    w_point: Any,
    depth_bias: Any,
    bias: Any,
    out: Any,
    operator: dict[str, Any],
    activations: tuple[Any, Any],
    choice: dict[str, Any],
) -> Layer | None:
    """The layer that computes a call at once, None where the two halves are to do it.

    ``w_point`` has the dimensions of ``w_depth``; ``operator`` and ``activations`` are the raw
    arguments of the depthwise convolution, and the activations after it and after the second one.
    """
    global _generation
    if type(x) is not np.ndarray or not all(_is_plain(a, x.dtype) for a in (x, w_depth, w_point)):
        return None
    given = (*operator.values(), *activations, *choice.items())
    try:
        key = (
            x.shape, x.dtype, w_depth.shape, type(w_depth), w_point.shape, type(w_point),
            depth_bias is None, bias is None, given, config.current(),
        )  # fmt: skip
        if _generation != registry.generation():
            with _lock:
                _layers.clear()
                _generation = registry.generation()
        kept = _layers.get(key)
        if kept is not None:
            # Equal arguments of different types are not checked alike: 1 == 1.0 == True.
            if not all(map(is_, given, kept[0])) and kinds_of(given) != kinds_of(kept[0]):
                return None
            layer = kept[1]
        else:
            found = offer(
                (x.shape, w_depth.shape, w_point.shape), x.dtype.name,
                (depth_bias is not None, bias is not None), operator, activations, choice,
                packed=type(w_depth) is Weights and type(w_point) is Weights,
            )  # fmt: skip
            layer = None if found.refusal else found.layer()
            with _lock:
                while len(_layers) >= LAYERS_KEPT:
                    del _layers[next(iter(_layers))]
                _layers[key] = given, layer
    except Exception:
        # The halves meet the same difficulty (a list is no key), and say what it is.
        return None
    if layer is None or not (
        layer.takes(depth_bias, w_depth.shape[0])
        and layer.takes(bias, w_point.shape[0])
        and layer.writes(out, (x, w_depth, w_point, depth_bias, bias))
    ):
        return None
    return layer


def pointwise_shape(depth: tuple[int, ...], point: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of ``w_point`` with the dimensions of ``w_depth``.

    Raises
    ------
    ConvSpecError
        If the two do not belong together.
    """
    if len(depth) < 3 or depth[1] != 1:
        raise ConvSpecError(
            f"w_depth has shape {depth}; it must be (C * m, 1, *kernel), one input channel per "
            "kernel."
        )
    pointwise = (*point[:1], depth[0], *(1,) * (len(depth) - 2))
    if point not in (pointwise, pointwise[:2]):
        raise ConvSpecError(
            f"w_point has shape {point}; beside w_depth {depth} it must be (K, {depth[0]}) or "
            f"(K, {depth[0]}{', 1' * (len(depth) - 2)})."
        )
    return pointwise


@dataclass(frozen=True, slots=True)
class Offer:
    """What a separable layer comes to: its halves, and one pass for both if a backend has one.

    Attributes
    ----------
    depth, point : Problem
    request : Request
    halves : tuple of Candidate
        What computes the depthwise and the pointwise convolution; fewer where nothing does.
    backend, solver : str
        Of the one pass; empty where there is none.
    work : Work or None
        Of the one pass, if it takes the layer.
    seconds : float or None
        Predicted for it, the packing included where that is paid in each call.
    refusal : str
        Why there is no such pass, or why it is not the better choice; empty where it runs.
    """

    depth: Problem
    point: Problem
    request: Request
    halves: tuple[Candidate, ...]
    backend: str = ""
    solver: str = ""
    work: Work | None = None
    seconds: float | None = None
    refusal: str = ""

    @property
    def halves_seconds(self) -> float | None:
        """Predicted for two calls."""
        if len(self.halves) < 2:
            return None
        return sum(half.total(self.request.packed) for half in self.halves)

    def layer(self) -> Layer:
        """The one pass, planned."""
        backend = registry.get(self.backend)
        target = calibration.target(backend)
        executable = cast(Any, backend).separable().plan(self.depth.spec, self.point.spec, target)
        return Layer(
            self.depth, self.point, executable, backend=self.backend, solver=self.solver,
            peak=target.peak.get(self.depth.spec.dtype, 0.0),
        )  # fmt: skip


def offer(
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], dtype: str,
    biases: tuple[bool, bool], operator: dict[str, Any], activations: tuple[Any, Any],
    choice: dict[str, Any], *, packed: bool,
) -> Offer:  # fmt: skip
    """What a layer comes to; one pass where the backend of both halves has it and it is faster.

    Parameters
    ----------
    shapes : (x, w_depth, w_point)
        The last with the dimensions of ``w_depth``.
    dtype : str
    biases : (bool, bool)
        Whether the depthwise and the pointwise convolution have one.
    operator, activations, choice
        As :func:`find` takes them.
    packed : bool
    """
    depth = arguments.forward_problem(
        shapes[0], shapes[1], direction=Direction.FORWARD, dtype=dtype,
        activation=activations[0], bias=biases[0], **operator,
    )  # fmt: skip
    point = arguments.forward_problem(
        depth.result_shape, shapes[2], direction=Direction.FORWARD, dtype=dtype,
        activation=activations[1], bias=biases[1],
        **{**calls.OPERATOR, "layout": operator["layout"]},
    )  # fmt: skip
    request = calls.make_request(
        {name: choice.get(name) for name in calls.CHOICE},
        is_plain=False, packed=packed, array_type="numpy:ndarray",
    )  # fmt: skip
    halves = []
    for problem in (depth, point):
        admitted = [c for c in dispatch.candidates(problem.spec, request) if c.refusal is None]
        halves += admitted[:1]
    found = Offer(depth, point, request, tuple(halves))
    if request.algorithm is not None:
        return replace(found, refusal=f"algorithm={request.algorithm!r} is of the two calls")
    if len(halves) < 2:
        return replace(found, refusal="one of the two convolutions is computed by nothing")
    if halves[0].backend != halves[1].backend:
        names = " and ".join(half.backend for half in halves)
        return replace(found, refusal=f"the two are best computed by different backends, {names}")
    backend = registry.get(halves[0].backend)
    offered = getattr(backend, "separable", None)
    if offered is None:
        return replace(found, refusal=f"the backend {backend.name} has no such pass")
    solver, target = offered(), calibration.target(backend)
    found = replace(found, backend=backend.name, solver=solver.id)
    if solver.id in config.current().disable:
        return replace(found, refusal="disabled by disable= or CONVJIT_DISABLE")
    if dispatch.has_failed(solver.id):
        return replace(found, refusal="it failed in this process")
    refusal = solver.refuse(depth.spec, point.spec, target)
    if refusal is not None:
        return replace(found, refusal=refusal.reason)
    work = solver.estimate(depth.spec, point.spec, target)
    seconds = cost.seconds(work, target) + (0.0 if packed else cost.pack_seconds(work, target))
    found = replace(found, work=work, seconds=seconds)
    limit = request.policy.workspace_limit
    if limit is not None and work.workspace > limit:
        return replace(
            found,
            refusal=f"needs a workspace of {work.workspace} bytes, workspace_limit is {limit}",
        )
    if seconds >= (found.halves_seconds or 0.0):
        return replace(found, refusal="two calls are predicted to be as fast")
    return found


def forget(layer: Layer, error: BackendError) -> None:
    """Do not use a layer's solver again: it failed."""
    dispatch.exclude(layer.solver, str(error))
    with _lock:
        _layers.clear()
