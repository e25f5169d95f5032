"""Implicit GEMM: the matrix of columns is made in panels, a block at a time, and never whole.

A task owns a block of output pixels of one image and group.  For a block of channels it gathers
the pixels that each (channel, tap) reads into panels ``(depth, NR)`` in its thread's workspace, so
that the register tile reads them consecutively and no surplus column is computed; then the panels
of weights pass over them.  A 1x1 convolution of stride 1 is a plain GEMM on the image as it lies.

The loops are those of Goto and van de Geijn (2008, "Anatomy of high-performance matrix
multiplication", section 4): depth in blocks of ``kc``, a panel of pixels (``kc * NR``) in L1, the
other panels of the task and a block of weights in L2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from convjit.precision import Numerics
from convjit.spec import ConvSpec
from convjit.spi import DEFAULT_CONFIG, Config, Executable, Feature, Refusal, Target, Work
from convjit_numba import cache, pack, problem, targets
from convjit_numba.problem import FIELD, PanelExecutable, Problem, Scratch
from convjit_numba.targets import Tile


def build(bits: int, mr: int, nv: int, vl: int) -> Callable[..., None]:
    """The kernel for one register tile (imports numba)."""
    from numba import njit

    from convjit_numba.microkernel import (
        OPTIONS,
        atomic_add,
        edge,
        load_int,
        move_real,
        move_vectors,
        padded_row,
        register_tile,
        zero_bytes,
    )

    size = bits // 8
    nr = nv * vl
    bias_at = Scratch(0, Tile(mr, nv, vl), size).bias
    panels_at = Scratch(0, Tile(mr, nv, vl), size).pixels
    f = dict(FIELD)
    TASKS, GRAIN, SLOT_BYTES, GROUPS, CG, KG = (
        f["tasks"], f["grain"], f["slot_bytes"], f["groups"], f["cg"], f["kg"],
    )  # fmt: skip
    D, H, W, OH, OW = f["d"], f["h"], f["w"], f["oh"], f["ow"]
    KD, KH, KW, SD, SH, SW = f["kd"], f["kh"], f["kw"], f["sd"], f["sh"], f["sw"]
    PD, PH, PW, DD, DH, DW = f["pd"], f["ph"], f["pw"], f["dd"], f["dh"], f["dw"]
    CBLOCK, CBLOCKS, PANELS = f["cblock"], f["cblocks"], f["panels"]
    TASK_PANELS, TASK_SPLITS, PASS_PANELS = f["task_panels"], f["task_splits"], f["pass_panels"]
    ACTIVATION, SLOPES = f["activation"], f["slope0"]
    PIXELS, TASK_PIXELS, PIXEL_BLOCKS = f["pixels"], f["task_pixels"], f["pixel_blocks"]

    @njit(**OPTIONS)
    def columns(g, panel, x, count, first, pixels):
        """One panel: what ``count`` channels and all taps read for ``pixels`` outputs."""
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        kd, kh, kw = load_int(g + KD), load_int(g + KH), load_int(g + KW)
        sd, sh, sw = load_int(g + SD), load_int(g + SH), load_int(g + SW)
        pd, ph, pw = load_int(g + PD), load_int(g + PH), load_int(g + PW)
        dd, dh, dw = load_int(g + DD), load_int(g + DH), load_int(g + DW)
        oh, ow = load_int(g + OH), load_int(g + OW)
        line = first // ow
        col = first - line * ow
        done = 0
        while done < pixels:
            # One output row's share of the panel.
            length = min(pixels - done, ow - col)
            z = line // oh
            row0 = (line - z * oh) * sh - ph
            z0 = z * sd - pd
            col0 = col * sw - pw
            vectors = length == nr and sw == 1
            target = panel + done * size
            for c in range(count):
                for tz in range(kd):
                    depth = z0 + tz * dd
                    for ty in range(kh):
                        row = row0 + ty * dh
                        inside = 0 <= depth < d and 0 <= row < h
                        source = x + ((c * d + depth) * h + row) * w * size
                        for tx in range(kw):
                            start = col0 + tx * dw
                            if not inside:
                                zero_bytes(target, length * size)
                            elif vectors and start >= 0 and start + nr <= w:
                                move_vectors(bits, vl, nv, target, source + start * size)
                            else:
                                padded_row(bits, target, source, w, start, sw, length)
                            target += nr * size
            done += length
            line += 1
            col = 0

    def kernel(g, x, weights, bias, y, workspace, control):
        tasks, grain = load_int(g + TASKS), load_int(g + GRAIN)
        groups, cg, kg = load_int(g + GROUPS), load_int(g + CG), load_int(g + KG)
        channel = load_int(g + D) * load_int(g + H) * load_int(g + W) * size
        taps = load_int(g + KD) * load_int(g + KH) * load_int(g + KW)
        cblock, cblocks, panels = load_int(g + CBLOCK), load_int(g + CBLOCKS), load_int(g + PANELS)
        task_panels, task_splits = load_int(g + TASK_PANELS), load_int(g + TASK_SPLITS)
        pass_panels, activation = load_int(g + PASS_PANELS), load_int(g + ACTIVATION)
        all_pixels, task_pixels = load_int(g + PIXELS), load_int(g + TASK_PIXELS)
        pixel_blocks = load_int(g + PIXEL_BLOCKS)
        ldc = all_pixels * size
        slot = 0
        if control != 0:
            slot = atomic_add(control + 64, 1)
        edges = workspace + slot * load_int(g + SLOT_BYTES)
        first = 0
        while True:
            if control != 0:
                first = atomic_add(control, grain)
            if first >= tasks:
                break
            last = min(first + grain, tasks)
            for task in range(first, last):
                split = task % task_splits
                rest = task // task_splits
                unit = rest // pixel_blocks  # image and group
                group = unit % groups
                p0 = (rest - unit * pixel_blocks) * task_pixels
                pixels = min(task_pixels, all_pixels - p0)
                panel_end = min((split + 1) * task_panels, panels)
                for block in range(cblocks):
                    begin = block * cblock
                    count = min(cblock, cg - begin)
                    kc = count * taps
                    source = x + (unit * cg + begin) * channel
                    for p in range(0, pixels, nr):
                        columns(g, edges + panels_at + p * kc * size, source, count, p0 + p,
                                min(nr, pixels - p))  # fmt: skip
                    wblock = weights + (group * panels * cg + begin) * taps * mr * size
                    is_last = block == cblocks - 1
                    kind = activation if is_last else 0
                    accumulate = 1 if block > 0 else 0
                    low = split * task_panels
                    while low < panel_end:
                        high = min(low + pass_panels, panel_end)
                        for p in range(0, pixels, nr):
                            here = min(nr, pixels - p)
                            b = edges + panels_at + p * kc * size
                            for panel in range(low, high):
                                k = panel * mr
                                a = wblock + panel * cg * taps * mr * size
                                c = y + (unit * kg + k) * ldc + (p0 + p) * size
                                add = 0
                                if is_last and bias != 0:
                                    add = bias + (group * kg + k) * size
                                if here == nr and k + mr <= kg:
                                    register_tile(
                                        bits, mr, nv, vl, 0, kc, a, b, nr * size,
                                        c, ldc, accumulate, add, kind, g + SLOPES,
                                    )  # fmt: skip
                                    continue
                                rows = min(mr, kg - k)
                                if add != 0:
                                    for i in range(rows):
                                        move_real(bits, edges + bias_at + i * size, add + i * size)
                                    add = edges + bias_at
                                if accumulate != 0:
                                    edge(bits, nr, 1, edges, c, ldc, rows, 0, 0, 1, here, nr, 0)
                                register_tile(
                                    bits, mr, nv, vl, 0, kc, a, b, nr * size,
                                    edges, nr * size, accumulate, add, kind, g + SLOPES,
                                )  # fmt: skip
                                edge(bits, nr, 0, edges, c, ldc, rows, 0, 0, 1, here, nr, 0)
                        low = high
            if control == 0:
                first = last

    return kernel


# -------------------------------------------------------------------- blocking


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops, see :func:`build`; ``cycles`` is the model's for all tasks together."""

    tile: Tile
    cblock: int
    task_pixels: int
    task_panels: int
    pass_panels: int
    tasks: int
    cycles: float
    makespan: float


