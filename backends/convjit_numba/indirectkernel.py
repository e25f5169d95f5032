"""The kernel of :mod:`convjit_numba.indirect`: slabs, tables of addresses, the loops."""

from __future__ import annotations

from collections.abc import Callable

from convjit_numba import rowtables, taskloop
from convjit_numba.problem import FIELD
from convjit_numba.rowtables import HEAD, REALS


def build(
    bits: int, mr: int, nv: int, vl: int, tail: int, end: int, kind: int = REALS
) -> Callable[..., None]:
    """The kernel for one row tile and ``tail`` vectors of the last panel (imports numba).

    ``end`` and ``kind`` are those of :func:`convjit_numba.rowtables.build`.
    """
    from numba import njit

    from convjit_numba.memory import copy_bytes, load_int, move_real, store_int, zero_bytes
    from convjit_numba.transpose import from_lanes
    from convjit_numba.vectorcode import OPTIONS

    fill_slab, copy_run, addends, sum_panel = rowtables.build(bits, mr, nv, vl, tail, end, kind)
    size = bits // 8
    nr = nv * vl
    walk = nr * size
    f = dict(FIELD)
    GROUPS, CG, KG = f["groups"], f["cg"], f["kg"]
    D, H, W, OD, OH, OW = f["d"], f["h"], f["w"], f["od"], f["oh"], f["ow"]
    KD, KH, KW, SD, SH, SW = f["kd"], f["kh"], f["kw"], f["sd"], f["sh"], f["sw"]
    PD, PH, PW, DD, DH, DW = f["pd"], f["ph"], f["pw"], f["dd"], f["dh"], f["dw"]
    CBLOCK, PANELS = f["cblock"], f["panels"]
    TASK_PANELS, TASK_SPLITS = f["task_panels"], f["task_splits"]
    ACTIVATION, SLOPES = f["activation"], f["slope0"]
    PIXELS, TASK_PIXELS, PIXEL_BLOCKS = f["pixels"], f["task_pixels"], f["pixel_blocks"]
    TASK_GROUPS, PLANE_LINES, LAST = f["task_groups"], f["plane_lines"], f["last"]
    MERGED, ZERO_BYTES, SLAB_PITCH = f["merged"], f["zero_bytes"], f["slab_pitch"]
    AT_POSITIONS, AT_ZEROS, AT_SUMS = f["at_positions"], f["at_zeros"], f["at_sums"]
    AT_TABLE, AT_PATCHES, AT_SLAB = f["at_table"], f["at_patches"], f["at_slab"]
    TABLE_BYTES, ENDS, COLUMNS = f["table_bytes"], f["ends"], 8 * len(FIELD)
    # Where the pixels of a tile begin to read: three coordinates and an address for each.
    Z, ROW, COL, PLACE = 0, 8 * mr, 16 * mr, 24 * mr

    @njit(**OPTIONS)
    def transpose_slab(g, slab, x, line0, line1, col0, col1):
        """The channels-last copy of what outputs from one line and column to another read.

        Returns where row 0 and column 0 would be in it, the numbers from row to row, and the rows.
        """
        cg, d, h, w = load_int(g + CG), load_int(g + D), load_int(g + H), load_int(g + W)
        kd, kh, kw = load_int(g + KD), load_int(g + KH), load_int(g + KW)
        sh, sw, dh, dw = load_int(g + SH), load_int(g + SW), load_int(g + DH), load_int(g + DW)
        ph, pw, oh = load_int(g + PH), load_int(g + PW), load_int(g + OH)
        pixel = load_int(g + SLAB_PITCH)
        z0 = line0 // oh % load_int(g + OD) * load_int(g + SD) - load_int(g + PD)
        low = line0 % oh * sh - ph
        high = min(h, line1 % oh * sh - ph + (kh - 1) * dh + 1)
        # Of a kernel of one row only every sh-th row is read.
        step = sh if kh == 1 else 1
        if low < 0:
            low += (-low + step - 1) // step * step
        left, right = 0, w
        if line0 == line1:
            left = max(0, min(w, col0 * sw - pw))
            right = max(left, min(w, col1 * sw - pw + (kw - 1) * dw + 1))
        pitch = right - left
        rows, run = max(0, high - low), pitch
        if pitch == w and step == 1:
            run, step = rows * w, max(1, rows)
        channel = d * h * w * size
        for t in range(kd):
            z = z0 + t * load_int(g + DD)
            if 0 <= z < d:
                for r in range(0, rows, step):
                    into = slab + (t * rows + r) * pitch * pixel
                    start = x + ((z * h + low + r) * w + left) * size
                    fill_slab(into, pixel, start, channel, cg, run)
        return slab - (low * pitch + left) * pixel, pitch, rows

    @njit(**OPTIONS)
    def pass_on(image, deep, down, col, od, oh, ow):
        """The coordinates of a pixel whose column may lie beyond its line, without a division."""
        while col >= ow:
            col -= ow
            down += 1
            if down == oh:
                down = 0
                deep += 1
                if deep == od:
                    deep = 0
                    image += 1
        return image, deep, down, col

    @njit(**OPTIONS)
    def locate(
        g, at, base, step_n, step_z, step_row, step_col, image, deep, down, col, rows, briefly
    ):  # fmt: skip
        """Where ``rows`` pixels begin to read; whether no tap of theirs meets the padding.

        If they lie in one line besides, ``briefly`` lets the first stand for all: 2 is returned.
        """
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        od, oh, ow = load_int(g + OD), load_int(g + OH), load_int(g + OW)
        sd, sh, sw = load_int(g + SD), load_int(g + SH), load_int(g + SW)
        pd, ph, pw = load_int(g + PD), load_int(g + PH), load_int(g + PW)
        # The first coordinates at which a kernel would reach beyond the input.
        end_z = d - (load_int(g + KD) - 1) * load_int(g + DD)
        end_row = h - (load_int(g + KH) - 1) * load_int(g + DH)
        end_col = w - (load_int(g + KW) - 1) * load_int(g + DW)
        z, row, left = deep * sd - pd, down * sh - ph, col * sw - pw
        if (
            briefly and col + rows <= ow and 0 <= z < end_z and 0 <= row < end_row
            and left >= 0 and left + (rows - 1) * sw < end_col
        ):  # fmt: skip
            place = base + image * step_n + z * step_z + row * step_row + left * step_col
            store_int(at + PLACE, place)
            return 2
        inside = 1
        for i in range(rows):
            z, row, left = deep * sd - pd, down * sh - ph, col * sw - pw
            if not (0 <= z < end_z and 0 <= row < end_row and 0 <= left < end_col):
                inside = 0
            store_int(at + Z + 8 * i, z)
            store_int(at + ROW + 8 * i, row)
            store_int(at + COL + 8 * i, left)
            place = base + image * step_n + z * step_z + row * step_row + left * step_col
            store_int(at + PLACE + 8 * i, place)
            image, deep, down, col = pass_on(image, deep, down, col + 1, od, oh, ow)
        return inside

    @njit(**OPTIONS)
    def list_places(entry, at, offset, rows, inside, step):
        """The addresses of ``rows`` pixels of a tile that meets no padding, ``offset`` bytes on."""
        if inside == 2:
            place = load_int(at + PLACE) + offset
            for i in range(rows):
                store_int(entry + 8 + 8 * i, place + i * step)
        else:
            for i in range(rows):
                store_int(entry + 8 + 8 * i, load_int(at + PLACE + 8 * i) + offset)

    @njit(**OPTIONS)
    def list_taps(g, table, at, zeros, inside, rows, tap_z, step_row, step_col):
        """The entries of a tile's table: for each tap an offset and ``rows`` addresses."""
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        kd, kh, kw = load_int(g + KD), load_int(g + KH), load_int(g + KW)
        weights = load_int(g + CG) * walk
        taps, entry = 0, table + 8 * HEAD
        for tz in range(kd):
            for ty in range(kh):
                for tx in range(kw):
                    y, x = ty * load_int(g + DH), tx * load_int(g + DW)
                    offset = tz * tap_z + y * step_row + x * step_col
                    met = inside
                    if inside != 0:
                        list_places(entry, at, offset, rows, inside, load_int(g + SW) * step_col)
                    else:
                        z = tz * load_int(g + DD)
                        for i in range(rows):
                            place = zeros
                            if (
                                0 <= load_int(at + Z + 8 * i) + z < d
                                and 0 <= load_int(at + ROW + 8 * i) + y < h
                                and 0 <= load_int(at + COL + 8 * i) + x < w
                            ):
                                place = load_int(at + PLACE + 8 * i) + offset
                                met = 1
                            store_int(entry + 8 + 8 * i, place)
                    if met != 0:
                        store_int(entry, ((tz * kh + ty) * kw + tx) * weights)
                        entry += 8 * (1 + rows)
                        taps += 1
        store_int(table, taps)

    @njit(**OPTIONS)
    def copy_channels(to, source, count):
        """Copy ``count`` numbers, mostly four or fewer: a loop would cost more than its numbers."""
        if count > 4:
            copy_bytes(to, source, count * size)
            return
        last = (count - 1) * size
        move_real(bits, to, source)
        move_real(bits, to + last, source + last)
        if count > 2:
            move_real(bits, to + size, source + size)
            move_real(bits, to + last - size, source + last - size)

    @njit(**OPTIONS)
    def list_row(g, entry, at, zeros, patches, rows, z, y, offset, step_col, together):
        """The merged taps of a kernel row; whether one meets the image, and the next free patch."""
        d, h, w, cg = load_int(g + D), load_int(g + H), load_int(g + W), load_int(g + CG)
        kw, dw = load_int(g + KW), load_int(g + DW)
        met = 0
        for i in range(rows):
            place = zeros
            left = load_int(at + COL + 8 * i)
            if 0 <= load_int(at + Z + 8 * i) + z < d and 0 <= load_int(at + ROW + 8 * i) + y < h:
                place = load_int(at + PLACE + 8 * i) + offset
                met = 1
                if not (together and left >= 0 and left + (kw - 1) * dw < w):
                    for tx in range(kw):
                        to = patches + tx * cg * size
                        if 0 <= left + tx * dw < w:
                            copy_channels(to, place + tx * dw * step_col, cg)
                        else:
                            zero_bytes(to, cg * size)
                    place = patches
                    patches += kw * cg * size
            store_int(entry + 8 + 8 * i, place)
        return met, patches

    @njit(**OPTIONS)
    def adjacent(g, step_col):
        """Whether the taps of a kernel row lie side by side in the input."""
        return load_int(g + KW) == 1 or load_int(g + DW) * step_col == load_int(g + CG) * size

    @njit(**OPTIONS)
    def list_merged(g, table, at, zeros, patches, inside, rows, tap_z, step_row, step_col):
        """The same with the taps of a kernel row merged; rows that are not in one piece copied."""
        cg, kd, kh, kw = load_int(g + CG), load_int(g + KD), load_int(g + KH), load_int(g + KW)
        together = adjacent(g, step_col)
        taps, entry = 0, table + 8 * HEAD
        for tz in range(kd):
            for ty in range(kh):
                z, y = tz * load_int(g + DD), ty * load_int(g + DH)
                met = 0
                if inside != 0 and together:
                    met = 1
                    list_places(
                        entry, at, tz * tap_z + y * step_row, rows, inside,
                        load_int(g + SW) * step_col,
                    )  # fmt: skip
                else:
                    met, patches = list_row(
                        g, entry, at, zeros, patches, rows, z, y, tz * tap_z + y * step_row,
                        step_col, together,
                    )  # fmt: skip
                if met != 0:
                    store_int(entry, (tz * kh + ty) * kw * cg * walk)
                    entry += 8 * (1 + rows)
                    taps += 1
        store_int(table, taps)
        return patches

    @njit(**OPTIONS)
    def rows_to_end(g, col, left):
        """Rows of a tile that begins in a column, ``left`` pixels before the last of the task.

        Those up to the next column where tiles end are divided as evenly as possible.
        """
        end = g + COLUMNS
        while load_int(end) <= col:
            end += 8
        run = min(left, load_int(end) - col)
        tiles = (run + mr - 1) // mr
        return (run + tiles - 1) // tiles

    @njit(**OPTIONS)
    def fill(g, x, mine, group, line, p0, pixels):
        """The slab of a group's pixels; what ``transpose_slab`` returns."""
        ow = load_int(g + OW)
        channel = load_int(g + D) * load_int(g + H) * load_int(g + W) * size
        line0, line1 = line + p0 // ow, line + (p0 + pixels - 1) // ow
        image = line0 // (load_int(g + OD) * load_int(g + OH))
        source = x + (image * load_int(g + GROUPS) + group) * load_int(g + CG) * channel
        return transpose_slab(
            g, mine + load_int(g + AT_SLAB), source, line0, line1, p0 % ow, (p0 + pixels - 1) % ow
        )

    @njit(**OPTIONS)
    def list_tables(g, x, mine, group, line, p0, pixels, step):
        """The tables of a task's tiles, ``step`` bytes apart; returns how many."""
        groups, cg = load_int(g + GROUPS), load_int(g + CG)
        d, h, w, ow = load_int(g + D), load_int(g + H), load_int(g + W), load_int(g + OW)
        at, zeros = mine + load_int(g + AT_POSITIONS), mine + load_int(g + AT_ZEROS)
        patches = mine + load_int(g + AT_PATCHES)
        if load_int(g + LAST) != 0:
            base = x + group * cg * size
            step_col = groups * cg * size
            step_row = w * step_col
            step_z = h * step_row
            step_n = d * step_z
            tap_z = step_z * load_int(g + DD)
        else:
            base, pitch, high = fill(g, x, mine, group, line, p0, pixels)
            step_col = load_int(g + SLAB_PITCH)
            step_row = pitch * step_col
            step_z = step_n = 0
            tap_z = high * step_row
        od, oh = load_int(g + OD), load_int(g + OH)
        at_line = p0 // ow
        col = p0 - at_line * ow
        plane = (line + at_line) // oh
        down = line + at_line - plane * oh
        image = plane // od
        deep = plane - image * od
        even = (pixels + mr - 1) // mr
        each = pixels // even
        more = pixels - even * each
        # Where merged taps are copied, each pixel is looked at.
        briefly = load_int(g + MERGED) == 0 or adjacent(g, step_col)
        here = mine + load_int(g + AT_TABLE)
        p = tiles = 0
        while p < pixels:
            rows = each
            if load_int(g + ENDS) != 0:
                rows = rows_to_end(g, col, pixels - p)
            elif tiles < more:
                rows += 1
            inside = locate(
                g, at, base, step_n, step_z, step_row, step_col, image, deep, down, col, rows,
                briefly,
            )  # fmt: skip
            store_int(here + 8, rows)
            store_int(here + 16, p)
            if load_int(g + MERGED) != 0:
                patches = list_merged(
                    g, here, at, zeros, patches, inside, rows, tap_z, step_row, step_col
                )
            else:
                list_taps(g, here, at, zeros, inside, rows, tap_z, step_row, step_col)
            image, deep, down, col = pass_on(image, deep, down, col + rows, od, oh, ow)
            p += rows
            here += step
            tiles += 1
        return tiles

    @njit(**OPTIONS)
    def start(g, mine):
        zero_bytes(mine + load_int(g + AT_ZEROS), load_int(g + ZERO_BYTES))

    @njit(**OPTIONS)
    def multiply(g, weights, bias, y, mine, group, line, p0, pixels, low, high, tables, shift):
        """Panels of a group's columns times the pixels of a task; see ``sum_panel`` for shift.

        ``weights`` are as many bytes before the first panel as the tables have moved for the group.
        """
        groups, cg, kg = load_int(g + GROUPS), load_int(g + CG), load_int(g + KG)
        ow, last_axis = load_int(g + OW), load_int(g + LAST)
        image_lines = load_int(g + OD) * load_int(g + OH)
        outputs = image_lines * ow
        image = line // image_lines
        inner = line * ow + p0 - image * outputs
        channels, block = cg, load_int(g + CBLOCK)
        if load_int(g + MERGED) != 0:
            channels = block = load_int(g + KW) * cg
        panel_bytes = load_int(g + KD) * load_int(g + KH) * load_int(g + KW) * cg * walk
        table, sums = mine + load_int(g + AT_TABLE), mine + load_int(g + AT_SUMS)
        step = load_int(g + TABLE_BYTES)
        for panel in range(low, high):
            k = panel * nr
            count = min(nr, kg - k)
            result = y + (((image * groups + group) * kg + k) * outputs + inner) * size
            if last_axis != 0:
                result = y + (((line * ow + p0) * groups + group) * kg + k) * size
            buffered = last_axis == 0 or (end == 0 and count % vl != 0)
            c, ldc = sums, walk
            if not buffered:
                c, ldc = result, groups * kg * size
            add = addends(bias, group * kg + k, count, mine)
            shift = sum_panel(
                table, tables, step, shift, count, channels, block, weights + panel * panel_bytes,
                c, ldc, ldc, add, load_int(g + ACTIVATION), g + SLOPES,
            )  # fmt: skip
            if last_axis == 0:
                for v in range(0, count, vl):
                    from_lanes(
                        bits, vl, sums + v * size, walk, pixels,
                        result + v * outputs * size, outputs * size, min(vl, count - v),
                    )  # fmt: skip
            elif buffered:
                for p in range(pixels):
                    copy_run(result + p * groups * kg * size, sums + p * walk, count)
        return shift

    @njit(**OPTIONS)
    def run(g, x, weights, bias, y, mine, task):
        cg, panels = load_int(g + CG), load_int(g + PANELS)
        task_panels, task_splits = load_int(g + TASK_PANELS), load_int(g + TASK_SPLITS)
        task_pixels, pixel_blocks = load_int(g + TASK_PIXELS), load_int(g + PIXEL_BLOCKS)
        task_groups = load_int(g + TASK_GROUPS)
        turns = load_int(g + GROUPS) // task_groups
        # Groups before pixels: neighbouring tasks share lines of channels-last arrays.
        rest = task // task_splits
        low = (task - rest * task_splits) * task_panels
        high = min(low + task_panels, panels)
        block = rest // turns
        turn = rest - block * turns
        plane = block // pixel_blocks
        p0 = (block - plane * pixel_blocks) * task_pixels
        line = plane * load_int(g + PLANE_LINES)
        pixels = min(task_pixels, load_int(g + PIXELS) - p0)
        first = turn * task_groups
        tables = list_tables(g, x, mine, first, line, p0, pixels, load_int(g + TABLE_BYTES))
        group_bytes = panels * load_int(g + KD) * load_int(g + KH) * load_int(g + KW) * cg * walk
        # All groups have the tables of the first.  Channels last, the next group's channels follow
        # and the tables move on; channels first, its slab takes the place of the one before.
        move = cg * size if load_int(g + LAST) != 0 else 0
        shift = 0
        for i in range(task_groups):
            if i > 0 and move == 0:
                fill(g, x, mine, first + i, line, p0, pixels)
            here = weights + (first + i) * group_bytes - i * move
            shift = multiply(
                g, here, bias, y, mine, first + i, line, p0, pixels, low, high, tables, shift
            )
            shift -= move

    return taskloop.build(run, start)
