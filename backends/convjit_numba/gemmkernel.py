"""The kernel of :mod:`convjit_numba.gemm`: strips of pixels, gathered or in place; the loops."""

from __future__ import annotations

from collections.abc import Callable

from convjit_numba import taskloop
from convjit_numba.problem import FIELD
from convjit_numba.targets import LINE


def build(
    bits: int, mr: int, nv: int, vl: int, tail: int, step: int, masked: int, fetches: int
) -> Callable[..., None]:
    """The kernel for one size of tiles (imports numba).

    Parameters
    ----------
    bits : int
    mr, nv, vl : int
        The largest tile: rows, vectors, lanes; others have a row or a vector less.
    tail : int
        Lanes of the last vector of all, 0 if that is a whole one whose lanes all exist.
    step : int
        Stride along a row where vectors are gathered by shuffles, 0 for number by number.
    masked : int
        Whether the last vector is read in place.
    fetches : int
        Lines of a channel that are fetched while a panel is summed.
    """
    from numba import njit

    from convjit_numba.memory import load_int, zero_bytes
    from convjit_numba.pixeltile import pixel_tile, row_gatherer
    from convjit_numba.vectorcode import OPTIONS

    size = bits // 8
    pitch = nv * vl * size  # from row to row of a gathered strip
    fewer_rows, fewer_vectors = max(mr - 1, 1), max(nv - 1, 1)
    f = dict(FIELD)
    GROUPS, CG, KG = f["groups"], f["cg"], f["kg"]
    D, H, W, OH, OW = f["d"], f["h"], f["w"], f["oh"], f["ow"]
    KD, KH, KW, SD, SH, SW = f["kd"], f["kh"], f["kw"], f["sd"], f["sh"], f["sw"]
    PD, PH, PW, DD, DH, DW = f["pd"], f["ph"], f["pw"], f["dd"], f["dh"], f["dw"]
    CBLOCK, CBLOCKS, PANELS = f["cblock"], f["cblocks"], f["panels"]
    TASK_PANELS, TASK_SPLITS = f["task_panels"], f["task_splits"]
    ACTIVATION, SLOPES, IN_PLACE = f["activation"], f["slope0"], f["in_place"]
    PIXELS, STRIPS, VECTORS = f["pixels"], f["strips"], f["vectors"]
    STRIP_BLOCKS = f["strip_blocks"]

    gather_row = row_gatherer(bits, vl, step)

    @njit(**OPTIONS)
    def gather(g, strip, x, count, first, pixels):
        """A strip: what ``count`` channels and all taps read for ``pixels`` outputs."""
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        kd, kh, kw = load_int(g + KD), load_int(g + KH), load_int(g + KW)
        sd, sh, sw = load_int(g + SD), load_int(g + SH), load_int(g + SW)
        pd, ph, pw = load_int(g + PD), load_int(g + PH), load_int(g + PW)
        dd, dh, dw = load_int(g + DD), load_int(g + DH), load_int(g + DW)
        oh, ow = load_int(g + OH), load_int(g + OW)
        line = first // ow
        col = first - line * ow
        # Lanes that nobody asked for are zeros: old memory may hold numbers so small that products
        # with them take a hundred times as long.
        beyond = -pixels % vl * size
        done = 0
        while done < pixels:
            # One output row's share of the strip.
            length = min(pixels - done, ow - col)
            z = line // oh
            row0 = (line - z * oh) * sh - ph
            z0 = z * sd - pd
            col0 = col * sw - pw
            target = strip + done * size
            for c in range(count):
                for tz in range(kd):
                    depth = z0 + tz * dd
                    for ty in range(kh):
                        row = row0 + ty * dh
                        inside = 0 <= depth < d and 0 <= row < h
                        source = x + ((c * d + depth) * h + row) * w * size
                        for tx in range(kw):
                            if not inside:
                                zero_bytes(target, length * size)
                            else:
                                gather_row(target, source, col0 + tx * dw, w, sw, length)
                            if beyond != 0 and done + length == pixels:
                                zero_bytes(target + length * size, beyond)
                            target += pitch
            done += length
            line += 1
            col = 0

    @njit(**OPTIONS)
    def tile(rows, vectors, last, kc, a, b, walk, c, ldc, accumulate, add, kind, slopes, count,
             ahead, stride):  # fmt: skip
        if rows == mr:
            if last:
                pixel_tile(bits, mr, nv, vl, tail, masked, fetches, kc, a, b, walk, c, ldc,
                           accumulate, add, kind, slopes, count, ahead, stride)  # fmt: skip
            elif vectors == nv:
                pixel_tile(bits, mr, nv, vl, 0, 0, fetches, kc, a, b, walk, c, ldc,
                           accumulate, add, kind, slopes, count, ahead, stride)  # fmt: skip
            else:
                pixel_tile(bits, mr, fewer_vectors, vl, 0, 0, fetches, kc, a, b, walk, c, ldc,
                           accumulate, add, kind, slopes, count, ahead, stride)  # fmt: skip
        elif last:
            pixel_tile(bits, fewer_rows, nv, vl, tail, masked, fetches, kc, a, b, walk, c, ldc,
                       accumulate, add, kind, slopes, count, ahead, stride)  # fmt: skip
        elif vectors == nv:
            pixel_tile(bits, fewer_rows, nv, vl, 0, 0, fetches, kc, a, b, walk, c, ldc,
                       accumulate, add, kind, slopes, count, ahead, stride)  # fmt: skip
        else:
            pixel_tile(bits, fewer_rows, fewer_vectors, vl, 0, 0, fetches, kc, a, b, walk, c, ldc,
                       accumulate, add, kind, slopes, count, ahead, stride)  # fmt: skip

    @njit(**OPTIONS)
    def run_strip(g, x, weights, bias, y, gathered, unit, group, strip, end, low, high):
        """All that one task, whose strips end before ``end``, computes of a strip."""
        cg, kg, strips = load_int(g + CG), load_int(g + KG), load_int(g + STRIPS)
        channel = load_int(g + D) * load_int(g + H) * load_int(g + W) * size
        taps = load_int(g + KD) * load_int(g + KH) * load_int(g + KW)
        cblock, cblocks, panels = load_int(g + CBLOCK), load_int(g + CBLOCKS), load_int(g + PANELS)
        all_pixels, all_vectors = load_int(g + PIXELS), load_int(g + VECTORS)
        ldc = all_pixels * size
        v0 = strip * all_vectors // strips
        vectors = (strip + 1) * all_vectors // strips - v0
        p0 = v0 * vl
        pixels = min(vectors * vl, all_pixels - p0)
        last = tail != 0 and strip == strips - 1
        count = pixels - (vectors - 1) * vl
        # Whether a strip's part of a channel is consecutive.
        adjacent = taps == 1 and load_int(g + W) == all_pixels
        in_place = load_int(g + IN_PLACE) != 0 and (masked != 0 or not last)
        for block in range(cblocks):
            begin = block * cblock
            channels = min(cblock, cg - begin)
            source = x + (unit * cg + begin) * channel
            b, walk = gathered, pitch
            if in_place:
                b, walk = source + p0 * size, channel
            else:
                gather(g, gathered, source, channels, p0, pixels)
            kind = load_int(g + ACTIVATION) if block == cblocks - 1 else 0
            accumulate = 1 if block > 0 else 0
            # While a panel is summed, lines of every channel that is gathered next are fetched:
            # they are far apart, so that no prefetcher of the processor sees them coming.
            ahead, lines = source + channels * channel + p0 * size, vectors * vl * size // LINE
            if block == cblocks - 1:
                ahead = x + unit * cg * channel + (p0 + vectors * vl) * size
                lines = lines if strip + 1 < end else 0
            lines = lines + 1 if adjacent and lines > 0 else 0
            for panel in range(low, high):
                k0 = panel * kg // panels
                rows = (panel + 1) * kg // panels - k0
                a = weights + ((group * kg + k0) * cg + begin * rows) * taps * size
                add = 0
                if bias != 0 and block == cblocks - 1:
                    add = bias + (group * kg + k0) * size
                c = y + (unit * kg + k0) * ldc + p0 * size
                fetched = ahead + (panel - low) * fetches * LINE
                stride = channel
                if (panel - low) * fetches >= lines:
                    fetched, stride = a, 0
                tile(rows, vectors, last, channels * taps, a, b, walk, c, ldc, accumulate,
                     add, kind, g + SLOPES, count, fetched, stride)  # fmt: skip

    @njit(**OPTIONS)
    def start(g, mine):
        pass

    @njit(**OPTIONS)
    def run(g, x, weights, bias, y, mine, task):
        panels, task_panels = load_int(g + PANELS), load_int(g + TASK_PANELS)
        strips, strip_blocks = load_int(g + STRIPS), load_int(g + STRIP_BLOCKS)
        rest = task // load_int(g + TASK_SPLITS)
        low = (task - rest * load_int(g + TASK_SPLITS)) * task_panels
        high = min(low + task_panels, panels)
        unit = rest // strip_blocks  # image and group
        group = unit % load_int(g + GROUPS)
        block = rest - unit * strip_blocks
        end = (block + 1) * strips // strip_blocks
        for strip in range(block * strips // strip_blocks, end):
            run_strip(g, x, weights, bias, y, mine, unit, group, strip, end, low, high)

    return taskloop.build(run, start)
