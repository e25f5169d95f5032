"""Implicit GEMM on tensor cores: channels-last convolutions of 16-bit numbers, and TF32.

The columns are never built: a thread copies 16 bytes of a tap's channels at once from the image to
shared memory, asynchronously and steps ahead, and a warp multiplies 64 positions by 64 outputs
(``tensor_core.cu``).  The tiling is that of S. Chetlur et al., "cuDNN: Efficient Primitives for
Deep Learning", 2014, sec. 3, on the instructions of the PTX ISA for compute capability 8.0.

Tensor cores multiply 16-bit numbers exactly and sum in float32, cutting off instead of rounding.
Of float32 they read TF32, 10 bits after the leading one (``precision="fast"``).  Weights are
rounded to it when they are packed; samples are cut off.  To round them would take a warp an
instruction for each of its registers of them, half as many as its products, or six for 16 bytes in
shared memory, and leave products less than half of the instructions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np

from convjit import cost, planes, precision
from convjit.algorithms.workspace import aligned, carve, nbytes
from convjit.occupancy import Block
from convjit.spec import ConvSpec, Direction
from convjit.spi import Config, Executable, Feature, Numerics, Phase, Refusal, Target, Work
from convjit_cupy import split
from convjit_cupy.axes import (
    MASKS,
    Axis,
    axes_of,
    mask_bits,
    offsets_and_bits,
    refuse_bits,
    table,
)
from convjit_cupy.kernels import COPIES, is_aligned, load

Array = Any

SOURCE = COPIES + MASKS + Path(__file__).with_suffix(".cu").read_text(encoding="utf-8")

# Of each dtype: its number in the source, and how many products the hardware adds at once on
# compute capability 8.0 (later generations: more, which errs less).
KINDS = {"float16": (0, 8), "bfloat16": (1, 8), "float32": (2, 4)}

LEAST_CAPABILITY = 80  # of asynchronous copies, bfloat16 and TF32

# As in the source: bytes of a chunk, chunks of a step, positions or outputs of a warp.
CHUNK, CHUNKS, EACH = 16, 4, 64
LINE = CHUNK * CHUNKS
STAGES = 3
REGISTERS = 232  # of a thread

# Positions of a tile by its outputs, largest first: four warps, or two that make twice the blocks.
# A tile of 64 outputs is as long as the share of multiplications among its instructions needs.
TILES = {128: (128, 64), 64: (256,)}

# Tensor cores have 16 times the ordinary cores' peak (NVIDIA's data sheet "A100", float16).
MOST_WASTE = 16


@dataclass(frozen=True, slots=True)
class Sizes:
    """A problem in chunks.

    Attributes
    ----------
    axes : three of Axis
    elements : int
        Of a chunk.
    channels : int
        Of a group, filled up to whole chunks.
    outputs, columns : int
        Of a group, and of a tile.
    steps : int
    """

    axes: tuple[Axis, Axis, Axis]
    elements: int
    groups: int
    channels: int
    outputs: int
    columns: int
    steps: int
    positions: int

    @property
    def taps(self) -> int:
        return prod(axis.taps for axis in self.axes)

    @property
    def tiles_k(self) -> int:
        return -(-self.outputs // self.columns)

    def blocks(self, rows: int) -> int:
        return -(-self.positions // rows) * self.tiles_k * self.groups

    def block(self, rows: int) -> Block:
        """The block of a tile of so many positions, as a multiprocessor has to hold it."""
        shared = STAGES * (rows + self.columns) * LINE
        return Block(rows // EACH * (self.columns // EACH) * planes.LANES, REGISTERS, shared)

    @property
    def packed_elements(self) -> int:
        """Of the weights, and of what is copied beyond the last of them."""
        tiles = self.groups * self.tiles_k * self.steps + STAGES - 1
        return tiles * self.columns * CHUNKS * self.elements


@lru_cache(maxsize=1024)
def sizes(spec: ConvSpec) -> Sizes:
    """The sizes of a problem with one to three axes."""
    elements = CHUNK // precision.numpy_dtype(spec.dtype).itemsize
    channels = -(-spec.in_channels // spec.groups // elements) * elements
    outputs = spec.out_channels // spec.groups
    chunks = channels // elements * prod(spec.kernel_size)
    return Sizes(
        axes_of(spec),
        elements,
        spec.groups,
        channels,
        outputs,
        columns=EACH if outputs <= EACH else 2 * EACH,
        steps=-(-chunks // CHUNKS),
        positions=spec.batch * prod(spec.out_size),
    )


def chunk_table(s: Sizes) -> Array:
    """Of each chunk its offset, in elements, and the bits that a position has to have for it.

    Chunks fill up the steps, and those copied ahead of the last, with what lies nowhere.
    """
    mask = mask_bits(s.axes)
    exists, nowhere = np.uint64(1 << (mask - 1)), 1 << (mask - 2)
    z, y, x, c = (
        index.reshape(-1)
        for index in np.indices((*(a.taps for a in s.axes), s.channels // s.elements))
    )
    strides = _strides(s.axes, s.groups * s.channels)
    offset, bits = offsets_and_bits(s.axes, (z, y, x), strides)
    entries = table(offset + c * s.elements, bits | exists, mask, _chunks(s), nowhere)
    filled = np.zeros((len(entries), entry_words(mask)), np.uint32)
    filled[:, : entries.shape[1]] = entries
    return filled


def entry_words(mask: int) -> int:
    """Words of an entry of :func:`chunk_table`: of the table's, filled up to a power of 2."""
    return mask // 16


