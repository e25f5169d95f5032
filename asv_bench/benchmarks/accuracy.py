"""Measured error against the model's bound: above 1 it is wrong, far below it wastes speed."""

from __future__ import annotations

import convjit
from convjit.spec import ConvSpec

from .common import operands, plan_of, planned_call, skip

# Small enough for a loop nest in float64.
SPECS = [
    "conv_f32_NCHW_n1c16k8g1_i16x16_w3x3_p1x1",
    "conv_f64_NCHW_n1c16k8g1_i16x16_w3x3_p1x1",
    "conv_f16_NCHW_n1c16k8g1_i16x16_w3x3_p1x1",
    "conv_c64_NCHW_n1c4k4g1_i16x16_w3x3_p1x1",
    "conv_f32_NCHW_n1c1k1g1_i48x48_w15x15_p7x7",
    "conv_f32_NCL_n1c1k1g1_i1000_w129_p64",
    "wgrad_f32_NCHW_n2c4k4g1_i16x16_w3x3_p1x1",
]


class Accuracy:
    params = (SPECS, ["direct", "gemm", "fft", "winograd"])
    param_names = ("spec", "algorithm")
    timeout = 300

    def setup(self, spec: str, algorithm: str) -> None:
        from convjit.algorithms import error, oracle

        self.spec = ConvSpec.parse(spec)
        # Every algorithm is wanted here, the widest Winograd tiles too.
        options = {"algorithm": algorithm, "precision": "fast", "nonfinite": "spread"}
        try:
            result = planned_call(self.spec, **options)()
        except convjit.UnsupportedError as refused:
            skip(str(refused))
        self.bound = plan_of(self.spec, **options).error_bound
        lhs, rhs, bias = operands(self.spec)
        expected = oracle.oracle(self.spec, lhs, rhs, bias)
        magnitudes = oracle.magnitudes(self.spec, lhs, rhs, bias)
        self.error = error.relative_error(self.spec, result, expected, magnitudes)

    def track_error(self, spec: str, algorithm: str) -> float:
        """Largest error as a share of the largest sum of magnitudes."""
        return self.error

    def track_share_of_bound(self, spec: str, algorithm: str) -> float:
        return self.error / self.bound if self.bound else 0.0