def flatten(p: Problem) -> Problem:
    """A 1x1 problem of stride 1 without padding as one long row: every panel is contiguous."""
    if p.taps == 1 and p.stride == (1, 1, 1) and p.size == p.out and p.pad == (0, 0, 0):
        return replace(p, size=(1, 1, p.pixels), out=(1, 1, p.pixels), dilation=(1, 1, 1))
    return p


@lru_cache(maxsize=1024)
def blocking(p: Problem, isa: str, cores: int, tile: Tile | None = None) -> Blocking:
    """The blocking whose modelled time on ``cores`` threads is least."""
    p = flatten(p)
    blocks = problem.blocks_of(p.dtype)
    parts = max(1, -(-p.depth // blocks.depth))
    cblock = -(-p.cg // min(parts, p.cg))
    cblocks = -(-p.cg // cblock)
    units = p.batch * p.groups
    best: Blocking | None = None
    for t in targets.tiles(isa, p.dtype) if tile is None else (tile,):
        panels = -(-p.kg // t.mr)
        step = targets.tile_cycles(t) + 0.2
        # Cycles that gathering one number costs: vectors, rows of several numbers, single numbers.
        gather = 0.25 if p.out[2] >= 4 * t.nr else 0.8
        gather = gather if p.stride[2] == 1 else 1.2
        pass_panels = max(1, blocks.weights // (t.mr * cblock * p.taps * p.bytes))
        strips = -(-p.pixels // t.nr)
        most = max(1, blocks.image // (t.nr * cblock * p.taps * p.bytes))
        for task_strips in targets.splits(strips, strips, most):
            spatial = -(-strips // task_strips)
            for task_panels in targets.splits(panels, panels if units * spatial < 4 * cores else 1):
                parts_k = -(-panels // task_panels)
                tasks = units * spatial * parts_k
                compute = task_strips * task_panels * (p.depth * step + cblocks * 40)
                # Weights come from L3, some 10 bytes a cycle, once per task.
                stream = task_panels * t.mr * p.depth * p.bytes / 10
                filled = task_strips * t.nr * p.depth
                cycles = compute + filled * gather + stream * 0.5 + 300
                makespan = cycles * (-(-tasks // cores) + (0.15 if cores > 1 else 0.0))
                if best is None or makespan < best.makespan:
                    best = Blocking(
                        t, cblock, task_strips * t.nr, task_panels, min(pass_panels, task_panels),
                        tasks, cycles * tasks, makespan,
                    )  # fmt: skip
    assert best is not None
    return best


def _scratch(p: Problem, b: Blocking) -> Scratch:
    return Scratch(b.task_pixels * b.cblock * p.taps * p.bytes, b.tile, p.bytes)


# -------------------------------------------------------------------- the solver


class Gemm:
    """Implicit GEMM over panels of columns, any kernel, stride, dilation and groups."""

    id = "numba.gemm"
    algorithm = "gemm"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        refusal = problem.refuse(spec)
        if refusal is not None:
            return refusal
        p = Problem.of(spec)
        b = blocking(p, problem.isa_of(target), target.cores)
        if _scratch(p, b).bytes > problem.MAX_SLOT:
            return Refusal(Feature.SIZE, "the columns of one channel exceed 1 GiB")
        return None

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p = Problem.of(spec)
        b = blocking(p, problem.isa_of(target), target.cores)
        weights = int(np.prod(pack.packed_shape(p, b.tile.mr))) * p.bytes
        isa = problem.isa_of(target)
        slots = min(target.cores, b.tasks)
        wakes = problem.wakes_helpers(target, p, isa, b.cycles, slots)
        return problem.work(
            self.algorithm, p, b.tile, weights,
            cycles=b.makespan * target.cores if wakes else b.cycles,
            streamed=b.tasks * b.task_panels * b.tile.mr * p.depth * p.bytes,
            workspace=slots * _scratch(p, b).bytes,
            wakes=wakes,
            numerics=Numerics("gemm"),
        )  # fmt: skip

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        yield DEFAULT_CONFIG
        for tile in targets.tiles(problem.isa_of(target), spec.dtype):
            yield (("mr", tile.mr), ("nv", tile.nv))

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        b = blocking(p, isa, target.cores, targets.tile_of(isa, p.dtype, config))
        tile, bits = b.tile, targets.BITS[p.dtype]
        kernel = cache.function(
            f"gemm.{targets.SHORT[p.dtype]}.{tile}", 7, partial(build, bits, *tile)
        )
        slots = min(target.cores, b.tasks)
        slot_bytes = _scratch(p, b).bytes
        seconds = b.cycles / problem.cycles_per_second(target, p.dtype, isa)
        panels = -(-p.kg // tile.mr)
        geometry = problem.pack_geometry(
            flatten(p).geometry()
            | problem.activation_fields(spec)
            | {
                "tasks": b.tasks,
                "grain": targets.grain(b.tasks, slots, seconds),
                "slot_bytes": slot_bytes,
                "cblock": b.cblock,
                "cblocks": -(-p.cg // b.cblock),
                "panels": panels,
                "task_panels": b.task_panels,
                "task_splits": -(-panels // b.task_panels),
                "pass_panels": b.pass_panels,
                "pixels": p.pixels,
                "task_pixels": b.task_pixels,
                "pixel_blocks": -(-p.pixels // b.task_pixels),
            }
        )
        return PanelExecutable(
            kernel, pack.packer(p, tile.mr), geometry, (),
            slots=slots, slot_bytes=slot_bytes, seconds=seconds,
        )  # fmt: skip
