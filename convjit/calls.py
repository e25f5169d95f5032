"""The common body of the public calls: find the plan for the arguments, run it.

Plans are kept by the raw arguments of a call, so that a repeated call neither parses nor builds a
spec: one dictionary look-up stands between the user and the kernel.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from convjit import arguments, config, registry
from convjit import precision as precisions
from convjit.errors import BackendError, ConvSpecError
from convjit.plans import Plan, Weights
from convjit.spec import Direction

PLANS_KEPT = 4096

_plans: dict[tuple[Any, ...], Plan] = {}
_plans_generation = -1
_plans_lock = threading.Lock()

# The arguments, with their defaults, that describe the problem.
OPERATOR: dict[str, Any] = {
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
    "pad_mode": "zeros",
    "flip": False,
    "layout": None,
}
# The arguments that constrain the choice, all None when the caller says nothing.
CHOICE = (
    "backend",
    "algorithm",
    "precision",
    "nonfinite",
    "workspace_limit",
    "deterministic",
)


# -------------------------------------------------------------------- the plan cache


def _cached(key: tuple[Any, ...]) -> Plan | None:
    if _plans_generation != registry.generation():
        _forget_plans()
    return _plans.get(key)


def _forget_plans() -> None:
    global _plans_generation
    with _plans_lock:
        _plans.clear()
        _plans_generation = registry.generation()


def _keep(key: tuple[Any, ...], plan: Plan) -> None:
    with _plans_lock:
        while len(_plans) >= PLANS_KEPT:
            del _plans[next(iter(_plans))]
        _plans[key] = plan


def hashable(value: Any) -> Any:
    """Lists as tuples, so that ``padding=[(1, 1), (0, 2)]`` is a key."""
    if isinstance(value, (list, tuple)):
        return tuple(hashable(v) for v in value)
    return value


# -------------------------------------------------------------------- operands


def as_array(name: str, value: Any) -> Any:
    """An operand as an array: NumPy's, or a device's as it is."""
    kind = type(value)
    if kind is np.ndarray:
        return value
    if kind is Weights:
        return value.array
    if any(base.__name__ == "MaskedArray" for base in kind.__mro__):
        raise TypeError(
            f"{name} is a masked array, whose mask a convolution cannot keep; fill it "
            "(x.filled(0)) or use x.data."
        )
    if hasattr(kind, "__cuda_array_interface__"):
        return value
    return np.asarray(value)


def _array_type(array: Any) -> str:
    kind = type(array)
    return f"{kind.__module__}:{kind.__qualname__}" if kind is not np.ndarray else "numpy:ndarray"


def _is_strided(array: Any) -> bool:
    """Whether an operand must be copied before a kernel can take it as it is."""
    flags = array.flags
    return not (flags.c_contiguous and (type(array) is not np.ndarray or flags.aligned))


def _dtype_of(*operands: tuple[str, Any]) -> str:
    """The dtype in which two operands are convolved; messages name the arguments."""
    (first_name, first), (second_name, second) = operands
    try:
        return precisions.promote(first, second)
    except TypeError as error:
        message = str(error).replace("the first operand", first_name)
        raise TypeError(message.replace("the second operand", second_name)) from None


def _request(
    choice: Mapping[str, Any], *, is_plain: bool, packed: bool, array_type: str
) -> arguments.Request:
    """The caller's constraints over those of ``use`` and the environment."""
    settings = config.current()
    backend, algorithm = choice["backend"], choice["algorithm"]
    if algorithm is not None and not isinstance(algorithm, str):
        raise TypeError(f"algorithm={algorithm!r} is not a name; give a family or a solver's id.")
    limit = choice["workspace_limit"]
    return arguments.Request(
        backend=hashable(backend if backend is not None else settings.backend),
        algorithm=algorithm if algorithm is not None else settings.algorithm,
        policy=precisions.Policy(
            precision=choice["precision"] or settings.precision or "default",
            nonfinite=choice["nonfinite"] or ("local" if is_plain else "spread"),
            workspace_limit=limit if limit is not None else settings.workspace_limit,
            deterministic=bool(choice["deterministic"]),
        ),
        packed=packed,
        array_type=array_type,
    )


def _run_another(
    plan: Plan,
    error: BackendError,
    key: tuple[Any, ...] | None,
    operands: tuple[Any, ...],
    out: Any,
) -> Any:
    """What happens when the solver of a plain call fails: the next best one runs.

    A solver that the caller forced is not replaced: its error is the answer.
    """
    from convjit import dispatch

    if plan.request.is_forced:
        raise error
    dispatch.exclude(plan.solver, str(error))
    with _plans_lock:
        _plans.clear()
    replacement = dispatch.select(plan.problem, plan.request, plan.array_type)
    if key is not None:
        _keep(key, replacement)
    try:
        return replacement(*operands, out=out)
    except BackendError as another:
        return _run_another(replacement, another, key, operands, out)


# -------------------------------------------------------------------- running


