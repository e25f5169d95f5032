"""The kernels of overlap-save: tiles in, transforms, products of spectra, tiles out.

Importing this module does not import numba; calling its functions does.

A tile is a matrix of complex vectors in its thread's workspace, ``rows`` by ``cols`` numbers (of a
volume a stack of ``planes`` such matrices), of which every run of ``lanes`` neighbours in a row is
one complex vector: an image's tile as it lies, or one line of samples, row after row.  Its columns
are transformed first, neighbouring ones side by side in the lanes, then the lines through the
planes likewise.  Then, ``lanes`` rows at a time, squares are transposed so that the lanes are rows,
and the rows are transformed, multiplied by the spectrum and transformed back without leaving the
first level of cache.  The columns follow.

For a line that is the four-step transform (W. Gentleman and G. Sande 1966; D. Bailey, "FFTs in
external or hierarchical memory", J. Supercomputing 4, 1990) of ``L = rows * cols`` samples: with
``i = cols i1 + i2`` and ``q = q1 + rows q2``, between the transforms of columns and of rows place
(q1, i2) is multiplied by ``exp(-2 pi i q1 i2 / L)``, the *twist*, here by the columns' last
butterflies.

Real data go two tiles at a time, one as real and one as imaginary part: the kernel being real, the
product with its spectrum is that of both at once, and nothing has to be untangled.  Complex data
are one tile at a time.
"""

from __future__ import annotations

from collections.abc import Callable

from convjit_numba import taskloop
from convjit_numba.problem import FIELD


