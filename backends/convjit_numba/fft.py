"""Convolution by fast Fourier transforms: overlap-save in tiles that stay in cache.

The method is that of :mod:`convjit.algorithms.fft`; :mod:`convjit_numba.fftkernel` says how a tile
is transformed, :mod:`convjit_numba.fftplan` which tiles there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from math import prod
from typing import Any

import numpy as np

from convjit.algorithms import cooley_tukey
from convjit.precision import COMPLEX, Numerics, numpy_dtype
from convjit.spec import ConvSpec
from convjit.spi import (
    DEFAULT_CONFIG,
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
from convjit_numba.fftplan import MAX_LENGTH, PAIRS, Signal, Tiling, tiling

# -------------------------------------------------------------------- tables


@lru_cache(maxsize=64)
def _stage_table(n: int, dtype: str) -> tuple[np.ndarray[Any, Any], ...]:
    """A transform's stages as the kernels read them, and what they refer to."""
    radices = cooley_tukey.factors(n)
    assert radices is not None
    kind = numpy_dtype(dtype)
    table, factors = [], []
    for s in cooley_tukey.stages(radices):
        factors.append(_parts(cooley_tukey.twiddles(s), kind))
        table.append((*s, address(factors[-1])))
    return np.array(table, np.int64), *factors


