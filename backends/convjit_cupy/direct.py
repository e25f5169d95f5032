"""Direct sums in CUDA C++: a tile of outputs for 32 channels at once, tap by tap.

A block loads the patch of some sheets (a channel and a tap of the depth) and their weights into
shared memory; each warp then sums the whole tile for 8 output channels, each lane for 8 positions,
which are 64 sums in registers.  A row of taps costs a lane a window of samples for each group of
positions (:mod:`.tiles`) and 8 weights a tap, all loaded by 128 bits, and 64 multiply-adds a tap.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

from convjit import planes, precision
from convjit.occupancy import Block, busy
from convjit.planes import LANES, OnPlanes, unsigned
from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Numerics, Phase, Refusal, Target, Work
from convjit_cupy import tiles
from convjit_cupy.kernels import load

Array = Any

WARPS = 4
OUTPUTS = 8  # output channels of a warp
POSITIONS = 8  # of a lane
BLOCK_OUTPUTS = WARPS * OUTPUTS
MOST_COLUMNS = 16  # of taps, which are unrolled: 64 multiply-adds each

REGISTERS = {4: 121, 8: 218}  # of a thread, by the bytes of a sum
AT_ONCE, AT_LEAST = 9, 6  # taps that are unrolled, where a row has no more, or a sheet fewer

# KiB of shared memory for patch and weights: two blocks fit beside each other everywhere, or one
# that reads longer runs of channels, or four.
BUDGETS = (24, 48, 12)

SOURCE = (
    tiles.TYPES
    + tiles.PATCH
    + tiles.TILE
    + r"""
constexpr unsigned WARPS = 4, OUTPUTS = 8, BLOCK_OUTPUTS = WARPS * OUTPUTS;
constexpr unsigned OF_A_SHEET = ROWS * COLUMNS * BLOCK_OUTPUTS;  // weights
extern __shared__ __align__(16) char memory[];

// Two blocks is a bound that no instance comes near; without one the compiler may aim at four, and
// spill.
extern "C" __global__ void __launch_bounds__(128, 2) direct(
    const Real *__restrict__ x, const Sum *__restrict__ w, const Real *__restrict__ bias,
    Real *__restrict__ y, SIZES, unsigned sheets, unsigned outputs, unsigned groups,
    unsigned blocks_k, unsigned chunk, Sum slope, Sum lowest, Sum highest
) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned block = blockIdx.x;
    const unsigned left = block % tiles_x * TILE_WIDTH;
    block /= tiles_x;
    const unsigned top = block % tiles_y * TILE_HEIGHT;
    block /= tiles_y;
    const unsigned z = block % out_depth;
    block /= out_depth;
    const unsigned panel = block % (groups * blocks_k);  // of weights
    const unsigned group = panel / blocks_k, image = block / (groups * blocks_k);
    const Patch p = {depth, height, width, taps, dilation_z, top * STRIDE_Y - pad_y,
                     left * STRIDE - pad_x - PHASE, z * stride_z - pad_z};
    const unsigned channel = (image * groups + group) * (sheets / taps);

    Sum *weights = reinterpret_cast<Sum *>(memory), *patch = weights + chunk * OF_A_SHEET;
    const Sum *corner = patch + row_of(lane, 0) * STRIDE_Y * PITCH + column_of(lane, 0);

    Sum sums[OUTPUTS][GROUPS][VECTOR];
#pragma unroll
    for (unsigned k = 0; k < OUTPUTS; k++)
#pragma unroll
        for (unsigned g = 0; g < GROUPS; g++)
