"""The public operators, and nothing else: what they take, give and raise."""

from __future__ import annotations

from typing import Any

from convjit import arguments, parsing, views
from convjit.calls import CHOICE, as_array, call
from convjit.errors import BackendError, ConvSpecError
from convjit.packing import Weights
from convjit.spec import Direction


def conv(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    pad_mode: str = "zeros",
    flip: bool = False,
    layout: str | None = None,
    activation: Any = None,
    out: Any = None,
    backend: Any = None,
    algorithm: str | None = None,
    precision: str | None = None,
    nonfinite: str | None = None,
    workspace_limit: int | None = None,
    deterministic: bool | None = None,
) -> Any:
    """Convolve (cross-correlate) data with a kernel: 1-D to 3-D, layers or plain signals.

    ``y[n, k, o] = bias[k] + sum over c, t of x[n, c, o * stride - lo + t * dilation] * w[k, c, t]``

    Parameters
    ----------
    x : array, (N, C, *spatial) or (C, *spatial), or a plain signal or image
        ``x.ndim == w.ndim`` in {1, 2} is plain: no batch, no channels.
    w : array or Weights, (K, C/groups, *kernel), or a plain kernel
    bias : array, (K,), optional
    stride, dilation : int or one int per spatial axis
        At least 1.
    padding : int, one per axis, (lo, hi) pairs, "valid", "same", "same_lower" or "full"
        ``same`` gives ``ceil(n / stride)`` outputs, the odd element at the end (``same_lower``:
        at the start); ``full`` pads ``dilation * (k - 1)``.
    groups : int
        Divides C and K.
    pad_mode : {"zeros", "reflect", "replicate", "circular", "symmetric"}
        What stands beyond the border.
    flip : bool
        True for the mathematical convolution (the kernel reversed); the padding stays.
    layout : str, optional
        ``NCL``, ``NCHW``, ``NCDHW`` (default); ``NLC``, ``NHWC``, ``NDHWC`` for channels-last x
        and result; ``L``, ``HW``, ``DHW`` for a stack of plain signals, images or volumes.
    activation : None, "relu", ("leaky_relu", slope) or ("clip", lo, hi)
        Applied after the bias; a NaN passes.
    out : array, optional
        Exactly the result's shape and dtype; may overlap the inputs.
    backend : str or tuple of str, optional
        A backend, a device kind (``"cpu"``, ``"cuda"``), or several names.  Never falls back.
    algorithm : str, optional
        A family (``"direct"``, ``"gemm"``, ``"fft"``, ``"winograd"``, ``"depthwise"``) or the id
        of a solver.  Never falls back.
    precision : {"exact", "default", "fast"}, optional
        ``exact`` only sums products; ``default`` admits algorithms whose modelled error in float32
        is below 1e-5 of the largest sum of magnitudes; ``fast`` admits wider ones.
    nonfinite : {"local", "spread"}, optional
        Whether a NaN or Inf may reach outputs outside its receptive field; ``local`` for plain
        data, ``spread`` for layers.  Under ``local`` an algorithm that spreads them runs behind a
        finite check, and another computes what the check rejects.
    workspace_limit : int, optional
        Bytes.
    deterministic : bool, optional
        Only algorithms whose results are bitwise equal across runs and thread counts.

    Returns
    -------
    array, (N, K, *out), in x's form and layout
        float32 stays float32, float64 float64; the half types accumulate in float32; integers give
        int64 (uint64), exact modulo 2**64; mixed inputs follow NumPy's promotion.

    Raises
    ------
    ConvSpecError
        The arguments do not describe a convolution.
    TypeError
        A dtype or a type that is not convolved.
    UnsupportedError
        Everything allowed refused; carries the refusals.
    BackendError
        A backend named is broken, or the solver forced failed.
    MemoryError
        Saying how many bytes were wanted for what.

    Examples
    --------
    >>> import convjit, numpy as np
    >>> convjit.conv(np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0]))
    array([3., 5.])
    """
    options = (
        stride, padding, dilation, groups, pad_mode, flip, layout, activation,
        backend, algorithm, precision, nonfinite, workspace_limit, deterministic,
    )  # fmt: skip

    def resolve(
        first: Any, second: Any, dtype: str, has_bias: bool, strided: bool
    ) -> arguments.Problem:
        return arguments.forward_problem(
            first.shape, second.shape, direction=Direction.FORWARD, dtype=dtype, stride=stride,
            padding=padding, dilation=dilation, groups=groups, pad_mode=pad_mode, flip=flip,
            layout=layout, activation=activation, bias=has_bias, strided=strided,
        )  # fmt: skip

    return call(Direction.FORWARD, x, w, bias, out, options, resolve, ("x", "w"))