@lru_cache(maxsize=16)
def _twist(rows: int, cols: int, lanes: int, dtype: str) -> np.ndarray[Any, Any]:
    """The factors between the columns and the rows of a line, laid out like a tile."""
    radices = cooley_tukey.factors(rows)
    assert radices is not None
    order = cooley_tukey.frequencies(radices)
    factors = cooley_tukey.roots(order[:, None] * np.arange(cols), rows * cols)
    blocks = factors.reshape(rows, cols // lanes, lanes)
    return np.stack((blocks.real, blocks.imag), 2).astype(dtype)


def _parts(values: np.ndarray[Any, Any], kind: Any) -> np.ndarray[Any, Any]:
    return np.stack((values.real, values.imag), -1).astype(kind)


# -------------------------------------------------------------------- the solver

# Of the modelled cycles, what volumes take: 0.65 to 1.05 on those of 20 to 100 a side, with 1 to 16
# channels.
VOLUMES = 0.8
PACKED = 2.2  # times the cycles of a transform that packing takes for each kernel


class Fft:
    """Overlap-save, real and complex; any padding, dilation and groups; stride 1."""

    id = "numba.fft"
    algorithm = "fft"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        refusal = problem.refuse(spec, also=COMPLEX)
        if refusal is not None:
            return refusal
        if prod(spec.kernel_size) == 1:
            return Refusal(Feature.SIZE, "a kernel of one tap gains nothing from a transform")
        if set(spec.stride) != {1}:
            return Refusal(Feature.STRIDE, "transforms give neighbouring outputs: stride 1")
        signal = Signal.of(spec)
        if signal.p.kernel[0] == 1 and signal.p.size[0] > 1:
            return Refusal(Feature.NDIM, "takes images that a kernel does not span one by one")
        t = tiling(signal, problem.isa_of(target), target.cores)
        if t is None:
            return Refusal(Feature.SIZE, f"the kernel spans more than {MAX_LENGTH} samples an axis")
        return None

    def _tiling(self, spec: ConvSpec, target: Target, config: Config = ()) -> Tiling:
        pairs = dict(config).get("pairs", 0)
        found = tiling(Signal.of(spec), problem.isa_of(target), target.cores, pairs)
        assert found is not None
        return found

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        signal, isa = Signal.of(spec), problem.isa_of(target)
        p, t = signal.p, self._tiling(spec, target)
        slots = min(target.cores, t.tasks)
        wakes = problem.wakes_helpers(target, p, isa, t.cycles, slots)
        # The model's cycles as the multiply-adds that fit into them, threads without work included.
        flops = 4.0 * t.lanes * (t.makespan * target.cores if wakes else t.cycles)
        shape = t.shape
        if shape.depth > 1:
            flops *= VOLUMES
        packed = prod(t.spectra_shape(p)) * p.bytes
        one = shape.transform_cycles(t.lanes, problem.caches()["l1"], p.bytes)
        pack = PACKED * 4.0 * t.lanes * one * p.groups * p.kg * p.cg
        rate = f"numba.fft.{p.dtype}"
        phases = problem.phases(
            {
                ("transforms", rate): 1 - t.products,
                ("products", f"numba.fft.multiply.{p.dtype}"): t.products,
            },
            flops,
            {"memory": p.traffic["memory"] * signal.parts},
        )
        # Results are written with nothing to hide it, when a tile is transformed back.
        results = float(prod(spec.result_shape) * p.bytes * signal.parts)
        return Work(
            (*phases, Phase("results", bytes=problem.by_level(results))),
            Numerics("fft", shape.lengths, spreads_nonfinite=True),
            Phase("pack", pack, rate, {"memory": float(packed)}),
            launches=int(wakes),
            workspace=threads.slots_bytes(slots, t.slot(p.cg, p.kg)["slot_bytes"]),
            packed_bytes=packed,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        yield DEFAULT_CONFIG
        p = Signal.of(spec).p
        if p.cg > 1 or p.kg > 1:
            units = self._tiling(spec, target).units
            yield from ((("pairs", n),) for n in PAIRS if n == 1 or n < units)

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        signal, isa = Signal.of(spec), problem.isa_of(target)
        p, t = signal.p, self._tiling(spec, target, config)
        bits = targets.BITS[p.dtype]
        name = _name(signal, t)
        kernel = cache.function(name, 7, partial(_build, bits, t.lanes, signal.parts))
        rows, cols = t.shape.rows, t.shape.cols
        column_table, row_table = _stage_table(rows, p.dtype), _stage_table(cols, p.dtype)
        depth_table = _stage_table(t.shape.depth, p.dtype) if t.shape.depth > 1 else ()
        keep = (*column_table, *row_table, *depth_table)
        twist = 0
        if t.shape.line:
            keep = (*keep, _twist(rows, cols, t.lanes, p.dtype))
            twist = address(keep[-1])
        slots = min(target.cores, t.tasks)
        seconds = t.cycles / problem.cycles_per_second(target, p.dtype, isa)
        fields = t.slot(p.cg, p.kg)
        geometry = problem.pack_geometry(
            p.geometry()
            | problem.activation_fields(spec)
            | fields
            | {
                "tasks": t.tasks,
                "grain": targets.grain(t.tasks, slots, seconds),
                "panels": t.panels,
                "panel_rows": t.panel_rows,
                "task_panels": t.task_panels,
                "task_splits": -(-t.panels // t.task_panels),
                "rows": rows,
                "cols": cols,
                "pitch": t.pitch,
                "line_bytes": t.line_bytes,
                "dblocks": t.counts[0],
                "hblocks": t.counts[1],
                "wblocks": t.counts[2],
                "line": int(t.shape.line),
                "tile_d": t.outputs[0],
                "tile_h": t.outputs[1],
                "tile_w": t.outputs[2],
                "planes": t.shape.depth,
                "plane_bytes": t.plane_bytes,
                "tile_bytes": t.tile_bytes,
                "units": t.units,
                "task_pairs": t.task_pairs,
                "pair_blocks": -(-t.units // (signal.per_tile * t.task_pairs)),
                "column_stages": address(column_table[0]),
                "column_count": len(column_table[0]),
                "row_stages": address(row_table[0]),
                "row_count": len(row_table[0]),
                "depth_stages": address(depth_table[0]) if depth_table else 0,
                "depth_count": len(depth_table[0]) if depth_table else 0,
                "twist": twist,
            }
        )
        packer = _Packer(signal, t, geometry, seconds / max(1, t.units * (p.cg + p.kg)))
        return PanelExecutable(
            kernel, packer, geometry, keep,
            slots=slots, slot_bytes=fields["slot_bytes"], seconds=seconds,
        )  # fmt: skip


def _name(signal: Signal, t: Tiling) -> str:
    kind = targets.SHORT[signal.p.dtype]
    return f"fft.{kind if signal.parts == 1 else f'complex.{kind}'}.{t.lanes}"


def _build(bits: int, lanes: int, parts: int) -> Callable[..., None]:
    from convjit_numba.fftkernel import build

    return build(bits, lanes, parts)


def _build_pack(bits: int, lanes: int, parts: int) -> Callable[..., None]:
    from convjit_numba.fftkernel import build_pack

    return build_pack(bits, lanes, parts)


class _Packer:
    """Weights to spectra, divided by the number of points."""

    __slots__ = (
        "_bytes",
        "_count",
        "_geometry",
        "_kernel",
        "_kind",
        "_scale",
        "_seconds",
        "_shape",
    )

    def __init__(
        self, signal: Signal, t: Tiling, geometry: np.ndarray[Any, Any], seconds: float
    ) -> None:
        p = signal.p
        build = partial(_build_pack, targets.BITS[p.dtype], t.lanes, signal.parts)
        self._kernel = cache.function(_name(signal, t).replace("fft", "fftpack"), 7, build)
        self._geometry = geometry
        self._kind = numpy_dtype(p.dtype)
        self._shape = t.spectra_shape(p)
        self._bytes = t.line_bytes + t.tile_bytes
        self._scale = np.array([1.0 / t.shape.points], self._kind)
        self._count = p.groups * p.kg * p.cg
        self._seconds = seconds * self._count

    def __call__(self, weights: Array) -> Array:
        whole = self._count == prod(self._shape[:2]) * self._shape[4] * self._shape[5]
        packed = (empty if whole else np.zeros)(self._shape, self._kind)
        count = min(num_threads(), self._count)
        scratch = np.empty(count * self._bytes + 64, np.uint8)
        start = address(scratch)
        threads.run(
            self._kernel,
            (
                address(self._geometry), address(weights), address(packed), address(self._scale),
                start + -start % 64, self._bytes,
            ),
            count,
            self._seconds,
        )  # fmt: skip
        return packed