def build(bits: int, lanes: int, parts: int) -> Callable[..., None]:
    """The kernel that convolves samples of one number or of two, complex ones (imports numba)."""
    from numba import njit

    from convjit_numba.fftcode import spectrum_products, turn_squares
    from convjit_numba.fftmoves import fill_complex, fill_vector, finish_complex, finish_vector
    from convjit_numba.fftstages import build_columns, build_stages
    from convjit_numba.memory import load_int
    from convjit_numba.vectorcode import OPTIONS

    slot_of, take = taskloop.sharing()
    size = bits // 8
    vector = 2 * lanes * size  # bytes of a complex one
    square = lanes * vector
    sample = parts * size
    per_tile = 2 // parts
    forward, backward, through = build_stages(bits, lanes)
    columns = build_columns(bits, lanes)
    f = dict(FIELD)
    TASKS, GRAIN, SLOT_BYTES, GROUPS, CG, KG = (
        f["tasks"], f["grain"], f["slot_bytes"], f["groups"], f["cg"], f["kg"],
    )  # fmt: skip
    D, H, W, OD, OH, OW = f["d"], f["h"], f["w"], f["od"], f["oh"], f["ow"]
    PD, PH, PW = f["pd"], f["ph"], f["pw"]
    PLANES, ROWS, COLS, PITCH, PLANE_BYTES, TILE_BYTES = (
        f["planes"], f["rows"], f["cols"], f["pitch"], f["plane_bytes"], f["tile_bytes"],
    )  # fmt: skip
    DBLOCKS, HBLOCKS, WBLOCKS, TILE_D = f["dblocks"], f["hblocks"], f["wblocks"], f["tile_d"]
    PANELS, TASK_PANELS, TASK_SPLITS = f["panels"], f["task_panels"], f["task_splits"]
    ACTIVATION, SLOPES = f["activation"], f["slope0"]
    LINE, TILE_H, TILE_W, UNITS, TASK_PAIRS, PAIR_BLOCKS = (
        f["line"], f["tile_h"], f["tile_w"], f["units"], f["task_pairs"], f["pair_blocks"],
    )  # fmt: skip
    ROW_STAGES, ROW_COUNT, PANEL_ROWS = f["row_stages"], f["row_count"], f["panel_rows"]
    LINE_BYTES, AT_LINES, AT_SUMS, AT_RESULTS = (
        f["line_bytes"], f["at_spectra"], f["at_line_sums"], f["at_results"],
    )  # fmt: skip

    @njit(**OPTIONS)
    def place_of(g, unit):
        """(image, first output deep, down and across) of a tile."""
        dblocks, hblocks, wblocks = (
            load_int(g + DBLOCKS),
            load_int(g + HBLOCKS),
            load_int(g + WBLOCKS),
        )
        across = unit % wblocks
        rest = unit // wblocks
        down = rest % hblocks
        rest //= hblocks
        deep = rest % dblocks
        return (
            rest // dblocks, deep * load_int(g + TILE_D), down * load_int(g + TILE_H),
            across * load_int(g + TILE_W),
        )  # fmt: skip

    @njit(**OPTIONS)
    def fill(g, target, x, unit, group, channel):
        """One tile of one channel into the real or the imaginary parts; zeros for no tile."""
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        planes, rows, cols = load_int(g + PLANES), load_int(g + ROWS), load_int(g + COLS)
        pitch, line, plane_bytes = (
            load_int(g + PITCH),
            load_int(g + LINE),
            load_int(g + PLANE_BYTES),
        )
        image, z0, y0, x0 = place_of(g, unit)
        z0 -= load_int(g + PD)
        y0 -= load_int(g + PH)
        x0 -= load_int(g + PW)
        exists = unit < load_int(g + UNITS)
        cg = load_int(g + CG)
        volume = x + ((image * load_int(g + GROUPS) + group) * cg + channel) * d * h * w * sample
        for z in range(planes):
            inside = exists and 0 <= z0 + z < d
            plane = volume + (z0 + z) * h * w * sample
            for r in range(rows):
                row, first = y0 + r, x0
                if line != 0:
                    row, first = 0, x0 + r * cols
                lo, hi = -first, w - first
                if not inside or row < 0 or row >= h:
                    lo, hi = 0, 0
                source = plane + (row * w + first) * sample
                place = target + z * plane_bytes + r * pitch
                for b in range(0, cols, lanes):
                    if parts == 1:
                        fill_vector(bits, lanes, place, source, lo - b, hi - b)
                    else:
                        fill_complex(bits, lanes, place, source, lo - b, hi - b)
                    place += vector
                    source += lanes * sample

    @njit(**OPTIONS)
    def finish(g, y, source, bias, unit, group, k):
        """The outputs of one tile of one channel, from the real or the imaginary parts."""
        if unit >= load_int(g + UNITS):
            return
        od, oh, ow, cols = load_int(g + OD), load_int(g + OH), load_int(g + OW), load_int(g + COLS)
        pitch, line, kg = load_int(g + PITCH), load_int(g + LINE), load_int(g + KG)
        image, z0, y0, x0 = place_of(g, unit)
        deep = min(load_int(g + TILE_D), od - z0)
        rows, wide = min(load_int(g + TILE_H), oh - y0), min(load_int(g + TILE_W), ow - x0)
        if line != 0:
            rows = (wide + cols - 1) // cols
        add = 0
        if bias != 0:
            add = bias + (group * kg + k) * sample
        channel = (image * load_int(g + GROUPS) + group) * kg + k
        activation, slopes = load_int(g + ACTIVATION), g + SLOPES
        for z in range(deep):
            target = y + (((channel * od + z0 + z) * oh + y0) * ow + x0) * sample
            plane = source + z * load_int(g + PLANE_BYTES)
            for r in range(rows):
                count, to = wide, target + r * ow * sample
                if line != 0:
                    count, to = min(cols, wide - r * cols), target + r * cols * sample
                place = plane + r * pitch
                for b in range(0, count, lanes):
                    if parts == 1:
                        finish_vector(bits, lanes, to, place, count - b, add, activation, slopes)
                    else:
                        finish_complex(bits, lanes, to, place, count - b, add)
                    to += lanes * sample
                    place += vector

    @njit(**OPTIONS)
    def multiply(g, weights, spectra, sums, channels, pairs, panel_rows):
        """The sums over channels of products with one panel of the weights' spectra."""
        cols, line = load_int(g + COLS), load_int(g + LINE_BYTES)
        for q in range(cols):
            w = weights + q * channels * panel_rows * vector
            p = 0
            while p < pairs:
                x = spectra + p * channels * line + q * vector
                y = sums + p * panel_rows * line + q * vector
                step, column = channels * line, panel_rows * line
                if panel_rows == 1:
                    if p + 4 <= pairs:
                        spectrum_products(
                            bits, lanes, 1, 4, channels, w, x, line, step, y, line, column
                        )
                        p += 4
                    else:
                        spectrum_products(
                            bits, lanes, 1, 1, channels, w, x, line, step, y, line, column
                        )
                        p += 1
                elif p + 4 <= pairs:
                    spectrum_products(
                        bits, lanes, 2, 4, channels, w, x, line, step, y, line, column
                    )
                    p += 4
                elif p + 2 <= pairs:
                    spectrum_products(
                        bits, lanes, 2, 2, channels, w, x, line, step, y, line, column
                    )
                    p += 2
                else:
                    spectrum_products(
                        bits, lanes, 2, 1, channels, w, x, line, step, y, line, column
                    )
                    p += 1

    def kernel(g, x, weights, bias, y, workspace, control):
        tasks, grain = load_int(g + TASKS), load_int(g + GRAIN)
        cg, kg, units = load_int(g + CG), load_int(g + KG), load_int(g + UNITS)
        rows, cols, pitch = load_int(g + ROWS), load_int(g + COLS), load_int(g + PITCH)
        task_pairs, pair_blocks = load_int(g + TASK_PAIRS), load_int(g + PAIR_BLOCKS)
        panels, task_panels = load_int(g + PANELS), load_int(g + TASK_PANELS)
        task_splits, panel_rows = load_int(g + TASK_SPLITS), load_int(g + PANEL_ROWS)
        table, stages = load_int(g + ROW_STAGES), load_int(g + ROW_COUNT)
        line = load_int(g + LINE_BYTES)
        planes, plane_bytes = load_int(g + PLANES), load_int(g + PLANE_BYTES)
        tile_bytes, squares = load_int(g + TILE_BYTES), cols // lanes
        tiles = workspace + slot_of(control) * load_int(g + SLOT_BYTES)
        spectra = tiles + load_int(g + AT_LINES)
        sums = tiles + load_int(g + AT_SUMS)
        results = tiles + load_int(g + AT_RESULTS)
        first, last, turn = take(control, tasks, grain, 0)
        while first < last:
            for task in range(first, last):
                split = task % task_splits
                block = task // task_splits % pair_blocks
                group = task // task_splits // pair_blocks
                begin = per_tile * block * task_pairs
                pairs = min(task_pairs, (units - begin + per_tile - 1) // per_tile)
                low = split * task_panels
                high = min(low + task_panels, panels)
                for p in range(pairs):
                    for c in range(cg):
                        tile = tiles + (p * cg + c) * tile_bytes
                        fill(g, tile, x, begin + per_tile * p, group, c)
                        if per_tile == 2:
                            fill(g, tile + vector // 2, x, begin + 2 * p + 1, group, c)
                        columns(g, tile, False)
                for r in range(0, planes * rows, lanes):
                    z = r // rows
                    at_row = z * plane_bytes + (r - z * rows) * pitch
                    if cg == 1 and kg == 1:
                        # One spectrum: the products belong to the middle butterflies.
                        w = weights + (group * planes * rows + r) * cols * 2 * size
                        for p in range(pairs):
                            here = tiles + p * tile_bytes + at_row
                            turn_squares(
                                bits, lanes, squares, here, pitch, vector, spectra, vector, square
                            )
                            through(spectra, table, stages, w)
                            turn_squares(
                                bits, lanes, squares, spectra, vector, square, here, pitch, vector
                            )
                        continue
                    for p in range(pairs):
                        for c in range(cg):
                            here = tiles + (p * cg + c) * tile_bytes + at_row
                            to = spectra + (p * cg + c) * line
                            turn_squares(
                                bits, lanes, squares, here, pitch, vector, to, vector, square
                            )
                            forward(to, vector, table, stages, 0, 0)
                    for panel in range(low, high):
                        w = (group * panels + panel) * planes * rows + r
                        w *= cols * cg * panel_rows * 2
                        multiply(g, weights + w * size, spectra, sums, cg, pairs, panel_rows)
                        count = min(panel_rows, kg - panel * panel_rows)
                        k0 = (panel - low) * panel_rows
                        per_pair = task_panels * panel_rows
                        for p in range(pairs):
                            for i in range(count):
                                of = sums + (p * panel_rows + i) * line
                                to = results + (p * per_pair + k0 + i) * tile_bytes + at_row
                                backward(of, vector, table, stages, 0, 0)
                                turn_squares(
                                    bits, lanes, squares, of, vector, square, to, pitch, vector
                                )
                for p in range(pairs):
                    for k in range(low * panel_rows, min(high * panel_rows, kg)):
                        of = p * task_panels * panel_rows + k - low * panel_rows
                        tile = results + of * tile_bytes
                        columns(g, tile, True)
                        finish(g, y, tile, bias, begin + per_tile * p, group, k)
                        if per_tile == 2:
                            of = tile + vector // 2
                            finish(g, y, of, bias, begin + 2 * p + 1, group, k)
            first, last, turn = take(control, tasks, grain, turn)

    return kernel


def build_pack(bits: int, lanes: int, parts: int) -> Callable[..., None]:
    """The kernel that transforms weights, divided by the number of points."""
    from numba import njit

    from convjit_numba.fftcode import scale_complex, turn_squares
    from convjit_numba.fftstages import build_columns, build_stages
    from convjit_numba.memory import load_int, move_real, zero_bytes
    from convjit_numba.vectorcode import OPTIONS

    slot_of, take = taskloop.sharing()
    size = bits // 8
    vector = 2 * lanes * size
    forward, _, _ = build_stages(bits, lanes)
    columns = build_columns(bits, lanes)
    f = dict(FIELD)
    GROUPS, CG, KG = f["groups"], f["cg"], f["kg"]
    KD, KH, KW, DD, DH, DW = f["kd"], f["kh"], f["kw"], f["dd"], f["dh"], f["dw"]
    PLANES, ROWS, COLS, PITCH, PLANE_BYTES, TILE_BYTES = (
        f["planes"], f["rows"], f["cols"], f["pitch"], f["plane_bytes"], f["tile_bytes"],
    )  # fmt: skip
    LINE, PANELS = f["line"], f["panels"]
    ROW_STAGES, ROW_COUNT, PANEL_ROWS = f["row_stages"], f["row_count"], f["panel_rows"]
    LINE_BYTES = f["line_bytes"]

    @njit(**OPTIONS)
    def place_taps(g, tile, taps):
        """A kernel such that a circular convolution with it correlates with the taps.

        Tap t of an axis goes to place -t, so that output o takes sample o + t.
        """
        planes, rows, cols = load_int(g + PLANES), load_int(g + ROWS), load_int(g + COLS)
        pitch, plane_bytes = load_int(g + PITCH), load_int(g + PLANE_BYTES)
        kd, kh, kw = load_int(g + KD), load_int(g + KH), load_int(g + KW)
        dd, dh, dw = load_int(g + DD), load_int(g + DH), load_int(g + DW)
        line = load_int(g + LINE)
        zero_bytes(tile, load_int(g + TILE_BYTES))
        for z in range(kd):
            plane = tile + (planes - z * dd) % planes * plane_bytes
            for a in range(kh):
                for b in range(kw):
                    row, col = (rows - a * dh) % rows, 0
                    if line != 0:
                        place = (rows * cols - b * dw) % (rows * cols)
                        row = place // cols
                        col = place - row * cols
                    else:
                        col = (cols - b * dw) % cols
                    to = plane + row * pitch + col // lanes * vector + col % lanes * size
                    move_real(bits, to, taps)
                    if parts == 2:
                        move_real(bits, to + vector // 2, taps + size)
                    taps += parts * size

    def kernel(g, weights, packed, scale, workspace, slot_bytes, control):
        cg, kg = load_int(g + CG), load_int(g + KG)
        rows, cols, pitch = load_int(g + ROWS), load_int(g + COLS), load_int(g + PITCH)
        panels, panel_rows = load_int(g + PANELS), load_int(g + PANEL_ROWS)
        planes, plane_bytes = load_int(g + PLANES), load_int(g + PLANE_BYTES)
        taps = load_int(g + KD) * load_int(g + KH) * load_int(g + KW) * parts * size
        tasks = load_int(g + GROUPS) * kg * cg
        line = workspace + slot_of(control) * slot_bytes
        tile = line + load_int(g + LINE_BYTES)
        first, last, turn = take(control, tasks, 1, 0)
        while first < last:
            for task in range(first, last):
                c = task % cg
                k = task // cg % kg
                group = task // cg // kg
                place_taps(g, tile, weights + task * taps)
                columns(g, tile, False)
                panel = k // panel_rows
                for r in range(0, planes * rows, lanes):
                    z = r // rows
                    turn_squares(
                        bits, lanes, cols // lanes, tile + z * plane_bytes + (r - z * rows) * pitch,
                        pitch, vector, line, vector, lanes * vector,
                    )  # fmt: skip
                    forward(line, vector, load_int(g + ROW_STAGES), load_int(g + ROW_COUNT), 0, 0)
                    to = (group * panels + panel) * planes * rows + r
                    to *= cols * cg * panel_rows * 2 * size
                    to += packed + (c * panel_rows + k - panel * panel_rows) * vector
                    for q in range(cols):
                        scale_complex(
                            bits, lanes, to + q * cg * panel_rows * vector, line + q * vector, scale
                        )
            first, last, turn = take(control, tasks, 1, turn)

    return kernel
