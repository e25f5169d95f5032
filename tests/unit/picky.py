"""A backend with one solver that takes as little as a solver can: everything else is lowered.

It handles contiguous float32 NCHW in two dimensions, forward, without padding, stride, dilation,
groups, flip or epilogue, and counts the problems it was given.
"""

from __future__ import annotations

import numpy as np

from convjit.precision import Numerics
from convjit.spec import Direction
from convjit.spi import Feature, Phase, Refusal, Target, Work

TARGET = Target(
    fingerprint="none", device="cpu", description="counts, does not compute", cores=1,
    peak={"float32": 1e9}, rates={"picky": 1e9}, bandwidth={"copy": 1e9, "memory": 1e9},
    caches={}, launch=1e-6,
)  # fmt: skip


class Picky:
    """The solver; ``only`` lists the features it refuses (all of them by default)."""

    id = "picky.valid"
    algorithm = "direct"

    def __init__(self, only=None):
        self.only = only

    def refuse(self, spec, target):
        guards = [
            (Feature.DIRECTION, spec.direction is not Direction.FORWARD),
            (Feature.DTYPE, spec.dtype != "float32"),
            (Feature.NDIM, spec.ndim != 2),
            (Feature.LAYOUT, spec.channels_last),
            (Feature.PAD_MODE, spec.pad_mode != "zeros"),
            (Feature.PADDING, any(p != (0, 0) for p in spec.padding)),
            (Feature.FLIP, spec.flip),
            (Feature.STRIDE, set(spec.stride) != {1}),
            (Feature.DILATION, set(spec.dilation) != {1}),
            (Feature.GROUPS, spec.groups != 1),
            (Feature.EPILOGUE, spec.bias or spec.activation is not None),
            (Feature.STRIDED, spec.strided),
        ]
        for feature, refused in guards:
            if refused and (self.only is None or feature in self.only):
                return Refusal(feature, f"picky does not do {feature}")
        return None

    def estimate(self, spec, target):
        return Work((Phase("sum", spec.flops, "picky"),), Numerics("direct"), pack=Phase("pack"))

    def configs(self, spec, target):
        return [()]

    def plan(self, spec, target, config):
        return Valid(spec)


class Valid:
    """The definition, tap by tap, summed in float64 to leave the rounding to the casts."""

    workspace = 0

    def __init__(self, spec):
        assert Picky().refuse(spec, TARGET) is None, spec
        self.spec = spec

    def pack(self, rhs):
        assert rhs.flags.c_contiguous
        assert rhs.shape == self.spec.rhs_shape
        assert rhs.dtype == np.float32
        return rhs.astype(np.float64)

    def run(self, lhs, packed, bias, out, workspace):
        spec = self.spec
        assert lhs.shape == spec.lhs_shape
        assert lhs.dtype == np.float32
        assert lhs.flags.c_contiguous
        assert lhs.flags.aligned
        assert out.shape == spec.result_shape
        assert bias is None
        height, width = spec.out_size
        total = np.zeros(out.shape)
        for row in range(spec.kernel_size[0]):
            for column in range(spec.kernel_size[1]):
                window = lhs[:, :, row : row + height, column : column + width]
                total += np.einsum("nchw,kc->nkhw", window, packed[:, :, row, column])
        out[...] = total