def conv_transpose(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    output_size: Any = None,
    dilation: Any = 1,
    groups: int = 1,
    pad_mode: str = "zeros",
    flip: bool = False,
    layout: str | None = None,
    activation: Any = None,
    out: Any = None,
    backend: Any = None,
    algorithm: str | None = None,
    precision: str | None = None,
    nonfinite: str | None = None,
    workspace_limit: int | None = None,
    deterministic: bool | None = None,
) -> Any:
    """Transposed convolution: the adjoint of :func:`conv` in x, never conjugating.

    Parameters
    ----------
    x : array, (N, C_in, *spatial) or unbatched, or a plain signal or image
    w : array or Weights, (C_in, C_out/groups, *kernel), or a plain kernel
    bias : array, (C_out,), optional
    padding
        As in :func:`conv`: what the forward operator pads, so what is cut off here; ``same`` gives
        ``n * stride`` outputs.
    output_padding : int or one per axis
        Outputs added at the end, less than ``max(stride, dilation)``.
    output_size : int or one per axis, optional
        The size wanted, instead of output_padding.
    pad_mode
        The adjoint of the forward padding: the border folds back.
    stride, dilation, groups, flip, layout, activation, out, backend, algorithm, precision, \
nonfinite, workspace_limit, deterministic
        As in :func:`conv`.

    Returns
    -------
    array, (N, C_out, *out)
        ``out = (n - 1) * stride - lo - hi + dilation * (k - 1) + 1 + output_padding``.

    Raises
    ------
    ConvSpecError, TypeError, UnsupportedError, BackendError, MemoryError
        As :func:`conv`.
    """
    options = (
        stride, padding, output_padding, output_size, dilation, groups, pad_mode, flip, layout,
        activation, backend, algorithm, precision, nonfinite, workspace_limit, deterministic,
    )  # fmt: skip

    def resolve(
        first: Any, second: Any, dtype: str, has_bias: bool, strided: bool
    ) -> arguments.Problem:
        return arguments.transposed_problem(
            first.shape, second.shape, dtype=dtype, stride=stride, padding=padding,
            output_padding=output_padding, output_size=output_size, dilation=dilation,
            groups=groups, pad_mode=pad_mode, flip=flip, layout=layout, activation=activation,
            bias=has_bias, strided=strided,
        )  # fmt: skip

    return call(Direction.TRANSPOSED, x, w, bias, out, options, resolve, ("x", "w"))


def conv_input_grad(
    x_shape: tuple[int, ...],
    w: Any,
    gy: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    pad_mode: str = "zeros",
    flip: bool = False,
    layout: str | None = None,
    out: Any = None,
    backend: Any = None,
    algorithm: str | None = None,
    precision: str | None = None,
    nonfinite: str | None = None,
    workspace_limit: int | None = None,
    deterministic: bool | None = None,
) -> Any:
    """Gradient of :func:`conv` in x: the adjoint applied to ``gy`` (it conjugates w).

    ``<conv(x, w), gy> = <x, conv_input_grad(x.shape, w, gy)>`` with ``<a, b> = sum conj(a) b``.

    Parameters
    ----------
    x_shape : tuple of int
        Shape of the forward call's x.
    w : array or Weights
        The forward call's w.
    gy : array
        Of the shape of the forward call's result.
    stride, padding, dilation, groups, pad_mode, flip, layout
        As the forward call got them.
    out, backend, algorithm, precision, nonfinite, workspace_limit, deterministic
        As in :func:`conv`.

    Returns
    -------
    array, x_shape

    Raises
    ------
    ConvSpecError, TypeError, UnsupportedError, BackendError, MemoryError
        As :func:`conv`.
    """
    shape = parsing.as_shape("x_shape", x_shape)
    options = (
        shape, stride, padding, dilation, groups, pad_mode, flip, layout,
        backend, algorithm, precision, nonfinite, workspace_limit, deterministic,
    )  # fmt: skip

    def resolve(
        first: Any, second: Any, dtype: str, has_bias: bool, strided: bool
    ) -> arguments.Problem:
        problem = arguments.forward_problem(
            shape, second.shape, direction=Direction.INPUT_GRAD, dtype=dtype, stride=stride,
            padding=padding, dilation=dilation, groups=groups, pad_mode=pad_mode, flip=flip,
            layout=layout, strided=strided,
        )  # fmt: skip
        arguments.expect_shape(
            "gy", first.shape, problem.lhs_shape, f"that is what conv makes of x_shape={shape}"
        )
        return problem

    return call(Direction.INPUT_GRAD, gy, w, None, out, options, resolve, ("gy", "w"))


