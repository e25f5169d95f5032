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

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from typing import Any

import numpy as np

from convjit.algorithms.workspace import aligned
from convjit.precision import Numerics
from convjit.spec import ConvSpec, Direction
from convjit.spi import DEFAULT_CONFIG, Config, Executable, Feature, Refusal, Target, Work
from convjit_numba import cache, pack, problem, targets, taskloop, threads
from convjit_numba.executable import PanelExecutable, address
from convjit_numba.problem import FIELD, Problem
from convjit_numba.targets import Tile

MAX_FLAT_COLUMNS = 512
# Cycles of the model: to write a vector of sums and to interleave it, for a register tile, to begin
# a row of the image, for each byte of it, and for a task.
WRITE = 3.5
TILE = 30.0
ROW = 4.0
BYTE = 0.0375
TASK = 200.0
PIXELS = 32.0  # bytes a cycle of pixels and results, which come from L3 or memory


def build(bits: int, mr: int, nv: int, vl: int, step: int) -> Callable[..., None]:
    """The kernel for one register tile (imports numba).

    ``step`` is the stride along a row where phases are interleaved by shuffles, else 0.
    """
    from numba import njit

    from convjit_numba.memory import (
        copy_bytes,
        interleave_vectors,
        load_int,
        move_real,
        zero_bytes,
    )
    from convjit_numba.microkernel import register_tile
    from convjit_numba.pixeltile import row_gatherer
    from convjit_numba.vectorcode import OPTIONS

    size = bits // 8
    nr = nv * vl
    sums = mr * nr * size  # bytes of a phase's
    vector_step = max(step, 1)
    tail = 8 * len(FIELD)
    f = dict(FIELD)
    CG, KG, GROUPS, D, H, W = f["cg"], f["kg"], f["groups"], f["d"], f["h"], f["w"]
    OD, OH, OW, SD, SH, SW = f["od"], f["oh"], f["ow"], f["sd"], f["sh"], f["sw"]
    PANELS, TASK_PANELS, TASK_SPLITS = f["panels"], f["task_panels"], f["task_splits"]
    PASS_PANELS, ACTIVATION, SLOPES = f["pass_panels"], f["activation"], f["slope0"]
    ROWS, COLS, HBLOCKS, WBLOCKS = f["rows"], f["cols"], f["hblocks"], f["wblocks"]
    PITCH, PLANE, SLICE, FLAT = f["pitch"], f["plane"], f["slice"], f["flat"]
    PHASES_H, PHASES_W, OFFSETS = f["phases_h"], f["phases_w"], f["offsets"]
    EXTRA_H, EXTRA_W, FIRST_H, FIRST_W = f["extra_h"], f["extra_w"], f["first_h"], f["first_w"]
    DEEP, AT_BIAS, AT_BUFFER, AT_SLAB = f["deep"], f["at_bias"], f["at_buffer"], f["at_slab"]

    gather_row = row_gatherer(bits, vl, 1)

    @njit(**OPTIONS)
    def fill(g, image, y, z, r0, rows, c0, cols):
        """The part of y that periods (r0, c0) on of plane z meet, and zeros around it."""
        od, oh, ow, kg = load_int(g + OD), load_int(g + OH), load_int(g + OW), load_int(g + KG)
        pitch, plane, slice_ = load_int(g + PITCH), load_int(g + PLANE), load_int(g + SLICE)
        high, wide = rows + load_int(g + EXTRA_H), cols + load_int(g + EXTRA_W)
        row0, col0 = r0 + load_int(g + FIRST_H), c0 + load_int(g + FIRST_W)
        sd = load_int(g + SD)
        shifts = g + tail + z % sd * (1 + load_int(g + DEEP)) * 8
        met = load_int(shifts)
        for k in range(kg):
            for j in range(met):
                deep = z // sd + load_int(shifts + 8 * (1 + j))
                target = image + (k * slice_ + j * plane) * size
                start = y + (k * od + deep) * oh * ow * size
                for r in range(high):
                    row = row0 + r
                    if 0 <= row < oh and 0 <= deep < od:
                        gather_row(target, start + row * ow * size, col0, ow, 1, wide)
                    else:
                        zero_bytes(target, wide * size)
                    # Tiles read beyond a smaller block; what old memory holds there may be so
                    # small that products with it take a hundred times as long.
                    if wide < pitch:
                        zero_bytes(target + wide * size, (pitch - wide) * size)
                    target += pitch * size
                rest = plane - high * pitch
                if rest > 0:
                    zero_bytes(target, min(rest, nr) * size)
        zero_bytes(image + kg * slice_ * size, nr * size)

    @njit(**OPTIONS)
    def interleave(target, source, spare, stride, count):
        """``count`` numbers of a row, each ``stride`` of them from as many phases' sums."""
        if step == 0:
            for j in range(count):
                place = j // stride
                move_real(bits, target + j * size, source + (j - place * stride) * sums
                          + place * size)  # fmt: skip
            return
        done = 0
        while done + vector_step * vl <= count:
            interleave_vectors(bits, vl, vector_step, target, source, sums)
            target += vector_step * vl * size
            source += vl * size
            done += vector_step * vl
        if done < count:
            interleave_vectors(bits, vl, vector_step, spare, source, sums)
            copy_bytes(target, spare, (count - done) * size)

    @njit(**OPTIONS)
    def leave(g, buffer, spare, into, channels, row, row_end, high, col, cols, wide):
        """The sums of a tile to one row of each of its periods.

        The tile begins at period (``row``, ``col``) of the block, whose periods end before
        ``row_end`` and ``cols``; the result has ``high`` periods with such a row from the block's
        first on, and ``wide`` numbers in a row.
        """
        pitch, sw, w = load_int(g + PITCH), load_int(g + SW), load_int(g + W)
        down = load_int(g + SH) * w * size
        channel = load_int(g + D) * load_int(g + H) * w * size
        done = 0
        while done < nr and row < min(row_end, high):
            count = min(nr - done, cols - col)
            if count > 0:
                there = into + row * down + col * sw * size
                numbers = min(count * sw, wide - col * sw)
                for i in range(channels):
                    interleave(there + i * channel, buffer + (i * nr + done) * size, spare, sw,
                               numbers)  # fmt: skip
            done += pitch - col
            row += 1
            col = 0

    @njit(**OPTIONS)
    def start(g, mine):
        # Vectors that are merged reach beyond the sums.
        zero_bytes(mine + load_int(g + AT_BUFFER), load_int(g + AT_SLAB) - load_int(g + AT_BUFFER))

    @njit(**OPTIONS)
    def run_task(g, y, weights, bias, x, mine, task):
        groups, cg, kg = load_int(g + GROUPS), load_int(g + CG), load_int(g + KG)
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        sh, sw = load_int(g + SH), load_int(g + SW)
        panels, task_panels = load_int(g + PANELS), load_int(g + TASK_PANELS)
        task_splits, pass_panels = load_int(g + TASK_SPLITS), load_int(g + PASS_PANELS)
        phases_h, phases_w = load_int(g + PHASES_H), load_int(g + PHASES_W)
        offsets, flat, pitch = load_int(g + OFFSETS), load_int(g + FLAT), load_int(g + PITCH)
        hblocks, wblocks = load_int(g + HBLOCKS), load_int(g + WBLOCKS)
        sd, deep, activation = load_int(g + SD), load_int(g + DEEP), load_int(g + ACTIVATION)
        added, buffer = mine + load_int(g + AT_BIAS), mine + load_int(g + AT_BUFFER)
        image = mine + load_int(g + AT_SLAB)
        spare = image - vector_step * vl * size
        split = task % task_splits
        rest = task // task_splits
        c0 = rest % wblocks * load_int(g + COLS)
        rest //= wblocks
        r0 = rest % hblocks * load_int(g + ROWS)
        rest //= hblocks
        z = rest % d
        unit = rest // d  # image and group
        group = unit % groups
        rows = min(load_int(g + ROWS), (h + sh - 1) // sh - r0)
        cols = min(load_int(g + COLS), (w + sw - 1) // sw - c0)
        runs, length = rows, cols
        if flat != 0:
            runs, length = 1, (rows - 1) * pitch + cols
        y += unit * kg * load_int(g + OD) * load_int(g + OH) * load_int(g + OW) * size
        fill(g, image, y, z, r0, rows, c0, cols)
        corner = x + ((unit * cg * d + z) * h * w + r0 * sh * w + c0 * sw) * size
        # Of each phase: where its offsets begin, its products, where its weights begin.
        table = g + tail + (min(sd, d) * (1 + deep) + z % sd * phases_h * phases_w * 3) * 8
        panel_end = min((split + 1) * task_panels, panels)
        low = split * task_panels
        while low < panel_end:
            high = min(low + pass_panels, panel_end)
            for run in range(runs):
                row_end = rows if flat != 0 else run + 1
                for p in range(0, length, nr):
                    place = run * pitch + p
                    row = place // pitch
                    col = place - row * pitch
                    pixels = image + place * size
                    for panel in range(low, high):
                        k = panel * mr
                        count = min(mr, cg - k)
                        add = 0
                        if bias != 0:
                            add = added
                            copy_bytes(added, bias + (group * cg + k) * size, count * size)
                        for a in range(phases_h):
                            entry = table + a * phases_w * 24
                            into = corner + k * d * h * w * size + a * w * size
                            last = (h - a + sh - 1) // sh - r0
                            for b in range(phases_w):
                                kc = load_int(entry + 8)
                                packed = load_int(entry + 16)
                                packed += (group * panels + panel) * kc * mr * size
                                register_tile(
                                    bits, mr, nv, vl, 1, kc, weights + packed, pixels,
                                    offsets + load_int(entry), buffer + b * sums, nr * size, 0,
                                    add, activation, g + SLOPES,
                                )  # fmt: skip
                                entry += 24
                            leave(g, buffer, spare, into, count, row, row_end, last, col, cols,
                                  w - c0 * sw)  # fmt: skip
            low = high

    return taskloop.build(run_task, start)


# -------------------------------------------------------------------- phases


@dataclass(frozen=True, slots=True)
class Tap:
    """A tap of a phase: its number along the axis, and from which sample of y on it reads."""

    number: int
    shift: int


@lru_cache(maxsize=1024)
def axis_phases(p: Problem, axis: int) -> tuple[tuple[Tap, ...], ...]:
    """The taps of each phase along an axis."""
    stride, pad, dilation = p.stride[axis], p.pad[axis], p.dilation[axis]
    phases = []
    for phase in range(min(stride, p.size[axis])):
        places = [(t, phase + pad - t * dilation) for t in range(p.kernel[axis])]
        phases.append(tuple(Tap(t, at // stride) for t, at in places if at % stride == 0))
    return tuple(phases)


def reach(p: Problem, axis: int) -> tuple[int, int]:
    """The first and the last sample of y, from that of its own number, that a period meets."""
    shifts = [tap.shift for taps in axis_phases(p, axis) for tap in taps]
    return min(shifts), max(shifts)


def _extra(p: Problem, axis: int) -> int:
    """Samples of y that a block of periods meets beyond as many as it has."""
    first, last = reach(p, axis)
    return last - first


def _deepest(p: Problem) -> int:
    """The most planes of y that a plane of the result meets."""
    return max(map(len, axis_phases(p, 0)))


# -------------------------------------------------------------------- blocking


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops, see :func:`build`; ``cycles`` is the model's for all tasks together."""

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
    high, wide = (-(-n // s) for n, s in zip(p.size[1:], p.stride[1:], strict=True))
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
        for cols in targets.splits(wide, 1 + wide // (2 * t.nr)):
            if cols > MAX_FLAT_COLUMNS and wide // cols < 12 and high > 1:
                continue
            pitch = cols + extra_w
            for rows in targets.splits(high, high):
                image = p.kg * _deepest(p) * (rows + extra_h) * pitch
                flat_tiles = -(-((rows - 1) * pitch + cols) // t.nr)
                row_tiles = rows * -(-cols // t.nr)
                tiles = min(flat_tiles, row_tiles)
                spatial = -(-high // rows) * -(-wide // cols)
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
                            t, rows, cols, task_panels, min(pass_panels, task_panels),
                            flat_tiles < row_tiles, tasks, cycles * tasks, makespan,
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
    return {
        "at_bias": 0, "at_buffer": at_buffer, "at_slab": at_slab, "bytes": at_slab + aligned(image),
    }  # fmt: skip


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
    for phase, weights in zip(_products(deep, high, wide), places, strict=True):
        taps = [
            j * plane + (down.shift - first_h) * pitch + right.shift - first_w
            for j in range(len(phase[0])) for down in phase[1] for right in phase[2]
        ]  # fmt: skip
        part = (channels + np.array(taps)) * p.bytes
        parts.append(part.astype(np.int32).reshape(-1))
        words += [begin * 4, part.size, weights * p.bytes]
        begin += part.size
    return np.concatenate(parts), tuple(words)


def _products(*axes: Any) -> list[tuple[Any, ...]]:
    """One of each axis, the last changing first."""
    found: list[tuple[Any, ...]] = [()]
    for axis in axes:
        found = [(*before, one) for before in found for one in axis]
    return found


@lru_cache(maxsize=1024)
def phase_taps(p: Problem) -> tuple[tuple[int, ...], ...]:
    """The numbers of the taps of each phase, in the order in which they are summed."""
    _, kh, kw = p.kernel
    axes = (axis_phases(p, axis) for axis in range(3))
    return tuple(
        tuple((z.number * kh + y.number) * kw + x.number for z, y, x in _products(*phase))
        for phase in _products(*axes)
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
        if not all(phase_taps(p)):
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
        high, wide = (-(-n // s) for n, s in zip(p.size[1:], p.stride[1:], strict=True))
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
