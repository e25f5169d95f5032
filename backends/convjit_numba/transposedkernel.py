"""The kernel of :mod:`convjit_numba.transposed`: phases, tables of addresses, the loops."""

from __future__ import annotations

from collections.abc import Callable

from convjit_numba import rowtables, taskloop
from convjit_numba.problem import FIELD
from convjit_numba.rowtables import HEAD


def build(bits: int, mr: int, nv: int, vl: int, tail: int, end: int) -> Callable[..., None]:
    """The kernel for one row tile; ``tail`` and ``end`` are those of its tables (imports numba)."""
    from numba import njit

    from convjit_numba.memory import load_int, store_int, zero_bytes
    from convjit_numba.transpose import from_lanes
    from convjit_numba.vectorcode import OPTIONS

    fill_slab, copy_run, addends, sum_panel = rowtables.build(bits, mr, nv, vl, tail, end)
    size = bits // 8
    nr = nv * vl
    walk = nr * size
    f = dict(FIELD)
    BATCH, GROUPS, CG, KG = f["batch"], f["groups"], f["cg"], f["kg"]
    D, H, W, OD, OH, OW = f["d"], f["h"], f["w"], f["od"], f["oh"], f["ow"]
    KD, KH, KW, SD, SH, SW = f["kd"], f["kh"], f["kw"], f["sd"], f["sh"], f["sw"]
    PD, PH, PW, DD, DH, DW = f["pd"], f["ph"], f["pw"], f["dd"], f["dh"], f["dw"]
    KBLOCK, PANELS = f["cblock"], f["panels"]
    TASK_PANELS, TASK_SPLITS = f["task_panels"], f["task_splits"]
    ACTIVATION, SLOPES, LAST, DIRECT = f["activation"], f["slope0"], f["last"], f["in_place"]
    IMAGES, ROWS, COLS = f["images"], f["rows"], f["cols"]
    IMAGE_BLOCKS, ROW_BLOCKS, COL_BLOCKS = f["image_blocks"], f["row_blocks"], f["col_blocks"]
    SLAB_PITCH, REACH_ROW, REACH_COL = f["slab_pitch"], f["extra_h"], f["extra_w"]
    TABLE_BYTES, FIRST_ROW, FIRST_COL = f["table_bytes"], f["phases_h"], f["phases_w"]
    AT_POSITIONS, AT_ZEROS, AT_SUMS = f["at_positions"], f["at_zeros"], f["at_sums"]
    AT_TABLE, AT_SLAB = f["at_table"], f["at_slab"]
    ROW, COL, PLACE = 0, 8 * mr, 16 * mr
    head = 8 * HEAD

    @njit(**OPTIONS)
    def fill_slabs(g, slab, gy, group, n0, images, z, low, high, left, right):
        """The channels-last copy of the rows and columns of gy that plane z of the result meets."""
        kg, od, oh, ow = load_int(g + KG), load_int(g + OD), load_int(g + OH), load_int(g + OW)
        groups, sd = load_int(g + GROUPS), load_int(g + SD)
        pixel = load_int(g + SLAB_PITCH)
        rows, wide = high - low, right - left
        runs, length = rows, wide
        if wide == ow:
            runs, length = 1, rows * wide
        channel = od * oh * ow * size
        for i in range(images):
            image = gy + ((n0 + i) * groups + group) * kg * channel
            for tz in range(load_int(g + KD)):
                place = z + load_int(g + PD) - tz * load_int(g + DD)
                if place % sd != 0 or not 0 <= place // sd < od:
                    continue
                plane = image + place // sd * oh * ow * size
                for r in range(runs):
                    source = plane + ((low + r) * ow + left) * size
                    fill_slab(slab + r * length * pixel, pixel, source, channel, kg, length)
                slab += rows * wide * pixel

    @njit(**OPTIONS)
    def list_taps(g, table, at, zeros, rows, z, row_phase, col_phase, step_z, step_row, step_col,
                  last_axis):  # fmt: skip
        """The table of a tile: for each tap of its phase an offset and ``rows`` addresses."""
        od, oh, ow = load_int(g + OD), load_int(g + OH), load_int(g + OW)
        kd, kh, kw = load_int(g + KD), load_int(g + KH), load_int(g + KW)
        sd, sh, sw = load_int(g + SD), load_int(g + SH), load_int(g + SW)
        weights = load_int(g + KG) * walk
        taps, entry, plane = 0, table + head, 0
        for tz in range(kd):
            deep = z + load_int(g + PD) - tz * load_int(g + DD)
            if deep % sd != 0 or not 0 <= deep // sd < od:
                continue
            at_z = plane * step_z
            if last_axis != 0:
                at_z = deep // sd * step_z
            plane += 1
            for ty in range(kh):
                down = row_phase + load_int(g + PH) - ty * load_int(g + DH)
                if down % sh != 0:
                    continue
                down = down // sh
                for tx in range(kw):
                    right = col_phase + load_int(g + PW) - tx * load_int(g + DW)
                    if right % sw != 0:
                        continue
                    right = right // sw
                    offset = at_z + down * step_row + right * step_col
                    met = 0
                    for i in range(rows):
                        place = zeros
                        if (
                            0 <= load_int(at + ROW + 8 * i) + down < oh
                            and 0 <= load_int(at + COL + 8 * i) + right < ow
                        ):
                            place = load_int(at + PLACE + 8 * i) + offset
                            met = 1
                        store_int(entry + 8 + 8 * i, place)
                    if met != 0:
                        store_int(entry, ((tz * kh + ty) * kw + tx) * weights)
                        entry += 8 * (1 + rows)
                        taps += 1
        store_int(table, taps)
        store_int(table + 8, rows)

    @njit(**OPTIONS)
    def locate(at, p, rows, base, step_n, step_row, step_col, line0, lines, col0, cols):
        """Row, column and address in gy of ``rows`` periods, from period p of the task on."""
        run = p // cols
        col = p - run * cols
        image = run // lines
        line = run - image * lines
        for i in range(rows):
            store_int(at + ROW + 8 * i, line0 + line)
            store_int(at + COL + 8 * i, col0 + col)
            place = base + image * step_n + (line0 + line) * step_row + (col0 + col) * step_col
            store_int(at + PLACE + 8 * i, place)
            col += 1
            if col == cols:
                col = 0
                line += 1
                if line == lines:
                    line = 0
                    image += 1

    @njit(**OPTIONS)
    def leave(g, sums, into, row_phase, line0, lines, images, length, count):
        """The sums of ``count`` channels of one phase of rows to the result."""
        h, w, sh, sw = load_int(g + H), load_int(g + W), load_int(g + SH), load_int(g + SW)
        plane = load_int(g + D) * h * w
        channels = load_int(g + GROUPS) * load_int(g + CG)
        pitch = load_int(g + COLS) * sw  # pixels from line to line of the sums
        for i in range(images):
            for line in range(lines):
                row = (line0 + line) * sh + row_phase
                source = sums + (i * lines + line) * pitch * walk
                if row >= h:
                    continue
                if load_int(g + LAST) == 0:
                    target = into + (i * channels * plane + row * w) * size
                    for v in range(0, count, vl):
                        from_lanes(
                            bits, vl, source + v * size, walk, length,
                            target + v * plane * size, plane * size, min(vl, count - v),
                        )  # fmt: skip
                else:
                    target = into + (i * plane + row * w) * channels * size
                    for x in range(length):
                        copy_run(target + x * channels * size, source + x * walk, count)

    @njit(**OPTIONS)
    def list_phases(g, here, at, zeros, row_phase, base, step_n, step_z, step_row, step_col, z,
                    line0, lines, col0, cols, runs, run, step):  # fmt: skip
        """The tables of all tiles of the phases of one row, ``step`` bytes apart."""
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        sh, sw = load_int(g + SH), load_int(g + SW)
        last_axis, direct = load_int(g + LAST), load_int(g + DIRECT)
        tiles = (run + mr - 1) // mr
        for col_phase in range(min(sw, w)):
            # Of the last period some phases may lie beyond the result.
            for r in range(runs):
                there = run
                image = r // lines
                row = (line0 + r - image * lines) * sh + row_phase
                if direct != 0:
                    there = min(cols, (w - col_phase + sw - 1) // sw - col0)
                    there = there if row < h else 0
                for tile in range(tiles):
                    p = tile * there // tiles
                    rows = (tile + 1) * there // tiles - p
                    locate(at, r * run + p, rows, base, step_n, step_row, step_col,
                           line0, lines, col0, cols)  # fmt: skip
                    list_taps(g, here, at, zeros, rows, z, row_phase, col_phase,
                              step_z, step_row, step_col, last_axis)  # fmt: skip
                    place = p * sw + col_phase  # pixels of the result, or of the sums
                    if direct != 0:
                        place += (image * d * h + row) * w
                    store_int(here + 16, place)
                    here += step

    @njit(**OPTIONS)
    def start(g, mine):
        zero_bytes(mine + load_int(g + AT_ZEROS), load_int(g + KG) * size)

    @njit(**OPTIONS)
    def run_task(g, gy, weights, bias, x, mine, task):
        groups, cg, kg = load_int(g + GROUPS), load_int(g + CG), load_int(g + KG)
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        od, oh, ow = load_int(g + OD), load_int(g + OH), load_int(g + OW)
        sh, sw, panels = load_int(g + SH), load_int(g + SW), load_int(g + PANELS)
        task_panels, task_splits = load_int(g + TASK_PANELS), load_int(g + TASK_SPLITS)
        image_blocks = load_int(g + IMAGE_BLOCKS)
        row_blocks, col_blocks = load_int(g + ROW_BLOCKS), load_int(g + COL_BLOCKS)
        last_axis, direct = load_int(g + LAST), load_int(g + DIRECT)
        panel_bytes = load_int(g + KD) * load_int(g + KH) * load_int(g + KW) * kg * walk
        channels, step = groups * cg, load_int(g + TABLE_BYTES)
        at, zeros = mine + load_int(g + AT_POSITIONS), mine + load_int(g + AT_ZEROS)
        sums, table = mine + load_int(g + AT_SUMS), mine + load_int(g + AT_TABLE)
        rest = task // task_splits
        low_panel = (task - rest * task_splits) * task_panels
        high_panel = min(low_panel + task_panels, panels)
        col0 = rest % col_blocks * load_int(g + COLS)
        rest //= col_blocks
        line0 = rest % row_blocks * load_int(g + ROWS)
        rest //= row_blocks
        z = rest % d
        rest //= d
        n0 = rest % image_blocks * load_int(g + IMAGES)
        group = rest // image_blocks
        images = min(load_int(g + IMAGES), load_int(g + BATCH) - n0)
        lines = min(load_int(g + ROWS), (h + sh - 1) // sh - line0)
        cols = min(load_int(g + COLS), (w + sw - 1) // sw - col0)
        # gy: the address of row 0 and column 0, and its steps.
        if last_axis != 0:
            step_col = groups * kg * size
            step_row = ow * step_col
            step_z = oh * step_row
            step_n = od * step_z
            base = gy + n0 * step_n + group * kg * size
        else:
            low = max(0, min(oh, line0 + load_int(g + FIRST_ROW)))
            high = max(low, min(oh, line0 + lines + load_int(g + REACH_ROW)))
            left = max(0, min(ow, col0 + load_int(g + FIRST_COL)))
            right = max(left, min(ow, col0 + cols + load_int(g + REACH_COL)))
            slab = mine + load_int(g + AT_SLAB)
            fill_slabs(g, slab, gy, group, n0, images, z, low, high, left, right)
            step_col = load_int(g + SLAB_PITCH)
            step_row = (right - left) * step_col
            step_z = (high - low) * step_row
            met = 0
            for tz in range(load_int(g + KD)):
                place = z + load_int(g + PD) - tz * load_int(g + DD)
                if place % load_int(g + SD) == 0 and 0 <= place // load_int(g + SD) < od:
                    met += 1
            step_n = met * step_z
            base = slab - low * step_row - left * step_col
        runs, run = 1, images * lines * cols
        if direct != 0:
            runs, run = images * lines, cols
        count = runs * ((run + mr - 1) // mr) * min(sw, w)
        # Where plane z and the first column of the task begin in the result.
        into = x + (((n0 * channels + group * cg) * d + z) * h * w + col0 * sw) * size
        if last_axis != 0:
            into = x + (((n0 * d + z) * h * w + col0 * sw) * channels + group * cg) * size
        for row_phase in range(min(sh, h)):
            list_phases(g, table, at, zeros, row_phase, base, step_n, step_z, step_row, step_col,
                        z, line0, lines, col0, cols, runs, run, step)  # fmt: skip
            shift = 0
            for panel in range(low_panel, high_panel):
                k = panel * nr
                some = min(nr, cg - k)
                c, unit = sums, walk
                if direct != 0:
                    c, unit = into + k * size, channels * size
                add = addends(bias, group * cg + k, some, mine)
                b = weights + (group * panels + panel) * panel_bytes
                shift = sum_panel(
                    table, count, step, shift, some, kg, load_int(g + KBLOCK), b, c, unit,
                    sw * unit, add, load_int(g + ACTIVATION), g + SLOPES,
                )  # fmt: skip
                if direct == 0:
                    begin = into + k * size
                    if last_axis == 0:
                        begin = into + k * d * h * w * size
                    length = min(w - col0 * sw, cols * sw)
                    leave(g, sums, begin, row_phase, line0, lines, images, length, some)

    return taskloop.build(run_task, start)
