"""Depthwise layers in CUDA C++: one input channel for each output channel, bound by memory.

A warp takes a tile of one plane, without waiting for others: it loads the patch beneath the tile
into its part of shared memory, by 128 bits where rows are aligned, and each lane sums neighbouring
outputs out of windows (:mod:`.tiles`).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

from convjit import planes, precision
from convjit.occupancy import Block, busy
from convjit.planes import LANES, OnPlanes, unsigned
from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Feature, Numerics, Phase, Refusal, Target, Work
from convjit_cupy import tiles
from convjit_cupy.kernels import load

Array = Any

# Groups of a lane's outputs: 8 sums keep a patch small; twice as many read fewer of its edges.
GROUPS = {"float32": (2, 4), "float64": (4, 2), "float16": (2, 4), "bfloat16": (2, 4)}
WARPS = 8  # of a block, fewer where their patches would not fit
REGISTERS = {4: 43, 8: 46}  # of a thread, by the bytes of a sum: for 3x3 taps on 8.0
MOST_COLUMNS = 32  # of taps, which are unrolled

SOURCE = (
    tiles.TYPES
    + tiles.PATCH
    + tiles.TILE
    + r"""
extern __shared__ __align__(16) char memory[];

extern "C" __global__ void __launch_bounds__(256) depthwise(
    const Real *__restrict__ x, const Real *__restrict__ w, const Real *__restrict__ bias,
    Real *__restrict__ y, SIZES, unsigned tiles, unsigned channels, unsigned multiplier,
    unsigned own, unsigned weights_at, Sum slope, Sum lowest, Sum highest
) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned tile = blockIdx.x * (blockDim.x / 32) + warp;
    if (tile >= tiles) return;
    Sum *patch = reinterpret_cast<Sum *>(memory) + warp * own, *weights = patch + weights_at;
    const unsigned left = tile % tiles_x * TILE_WIDTH;
    tile /= tiles_x;
    const unsigned top = tile % tiles_y * TILE_HEIGHT;
    tile /= tiles_y;
    const unsigned z = tile % out_depth;
    const unsigned plane = tile / out_depth;  // of the outputs of all images
    const unsigned k = plane % channels;
    const Patch p = {depth, height, width, taps, dilation_z, top * STRIDE_Y - pad_y,
                     left * STRIDE - pad_x - PHASE, z * stride_z - pad_z};
    load_patch(patch, x, p, plane / multiplier, 0, taps, lane, 32);
    for (unsigned i = lane; i < taps * ROWS * COLUMNS; i += 32)
        weights[i] = Sum(w[k * taps * ROWS * COLUMNS + i]);
    __syncwarp();

    Sum sums[GROUPS][VECTOR];
#pragma unroll
    for (unsigned g = 0; g < GROUPS; g++)
#pragma unroll
        for (unsigned e = 0; e < VECTOR; e++) sums[g][e] = 0;
    // One address for all groups, whose lines lie at offsets that the loads hold: of one for each
    // the assembler spilled some in float64, to fit five blocks.
    const Sum *weight = weights;
    const Sum *line = patch + row_of(lane, 0) * STRIDE_Y * PITCH + column_of(lane, 0);
    for (unsigned tap = 0; tap < taps; tap++, line += (LINES - ROWS * DILATION_Y) * PITCH)
#pragma unroll 1
        for (unsigned r = 0; r < ROWS; r++, line += DILATION_Y * PITCH, weight += COLUMNS) {
            Window windows[GROUPS];
#pragma unroll
            for (unsigned g = 0; g < GROUPS; g++)
                windows[g] = window_of(line + row_of(0, g) * STRIDE_Y * PITCH + column_of(0, g));
#pragma unroll
            for (unsigned s = 0; s < COLUMNS; s++) {
                const Sum by = weight[s];
#pragma unroll
                for (unsigned g = 0; g < GROUPS; g++)
#pragma unroll
                    for (unsigned e = 0; e < VECTOR; e++)
                        sums[g][e] += by * sample(windows[g], s, e);
            }
        }

    const Sum added = Sum(bias[k]);
#pragma unroll
    for (unsigned g = 0; g < GROUPS; g++)
