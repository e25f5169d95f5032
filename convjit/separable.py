"""The separable layer as one call of a backend, where a backend offers that.

A depthwise and a pointwise convolution are two calls in general.  A backend may offer both in one
(:class:`convjit.spi.SeparableSolver`), which saves writing and reading the result in between.  It
runs where the operands are as a kernel takes them, and where :mod:`convjit.separable_offer` says
that one call takes less time than two.  Whatever else there is to do or to say (casts,
copies, lowerings, errors) the halves do and say: then :func:`find` gives None.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any

import numpy as np

from convjit import arena, calibration, config, dispatch, profiling, registry, staleness
from convjit.arguments import Problem
from convjit.calls import kinds_of
from convjit.errors import BackendError
from convjit.locks import lock_held_over_forks
from convjit.operands import empty
from convjit.packing import Weights
from convjit.separable_offer import Offer, offer
from convjit.spi import Config, SeparableExecutable

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
        self._empty = arena.allocator(point.result_shape, self._dtype)
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
            out = empty(self._empty, self.point.result_shape, self._dtype, "the result")
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
        block: arena.Block = empty(np.empty, (size,), np.uint8, f"the workspace of {self.solver}")
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
        if _generation != staleness.generation():
            with _lock:
                _layers.clear()
                _generation = staleness.generation()
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
            layer = None if found.why_not else planned(found)
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


def planned(found: Offer, config: Config | None = None) -> Layer:
    """The one pass of an offer, with given block sizes or those that are the best.

    Remembered block sizes that need more than ``workspace_limit`` give way to the default.
    """
    target = calibration.target(registry.get(found.backend))
    problem = found.depth.spec, found.point.spec, target
    solver = found.separable_solver()
    default = next(iter(solver.configs(*problem)))
    chosen = found.config if config is None else config
    executable = solver.plan(*problem, chosen)
    limit = found.request.policy.workspace_limit
    if config is None and chosen != default and limit is not None and executable.workspace > limit:
        executable = solver.plan(*problem, default)
    return Layer(
        found.depth, found.point, executable, backend=found.backend, solver=found.solver,
        peak=target.peak.get(found.depth.spec.dtype, 0.0),
    )  # fmt: skip


def forget(layer: Layer, error: BackendError) -> None:
    """Do not use a layer's solver again: it failed."""
    dispatch.exclude(layer.solver, str(error))
    with _lock:
        _layers.clear()
