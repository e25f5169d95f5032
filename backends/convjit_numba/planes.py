"""Convolution of planes: every output plane is a sum over few input planes.

Depthwise layers, images and signals have no channels to sum over, so the only products that share
a load are those of neighbouring output rows, and lanes are output columns.  The tile is that of
:mod:`convjit_numba.planetile`.  Tiles that lie inside read the input where it is; those that meet
the border read it with lanes masked off or, where the machine has no masked loads or the border is
not zeros, through a padded copy of their own input.

How dilated layers, signals and kernels as large as their image come down to such tiles is told in
:mod:`convjit_numba.planeplan`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import prod

from convjit.algorithms.workspace import aligned
from convjit.precision import Numerics
from convjit.spec import ConvSpec, Direction
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
)
from convjit_numba import cache, problem, targets, taskloop, threads
from convjit_numba.executable import PanelExecutable
from convjit_numba.planeplan import (
    PAD_MODES,
    Blocking,
    Code,
    blocking,
    candidates,
    fields,
    tables,
)
from convjit_numba.problem import FIELD, Problem

MAX_CHANNELS = 4  # input planes of one output plane; with more, channels share loads better
EVERY_ROW = 1 << 30
# Tiles that are worth measuring beside the model's choice: so many, up to so many times its time.
OFFERED, HOPEFUL = 6, 1.6
AGAIN = 0.25  # part of what is read from L3 for one output plane after the other that nothing hides


def build(code: Code) -> Callable[..., None]:
    """The kernel for one tile (imports numba)."""
    from numba import njit

    from convjit_numba.memory import copy_bytes, load_int, zero_bytes
    from convjit_numba.planetile import SEGMENT, border_index, bordered_row, plane_tile, store_rows
    from convjit_numba.vectorcode import OPTIONS

    slot_of, take = taskloop.sharing()
    bits, rows, nv, vl, kh, kw, down, across, held, masks, fold = code
    size = bits // 8
    nr = nv * vl
    block_cols = rows * nr if fold else nr
    step_rows = 1 if fold else rows
    f = dict(FIELD)
    TASKS, GRAIN, SLOT_BYTES, GROUPS, CG, KG = (
        f["tasks"], f["grain"], f["slot_bytes"], f["groups"], f["cg"], f["kg"],
    )  # fmt: skip
    D, H, W, OD, OH, OW, KD = f["d"], f["h"], f["w"], f["od"], f["oh"], f["ow"], f["kd"]
    SD, SH, SW, PD, PH, PW, DD, DH, DW = (
        f["sd"], f["sh"], f["sw"], f["pd"], f["ph"], f["pw"], f["dd"], f["dh"], f["dw"],
    )  # fmt: skip
    KERNEL, ACTIVATION, SLOPES = f["kernel"], f["activation"], f["slope0"]
    ROW_BLOCKS, COL_BLOCKS, APART = f["row_blocks"], f["col_blocks"], f["apart"]
    SPAN, DEEP, MODE, SWAPPED, IN_PLACE = (
        f["span"], f["deep"], f["mode"], f["swapped"], f["in_place"],
    )  # fmt: skip
    WROW, WCOL, TABLE, BUFFER_TABLE, PER_DEPTH = (
        f["wrow"], f["wcol"], f["table"], f["buffer_table"], f["per_depth"],
    )  # fmt: skip
    PITCH, STEP, BUFFER_PITCH, BUFFER_STEP, WIDE, PHASES, ALL_ROWS = (
        f["pitch"], f["step"], f["buffer_pitch"], f["buffer_step"], f["wide"], f["phases_w"],
        f["all_rows"],
    )  # fmt: skip
    image_at = aligned(rows * nr * size)

    @njit(**OPTIONS)
    def ceil_div(a, b):
        return a if b == 1 else (a + b - 1) // b

    @njit(**OPTIONS)
    def fill(g, buffer, image, t_low, t_high, z, row_base, col_base):
        """The padded input of one tile, its columns split by their residues where it loops."""
        d, h, w, cg = load_int(g + D), load_int(g + H), load_int(g + W), load_int(g + CG)
        sd, sw, pd, dd = load_int(g + SD), load_int(g + SW), load_int(g + PD), load_int(g + DD)
        dh, dw, mode = load_int(g + DH), load_int(g + DW), load_int(g + MODE)
        wide, phases, deep = load_int(g + WIDE), load_int(g + PHASES), load_int(g + DEEP)
        stride = sw if kh == 0 else 1
        target = buffer + t_low * cg * phases * deep * wide * size
        for t in range(t_low, t_high):
            zt = z * sd - pd + t * dd
            if mode != 0:
                zt = border_index(mode, zt, d)
            for c in range(cg):
                source = image + (c * d + zt) * h * w * size
                for phase in range(phases):
                    col = col_base + phase * dw % stride
                    for u in range(deep):
                        row = row_base + u * dh
                        if mode != 0:
                            row = border_index(mode, row, h)
                        if 0 <= row < h:
                            start = source + row * w * size
                            bordered_row(bits, mode, target, start, w, col, stride, wide)
                        else:
                            zero_bytes(target, wide * size)
                        target += wide * size

    def kernel(g, x, weights, bias, y, workspace, control):
        tasks, grain = load_int(g + TASKS), load_int(g + GRAIN)
        cg, kg = load_int(g + CG), load_int(g + KG)
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        od, oh, ow, kd = load_int(g + OD), load_int(g + OH), load_int(g + OW), load_int(g + KD)
        sd, sh, sw = load_int(g + SD), load_int(g + SH), load_int(g + SW)
        pd, ph, pw = load_int(g + PD), load_int(g + PH), load_int(g + PW)
        dd, dh, dw = load_int(g + DD), load_int(g + DH), load_int(g + DW)
        kernel_bytes, activation = load_int(g + KERNEL), load_int(g + ACTIVATION)
        row_blocks, col_blocks = load_int(g + ROW_BLOCKS), load_int(g + COL_BLOCKS)
        apart, span, deep = load_int(g + APART), load_int(g + SPAN), load_int(g + DEEP)
        mode, swapped, in_place = load_int(g + MODE), load_int(g + SWAPPED), load_int(g + IN_PLACE)
        wrow, wcol = load_int(g + WROW), load_int(g + WCOL)
        table, per_depth = load_int(g + TABLE), load_int(g + PER_DEPTH)
        pitch, step = load_int(g + PITCH), load_int(g + STEP)
        outputs = load_int(g + GROUPS) * kg
        image_bytes = cg * d * h * w * size
        ldy = nr * size if fold else apart * ow * size
        # Where a plane is one tile, the next plane's tile is the same but for its addresses.
        single = kg == 1 and od * row_blocks * col_blocks == 1
        scratch = workspace + slot_of(control) * load_int(g + SLOT_BYTES)
        buffer = scratch + image_at
        first, last, turn = take(control, tasks, grain, 0)
        while first < last:
            col_block = first % col_blocks
            rest = first // col_blocks
            row_block = rest % row_blocks
            rest //= row_blocks
            z = rest % od
            plane = rest // od  # image and output channel
            k = plane % outputs
            done = first
            while done < last:
                unit = plane if kg == 1 else plane // kg  # image and group
                image, weight = x + unit * image_bytes, weights + k * kernel_bytes
                if swapped != 0:
                    # The last sample of the image is the first weight.
                    image = weights + k * image_bytes
                    weight = x + (unit + 1) * kernel_bytes - size
                add = 0 if bias == 0 else bias + k * size
                # Rows: the last block of a class begins so that it ends with the class.
                r0 = row_block * step_rows
                if apart == 1:
                    r0 = min(r0, oh - step_rows)
                else:
                    place = row_block % apart
                    count = (oh - place + apart - 1) // apart
                    r0 = place + apart * min(row_block // apart * step_rows, count - step_rows)
                c0 = col_block * block_cols
                valid = min(ow - c0, block_cols)
                row_base, col_base = r0 * sh - ph, c0 * sw - pw
                # Both within 0 .. deep: where padding is wider than the kernel, a tile may lie
                # above or below the image altogether.
                low, high = 0, max(0, min(deep, ceil_div(h - row_base, dh)))
                if row_base < 0:
                    low = min(deep, ceil_div(-row_base, dh))
                t_low, t_high = 0, kd
                z_base = z * sd - pd
                if z_base < 0:
                    t_low = min(kd, ceil_div(-z_base, dd))
                if z_base + (kd - 1) * dd >= d:
                    t_high = max(t_low, ceil_div(d - z_base, dd))
                plain = in_place != 0 and col_base >= 0 and col_base + span <= w
                if mode != 0:
                    plain = plain and low == 0 and high == deep and t_low == 0 and t_high == kd
                if fold:
                    low, high = 0, EVERY_ROW
                out = y + (((plane * od + z) * oh + r0) * ow + c0) * size
                there = image + ((z_base * h + row_base) * w + col_base) * size
                segments, count = table + t_low * per_depth * SEGMENT, t_high - t_low
                down_bytes, tap_bytes, row_bytes, to = pitch, step, ldy, out
                whole, repeat = valid == block_cols, 1
                if masks != 0 and in_place != 0 and mode == 0 and not (plain and whole):
                    if single:
                        repeat = min(last - done, outputs - k)
                    for _ in range(repeat):
                        plane_tile(
                            bits, rows, nv, vl, kh, kw, down, across, held, 1,
                            there, pitch, step, segments, count * per_depth, weight, wrow, wcol,
                            low, high, col_base, dw, w, valid, out, ldy,
                            add, activation, g + SLOPES,
                        )  # fmt: skip
                        there += image_bytes
                        weight += kernel_bytes
                        out += oh * ow * size
                        if bias != 0:
                            add += size
                else:
                    if not (plain and whole):
                        if mode != 0:
                            t_low, count, low, high = 0, kd, 0, EVERY_ROW
                        if load_int(g + ALL_ROWS) != 0:
                            low, high = 0, EVERY_ROW
                        fill(g, buffer, image, t_low, t_low + count, z, row_base, col_base)
                        there = buffer
                        segments = load_int(g + BUFFER_TABLE) + t_low * per_depth * SEGMENT
                        down_bytes, tap_bytes = (
                            load_int(g + BUFFER_PITCH),
                            load_int(g + BUFFER_STEP),
                        )
                        if not whole:
                            to, row_bytes = scratch, nr * size
                    plane_tile(
                        bits, rows, nv, vl, kh, kw, down, across, held, 0,
                        there, down_bytes, tap_bytes, segments, count * per_depth, weight,
                        wrow, wcol, low, high, 0, 0, 0, 0, to, row_bytes,
                        add, activation, g + SLOPES,
                    )  # fmt: skip
                    if not whole:
                        if fold:
                            copy_bytes(out, scratch, valid * size)
                        else:
                            store_rows(bits, out, ldy, scratch, nr * size, rows, valid)
                done += repeat
                if single:
                    plane += repeat
                    k = k + repeat if k + repeat < outputs else 0
                    continue
                col_block += 1
                if col_block < col_blocks:
                    continue
                col_block = 0
                row_block += 1
                if row_block < row_blocks:
                    continue
                row_block = 0
                z += 1
                if z < od:
                    continue
                z = 0
                plane += 1
                k = k + 1 if k + 1 < outputs else 0
            first, last, turn = take(control, tasks, grain, turn)

    return kernel


# -------------------------------------------------------------------- the solver


class Planes:
    """Planes convolved one by one: images, signals and volumes, any stride and padding."""

    id = "numba.planes"
    algorithm = "direct"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if spec.dtype not in targets.BITS:
            return Refusal(Feature.DTYPE, f"computes float32 and float64, not {spec.dtype}")
        if spec.direction is not Direction.FORWARD:
            told = f"computes the forward direction, not {spec.direction}"
            return Refusal(Feature.DIRECTION, told)
        if spec.strided:
            return Refusal(Feature.STRIDED, "reads contiguous arrays")
        if spec.channels_last:
            return Refusal(Feature.LAYOUT, f"reads channels-first arrays, not {spec.layout}")
        if spec.is_empty:
            return Refusal(Feature.SIZE, "there is nothing to sum")
        return self._refuse_channels(spec) or self._refuse_size(spec, target)

    def _refuse_channels(self, spec: ConvSpec) -> Refusal | None:
        channels = spec.in_channels // spec.groups
        if channels > MAX_CHANNELS:
            told = f"sums at most {MAX_CHANNELS} input planes for an output plane, not {channels}"
            return Refusal(Feature.OTHER, told)
        if is_depthwise(spec):
            return Refusal(Feature.OTHER, "leaves depthwise layers to numba.planes.depthwise")
        return None

    def _refuse_size(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if self._blocking(spec, target).slot_bytes > problem.MAX_SLOT:
            return Refusal(Feature.SIZE, "the padded input of one tile exceeds 1 GiB")
        return None

    @staticmethod
    def _blocking(spec: ConvSpec, target: Target, config: Config = DEFAULT_CONFIG) -> Blocking:
        padded = any(lo or hi for lo, hi in spec.padding)
        mode = PAD_MODES.index(spec.pad_mode) if padded else 0
        return blocking(Problem.of(spec), mode, problem.isa_of(target), config)

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        b = self._blocking(spec, target)
        slots = min(target.cores, b.tasks)
        wakes = problem.wakes_helpers(target, p, isa, b.cycles, slots)
        # Cycles in which nothing multiplies count as if they did, so that one rate stands for all
        # tiles; so do the threads that are left without a task.
        lanes = targets.tiles(isa, p.dtype)[0].vl
        flops = 4.0 * lanes * b.cycles * (target.cores / slots if wakes else target.cores)
        weights = prod(spec.w_shape) * p.bytes
        image = p.cg * prod(p.size) * p.bytes
        again = (p.kg - 1) * p.groups * p.batch * image if image > problem.caches()["l2"] else 0
        return Work(
            (
                Phase("planes", flops, f"numba.planes.{p.dtype}", p.traffic),
                Phase("again", bytes={"l3": AGAIN * again}),
            ),
            Numerics("direct"),
            problem.pack_phase(p, weights) if reverses(spec, b) else None,
            launches=int(wakes),
            workspace=threads.slots_bytes(slots, b.slot_bytes),
            packed_bytes=weights,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        yield DEFAULT_CONFIG
        chosen = self._blocking(spec, target)
        others = sorted(candidates(chosen.view, problem.isa_of(target)), key=lambda b: b.cycles)
        for b in others[: OFFERED + 1]:
            if b.cycles <= HOPEFUL * chosen.cycles and b.code != chosen.code:
                yield b.code.config

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        isa = problem.isa_of(target)
        b = self._blocking(spec, target, config)
        p = b.view.p
        kernel = cache.function(b.code.name, 7, partial(build, b.code))
        segments = tables(b)
        slots = min(target.cores, b.tasks)
        seconds = b.cycles / problem.cycles_per_second(target, p.dtype, isa)
        geometry = problem.pack_geometry(
            p.geometry()
            | problem.activation_fields(spec)
            | fields(b, segments)
            | {
                "tasks": b.tasks,
                "grain": targets.grain(b.tasks, slots, seconds),
                "slot_bytes": b.slot_bytes,
            }
        )
        return PanelExecutable(
            kernel, _packer(spec, b), geometry, segments,
            slots=slots, slot_bytes=b.slot_bytes, seconds=seconds,
        )  # fmt: skip


class DepthwisePlanes(Planes):
    """Depthwise layers, channels first: the same kernels."""

    id = "numba.planes.depthwise"
    algorithm = "depthwise"

    def _refuse_channels(self, spec: ConvSpec) -> Refusal | None:
        if not is_depthwise(spec):
            told = "takes depthwise layers: as many groups as channels, and more than one"
            return Refusal(Feature.OTHER, told)
        return None


def is_depthwise(spec: ConvSpec) -> bool:
    """A depthwise layer; an image has one channel and is none."""
    return spec.is_depthwise and spec.groups > 1


def reverses(spec: ConvSpec, b: Blocking) -> bool:
    """Whether the kernel is read backwards."""
    return spec.flip != b.view.swapped


def _packer(spec: ConvSpec, b: Blocking) -> Callable[[Array], Array]:
    """Leaves the weights as they are, or reverses them along the spatial axes."""
    if not reverses(spec, b):
        return _same
    return partial(_picked, (slice(None), slice(None), *(slice(None, None, -1),) * spec.ndim))


def _same(weights: Array) -> Array:
    return weights


def _picked(index: tuple[slice, ...], weights: Array) -> Array:
    # Planned calls aside, every call comes here: the index is made once.
    return weights[index].copy()
