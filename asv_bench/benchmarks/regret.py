"""How much slower the chosen algorithm is than the best of those it was chosen from."""

from __future__ import annotations

from convjit.explanation import low_quartile
from convjit.spec import ConvSpec

from .common import explained, planned_call

SPECS = [
    "conv_f32_NCHW_n1c3k64g1_i224x224_w7x7_s2x2_p3x3",
    "conv_f32_NCHW_n1c64k64g1_i56x56_w1x1",
    "conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1x1",
    "conv_f32_NHWC_n1c64k64g1_i56x56_w3x3_p1x1",
    "conv_f32_NCHW_n1c512k512g1_i7x7_w3x3_p1x1",
    "conv_f64_NCHW_n1c64k64g1_i28x28_w3x3_p1x1",
    "conv_f32_NCHW_n1c96k96g96_i56x56_w3x3_p1x1",
    "conv_f32_NCHW_n1c1k1g1_i1024x1024_w3x3_p1x1",
    "conv_f32_NCHW_n1c1k1g1_i1024x1024_w11x11_p5x5",
    "conv_f32_NCHW_n1c1k1g1_i1024x1024_w31x31_p15x15",
    "conv_f32_NCHW_n1c1k1g1_i512x512_w101x101_p50x50",
    "conv_f32_NCL_n1c1k1g1_i100000_w33_p32",
    "conv_f32_NCL_n1c1k1g1_i100000_w4097_p4096",
    "conv_f32_NCL_n4c64k64g1_i4000_w3_p2_d2",
]
# A candidate predicted to be this much slower than the choice is not worth its time here.
HOPELESS = 50.0


class Regret:
    params = SPECS
    param_names = ("spec",)
    unit = "ratio"
    timeout = 300

    def track_regret(self, spec: str) -> float:
        """Time of the choice over time of the best candidate, measured now; 1 is perfect."""
        problem = ConvSpec.parse(spec)
        admitted = explained(problem).admitted
        worth = [c for c in admitted if c.seconds <= HOPELESS * admitted[0].seconds]
        times = [
            low_quartile(
                planned_call(problem, backend=candidate.backend, algorithm=candidate.solver_id),
                seconds=0.1,
            )
            for candidate in worth
        ]
        return times[0] / min(times)
