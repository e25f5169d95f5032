"""Arrays that lie on a device: whose they are, and that operands lie side by side.

The array library of a device is its backend's.  An array of another library is taken over by a
backend that can (:meth:`convjit.spi.Backend` says how), without a copy.  Nothing is moved between
devices here: operands that do not lie on one are a TypeError.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from convjit import registry
from convjit.errors import BackendError
from convjit.spi import Array, Backend

CPU = (1, 3)  # kDLCPU and kDLCUDAHost of DLPack's DLDeviceType: memory that NumPy can read


def is_on_device(value: Any) -> bool:
    """Whether an object is an array that lies in the memory of a GPU.

    The instance is asked, not its type: PyTorch's tensors have the CUDA array interface on GPUs
    alone, and not for bfloat16.
    """
    if isinstance(value, (np.ndarray, type)):
        return False
    where = getattr(value, "__dlpack_device__", None)
    if where is not None:
        return where()[0] not in CPU
    return hasattr(value, "__cuda_array_interface__")


def adopt(name: str, value: Any, backend: Any) -> Array:
    """A device's array as one of the library of a backend that is asked for.

    Parameters
    ----------
    name : str
        Of the argument, for messages.
    value : array on a device
    backend : str or sequence of str or None
        As in :func:`convjit.conv`; what cannot take it over is passed by.

    Raises
    ------
    TypeError
        If none of the backends takes it over, or it lies on a device that is not the current one.
    BackendError
        If no backend works on the device.
    """
    for candidate in _pool(backend):
        take = getattr(candidate, "adopt", None)
        array = None if take is None else take(value)
        if array is None:
            continue
        elsewhere = candidate.device_of(array)  # type: ignore[attr-defined]
        if elsewhere is not None:
            raise TypeError(
                f"{name} lies on {elsewhere}, which is not the current device; make it the "
                "current one around the call, or copy the array."
            )
        return array
    raise TypeError(
        f"{name} is a {kind_of(value)} on a device, which none of the "
        "backends that were asked for takes; copy it to the host, or give backend='cuda'."
    )


def _pool(backend: Any) -> list[Backend]:
    """The backends that may take an array over: those asked for, else those on GPUs."""
    try:
        return registry.resolve(backend, device="cuda")
    except BackendError as error:
        if backend is not None:
            raise
        raise BackendError(
            f"the data lies on a GPU, and {str(error).rstrip('.')}; copy it to the host, or repair "
            "the backend."
        ) from error


def expect_one_kind(operands: Iterable[tuple[str, Any]]) -> None:
    """All operands of one array library, or a TypeError that says which lies where.

    Parameters
    ----------
    operands : (name, array or None)
    """
    given = [(name, array) for name, array in operands if array is not None]
    (first, one), *others = given
    for name, other in others:
        if type(other) is not type(one):
            raise TypeError(
                f"{first} is a {_told(one)} and {name} a {_told(other)}: convjit moves no operand "
                "to another device; copy one of them."
            )


def kind_of(value: Any) -> str:
    """The type of a value, as messages call it: ``"cupy.ndarray"``, ``"list"``."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def _told(value: Any) -> str:
    where = "on a device" if is_on_device(value) else "in the host's memory"
    return f"{kind_of(value)} {where}"
