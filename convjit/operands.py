"""What the arrays of a call must be for a plan: shape, dtype and place, checked and brought about.

An array that is not what was planned is cast or copied where that loses nothing, else an error says
which it is, what it has and what the plan takes.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from convjit import devices, precision, profiling
from convjit.arguments import Problem, Request
from convjit.errors import ConvSpecError
from convjit.packing import Weights
from convjit.spec import Direction
from convjit.spi import Array

_OPERANDS = {
    Direction.FORWARD: ("x", "w"),
    Direction.TRANSPOSED: ("x", "w"),
    Direction.INPUT_GRAD: ("gy", "w"),
    Direction.WEIGHT_GRAD: ("x", "gy"),
}


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


def is_plain(array: Array) -> bool:
    """Whether a kernel can take an array as it is."""
    flags = array.flags
    return bool(
        flags.c_contiguous
        and (not isinstance(array, np.ndarray) or (flags.aligned and array.dtype.isnative))
    )


def check_bias(problem: Problem, bias: Array) -> None:
    """A number for each channel of the result, of a dtype that casts to it within its kind.

    Raises
    ------
    ConvSpecError, TypeError
    """
    channels = problem.spec.result_channels
    if bias.shape != (channels,) and not (problem.is_plain and bias.size == 1):
        raise ConvSpecError(
            f"bias has shape {tuple(bias.shape)}, it must be ({channels},): one number for each "
            "channel of the result."
        )
    result_dtype = precision.numpy_dtype(problem.spec.result_dtype)
    if not np.can_cast(bias.dtype, result_dtype, "same_kind"):
        raise TypeError(
            f"bias has dtype {bias.dtype}, which does not cast to the result's {result_dtype} "
            "within its kind; cast it yourself."
        )


class Operands:
    """The operands, the bias and the result that a plan takes.

    Attributes
    ----------
    names : tuple of str
        Of the two operands, for people.
    dtype, result_dtype : numpy.dtype
    namespace : module
        The planned array library.
    array_type : type
        Its arrays.
    """

    __slots__ = (
        "_problem", "_request", "_spec", "_zero_bias", "array_type", "dtype", "names", "namespace",
        "result_dtype",
    )  # fmt: skip

    def __init__(self, problem: Problem, request: Request, namespace: Any, array_type: Any) -> None:
        self._problem, self._request, self._spec = problem, request, problem.spec
        self.namespace, self.array_type = namespace, array_type
        self.names = _OPERANDS[self._spec.direction]
        self.dtype = precision.numpy_dtype(self._spec.dtype)
        self.result_dtype = precision.numpy_dtype(self._spec.result_dtype)
        self._zero_bias: Array | None = None

    def operand(self, position: int, array: Any) -> Array:
        """An operand as an array of the planned shape and a dtype that casts to the planned one."""
        name = self.names[position]
        wanted = self._problem.lhs_shape if position == 0 else self._problem.rhs_shape
        if type(array) is not self.array_type:
            array = self._of_own_kind(name, array)
        if array.shape != wanted:
            raise ConvSpecError(
                f"{name} has shape {tuple(array.shape)}, this plan takes {wanted}; make a plan for "
                "the new shape, or call convjit.conv, which keeps plans itself."
            )
        if array.dtype != self.dtype and not np.can_cast(array.dtype, self.dtype, "same_kind"):
            raise TypeError(
                f"{name} has dtype {array.dtype}, this plan takes {self.dtype}; cast it, or plan "
                "for its dtype."
            )
        return array

    def _of_own_kind(self, name: str, array: Any) -> Array:
        """An operand as an array of the planned library, on whose device it has to lie."""
        if self.namespace is np:
            if not devices.is_on_device(array):
                return np.asarray(array)
        elif devices.is_on_device(array):
            return devices.adopt(name, array, self._request.backend)
        there = "a device's arrays" if self.namespace is not np else "arrays in the host's memory"
        raise TypeError(
            f"{name} is a {devices.kind_of(array)}, and this plan takes {there}: convjit moves no "
            "operand to another device; copy it."
        )

    def contiguous(self, lhs: Array) -> Array:
        """The first operand in the planned dtype, contiguous unless strided ones were planned."""
        if lhs.dtype != self.dtype or (not self._spec.strided and not is_plain(lhs)):
            cast = lhs.dtype != self.dtype
            name, kind = ("cast", "") if cast else ("contiguous copy", profiling.LAYOUT)
            with profiling.phase(name, kind):
                converted = empty(self.namespace.empty, lhs.shape, self.dtype, "a contiguous copy")
                converted[...] = lhs
                return converted
        return lhs

    def bias(self, bias: Any) -> Array | None:
        """The bias as a solver takes it: zeros where the plan has one and the call none."""
        if not self._spec.bias:
            if bias is not None:
                raise ConvSpecError(
                    "bias was given to a plan made without one; the gradients have none, and "
                    "plan(..., bias=False) rules it out."
                )
            return None
        channels = self._spec.result_channels
        if bias is None:
            if self._zero_bias is None:
                self._zero_bias = self.namespace.zeros(channels, self.result_dtype)
            return self._zero_bias
        if type(bias) is not self.array_type:
            bias = self._of_own_kind("bias", bias)
        if bias.shape != (channels,) or bias.dtype != self.result_dtype:
            check_bias(self._problem, bias)
            bias = bias.reshape(channels).astype(self.result_dtype, copy=False)
        return bias if is_plain(bias) else bias.copy()

    def _check_out(self, out: Any) -> None:
        shape = self._problem.result_shape
        own = isinstance(out, np.ndarray if self.namespace is np else self.array_type)
        if not own:
            raise TypeError(
                f"out is a {devices.kind_of(out)}; give an array of the operands' library and of "
                f"shape {shape}."
            )
        if out.shape != shape or out.dtype != self.result_dtype:
            raise ConvSpecError(
                f"out is {tuple(out.shape)} {out.dtype}; it must be exactly {shape} "
                f"{self.result_dtype}."
            )
        if isinstance(out, np.ndarray) and not out.flags.writeable:
            raise ConvSpecError("out is read-only; give a writable array.")

    def target(self, out: Array, *operands: Any) -> Array | None:
        """``out`` itself where a kernel may write straight into it, else None."""
        self._check_out(out)
        if not is_plain(out):
            return None
        for operand in operands:
            array = operand.array if type(operand) is Weights else operand
            is_array = isinstance(array, np.ndarray if self.namespace is np else self.array_type)
            if is_array and self.namespace.may_share_memory(array, out):
                return None
        return out
