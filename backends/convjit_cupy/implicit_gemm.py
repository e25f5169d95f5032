"""Implicit GEMM in CUDA C++: outputs by positions (of all images), summed over channels and taps.

The columns are never built: copies to shared memory gather them.  A table has, for every depth
(channel and tap), the offset of its sample from a position's first one, and the bits that say along
which axes it could lie outside; each position has a mask of the bits of which it does.  So a copy
costs one ``and``, which fills with zeros where it is not zero, and no division.

Where tiles are too few for the GPU, the depth is divided over blocks too (:mod:`.split`).

The kernel is ``implicit_gemm.cu``.  Copies of one step run while the step before is multiplied,
asynchronously on compute capability 8.0 and later.  A thread has 64 sums, a warp 32 outputs by 64
positions.  Where it multiplies and adds, they are 8 x 8: its lanes read eight neighbouring vectors
of samples and share the weights, which no bank is asked for twice (S. Chetlur et al., "cuDNN:
Efficient Primitives for Deep Learning", 2014, sec. 3; V. Volkov and J. Demmel, "Benchmarking GPUs
to Tune Dense Linear Algebra", SC 2008).

In double precision that takes eight loads for 64 multiply-adds; so from compute capability 8.0 on,
tensor cores multiply matrices of 8 x 4 by 4 x 8, or from 9.0 on of 16 x 4 (PTX ISA, "Matrix
Fragments for mma.m8n8k4 with .f64 floating point type"), in the same tiles, and rounded as
multiply-adds are.  Chips with two units of double precision a multiprocessor (8.6, 8.9, 12.0) are
bound by those either way: a product, of 256 multiply-adds, keeps a scheduler's half a unit busy
for 512 cycles.  For 12.0 the assembler fills them with NOPs, 38 a product, so that products are
2.5 % of the hottest loop's instructions, and 59 % of those that are no NOP; to each multiply-add of
32 lanes it adds 4, which would be 19 %.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from convjit import cost, planes, precision
from convjit.algorithms.workspace import carve
from convjit.occupancy import Block
from convjit.planes import LANES, OnPlanes, unsigned
from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Numerics, Phase, Refusal, Target, Work
from convjit_cupy import split
from convjit_cupy.axes import (
    MASKS,
    axes_of,
    entry_words,
    mask_bits,
    offsets_and_bits,
    refuse_bits,
    table,
)
from convjit_cupy.kernels import ACTIVATION, COPIES, is_aligned, load

Array = Any

REALS = {"float32": "float", "float64": "double"}
WIDE = 16  # bytes of the widest copy
EACH_K, EACH_P = 32, 64  # outputs and positions of a warp

# Warps of a block by (outputs, positions), largest first, and depths of a step.
TILES = {"float32": ((4, 2), (2, 1)), "float64": ((4, 1), (2, 1))}
DEPTH, STAGES = 16, 2
REGISTERS = {"float32": 124, "float64": 194}  # of a thread
LEAST_CAPABILITY = 80  # of tensor cores that multiply in double precision

_CU = Path(__file__).with_suffix(".cu").read_text(encoding="utf-8")
SOURCE = ACTIVATION + COPIES + MASKS + _CU


def _depths(spec: ConvSpec) -> int:
    """Channels times taps, filled up to whole steps."""
    return -(-(spec.in_channels // spec.groups) * prod(spec.kernel_size) // DEPTH) * DEPTH


def depth_table(spec: ConvSpec) -> Array:
    """Of each depth its offset, and the bits that no position may have that is to read it.

    Offsets wrap at 2^32; one that is read lies in x.  Words of four depths stand beside each other.
    """
    axes = z, y, x = axes_of(spec)
    mask = mask_bits(axes)
    exists, nowhere = np.uint64(1 << (mask - 2)), 1 << (mask - 1)
    channels = spec.in_channels // spec.groups
    index = np.indices((channels, z.taps, y.taps, x.taps)).reshape(4, -1)
    strides = (z.size * y.size * x.size, y.size * x.size, x.size, 1)
    offset, bits = offsets_and_bits(axes, tuple(index[1:]), strides[1:])
    offset += index[0] * strides[0]
    entries = table(offset, bits | exists, mask, _depths(spec), nowhere)
    return entries.reshape(-1, 4, entries.shape[1]).transpose(0, 2, 1)


@dataclass(frozen=True, slots=True)
class Tiling:
    """A problem in tiles of (outputs, positions)."""

    outputs: int
    positions: int
    tiles_k: int
    tiles_p: int
    blocks: int


def tiling(spec: ConvSpec, warps: tuple[int, int]) -> Tiling:
    """The tiles of a problem for blocks of so many warps."""
    outputs, positions = warps[0] * EACH_K, warps[1] * EACH_P
    tiles_k = -(-spec.out_channels // spec.groups // outputs)
    tiles_p = -(-spec.batch * prod(spec.out_size) // positions)
    return Tiling(outputs, positions, tiles_k, tiles_p, spec.groups * tiles_k * tiles_p)


def block_of(spec: ConvSpec, warps: tuple[int, int]) -> Block:
    """A block of so many warps, as a multiprocessor has to hold it."""
    itemsize = precision.numpy_dtype(spec.dtype).itemsize
    stage = DEPTH * (warps[0] * EACH_K + warps[1] * EACH_P) * itemsize
    return Block(prod(warps) * LANES, REGISTERS[spec.dtype], STAGES * stage)


def _packed_elements(spec: ConvSpec, tile: Tiling) -> int:
    return spec.groups * tile.tiles_k * _depths(spec) * tile.outputs


def _steps(spec: ConvSpec) -> int:
    return _depths(spec) // DEPTH


def _chosen(config: Config) -> tuple[tuple[int, int], int]:
    """(warps, parts of the depth)."""
    chosen = dict(config)
    return (chosen["warps_k"], chosen["warps_p"]), chosen["parts"]


class ImplicitGemmSolver:
    """``cupy.implicit_gemm``."""

    algorithm = "gemm"

    def __init__(self, backend: str, cupy: Any) -> None:
        self.id = f"{backend}.implicit_gemm"
        self._cupy = cupy

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        strided = "the kernel indexes x as one run of memory"
        if (refusal := planes.refuse(spec, tuple(REALS), strided, axes=3)) is not None:
            return refusal
        if (refusal := refuse_bits(spec)) is not None:
            return refusal
        tiles = (tiling(spec, warps) for warps in TILES[spec.dtype])
        return planes.refuse_size(max(_packed_elements(spec, tile) for tile in tiles))

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        return self._work(spec, target, next(iter(self.configs(spec, target))))

    def _work(self, spec: ConvSpec, target: Target, config: Config) -> Work:
        warps, parts = _chosen(config)
        tile, block = tiling(spec, warps), block_of(spec, warps)
        size = precision.numpy_dtype(spec.dtype).itemsize
        columns = float(tile.blocks * _depths(spec))
        packed = size * _packed_elements(spec, tile)
        multiply = Phase(
            "gemm",
            2.0 * columns * tile.outputs * tile.positions,
            f"{self.id}.{spec.dtype}",
            # A block reads weights and samples once; most of them lie in the cache.
            {
                "l2": columns * size * (tile.outputs + tile.positions),
                "memory": float(size * (prod(spec.x_shape) + prod(spec.y_shape))),
            },
        )
        return Work(
            split.phases(spec, target, multiply, tile.blocks, block, parts),
            Numerics("gemm"),
            Phase("pack", bytes={"memory": 4.0 * packed}),
            launches=2 if parts > 1 else 1,
            workspace=split.workspace_bytes(spec, parts),
            packed_bytes=packed + 4 * entry_words(mask_bits(axes_of(spec))) * _depths(spec),
        )

    def workspace_of(self, spec: ConvSpec, target: Target, config: Config) -> int:
        return split.workspace_bytes(spec, _chosen(config)[1])

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        configs = (
            (("warps_k", k), ("warps_p", p), ("parts", parts))
            for k, p in TILES[spec.dtype]
            for parts in split.choices(
                _steps(spec), tiling(spec, (k, p)).blocks, block_of(spec, (k, p)), target
            )
        )
        return cost.fastest(((c, self._work(spec, target, c)) for c in configs), target)

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        tensor = spec.dtype == "float64" and int(target.features.get("sm", 0)) >= LEAST_CAPABILITY
        warps, parts = _chosen(config)
        return ImplicitGemm(spec, self._cupy, warps, parts, tensor)


class ImplicitGemm(OnPlanes):
    """The executable; packed are the weights, tile by tile and depth by depth, and the table."""

    def __init__(
        self, spec: ConvSpec, cupy: Any, warps: tuple[int, int], parts: int, tensor: bool
    ) -> None:
        super().__init__(spec, cupy)
        self._warps, self._parts, self._tensor = warps, parts, tensor
        self.workspace = split.workspace_bytes(spec, parts)
        self._tile = tile = tiling(spec, warps)
        axes = axes_of(spec)
        pixels = prod(spec.out_size)
        self._arguments = (
            *unsigned(
                spec.batch * pixels, _steps(spec), split.steps_of_a_part(_steps(spec), parts),
                self.plane.outputs, spec.groups, self.plane.channels * prod(spec.in_size), pixels,
                tile.tiles_p, tile.tiles_k,
            ),
            *unsigned(*(number for axis in axes for number in axis.numbers)),
            *planes.activation(spec),
        )  # fmt: skip
        # Where the positions of an image are its samples, neighbours are copied together.
        self._vector = WIDE // self._kind.itemsize
        one_tap = all(a.taps == a.stride == 1 and a.size == a.out for a in axes)
        self._neighbours = one_tap and pixels % self._vector == 0

    def pack(self, rhs: Array) -> tuple[Array, Array]:
        p, tile = self.plane, self._tile
        taps = planes.grouped_taps(self.spec, rhs).reshape(p.groups, p.outputs, -1)
        depths = _depths(self.spec)
        filled = self.cupy.zeros((p.groups, tile.tiles_k * tile.outputs, depths), self._kind)
        filled[:, : p.outputs, : taps.shape[2]] = taps
        tiles = filled.reshape(p.groups, tile.tiles_k, tile.outputs, depths).transpose(0, 1, 3, 2)
        if self._tensor:
            # By four depths and warps, in the order of lanes 4 n + t and of what each loads:
            # (depths, t) and (warps, loads, products, n) become (depths, warps, loads, n, t,
            # products).
            split = (p.groups, tile.tiles_k, depths // 4, 4, self._warps[0], 2, 2, 8)
            tiles = tiles.reshape(split).transpose(0, 1, 2, 4, 5, 7, 3, 6)
        entries = self.cupy.asarray(depth_table(self.spec).reshape(-1))
        into = self.cupy.empty(tiles.shape, self._kind)
        into[...] = tiles
        return into.reshape(-1), entries

    def compute(
        self, x: Array, packed: Any, bias: Array, y: Array, workspace: Array | None
    ) -> None:
        together = self._neighbours and is_aligned(x, WIDE)
        macros = {
            "REAL": REALS[self.spec.dtype], "WARPS_K": self._warps[0], "WARPS_P": self._warps[1],
            "DEPTH": DEPTH, "TENSOR": int(self._tensor), "MASK": mask_bits(axes_of(self.spec)),
            "PIECE": self._vector if together else 1,
        }  # fmt: skip
        options = tuple(f"-D{name}={value}" for name, value in macros.items())
        kernel = load(self.cupy, SOURCE, "implicit_gemm", options)
        weights, entries = packed
        divided = self._parts > 1
        sums = carve(workspace, 0, (self._parts * y.size,), self._kind) if divided else y
        kernel(
            (self._tile.blocks * self._parts,), (prod(self._warps) * LANES,),
            (x, weights, entries, bias, sums, *self._arguments),
        )  # fmt: skip
        if divided:
            split.sum_up(self.cupy, self.spec, self._parts, sums, bias, y)
