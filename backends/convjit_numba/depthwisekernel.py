"""The kernel of :mod:`convjit_numba.depthwise`: tables of kernel rows, lines of tiles, tasks."""

from __future__ import annotations

from collections.abc import Callable

from convjit_numba import taskloop
from convjit_numba.problem import FIELD


def build_line(
    bits: int, mr: int, taps: int, stride: int, vl: int, kept: int, multiplier: int
) -> tuple[Callable[..., int], Callable[..., None]]:
    """(``row_table``, ``depthwise_line``), for kernels to call (imports numba).

    ``multiplier`` is 0 where it is known at run time only.
    """
    from numba import njit

    from convjit_numba.depthwisetile import depthwise_tile, interleave
    from convjit_numba.memory import fetch_line, load_int, move_real, store_int
    from convjit_numba.vectorcode import OPTIONS

    size = bits // 8
    f = dict(FIELD)
    KG, D, H, W = f["kg"], f["d"], f["h"], f["w"]
    KD, KH, SD, SH, SW = f["kd"], f["kh"], f["sd"], f["sh"], f["sw"]
    PD, PH, PW, DD, DH, DW = f["pd"], f["ph"], f["pw"], f["dd"], f["dh"], f["dw"]
    ACTIVATION, SLOPES, CLASSES = f["activation"], f["slope0"], f["classes"]

    @njit(**OPTIONS)
    def row_table(g, table, z, r, line, ring):
        """The kernel rows that meet the image in output line (z, r), and how many they are.

        ``line`` is the bytes from row to row; of a plane in a ring row i is in place i modulo
        ``ring``, which is 0 otherwise.
        """
        d, h = load_int(g + D), load_int(g + H)
        kd, kh = load_int(g + KD), load_int(g + KH)
        dd, dh = load_int(g + DD), load_int(g + DH)
        z0 = z * load_int(g + SD) - load_int(g + PD)
        r0 = r * load_int(g + SH) - load_int(g + PH)
        count = 0
        for t in range(kd):
            plane = z0 + t * dd
            if 0 <= plane < d:
                for a in range(kh):
                    row = r0 + a * dh
                    if 0 <= row < h:
                        place = plane * h + row
                        if ring != 0:
                            place = row % ring
                        store_int(table + count * 16, place * line)
                        store_int(table + count * 16 + 8, (t * kh + a) * taps * vl * size)
                        count += 1
        return count

    @njit(**OPTIONS)
    def fetch_pixels(write, place, step, count):
        """Fetch ``count`` lines of memory, ``step`` bytes apart, to be read or written."""
        for _ in range(count):
            fetch_line(write, place)
            place += step

    @njit(**OPTIONS)
    def depthwise_line(
        g, table, rows, image, pixel, channels, weights, bias, y, buffer, vector0, vector1,
        col0, col1, ahead, rows_ahead, y_ahead,
    ):  # fmt: skip
        """Outputs ``col0`` to ``col1`` of a line that begins at ``y``, of a range of vectors.

        Results have ``channels`` numbers, pixels are ``pixel`` bytes apart; rows of ``table`` begin
        where ``image`` says.
        ``bias`` is that of the first vector: as the caller has it without a multiplier, packed as
        ``(vectors, multiplier, vl)`` with one, or 0.  ``buffer`` has a tile's results.

        Meanwhile ``rows_ahead`` rows are fetched from ``ahead`` bytes after ``image`` on, and the
        results ``y_ahead`` bytes on, if that is not 0.
        """
        m, w = load_int(g + KG), load_int(g + W)
        step, dw, pw = load_int(g + SW), load_int(g + DW), load_int(g + PW)
        classes, activation = load_int(g + CLASSES), load_int(g + ACTIVATION)
        panel = load_int(g + KD) * load_int(g + KH) * taps * vl * size
        result = channels * size
        for phase in range(classes):
            first = max(0, (col0 - phase + classes - 1) // classes)
            last = max(0, (col1 - phase + classes - 1) // classes)
            for i in range(first, last, mr):
                count = min(mr, last - i)
                col = phase + classes * i
                at = col * step - pw
                low = 0
                if at < 0:
                    low = (-at + dw - 1) // dw
                high = (count - 1) * stride + taps
                if w - at < high * dw:
                    high = max(0, w - at + dw - 1) // dw
                met = rows if low < high else 0
                for v in range(vector0, vector1):
                    c = min(v * vl, channels - vl)
                    here = image + at * pixel + c * size
                    for a in range(rows_ahead):
                        later = here + ahead + a * w * pixel + low * dw * pixel
                        fetch_pixels(0, later, dw * pixel, high - low)
                    if y_ahead != 0:
                        later = y + y_ahead + (col * channels + c) * size
                        fetch_pixels(1, later, classes * result, count)
                    if multiplier == 1:
                        add = 0
                        if bias != 0:
                            add = bias + c * size
                        depthwise_tile(
                            bits, mr, taps, stride, vl, kept, met, table, here, dw * pixel,
                            low, high, weights + v * panel, y + (col * channels + c) * size,
                            classes * result, count, add, activation, g + SLOPES,
                        )  # fmt: skip
                        continue
                    for j in range(m):
                        add = 0
                        if bias != 0:
                            add = bias + ((v - vector0) * m + j) * vl * size
                        depthwise_tile(
                            bits, mr, taps, stride, vl, kept, met, table, here, dw * pixel,
                            low, high, weights + (v * m + j) * panel, buffer + j * vl * size,
                            m * vl * size, count, add, activation, g + SLOPES,
                        )  # fmt: skip
                    for o in range(count):
                        source = buffer + o * m * vl * size
                        target = y + ((col + o * classes) * channels + c) * m * size
                        if multiplier > 0:
                            interleave(bits, vl, multiplier, target, source)
                        else:
                            for j in range(m):
                                for lane in range(vl):
                                    move_real(
                                        bits, target + (lane * m + j) * size,
                                        source + (j * vl + lane) * size,
                                    )  # fmt: skip

    return row_table, depthwise_line


COPIED = 4  # vectors of a pixel that are copied at once


def build(
    bits: int, mr: int, taps: int, stride: int, vl: int, kept: int, multiplier: int, last: bool
) -> Callable[..., None]:
    """The kernel for one tile and arrays with their channels last or first (imports numba)."""
    from numba import njit

    from convjit_numba.memory import load_int, move_real
    from convjit_numba.transpose import from_lanes, to_lanes
    from convjit_numba.vectorcode import OPTIONS
    from convjit_numba.weightgradkernel import build_copy

    copy_pixels = build_copy(bits, COPIED, vl)
    row_table, depthwise_line = build_line(bits, mr, taps, stride, vl, kept, multiplier)
    size = bits // 8
    pixel = vl * size  # of a slab
    f = dict(FIELD)
    GROUPS, KG = f["groups"], f["kg"]
    D, H, W, OD, OH, OW = f["d"], f["h"], f["w"], f["od"], f["oh"], f["ow"]
    SD, PD = f["sd"], f["pd"]
    KH, SH, SW, PH, PW = f["kh"], f["sh"], f["sw"], f["ph"], f["pw"]
    DH, DW = f["dh"], f["dw"]
    ROWS, COLS, HBLOCKS, WBLOCKS = f["rows"], f["cols"], f["hblocks"], f["wblocks"]
    VECTORS, TASK_VECTORS, VECTOR_SPLITS = f["vectors"], f["task_vectors"], f["vector_splits"]
    FETCHES, RING, PITCH = f["fetches"], f["ring"], f["pitch"]
    AT_BIAS, AT_BUFFER, AT_SLAB, AT_SUMS = (
        f["at_bias"], f["at_buffer"], f["at_slab"], f["at_sums"],
    )  # fmt: skip

    @njit(**OPTIONS)
    def lines_of_pixels(
        g, x, weights, bias, y, mine, image, z, r0, r1, col0, col1, vector0, vector1
    ):  # fmt: skip
        """A block of outputs of channels-last arrays, read and written where they lie."""
        channels, m = load_int(g + GROUPS), load_int(g + KG)
        od, oh, ow = load_int(g + OD), load_int(g + OH), load_int(g + OW)
        line = load_int(g + W) * channels * size
        source = x + image * load_int(g + D) * load_int(g + H) * line
        add, buffer = bias, mine + load_int(g + AT_BUFFER)
        if multiplier != 1 and bias != 0:
            add = mine + load_int(g + AT_BIAS)
            for v in range(vector0, vector1):
                c = min(v * vl, channels - vl)
                for j in range(m):
                    for lane in range(vl):
                        to = ((v - vector0) * m + j) * vl + lane
                        number = (c + lane) * m + j
                        move_real(bits, add + to * size, bias + number * size)
        h, sh, ph = load_int(g + H), load_int(g + SH), load_int(g + PH)
        plane = z * load_int(g + SD) - load_int(g + PD)
        reach = (load_int(g + KH) - 1) * load_int(g + DH) + 1
        # A ring has the channels of the task and the columns that its outputs meet.
        ring, pitch = load_int(g + RING), channels * size
        lowest = min(vector0 * vl, channels - vl)
        count = min(vector1 * vl, channels) - lowest
        w, sw, pw = load_int(g + W), load_int(g + SW), load_int(g + PW)
        left = max(0, min(w, col0 * sw - pw))
        right = max(left, min(w, (col1 - 1) * sw - pw + (taps - 1) * load_int(g + DW) + 1))
        corner, row_bytes, copied = source, line, 0
        if ring != 0:
            pitch = load_int(g + PITCH)
            row_bytes = (right - left) * pitch
            corner = mine + load_int(g + AT_SLAB) - left * pitch - lowest * size
        for r in range(r0, r1):
            rows = row_table(g, mine, z, r, row_bytes, ring)
            to = y + ((image * od + z) * oh + r) * ow * channels * m * size
            # The rows that the next line of outputs meets and this one does not.
            first, rows_ahead, y_ahead = r * sh - ph + reach, 0, 0
            if ring != 0:
                copied = max(copied, r * sh - ph)
                while copied < min(h, first):
                    copy_pixels(
                        corner + copied % ring * row_bytes + left * pitch + lowest * size, pitch,
                        source + (plane * h + copied) * line + (left * channels + lowest) * size,
                        channels * size, count, right - left,
                    )  # fmt: skip
                    copied += 1
            if load_int(g + FETCHES) != 0 and r + 1 < r1:
                if ring == 0:
                    rows_ahead = max(0, min(sh, h - first))
                if multiplier == 1:
                    y_ahead = ow * channels * size
            depthwise_line(
                g, mine, rows, corner, pitch, channels, weights, add, to, buffer,
                vector0, vector1, col0, col1, (plane * h + first) * line, rows_ahead, y_ahead,
            )  # fmt: skip

    @njit(**OPTIONS)
    def planes(
        g, x, weights, bias, y, mine, image, z, r0, r1, col0, col1, vector0, vector1
    ):  # fmt: skip
        """A block of outputs of channels-first planes, by slabs of a vector of channels each."""
        channels, h, w = load_int(g + GROUPS), load_int(g + H), load_int(g + W)
        oh, ow, kh = load_int(g + OH), load_int(g + OW), load_int(g + KH)
        sh, sw, dh, dw = load_int(g + SH), load_int(g + SW), load_int(g + DH), load_int(g + DW)
        ph, pw = load_int(g + PH), load_int(g + PW)
        slab, sums = mine + load_int(g + AT_SLAB), mine + load_int(g + AT_SUMS)
        low = max(0, r0 * sh - ph)
        high = max(low, min(h, (r1 - 1) * sh - ph + (kh - 1) * dh + 1))
        left = max(0, min(w, col0 * sw - pw))
        right = max(left, min(w, (col1 - 1) * sw - pw + (taps - 1) * dw + 1))
        pitch, cols = right - left, col1 - col0
        panel = kh * taps * pixel
        for v in range(vector0, vector1):
            c = min(v * vl, channels - vl)
            source = x + (image * channels + c) * h * w * size
            if pitch == w:
                to_lanes(bits, vl, source + low * w * size, h * w * size, vl, slab, pixel,
                         (high - low) * w)  # fmt: skip
            else:
                for row in range(low, high):
                    to_lanes(
                        bits, vl, source + (row * w + left) * size, h * w * size, vl,
                        slab + (row - low) * pitch * pixel, pixel, pitch,
                    )  # fmt: skip
            corner = slab - (low * pitch + left) * pixel
            add = 0
            if bias != 0:
                add = bias + c * size
            for r in range(r0, r1):
                rows = row_table(g, mine, z, r, pitch * pixel, 0)
                depthwise_line(
                    g, mine, rows, corner, pixel, vl, weights + v * panel, add,
                    sums + ((r - r0) * cols - col0) * pixel, 0, 0, 1, col0, col1, 0, 0, 0,
                )  # fmt: skip
            to = y + (((image * channels + c) * oh + r0) * ow + col0) * size
            if cols == ow:
                from_lanes(bits, vl, sums, pixel, (r1 - r0) * ow, to, oh * ow * size, vl)
            else:
                for r in range(r1 - r0):
                    from_lanes(
                        bits, vl, sums + r * cols * pixel, pixel, cols, to + r * ow * size,
                        oh * ow * size, vl,
                    )  # fmt: skip

    block_of = lines_of_pixels if last else planes

    @njit(**OPTIONS)
    def start(g, mine):
        pass

    @njit(**OPTIONS)
    def run(g, x, weights, bias, y, mine, task):
        hblocks, wblocks = load_int(g + HBLOCKS), load_int(g + WBLOCKS)
        splits, od = load_int(g + VECTOR_SPLITS), load_int(g + OD)
        rest = task // splits
        vector0 = (task - rest * splits) * load_int(g + TASK_VECTORS)
        vector1 = min(vector0 + load_int(g + TASK_VECTORS), load_int(g + VECTORS))
        block = rest // wblocks
        col0 = (rest - block * wblocks) * load_int(g + COLS)
        col1 = min(col0 + load_int(g + COLS), load_int(g + OW))
        plane = block // hblocks
        r0 = (block - plane * hblocks) * load_int(g + ROWS)
        r1 = min(r0 + load_int(g + ROWS), load_int(g + OH))
        image = plane // od
        z = plane - image * od
        block_of(g, x, weights, bias, y, mine, image, z, r0, r1, col0, col1, vector0, vector1)

    return taskloop.build(run, start)
