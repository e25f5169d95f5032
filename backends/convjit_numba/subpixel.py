"""The transposed convolution by phases, channels first, on register tiles of pixels.

Samples of the result with the same remainder modulo the stride, a *phase*, meet the same taps and
consecutive samples of y (see :mod:`convjit_numba.transposed`): each phase is a convolution of y
with stride 1 and fewer taps, and the result interleaves them, a sub-pixel convolution (Shi et al.
2016, "Is the deconvolution layer the same as a convolutional layer?", section 2).

A task owns a block of periods of the stride in one plane of the result.  It copies the y that the
block meets, zero-padded, into its thread's workspace as :mod:`convjit_numba.direct` does, and sums
the phases of a row for a register tile of channels and pixels, one after the other, into a buffer;
from there they go to the result's rows interleaved.  Nothing is transposed on its way, in or out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from convjit.algorithms import adjoint
from convjit.algorithms.workspace import aligned
from convjit.precision import Numerics
from convjit.spec import ConvSpec, Direction
from convjit.spi import DEFAULT_CONFIG, Config, Executable, Feature, Refusal, Target, Work
from convjit_numba import cache, direct, pack, problem, targets, threads
from convjit_numba.executable import PanelExecutable, address
from convjit_numba.problem import Problem
from convjit_numba.subpixelkernel import build
from convjit_numba.targets import Tile
from convjit_numba.transposedplan import most_taps, periods, reach

# Cycles of the model: to write a vector of sums and to interleave it, for a register tile, to begin
# a row of the image, for each byte of it, and for a task.
WRITE = 3.5
TILE = 30.0
ROW = 4.0
BYTE = 0.0375
TASK = 200.0
PIXELS = 32.0  # bytes a cycle of pixels and results, which come from L3 or memory


# -------------------------------------------------------------------- phases


class Tap(NamedTuple):
    """A tap of a phase: its number along the axis, and from which sample of y on it reads."""

    number: int
    shift: int


@lru_cache(maxsize=1024)
def axis_phases(p: Problem, axis: int) -> tuple[tuple[Tap, ...], ...]:
    """The taps of each phase along an axis."""
    n, m, k = p.size[axis], p.out[axis], p.kernel[axis]
    stride, lo, dilation = p.stride[axis], p.pad[axis], p.dilation[axis]
    return tuple(
        tuple(Tap(t, (phase.first + lo - t * dilation) // stride) for t in phase.taps)
        for phase in adjoint.phases(n, m, k, stride, lo, dilation)
    )


def _extra(p: Problem, axis: int) -> int:
    """Samples of y that a block of periods meets beyond as many as it has."""
    first, last = reach(p, axis)
    return last - first


def _deepest(p: Problem) -> int:
    """The most planes of y that a plane of the result meets."""
    return most_taps(p)[0]


# -------------------------------------------------------------------- blocking


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops, see the kernel; ``cycles`` is the model's for all tasks together."""

    tile: Tile
    rows: int
    cols: int
    task_panels: int
    pass_panels: int
    flat: bool
    tasks: int
    cycles: float
    makespan: float


