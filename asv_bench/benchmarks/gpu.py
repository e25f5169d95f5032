"""Layers on a GPU, where there is one: operands lie on the device, and a call waits for it.

Without a GPU asv skips every parameter.
"""

from __future__ import annotations

from collections.abc import Callable

from convjit.spec import ConvSpec

from .common import skip, warmed_up

LAYERS = [
    "conv_f32_NCHW_n16c64k64g1_i56x56_w3x3_p1x1",
    "conv_f32_NCHW_n16c256k256g1_i14x14_w3x3_p1x1",
    "conv_f32_NCHW_n16c256k64g1_i56x56_w1x1",
    "conv_f32_NCHW_n16c384k384g384_i14x14_w3x3_p1x1",
    "conv_f16_NCHW_n16c256k256g1_i14x14_w3x3_p1x1",
]
SOLVERS = [
    "numba_cuda.gemm", "numba_cuda.direct", "numba_cuda.depthwise", "numba_cuda.winograd.f2x3",
    "numba_cuda.winograd.f4x3", "cupy.gemm", "cupy.fft", "cupy.winograd.batched.f2x3",
    "cupy.winograd.batched.f4x3",
]  # fmt: skip


def resident_call(identity: str, layer: str) -> Callable[[], None]:
    """A call of a solver on operands on the device; skips where it, or the device, is not there."""
    from convjit import registry

    name = identity.partition(".")[0]
    answer = registry.probe_answer(name) if name in registry.names() else "is not installed"
    if answer is not None:
        skip(f"{name}: {answer}")
    backend, spec = registry.get(name), ConvSpec.parse(layer)
    solver = next((s for s in registry.solvers(backend) if s.id == identity), None)
    resident = getattr(backend, "resident", None)
    if solver is None or resident is None:
        skip(f"{name} does not offer {identity} on the device")
    elif refusal := solver.refuse(spec, backend.target()):
        skip(str(refusal))
    return resident(solver, spec)


class Resident:
    """Kernels and their launches, without copies to the device and back."""

    params = (SOLVERS, LAYERS)
    param_names = ("solver", "spec")
    timeout = 120

    def setup(self, solver: str, spec: str) -> None:
        self.call = warmed_up(resident_call(solver, spec))

    def time_call(self, solver: str, spec: str) -> None:
        self.call()
