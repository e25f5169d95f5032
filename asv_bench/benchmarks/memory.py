"""Peak memory of a process that convolves once, and what the plan said it would need."""

from __future__ import annotations

from convjit.spec import ConvSpec

from .common import NETWORKS, network, operands, plain_call, plan_of

SPECS = [
    "conv_f32_NCHW_n1c64k64g1_i224x224_w3x3_p1x1",
    "conv_f32_NCHW_n8c64k64g1_i56x56_w3x3_p1x1",
    "conv_f32_NCHW_n1c1k1g1_i4096x4096_w31x31_p15x15",
    "conv_f32_NCL_n1c1k1g1_i1000000_w4097_p4096",
    "wgrad_f32_NCHW_n8c64k64g1_i56x56_w3x3_p1x1",
]


class Memory:
    params = SPECS
    param_names = ("spec",)
    timeout = 120

    def setup(self, spec: str) -> None:
        self.call = plain_call(ConvSpec.parse(spec))

    def peakmem_call(self, spec: str) -> None:
        self.call()


class Arrays:
    """For comparison: a process that holds the same operands and computes nothing."""

    params = SPECS
    param_names = ("spec",)

    def setup(self, spec: str) -> None:
        self.arrays = operands(ConvSpec.parse(spec))

    def peakmem_operands(self, spec: str) -> None:
        pass


class Workspace:
    params = SPECS
    param_names = ("spec",)
    unit = "bytes"

    def track_workspace(self, spec: str) -> int:
        return int(plan_of(ConvSpec.parse(spec)).workspace)


class NetworkWorkspace:
    """The largest workspace that any layer of a network asks for."""

    params = list(NETWORKS)
    param_names = ("network",)
    unit = "bytes"

    def track_largest(self, name: str) -> int:
        return max(int(plan_of(spec).workspace) for spec, _ in network(name))
