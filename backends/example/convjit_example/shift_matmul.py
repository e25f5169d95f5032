"""``example.shift_matmul``: a convolution as one matrix product per tap of the kernel.

Write an image of C channels as a matrix X of C rows, one per channel, each the H * W pixels in
order.  In that order the pixel that tap (i, j) reads for output (o, p),

    x[c, o + i, p + j],   stands   i * W + j   places after   x[c, o, p],

for every output alike.  So, with A[i, j] the K x C matrix w[:, :, i, j],

    Y = sum over i, j of  A[i, j] @ X[:, i * W + j :]

is the whole convolution: no patches are copied, BLAS reads the image where it lies.  The price: Y
has rows of W pixels, of which the last kw - 1 mix two rows of the image and are thrown away.

Source: A. Anderson, A. Vasudevan, C. Keane, D. Gregg, "Low-memory GEMM-based convolution
algorithms for deep neural networks", 2017, section 3 ("kn2row").
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import numpy as np
from numpy.typing import NDArray

from convjit.precision import Numerics
from convjit.spec import ConvSpec, Direction
from convjit.spi import (
    DEFAULT_CONFIG,
    Config,
    Executable,
    Feature,
    Phase,
    Refusal,
    Target,
    Work,
)
from convjit_example.machine import MATMUL

Matrix = NDArray[np.float32]


def run_length(spec: ConvSpec) -> int:
    """Columns of Y: from output (0, 0) to the last one, in rows as wide as the image's."""
    (_, width), (rows, columns) = spec.in_size, spec.out_size
    return (rows - 1) * width + columns


class ShiftMatmulExecutable:
    """The plan of one problem: numbers, no arrays."""

    def __init__(self, spec: ConvSpec) -> None:
        self._spec = spec
        # Y, in full rows so that it can be viewed as an image; and one product.
        self._sum_shape = (spec.out_channels, spec.out_size[0] * spec.in_size[1])
        self._product_shape = (spec.out_channels, run_length(spec))
        self.workspace = 4 * (
            self._sum_shape[0] * self._sum_shape[1]
            + self._product_shape[0] * self._product_shape[1]
        )

    def pack(self, rhs: Matrix) -> Matrix:
        """The matrices A[i, j], one after the other: (kh, kw, K, C).

        A copy in any case: the caller may change the weights afterwards.
        """
        return rhs.transpose(2, 3, 0, 1).copy()

    def run(
        self,
        lhs: Matrix,
        packed: Matrix,
        bias: Matrix | None,
        out: Matrix,
        workspace: NDArray[np.uint8] | None,
    ) -> None:
        """Convolve image after image into ``out``."""
        if workspace is None:
            raise ValueError(f"{ShiftMatmul.id} was given no workspace")
        spec = self._spec
        height, width = spec.in_size
        rows, columns = spec.out_size
        numbers = workspace[: self.workspace].view(np.float32)
        split = self._sum_shape[0] * self._sum_shape[1]
        total = numbers[:split].reshape(self._sum_shape)
        term = numbers[split:].reshape(self._product_shape)
        length = self._product_shape[1]
        for image, result in zip(lhs, out, strict=True):
            pixels = image.reshape(spec.in_channels, height * width)
            total[...] = 0
            for i, j in product(*map(range, spec.kernel_size)):
                shift = i * width + j
                np.matmul(packed[i, j], pixels[:, shift : shift + length], out=term)
                total[:, :length] += term
            result[...] = total.reshape(spec.out_channels, rows, width)[:, :, :columns]


class ShiftMatmul:
    """The solver: what it refuses, what it costs, and how it is planned."""

    id = "example.shift_matmul"
    algorithm = "gemm"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        """Everything but the simplest convolution.

        Each refusal names a feature; for every one of these convjit knows how to turn the problem
        into one without it (``convjit.explain`` shows the steps), and asks again.
        """
        if spec.strided:
            return Refusal(Feature.STRIDED, "reads contiguous images only")
        if spec.dtype != "float32":
            return Refusal(Feature.DTYPE, f"multiplies float32 only, got {spec.dtype}")
        if spec.ndim != 2:
            return Refusal(Feature.NDIM, f"takes 2 spatial axes, got {spec.ndim}")
        if spec.layout != "NCHW":
            return Refusal(Feature.LAYOUT, f"takes NCHW, got {spec.layout}")
        if spec.direction is not Direction.FORWARD:
            return Refusal(Feature.DIRECTION, f"computes forward only, got {spec.direction}")
        if spec.groups != 1:
            return Refusal(Feature.GROUPS, f"takes one group, got {spec.groups}")
        if spec.flip:
            return Refusal(Feature.FLIP, "does not reverse the kernel")
        if set(spec.stride) != {1}:
            return Refusal(Feature.STRIDE, f"needs stride 1, got {spec.stride}")
        if set(spec.dilation) != {1}:
            return Refusal(Feature.DILATION, f"needs dilation 1, got {spec.dilation}")
        if spec.pad_mode != "zeros":
            return Refusal(Feature.PAD_MODE, f"does not pad, got pad_mode {spec.pad_mode}")
        if set(spec.padding) != {(0, 0)}:
            return Refusal(Feature.PADDING, f"does not pad, got {spec.padding}")
        if spec.bias or spec.activation:
            return Refusal(Feature.EPILOGUE, "applies neither bias nor activation")
        return None

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        """The products really computed (the thrown-away columns too), and their traffic."""
        taps = spec.kernel_size[0] * spec.kernel_size[1]
        products = spec.batch * taps
        length, inputs, outputs = run_length(spec), spec.in_channels, spec.out_channels
        weights = 4 * outputs * inputs * taps
        return Work(
            phases=(
                Phase(
                    "products",
                    flops=products * 2.0 * outputs * inputs * length,
                    rate=MATMUL,
                    bytes={"memory": products * 4.0 * length * (inputs + outputs)},
                ),
                # The sum is read and written, the product read.
                Phase("sums", bytes={"memory": products * 12.0 * length * outputs}),
            ),
            numerics=Numerics("gemm", deterministic=False),
            pack=Phase("pack", bytes={"copy": 2.0 * weights}),
            launches=2 * products,
            workspace=ShiftMatmulExecutable(spec).workspace,
            packed_bytes=weights,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        """Nothing to choose from: BLAS blocks the products itself."""
        return (DEFAULT_CONFIG,)

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        """Sizes alone; the data comes with ``run``."""
        return ShiftMatmulExecutable(spec)
