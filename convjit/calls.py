"""The common body of the public calls: find the plan for the arguments, run it.

Plans are kept by the raw arguments of a call, so that a repeated call neither parses nor builds a
spec: one dictionary look-up stands between the user and the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import is_
from typing import Any, NamedTuple

import numpy as np

from convjit import arguments, config, devices, parsing, staleness
from convjit import precision as precisions
from convjit.errors import BackendError, ConvSpecError
from convjit.locks import lock_held_over_forks
from convjit.operands import check_bias
from convjit.packing import Weights
from convjit.plans import Plan
from convjit.spec import ConvSpec, Direction

PLANS_KEPT = 4096


class _Place(NamedTuple):
    """Where the plan of a call is kept."""

    key: tuple[Any, ...]
    options: tuple[Any, ...]


class _Kept(NamedTuple):
    """A plan, and the arguments of the call that it was made for."""

    plan: Plan
    options: tuple[Any, ...]


_plans: dict[tuple[Any, ...], _Kept] = {}
_plans_generation = -1
_plans_lock = lock_held_over_forks()

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


def _cached(key: tuple[Any, ...], options: tuple[Any, ...]) -> Plan | None:
    """The plan of a key, if it was made for arguments of the same types.

    Keys are compared by value, and ``1 == 1.0 == True``: what was checked for one of them was not
    checked for the others.  Nearly always the arguments are the same objects (small integers,
    names, None), which takes a fraction of the time that it takes to compare their types.
    """
    if _plans_generation != staleness.generation():
        _forget_plans()
    kept = _plans.get(key)
    if kept is None:
        return None
    plan, known = kept
    if not all(map(is_, options, known)):
        kinds = kinds_of(options)
        if kinds != kinds_of(known):
            kept = _plans.get((*key, kinds))
            if kept is None:
                return None
            plan = kept.plan
    return plan


def kinds_of(value: Any) -> Any:
    """The types of an argument and of what it holds."""
    return tuple(map(kinds_of, value)) if isinstance(value, (list, tuple)) else type(value)


def _forget_plans() -> None:
    global _plans_generation
    with _plans_lock:
        _plans.clear()
        _plans_generation = staleness.generation()


def _keep(place: _Place | None, plan: Plan, generation: int) -> None:
    """Keep a plan, unless the backends changed since ``generation``, when it was being selected."""
    if place is None:
        return
    key, options = place
    with _plans_lock:
        if not generation == _plans_generation == staleness.generation():
            return
        while len(_plans) >= PLANS_KEPT:
            del _plans[next(iter(_plans))]
        if key in _plans:  # for equal arguments of other types
            key = (*key, kinds_of(options))
        _plans[key] = _Kept(plan, options)


def hashable(value: Any) -> Any:
    """Lists as tuples, so that ``padding=[(1, 1), (0, 2)]`` is a key."""
    if isinstance(value, (list, tuple)):
        return tuple(hashable(v) for v in value)
    return value


# -------------------------------------------------------------------- operands


def as_array(name: str, value: Any, backend: Any = None) -> Any:
    """An operand as an array: NumPy's, or one of the device's library over the same memory.

    ``backend`` is the caller's choice, which decides whose arrays a device's become.
    """
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
    if devices.is_on_device(value):
        return devices.adopt(name, value, backend or config.current().backend)
    return np.asarray(value)


def _array_type(array: Any) -> str:
    kind = type(array)
    return f"{kind.__module__}:{kind.__qualname__}" if kind is not np.ndarray else "numpy:ndarray"


def is_strided(array: Any) -> bool:
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


def make_request(
    choice: Mapping[str, Any], *, is_plain: bool, packed: bool, array_type: str
) -> arguments.Request:
    """The caller's constraints over those of ``use`` and the environment."""
    settings = config.current()
    backend, algorithm = choice["backend"], choice["algorithm"]
    if algorithm is not None and not isinstance(algorithm, str):
        raise TypeError(f"algorithm={algorithm!r} is not a name; give a family or a solver's id.")
    deterministic = choice["deterministic"]

    def first(*values: Any) -> Any:
        return next((value for value in values if value is not None), None)

    return arguments.Request(
        backend=hashable(first(backend, settings.backend)),
        algorithm=first(algorithm, settings.algorithm),
        policy=precisions.Policy(
            precision=first(choice["precision"], settings.precision, "default"),
            nonfinite=first(choice["nonfinite"], "local" if is_plain else "spread"),
            workspace_limit=first(choice["workspace_limit"], settings.workspace_limit),
            deterministic=parsing.flag("deterministic", first(deterministic, False)),
        ),
        packed=packed,
        array_type=array_type,
    )


