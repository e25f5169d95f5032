"""Problems at the edges of the kernels' tiles, for the emulator and for a GPU."""

from __future__ import annotations

# Sizes at the edges of what a kernel divides: one less, exactly, and one more.
GEMM = (
    "NCHW_n1c7k63g1_i9x7_w1x1",  # 63 outputs, 63 positions, 7 depths
    "NCHW_n1c8k64g1_i8x8_w1x1_bias",
    "NCHW_n1c9k65g1_i13x5_w1x1_bias_act=leaky_relu,0.1",
    "NCHW_n1c3k127g1_i127x1_w1x1",
    "NCHW_n1c16k128g1_i16x8_w1x1",
    "NCHW_n1c17k129g1_i3x43_w1x1",
    "NCHW_n3c3k5g1_i11x13_w3x3_s2x1_p1.2x2.0_d1x2_flip",
    "NCHW_n2c6k10g2_i6x5_w3x2_p1",
    "NCL_n2c3k4g1_i67_w5_s2_p2",
)
# The same for tiles of 128, which are chosen where they make two blocks at least.
LARGE_GEMM = (
    "NCHW_n1c7k127g1_i43x3_w1x1",  # 127 outputs, 129 positions
    "NCHW_n1c16k256g1_i16x8_w1x1_bias",
    "NCHW_n1c9k65g1_i17x15_w1x1_bias_act=leaky_relu,0.1",
    "NCHW_n1c17k129g1_i3x43_w1x1",
    "NCHW_n3c3k5g1_i11x13_w3x3_s2x1_p1.2x2.0_d1x2_flip",
    "NCHW_n2c6k10g2_i6x5_w3x2_p1",
    "NCL_n3c3k4g1_i120_w5_s2_p2",
)
DIRECT = (
    "NCHW_n1c3k31g1_i7x31_w3x3_p1",
    "NCHW_n1c2k32g1_i8x32_w3x3_p1_bias",
    "NCHW_n2c2k33g1_i9x33_w3x3_p1_bias_act=relu",
    "NCHW_n1c9k2g1_i8x32_w3x3_p1",  # channels of a step
    "NCHW_n1c10k2g1_i8x32_w3x3_p1",
    "NCHW_n1c19k2g1_i5x5_w3x3_p1",
    "NCHW_n1c2k3g1_i17x70_w3x2_s2x3_p1.2x2.0_d1x2_flip",
    "NCHW_n2c6k70g2_i3x3_w3x3_p2",
    "NCL_n1c2k3g1_i255_w3_p1",
    "NCL_n1c2k3g1_i256_w3_p1",
    "NCL_n2c2k3g1_i257_w3_p1_act=clip,-1.0,1.0",
)
DEPTHWISE = (
    "NCHW_n1c3k3g3_i8x31_w3x3_p1",  # a plane less than a block takes
    "NCHW_n1c4k4g4_i8x32_w3x3_p1_bias",
    "NCHW_n1c5k5g5_i9x33_w3x3_p1_bias_act=relu",
    "NCHW_n3c3k6g3_i17x70_w3x2_s2x3_p1.2x2.0_d1x2_flip",
    "NCHW_n2c2k2g2_i7x7_w5x5_p2",
    "NCL_n1c3k3g3_i257_w7_p3",
)
WINOGRAD = (
    "NCHW_n1c3k4g1_i8x8_w3x3_p1",
    "NCHW_n2c9k65g1_i9x7_w3x3_p1_bias_act=relu",
    "NCHW_n1c6k4g2_i13x6_w3x3_p1.2x0.1_flip",
    "NCHW_n1c2k3g1_i3x3_w3x3",
    "NCHW_n2c11k12g1_i13x11_w3x3_p1",  # blocks that begin within a row of tiles
    "NCL_n2c3k5g1_i63_w3_p1",
    "NCL_n1c3k5g1_i64_w3_p1_bias",
    "NCL_n1c3k5g1_i65_w3_p1",
)