def _chunks(s: Sizes) -> int:
    return (s.steps + STAGES) * CHUNKS


def _strides(axes: tuple[Axis, ...], row: int) -> tuple[int, int, int]:
    """Elements from a sample to the next along each axis."""
    _, y, x = axes
    return y.size * x.size * row, x.size * row, row


def packed(cupy: Any, spec: ConvSpec, w: Array, neighbours: int) -> Array:
    """Weights tile by tile and step by step, as a block copies them to shared memory.

    Columns 2 t and 2 t + 1 of a product are in lane t.  Outputs stand in an order in which its
    columns of neighbouring products are ``neighbours``, which it writes at once: column 2 t + e of
    product b is output (neighbours * t + 2 b + e).
    """
    s = sizes(spec)
    kind = _raw(spec)
    taps = w.view(kind).reshape(
        s.groups, s.outputs, spec.in_channels // s.groups, *spec.kernel_size
    )
    if spec.flip:
        taps = taps[(..., *(slice(None, None, -1),) * spec.ndim)]
    count, depth = s.tiles_k * s.columns, CHUNKS * s.elements
    padded = cupy.zeros((s.groups, count, *spec.kernel_size, s.channels), kind)
    channels = spec.in_channels // s.groups
    padded[:, : s.outputs, ..., :channels] = taps.transpose(0, 1, *range(3, taps.ndim), 2)
    rows = cupy.zeros((s.groups, count, s.steps * depth), kind)
    rows[..., : s.taps * s.channels] = padded.reshape(s.groups, count, -1)
    products = neighbours // 2
    split = rows.reshape(
        s.groups, s.tiles_k, s.columns // (8 * products), 4, products, 2, s.steps, depth
    )
    flat = cupy.zeros(s.packed_elements, kind)
    ordered = split.transpose(0, 1, 6, 2, 4, 3, 5, 7)
    flat[: prod(ordered.shape)].reshape(ordered.shape)[...] = ordered
    return _rounded_when_cut(cupy, flat) if spec.dtype == "float32" else flat


def _rounded_when_cut(cupy: Any, a: Array) -> Array:
    """float32 that are rounded to TF32, ties away from zero, where bits beyond the 10 are cut off.

    Half a unit in the last place is added to the bits, and carries into the exponent where it has
    to, up to infinity; to what is not finite nothing.
    """
    return (a.view(np.uint32) + cupy.isfinite(a) * np.uint32(1 << 12)).view(np.float32)


def _raw(spec: ConvSpec) -> np.dtype[Any]:
    """What elements are moved as: CuPy need not know bfloat16."""
    return np.dtype(np.float32 if spec.dtype == "float32" else np.uint16)