def conv_weight_grad(
    x: Any,
    w_shape: tuple[int, ...],
    gy: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    pad_mode: str = "zeros",
    flip: bool = False,
    layout: str | None = None,
    out: Any = None,
    backend: Any = None,
    algorithm: str | None = None,
    precision: str | None = None,
    nonfinite: str | None = None,
    workspace_limit: int | None = None,
    deterministic: bool | None = None,
) -> Any:
    """Gradient of :func:`conv` in w: the adjoint applied to ``gy`` (it conjugates x).

    ``<conv(x, w), gy> = <w, conv_weight_grad(x, w.shape, gy)>`` with ``<a, b> = sum conj(a) b``.

    Parameters
    ----------
    x : array
        The forward call's x.
    w_shape : tuple of int
        Shape of the forward call's w.
    gy : array
        Of the shape of the forward call's result.
    stride, padding, dilation, groups, pad_mode, flip, layout
        As the forward call got them.
    out, backend, algorithm, precision, nonfinite, workspace_limit, deterministic
        As in :func:`conv`.

    Returns
    -------
    array, w_shape

    Raises
    ------
    ConvSpecError, TypeError, UnsupportedError, BackendError, MemoryError
        As :func:`conv`.
    """
    shape = parsing.as_shape("w_shape", w_shape)
    options = (
        shape, stride, padding, dilation, groups, pad_mode, flip, layout,
        backend, algorithm, precision, nonfinite, workspace_limit, deterministic,
    )  # fmt: skip

    def resolve(
        first: Any, second: Any, dtype: str, has_bias: bool, strided: bool
    ) -> arguments.Problem:
        problem = arguments.forward_problem(
            first.shape, shape, direction=Direction.WEIGHT_GRAD, dtype=dtype, stride=stride,
            padding=padding, dilation=dilation, groups=groups, pad_mode=pad_mode, flip=flip,
            layout=layout, strided=strided,
        )  # fmt: skip
        arguments.expect_shape(
            "gy", second.shape, problem.rhs_shape, f"that is what conv makes of w_shape={shape}"
        )
        return problem

    return call(Direction.WEIGHT_GRAD, x, gy, None, out, options, resolve, ("x", "gy"))


def depthwise_separable(
    x: Any,
    w_depth: Any,
    w_point: Any,
    bias: Any = None,
    *,
    depth_bias: Any = None,
    depth_activation: Any = None,
    activation: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    pad_mode: str = "zeros",
    flip: bool = False,
    layout: str | None = None,
    out: Any = None,
    **choice: Any,
) -> Any:
    """A depthwise convolution, then a pointwise one: the separable layer of MobileNet.

    Parameters
    ----------
    x : array, (N, C, *spatial) or unbatched
    w_depth : array or Weights, (C * m, 1, *kernel)
        m kernels for each channel.
    w_point : array or Weights, (K, C * m) or (K, C * m, 1, ...)
    bias : array, (K,), optional
    depth_bias : array, (C * m,), optional
    depth_activation, activation
        After the first and after the second convolution, as in :func:`conv`.
    stride, padding, dilation, pad_mode, flip
        Of the depthwise convolution.
    layout, out
        As in :func:`conv`.
    **choice
        backend, algorithm, precision, nonfinite, workspace_limit, deterministic, as in
        :func:`conv`, for both.

    Returns
    -------
    array, (N, K, *out)

    Raises
    ------
    ConvSpecError, TypeError, UnsupportedError, BackendError, MemoryError
        As :func:`conv`.
    """
    unknown = [name for name in choice if name not in CHOICE]
    if unknown:
        raise TypeError(
            f"depthwise_separable got the unknown argument {unknown[0]!r}; beside its own it takes "
            f"{', '.join(CHOICE)}."
        )
    from convjit import separable
    from convjit.separable_offer import pointwise_shape

    backend = choice.get("backend")
    depth: Any = w_depth if type(w_depth) is Weights else as_array("w_depth", w_depth, backend)
    point: Any = w_point if type(w_point) is Weights else as_array("w_point", w_point, backend)
    pointwise = pointwise_shape(tuple(depth.shape), tuple(point.shape))
    if type(point) is not Weights:
        point = point.reshape(pointwise)
    if tuple(point.shape) != pointwise:
        raise ConvSpecError(f"w_point is weights() of shape {point.shape}; make them {pointwise}.")
    data = as_array("x", x, backend)
    view = views.view_data("x", data.shape, depth.shape, layout)
    operator = {
        "stride": stride, "padding": padding, "dilation": dilation, "groups": view.channels,
        "pad_mode": pad_mode, "flip": flip, "layout": layout,
    }  # fmt: skip
    activations = (depth_activation, activation)
    layer = separable.find(data, depth, point, depth_bias, bias, out, operator, activations, choice)
    if layer is not None:
        try:
            return layer(data, depth, point, depth_bias, bias, out)
        except BackendError as error:
            separable.forget(layer, error)
    middle = conv(data, depth, depth_bias, activation=depth_activation, **operator, **choice)
    return conv(middle, point, bias, layout=layout, activation=activation, out=out, **choice)
