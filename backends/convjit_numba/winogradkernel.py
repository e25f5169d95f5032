"""The kernels of fused Winograd convolution: data, products and results of a block of tiles.

See :mod:`convjit_numba.winograd` for the method, and for the sizes that the kernels are given.  The
transforms of one tile and the row tile are kernels of their own, called by address: whatever the
tile's size is, the walk over images and tiles is the same code, compiled once.
"""

from __future__ import annotations

from collections.abc import Callable

from convjit_numba import taskloop
from convjit_numba.problem import FIELD, Axes


def build_transform(bits: int, vl: int, kind: int, m: Axes, r: Axes) -> Callable[..., None]:
    """The transform of one tile and vector of channels along all axes.

    ``kind`` is one of :mod:`convjit_numba.winogradcode`.  Points and taps are ``step`` bytes apart;
    patches of an image have a stride for each axis; three axes go through ``fold``.
    """
    from convjit_numba.winogradcode import DATA, OUTPUT, TAPS, plane_transform

    vector = vl * (bits // 8)
    md, mh, mw = m
    rd, rh, rw = r
    nd, nw = md + rd - 1, mw + rw - 1
    plane = (mh + rh - 1) * nw

    def data(patch, deep, down, right, fold, target, step):
        if nd == 1:
            plane_transform(bits, vl, DATA, mh, rh, mw, rw, patch, down, right,
                            target, nw * step, step, 0, 0, 0, 0)  # fmt: skip
        else:
            for z in range(nd):
                plane_transform(bits, vl, DATA, mh, rh, mw, rw, patch + z * deep, down, right,
                                fold + z * plane * vector, nw * vector, vector,
                                0, 0, 0, 0)  # fmt: skip
            for e in range(plane):
                plane_transform(bits, vl, DATA, md, rd, 1, 1, fold + e * vector, plane * vector, 0,
                                target + e * step, plane * step, 0, 0, 0, 0, 0)  # fmt: skip

    def output(products, step, fold, target, deep, down, right, bias, activation, slopes):
        if nd == 1:
            plane_transform(bits, vl, OUTPUT, mh, rh, mw, rw, products, nw * step, step,
                            target, down, right, 1, bias, activation, slopes)  # fmt: skip
        else:
            for e in range(plane):
                plane_transform(bits, vl, OUTPUT, md, rd, 1, 1, products + e * step, plane * step,
                                0, fold + e * vector, plane * vector, 0, 0, 0, 0, 0)  # fmt: skip
            for z in range(md):
                plane_transform(bits, vl, OUTPUT, mh, rh, mw, rw, fold + z * plane * vector,
                                nw * vector, vector, target + z * deep, down, right,
                                1, bias, activation, slopes)  # fmt: skip

    def taps(source, fold, target, step):
        if nd == 1:
            plane_transform(bits, vl, TAPS, mh, rh, mw, rw, source, rw * vector, vector,
                            target, nw * step, step, 0, 0, 0, 0)  # fmt: skip
        else:
            for z in range(rd):
                plane_transform(bits, vl, TAPS, mh, rh, mw, rw, source + z * rh * rw * vector,
                                rw * vector, vector, fold + z * plane * vector, nw * vector,
                                vector, 0, 0, 0, 0)  # fmt: skip
            for e in range(plane):
                plane_transform(bits, vl, TAPS, md, rd, 1, 1, fold + e * vector, plane * vector, 0,
                                target + e * step, plane * step, 0, 0, 0, 0, 0)  # fmt: skip

    transforms: dict[int, Callable[..., None]] = {DATA: data, OUTPUT: output, TAPS: taps}
    return transforms[kind]


def build_rows(bits: int, mr: int, nv: int, vl: int) -> Callable[..., None]:
    """The row tile of 1 to ``mr`` rows, summed from nothing, as a kernel."""
    from convjit_numba.rowtile import row_tiles_ahead

    def rows(count, table, kc, b, walk, c, ldc, ahead):
        row_tiles_ahead(bits, mr, nv, vl, count, 1, table, kc, b, walk, c, ldc, 0, 0, 0, 0,
                        ahead)  # fmt: skip

    return rows


def build(bits: int, vl: int, channels_last: bool) -> Callable[..., None]:
    """The kernel for one layout (imports numba)."""
    from numba import njit

    from convjit_numba.memory import call_code, copy_bytes, load_int, store_int, zero_bytes
    from convjit_numba.transpose import from_lanes, to_lanes
    from convjit_numba.vectorcode import OPTIONS
    from convjit_numba.winogradcode import read_pixels, write_pixels

    slot_of, take = taskloop.sharing()
    size = bits // 8
    vector = vl * size
    last = channels_last
    f = dict(FIELD)
    MR, NR, POINTS = f["tile_rows"], f["tile_columns"], f["points"]
    MD, MH, MW, ND, NH, NW = f["md"], f["mh"], f["mw"], f["nd"], f["nh"], f["nw"]
    DATA, OUTPUT, ROW_TILES = f["data_code"], f["output_code"], f["rows_code"]
    TASKS, GRAIN, SLOT_BYTES, GROUPS, CG, KG = (
        f["tasks"], f["grain"], f["slot_bytes"], f["groups"], f["cg"], f["kg"],
    )  # fmt: skip
    D, H, W, OD, OH, OW = f["d"], f["h"], f["w"], f["od"], f["oh"], f["ow"]
    PD, PH, PW, DD, DH, DW = f["pd"], f["ph"], f["pw"], f["dd"], f["dh"], f["dw"]
    UNIT = f["unit"]
    PANELS, TASK_PANELS, TASK_SPLITS = f["panels"], f["task_panels"], f["task_splits"]
    ACTIVATION, SLOPES = f["activation"], f["slope0"]
    TILES_D, TILES_H, TILES_W, TILES = f["tiles_d"], f["tiles_h"], f["tiles_w"], f["tiles"]
    TASK_TILES, TILE_BLOCKS, ROW_BYTES = f["task_tiles"], f["tile_blocks"], f["row_bytes"]
    POINT_BYTES, PRODUCT_BYTES = f["point_bytes"], f["product_bytes"]
    AT_PATCH, AT_FOLD, AT_POINTS = f["at_patch"], f["at_fold"], f["at_points"]
    AT_PRODUCTS, AT_OUTPUTS = f["at_products"], f["at_outputs"]

    @njit(**OPTIONS)
    def fill(g, patch, x, deep, down, right, step, z0, r0, c0, parts, wide, channels):
        """The patch from (z0, r0, c0) on, zero-padded, as vectors of channels.

        A row of it is ``parts`` parts of ``wide`` neighbours each, which begin ``dw`` columns from
        one another.  ``x`` is the address of position (0, 0, 0) of the first channel; ``deep``,
        ``down`` and ``right`` lead to the next slice, row and column, ``step`` to the next channel.
        """
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        nd, nh = load_int(g + ND), load_int(g + NH)
        dd, dh, dw = load_int(g + DD), load_int(g + DH), load_int(g + DW)
        low = min(wide, max(0, -c0))
        high = max(low, min(wide, w - c0))
        target = patch
        # Neither here nor below does a range have a step: numba divides by one that it reads.
        for i in range(nd):
            z = z0 + i * dd
            for j in range(nh):
                row = r0 + j * dh
                if 0 <= z < d and 0 <= row < h:
                    lo, hi = low, high
                    for part in range(parts):
                        col = c0 + part * dw
                        if part > 0:
                            lo = min(wide, max(0, -col))
                            hi = max(lo, min(wide, w - col))
                        source = x + z * deep + row * down + (col + lo) * right
                        if lo > 0:
                            zero_bytes(target, lo * vector)
                        if last:
                            read_pixels(bits, vl, target + lo * vector, source, right, hi - lo,
                                        channels)  # fmt: skip
                        else:
                            to_lanes(bits, vl, source, step, channels, target + lo * vector,
                                     vector, hi - lo)  # fmt: skip
                        if hi < wide:
                            zero_bytes(target + hi * vector, (wide - hi) * vector)
                        target += wide * vector
                else:
                    zero_bytes(target, parts * wide * vector)
                    target += parts * wide * vector

    @njit(**OPTIONS)
    def begins(tile, outputs, dilation):
        """The first output of a tile along an axis: every ``dilation``-th is of the same tile."""
        if dilation == 1:
            return tile * outputs
        return tile // dilation * outputs * dilation + tile % dilation

    @njit(**OPTIONS)
    def exist(first, outputs, dilation, out):
        """How many of a tile's outputs there are along an axis, or less than one."""
        if dilation == 1:
            return min(outputs, out - first)
        return min(outputs, (out - first + dilation - 1) // dilation)

    @njit(**OPTIONS)
    def data(g, mine, x, group, first, count):
        """Points of ``count`` tiles: ``(points, tiles, channels)``."""
        groups, cg = load_int(g + GROUPS), load_int(g + CG)
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        tiles_d, tiles_h, tiles_w = (
            load_int(g + TILES_D),
            load_int(g + TILES_H),
            load_int(g + TILES_W),
        )
        md, mh, mw = load_int(g + MD), load_int(g + MH), load_int(g + MW)
        nd, nh, nw = load_int(g + ND), load_int(g + NH), load_int(g + NW)
        dd, dh, dw, unit = (
            load_int(g + DD),
            load_int(g + DH),
            load_int(g + DW),
            load_int(g + UNIT),
        )
        transform = load_int(g + DATA)
        patch, fold = mine + load_int(g + AT_PATCH), mine + load_int(g + AT_FOLD)
        row_bytes, step = load_int(g + ROW_BYTES), load_int(g + POINT_BYTES)
        if last:
            right, channel = groups * cg * size, size
        else:
            right, channel = size, d * h * w * size
        down = w * right
        deep = h * down
        target = mine + load_int(g + AT_POINTS)
        done = 0
        while done < count:
            # A run of tiles side by side.
            t = first + done
            col = t % tiles_w
            t = t // tiles_w
            z0 = begins(t // tiles_h % tiles_d, md, dd) - load_int(g + PD)
            r0 = begins(t % tiles_h, mh, dh) - load_int(g + PH)
            image = t // tiles_h // tiles_d
            run = min(count - done, tiles_w - col)
            if last:
                source = x + image * d * deep + group * cg * size
                rows_inside = (
                    z0 >= 0 and z0 + (nd - 1) * dd < d and r0 >= 0 and r0 + (nh - 1) * dh < h
                )
                parts, wide = (1, nw) if dw == 1 else (nw, 1)
                for j in range(col, col + run):
                    cj = begins(j, mw, dw) - load_int(g + PW)
                    inside = rows_inside and cj >= 0 and cj + (nw - 1) * dw < w
                    from_ = source + z0 * deep + r0 * down + cj * right
                    for c in range(0, cg, vl):
                        channels = min(vl, cg - c)
                        if inside and channels == vl:
                            call_code(transform, (from_ + c * size, deep * dd, down * dh,
                                                  right * dw, fold, target + c * size,
                                                  step))  # fmt: skip
                        else:
                            fill(g, patch, source + c * size, deep, down, right, channel,
                                 z0, r0, cj, parts, wide, channels)  # fmt: skip
                            call_code(transform, (patch, nh * nw * vector, nw * vector, vector,
                                                  fold, target + c * size, step))  # fmt: skip
                    target += row_bytes
            else:
                source = x + (image * groups + group) * cg * channel
                c0 = begins(col, mw, dw) - load_int(g + PW)
                if unit < dw:
                    run = unit
                parts, wide = (run // unit - 1) * mw + nw, unit
                pitch = parts * unit * vector
                if unit == dw:  # the parts are neighbours
                    parts, wide = 1, parts * unit
                for c in range(0, cg, vl):
                    fill(g, patch, source + c * channel, deep, down, right, channel, z0, r0, c0,
                         parts, wide, min(vl, cg - c))  # fmt: skip
                    from_, among = patch, 0
                    for j in range(run):
                        call_code(
                            transform,
                            (from_ + among * vector, nh * pitch, pitch, unit * vector, fold,
                             target + j * row_bytes + c * size, step),
                        )  # fmt: skip
                        among += 1
                        if among == unit:
                            from_, among = from_ + mw * unit * vector, 0
                target += run * row_bytes
            done += run

    @njit(**OPTIONS)
    def multiply(g, mine, weights, count):
        """``(points, tiles, channels) @ (points, channels, nr)`` of one panel."""
        cg, mr, nr = load_int(g + CG), load_int(g + MR), load_int(g + NR)
        tile = load_int(g + ROW_TILES)
        row_bytes, step = load_int(g + ROW_BYTES), load_int(g + POINT_BYTES)
        left, right = mine + load_int(g + AT_POINTS), weights
        target = mine + load_int(g + AT_PRODUCTS)
        table = mine + nr * size  # after the bias
        store_int(table, 0)
        for _ in range(load_int(g + POINTS)):
            # The next point's weights, or the next panel's, come while this point's are used.
            ahead = right + cg * nr * size
            for i in range(0, count, mr):
                rows = min(mr, count - i)
                for j in range(rows):
                    store_int(table + 8 + j * 8, left + (i + j) * row_bytes)
                call_code(tile, (rows, table, cg, right, nr * size, target + i * nr * size,
                                 nr * size, ahead))  # fmt: skip
                ahead += cg * 64
            left += step
            right += cg * nr * size
            target += load_int(g + PRODUCT_BYTES)

    @njit(**OPTIONS)
    def results(g, mine, y, bias, group, panel, first, count):
        """The outputs of one panel and ``count`` tiles."""
        groups, kg = load_int(g + GROUPS), load_int(g + KG)
        od, oh, ow = load_int(g + OD), load_int(g + OH), load_int(g + OW)
        tiles_d, tiles_h, tiles_w = (
            load_int(g + TILES_D),
            load_int(g + TILES_H),
            load_int(g + TILES_W),
        )
        md, mh, mw = load_int(g + MD), load_int(g + MH), load_int(g + MW)
        nr, transform = load_int(g + NR), load_int(g + OUTPUT)
        dd, dh, dw, unit = (
            load_int(g + DD),
            load_int(g + DH),
            load_int(g + DW),
            load_int(g + UNIT),
        )
        fold, strip = mine + load_int(g + AT_FOLD), mine + load_int(g + AT_OUTPUTS)
        step, activation = load_int(g + PRODUCT_BYTES), load_int(g + ACTIVATION)
        if last:
            right, channel = groups * kg * size, size
        else:
            right, channel = size, od * oh * ow * size
        down = ow * right
        deep = oh * down
        k = panel * nr
        there = min(nr, kg - k)
        addends = 0
        if bias != 0:
            addends = mine
            copy_bytes(addends, bias + (group * kg + k) * size, there * size)
        products = mine + load_int(g + AT_PRODUCTS)
        done = 0
        while done < count:
            t = first + done
            col = t % tiles_w
            t = t // tiles_w
            z0 = begins(t // tiles_h % tiles_d, md, dd)
            r0 = begins(t % tiles_h, mh, dh)
            image = t // tiles_h // tiles_d
            run = min(count - done, tiles_w - col)
            slices, rows = exist(z0, md, dd, od), exist(r0, mh, dh, oh)
            if last:
                target = y + image * od * deep + (group * kg + k) * size
            else:
                target = y + ((image * groups + group) * kg + k) * channel
            target += z0 * deep + r0 * down
            if last:
                for j in range(col, col + run):
                    cj = begins(j, mw, dw)
                    cols = exist(cj, mw, dw, ow)
                    to = target + cj * right
                    whole = slices == md and rows == mh and cols == mw
                    for q in range(0, there, vl):
                        channels = min(vl, there - q)
                        addend = 0
                        if bias != 0:
                            addend = addends + q * size
                        if whole and channels == vl:
                            call_code(
                                transform,
                                (products + q * size, step, fold, to + q * size, deep * dd,
                                 down * dh, right * dw, addend, activation, g + SLOPES),
                            )  # fmt: skip
                        else:
                            call_code(
                                transform,
                                (products + q * size, step, fold, strip, mh * mw * vector,
                                 mw * vector, vector, addend, activation, g + SLOPES),
                            )  # fmt: skip
                            for z in range(slices):
                                for i in range(rows):
                                    write_pixels(
                                        bits, vl, to + q * size + z * dd * deep + i * dh * down,
                                        right * dw, strip + (z * mh + i) * mw * vector, cols,
                                        channels,
                                    )  # fmt: skip
                    products += nr * size
            else:
                c0 = begins(col, mw, dw)
                target += c0 * right
                if unit < dw:
                    run = unit
                pitch = run * mw * vector
                parts, wide = (mw, unit) if unit < dw else (1, run * mw)
                for q in range(0, there, vl):
                    channels = min(vl, there - q)
                    addend = 0
                    if bias != 0:
                        addend = addends + q * size
                    to, among = strip, 0
                    for j in range(run):
                        call_code(
                            transform,
                            (products + (j * nr + q) * size, step, fold, to + among * vector,
                             mh * pitch, pitch, unit * vector, addend, activation, g + SLOPES),
                        )  # fmt: skip
                        among += 1
                        if among == unit:
                            to, among = to + mw * unit * vector, 0
                    for z in range(slices):
                        for i in range(rows):
                            to = target + q * channel + z * dd * deep + i * dh * down
                            for part in range(parts):
                                from_lanes(
                                    bits, vl, strip + (z * mh + i) * pitch + part * unit * vector,
                                    vector, min(wide, ow - c0 - part * dw),
                                    to + part * dw * right, channel, channels,
                                )  # fmt: skip
                products += run * nr * size
            done += run

    def kernel(g, x, weights, bias, y, workspace, control):
        tasks, grain = load_int(g + TASKS), load_int(g + GRAIN)
        cg, panels = load_int(g + CG), load_int(g + PANELS)
        task_panels, task_splits = load_int(g + TASK_PANELS), load_int(g + TASK_SPLITS)
        task_tiles, tile_blocks = load_int(g + TASK_TILES), load_int(g + TILE_BLOCKS)
        tiles = load_int(g + TILES)
        panel_bytes = load_int(g + POINTS) * cg * load_int(g + NR) * size
        mine = workspace + slot_of(control) * load_int(g + SLOT_BYTES)
        first, last, turn = take(control, tasks, grain, 0)
        while first < last:
            for task in range(first, last):
                split = task % task_splits
                rest = task // task_splits
                group = rest // tile_blocks
                tile = (rest - group * tile_blocks) * task_tiles
                count = min(task_tiles, tiles - tile)
                data(g, mine, x, group, tile, count)
                for panel in range(split * task_panels, min((split + 1) * task_panels, panels)):
                    multiply(g, mine, weights + (group * panels + panel) * panel_bytes, count)
                    results(g, mine, y, bias, group, panel, tile, count)
            first, last, turn = take(control, tasks, grain, turn)

    return kernel


def build_pack(bits: int, vl: int) -> Callable[..., None]:
    """The kernel that transforms and packs weights: ``(groups, panels, points, Cg, nr)``."""
    from convjit_numba.memory import call_code, zero_bytes
    from convjit_numba.transpose import to_lanes

    slot_of, take = taskloop.sharing()
    size = bits // 8
    vector = vl * size

    def kernel(
        source, target, groups, kg, cg, block, taps, points, nr, transform, fold_bytes,
        workspace, slot_bytes, control,
    ):  # fmt: skip
        panels = (kg + nr - 1) // nr
        blocks = (cg + block - 1) // block
        tasks = groups * panels * blocks
        mine = workspace + slot_of(control) * slot_bytes
        rows = mine + fold_bytes
        step = cg * nr * size
        first, last, turn = take(control, tasks, 1, 0)
        while first < last:
            for task in range(first, last):
                begin = task % blocks * block
                panel = task // blocks
                count = min(block, cg - begin)
                group = panel // panels
                into = target + panel * points * step + begin * nr * size
                for q in range(0, nr, vl):
                    k = (panel - group * panels) * nr + q
                    channels = min(vl, kg - k)
                    if channels > 0:
                        to_lanes(
                            bits, vl, source + ((group * kg + k) * cg + begin) * taps * size,
                            cg * taps * size, channels, rows, vector, count * taps,
                        )  # fmt: skip
                        for c in range(count):
                            call_code(transform, (rows + c * taps * vector, mine,
                                                  into + (c * nr + q) * size, step))  # fmt: skip
                    else:
                        for e in range(points):
                            for c in range(count):
                                zero_bytes(into + e * step + (c * nr + q) * size, vector)
            first, last, turn = take(control, tasks, 1, turn)

    return kernel
