"""The kernels of overlap-save: tiles in, transforms, products of spectra, tiles out.

Importing this module does not import numba; calling its functions does.

A tile is a matrix of complex vectors in its thread's workspace, ``rows`` by ``cols`` numbers, of
which every run of ``lanes`` neighbours in a row is one complex vector: an image's tile as it lies,
or one line of samples, row after row.  Its columns are transformed first, neighbouring ones side by
side in the lanes.  Then, ``lanes`` rows at a time, squares are transposed so that the lanes are
rows, and the rows are transformed, multiplied by the spectrum and transformed back without leaving
the first level of cache.  The columns follow.

For a line that is the four-step transform (W. Gentleman and G. Sande 1966; D. Bailey, "FFTs in
external or hierarchical memory", J. Supercomputing 4, 1990) of ``L = rows * cols`` samples: with
``i = cols i1 + i2`` and ``q = q1 + rows q2``, between the transforms of columns and of rows place
(q1, i2) is multiplied by ``exp(-2 pi i q1 i2 / L)``, the *twist*, here by the columns' last
butterflies.

Real data go two tiles at a time, one as real and one as imaginary part: the kernel being real, the
product with its spectrum is that of both at once, and nothing has to be untangled.
"""

from __future__ import annotations

from collections.abc import Callable

from convjit_numba.problem import FIELD


