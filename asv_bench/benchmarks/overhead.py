"""What a tiny convolution costs beside its kernel: the plan cache, and a plan object."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import convjit

from .common import per_call

SHAPES = {
    "signal": ((100,), (5,)),
    "image": ((16, 16), (3, 3)),
    "layer": ((1, 4, 8, 8), (4, 4, 3, 3)),
}


class Overhead:
    """Microseconds beyond the kernel; a call may cost 6, a plan's call 3."""

    params = list(SHAPES)
    param_names = ("problem",)
    unit = "us"
    timeout = 120

    def setup(self, problem: str) -> None:
        x_shape, w_shape = SHAPES[problem]
        rng = np.random.default_rng(0)
        x, w = rng.standard_normal(x_shape, np.float32), rng.standard_normal(w_shape, np.float32)
        # What the call itself runs, where packing is paid every time: a plan that packs once may
        # choose another.
        winner = convjit.explain(x, w).winner
        plan = convjit.plan(
            x, w, bias=False, algorithm=winner.solver_id, backend=winner.backend, nonfinite="local"
        )
        packed = plan.pack(w)
        self.call: Callable[[], object] = lambda: convjit.conv(x, w)
        self.planned: Callable[[], object] = lambda: plan(x, packed)

        executable, spec = plan.executable, plan.spec
        inner_x, inner_w = x.reshape(spec.lhs_shape), w.reshape(spec.rhs_shape)
        payload = executable.pack(inner_w)
        out = np.empty(spec.result_shape, np.float32)
        workspace = np.empty(executable.workspace, np.uint8) if executable.workspace else None
        self.kernel: Callable[[], object] = lambda: executable.run(
            inner_x, payload, None, out, workspace
        )
        self.pack: Callable[[], object] = lambda: executable.pack(inner_w)
        for call in (self.call, self.planned, self.kernel, self.pack):
            call()

    def track_conv(self, problem: str) -> float:
        kernel = per_call(self.kernel) + per_call(self.pack)
        return (per_call(self.call) - kernel) * 1e6

    def track_plan(self, problem: str) -> float:
        return (per_call(self.planned) - per_call(self.kernel)) * 1e6

    def time_conv(self, problem: str) -> None:
        self.call()

    def time_plan(self, problem: str) -> None:
        self.planned()

    def time_kernel(self, problem: str) -> None:
        self.kernel()
