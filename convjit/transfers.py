"""NumPy data on a device: there, through an executable, and back, in batches that fit.

A backend whose array library is not NumPy's takes NumPy arrays too if it can copy them
(``upload``, ``download``, ``free_bytes``; see :class:`convjit.spi.Backend`).  Weights are packed
there once and stay.  What a device's memory does not hold at once goes in parts of the batch; the
weights' gradient is the sum of what its parts give, which half types sum in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from convjit import precision, profiling
from convjit.algorithms.workspace import nbytes
from convjit.spec import ConvSpec, Direction
from convjit.spi import Array, Backend, Executable, Phase, Work

# Share of the free memory that one batch may take up: libraries allocate beside it.
MEMORY_SHARE = 0.5


def are_needed(backend: Backend, array_type: str) -> bool:
    """Whether data of an array type is copied to the backend's arrays and back."""
    return (
        array_type == "numpy:ndarray"
        and backend.array_namespace() is not np
        and hasattr(backend, "upload")
    )


def with_transfers(work: Work, spec: ConvSpec) -> Work:
    """A device's work, and the copies around it."""
    lhs, rhs = (float(nbytes(shape, spec.dtype)) for shape in (spec.lhs_shape, spec.rhs_shape))
    result = float(nbytes(spec.result_shape, spec.result_dtype))
    pack = work.pack or Phase("pack")
    moved = {**pack.bytes, "bus": pack.bytes.get("bus", 0.0) + rhs}
    return replace(
        work,
        phases=(
            Phase("to device", bytes={"bus": lhs}), *work.phases,
            Phase("from device", bytes={"bus": result}),
        ),
        pack=replace(pack, bytes=moved),
    )  # fmt: skip


class Transferred:
    """An executable for NumPy arrays around one for a device's.

    Parameters
    ----------
    spec : ConvSpec
    backend : Backend
    whole : Executable
        Of the whole problem, on the device.
    plan_part : callable
        From the problem of a smaller batch to its executable on the device.
    """

    workspace = 0  # none of the host's memory

    def __init__(
        self,
        spec: ConvSpec,
        backend: Backend,
        whole: Executable,
        plan_part: Callable[[ConvSpec], Executable],
    ) -> None:
        self._spec = spec
        self._backend: Any = backend  # one with upload, download and free_bytes
        self._xp = backend.array_namespace()
        self._whole = whole
        self._plan_part = plan_part
        self._parts: dict[ConvSpec, Executable] = {}

    def pack(self, rhs: Array) -> Any:
        if self._spec.direction is Direction.WEIGHT_GRAD:
            return rhs  # data of the batch, which goes to the device in its parts
        with profiling.phase("to device"):
            there = self._backend.upload(rhs)
        operand = _Operand(there)
        operand.form_for(self._spec, self._whole)
        return operand

    def run(
        self, lhs: Array, packed: Any, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        spec, backend = self._spec, self._backend
        images = self._images_at_once()
        there = None if bias is None else backend.upload(bias)
        if spec.direction is Direction.WEIGHT_GRAD:
            self._sum(lhs, packed, out, images)
            return
        for first in range(0, spec.batch, images):
            part = slice(first, min(first + images, spec.batch))
            inner = self._of(part, spec)
            form = packed.form_for(inner, self._executable(inner))
            result = self._run(inner, lhs[part], form, there)
            # Launches return at once: the time of the kernels is waited for here.
            with profiling.phase("from device"):
                backend.download(result, out[part])

    def _sum(self, lhs: Array, rhs: Array, out: Array, images: int) -> None:
        """The weights' gradient: both operands have the batch, and results are added."""
        spec = self._spec
        if images < spec.batch and spec.dtype in precision.HALF:
            spec = spec.replace(dtype="float32")
        total = None
        for first in range(0, spec.batch, images):
            part = slice(first, min(first + images, spec.batch))
            inner = self._of(part, spec)
            result = self._run(inner, lhs[part], rhs[part], None)
            if total is None:
                total = result
            else:
                total += result
        assert total is not None
        with profiling.phase("from device"):
            self._backend.download(total.astype(out.dtype, copy=False), out)

    def _run(self, inner: ConvSpec, lhs: Array, packed: Any, bias: Array | None) -> Array:
        """The result of a part of the batch, on the device."""
        executable = self._executable(inner)
        kind = precision.numpy_dtype(inner.dtype)
        with profiling.phase("to device"):
            lhs = self._backend.upload(lhs).astype(kind, copy=False)
            if inner.direction is Direction.WEIGHT_GRAD:
                rhs = self._backend.upload(packed).astype(kind, copy=False)
                packed = executable.pack(rhs)
        shape, dtype = inner.result_shape, precision.numpy_dtype(inner.result_dtype)
        result = self._xp.empty(shape, dtype)
        space = None
        if executable.workspace:
            space = self._xp.empty((executable.workspace,), np.uint8)
        executable.run(lhs, packed, bias, result, space)
        return result

    @staticmethod
    def _of(part: slice, spec: ConvSpec) -> ConvSpec:
        """The problem of some images."""
        return spec.replace(batch=part.stop - part.start)

    def _executable(self, inner: ConvSpec) -> Executable:
        if inner == self._spec:
            return self._whole
        if inner not in self._parts:  # planned twice at worst, by two threads
            self._parts[inner] = self._plan_part(inner)
        return self._parts[inner]

    def _images_at_once(self) -> int:
        """Images of one batch on the device: what half of its free memory holds."""
        spec = self._spec
        room = int(self._backend.free_bytes() * MEMORY_SHARE) - self._whole.workspace
        one = nbytes(spec.lhs_shape[1:], spec.dtype) + nbytes(
            spec.result_shape[1:], spec.result_dtype
        )
        if spec.direction is Direction.WEIGHT_GRAD:
            wide = 2 if spec.dtype in precision.HALF else 1
            one = wide * sum(
                nbytes(shape[1:], spec.dtype) for shape in (spec.lhs_shape, spec.rhs_shape)
            )
            room -= 2 * wide * prod(spec.result_shape) * precision.numpy_dtype(spec.dtype).itemsize
        return max(1, min(spec.batch, room // max(one, 1)))


class _Operand:
    """The second operand on the device, and its packed form for each size of a batch."""

    __slots__ = ("_forms", "_given")

    def __init__(self, given: Array) -> None:
        self._given = given
        self._forms: dict[ConvSpec, Any] = {}

    def form_for(self, inner: ConvSpec, executable: Executable) -> Any:
        if inner not in self._forms:  # packed twice at worst, by two threads
            self._forms[inner] = executable.pack(self._given)
        return self._forms[inner]