# For tensor cores: chunks of eight channels (four of float32), steps of four chunks, tiles of 64
# outputs by 256 positions and of 128 by 64.
TENSOR_CORE = (
    "NHWC_n1c8k128g1_i8x8_w1x1",
    "NHWC_n1c24k127g1_i9x7_w1x1_bias",
    "NHWC_n1c32k136g1_i13x5_w1x1_bias_act=leaky_relu,0.1",
    "NHWC_n1c40k64g1_i16x16_w1x1_bias",
    "NHWC_n1c56k56g1_i15x17_w1x1",
    "NHWC_n1c72k63g1_i257x1_w1x1_act=clip,-1.0,1.0",
    "NHWC_n2c24k72g1_i9x7_w3x3_p1_bias_act=relu",
    "NHWC_n3c16k40g1_i11x13_w3x3_s2x1_p1.2x2.0_d1x2_flip",
    "NHWC_n2c48k160g2_i6x5_w3x2_p1_bias",
    "NHWC_n2c20k36g2_i6x5_w3x2_p1_bias",  # channels filled up
    "NHWC_n2c3k64g1_i9x7_w3x3_p1_bias",
    "NLC_n2c16k32g1_i67_w5_s2_p2",
    "NLC_n1c16k32g1_i70_w33",
    "NLC_n1c8k32g1_i40_w33_p16",  # masks of more than 32 bits
    "NDHWC_n2c16k48g1_i3x4x5_w2x3x3_p1x0x1_s1x2x1",
)
TENSOR_CORE_QUICK = (
    "NHWC_n1c32k136g1_i13x5_w1x1_bias_act=leaky_relu,0.1",
    "NHWC_n1c40k64g1_i16x16_w1x1_bias",
    "NHWC_n2c24k72g1_i9x7_w3x3_p1_bias_act=relu",
    "NHWC_n3c16k40g1_i11x13_w3x3_s2x1_p1.2x2.0_d1x2_flip",
    "NHWC_n2c48k160g2_i6x5_w3x2_p1_bias",
    "NHWC_n2c3k64g1_i9x7_w3x3_p1_bias",
    "NLC_n1c16k32g1_i70_w33",
    "NLC_n1c8k32g1_i40_w33_p16",  # masks of more than 32 bits
    "NDHWC_n2c16k48g1_i3x4x5_w2x3x3_p1x0x1_s1x2x1",
)
# The same for tiles of 128 positions.
TENSOR_CORE_LARGE = (
    "f16_NHWC_n1c24k127g1_i127x1_w1x1_bias",
    "f16_NHWC_n1c32k128g1_i16x8_w1x1",
    "bf16_NHWC_n2c24k136g1_i13x5_w3x3_p1_bias_act=relu",
    "f32_NHWC_n1c20k132g1_i43x3_w3x2_s2_p1",
)

# The same where the depth is divided on an A100.
TENSOR_CORE_DIVIDED = (
    "f16_NHWC_n1c64k72g1_i7x7_w3x3_p1_bias_act=relu",  # of 5, 5, 5 and 3 steps
    "bf16_NHWC_n1c1024k64g1_i9x7_w1x1_bias",
    "f16_NHWC_n2c100k38g2_i6x5_w3x3_p1_act=clip,-1.0,1.0",  # channels filled up
    "f32_NHWC_n1c68k129g1_i5x7_w3x3_p1_bias",
)

# Solvers of numba_cuda and their problems; a GPU chooses the kind of tile itself.
EDGES = [
    *(("gemm", text) for text in GEMM),
    *(("direct", text) for text in DIRECT),
    *(("depthwise", text) for text in DEPTHWISE),
    *((f"winograd.f{m}x3", text) for m in (2, 4) for text in WINOGRAD),
]

