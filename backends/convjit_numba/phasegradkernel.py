"""Kernels of :mod:`convjit_numba.phasegrad`: the product, and the addition of its parts."""

from __future__ import annotations

from collections.abc import Callable

from convjit_numba import taskloop
from convjit_numba.problem import FIELD


def build(
    bits: int, mr: int, nv: int, vl: int, tail: int, end: int, step: int
) -> Callable[..., None]:
    """The kernel for one row tile and ``tail`` vectors of the last panel (imports numba).

    ``end`` are the lanes of the last of them, if half a vector is enough, else 0; ``step`` is that
    of :func:`convjit_numba.pixeltile.row_gatherer`.
    """
    from numba import njit

    from convjit_numba.memory import load_int, store_int, zero_bytes
    from convjit_numba.pixeltile import row_gatherer
    from convjit_numba.rowtile import row_tiles
    from convjit_numba.transpose import from_lanes, to_lanes
    from convjit_numba.vectorcode import OPTIONS
    from convjit_numba.weightgradkernel import build_copy

    slot_of, take = taskloop.sharing()
    copy_pixels = build_copy(bits, nv, vl)
    gather_row = row_gatherer(bits, vl, step)
    size = bits // 8
    nr = nv * vl
    f = dict(FIELD)
    TASKS, GRAIN, SLOT_BYTES, GROUPS, CG, KG = (
        f["tasks"], f["grain"], f["slot_bytes"], f["groups"], f["cg"], f["kg"],
    )  # fmt: skip
    D, H, W, OD, OH, OW = f["d"], f["h"], f["w"], f["od"], f["oh"], f["ow"]
    KD, KH, KW, SD, SH, SW = f["kd"], f["kh"], f["kw"], f["sd"], f["sh"], f["sw"]
    PD, PH, PW, DD, DH, DW = f["pd"], f["ph"], f["pw"], f["dd"], f["dh"], f["dw"]
    PANELS, TASK_ROWS, ROW_SPLITS = f["panels"], f["task_rows"], f["row_splits"]
    SPLITS, UNITS, ROWS, COLS = f["splits"], f["units"], f["rows"], f["cols"]
    ROW_BLOCKS, COL_BLOCKS, LAST = f["row_blocks"], f["col_blocks"], f["last"]
    PITCH, WIDTH, GY_PITCH = f["pitch"], f["wide"], f["gy_pitch"]
    AT_TABLE, AT_GY, AT_SLAB, AT_SUMS = f["at_table"], f["at_gy"], f["at_slab"], f["at_sums"]
    PARTIAL_BYTES = f["partial_bytes"]

    @njit(**OPTIONS)
    def fill_phases(g, slab, x, image, group, oz, r0, span, c0, count, channel0, channel1):
        """The phases of the rows of x that a block of outputs meets, zeros for what is padding.

        Those of the channels from ``channel0`` to ``channel1 - 1``.
        """
        groups, cg = load_int(g + GROUPS), load_int(g + CG)
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        sh, sw, pitch = load_int(g + SH), load_int(g + SW), load_int(g + PITCH) * size
        low, left = r0 * sh - load_int(g + PH), (c0 + first_shift(g)) * sw
        z0 = oz * load_int(g + SD) - load_int(g + PD)
        slab += channel0 * load_int(g + KD) * span * sw * pitch
        for c in range(channel0, channel1):
            for tz in range(load_int(g + KD)):
                z = z0 + tz * load_int(g + DD)
                for row in range(low, low + span):
                    if 0 <= z < d and 0 <= row < h:
                        for phase in range(sw):
                            if load_int(g + LAST) != 0:
                                pixel = groups * cg
                                here = x + ((image * d + z) * h + row) * w * pixel * size
                                first = (left + phase) * pixel + group * cg + c
                                gather_row(
                                    slab + phase * pitch, here, first, w * pixel, sw * pixel, count
                                )
                            else:
                                plane = ((image * groups + group) * cg + c) * d + z
                                here = x + (plane * h + row) * w * size
                                gather_row(slab + phase * pitch, here, left + phase, w, sw, count)
                    else:
                        zero_bytes(slab, sw * pitch)
                    slab += sw * pitch

    @njit(**OPTIONS)
    def first_shift(g):
        """The output whose first column the first tap reads in the row of output 0, 0 or less."""
        sw = load_int(g + SW)
        return -((load_int(g + PW) + sw - 1) // sw)

    @njit(**OPTIONS)
    def fill_gy(g, into, gy, image, group, oz, r0, rows, c0, cols):
        """The outputs of a block, panel by panel, with their channels last."""
        groups, kg, panels = load_int(g + GROUPS), load_int(g + KG), load_int(g + PANELS)
        od, oh, ow = load_int(g + OD), load_int(g + OH), load_int(g + OW)
        runs, length = rows, cols
        if cols == ow:
            runs, length = 1, rows * cols
        for panel in range(panels):
            k = panel * nr
            count = min(nr, kg - k)
            for run in range(runs):
                target = into + run * length * nr * size
                if load_int(g + LAST) != 0:
                    pixel = ((image * od + oz) * oh + r0 + run) * ow + c0
                    source = gy + ((pixel * groups + group) * kg + k) * size
                    copy_pixels(target, nr * size, source, groups * kg * size, count, length)
                else:
                    channel = od * oh * ow * size
                    plane = ((image * groups + group) * kg + k) * od + oz
                    source = gy + ((plane * oh + r0 + run) * ow + c0) * size
                    for v in range(0, count, vl):
                        to_lanes(
                            bits, vl, source + v * channel, channel, min(vl, count - v),
                            target + v * size, nr * size, length,
                        )  # fmt: skip
            into += load_int(g + GY_PITCH) * size

    @njit(**OPTIONS)
    def list_rows(g, table, slab, i0, count, rows, span, cols):
        """Per row of outputs: the offset of their gradients, and where ``count`` taps read."""
        kh, kw = load_int(g + KH), load_int(g + KW)
        sh, sw, dh, dw = load_int(g + SH), load_int(g + SW), load_int(g + DH), load_int(g + DW)
        pitch = load_int(g + PITCH) * size
        start = first_shift(g) * sw
        for j in range(count):
            rest = (i0 + j) // kw
            ahead = (i0 + j - rest * kw) * dw - load_int(g + PW) - start
            shift = ahead // sw
            plane = rest // kh
            row = plane * span + (rest - plane * kh) * dh
            here = slab + (row * sw + ahead - shift * sw) * pitch + shift * size
            entry = table + 8 + 8 * j
            for _ in range(rows):
                store_int(entry, here)
                entry += 8 * (1 + count)
                here += sh * sw * pitch
        for r in range(rows):
            store_int(table + r * 8 * (1 + count), r * cols * nr * size)

    @njit(**OPTIONS)
    def add_block(g, x, gy, mine, sums, unit, group, i0, i1):
        """Add what one block of outputs gives to the sums of the rows ``i0`` to ``i1 - 1``."""
        od, oh, ow = load_int(g + OD), load_int(g + OH), load_int(g + OW)
        row_blocks, col_blocks = load_int(g + ROW_BLOCKS), load_int(g + COL_BLOCKS)
        panels, width = load_int(g + PANELS), load_int(g + WIDTH) * size
        rest = unit // col_blocks
        c0 = (unit - rest * col_blocks) * load_int(g + COLS)
        cols = min(load_int(g + COLS), ow - c0)
        r0 = rest % row_blocks * load_int(g + ROWS)
        rows = min(load_int(g + ROWS), oh - r0)
        rest //= row_blocks
        image = rest // od
        oz = rest - image * od
        table, slab = mine + load_int(g + AT_TABLE), mine + load_int(g + AT_SLAB)
        outputs = mine + load_int(g + AT_GY)
        span = (rows - 1) * load_int(g + SH) + (load_int(g + KH) - 1) * load_int(g + DH) + 1
        more = load_int(g + PITCH) - load_int(g + COLS)
        taps = load_int(g + KD) * load_int(g + KH) * load_int(g + KW)
        fill_phases(
            g, slab, x, image, group, oz, r0, span, c0, cols + more, i0 // taps,
            (i1 + taps - 1) // taps,
        )  # fmt: skip
        fill_gy(g, outputs, gy, image, group, oz, r0, rows, c0, cols)
        tiles = (i1 - i0 + mr - 1) // mr
        for tile in range(tiles):
            first = tile * (i1 - i0) // tiles
            count = (tile + 1) * (i1 - i0) // tiles - first
            list_rows(g, table, slab, i0 + first, count, rows, span, cols)
            for panel in range(panels):
                b = outputs + panel * load_int(g + GY_PITCH) * size
                c = sums + first * width + panel * nr * size
                if panel < panels - 1 or (tail == nv and end == 0):
                    row_tiles(
                        bits, mr, nv, vl, 0, 0, count, rows, table, cols, b, nr * size, c, width,
                        1, 0, 0, 0, 0,
                    )  # fmt: skip
                else:
                    row_tiles(
                        bits, mr, tail, vl, end, 0, count, rows, table, cols, b, nr * size, c,
                        width, 1, 0, 0, 0, end,
                    )  # fmt: skip

    def kernel(g, x, gy, unused, gw, workspace, control):
        tasks, grain = load_int(g + TASKS), load_int(g + GRAIN)
        groups, kg, width = load_int(g + GROUPS), load_int(g + KG), load_int(g + WIDTH) * size
        taps = load_int(g + CG) * load_int(g + KD) * load_int(g + KH) * load_int(g + KW)
        splits, units = load_int(g + SPLITS), load_int(g + UNITS)
        row_splits, task_rows = load_int(g + ROW_SPLITS), load_int(g + TASK_ROWS)
        mine = workspace + load_int(g + PARTIAL_BYTES) + slot_of(control) * load_int(g + SLOT_BYTES)
        first, last, turn = take(control, tasks, grain, 0)
        if first < last:
            # Lanes beyond the last channel are not used, but old memory may hold numbers so small
            # that products with them take a hundred times as long.
            at = mine + load_int(g + AT_GY)
            zero_bytes(at, load_int(g + PANELS) * load_int(g + GY_PITCH) * size)
        while first < last:
            for task in range(first, last):
                rest = task // row_splits
                i0 = (task - rest * row_splits) * task_rows
                i1 = min(i0 + task_rows, taps)
                split = rest // groups
                group = rest - split * groups
                sums = mine + load_int(g + AT_SUMS)
                if splits > 1:
                    sums = workspace + ((split * groups + group) * taps + i0) * width
                zero_bytes(sums, (i1 - i0) * width)
                for unit in range(split * units // splits, (split + 1) * units // splits):
                    add_block(g, x, gy, mine, sums, unit, group, i0, i1)
                if splits == 1:
                    for k in range(0, kg, vl):
                        from_lanes(
                            bits, vl, sums + k * size, width, i1 - i0,
                            gw + ((group * kg + k) * taps + i0) * size, taps * size,
                            min(vl, kg - k),
                        )  # fmt: skip
            first, last, turn = take(control, tasks, grain, turn)

    return kernel


def build_sum(bits: int, vl: int) -> Callable[..., None]:
    """The kernel that adds the sums of the splits, in their order, a vector of channels a task."""
    from convjit_numba.memory import load_int, store_int
    from convjit_numba.rowtile import row_tile
    from convjit_numba.transpose import from_lanes

    slot_of, take = taskloop.sharing()
    size = bits // 8
    f = dict(FIELD)
    GRAIN, SLOT_BYTES, GROUPS, CG, KG = (
        f["grain"], f["slot_bytes"], f["groups"], f["cg"], f["kg"],
    )  # fmt: skip
    KD, KH, KW, SPLITS = f["kd"], f["kh"], f["kw"], f["splits"]
    WIDTH, PARTIAL_BYTES = f["wide"], f["partial_bytes"]
    AT_TABLE, AT_SUMS, ONE = f["at_table"], f["at_sums"], f["slope0"]

    def kernel(g, x, gy, unused, gw, workspace, control):
        groups, kg, grain = load_int(g + GROUPS), load_int(g + KG), load_int(g + GRAIN)
        taps = load_int(g + CG) * load_int(g + KD) * load_int(g + KH) * load_int(g + KW)
        width, splits = load_int(g + WIDTH) * size, load_int(g + SPLITS)
        mine = workspace + load_int(g + PARTIAL_BYTES) + slot_of(control) * load_int(g + SLOT_BYTES)
        table, sums = mine + load_int(g + AT_TABLE), mine + load_int(g + AT_SUMS)
        # The row tile adds one times each split's vectors.
        for split in range(splits):
            store_int(table + 16 * split, split * groups * taps * width)
            store_int(table + 16 * split + 8, g + ONE)
        vectors = (kg + vl - 1) // vl
        first, last, turn = take(control, groups * vectors, grain, 0)
        while first < last:
            for task in range(first, last):
                group = task // vectors
                k = (task - group * vectors) * vl
                for i in range(taps):
                    row_tile(
                        bits, 1, 1, vl, splits, table, 1,
                        workspace + (group * taps + i) * width + k * size, 0,
                        sums + i * vl * size, 0, 0, 0, 0, 0,
                    )  # fmt: skip
                from_lanes(
                    bits, vl, sums, vl * size, taps, gw + (group * kg + k) * taps * size,
                    taps * size, min(vl, kg - k),
                )  # fmt: skip
            first, last, turn = take(control, groups * vectors, grain, turn)

    return kernel