def call(
    direction: Direction,
    lhs: Any,
    rhs: Any,
    bias: Any,
    out: Any,
    given: tuple[Any, ...],
    resolve: Callable[[Any, Any, str, bool, bool], arguments.Problem],
    names: tuple[str, str],
    choice: tuple[Any, ...],
) -> Any:
    """The common body of the four operators.

    ``given`` and ``choice`` are the raw arguments that, beside shapes and dtypes, decide the plan;
    ``resolve(lhs, rhs, dtype, bias, strided)`` builds the problem when the plan is not known yet.
    """
    settings = config.current()
    key: tuple[Any, ...] | None = None
    if type(lhs) is np.ndarray and type(rhs) in (np.ndarray, Weights):
        flags = lhs.flags
        key = (
            direction, lhs.shape, lhs.dtype, flags.c_contiguous and flags.aligned, rhs.shape,
            rhs.dtype, type(rhs), bias is None, given, choice, id(settings),
        )  # fmt: skip
        try:
            plan = _cached(key)
        except TypeError:  # a list among the arguments
            key = (*key[:8], hashable(given), hashable(choice), id(settings))
            try:
                plan = _cached(key)
            except TypeError:
                plan, key = None, None
        if plan is not None:
            try:
                return plan.run_known(lhs, rhs, bias, out)
            except BackendError as error:
                return _run_another(plan, error, key, (lhs, rhs, bias), out)
    first, second = as_array(names[0], lhs), as_array(names[1], rhs)
    dtype = _dtype_of((names[0], first.dtype), (names[1], second.dtype))
    strided = first.dtype.name == dtype and _is_strided(first)
    problem = resolve(first, second, dtype, bias is not None, strided)
    from convjit import dispatch

    request = _request(
        dict(zip(CHOICE, choice, strict=True)),
        is_plain=problem.is_plain,
        packed=type(rhs) is Weights,
        array_type=_array_type(first),
    )
    plan = dispatch.select(problem, request, type(first))
    if key is not None:
        _keep(key, plan)
    operands = (first, rhs if type(rhs) is Weights else second, bias)
    try:
        return plan(*operands, out=out)
    except BackendError as error:
        return _run_another(plan, error, key, operands, out)


# -------------------------------------------------------------------- planning


def _shape_and_dtype(name: str, value: Any) -> tuple[tuple[int, ...], Any, Any]:
    """(shape, dtype or None, array or None): a tuple is always a shape."""
    if isinstance(value, tuple):
        return arguments.as_shape(name, value), None, None
    array = as_array(name, value)
    return tuple(array.shape), array.dtype, array


def problem_and_request(
    x: Any, w: Any, bias: Any, direction: Any, dtype: Any, packed: bool, options: dict[str, Any]
) -> tuple[arguments.Problem, arguments.Request, type | None]:
    """What ``plan`` and ``explain`` share: shapes or arrays to a problem and a request."""
    known = {*OPERATOR, *CHOICE, "activation", "output_padding", "output_size"}
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(
            f"plan and explain do not take {unknown[0]!r}; they take {', '.join(sorted(known))}."
        )
    try:
        chosen = Direction(direction)
    except ValueError:
        raise ConvSpecError(
            f"direction={direction!r} is not known; choose one of "
            f"{', '.join(d.value for d in Direction)}."
        ) from None
    x_shape, x_dtype, x_array = _shape_and_dtype("x", x)
    w_shape, w_dtype, _ = _shape_and_dtype("w", w)
    if dtype is not None:
        given = np.dtype(dtype)
        x_dtype, w_dtype = given, given
    else:
        fallback = np.dtype("float32")
        x_dtype = x_dtype or w_dtype or fallback
        w_dtype = w_dtype or x_dtype
    common = _dtype_of(("x", x_dtype), ("w", w_dtype))
    choice = {name: options.pop(name, None) for name in CHOICE}
    with_bias = bool(bias is not None and bias is not False)
    operator = {**OPERATOR, **options}
    names = ("output_padding", "output_size")
    extra = {name: operator.pop(name) for name in names if name in operator}
    if chosen is Direction.TRANSPOSED:
        extra = {"output_padding": 0, "output_size": None, **extra}
        problem = arguments.transposed_problem(
            x_shape, w_shape, dtype=common, bias=with_bias, **operator, **extra
        )
    else:
        if extra:
            raise ConvSpecError(f"{next(iter(extra))} belongs to direction='transposed'.")
        is_forward = chosen is Direction.FORWARD
        if not is_forward and operator.get("activation") is not None:
            raise ConvSpecError("activation belongs to the forward and transposed directions.")
        problem = arguments.forward_problem(
            x_shape, w_shape, direction=chosen, dtype=common, bias=with_bias and is_forward,
            **operator,
        )  # fmt: skip
    kind = "numpy:ndarray" if x_array is None else _array_type(x_array)
    request = _request(choice, is_plain=problem.is_plain, packed=packed, array_type=kind)
    return problem, request, np.ndarray if x_array is None else type(x_array)
