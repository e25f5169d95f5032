"""The kernel of :mod:`convjit_numba.subpixel`: the copy of y, the loops, the interleaved stores."""

from __future__ import annotations

from collections.abc import Callable

from convjit_numba import taskloop
from convjit_numba.problem import FIELD


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
    DEEP, AT_BUFFER, AT_SLAB = f["deep"], f["at_buffer"], f["at_slab"]

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
        buffer, image = mine + load_int(g + AT_BUFFER), mine + load_int(g + AT_SLAB)
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
                            add = mine
                            copy_bytes(mine, bias + (group * cg + k) * size, count * size)
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