@lru_cache(maxsize=1024)
def blocking(p: Problem, isa: str, cores: int, config: Config = DEFAULT_CONFIG) -> Blocking:
    """The blocking whose modelled time on ``cores`` threads is least, as far as it is free."""
    tile = targets.tile_of(isa, p.dtype, config)
    wanted = problem.wanted_tasks(config, partial(blocking, p, isa, cores))
    blocks, lag = problem.blocks_of(p.dtype), targets.lag(isa)
    candidates = targets.tiles(isa, p.dtype) if tile is None else (tile,)
    _, high, wide = periods(p)
    phases = [len(axis_phases(p, axis)) for axis in range(3)]
    of_task = phases[1] * phases[2]
    depth = p.kg * p.taps / prod(phases)  # products of a result, on average
    extra_h, extra_w = _extra(p, 1), _extra(p, 2)
    units = p.batch * p.groups * p.size[0]
    arriving = problem.arriving(p, isa, PIXELS)
    best: Blocking | None = None
    for t in candidates:
        panels = -(-p.cg // t.mr)
        if t is not candidates[-1] and tile is None and t.mr >= 2 * p.cg:
            continue
        products = depth * targets.tile_cycles(t, isa) + lag * (WRITE * t.mr * t.nv + TILE)
        per_panel = t.mr * p.kg * p.taps / phases[0] * p.bytes
        pass_panels = max(1, int(blocks.weights / per_panel))
        for rows, cols, flat, tiles, spatial in direct.divisions(high, wide, extra_w, t):
            pitch = cols + extra_w
            image = p.kg * _deepest(p) * (rows + extra_h) * pitch
            miss = 1.0 if image * p.bytes <= blocks.image else 1.05
            few = units * spatial < 4 * cores
            for task_panels in targets.splits(panels, panels if few else 1):
                tasks = units * spatial * -(-panels // task_panels)
                if not targets.is_about(tasks, wanted):
                    continue
                filling = ROW * image / pitch + BYTE * image * p.bytes
                kept = min(task_panels * t.mr, p.cg) * of_task * rows * cols
                cycles = tiles * task_panels * of_task * products * miss
                cycles += lag * (filling + TASK) + (image + kept) * p.bytes / arriving
                makespan = targets.makespan(tasks, tasks * cycles, cycles, cores)
                if best is None or makespan < best.makespan:
                    best = Blocking(
                        t, rows, cols, task_panels, min(pass_panels, task_panels), flat, tasks,
                        cycles * tasks, makespan,
                    )  # fmt: skip
    return blocking(p, isa, cores) if best is None else best


def _strides(p: Problem, b: Blocking) -> tuple[int, int, int]:
    """Numbers from row to row, from plane to plane and from channel to channel of the image."""
    pitch = b.cols + _extra(p, 2)
    plane = (b.rows + _extra(p, 1)) * pitch
    return pitch, plane, plane * _deepest(p)


def _places(p: Problem, b: Blocking) -> dict[str, int]:
    """Where the regions of a thread's workspace begin, and ``bytes``, all of it.

    Bias, sums of the phases of a row and the vectors that are merged last, the copy of y.
    """
    t = b.tile
    at_buffer = aligned(t.mr * p.bytes)
    merged = len(axis_phases(p, 2)) * t.mr * t.nr
    if problem.gathered_step(p.stride[2]):
        merged = p.stride[2] * (t.mr * t.nr + 2 * t.vl)
    at_slab = at_buffer + aligned(merged * p.bytes)
    # The last register tile of a run may load one tile's width beyond the pixels.
    image = (p.kg * _strides(p, b)[2] + t.nr) * p.bytes
    return {"at_buffer": at_buffer, "at_slab": at_slab, "bytes": at_slab + aligned(image)}


def _tables(p: Problem, b: Blocking) -> tuple[np.ndarray[Any, Any], tuple[int, ...]]:
    """Bytes from a period's place in the image to its y, for each step of each phase; and words.

    The words tell of each depth phase how many planes of y it meets and where they lie; then of
    each phase where its offsets begin, its products, and where its weights begin.
    """
    pitch, plane, slice_ = _strides(p, b)
    deep, high, wide = (axis_phases(p, axis) for axis in range(3))
    first_h, first_w = reach(p, 1)[0], reach(p, 2)[0]
    words: list[int] = []
    for planes in deep:
        shifts = [tap.shift for tap in planes]
        words += [len(planes), *shifts, *[0] * (_deepest(p) - len(planes))]
    channels = np.arange(p.kg)[:, None] * slice_
    parts, begin = [], 0
    places = pack.phase_places(p, b.tile.mr, phase_taps(p))
    for phase, weights in zip(product(deep, high, wide), places, strict=True):
        taps = [
            j * plane + (down.shift - first_h) * pitch + right.shift - first_w
            for j in range(len(phase[0])) for down in phase[1] for right in phase[2]
        ]  # fmt: skip
        part = (channels + np.array(taps)) * p.bytes
        parts.append(part.astype(np.int32).reshape(-1))
        words += [begin * 4, part.size, weights * p.bytes]
        begin += part.size
    return np.concatenate(parts), tuple(words)


@lru_cache(maxsize=1024)
def phase_taps(p: Problem) -> tuple[tuple[int, ...], ...]:
    """The numbers of the taps of each phase, in the order in which they are summed."""
    _, kh, kw = p.kernel
    axes = (axis_phases(p, axis) for axis in range(3))
    return tuple(
        tuple((z.number * kh + y.number) * kw + x.number for z, y, x in product(*phase))
        for phase in product(*axes)
    )


# -------------------------------------------------------------------- the solver


class Subpixel:
    """Register tiles of pixels by phases of the stride, channels first."""

    id = "numba.subpixel"
    algorithm = "direct"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if not spec.computes_input:
            return Refusal(Feature.OTHER, "computes transposed convolutions alone")
        refusal = problem.refuse(spec.replace(direction=Direction.FORWARD))
        if refusal is not None:
            return refusal
        p = Problem.of(spec)
        if p.stride == (1, 1, 1):
            return Refusal(Feature.OTHER, "with stride 1 it is a forward problem")
        if not all(all(axis_phases(p, axis)) for axis in range(3)):
            return Refusal(Feature.OTHER, "some samples of the result meet no tap")
        b = blocking(p, problem.isa_of(target), target.cores)
        if _places(p, b)["bytes"] > problem.MAX_SLOT:
            return Refusal(Feature.SIZE, "what one block of the result reads exceeds 1 GiB")
        return None

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p, isa = Problem.of(spec), problem.isa_of(target)
        b = blocking(p, isa, target.cores)
        slots = min(target.cores, b.tasks)
        wakes = problem.wakes_helpers(target, p, isa, b.cycles, slots)
        packed = pack.phase_shape(p, b.tile.mr)[0] * p.bytes
        return problem.work(
            self.algorithm, p, b.tile, packed,
            cycles=b.makespan * target.cores if wakes else b.cycles,
            streamed=b.tasks * b.task_panels * b.tile.mr * p.kg * p.taps * p.bytes,
            workspace=threads.slots_bytes(slots, _places(p, b)["bytes"]),
            wakes=wakes,
            numerics=Numerics("direct"),
            family="subpixel",
        )  # fmt: skip

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        p, isa = Problem.of(spec), problem.isa_of(target)
        return problem.configs(targets.tiles(isa, p.dtype), partial(blocking, p, isa, target.cores))

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        p, isa = Problem.of(spec), problem.isa_of(target)
        b = blocking(p, isa, target.cores, config)
        step = problem.gathered_step(p.stride[2])
        kernel = cache.function(
            f"subpixel.{targets.SHORT[p.dtype]}.{b.tile}.{step}", 7,
            partial(build, targets.BITS[p.dtype], *b.tile, step),
        )  # fmt: skip
        offsets, words = _tables(p, b)
        places = _places(p, b)
        slot_bytes = places.pop("bytes")
        pitch, plane, slice_ = _strides(p, b)
        slots = min(target.cores, b.tasks)
        seconds = b.cycles / problem.cycles_per_second(target, p.dtype, isa)
        panels = -(-p.cg // b.tile.mr)
        _, high, wide = periods(p)
        geometry = problem.pack_geometry(
            p.geometry()
            | problem.activation_fields(spec)
            | places
            | {
                "tasks": b.tasks,
                "grain": targets.grain(b.tasks, slots, seconds),
                "slot_bytes": slot_bytes,
                "panels": panels,
                "task_panels": b.task_panels,
                "task_splits": -(-panels // b.task_panels),
                "pass_panels": b.pass_panels,
                "offsets": address(offsets),
                "rows": b.rows,
                "cols": b.cols,
                "hblocks": -(-high // b.rows),
                "wblocks": -(-wide // b.cols),
                "pitch": pitch,
                "plane": plane,
                "slice": slice_,
                "phases_h": len(axis_phases(p, 1)),
                "phases_w": len(axis_phases(p, 2)),
                "extra_h": _extra(p, 1),
                "extra_w": _extra(p, 2),
                "first_h": reach(p, 1)[0],
                "first_w": reach(p, 2)[0],
                "deep": _deepest(p),
                "flat": int(b.flat),
            },
            words,
        )
        return PanelExecutable(
            kernel, pack.phase_packer(p, b.tile.mr, phase_taps(p)), geometry, (offsets,),
            slots=slots, slot_bytes=slot_bytes, seconds=seconds,
        )  # fmt: skip