#pragma unroll
        for (unsigned e = 0; e < VECTOR; e++)
            sums[g][e] = finish(sums[g][e] + added, slope, lowest, highest);
    Real *to = y + (plane * out_depth + z) * out_height * out_width;
    store_tile(to, patch, sums, top, left, out_height, out_width, lane, is_wide(y, out_width));
}
"""
)


def shared_elements(spec: ConvSpec, tile: tiles.Tile) -> tuple[int, int]:
    """(elements of a warp in shared memory, where among them the weights begin)."""
    depth = planes.depth(spec).taps
    v = tiles.vector(spec.dtype)
    weights_at = -(-max(depth * tile.patch, tile.area) // v) * v
    taps = depth * planes.plane(spec).taps
    return weights_at + -(-taps // v) * v, weights_at


def _block(spec: ConvSpec, tile: tiles.Tile) -> Block:
    """As many warps as patches fit, as a multiprocessor has to hold them."""
    own = shared_elements(spec, tile)[0] * tiles.sum_bytes(spec.dtype)
    warps = min(WARPS, planes.SHARED_BYTES // own)
    return Block(warps * LANES, REGISTERS[tiles.sum_bytes(spec.dtype)], warps * own)


class DepthwiseSolver:
    """``cupy.depthwise``."""

    algorithm = "depthwise"

    def __init__(self, backend: str, cupy: Any) -> None:
        self.id = f"{backend}.depthwise"
        self._backend, self._cupy = backend, cupy

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if not spec.is_depthwise or spec.groups == 1:
            return Refusal(
                Feature.SIZE,
                "takes depthwise layers: as many groups as channels, and more than one",
            )
        if (refusal := tiles.refuse(spec, MOST_COLUMNS)) is not None:
            return refusal
        return None if self._fitting(spec) else planes.refuse_patch(spec)

    def _fitting(self, spec: ConvSpec) -> list[int]:
        """Groups of a lane whose patch fits, those first that keep most lanes at work."""

        def waste(groups: int) -> int:
            tile = tiles.tile_of(spec, groups)
            return tile.count * tile.area

        fitting = [
            g
            for g in GROUPS[spec.dtype]
            if shared_elements(spec, tiles.tile_of(spec, g))[0] * tiles.sum_bytes(spec.dtype)
            <= planes.SHARED_BYTES
        ]
        return sorted(fitting, key=waste)

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        tile = tiles.tile_of(spec, self._fitting(spec)[0])
        block = _block(spec, tile)
        d = planes.depth(spec)
        size = precision.numpy_dtype(spec.dtype).itemsize
        count = spec.batch * spec.out_channels * d.out * tile.count  # tiles
        loaded = float(size * count * d.taps * tile.patch)
        x, y = (float(size * prod(shape)) for shape in (spec.x_shape, spec.y_shape))
        sum_up = Phase(
            "depthwise",
            2.0 * count * tile.area * d.taps * planes.plane(spec).taps,
            f"{self._backend}.depthwise.{spec.dtype}",
            # What patches share, and the planes of several outputs, come from the cache.
            {"l2": loaded, "memory": x + y},
            busy(-(-count // (block.threads // LANES)), block, target),
        )
        packed = size * prod(spec.w_shape)
        return Work(
            (sum_up,),
            Numerics("direct"),
            Phase("pack", bytes={"memory": 2.0 * packed}),
            launches=1,
            packed_bytes=packed,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        return [(("groups", groups),) for groups in self._fitting(spec)]

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return DepthwiseSum(spec, self._cupy, dict(config)["groups"])


class DepthwiseSum(OnPlanes):
    """The executable; packed weights are w itself, the taps reversed under ``flip``."""

    def __init__(self, spec: ConvSpec, cupy: Any, groups: int) -> None:
        super().__init__(spec, cupy)
        tile = tiles.tile_of(spec, groups)
        own, weights_at = shared_elements(spec, tile)
        self._block = _block(spec, tile)
        self._kernel = load(cupy, SOURCE, "depthwise", tiles.tile_macros(spec, tile))
        count = spec.batch * spec.out_channels * planes.depth(spec).out * tile.count
        self._blocks = -(-count // (self._block.threads // LANES))
        self._arguments = (
            *tiles.sizes(spec, tile),
            *unsigned(count, spec.out_channels, self.plane.outputs, own, weights_at),
            *planes.activation(spec),
        )

    def pack(self, rhs: Array) -> Array:
        taps = planes.grouped_taps(self.spec, rhs)
        into = self.cupy.empty(taps.shape, self._kind)
        into[...] = taps
        return into.reshape(-1)

    def compute(
        self, x: Array, packed: Any, bias: Array, y: Array, workspace: Array | None
    ) -> None:
        arguments = (x, packed, bias, y, *self._arguments)
        block = self._block
        self._kernel((self._blocks,), (block.threads,), arguments, shared_bytes=block.shared_bytes)
