"""What the second core gives, and how near the arithmetic comes to what the cores can do."""

from __future__ import annotations

import convjit
from convjit.bench.peak import measured_peak
from convjit.explanation import low_quartile
from convjit.spec import ConvSpec

from .common import plan_of, planned_call

# Each takes more than a millisecond on one core, so that waking a thread does not count.
SPECS = [
    "conv_f32_NCHW_n1c256k1024g1_i14x14_w1x1",
    "conv_f32_NCHW_n1c64k64g1_i112x112_w3x3_p1x1",
    "conv_f32_NHWC_n1c128k128g1_i56x56_w3x3_p1x1",
    "conv_f32_NCHW_n1c3k64g1_i224x224_w7x7_s2x2_p3x3",
    "conv_f32_NCHW_n4c192k192g192_i56x56_w3x3_p1x1",
    "conv_f32_NCHW_n1c1k1g1_i2048x2048_w15x15_p7x7",
    "conv_f32_NCHW_n1c1k1g1_i2048x2048_w63x63_p31x31",
    "conv_f64_NCL_n1c1k1g1_i1000000_w64_p63_flip",
    "igrad_f32_NCHW_n8c128k128g1_i28x28_w3x3_s2x2_p1x1",
    "wgrad_f32_NCHW_n8c128k128g1_i28x28_w3x3_p1x1",
]
# The layers of ResNet-50 with the most arithmetic of their kind.
LARGE = [
    "conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1x1",
    "conv_f32_NCHW_n1c64k256g1_i56x56_w1x1",
    "conv_f32_NCHW_n1c256k512g1_i56x56_w1x1_s2x2",
    "conv_f32_NCHW_n1c512k128g1_i28x28_w1x1",
    "conv_f32_NCHW_n1c1024k256g1_i14x14_w1x1",
    "conv_f32_NCHW_n1c256k256g1_i14x14_w3x3_p1x1",
    "conv_f32_NHWC_n1c64k64g1_i56x56_w3x3_p1x1",
    "conv_f32_NHWC_n1c1024k256g1_i14x14_w1x1",
    "conv_f64_NCHW_n1c64k64g1_i56x56_w3x3_p1x1",
]


class Threads:
    """One thread to two, on two cores or more; 2 is perfect."""

    params = SPECS
    param_names = ("spec",)
    unit = "times faster"
    timeout = 120

    def track_speedup(self, spec: str) -> float:
        problem = ConvSpec.parse(spec)
        with convjit.use(num_threads=2):
            solver = plan_of(problem).solver  # for both: the choice is not what is compared
        best = {1: float("inf"), 2: float("inf")}
        for _ in range(3):  # in turns, so that a disturbance does not hit one of them alone
            for count in best:
                with convjit.use(num_threads=count):
                    call = planned_call(problem, algorithm=solver)
                    best[count] = min(best[count], low_quartile(call, seconds=0.1))
        return best[1] / best[2]


class Peak:
    """Rate of the algorithms that save no arithmetic, over the peak measured beside it."""

    params = (LARGE, ["direct", "gemm"])
    param_names = ("spec", "algorithm")
    unit = "share of peak"
    timeout = 120

    def track_share(self, spec: str, algorithm: str) -> float:
        problem = ConvSpec.parse(spec)
        best = low_quartile(planned_call(problem, algorithm=algorithm), seconds=0.3)
        return problem.flops / best / float(measured_peak(problem.dtype)["peak"])
