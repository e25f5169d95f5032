"""The kernel of :mod:`convjit_numba.indirect`: slabs, tables of addresses, the loops."""

from __future__ import annotations

from collections.abc import Callable

from convjit_numba.problem import FIELD


def build(
    bits: int, mr: int, nv: int, vl: int, tail: int, whole: bool = False
) -> Callable[..., None]:
    """The kernel for one row tile and ``tail`` vectors of the last panel (imports numba).

    ``whole`` says that the numbers are whole ones, of 64 bits.
    """
    from numba import njit

    from convjit_numba.microkernel import (
        OPTIONS,
        atomic_add,
        copy_bytes,
        load_int,
        move_real,
        move_vectors,
        store_int,
        zero_bytes,
    )
    from convjit_numba.rowtile import row_tiles, whole_row_tiles
    from convjit_numba.transpose import from_lanes, to_lanes

    size = bits // 8
    nr = nv * vl
    walk = nr * size
    f = dict(FIELD)
    TASKS, GRAIN, SLOT_BYTES, GROUPS, CG, KG = (
        f["tasks"], f["grain"], f["slot_bytes"], f["groups"], f["cg"], f["kg"],
    )  # fmt: skip
    D, H, W, OD, OH, OW = f["d"], f["h"], f["w"], f["od"], f["oh"], f["ow"]
    KD, KH, KW, SD, SH, SW = f["kd"], f["kh"], f["kw"], f["sd"], f["sh"], f["sw"]
    PD, PH, PW, DD, DH, DW = f["pd"], f["ph"], f["pw"], f["dd"], f["dh"], f["dw"]
    CBLOCK, CBLOCKS, PANELS = f["cblock"], f["cblocks"], f["panels"]
    TASK_PANELS, TASK_SPLITS = f["task_panels"], f["task_splits"]
    ACTIVATION, SLOPES = f["activation"], f["slope0"]
    PIXELS, TASK_PIXELS, PIXEL_BLOCKS = f["pixels"], f["task_pixels"], f["pixel_blocks"]
    PLANES, PLANE_LINES, LAST = f["planes"], f["plane_lines"], f["last"]
    MERGED, ZERO_BYTES, SLAB_PITCH = f["merged"], f["zero_bytes"], f["slab_pitch"]
    AT_POSITIONS, AT_ZEROS, AT_SUMS = f["at_positions"], f["at_zeros"], f["at_sums"]
    AT_TABLE, AT_PATCHES, AT_SLAB = f["at_table"], f["at_patches"], f["at_slab"]
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
                    # Vectors reach beyond the last channel into the next pixel: the last channels
                    # are written first.
                    c = (cg - 1) // vl * vl
                    while c >= 0:
                        to_lanes(
                            bits, vl, start + c * channel, channel, min(vl, cg - c),
                            into + c * size, pixel, run,
                        )  # fmt: skip
                        c -= vl
        return slab - (low * pitch + left) * pixel, pitch, rows

    @njit(**OPTIONS)
    def locate(g, at, base, step_n, step_z, step_row, step_col, line, col, rows):
        """Where ``rows`` pixels begin to read; whether no tap of theirs meets the padding."""
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        od, oh, ow = load_int(g + OD), load_int(g + OH), load_int(g + OW)
        span_z = (load_int(g + KD) - 1) * load_int(g + DD)
        span_row = (load_int(g + KH) - 1) * load_int(g + DH)
        span_col = (load_int(g + KW) - 1) * load_int(g + DW)
        inside = 1
        for i in range(rows):
            plane = line // oh
            z = plane % od * load_int(g + SD) - load_int(g + PD)
            row = (line - plane * oh) * load_int(g + SH) - load_int(g + PH)
            left = col * load_int(g + SW) - load_int(g + PW)
            if (
                z < 0 or row < 0 or left < 0
                or z + span_z >= d or row + span_row >= h or left + span_col >= w
            ):  # fmt: skip
                inside = 0
            store_int(at + Z + 8 * i, z)
            store_int(at + ROW + 8 * i, row)
            store_int(at + COL + 8 * i, left)
            place = base + plane // od * step_n + z * step_z + row * step_row + left * step_col
            store_int(at + PLACE + 8 * i, place)
            col += 1
            if col == ow:
                col = 0
                line += 1
        return inside

    @njit(**OPTIONS)
    def list_taps(g, table, at, zeros, inside, rows, tap_z, step_row, step_col):
        """The table of a tile: how many taps, then an offset and ``rows`` addresses for each."""
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        kd, kh, kw = load_int(g + KD), load_int(g + KH), load_int(g + KW)
        weights = load_int(g + CG) * walk
        taps, entry = 0, table + 8
        for tz in range(kd):
            for ty in range(kh):
                for tx in range(kw):
                    y, x = ty * load_int(g + DH), tx * load_int(g + DW)
                    offset = tz * tap_z + y * step_row + x * step_col
                    met = inside
                    if inside != 0:
                        for i in range(rows):
                            place = load_int(at + PLACE + 8 * i) + offset
                            store_int(entry + 8 + 8 * i, place)
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
    def list_rows(g, table, at, zeros, patches, rows, tap_z, step_row, step_col):
        """The same with the taps of a kernel row merged; rows that are not in one piece copied."""
        d, h, w, cg = load_int(g + D), load_int(g + H), load_int(g + W), load_int(g + CG)
        kd, kh, kw, dw = load_int(g + KD), load_int(g + KH), load_int(g + KW), load_int(g + DW)
        adjacent = kw == 1 or dw * step_col == cg * size
        taps, entry = 0, table + 8
        for tz in range(kd):
            for ty in range(kh):
                z, y = tz * load_int(g + DD), ty * load_int(g + DH)
                met = 0
                for i in range(rows):
                    place = zeros
                    left = load_int(at + COL + 8 * i)
                    if (
                        0 <= load_int(at + Z + 8 * i) + z < d
                        and 0 <= load_int(at + ROW + 8 * i) + y < h
                    ):
                        place = load_int(at + PLACE + 8 * i) + tz * tap_z + y * step_row
                        met = 1
                        if not (adjacent and left >= 0 and left + (kw - 1) * dw < w):
                            for tx in range(kw):
                                to = patches + tx * cg * size
                                if 0 <= left + tx * dw < w:
                                    for c in range(cg):
                                        source = place + tx * dw * step_col + c * size
                                        move_real(bits, to + c * size, source)
                                else:
                                    zero_bytes(to, cg * size)
                            place = patches
                            patches += kw * cg * size
                    store_int(entry + 8 + 8 * i, place)
                if met != 0:
                    store_int(entry, (tz * kh + ty) * kw * cg * walk)
                    entry += 8 * (1 + rows)
                    taps += 1
        store_int(table, taps)
        return patches

    @njit(**OPTIONS)
    def move_run(target, source, count):
        """Copy ``count`` numbers by vectors, the last of which overlaps."""
        if count < vl:
            copy_bytes(target, source, count * size)
        else:
            for c in range(0, count - vl, vl):
                move_vectors(bits, vl, 1, target + c * size, source + c * size)
            c = (count - vl) * size
            move_vectors(bits, vl, 1, target + c, source + c)

    def kernel(g, x, weights, bias, y, workspace, control):
        tasks, grain = load_int(g + TASKS), load_int(g + GRAIN)
        groups, cg, kg = load_int(g + GROUPS), load_int(g + CG), load_int(g + KG)
        d, h, w, ow = load_int(g + D), load_int(g + H), load_int(g + W), load_int(g + OW)
        kd, kh, kw = load_int(g + KD), load_int(g + KH), load_int(g + KW)
        outputs = load_int(g + OD) * load_int(g + OH) * ow
        planes, plane_lines = load_int(g + PLANES), load_int(g + PLANE_LINES)
        cblock, cblocks, panels = load_int(g + CBLOCK), load_int(g + CBLOCKS), load_int(g + PANELS)
        task_panels, task_splits = load_int(g + TASK_PANELS), load_int(g + TASK_SPLITS)
        all_pixels, task_pixels = load_int(g + PIXELS), load_int(g + TASK_PIXELS)
        pixel_blocks, activation = load_int(g + PIXEL_BLOCKS), load_int(g + ACTIVATION)
        last_axis, merged = load_int(g + LAST), load_int(g + MERGED)
        panel_bytes = kd * kh * kw * cg * walk
        entries = kd * kh if merged != 0 else kd * kh * kw
        table_bytes = 8 + entries * (1 + mr) * 8
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
                zero_bytes(zeros, load_int(g + ZERO_BYTES))
                fresh = 0
            last = min(first + grain, tasks)
            for task in range(first, last):
                rest = task // task_splits
                low_panel = (task - rest * task_splits) * task_panels
                high_panel = min(low_panel + task_panels, panels)
                unit = rest // pixel_blocks
                p0 = (rest - unit * pixel_blocks) * task_pixels
                group = unit // planes
                plane = unit - group * planes
                pixels = min(task_pixels, all_pixels - p0)
                line = plane * plane_lines
                # The rows of the product.
                if last_axis != 0:
                    base = x + group * cg * size
                    step_col = groups * cg * size
                    step_row = w * step_col
                    step_z = h * step_row
                    step_n = d * step_z
                    tap_z = step_z * load_int(g + DD)
                else:
                    line0, line1 = line + p0 // ow, line + (p0 + pixels - 1) // ow
                    image = line0 // (load_int(g + OD) * load_int(g + OH))
                    source = x + (image * groups + group) * cg * d * h * w * size
                    base, pitch, high = transpose_slab(
                        g, slab, source, line0, line1, p0 % ow, (p0 + pixels - 1) % ow
                    )
                    step_col = load_int(g + SLAB_PITCH)
                    step_row = pitch * step_col
                    step_z = step_n = 0
                    tap_z = high * step_row
                tiles = (pixels + mr - 1) // mr
                patches = mine + load_int(g + AT_PATCHES)
                for tile in range(tiles):
                    p = tile * pixels // tiles
                    rows = (tile + 1) * pixels // tiles - p
                    at_line = (p0 + p) // ow
                    col = p0 + p - at_line * ow
                    inside = locate(
                        g, at, base, step_n, step_z, step_row, step_col, line + at_line, col, rows
                    )
                    here = table + tile * table_bytes
                    if merged != 0:
                        patches = list_rows(
                            g, here, at, zeros, patches, rows, tap_z, step_row, step_col
                        )
                    else:
                        list_taps(g, here, at, zeros, inside, rows, tap_z, step_row, step_col)
                # The product, a panel of columns at a time.
                shift = 0
                for panel in range(low_panel, high_panel):
                    k = panel * nr
                    lanes = nr
                    if panel == panels - 1:
                        lanes = tail * vl
                    count = min(lanes, kg - k)
                    buffered = last_axis == 0 or count < lanes
                    c, ldc = sums, walk
                    result = y
                    if last_axis != 0:
                        result += (((line * ow + p0) * groups + group) * kg + k) * size
                    else:
                        image = line // (load_int(g + OD) * load_int(g + OH))
                        inner = line * ow + p0 - image * outputs
                        result += (((image * groups + group) * kg + k) * outputs + inner) * size
                    if not buffered:
                        c, ldc = result, groups * kg * size
                    add = 0
                    if bias != 0:
                        add = bias + (group * kg + k) * size
                        if count < lanes:
                            copy_bytes(mine, add, count * size)
                            add = mine
                    for block in range(cblocks):
                        begin = block * cblock
                        kc = min(cblock, cg - begin)
                        if merged != 0:
                            kc = kw * cg
                        move = begin * size - shift
                        if move != 0:
                            # Offsets of weights move with the addresses, which ``b`` makes up for.
                            for tile in range(tiles):
                                here = table + tile * table_bytes
                                size_p = (tile + 1) * pixels // tiles - tile * pixels // tiles
                                for e in range(load_int(here) * (1 + size_p)):
                                    entry = here + 8 + 8 * e
                                    store_int(entry, load_int(entry) + move)
                            shift = begin * size
                        b = weights + (group * panels + panel) * panel_bytes + begin * walk - shift
                        bias_now, kind = 0, 0
                        if block == cblocks - 1:
                            bias_now, kind = add, activation
                        accumulate = 1 if block > 0 else 0
                        for tile in range(tiles):
                            p = tile * pixels // tiles
                            rows = (tile + 1) * pixels // tiles - p
                            here = table + tile * table_bytes
                            if whole and lanes == nr:
                                whole_row_tiles(
                                    mr, nv, vl, rows, load_int(here), here + 8, kc, b, walk,
                                    c + p * ldc, ldc, accumulate, bias_now,
                                )  # fmt: skip
                            elif whole:
                                whole_row_tiles(
                                    mr, tail, vl, rows, load_int(here), here + 8, kc, b, walk,
                                    c + p * ldc, ldc, accumulate, bias_now,
                                )  # fmt: skip
                            elif lanes == nr:
                                row_tiles(
                                    bits, mr, nv, vl, rows, load_int(here), here + 8, kc, b, walk,
                                    c + p * ldc, ldc, accumulate, bias_now, kind, g + SLOPES,
                                )  # fmt: skip
                            else:
                                row_tiles(
                                    bits, mr, tail, vl, rows, load_int(here), here + 8, kc, b, walk,
                                    c + p * ldc, ldc, accumulate, bias_now, kind, g + SLOPES,
                                )  # fmt: skip
                    if last_axis == 0:
                        for v in range(0, count, vl):
                            from_lanes(
                                bits, vl, sums + v * size, walk, pixels,
                                result + v * outputs * size, outputs * size, min(vl, count - v),
                            )  # fmt: skip
                    elif buffered:
                        for p in range(pixels):
                            move_run(result + p * groups * kg * size, sums + p * walk, count)
            if control == 0:
                first = last

    return kernel