def _run_another(
    plan: Plan,
    error: BackendError,
    place: _Place | None,
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
    generation = staleness.generation()
    replacement = dispatch.select(plan.problem, plan.request, plan.array_type)
    _keep(place, replacement, generation)
    try:
        return replacement(*operands, out=out)
    except BackendError as another:
        return _run_another(replacement, another, place, operands, out)


# -------------------------------------------------------------------- running


def call(
    direction: Direction,
    lhs: Any,
    rhs: Any,
    bias: Any,
    out: Any,
    options: tuple[Any, ...],
    resolve: Callable[[Any, Any, str, bool, bool], arguments.Problem],
    names: tuple[str, str],
) -> Any:
    """The common body of the four operators.

    ``options`` are the raw arguments that, beside shapes and dtypes, decide the plan, those of
    :data:`CHOICE` last; ``resolve(lhs, rhs, dtype, bias, strided)`` builds the problem when the
    plan is not known yet.
    """
    settings = config.current()
    if not (type(lhs) is np.ndarray and _is_numpy(rhs)):
        lhs, rhs, bias = _operands(lhs, rhs, bias, out, names, options[-len(CHOICE)])
    flags = lhs.flags
    plain = flags.c_contiguous and (type(lhs) is not np.ndarray or flags.aligned)
    key = (
        direction, lhs.shape, lhs.dtype, plain, rhs.shape, rhs.dtype, type(rhs), type(lhs),
        bias is None, options, id(settings),
    )  # fmt: skip
    is_key = True
    try:
        plan = _cached(key, options)
    except TypeError:  # a list among the arguments
        options = hashable(options)
        key = (*key[:9], options, id(settings))
        try:
            plan = _cached(key, options)
        except TypeError:
            plan, is_key = None, False
    if plan is not None:
        try:
            return plan.run_known(lhs, rhs, bias, out)
        except BackendError as error:
            return _run_another(plan, error, _Place(key, options), (lhs, rhs, bias), out)
    dtype = _dtype_of((names[0], lhs.dtype), (names[1], rhs.dtype))
    strided = lhs.dtype.name == dtype and is_strided(lhs)
    problem = resolve(lhs, rhs, dtype, bias is not None, strided)
    from convjit import dispatch

    request = make_request(
        dict(zip(CHOICE, options[-len(CHOICE) :], strict=True)),
        is_plain=problem.is_plain,
        packed=type(rhs) is Weights,
        array_type=_array_type(lhs),
    )
    generation = staleness.generation()
    plan = dispatch.select(problem, request, type(lhs))
    place = _Place(key, options) if is_key else None
    _keep(place, plan, generation)
    operands = (lhs, rhs, bias)
    try:
        return plan(*operands, out=out)
    except BackendError as error:
        return _run_another(plan, error, place, operands, out)


def _is_numpy(rhs: Any) -> bool:
    """Whether the second operand is NumPy's, or weights that are."""
    return type(rhs) is np.ndarray or (type(rhs) is Weights and type(rhs.array) is np.ndarray)


def _operands(
    lhs: Any, rhs: Any, bias: Any, out: Any, names: tuple[str, str], backend: Any
) -> tuple[Any, Any, Any]:
    """Operands as arrays of one library, weights as they are.

    Raises
    ------
    TypeError
        If they do not lie on one device.
    """
    first = as_array(names[0], lhs, backend)
    second = rhs if type(rhs) is Weights else as_array(names[1], rhs, backend)
    on_device = type(first) is not np.ndarray
    if on_device and bias is not None:
        bias = as_array("bias", bias, backend)
    # NumPy's plans say the same of a bias and of out, which may be a list there.
    beside = (("bias", bias), ("out", out)) if on_device else ()
    arrays = second.array if type(second) is Weights else second
    devices.expect_one_kind(((names[0], first), (names[1], arrays), *beside))
    return first, second, bias


# -------------------------------------------------------------------- planning


def _shape_and_dtype(name: str, value: Any, backend: Any) -> tuple[tuple[int, ...], Any]:
    """(shape, dtype or None): a tuple is always a shape."""
    if isinstance(value, tuple):
        return parsing.as_shape(name, value), None
    array = as_array(name, value, backend)
    return tuple(array.shape), array.dtype


def shapes_and_dtype(
    operands: Mapping[str, Any], dtype: Any, backend: Any = None
) -> tuple[list[tuple[int, ...]], str]:
    """The operands' shapes, and the dtype in which they are convolved.

    Parameters
    ----------
    operands : mapping of name to array or tuple
        A tuple is a shape, and takes the dtype of the operand beside it.
    dtype : dtype or None
        Of all of them, whatever the arrays have; float32 where nothing says another.
    backend : str or tuple of str, optional
        The caller's choice, whose arrays a device's become.

    Raises
    ------
    ConvSpecError, TypeError
    """
    shapes, kinds = [], {}
    for name, value in operands.items():
        shape, kind = _shape_and_dtype(name, value, backend)
        shapes.append(shape)
        if kind is not None:
            kinds[name] = kind
    if dtype is not None:
        # NumPy knows bfloat16 as a type alone, not by its name.
        by_name = isinstance(dtype, str) and dtype in precisions.SHORT
        try:
            given = precisions.numpy_dtype(dtype) if by_name else np.dtype(dtype)
        except TypeError:
            raise TypeError(
                f"dtype={dtype!r} is not a dtype; give a NumPy one, or one of "
                f"{', '.join(precisions.SHORT)}."
            ) from None
        kinds = dict.fromkeys(operands, given)
    fallback = next(iter(kinds.values()), np.dtype("float32"))
    left, *others = [(name, kinds.get(name, fallback)) for name in operands]
    common = ""
    for right in others:
        common = _dtype_of(left, right)
        left = (left[0], precisions.numpy_dtype(common))
    return shapes, common


def says_bias(name: str, bias: Any, backend: Any = None) -> tuple[bool, Any]:
    """Whether there is a bias, from a bool, None or the bias itself; and that as an array.

    Raises
    ------
    TypeError
        For another number.
    """
    if bias is None or isinstance(bias, (bool, int)):
        return parsing.flag(name, bias or False), None
    return True, as_array(name, bias, backend)


def described(spec: ConvSpec) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], dict[str, Any]]:
    """The two shapes and the keyword arguments with which ``plan`` and ``explain`` mean a spec."""
    if spec.strided:
        raise ConvSpecError(f"{spec}: shapes have no strides; leave out the word 'strided'.")
    # The x that a user transposes is the forward problem's y.
    transposed = spec.direction is Direction.TRANSPOSED
    shapes = (spec.y_shape if transposed else spec.x_shape, spec.w_shape)
    given: dict[str, Any] = {
        "direction": spec.direction.value, "dtype": spec.dtype, "stride": spec.stride,
        "padding": spec.padding, "dilation": spec.dilation, "groups": spec.groups,
        "pad_mode": spec.pad_mode, "flip": spec.flip, "layout": spec.layout, "bias": spec.bias,
        "activation": spec.activation,
    }  # fmt: skip
    if transposed:
        given["output_size"] = spec.in_size
    return shapes, given


