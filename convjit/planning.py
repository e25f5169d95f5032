"""The public calls around an operator: weights, plans, explanations, tuning."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from convjit import views
from convjit.calls import (
    CHOICE,
    OPERATOR,
    as_array,
    is_strided,
    problem_and_request,
    says_bias,
    shapes_and_dtype,
)
from convjit.packing import Weights
from convjit.plans import Plan
from convjit.spec import Direction

if TYPE_CHECKING:
    from collections.abc import Callable

    from convjit.explanation import Explanation
    from convjit.separable_explanation import SeparableExplanation
    from convjit.separable_offer import Offer
    from convjit.tuning import Tuning


def weights(w: Any) -> Weights:
    """An immutable copy of weights that remembers its packed forms; accepted wherever w is.

    Parameters
    ----------
    w : array, (K, C/groups, *kernel), or a plain kernel

    Examples
    --------
    >>> W = convjit.weights(w)              # doctest: +SKIP
    >>> y = convjit.conv(x, W, padding=1)   # doctest: +SKIP
    """
    array = as_array("w", w)
    if type(array) is np.ndarray:
        array = np.array(array, order="C", copy=True, dtype=array.dtype.newbyteorder("="))
        array.flags.writeable = False
    else:
        array = array.copy()
    return Weights(array)


def plan(
    x: Any,
    w: Any,
    *,
    direction: str = "forward",
    dtype: Any = None,
    bias: Any = None,
    **options: Any,
) -> Plan:
    """Choose an algorithm once, to pack once and call often.

    Parameters
    ----------
    x, w : arrays, or tuples that are shapes
        Of the forward operator (of ``conv_transpose`` for ``direction="transposed"``).
    direction : {"forward", "transposed", "input_grad", "weight_grad"}
        The plan is then called with ``(x, w)``, ``(x, w)``, ``(gy, w)`` or ``(x, gy)``.
    dtype : dtype, optional
        Of both operands, where only shapes are given; float32 if nothing says another.
    bias : bool or array, optional
        Whether calls may give a bias; if not given they may, except to the gradients, which take
        none.
    **options
        stride, padding, dilation, groups, pad_mode, flip, layout, activation, output_padding,
        output_size, backend, algorithm, precision, nonfinite, workspace_limit, deterministic, as
        in :func:`conv` and :func:`conv_transpose`.

    Returns
    -------
    Plan

    Raises
    ------
    ConvSpecError, TypeError, UnsupportedError, BackendError
        As :func:`conv`.

    Examples
    --------
    >>> p = convjit.plan((8, 64, 56, 56), (64, 64, 3, 3), padding=1)  # doctest: +SKIP
    >>> packed = p.pack(w)                                           # doctest: +SKIP
    >>> y = p(x, packed, bias)                                       # doctest: +SKIP
    """
    from convjit import dispatch

    if bias is None:
        bias = direction in (Direction.FORWARD, Direction.TRANSPOSED)
    problem, request, kind = problem_and_request(x, w, bias, direction, dtype, True, options)
    return dispatch.select(problem, request, kind)


def explain(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    direction: str = "forward",
    dtype: Any = None,
    packed: bool = False,
    **options: Any,
) -> Explanation:
    """What would run and why, what else could, and what rules out the rest.

    Parameters
    ----------
    x, w : arrays, or tuples that are shapes
    bias : bool or array, optional
        Whether the call gives one; not if not given.  The gradients take none.
    direction, dtype
        As in :func:`plan`.
    packed : bool
        Whether the weights are packed once for many calls (a plan's), so that packing is not
        counted.
    **options
        As in :func:`plan`.

    Returns
    -------
    Explanation
        Prints itself as a ranked table.

    Raises
    ------
    ConvSpecError, TypeError, BackendError
        As :func:`conv`.
    """
    from convjit.explanation import explain_problem

    backend = options.get("backend")
    problem, request, _ = problem_and_request(x, w, bias, direction, dtype, packed, options)
    # For the input's gradient, x says a shape only.
    says_shape = isinstance(x, tuple) or direction == "input_grad"
    first = None if says_shape else as_array("x", x, backend)
    if first is not None and first.dtype.name == problem.spec.dtype and is_strided(first):
        problem = replace(problem, spec=problem.spec.replace(strided=True))
    return explain_problem(problem, request)


def tune(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    direction: str = "forward",
    dtype: Any = None,
    budget_s: float | None = None,
    again: bool = False,
    **options: Any,
) -> Tuning:
    """Measure what could compute a convolution here, and remember what is fastest.

    Candidates and their block sizes are timed, with packed weights and in plain calls.  From then
    on, in this process and in later ones, the fastest that passes every filter runs: the same
    problem and, if nothing is remembered of them themselves, problems of the same bucket (equal but
    for batch and spatial sizes, which are rounded up to 1, 2, 3, 4, 6, 8, 12, 16, 24, ...).

    Parameters
    ----------
    x, w : arrays, or tuples that are shapes
        Of arrays only shapes and dtypes count.
    bias : bool or array, optional
        Of no consequence for what is remembered; the gradients take none.
    direction, dtype
        As in :func:`plan`.
    budget_s : float, optional
        Seconds to spend, compiling included; 30 if not given.
    again : bool
        Measure what is remembered already, of this problem or of another in its bucket.
    **options
        As in :func:`plan`; what they refuse is not measured.

    Returns
    -------
    Tuning
        Prints itself: what was measured, and what runs from now on.

    Raises
    ------
    ConvSpecError, TypeError, UnsupportedError, BackendError
        As :func:`conv`; also for a budget that is not positive and for ``deterministic=True``,
        under which measurements decide nothing.

    Warns
    -----
    ConvjitWarning
        If the user's directory cannot be written: then this process alone remembers.
    """
    from convjit.tuning import tune_problem
    from convjit.turns import BUDGET

    problem, request, _ = problem_and_request(x, w, bias, direction, dtype, True, options)
    return tune_problem(
        problem, request, budget=BUDGET if budget_s is None else budget_s, again=again
    )


def explain_separable(
    x: Any,
    w_depth: Any,
    w_point: Any,
    bias: Any = None,
    *,
    depth_bias: Any = None,
    depth_activation: Any = None,
    activation: Any = None,
    dtype: Any = None,
    packed: bool = False,
    **options: Any,
) -> SeparableExplanation:
    """What :func:`depthwise_separable` would run and why: one pass, or two convolutions.

    Parameters
    ----------
    x, w_depth, w_point : arrays, or tuples that are shapes
        As in :func:`depthwise_separable`.
    bias, depth_bias : array or bool, optional
    depth_activation, activation
        As in :func:`depthwise_separable`.
    dtype, packed
        As in :func:`explain`; weights are packed once where they are given as :func:`weights`.
    **options
        stride, padding, dilation, pad_mode, flip, layout, backend, algorithm, precision, nonfinite,
        workspace_limit, deterministic.

    Returns
    -------
    SeparableExplanation
        Prints itself: both ways, then a table of each convolution.

    Raises
    ------
    ConvSpecError, TypeError, BackendError
        As :func:`depthwise_separable`.
    """
    from convjit.separable_explanation import explain_offer

    biases = depth_bias, bias
    make = _offers(
        "explain_separable", (x, w_depth, w_point), biases, dtype,
        (depth_activation, activation), options,
    )  # fmt: skip
    return explain_offer(make(packed))


def tune_separable(
    x: Any,
    w_depth: Any,
    w_point: Any,
    bias: Any = None,
    *,
    depth_bias: Any = None,
    depth_activation: Any = None,
    activation: Any = None,
    dtype: Any = None,
    budget_s: float | None = None,
    again: bool = False,
    **options: Any,
) -> Tuning:
    """Measure both ways of a separable layer here, and remember which is faster.

    One pass is timed with each of its block sizes beside the two convolutions, which run as
    :func:`tune` left them.  From then on :func:`depthwise_separable` takes the way that was faster.

    Parameters
    ----------
    x, w_depth, w_point : arrays, or tuples that are shapes
        As in :func:`depthwise_separable`.
    bias, depth_bias, depth_activation, activation, dtype, **options
        As in :func:`explain_separable`.
    budget_s, again
        As in :func:`tune`.

    Returns
    -------
    Tuning
        Prints itself.  Where no backend has a pass for the layer it says so, and measures nothing.

    Raises
    ------
    ConvSpecError, TypeError, UnsupportedError, BackendError
        As :func:`tune`.

    Warns
    -----
    ConvjitWarning
        If the user's directory cannot be written: then this process alone remembers.
    """
    from convjit.separable_tuning import tune_layer
    from convjit.turns import BUDGET

    biases = depth_bias, bias
    make = _offers(
        "tune_separable", (x, w_depth, w_point), biases, dtype, (depth_activation, activation),
        options,
    )  # fmt: skip
    return tune_layer(make, budget=BUDGET if budget_s is None else budget_s, again=again)


def _offers(
    name: str, operands: tuple[Any, Any, Any], biases: tuple[Any, Any], dtype: Any,
    activations: tuple[Any, Any], options: dict[str, Any],
) -> Callable[[bool], Offer]:  # fmt: skip
    """What a separable layer comes to, by whether its weights are packed once."""
    from convjit import separable_offer

    known = {*OPERATOR, *CHOICE} - {"groups"}
    unknown = [word for word in options if word not in known]
    if unknown:
        raise TypeError(
            f"{name} does not take {unknown[0]!r}; it takes {', '.join(sorted(known))}."
        )
    given = dict(zip(("x", "w_depth", "w_point"), operands, strict=True))
    shapes, common = shapes_and_dtype(given, dtype)
    pointwise = separable_offer.pointwise_shape(shapes[1], shapes[2])
    operator = {word: options.get(word, default) for word, default in OPERATOR.items()}
    view = views.view_data("x", shapes[0], shapes[1], operator["layout"])
    with_bias = [
        says_bias(word, bias)[0] for word, bias in zip(("depth_bias", "bias"), biases, strict=True)
    ]
    return lambda packed: separable_offer.offer(
        (shapes[0], shapes[1], pointwise), common, (with_bias[0], with_bias[1]),
        {**operator, "groups": view.channels}, activations,
        {word: options.get(word) for word in CHOICE}, packed=packed,
    )  # fmt: skip
