"""ResNet-50's layers in the other kinds that convjit offers."""

from __future__ import annotations

from collections.abc import Callable

from convjit.spec import ConvSpec, Direction

from .common import network, planned_call, warmed_up

CARDINALITY = 32  # groups of the grouped variant, as in ResNeXt (Xie et al., 2017)
DEPTH = 4  # samples along the third axis of the 3-D variant


def plain(spec: ConvSpec) -> ConvSpec:
    """Without what gradients do not have."""
    return spec.replace(bias=False, activation=None)


def wide(spec: ConvSpec) -> bool:
    """Whether the kernel has more than one tap."""
    return max(spec.kernel_size) > 1


def dilated(spec: ConvSpec) -> ConvSpec | None:
    """Every second sample, padded so that the result keeps its size."""
    if not wide(spec):
        return None
    padding = tuple(
        (lo + k // 2, hi + k // 2)
        for (lo, hi), k in zip(spec.padding, spec.kernel_size, strict=True)
    )
    changed = spec.replace(dilation=(2, 2), padding=padding)
    return changed.replace(out_size=changed.formula_out_size)


def grouped(spec: ConvSpec) -> ConvSpec | None:
    whole = spec.in_channels % CARDINALITY == spec.out_channels % CARDINALITY == 0
    return spec.replace(groups=CARDINALITY) if wide(spec) and whole else None


def depthwise(spec: ConvSpec) -> ConvSpec | None:
    square = spec.in_channels == spec.out_channels
    return spec.replace(groups=spec.in_channels) if wide(spec) and square else None


def volume(spec: ConvSpec) -> ConvSpec | None:
    """The 3x3 layers with a third axis of their own kernel, stride and padding."""
    if spec.kernel_size != (3, 3):
        return None
    changed = spec.replace(
        layout="NCDHW", in_size=(DEPTH, *spec.in_size), kernel_size=(3, 3, 3),
        stride=(1, *spec.stride), dilation=(1, 1, 1), padding=((1, 1), *spec.padding),
        out_size=(0, 0, 0),
    )  # fmt: skip
    return changed.replace(out_size=changed.formula_out_size)


VARIANTS: dict[str, Callable[[ConvSpec], ConvSpec | None]] = {
    "depthwise": depthwise,
    "grouped": grouped,
    "dilated": dilated,
    "float64": lambda spec: spec.replace(dtype="float64"),
    "transposed": lambda spec: spec.replace(direction=Direction.TRANSPOSED),
    "input_grad": lambda spec: plain(spec).replace(direction=Direction.INPUT_GRAD),
    "weight_grad": lambda spec: plain(spec).replace(direction=Direction.WEIGHT_GRAD),
    "3-D": volume,
}


def variant(name: str) -> list[ConvSpec]:
    """The layers of ResNet-50 that have such a variant, each once."""
    changed = (VARIANTS[name](spec) for spec, _ in network("resnet50"))
    return list(dict.fromkeys(spec for spec in changed if spec is not None))


class Variants:
    """Every distinct layer once, planned and packed."""

    params = list(VARIANTS)
    param_names = ("variant",)
    timeout = 300

    def setup(self, name: str) -> None:
        self.calls = [warmed_up(planned_call(spec)) for spec in variant(name)]

    def time_planned(self, name: str) -> None:
        for call in self.calls:
            call()
