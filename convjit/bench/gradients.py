"""Every job's engine; those of both gradients: convjit's plans, what PyTorch's autograd calls.

Gradients with respect to the weights pack nothing: both operands are new in every step.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from convjit.bench.engines import ENGINES, Engine, Job, Maker, NotOffered, chosen
from convjit.spec import Direction


def _last(array: Any) -> Any:
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))


def convjit_gradient(job: Job, last: bool) -> Engine:
    """A plan; w is packed once, or in every call if plain calls are asked for."""
    import convjit
    from convjit import calls

    layouts = {1: "NLC", 2: "NHWC", 3: "NDHWC"} if last else {1: "NCL", 2: "NCHW", 3: "NCDHW"}
    spec = job.spec.replace(layout=layouts[job.spec.ndim])
    shapes, options = calls.described(spec)
    of_weights = spec.direction is Direction.WEIGHT_GRAD
    packs = not (of_weights or job.plain)
    facts = chosen(job.case, *shapes, packed=packs, **options)
    options["algorithm"] = job.case.algorithm or None
    made = convjit.plan(*shapes, **options)
    lhs = _last(job.lhs) if last else job.lhs
    rhs = _last(job.rhs) if last and of_weights else job.rhs
    second = made.pack(rhs) if packs else rhs
    if last and not of_weights:
        return Engine(lambda: made(lhs, second), lambda y: np.moveaxis(y, -1, 1), facts)
    return Engine(lambda: made(lhs, second), facts=facts)


def torch_gradient(job: Job, channels_last: bool) -> Engine:
    """``aten::convolution_backward`` for one of the two operands."""
    import torch

    spec = job.spec
    if channels_last and spec.ndim != 2:
        raise NotOffered("for 2-D layers only")
    torch.set_num_threads(job.threads)
    torch.set_grad_enabled(False)
    if spec.flip or any(lo != hi for lo, hi in spec.padding):
        raise NotOffered("no uneven padding and no reversed kernels in gradients")
    lhs, rhs = torch.from_numpy(job.lhs), torch.from_numpy(job.rhs)
    # The operand whose gradient is computed gives its shape and layout alone.
    if spec.direction is Direction.WEIGHT_GRAD:
        x, gy, w, which = lhs, rhs, torch.empty(spec.w_shape, dtype=lhs.dtype), 1
    else:
        shape = spec.replace(layout={1: "NCL", 2: "NCHW", 3: "NCDHW"}[spec.ndim]).x_shape
        gy, w, x, which = lhs, rhs, torch.empty(shape, dtype=lhs.dtype), 0
    if channels_last:
        kind = torch.channels_last
        x, w, gy = (array.to(memory_format=kind) for array in (x, w, gy))
    arguments = (
        None, spec.stride, [lo for lo, _ in spec.padding], spec.dilation, False,
        [0] * spec.ndim, spec.groups, [which == 0, which == 1, False],
    )  # fmt: skip
    backward = torch.ops.aten.convolution_backward
    return Engine(lambda: backward(gy, x, w, *arguments)[which], lambda result: result.numpy())


_MAKERS: dict[str, Maker] = {
    "convjit": partial(convjit_gradient, last=False),
    "convjit_nhwc": partial(convjit_gradient, last=True),
    "torch": partial(torch_gradient, channels_last=False),
    "torch_nhwc": partial(torch_gradient, channels_last=True),
}


def engine(name: str, job: Job) -> Engine:
    """The engine of a job, be it a gradient or not.

    Raises
    ------
    NotOffered
        If the library does not do this.
    """
    if not job.gradient:
        return ENGINES[name](job)
    if name not in _MAKERS:
        raise NotOffered("no gradients")
    return _MAKERS[name](job)
