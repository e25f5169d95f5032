"""Layers of networks, planned and packed as an inference engine would run them."""

from __future__ import annotations

from convjit.spec import ConvSpec

from .common import (
    NETWORKS,
    heaviest,
    in_channels_last,
    network,
    plain_call,
    planned_call,
    warmed_up,
)

HEAVY = list(dict.fromkeys(spec for name in NETWORKS for spec in heaviest(name, 2)))

# One layer of each kind that a network has and the lists above may not reach.
KINDS = [
    "conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1x1",
    "conv_f32_NHWC_n1c64k64g1_i56x56_w3x3_p1x1",
    "conv_f64_NCHW_n1c64k64g1_i56x56_w3x3_p1x1",
    "conv_f16_NCHW_n1c64k64g1_i56x56_w3x3_p1x1",
    "conv_c64_NCHW_n1c16k16g1_i56x56_w3x3_p1x1",
    "conv_u8_NCHW_n1c16k16g1_i56x56_w3x3_p1x1",
    "conv_f32_NCHW_n1c32k32g4_i56x56_w3x3_p1x1",
    "conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p2x2_d2x2_bias_act=relu",
    "conv_f32_NCDHW_n1c16k16g1_i16x32x32_w3x3x3_p1x1x1",
]
GRADIENTS = [
    "igrad_f32_NCHW_n8c64k64g1_i28x28_w3x3_p1x1",
    "igrad_f32_NCHW_n8c64k128g1_i28x28_w3x3_s2x2_p1x1",
    "wgrad_f32_NCHW_n8c64k64g1_i28x28_w3x3_p1x1",
    "wgrad_f32_NCHW_n8c64k128g1_i28x28_w3x3_s2x2_p1x1",
]


class Networks:
    """All convolutions of a network, each as often as it occurs."""

    params = list(NETWORKS)
    param_names = ("network",)
    timeout = 300

    def setup(self, name: str) -> None:
        self.calls = [(warmed_up(planned_call(spec)), count) for spec, count in network(name)]

    def time_planned(self, name: str) -> None:
        for call, count in self.calls:
            for _ in range(count):
                call()


class NetworksChannelsLast:
    """The same on channels-last data, the way in which many users have it."""

    params = list(NETWORKS)
    param_names = ("network",)
    timeout = 300

    def setup(self, name: str) -> None:
        self.calls = [
            (warmed_up(planned_call(in_channels_last(spec))), count)
            for spec, count in network(name)
        ]

    def time_planned(self, name: str) -> None:
        for call, count in self.calls:
            for _ in range(count):
                call()


class NetworksPlain:
    """The same through ``conv``: weights are packed in every call."""

    params = list(NETWORKS)
    param_names = ("network",)
    timeout = 300

    def setup(self, name: str) -> None:
        self.calls = [(warmed_up(plain_call(spec)), count) for spec, count in network(name)]

    def time_plain(self, name: str) -> None:
        for call, count in self.calls:
            for _ in range(count):
                call()


class Planned:
    """Single layers through a plan with packed weights."""

    params = list(dict.fromkeys(HEAVY + KINDS))
    param_names = ("spec",)
    timeout = 120

    def setup(self, spec: str) -> None:
        self.call = warmed_up(planned_call(ConvSpec.parse(spec)))

    def time_call(self, spec: str) -> None:
        self.call()


class Plain:
    """Single layers through ``conv``: the plan cache, and the packing in every call."""

    params = KINDS + GRADIENTS
    param_names = ("spec",)
    timeout = 120

    def setup(self, spec: str) -> None:
        self.call = warmed_up(plain_call(ConvSpec.parse(spec)))

    def time_call(self, spec: str) -> None:
        self.call()
