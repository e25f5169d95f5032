"""The public calls around an operator: weights, plans, explanations, tuning."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from convjit import arguments
from convjit.calls import (
    CHOICE,
    OPERATOR,
    as_array,
    is_strided,
    problem_and_request,
    shapes_and_dtype,
)
from convjit.plans import Plan, Weights

if TYPE_CHECKING:
    from convjit.explanation import Explanation
    from convjit.separable_explanation import SeparableExplanation
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
    bias: bool = True,
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
    bias : bool
        Whether calls may give a bias (the gradients take none).
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
    bias : array or bool, optional
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
    bias : array or bool, optional
        Of no consequence for what is remembered.
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
    from convjit import separable
    from convjit.separable_explanation import explain_offer

    known = {*OPERATOR, *CHOICE} - {"groups"}
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(
            f"explain_separable does not take {unknown[0]!r}; it takes {', '.join(sorted(known))}."
        )
    shapes, common = shapes_and_dtype({"x": x, "w_depth": w_depth, "w_point": w_point}, dtype)
    pointwise = separable.pointwise_shape(shapes[1], shapes[2])
    operator = {name: options.get(name, default) for name, default in OPERATOR.items()}
    view = arguments.view_data("x", shapes[0], shapes[1], operator["layout"])
    return explain_offer(
        separable.offer(
            (shapes[0], shapes[1], pointwise), common,
            (depth_bias is not None and depth_bias is not False,
             bias is not None and bias is not False),
            {**operator, "groups": view.channels}, (depth_activation, activation),
            {name: options.get(name) for name in CHOICE}, packed=packed,
        )
    )  # fmt: skip
