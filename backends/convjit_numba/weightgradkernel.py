"""Kernels of :mod:`convjit_numba.weight_grad`: the product, and the addition of its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convjit_numba import taskloop
from convjit_numba.problem import FIELD


def build(
    bits: int, mr: int, nv: int, vl: int, tail: int, end: int, last: bool
) -> Callable[..., None]:
    """The kernel for one row tile and ``tail`` vectors of the last panel (imports numba).

    ``end`` are the lanes of the last of them, if half a vector is enough, else 0; ``last`` says
    that channels are last.
    """
    from numba import njit

    from convjit_numba.memory import load_int, store_int, zero_bytes
    from convjit_numba.rowtile import row_tiles, row_tiles_across
    from convjit_numba.transpose import to_lanes
    from convjit_numba.vectorcode import OPTIONS

    slot_of, take = taskloop.sharing()
    finish = _build_finish(bits, vl)
    copy_pixels = build_copy(bits, nv, vl)
    size = bits // 8
    nr = nv * vl
    f = dict(FIELD)
    TASKS, GRAIN, SLOT_BYTES, BATCH, GROUPS, CG, KG = (
        f["tasks"], f["grain"], f["slot_bytes"], f["batch"], f["groups"], f["cg"], f["kg"],
    )  # fmt: skip
    D, H, W, OD, OH, OW = f["d"], f["h"], f["w"], f["od"], f["oh"], f["ow"]
    KD, KH, KW, SD, SH, SW = f["kd"], f["kh"], f["kw"], f["sd"], f["sh"], f["sw"]
    PD, PH, PW, DD, DH, DW = f["pd"], f["ph"], f["pw"], f["dd"], f["dh"], f["dw"]
    PANELS, TASK_PANELS, PANEL_SPLITS = f["panels"], f["task_panels"], f["task_splits"]
    TASK_ROWS, ROW_SPLITS, SPLITS = f["task_rows"], f["row_splits"], f["splits"]
    ROWS, COLS, IMAGES = f["rows"], f["cols"], f["images"]
    ROW_BLOCKS, COL_BLOCKS, IMAGE_BLOCKS = f["row_blocks"], f["col_blocks"], f["image_blocks"]
    MERGED, PITCH, WIDTH, IN_PLACE = f["merged"], f["pitch"], f["wide"], f["in_place"]
    AT_TABLE, AT_SLAB, AT_SUMS = f["at_table"], f["at_slab"], f["at_sums"]
    PARTIAL_BYTES = f["partial_bytes"]

    def product_of(vectors, lanes):
        """What adds the products of a panel of so many vectors, its last one of ``lanes``."""

        @njit(**OPTIONS)
        def along(rows, count, entries, cols, b, walk, c, ldc, step):
            row_tiles(bits, mr, vectors, vl, lanes, 0, rows, count, entries, cols, b, walk,
                      c, ldc, 1, 0, 0, 0, lanes)  # fmt: skip

        @njit(**OPTIONS)
        def across(rows, count, entries, cols, b, walk, c, ldc, step):
            row_tiles_across(bits, mr, vectors, vl, lanes, rows, count, entries, cols, b, walk,
                             c, ldc, 1, 0, 0, 0, lanes, step)  # fmt: skip

        return across if last else along

    product, final_product = product_of(nv, 0), product_of(tail, end)

    @njit(**OPTIONS)
    def fill_rows(g, slab, x, row, step, rows, col, cols, count):
        """Pixels of ``count`` channels: every ``step``-th row and all columns, from those given.

        ``x`` is the first channel's plane.
        """
        h, w, pitch = load_int(g + H), load_int(g + W), load_int(g + PITCH) * size
        runs, length = rows, cols
        if cols == w and step == 1:
            runs, length = 1, rows * cols
        if last:
            pixel = load_int(g + GROUPS) * load_int(g + CG) * size
            for run in range(runs):
                source = x + ((row + run * step) * w + col) * pixel
                copy_pixels(slab + run * length * pitch, pitch, source, pixel, count, length)
            return
        channel = load_int(g + D) * h * w * size
        for run in range(runs):
            source = x + ((row + run * step) * w + col) * size
            target = slab + run * length * pitch
            # The last channels first: vectors reach beyond them, into the next pixel where the
            # lanes of the slab are no more than the channels.
            c = (count - 1) // vl * vl
            while c >= 0:
                to_lanes(bits, vl, source + c * channel, channel, min(vl, count - c),
                         target + c * size, pitch, length)  # fmt: skip
                c -= vl

    @njit(**OPTIONS)
    def fill_padded(g, slab, x, row, step, rows, col, cols):
        """The same of all channels, with columns in the padding, which are zeros."""
        w, pitch = load_int(g + W), load_int(g + PITCH) * size
        left = max(0, min(cols, -col))
        right = max(left, min(cols, w - col))
        for r in range(rows):
            target = slab + r * cols * pitch
            zero_bytes(target, left * pitch)
            if right > left:
                fill_rows(g, target + left * pitch, x, row + r * step, 1, 1, col + left,
                          right - left, load_int(g + CG))  # fmt: skip
            zero_bytes(target + right * pitch, (cols - right) * pitch)

    @njit(**OPTIONS)
    def list_rows(g, table, gy, k_step, image_step, row_step, k_count, rows, images, image, line):
        """Per tile of channels and row of outputs: the offset in x, and the rows of gy.

        Rows of the same height lie together, so that those that a tap meets are one range.
        ``image`` and ``line`` are the bytes to the next image and row of the slab, or of x.
        """
        # From output row to output row of the slab.
        step = load_int(g + SH) if load_int(g + KH) > 1 else 1
        tiles = (k_count + mr - 1) // mr
        entry = table
        for tile in range(tiles):
            k0 = tile * k_count // tiles
            count = (tile + 1) * k_count // tiles - k0
            for r in range(rows):
                for i in range(images):
                    store_int(entry, i * image + r * step * line)
                    here = gy + k0 * k_step + i * image_step + r * row_step
                    for j in range(count):
                        store_int(entry + 8 + 8 * j, here + j * k_step)
                    entry += 8 * (1 + count)

    def kernel(g, x, gy, unused, gw, workspace, control):
        tasks, grain = load_int(g + TASKS), load_int(g + GRAIN)
        batch, groups, cg, kg = (
            load_int(g + BATCH), load_int(g + GROUPS), load_int(g + CG), load_int(g + KG),
        )  # fmt: skip
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        od, oh, ow = load_int(g + OD), load_int(g + OH), load_int(g + OW)
        kd, kh, kw = load_int(g + KD), load_int(g + KH), load_int(g + KW)
        sd, sh, sw = load_int(g + SD), load_int(g + SH), load_int(g + SW)
        pd, ph, pw = load_int(g + PD), load_int(g + PH), load_int(g + PW)
        dd, dh, dw = load_int(g + DD), load_int(g + DH), load_int(g + DW)
        panels, task_panels = load_int(g + PANELS), load_int(g + TASK_PANELS)
        panel_splits, row_splits = load_int(g + PANEL_SPLITS), load_int(g + ROW_SPLITS)
        task_rows, splits = load_int(g + TASK_ROWS), load_int(g + SPLITS)
        block_rows, block_cols = load_int(g + ROWS), load_int(g + COLS)
        block_images, image_blocks = load_int(g + IMAGES), load_int(g + IMAGE_BLOCKS)
        row_blocks, col_blocks = load_int(g + ROW_BLOCKS), load_int(g + COL_BLOCKS)
        merged, in_place = load_int(g + MERGED), load_int(g + IN_PLACE)
        pitch = load_int(g + PITCH) * size
        width = load_int(g + WIDTH) * size  # of a row of sums
        tap_cols = 1 if merged != 0 else kw
        tap_rows = kd * kh * tap_cols
        units = image_blocks * od * row_blocks * col_blocks
        # A kernel of one row meets every sh-th row alone.
        row_stride = sh if kh == 1 else 1
        mine = workspace + load_int(g + PARTIAL_BYTES) + slot_of(control) * load_int(g + SLOT_BYTES)
        table, slab = mine + load_int(g + AT_TABLE), mine + load_int(g + AT_SLAB)
        task0, task1, turn = take(control, tasks, grain, 0)
        while task0 < task1:
            for task in range(task0, task1):
                rest = task // panel_splits
                panel0 = (task - rest * panel_splits) * task_panels
                panel1 = min(panel0 + task_panels, panels)
                k0 = rest % row_splits * task_rows
                k_count = min(task_rows, kg - k0)
                rest //= row_splits
                group = rest % groups
                split = rest // groups
                lanes = (panel1 - panel0) * nr
                if panel1 == panels:
                    lanes -= (nv - tail) * vl
                sums = mine + load_int(g + AT_SUMS)
                if splits > 1:
                    place = ((split * groups + group) * kg + k0) * tap_rows * width
                    sums = workspace + place + panel0 * nr * size
                for row in range(k_count * tap_rows):
                    zero_bytes(sums + row * width, lanes * size)
                tiles = (k_count + mr - 1) // mr
                ldc = tap_rows * width
                for unit in range(split * units // splits, (split + 1) * units // splits):
                    rest = unit // col_blocks
                    c0 = (unit - rest * col_blocks) * block_cols
                    cols = min(block_cols, ow - c0)
                    r0 = rest % row_blocks * block_rows
                    rows = min(block_rows, oh - r0)
                    rest //= row_blocks
                    oz = rest % od
                    n0 = rest // od * block_images
                    images = min(block_images, batch - n0)
                    # gy: the address of output row 0 and column c0, and its steps.
                    if last:
                        pixel = (((n0 * od + oz) * oh + r0) * ow + c0) * groups + group
                        rows_of_gy = gy + (pixel * kg + k0) * size
                        k_step, col_step = size, groups * kg * size
                        row_step, image_step = ow * col_step, od * oh * ow * col_step
                    else:
                        plane = ((n0 * groups + group) * kg + k0) * od + oz
                        rows_of_gy = gy + ((plane * oh + r0) * ow + c0) * size
                        k_step, col_step = od * oh * ow * size, size
                        row_step, image_step = ow * size, groups * kg * k_step
                    # x: rows and columns of the slab.
                    low, high = r0 * sh - ph, (r0 + rows - 1) * sh - ph + (kh - 1) * dh + 1
                    if low < 0:
                        low += (-low + row_stride - 1) // row_stride * row_stride
                    high = min(high, h)
                    slab_rows = max(0, (high - low + row_stride - 1) // row_stride)
                    left = c0 * sw - pw
                    right = (c0 + cols - 1) * sw - pw + (kw - 1) * dw + 1
                    if merged == 0:
                        left, right = max(0, left), min(w, right)
                    slab_cols = right - left
                    if slab_rows == 0 or slab_cols <= 0:
                        continue
                    line = slab_cols * pitch
                    image = slab_rows * line
                    if in_place != 0:
                        line = row_stride * w * pitch
                        image = d * h * w * pitch
                    for tz in range(kd):
                        z = oz * sd - pd + tz * dd
                        if z < 0 or z >= d:
                            continue
                        for panel in range(panel0, panel1):
                            # Merged panels share a slab.
                            c = 0 if merged != 0 else panel * nr
                            for i in range(images):
                                channel = (n0 + i) * groups * cg + group * cg + c
                                source = x + (channel * d + z) * h * w * size
                                if last:
                                    pixel = ((n0 + i) * d + z) * h * w
                                    source = x + ((pixel * groups + group) * cg + c) * size
                                if in_place != 0:
                                    if i == 0:
                                        slab = source + (low * w + left) * pitch
                                elif merged == 0:
                                    fill_rows(g, slab + i * image, source, low, row_stride,
                                              slab_rows, left, slab_cols,
                                              min(nr, cg - c))  # fmt: skip
                                elif panel == panel0:
                                    fill_padded(g, slab + i * image, source, low, row_stride,
                                                slab_rows, left, slab_cols)  # fmt: skip
                            # Lanes beyond the last pixel are not used, but old memory may hold
                            # numbers so small that products with them take a hundred times as long.
                            if in_place == 0:
                                zero_bytes(slab + images * image, nr * size)
                            listed = -1
                            for tx in range(tap_cols):
                                # The columns of outputs that the tap meets the image in.
                                shift = tx * dw - pw
                                begin, stop = c0, c0 + cols
                                if merged == 0:
                                    begin = max(begin, (sw - 1 - shift) // sw)
                                    stop = min(stop, (w - shift + sw - 1) // sw)
                                if stop <= begin:
                                    continue
                                if begin != listed:
                                    at = rows_of_gy + (begin - c0) * col_step
                                    list_rows(g, table, at, k_step, image_step, row_step, k_count,
                                              rows, images, image, line)  # fmt: skip
                                    listed = begin
                                for ty in range(kh):
                                    shift_row = ty * dh - ph
                                    top = max(r0, (sh - 1 - shift_row) // sh)
                                    bottom = min(r0 + rows, (h - shift_row + sh - 1) // sh)
                                    if bottom <= top:
                                        continue
                                    # Where output row r0 and column begin meet the tap.
                                    row = (r0 * sh + shift_row - low) // row_stride
                                    col = (
                                        begin * sw - pw - left
                                        if merged != 0
                                        else (begin * sw + shift - left)
                                    )
                                    b = slab + row * line + col * pitch
                                    if merged != 0:
                                        b += panel * nr * size
                                    tap = (tz * kh + ty) * tap_cols + tx
                                    c_tile = sums + tap * width + (panel - panel0) * nr * size
                                    skip, count = (top - r0) * images, (bottom - top) * images
                                    entries = table
                                    for tile in range(tiles):
                                        k = tile * k_count // tiles
                                        size_k = (tile + 1) * k_count // tiles - k
                                        here = entries + skip * 8 * (1 + size_k)
                                        entries += rows * images * 8 * (1 + size_k)
                                        if panel < panels - 1 or (tail == nv and end == 0):
                                            product(
                                                size_k, count, here, stop - begin, b, sw * pitch,
                                                c_tile + k * ldc, ldc, col_step,
                                            )  # fmt: skip
                                        else:
                                            final_product(
                                                size_k, count, here, stop - begin, b, sw * pitch,
                                                c_tile + k * ldc, ldc, col_step,
                                            )  # fmt: skip
                if splits == 1:
                    for k in range(k_count):
                        finish(
                            sums + k * ldc, width, gw, group * kg + k0 + k, panel0 * nr,
                            min(lanes, cg - panel0 * nr) if merged == 0 else cg, cg,
                            kd * kh, kw, merged,
                        )  # fmt: skip
            task0, task1, turn = take(control, tasks, grain, turn)

    return kernel


def build_copy(bits: int, nv: int, vl: int) -> Any:
    """What copies up to ``nv`` vectors of channels of channels-last pixels."""
    from numba import njit

    from convjit_numba.memory import move_real, move_vectors
    from convjit_numba.vectorcode import OPTIONS

    size = bits // 8
    nr = nv * vl

    @njit(**OPTIONS)
    def copy_pixels(target, pitch, source, pixel, count, pixels):
        """``count`` channels of each of ``pixels`` channels-last pixels."""
        whole = count // vl
        if whole == nv and count == nr:
            for _ in range(pixels):
                move_vectors(bits, vl, nv, target, source)
                target += pitch
                source += pixel
            return
        for _ in range(pixels):
            for v in range(whole):
                move_vectors(bits, vl, 1, target + v * vl * size, source + v * vl * size)
            for c in range(whole * vl, count):
                move_real(bits, target + c * size, source + c * size)
            target += pitch
            source += pixel

    return copy_pixels


def _build_finish(bits: int, vl: int) -> Any:
    """What moves a row of finished sums, (taps, lanes), to the result, (C, taps)."""
    from numba import njit

    from convjit_numba.memory import copy_bytes
    from convjit_numba.transpose import from_lanes
    from convjit_numba.vectorcode import OPTIONS

    size = bits // 8

    @njit(**OPTIONS)
    def finish(sums, width, gw, k, c, count, cg, rows, kw, merged):
        """``count`` channels from c on of output channel k; ``sums`` begins with channel c."""
        taps = rows * kw
        into = gw + (k * cg + c) * taps * size
        if taps == 1:
            copy_bytes(into, sums, count * size)
            return
        for v in range(0, count, vl):
            some, target = min(vl, count - v), into + v * taps * size
            if merged == 0:
                from_lanes(bits, vl, sums + v * size, width, taps, target, taps * size, some)
            else:
                for row in range(rows):
                    from_lanes(
                        bits, vl, sums + row * width + v * size, cg * size, kw,
                        target + row * kw * size, taps * size, some,
                    )  # fmt: skip

    return finish


def build_sum(bits: int, nv: int, vl: int) -> Callable[..., None]:
    """The kernel that adds the sums of the splits, in their order, and finishes them."""
    from convjit_numba.memory import load_int, store_int
    from convjit_numba.rowtile import row_tile

    slot_of, take = taskloop.sharing()
    finish = _build_finish(bits, vl)
    size = bits // 8
    nr = nv * vl
    f = dict(FIELD)
    GRAIN, SLOT_BYTES, GROUPS, CG, KG = (
        f["grain"], f["slot_bytes"], f["groups"], f["cg"], f["kg"],
    )  # fmt: skip
    KD, KH, KW, SPLITS, MERGED = f["kd"], f["kh"], f["kw"], f["splits"], f["merged"]
    WIDTH, PARTIAL_BYTES = f["wide"], f["partial_bytes"]
    AT_TABLE, AT_SUMS, ONE = f["at_table"], f["at_sums"], f["slope0"]

    def kernel(g, x, gy, unused, gw, workspace, control):
        kg, cg, kw = load_int(g + KG), load_int(g + CG), load_int(g + KW)
        rows, splits = load_int(g + KD) * load_int(g + KH), load_int(g + SPLITS)
        merged, width = load_int(g + MERGED), load_int(g + WIDTH)
        length = rows * width if merged != 0 else rows * kw * width
        tasks = load_int(g + GROUPS) * kg
        grain = load_int(g + GRAIN)
        mine = workspace + load_int(g + PARTIAL_BYTES) + slot_of(control) * load_int(g + SLOT_BYTES)
        table, sums = mine + load_int(g + AT_TABLE), mine + load_int(g + AT_SUMS)
        # The row tile adds one times each split's vectors.
        for split in range(splits):
            store_int(table + 16 * split, split * tasks * length * size)
            store_int(table + 16 * split + 8, g + ONE)
        first, last, turn = take(control, tasks, grain, 0)
        while first < last:
            for k in range(first, last):
                for place in range(0, length, nr):
                    row_tile(
                        bits, 1, nv, vl, splits, table, 1, workspace + (k * length + place) * size,
                        0, sums + place * size, 0, 0, 0, 0, 0,
                    )  # fmt: skip
                finish(sums, width * size, gw, k, 0, cg, cg, rows, kw, merged)
            first, last, turn = take(control, tasks, grain, turn)

    return kernel
