"""Problems as parameters, their arrays, and the public call that each of them is.

A parameter is a spec's one spelling, so that a point of a history says what was computed, and
``python -m convjit explain <spec>`` says how.  Parameters are constants: a revision that changes
them begins a new history.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from convjit import layout
from convjit.bench.cases import network_cases, networks
from convjit.precision import numpy_dtype
from convjit.spec import ConvSpec, Direction

NETWORKS = tuple(networks())


def network(name: str) -> list[tuple[ConvSpec, int]]:
    """The layers of a network, and how often each occurs."""
    return [(case.problem, case.count) for case in network_cases([name])]


def heaviest(name: str, count: int) -> list[str]:
    """The layers of a network in which most of its arithmetic is."""
    ranked = sorted(network(name), key=lambda row: row[0].flops * row[1], reverse=True)
    return [str(spec) for spec, _ in ranked[:count]]


def in_channels_last(spec: ConvSpec) -> ConvSpec:
    """The same problem on channels-last data."""
    return spec.replace(layout=layout.CHANNELS_LAST[spec.ndim])


def operands(spec: ConvSpec, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Both operands and the bias of a problem, from a standard normal distribution."""
    rng = np.random.default_rng(seed)
    dtype = numpy_dtype(spec.dtype)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        if np.issubdtype(dtype, np.integer):
            return rng.integers(0, 100, shape).astype(dtype)
        values = rng.standard_normal(shape, np.float32)
        if np.issubdtype(dtype, np.complexfloating):
            return (values + 1j * rng.standard_normal(shape, np.float32)).astype(dtype)
        return values.astype(dtype)

    bias = draw((spec.result_channels,)) if spec.bias else None
    return draw(spec.lhs_shape), draw(spec.rhs_shape), bias


def arguments(spec: ConvSpec) -> dict[str, Any]:
    """The keyword arguments of the public call whose problem the spec is."""
    found: dict[str, Any] = {
        "stride": spec.stride,
        "padding": spec.padding,
        "dilation": spec.dilation,
        "groups": spec.groups,
        "pad_mode": spec.pad_mode,
        "flip": spec.flip,
        "layout": spec.layout,
    }
    if spec.direction is Direction.TRANSPOSED:
        found["output_size"] = spec.in_size
    if spec.direction in (Direction.FORWARD, Direction.TRANSPOSED):
        found["activation"] = spec.activation
    return found


def plain_call(spec: ConvSpec, **more: Any) -> Callable[[], np.ndarray]:
    """``conv``, ``conv_transpose`` or a gradient on arrays of the problem, plan and all."""
    import convjit

    lhs, rhs, bias = operands(spec)
    options = arguments(spec) | more
    match spec.direction:
        case Direction.FORWARD:
            return lambda: convjit.conv(lhs, rhs, bias, **options)
        case Direction.TRANSPOSED:
            return lambda: convjit.conv_transpose(lhs, rhs, bias, **options)
        case Direction.INPUT_GRAD:
            return lambda: convjit.conv_input_grad(spec.x_shape, rhs, lhs, **options)
        case Direction.WEIGHT_GRAD:
            return lambda: convjit.conv_weight_grad(lhs, spec.w_shape, rhs, **options)


def described(spec: ConvSpec) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What ``plan`` and ``explain`` take for a problem: two shapes, and keyword arguments."""
    shapes = (spec.lhs_shape, spec.rhs_shape)
    if spec.direction in (Direction.INPUT_GRAD, Direction.WEIGHT_GRAD):
        shapes = (spec.x_shape, spec.w_shape)
    options = {
        "dtype": numpy_dtype(spec.dtype),
        "direction": spec.direction.value,
        "bias": spec.bias,
    }
    return shapes, options | arguments(spec)


def plan_of(spec: ConvSpec, **more: Any) -> Any:
    import convjit

    shapes, options = described(spec)
    return convjit.plan(*shapes, **options, **more)


def planned_call(spec: ConvSpec, **more: Any) -> Callable[[], np.ndarray]:
    """A call of a plan with packed weights."""
    lhs, rhs, bias = operands(spec)
    plan = plan_of(spec, **more)
    packed = plan.pack(rhs)
    return lambda: plan(lhs, packed, bias)


def warmed_up(call: Callable[[], Any]) -> Callable[[], Any]:
    """A call whose kernels are compiled and whose threads are awake."""
    call()
    call()
    return call


def per_call(call: Callable[[], Any], number: int = 2000, rounds: int = 15) -> float:
    """Seconds of a call of a few microseconds: the least mean over rounds of many calls."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(number):
            call()
        best = min(best, (time.perf_counter() - start) / number)
    return best


def skip(reason: str) -> None:
    """Leave a combination out: asv's convention is NotImplementedError in ``setup``."""
    raise NotImplementedError(reason)
