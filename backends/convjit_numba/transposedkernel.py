"""The kernel of :mod:`convjit_numba.transposed`: phases, tables of addresses, the loops."""

from __future__ import annotations

from collections.abc import Callable

from convjit_numba.problem import FIELD
from convjit_numba.transposedplan import HEAD


def build(bits: int, mr: int, nv: int, vl: int, tail: int) -> Callable[..., None]:
    """The kernel for one row tile and ``tail`` vectors of the last panel (imports numba)."""
    from numba import njit

    from convjit_numba.microkernel import (
        OPTIONS,
        atomic_add,
        copy_bytes,
        load_int,
        move_vectors,
        store_int,
        zero_bytes,
    )
    from convjit_numba.rowtile import row_tiles
    from convjit_numba.transpose import from_lanes, to_lanes

    size = bits // 8
    nr = nv * vl
    walk = nr * size
    f = dict(FIELD)
    TASKS, GRAIN, SLOT_BYTES, BATCH, GROUPS, CG, KG = (
        f["tasks"], f["grain"], f["slot_bytes"], f["batch"], f["groups"], f["cg"], f["kg"],
    )  # fmt: skip
    D, H, W, OD, OH, OW = f["d"], f["h"], f["w"], f["od"], f["oh"], f["ow"]
    KD, KH, KW, SD, SH, SW = f["kd"], f["kh"], f["kw"], f["sd"], f["sh"], f["sw"]
    PD, PH, PW, DD, DH, DW = f["pd"], f["ph"], f["pw"], f["dd"], f["dh"], f["dw"]
    KBLOCK, KBLOCKS, PANELS = f["cblock"], f["cblocks"], f["panels"]
    TASK_PANELS, TASK_SPLITS = f["task_panels"], f["task_splits"]
    ACTIVATION, SLOPES, LAST, DIRECT = f["activation"], f["slope0"], f["last"], f["in_place"]
    IMAGES, ROWS, COLS = f["images"], f["rows"], f["cols"]
    IMAGE_BLOCKS, ROW_BLOCKS, COL_BLOCKS = f["image_blocks"], f["row_blocks"], f["col_blocks"]
    SLAB_PITCH, REACH_ROW, REACH_COL = f["slab_pitch"], f["extra_h"], f["extra_w"]
    TABLE_BYTES, FIRST_ROW, FIRST_COL = f["line_bytes"], f["phases_h"], f["phases_w"]
    AT_POSITIONS, AT_ZEROS, AT_SUMS = f["at_positions"], f["at_zeros"], f["at_sums"]
    AT_TABLE, AT_SLAB = f["at_table"], f["at_slab"]
    ROW, COL, PLACE = 0, 8 * mr, 16 * mr
    head = 8 * HEAD

    @njit(**OPTIONS)
    def fill_slab(g, slab, gy, group, n0, images, z, low, high, left, right):
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
                    into = slab + r * length * pixel
                    # Vectors reach beyond the last channel into the next pixel: the last channels
                    # are written first.
                    c = (kg - 1) // vl * vl
                    while c >= 0:
                        to_lanes(
                            bits, vl, source + c * channel, channel, min(vl, kg - c),
                            into + c * size, pixel, length,
                        )  # fmt: skip
                        c -= vl
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
    def move_tables(table, tables, table_bytes, move):
        """Other channels of gy: addresses move, and the offsets of weights with them."""
        for _ in range(tables):
            for e in range(load_int(table) * (1 + load_int(table + 8))):
                entry = table + head + 8 * e
                store_int(entry, load_int(entry) + move)
            table += table_bytes

    @njit(**OPTIONS)
    def copy_run(target, source, count):
        """Copy ``count`` numbers by vectors, the last of which overlaps."""
        if count < vl:
            copy_bytes(target, source, count * size)
        else:
            for c in range(0, count - vl, vl):
                move_vectors(bits, vl, 1, target + c * size, source + c * size)
            c = (count - vl) * size
            move_vectors(bits, vl, 1, target + c, source + c)

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

    def kernel(g, gy, weights, bias, x, workspace, control):
        tasks, grain = load_int(g + TASKS), load_int(g + GRAIN)
        groups, cg, kg = load_int(g + GROUPS), load_int(g + CG), load_int(g + KG)
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        od, oh, ow = load_int(g + OD), load_int(g + OH), load_int(g + OW)
        sh, sw = load_int(g + SH), load_int(g + SW)
        kblock, kblocks, panels = load_int(g + KBLOCK), load_int(g + KBLOCKS), load_int(g + PANELS)
        task_panels, task_splits = load_int(g + TASK_PANELS), load_int(g + TASK_SPLITS)
        block_images, image_blocks = load_int(g + IMAGES), load_int(g + IMAGE_BLOCKS)
        block_lines, row_blocks = load_int(g + ROWS), load_int(g + ROW_BLOCKS)
        block_cols, col_blocks = load_int(g + COLS), load_int(g + COL_BLOCKS)
        last_axis, direct = load_int(g + LAST), load_int(g + DIRECT)
        activation, table_bytes = load_int(g + ACTIVATION), load_int(g + TABLE_BYTES)
        panel_bytes = load_int(g + KD) * load_int(g + KH) * load_int(g + KW) * kg * walk
        row_phases, col_phases = min(sh, h), min(sw, w)
        channels = groups * cg
        slot = 0
        if control != 0:
            slot = atomic_add(control + 64, 1)
        mine = workspace + slot * load_int(g + SLOT_BYTES)
        at, zeros = mine + load_int(g + AT_POSITIONS), mine + load_int(g + AT_ZEROS)
        sums, table = mine + load_int(g + AT_SUMS), mine + load_int(g + AT_TABLE)
        slab = mine + load_int(g + AT_SLAB)
        first = 0
        fresh = 1
        while True:
            if control != 0:
                first = atomic_add(control, grain)
            if first >= tasks:
                break
            if fresh != 0:
                zero_bytes(zeros, kg * size)
                fresh = 0
            last = min(first + grain, tasks)
            for task in range(first, last):
                rest = task // task_splits
                low_panel = (task - rest * task_splits) * task_panels
                high_panel = min(low_panel + task_panels, panels)
                col0 = rest % col_blocks * block_cols
                rest //= col_blocks
                line0 = rest % row_blocks * block_lines
                rest //= row_blocks
                z = rest % d
                rest //= d
                n0 = rest % image_blocks * block_images
                group = rest // image_blocks
                images = min(block_images, load_int(g + BATCH) - n0)
                lines = min(block_lines, (h + sh - 1) // sh - line0)
                cols = min(block_cols, (w + sw - 1) // sw - col0)
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
                    fill_slab(g, slab, gy, group, n0, images, z, low, high, left, right)
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
                tiles = (run + mr - 1) // mr
                count = runs * tiles
                # Where plane z and the first column of the task begin in the result.
                into = x + (((n0 * channels + group * cg) * d + z) * h * w + col0 * sw) * size
                if last_axis != 0:
                    pixel = (n0 * d + z) * h * w + col0 * sw
                    into = x + (pixel * channels + group * cg) * size
                for row_phase in range(row_phases):
                    for col_phase in range(col_phases):
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
                                here = table + (col_phase * count + r * tiles + tile) * table_bytes
                                locate(at, r * run + p, rows, base, step_n, step_row, step_col,
                                       line0, lines, col0, cols)  # fmt: skip
                                list_taps(g, here, at, zeros, rows, z, row_phase, col_phase,
                                          step_z, step_row, step_col, last_axis)  # fmt: skip
                                place = (p * sw + col_phase) * walk
                                if direct != 0:
                                    pixel = image * d * h * w + row * w + p * sw + col_phase
                                    place = pixel * channels * size
                                store_int(here + 16, place)
                    shift = 0
                    for panel in range(low_panel, high_panel):
                        k = panel * nr
                        lanes = nr
                        if panel == panels - 1:
                            lanes = tail * vl
                        some = min(lanes, cg - k)
                        c, ldc = sums, sw * walk
                        if direct != 0:
                            c, ldc = into + k * size, sw * channels * size
                        add = 0
                        if bias != 0:
                            add = bias + (group * cg + k) * size
                            if some < lanes:
                                copy_bytes(mine, add, some * size)
                                add = mine
                        for block in range(kblocks):
                            begin = block * kblock
                            move = begin * size - shift
                            if move != 0:
                                move_tables(table, count * col_phases, table_bytes, move)
                                shift = begin * size
                            b = weights + (group * panels + panel) * panel_bytes
                            b += begin * walk - shift
                            kc = min(kblock, kg - begin)
                            bias_now, kind = 0, 0
                            if block == kblocks - 1:
                                bias_now, kind = add, activation
                            accumulate = 1 if block > 0 else 0
                            here = table
                            for _ in range(count * col_phases):
                                rows, place = load_int(here + 8), c + load_int(here + 16)
                                if lanes == nr:
                                    row_tiles(
                                        bits, mr, nv, vl, rows, load_int(here), here + head, kc, b,
                                        walk, place, ldc, accumulate, bias_now, kind, g + SLOPES,
                                    )  # fmt: skip
                                else:
                                    row_tiles(
                                        bits, mr, tail, vl, rows, load_int(here), here + head, kc,
                                        b, walk, place, ldc, accumulate, bias_now, kind, g + SLOPES,
                                    )  # fmt: skip
                                here += table_bytes
                        if direct == 0:
                            start = into + k * size
                            if last_axis == 0:
                                start = into + k * d * h * w * size
                            length = min(w - col0 * sw, cols * sw)
                            leave(g, sums, start, row_phase, line0, lines, images, length, some)
            if control == 0:
                first = last

    return kernel