def problem_and_request(
    x: Any, w: Any, bias: Any, direction: Any, dtype: Any, packed: bool, options: dict[str, Any]
) -> tuple[arguments.Problem, arguments.Request, type | None]:
    """What ``plan`` and ``explain`` share: shapes or arrays to a problem and a request."""
    known = {*OPERATOR, *CHOICE, "activation", "output_padding", "output_size"}
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(
            f"plan, explain and tune do not take {unknown[0]!r}; beside the shapes, bias, "
            "direction and dtype (plan and explain: packed; tune: budget_s, again) they take "
            f"{', '.join(sorted(known))}."
        )
    try:
        chosen = Direction(direction)
    except ValueError:
        raise ConvSpecError(
            f"direction={direction!r} is not known; choose one of "
            f"{', '.join(d.value for d in Direction)}."
        ) from None
    backend = options.get("backend")
    x_array = None if isinstance(x, tuple) else as_array("x", x, backend)
    (x_shape, w_shape), common = shapes_and_dtype({"x": x, "w": w}, dtype, backend)
    choice = {name: options.pop(name, None) for name in CHOICE}
    with_bias, array = says_bias("bias", bias, backend)
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
            name, value = next(iter(extra.items()))
            raise ConvSpecError(
                f"{name} belongs to direction='transposed'; {name}={value!r} was given with "
                f"direction={chosen.value!r}, leave it out."
            )
        problem = arguments.forward_problem(
            x_shape, w_shape, direction=chosen, dtype=common, bias=with_bias, **operator
        )
    if array is not None:
        check_bias(problem, array)
    kind = "numpy:ndarray" if x_array is None else _array_type(x_array)
    request = make_request(choice, is_plain=problem.is_plain, packed=packed, array_type=kind)
    return problem, request, np.ndarray if x_array is None else type(x_array)