# Of cupy; the last number of a depthwise plane decides whether its rows are loaded by 128 bits.
CUPY_DEPTHWISE = (
    *DEPTHWISE,
    "NCHW_n1c5k5g5_i9x36_w3x3_p1_act=relu",
    "NCHW_n2c3k3g3_i9x36_w3x5_s2x2_p1x2_bias",
    "NCHW_n2c9k9g9_i7x7_w3x3_p1_flip",
    "NCHW_n1c3k3g3_i20x24_w1x3_d1x4",
    "NCDHW_n2c2k4g2_i5x6x8_w3x2x3_s2x1x1_p1x0x1_d1x2x1_flip",
)
# A step is 16 depths, a tile 64 outputs by 64 positions; neighbours are copied together where there
# is one tap and planes are whole vectors.
IMPLICIT_GEMM = (
    "NCHW_n1c15k63g1_i9x7_w1x1",
    "NCHW_n1c16k64g1_i8x8_w1x1_bias",
    "NCHW_n2c17k65g1_i6x6_w1x1_bias_act=leaky_relu,0.1",  # the images' edge within a tile
    "NCHW_n1c9k65g1_i13x5_w3x3_p1_bias_act=relu",
    "NCHW_n3c3k5g1_i11x13_w3x3_s2x1_p1.2x2.0_d1x2_flip",
    "NCHW_n2c6k10g2_i6x5_w3x2_p1",
    "NCHW_n1c5k3g1_i9x8_w2x3",  # no padding
    "NCL_n2c3k4g1_i67_w5_s2_p2_act=clip,-1.0,1.0",
    "NCDHW_n2c3k4g1_i5x6x7_w3x2x3_s2x1x1_p1x0x1_d1x2x1_flip",
    "NCL_n1c3k5g1_i40_w33_p16_bias",  # masks of more than 32 bits
)
# The same for tiles of 128 outputs, which are chosen where they make blocks enough.
LARGE_IMPLICIT_GEMM = (
    "NCHW_n1c15k127g1_i43x3_w1x1",
    "NCHW_n1c17k129g1_i16x8_w1x1_bias",
    "NCHW_n2c9k65g1_i13x5_w3x3_p1_bias_act=relu",
    "NCHW_n2c6k10g2_i6x5_w3x2_p1_flip",
    "NCDHW_n2c3k4g1_i5x6x7_w3x2x3_s2x1x1_p1x0x1_d1x2x1",
)
# So deep for so few outputs that the depth is divided, into so many parts on an
# A100, in single and in double precision.
DIVIDED_GEMM = {
    "NCHW_n1c32k64g1_i8x8_w3x3_p1_bias_act=relu": (4, 4),  # of 5, 5, 5 and 3 steps
    "NCHW_n2c33k65g1_i5x7_w3x3_p1_bias": (4, 2),  # planes that are no whole vectors
    "NCHW_n1c130k6g2_i3x5_w3x2_p1_act=clip,-1.0,1.0": (5, 5),
    "NCHW_n1c150k64g1_i8x8_w1x1": (2, 2),
    "NCL_n1c128k3g1_i9_w1_bias": (2, 2),
}
CUPY_CHANNELS_LAST = (
    "NHWC_n1c8k8g8_i3x8_w3x3_p1_bias",
    "NHWC_n2c5k5g5_i4x9_w3x3_p1_bias_act=relu",  # channels that are no vector
    "NHWC_n1c3k3g3_i7x11_w2x3_s1x2_p1.2x2.0_d2x1_flip",
    "NLC_n1c12k12g12_i19_w3_p1_act=clip,-1.0,1.0",
    "NDHWC_n2c2k2g2_i5x6x7_w3x2x3_s2x1x1_p1x0x1_d1x2x1_flip",
)
CUPY_DIRECT = (
    *DIRECT,
    "NCHW_n1c3k5g1_i9x36_w3x3_p1",
    "NCHW_n2c3k5g1_i9x36_w1x1_bias",
    "NCHW_n1c3k5g1_i9x28_w3x5_s2x2_p1x2_bias",
    "NCHW_n2c9k40g1_i7x7_w3x3_p1_flip",
    "NCHW_n1c3k3g1_i20x24_w1x3_d1x4",
    "NCHW_n2c4k3g1_i5x4_w1x2_p0x0.1",  # a sheet left over of three at once
    "NCHW_n1c2k3g1_i13x8_w7x2",  # a row left over of four
    "NCDHW_n2c4k6g2_i5x6x8_w3x2x3_s2x1x1_p1x0x1_d1x2x1_flip",
    "NCDHW_n1c13k2g1_i4x9x6_w3x3x3_p1",  # 39 sheets, more than a step takes
)
CUPY_EDGES = [
    *(("depthwise", text) for text in CUPY_DEPTHWISE),
    *(("depthwise.channels_last", text) for text in CUPY_CHANNELS_LAST),
    *(("direct", text) for text in CUPY_DIRECT),
]