#pragma unroll
            for (unsigned e = 0; e < VECTOR; e++) sums[k][g][e] = 0;

    for (unsigned done = 0; done < sheets; done += chunk) {
        const unsigned count = min(chunk, sheets - done);
        __syncthreads();
        load_patch(patch, x, p, channel, done, count, threadIdx.x, 32 * WARPS);
        const Sum *from = w + (panel * sheets + done) * OF_A_SHEET;
        for (unsigned i = threadIdx.x * VECTOR; i < count * OF_A_SHEET;
             i += 32 * WARPS * VECTOR) {
            const Vector<Sum> v = *reinterpret_cast<const Vector<Sum> *>(from + i);
            store_wide(weights + i, v.at);
        }
        __syncthreads();
        const Sum *weight = weights + warp * OUTPUTS, *sheet = corner;
        auto sum_up = [&] {
            const Sum *line = sheet;
#pragma unroll ROWS_AT_ONCE
            for (unsigned r = 0; r < ROWS; r++, line += DILATION_Y * PITCH) {
                Window windows[GROUPS];
#pragma unroll
                for (unsigned g = 0; g < GROUPS; g++)
                    windows[g] = window_of(line + (row_of(0, g) * STRIDE_Y * PITCH
                                                   + column_of(0, g)));
#pragma unroll
                for (unsigned tap = 0; tap < COLUMNS; tap++) {
                    Sum by[OUTPUTS];
#pragma unroll
                    for (unsigned k = 0; k < OUTPUTS; k += VECTOR)
                        load_wide(weight + tap * BLOCK_OUTPUTS + k, by + k);
#pragma unroll
                    for (unsigned k = 0; k < OUTPUTS; k++)
#pragma unroll
                        for (unsigned g = 0; g < GROUPS; g++)
#pragma unroll
                            for (unsigned e = 0; e < VECTOR; e++)
                                sums[k][g][e] += by[k] * sample(windows[g], tap, e);
                }
                weight += COLUMNS * BLOCK_OUTPUTS;
            }
            sheet += LINES * PITCH;
        };
        unsigned left_over = count;
        // By hand: nvrtc 13.0 leaves out the remainder where a pragma asks for three at once.
#pragma unroll 1
        for (; left_over >= SHEETS_AT_ONCE; left_over -= SHEETS_AT_ONCE)
#pragma unroll
            for (unsigned s = 0; s < SHEETS_AT_ONCE; s++) sum_up();
        if (SHEETS_AT_ONCE > 1)
#pragma unroll 1
            for (; left_over > 0; left_over--) sum_up();
    }

    __syncthreads();  // the patch becomes a stage
    Sum *stage = reinterpret_cast<Sum *>(memory) + warp * (TILE_HEIGHT * TILE_WIDTH);
    const bool wide = is_wide(y, out_width);