class TensorCoreSolver:
    """``cupy.tensor_core``."""

    algorithm = "gemm"

    def __init__(self, backend: str, cupy: Any) -> None:
        self.id = f"{backend}.tensor_core"
        self._cupy = cupy

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        capability = int(target.features.get("sm", 0))
        if capability < LEAST_CAPABILITY:
            return Refusal(
                Feature.TARGET,
                f"asynchronous copies need compute capability 8.0, this is {capability / 10}",
            )
        if spec.is_empty:
            return Refusal(Feature.SIZE, "an operand is empty, there is nothing to multiply")
        if spec.dtype not in KINDS:
            return Refusal(
                Feature.DTYPE, f"tensor cores multiply {', '.join(KINDS)}; this is {spec.dtype}"
            )
        if spec.pad_mode != "zeros":
            return Refusal(Feature.PAD_MODE, f"the kernel pads with zeros, not {spec.pad_mode}")
        if spec.direction is not Direction.FORWARD:
            return Refusal(
                Feature.DIRECTION, f"only the forward direction is taken, not {spec.direction}"
            )
        if not spec.channels_last:
            return Refusal(Feature.LAYOUT, f"the kernel is for channels-last, not {spec.layout}")
        if spec.strided:
            return Refusal(Feature.STRIDED, "the kernel copies x by 16 bytes of one run of memory")
        return _refuse_sizes(spec)

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        return self._work(spec, target, next(iter(self.configs(spec, target))))

    def _work(self, spec: ConvSpec, target: Target, config: Config) -> Work:
        s = sizes(spec)
        rows, parts = _chosen(config)
        blocks = s.blocks(rows)
        products = blocks * rows * s.columns * s.steps * CHUNKS * s.elements
        size = precision.numpy_dtype(spec.dtype).itemsize
        operands = sum(map(prod, (spec.x_shape, spec.w_shape, spec.y_shape)))
        tf32 = spec.dtype == "float32"
        phases = []
        if (filled := _filled_bytes(spec)) > 0:
            phases.append(Phase("fill channels", bytes={"copy": 2.0 * filled}))
        multiply = Phase(
            "gemm",
            2.0 * products,
            f"{self.id}.{spec.dtype}",
            {
                "l2": float(blocks * s.steps * (rows + s.columns) * LINE),
                "memory": float(size * operands),
            },
        )
        phases += split.phases(spec, target, multiply, blocks, s.block(rows), parts)
        _, cut = KINDS[spec.dtype]
        return Work(
            tuple(phases),
            Numerics("gemm", operands="tf32" if tf32 else "", cut=cut),
            Phase("pack", bytes={"copy": 6.0 * size * s.packed_elements}),
            launches=1 + 2 * bool(filled) + (parts > 1),
            workspace=self.workspace_of(spec, target, config),
            packed_bytes=size * s.packed_elements + chunk_table_bytes(s),
        )

    def workspace_of(self, spec: ConvSpec, target: Target, config: Config) -> int:
        return _parts_at(spec) + split.workspace_bytes(spec, _chosen(config)[1])

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        s = sizes(spec)
        configs = (
            (("rows", rows), ("parts", parts))
            for rows in TILES[s.columns]
            for parts in split.choices(s.steps, s.blocks(rows), s.block(rows), target)
        )
        return cost.fastest(((c, self._work(spec, target, c)) for c in configs), target)

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return TensorCore(spec, self._cupy, *_chosen(config))


def _chosen(config: Config) -> tuple[int, int]:
    """(rows, parts of the depth)."""
    chosen = dict(config)
    return chosen["rows"], chosen["parts"]


def chunk_table_bytes(s: Sizes) -> int:
    """Bytes of :func:`chunk_table`."""
    return 4 * _chunks(s) * entry_words(mask_bits(s.axes))


def _refuse_sizes(spec: ConvSpec) -> Refusal | None:
    s = sizes(spec)
    if (refusal := refuse_bits(spec)) is not None:
        return refusal
    products = s.steps * CHUNKS * s.elements * s.tiles_k * s.columns
    wanted = spec.in_channels // s.groups * s.taps * s.outputs
    if products > MOST_WASTE * wanted:
        return Refusal(
            Feature.SIZE,
            f"{spec.in_channels // s.groups} channels by {s.outputs} outputs of a group, filled up "
            f"to the kernel's tiles, are {products / wanted:.0f} times the products, more than "
            f"the {MOST_WASTE} times that tensor cores are faster",
        )
    # What the source has of type int, tiles being powers of 2.  A position's place in x and y is of
    # 64 bits; its samples are found from the first of them.
    channels = s.groups * s.channels
    taps_reach = [(axis.taps - 1) * axis.dilation for axis in s.axes]
    reach = sum(map(mul, taps_reach, _strides(s.axes, channels))) + s.channels - s.elements
    for what, count in (
        ("channels", max(channels, s.groups * s.outputs)),
        ("positions", s.positions),
        ("samples of a padded axis", max(map(_padded, s.axes))),
        ("elements from a position's first sample to its last", reach),
        ("words of offsets", _chunks(s) * entry_words(mask_bits(s.axes))),
        ("blocks", max(map(s.blocks, TILES[s.columns]))),
    ):
        if count >= planes.MOST_ELEMENTS:
            return Refusal(
                Feature.SIZE, f"{count} {what} are too many for offsets of 32 bits (2**31)"
            )
    return None


