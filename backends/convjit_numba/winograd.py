"""Winograd convolution F(m, r), fused: transform, multiply and transform back a block of tiles.

A task owns a block of tiles and a range of panels of output channels.  It transforms the block's
data once, lanes being channels, then takes one panel after another: a matrix product for each of
the tile's points (rows are tiles, lanes are output channels), and the output transform while the
products are still in cache (A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural
Networks", CVPR 2016, section 4.1; the order of the loops follows Z. Jia, A. Zlateski, F. Durand and
K. Li, "Optimizing N-dimensional, Winograd-based Convolution for Manycore CPUs", PPoPP 2018, section
4.3).  Channels-last images are transformed as they lie; channels-first rows are transposed into
vectors of channels on their way in and back on their way out, so that both layouts share the code.

1-D to 3-D: an axis with one tap is not transformed, the others each have their F(m, r).

Along a dilated axis every d-th sample meets every d-th other one only, so that the outputs of a
tile are d samples apart, as are those it reads: d problems without dilation, which alternate.
Their tiles alternate, too; transposed rows serve all tiles of a ``unit``, whose first samples are
neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import prod
from typing import Any

import numpy as np

from convjit.algorithms.workspace import aligned
from convjit.precision import Numerics, numpy_dtype
from convjit.spec import ConvSpec
from convjit.spi import (
    Array,
    Config,
    Executable,
    Feature,
    Phase,
    Refusal,
    Target,
    Work,
    empty,
    num_threads,
)
from convjit_numba import cache, problem, targets, threads
from convjit_numba.executable import PanelExecutable, address
from convjit_numba.problem import Axes, Problem
from convjit_numba.targets import Tile
from convjit_numba.winogradplan import Blocking, Slot, best_tile, blocking, tile_of, unit_of

# Kinds of transforms, as in convjit_numba.winogradcode (which imports numba).
KINDS = {"data": 0, "output": 1, "taps": 2}

PACKED = 2.5  # how often a byte of transformed weights moves until it is packed


class Winograd:
    """``numba.winograd.f4x3`` and the like: m outputs of up to r taps per axis.

    ``numba.winograd.fmx3`` chooses m by itself, for each axis.
    """

    algorithm = "winograd"

    def __init__(self, m: int | None, r: int) -> None:
        self.id = f"numba.winograd.f{'m' if m is None else m}x{r}"
        self._m = m
        self._r = r

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        refusal = problem.refuse(spec, channels_last=True)
        if refusal is not None:
            return refusal
        if set(spec.stride) != {1}:
            return Refusal(Feature.STRIDE, "outputs of a tile are neighbours: stride 1")
        smallest = 2 if self._r == 3 else 4
        if not smallest <= max(spec.kernel_size) <= self._r:
            taps = "x".join(map(str, spec.kernel_size))
            return Refusal(
                Feature.SIZE,
                f"F({self._m or 'm'}, {self._r}) takes {smallest} to {self._r} taps on its longest "
                f"axis, not {taps}",
            )
        p = Problem.of(spec)
        unit = 1 if spec.channels_last else unit_of(p.dilation[2])
        if p.cg * 1024 * unit * p.bytes > problem.MAX_SLOT:
            return Refusal(Feature.SIZE, "the tiles of a task exceed 1 GiB")
        return None

    def _blocking(self, spec: ConvSpec, target: Target, config: Config = ()) -> Blocking:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        if self._m is not None:
            outputs = tile_of(p.kernel, self._m)
        else:
            outputs = best_tile(p, spec.channels_last, isa)
        return blocking(p, outputs, spec.channels_last, isa, target.cores, config)

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        b = self._blocking(spec, target)
        slots = min(target.cores, b.tasks)
        wakes = problem.wakes_helpers(target, p, isa, b.cycles, slots)
        weights = prod(_packed_shape(p, b)) * p.bytes
        # The model's cycles as the multiply-adds that fit into them, threads without work included.
        cycles = b.makespan * target.cores if wakes else b.cycles
        phases = problem.phases(
            {
                ("transforms", f"numba.winograd.transform.{p.dtype}"): 1 - b.products,
                ("products", f"numba.winograd.{p.dtype}"): b.products,
            },
            cycles * 4 * b.tile.vl,
            p.traffic,
        )
        # Results are written when a panel's products are done, with nothing to hide it: the lines
        # are read and written.
        results = 2.0 * prod(spec.result_shape) * p.bytes
        return Work(
            (*phases, Phase("results", bytes=problem.by_level(results))),
            Numerics("winograd", tile=b.m[3 - spec.ndim :], spreads_nonfinite=True),
            problem.pack_phase(p, weights, PACKED),
            launches=int(wakes),
            workspace=threads.slots_bytes(slots, Slot(b, p.cg, p.bytes).fields["slot_bytes"]),
            packed_bytes=weights,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        tiles = targets.row_tiles(problem.isa_of(target), spec.dtype)
        return problem.configs(tiles, partial(self._blocking, spec, target))

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        b = self._blocking(spec, target, config)
        tile, bits = b.tile, targets.BITS[p.dtype]
        last = spec.channels_last
        name = f"winograd.{targets.SHORT[p.dtype]}.{tile.vl}.{'last' if last else 'first'}"
        kernel = cache.function(name, 7, partial(_build, bits, tile.vl, last))
        md, mh, mw = b.m
        nd, nh, nw = b.n
        fields = Slot(b, p.cg, p.bytes).fields
        slots = min(target.cores, b.tasks)
        seconds = b.cycles / problem.cycles_per_second(target, p.dtype, isa)
        panels = -(-p.kg // tile.nr)
        tiles = p.batch * prod(b.counts)
        geometry = problem.pack_geometry(
            p.geometry()
            | problem.activation_fields(spec)
            | fields
            | {
                "tasks": b.tasks,
                "grain": targets.grain(b.tasks, slots, seconds),
                "panels": panels,
                "task_panels": b.task_panels,
                "task_splits": -(-panels // b.task_panels),
                "md": md, "mh": mh, "mw": mw, "nd": nd, "nh": nh, "nw": nw,
                "points": b.points,
                "unit": b.unit,
                "tile_rows": tile.mr,
                "tile_columns": tile.nr,
                "data_code": _transform(p, b, "data", 7),
                "output_code": _transform(p, b, "output", 10),
                "rows_code": row_tiles(bits, tile).address,
                "tiles_d": b.counts[0],
                "tiles_h": b.counts[1],
                "tiles_w": b.counts[2],
                "tiles": tiles,
                "task_tiles": b.task_tiles,
                "tile_blocks": -(-tiles // b.task_tiles),
            }
        )  # fmt: skip
        return PanelExecutable(
            kernel, _Packer(p, b), geometry, (),
            slots=slots, slot_bytes=fields["slot_bytes"], seconds=seconds,
        )  # fmt: skip


def _transform(p: Problem, b: Blocking, kind: str, arguments: int) -> int:
    """Address of the transform of data, outputs or taps of one tile."""
    axes = "-".join(f"{m}x{r}" for m, r in zip(b.m, b.r, strict=True))
    name = f"winograd.{kind}.{targets.SHORT[p.dtype]}.{b.tile.vl}.f{axes}"
    build = partial(_build_transform, targets.BITS[p.dtype], b.tile.vl, KINDS[kind], b.m, b.r)
    return int(cache.function(name, arguments, build).address)


def row_tiles(bits: int, tile: Tile) -> Any:
    """The kernel of 1 to ``mr`` rows of a row tile, for other kernels to call."""
    return cache.function(f"winograd.rows.f{bits}.{tile}", 8, partial(_build_rows, bits, tile))


# The modules of kernels import numba, which only compiling needs.


def _build(bits: int, vl: int, channels_last: bool) -> Callable[..., None]:
    from convjit_numba.winogradkernel import build

    return build(bits, vl, channels_last)


def _build_transform(bits: int, vl: int, kind: int, m: Axes, r: Axes) -> Callable[..., None]:
    from convjit_numba.winogradkernel import build_transform

    return build_transform(bits, vl, kind, m, r)


def _build_rows(bits: int, tile: Tile) -> Callable[..., None]:
    from convjit_numba.winogradkernel import build_rows

    return build_rows(bits, *tile)


def _build_pack(bits: int, vl: int) -> Callable[..., None]:
    from convjit_numba.winogradkernel import build_pack

    return build_pack(bits, vl)


def _packed_shape(p: Problem, b: Blocking) -> tuple[int, int, int, int, int]:
    """(groups, panels, points, channels, nr)."""
    return p.groups, -(-p.kg // b.tile.nr), b.points, p.cg, b.tile.nr


class _Packer:
    """Weights to points, ``G w`` along every axis, in panels."""

    __slots__ = ("_arguments", "_bytes", "_dtype", "_kernel", "_seconds", "_shape")

    def __init__(self, p: Problem, b: Blocking) -> None:
        vl = b.tile.vl
        name = f"winograd.pack.{targets.SHORT[p.dtype]}.{vl}"
        self._kernel = cache.function(name, 14, partial(_build_pack, targets.BITS[p.dtype], vl))
        self._dtype = numpy_dtype(p.dtype)
        self._shape = _packed_shape(p, b)
        vector = vl * p.bytes
        # Transposed taps of a block of channels stay in L1.
        block = max(1, min(p.cg, (16 << 10) // (p.taps * vector)))
        fold = aligned(b.n[1] * b.n[2] * b.r[0] * vector) if b.n[0] > 1 else 0
        self._bytes = fold + aligned(block * p.taps * vector)
        self._arguments = (
            p.groups, p.kg, p.cg, block, p.taps, b.points, b.tile.nr,
            _transform(p, b, "taps", 4), fold,
        )  # fmt: skip
        self._seconds = prod(self._shape) * 0.25e-9

    def __call__(self, weights: Array) -> Array:
        packed = empty(self._shape, self._dtype)
        count = num_threads()
        scratch = np.empty(count * self._bytes, np.uint8)
        places = (address(weights), address(packed))
        arguments = (*places, *self._arguments, address(scratch), self._bytes)
        threads.run(self._kernel, arguments, count, self._seconds)
        return packed