#pragma unroll
    for (unsigned i = 0; i < OUTPUTS; i++) {
        const unsigned k = panel % blocks_k * BLOCK_OUTPUTS + warp * OUTPUTS + i;
        if (k >= outputs) break;
        const Sum added = Sum(bias[group * outputs + k]);
#pragma unroll
        for (unsigned g = 0; g < GROUPS; g++)
#pragma unroll
            for (unsigned e = 0; e < VECTOR; e++)
                sums[i][g][e] = finish(sums[i][g][e] + added, slope, lowest, highest);
        const unsigned plane = ((image * groups + group) * outputs + k) * out_depth + z;
        store_tile(y + plane * out_height * out_width, stage, sums[i], top, left, out_height,
                   out_width, lane, wide);
    }
}
"""
)


def tile_of(spec: ConvSpec) -> tiles.Tile:
    """The tile of a block."""
    return tiles.tile_of(spec, POSITIONS // tiles.vector(spec.dtype))


def sheets_of(spec: ConvSpec) -> int:
    """Planes that are summed for one output plane."""
    return planes.plane(spec).channels * planes.depth(spec).taps


def chunk_of(spec: ConvSpec, kib: int) -> int:
    """Sheets whose patch and weights fit so much shared memory; 0 if none does."""
    one = tile_of(spec).patch + planes.plane(spec).taps * BLOCK_OUTPUTS
    return min(sheets_of(spec), kib * 2**10 // tiles.sum_bytes(spec.dtype) // one)


def _block(spec: ConvSpec, chunk: int) -> Block:
    """A block with so many sheets in shared memory, later its results, as it has to be held."""
    tile = tile_of(spec)
    elements = max(
        chunk * (tile.patch + planes.plane(spec).taps * BLOCK_OUTPUTS), WARPS * tile.area
    )
    of_a_sum = tiles.sum_bytes(spec.dtype)
    return Block(WARPS * LANES, REGISTERS[of_a_sum], elements * of_a_sum)


def packed_elements(spec: ConvSpec) -> int:
    p = planes.plane(spec)
    return p.groups * -(-p.outputs // BLOCK_OUTPUTS) * BLOCK_OUTPUTS * sheets_of(spec) * p.taps


def _macros(spec: ConvSpec, tile: tiles.Tile) -> tuple[str, ...]:
    """What the kernel is compiled for: so many rows of taps, or sheets of few, are unrolled that
    what counts them is little beside their multiply-adds.
    """
    p = planes.plane(spec)
    parts = -(-p.taps // AT_ONCE)
    return tiles.tile_macros(
        spec, tile, ROWS_AT_ONCE=-(-p.rows // parts), SHEETS_AT_ONCE=-(-AT_LEAST // p.taps)
    )


class DirectSolver:
    """``cupy.direct``."""

    algorithm = "direct"

    def __init__(self, backend: str, cupy: Any) -> None:
        self.id = f"{backend}.direct"
        self._backend, self._cupy = backend, cupy

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if (refusal := tiles.refuse(spec, MOST_COLUMNS)) is not None:
            return refusal
        if (refusal := planes.refuse_size(packed_elements(spec))) is not None:
            return refusal
        return None if self._fitting(spec) else planes.refuse_patch(spec)

    def _fitting(self, spec: ConvSpec) -> list[int]:
        return [kib for kib in BUDGETS if chunk_of(spec, kib)]

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p, d, tile = planes.plane(spec), planes.depth(spec), tile_of(spec)
        size = precision.numpy_dtype(spec.dtype).itemsize
        blocks_k = -(-p.outputs // BLOCK_OUTPUTS)
        blocks = spec.batch * p.groups * blocks_k * d.out * tile.count
        sheets = sheets_of(spec)
        packed = tiles.sum_bytes(spec.dtype) * packed_elements(spec)
        weights = blocks * sheets * p.taps * BLOCK_OUTPUTS * tiles.sum_bytes(spec.dtype)
        read = size * blocks * sheets * tile.patch + weights
        operands = size * (prod(spec.x_shape) + prod(spec.y_shape)) + packed
        multiply = Phase(
            "direct",
            2.0 * blocks * tile.area * BLOCK_OUTPUTS * sheets * p.taps,
            f"{self._backend}.direct.{spec.dtype}",
            {"l2": float(read), "memory": float(operands)},
            busy(blocks, _block(spec, chunk_of(spec, self._fitting(spec)[0])), target),
        )
        return Work(
            (multiply,),
            Numerics("direct"),
            Phase("pack", bytes={"memory": 2.0 * packed}),
            launches=1,
            packed_bytes=packed,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        return [(("shared_kib", kib),) for kib in self._fitting(spec)]

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return DirectSum(spec, self._cupy, chunk_of(spec, dict(config)["shared_kib"]))


class DirectSum(OnPlanes):
    """The executable; packed weights are (groups, panels of 32 outputs, sheets, taps, outputs).

    They are in the dtype of the sums, zeros for the outputs that fill up the last panel.
    """

    def __init__(self, spec: ConvSpec, cupy: Any, chunk: int) -> None:
        super().__init__(spec, cupy)
        p, tile = self.plane, tile_of(spec)
        self._panels = -(-p.outputs // BLOCK_OUTPUTS)
        self._blocks = spec.batch * p.groups * self._panels * planes.depth(spec).out * tile.count
        self._block = _block(spec, chunk)
        self._kernel = load(cupy, SOURCE, "direct", _macros(spec, tile))
        self._arguments = (
            *tiles.sizes(spec, tile),
            *unsigned(sheets_of(spec), p.outputs, p.groups, self._panels, chunk),
            *planes.activation(spec),
        )

    def pack(self, rhs: Array) -> Array:
        p, sheets = self.plane, sheets_of(self.spec)
        taps = planes.grouped_taps(self.spec, rhs)
        kind = precision.numpy_dtype(precision.accumulator_dtype(self.spec.dtype))
        into = self.cupy.zeros(
            (p.groups, self._panels, sheets, p.rows, p.columns, BLOCK_OUTPUTS), kind
        )
        for panel in range(self._panels):
            some = taps[:, panel * BLOCK_OUTPUTS : (panel + 1) * BLOCK_OUTPUTS]
            into[:, panel, ..., : some.shape[1]] = some.transpose(0, 2, 3, 4, 1)
        return into.reshape(-1)

    def compute(
        self, x: Array, packed: Any, bias: Array, y: Array, workspace: Array | None
    ) -> None:
        arguments = (x, packed, bias, y, *self._arguments)
        self._kernel(
            (self._blocks,),
            (self._block.threads,),
            arguments,
            shared_bytes=self._block.shared_bytes,
        )