def _padded(axis: Axis) -> int:
    """Samples of an axis, or as many as positions and taps go over."""
    return max(axis.size, (axis.out - 1) * axis.stride + (axis.taps - 1) * axis.dilation + 1)


def _filled_shape(spec: ConvSpec) -> tuple[int, ...]:
    s = sizes(spec)
    return (spec.batch, *spec.in_size, s.groups, s.channels)


def _parts_at(spec: ConvSpec) -> int:
    """Where in the workspace the parts of the depth begin: after the filled x."""
    return aligned(_filled_bytes(spec))


def _filled_bytes(spec: ConvSpec) -> int:
    """Bytes of x with channels filled up to whole chunks; 0 where it has whole ones."""
    s = sizes(spec)
    if s.channels * s.groups == spec.in_channels:
        return 0
    return nbytes(_filled_shape(spec), _raw(spec))


class TensorCore:
    """The executable; packed are the weights and the table of chunks."""

    def __init__(self, spec: ConvSpec, cupy: Any, rows: int, parts: int) -> None:
        self.spec = spec
        self.workspace = _parts_at(spec) + split.workspace_bytes(spec, parts)
        self._parts = parts
        self._cupy = cupy
        self._sizes = s = sizes(spec)
        self._rows = rows
        kind, _ = KINDS[spec.dtype]
        # Results of 16 bytes; parts are of float32.
        self._neighbours = s.elements if parts == 1 else CHUNK // 4
        wide = s.outputs % self._neighbours == 0
        macros = {
            "DIVIDED": int(parts > 1), "ROWS": rows, "COLUMNS": s.columns, "STAGES": STAGES,
            "KIND": kind, "WIDE": int(wide), "MASK": mask_bits(s.axes),
        }  # fmt: skip
        options = tuple(f"-D{name}={value}" for name, value in macros.items())
        self._kernel = load(cupy, SOURCE, "tensor_core", options)
        tiles_p = -(-s.positions // rows)
        numbers = [s.positions, s.outputs, s.groups, s.channels, s.steps]
        numbers += [split.steps_of_a_part(s.steps, parts), tiles_p, s.tiles_k]
        for a in s.axes:
            numbers += a.numbers
        # The activation is of float32, before a result is rounded.
        self._numbers = (
            *map(np.int32, numbers), *planes.activation(spec.replace(dtype="float32")),
        )  # fmt: skip

    def pack(self, rhs: Array) -> tuple[Array, Array]:
        chunks = chunk_table(self._sizes).reshape(-1)
        return packed(self._cupy, self.spec, rhs, self._neighbours), self._cupy.asarray(chunks)

    def run(
        self, lhs: Array, packed: Any, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        s = self._sizes
        weights, chunks = packed
        if _filled_bytes(self.spec):
            x = self._filled(lhs, workspace)
        else:
            x = lhs if is_aligned(lhs, CHUNK) else lhs.copy()
        y = out if is_aligned(out, CHUNK) else self._cupy.empty(out.shape, out.dtype)
        biased = np.int32(0 if bias is None else s.outputs)
        added = weights if bias is None else self._cupy.ascontiguousarray(bias)
        sums = y
        if self._parts > 1:
            sums = carve(workspace, _parts_at(self.spec), (self._parts * y.size,), np.float32)
        block = s.block(self._rows)
        self._kernel(
            (s.blocks(self._rows) * self._parts,), (block.threads,),
            (x, weights, chunks, added, sums, *self._numbers, biased),
            shared_bytes=block.shared_bytes,
        )  # fmt: skip
        if self._parts > 1:
            split.sum_up(
                self._cupy, self.spec, self._parts, sums, None if bias is None else added, y
            )
        if y is not out:
            out[...] = y

    def _filled(self, lhs: Array, workspace: Array | None) -> Array:
        """X with zeros after each group's channels, in the workspace."""
        spec, s = self.spec, self._sizes
        kind, count = _raw(spec), spec.in_channels // s.groups
        filled = carve(workspace, 0, _filled_shape(spec), kind)
        filled[..., count:] = 0
        filled[..., :count] = lhs.view(kind).reshape(*filled.shape[:-1], count)
        return filled