def build(bits: int, lanes: int) -> Callable[..., None]:
    """The kernel that convolves (imports numba)."""
    from numba import njit

    from convjit_numba.fftcode import (
        fill_vector,
        finish_vector,
        spectrum_products,
        turn_squares,
    )
    from convjit_numba.fftstages import build_stages
    from convjit_numba.microkernel import OPTIONS, atomic_add, load_int

    size = bits // 8
    vector = 2 * lanes * size  # bytes of a complex one
    square = lanes * vector
    forward, backward, through = build_stages(bits, lanes)
    f = dict(FIELD)
    TASKS, GRAIN, SLOT_BYTES, GROUPS, CG, KG = (
        f["tasks"], f["grain"], f["slot_bytes"], f["groups"], f["cg"], f["kg"],
    )  # fmt: skip
    H, W, OH, OW, PH, PW = f["h"], f["w"], f["oh"], f["ow"], f["ph"], f["pw"]
    ROWS, COLS, HBLOCKS, WBLOCKS, PITCH = (
        f["rows"], f["cols"], f["hblocks"], f["wblocks"], f["pitch"],
    )  # fmt: skip
    PANELS, TASK_PANELS, TASK_SPLITS = f["panels"], f["task_panels"], f["task_splits"]
    ACTIVATION, SLOPES = f["activation"], f["slope0"]
    LINE, TILE_H, TILE_W, UNITS, TASK_PAIRS, PAIR_BLOCKS = (
        f["line"], f["tile_h"], f["tile_w"], f["units"], f["task_pairs"], f["pair_blocks"],
    )  # fmt: skip
    COLUMN_STAGES, COLUMN_COUNT = f["column_stages"], f["column_count"]
    ROW_STAGES, ROW_COUNT, TWIST, PANEL_ROWS = (
        f["row_stages"], f["row_count"], f["twist"], f["panel_rows"],
    )  # fmt: skip
    LINE_BYTES, AT_LINES, AT_SUMS, AT_RESULTS = (
        f["line_bytes"], f["at_spectra"], f["at_line_sums"], f["at_results"],
    )  # fmt: skip

    @njit(**OPTIONS)
    def fill(g, target, x, unit, group, channel):
        """One tile of one channel into the real or the imaginary parts; zeros for no tile."""
        h, w, rows, cols = load_int(g + H), load_int(g + W), load_int(g + ROWS), load_int(g + COLS)
        pitch, line, wblocks = load_int(g + PITCH), load_int(g + LINE), load_int(g + WBLOCKS)
        tiles = load_int(g + HBLOCKS) * wblocks
        image = unit // tiles
        tile = unit - image * tiles
        down = tile // wblocks
        y0 = down * load_int(g + TILE_H) - load_int(g + PH)
        x0 = (tile - down * wblocks) * load_int(g + TILE_W) - load_int(g + PW)
        exists = unit < load_int(g + UNITS)
        cg = load_int(g + CG)
        plane = x + ((image * load_int(g + GROUPS) + group) * cg + channel) * h * w * size
        for r in range(rows):
            row, first = y0 + r, x0
            if line != 0:
                row, first = 0, x0 + r * cols
            lo, hi = -first, w - first
            if not exists or row < 0 or row >= h:
                lo, hi = 0, 0
            source = plane + (row * w + first) * size
            place = target + r * pitch
            for b in range(0, cols, lanes):
                fill_vector(bits, lanes, place, source, lo - b, hi - b)
                place += vector
                source += lanes * size

    @njit(**OPTIONS)
    def finish(g, y, source, bias, unit, group, k):
        """The outputs of one tile of one channel, from the real or the imaginary parts."""
        if unit >= load_int(g + UNITS):
            return
        oh, ow, cols = load_int(g + OH), load_int(g + OW), load_int(g + COLS)
        pitch, line, wblocks = load_int(g + PITCH), load_int(g + LINE), load_int(g + WBLOCKS)
        tile_h, tile_w, kg = load_int(g + TILE_H), load_int(g + TILE_W), load_int(g + KG)
        tiles = load_int(g + HBLOCKS) * wblocks
        image = unit // tiles
        tile = unit - image * tiles
        down = tile // wblocks
        y0, x0 = down * tile_h, (tile - down * wblocks) * tile_w
        rows, wide = min(tile_h, oh - y0), min(tile_w, ow - x0)
        if line != 0:
            rows = (wide + cols - 1) // cols
        add = 0
        if bias != 0:
            add = bias + (group * kg + k) * size
        channel = (image * load_int(g + GROUPS) + group) * kg + k
        target = y + ((channel * oh + y0) * ow + x0) * size
        activation = load_int(g + ACTIVATION)
        for r in range(rows):
            count, to = wide, target + r * ow * size
            if line != 0:
                count, to = min(cols, wide - r * cols), target + r * cols * size
            place = source + r * pitch
            for b in range(0, count, lanes):
                finish_vector(bits, lanes, to, place, count - b, add, activation, g + SLOPES)
                to += lanes * size
                place += vector

    @njit(**OPTIONS)
    def columns(g, tile, inverse):
        """Transform the columns of a tile, ``lanes`` at a time."""
        cols, pitch, twist = load_int(g + COLS), load_int(g + PITCH), load_int(g + TWIST)
        table, count = load_int(g + COLUMN_STAGES), load_int(g + COLUMN_COUNT)
        for b in range(cols // lanes):
            factors = 0
            if twist != 0:
                factors = twist + b * vector
            if inverse:
                backward(tile + b * vector, pitch, table, count, factors, cols * 2 * size)
            else:
                forward(tile + b * vector, pitch, table, count, factors, cols * 2 * size)

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
        tile_bytes, squares = rows * pitch, cols // lanes
        slot = 0
        if control != 0:
            slot = atomic_add(control + 64, 1)
        tiles = workspace + slot * load_int(g + SLOT_BYTES)
        spectra = tiles + load_int(g + AT_LINES)
        sums = tiles + load_int(g + AT_SUMS)
        results = tiles + load_int(g + AT_RESULTS)
        first = 0
        while True:
            if control != 0:
                first = atomic_add(control, grain)
            if first >= tasks:
                break
            last = min(first + grain, tasks)
            for task in range(first, last):
                split = task % task_splits
                block = task // task_splits % pair_blocks
                group = task // task_splits // pair_blocks
                begin = 2 * block * task_pairs
                pairs = min(task_pairs, (units - begin + 1) // 2)
                low = split * task_panels
                high = min(low + task_panels, panels)
                for p in range(pairs):
                    for c in range(cg):
                        tile = tiles + (p * cg + c) * tile_bytes
                        fill(g, tile, x, begin + 2 * p, group, c)
                        fill(g, tile + vector // 2, x, begin + 2 * p + 1, group, c)
                        columns(g, tile, False)
                for r in range(0, rows, lanes):
                    if cg == 1 and kg == 1:
                        # One spectrum: the products belong to the middle butterflies.
                        w = weights + (group * rows + r) * cols * 2 * size
                        for p in range(pairs):
                            here = tiles + p * tile_bytes + r * pitch
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
                            here = tiles + (p * cg + c) * tile_bytes + r * pitch
                            to = spectra + (p * cg + c) * line
                            turn_squares(
                                bits, lanes, squares, here, pitch, vector, to, vector, square
                            )
                            forward(to, vector, table, stages, 0, 0)
                    for panel in range(low, high):
                        w = ((group * panels + panel) * rows + r) * cols * cg * panel_rows * 2
                        multiply(g, weights + w * size, spectra, sums, cg, pairs, panel_rows)
                        count = min(panel_rows, kg - panel * panel_rows)
                        k0 = (panel - low) * panel_rows
                        per_pair = task_panels * panel_rows
                        for p in range(pairs):
                            for i in range(count):
                                of = sums + (p * panel_rows + i) * line
                                to = results + (p * per_pair + k0 + i) * tile_bytes + r * pitch
                                backward(of, vector, table, stages, 0, 0)
                                turn_squares(
                                    bits, lanes, squares, of, vector, square, to, pitch, vector
                                )
                for p in range(pairs):
                    for k in range(low * panel_rows, min(high * panel_rows, kg)):
                        of = p * task_panels * panel_rows + k - low * panel_rows
                        tile = results + of * tile_bytes
                        columns(g, tile, True)
                        finish(g, y, tile, bias, begin + 2 * p, group, k)
                        finish(g, y, tile + vector // 2, bias, begin + 2 * p + 1, group, k)
            if control == 0:
                first = last

    return kernel


def build_pack(bits: int, lanes: int) -> Callable[..., None]:
    """The kernel that transforms weights, divided by the number of points."""
    from numba import njit

    from convjit_numba.fftcode import scale_complex, turn_squares
    from convjit_numba.fftstages import build_stages
    from convjit_numba.microkernel import OPTIONS, atomic_add, load_int, move_real, zero_bytes

    size = bits // 8
    vector = 2 * lanes * size
    forward, _, _ = build_stages(bits, lanes)
    f = dict(FIELD)
    GROUPS, CG, KG, KH, KW, DH, DW = (
        f["groups"], f["cg"], f["kg"], f["kh"], f["kw"], f["dh"], f["dw"],
    )  # fmt: skip
    ROWS, COLS, PITCH, LINE, PANELS = f["rows"], f["cols"], f["pitch"], f["line"], f["panels"]
    COLUMN_STAGES, COLUMN_COUNT, TWIST = f["column_stages"], f["column_count"], f["twist"]
    ROW_STAGES, ROW_COUNT, PANEL_ROWS = f["row_stages"], f["row_count"], f["panel_rows"]
    LINE_BYTES = f["line_bytes"]

    @njit(**OPTIONS)
    def place_taps(g, tile, taps):
        """A kernel such that a circular convolution with it correlates with the taps.

        Tap t of an axis goes to place -t, so that output o takes sample o + t.
        """
        rows, cols, pitch = load_int(g + ROWS), load_int(g + COLS), load_int(g + PITCH)
        kh, kw, dh, dw = load_int(g + KH), load_int(g + KW), load_int(g + DH), load_int(g + DW)
        line = load_int(g + LINE)
        zero_bytes(tile, rows * pitch)
        for a in range(kh):
            for b in range(kw):
                row, col = (rows - a * dh) % rows, 0
                if line != 0:
                    place = (rows * cols - b * dw) % (rows * cols)
                    row = place // cols
                    col = place - row * cols
                else:
                    col = (cols - b * dw) % cols
                to = tile + row * pitch + col // lanes * vector + col % lanes * size
                move_real(bits, to, taps + (a * kw + b) * size)

    def kernel(g, weights, packed, scale, workspace, slot_bytes, control):
        cg, kg = load_int(g + CG), load_int(g + KG)
        rows, cols, pitch = load_int(g + ROWS), load_int(g + COLS), load_int(g + PITCH)
        panels, panel_rows = load_int(g + PANELS), load_int(g + PANEL_ROWS)
        taps = load_int(g + KH) * load_int(g + KW) * size
        twist = load_int(g + TWIST)
        tasks = load_int(g + GROUPS) * kg * cg
        slot = 0
        if control != 0:
            slot = atomic_add(control + 64, 1)
        line = workspace + slot * slot_bytes
        tile = line + load_int(g + LINE_BYTES)
        task = 0
        while True:
            if control != 0:
                task = atomic_add(control, 1)
            if task >= tasks:
                break
            c = task % cg
            k = task // cg % kg
            group = task // cg // kg
            place_taps(g, tile, weights + task * taps)
            for b in range(cols // lanes):
                factors = 0
                if twist != 0:
                    factors = twist + b * vector
                forward(
                    tile + b * vector, pitch, load_int(g + COLUMN_STAGES),
                    load_int(g + COLUMN_COUNT), factors, cols * 2 * size,
                )  # fmt: skip
            panel = k // panel_rows
            for r in range(0, rows, lanes):
                turn_squares(
                    bits, lanes, cols // lanes, tile + r * pitch, pitch, vector,
                    line, vector, lanes * vector,
                )  # fmt: skip
                forward(line, vector, load_int(g + ROW_STAGES), load_int(g + ROW_COUNT), 0, 0)
                to = ((group * panels + panel) * rows + r) * cols * cg * panel_rows * 2 * size
                to += packed + (c * panel_rows + k - panel * panel_rows) * vector
                for q in range(cols):
                    scale_complex(
                        bits, lanes, to + q * cg * panel_rows * vector, line + q * vector, scale
                    )
            if control == 0:
                task += 1

    return kernel
