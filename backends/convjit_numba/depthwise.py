"""Depthwise convolution of channels-last arrays: every channel by itself, lanes are channels.

A task owns a block of output lines and columns of one image and a range of vectors of channels.
For every line a table lists the kernel rows that meet the image; the tile of
:mod:`convjit_numba.depthwisetile` adds them up for up to ``MR`` outputs of the line and passes over
the columns that lie in the padding.  Taps in the padding are never computed: for the large kernels
of small images they are the greater part (Ding et al. 2022, "Scaling Up Your Kernels to 31x31").
Sums of neighbouring outputs stay in registers, so that pixels and weights are loaded once for many
products (as in Zhang, Lo and Lu 2020, "High Performance Depthwise and Pointwise Convolutions on
Mobile Devices", which blocks likewise on Arm processors).

With a dilation, outputs whose columns are equal modulo ``dilation / gcd(dilation, stride)`` read
inputs of the same class modulo the dilation: each class is a line without dilation.

The last vector of channels ends with the last channel: it overlaps the one before, and what both
hold is computed twice, alike.  With a multiplier m the tile runs m times into a buffer, whose
vectors are then interleaved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import prod

from convjit.precision import Numerics
from convjit.spec import ConvSpec
from convjit.spi import DEFAULT_CONFIG, Config, Executable, Feature, Phase, Refusal, Target, Work
from convjit_numba import cache, problem, targets
from convjit_numba.depthwiseplan import Slot, blocking, multiplier, packed_shape, packer
from convjit_numba.problem import FIELD, PanelExecutable, Problem

MAX_TAPS = 64  # of a kernel row, which is straight code


def build_line(
    bits: int, mr: int, taps: int, stride: int, vl: int, kept: int, multiplier: int
) -> tuple[Callable[..., int], Callable[..., None]]:
    """(``row_table``, ``depthwise_line``), for kernels to call (imports numba).

    ``multiplier`` is 0 where it is known at run time only.
    """
    from numba import njit

    from convjit_numba.depthwisetile import depthwise_tile, interleave
    from convjit_numba.microkernel import OPTIONS, load_int, move_real, store_int

    size = bits // 8
    f = dict(FIELD)
    GROUPS, KG, D, H, W = f["groups"], f["kg"], f["d"], f["h"], f["w"]
    KD, KH, SD, SH, SW = f["kd"], f["kh"], f["sd"], f["sh"], f["sw"]
    PD, PH, PW, DD, DH, DW = f["pd"], f["ph"], f["pw"], f["dd"], f["dh"], f["dw"]
    ACTIVATION, SLOPES, CLASSES = f["activation"], f["slope0"], f["classes"]

    @njit(**OPTIONS)
    def row_table(g, table, z, r):
        """The kernel rows that meet the image in output line (z, r), and how many they are."""
        d, h = load_int(g + D), load_int(g + H)
        kd, kh = load_int(g + KD), load_int(g + KH)
        dd, dh = load_int(g + DD), load_int(g + DH)
        line = load_int(g + W) * load_int(g + GROUPS) * size
        z0 = z * load_int(g + SD) - load_int(g + PD)
        r0 = r * load_int(g + SH) - load_int(g + PH)
        count = 0
        for t in range(kd):
            plane = z0 + t * dd
            if 0 <= plane < d:
                for a in range(kh):
                    row = r0 + a * dh
                    if 0 <= row < h:
                        store_int(table + count * 16, (plane * h + row) * line)
                        store_int(table + count * 16 + 8, (t * kh + a) * taps * vl * size)
                        count += 1
        return count

    @njit(**OPTIONS)
    def depthwise_line(
        g, table, rows, image, weights, bias, y, buffer, vector0, vector1, col0, col1
    ):  # fmt: skip
        """Outputs ``col0`` to ``col1`` of a line that begins at ``y``, of a range of vectors.

        ``bias`` is that of the first vector: as the caller has it without a multiplier, packed as
        ``(vectors, multiplier, vl)`` with one, or 0.  ``buffer`` has a tile's results.
        """
        channels, m, w = load_int(g + GROUPS), load_int(g + KG), load_int(g + W)
        step, dw, pw = load_int(g + SW), load_int(g + DW), load_int(g + PW)
        classes, activation = load_int(g + CLASSES), load_int(g + ACTIVATION)
        panel = load_int(g + KD) * load_int(g + KH) * taps * vl * size
        pixel = channels * size
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
                    here = image + (at * channels + c) * size
                    if multiplier == 1:
                        add = 0
                        if bias != 0:
                            add = bias + c * size
                        depthwise_tile(
                            bits, mr, taps, stride, vl, kept, met, table, here, dw * pixel,
                            low, high, weights + v * panel, y + (col * channels + c) * size,
                            classes * pixel, count, add, activation, g + SLOPES,
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


def build(
    bits: int, mr: int, taps: int, stride: int, vl: int, kept: int, multiplier: int
) -> Callable[..., None]:
    """The kernel for one tile (imports numba)."""
    from convjit_numba.microkernel import atomic_add, load_int, move_real

    row_table, depthwise_line = build_line(bits, mr, taps, stride, vl, kept, multiplier)
    size = bits // 8
    f = dict(FIELD)
    TASKS, GRAIN, SLOT_BYTES, GROUPS, KG = (
        f["tasks"], f["grain"], f["slot_bytes"], f["groups"], f["kg"],
    )  # fmt: skip
    D, H, W, OD, OH, OW = f["d"], f["h"], f["w"], f["od"], f["oh"], f["ow"]
    ROWS, COLS, HBLOCKS, WBLOCKS = f["rows"], f["cols"], f["hblocks"], f["wblocks"]
    VECTORS, TASK_VECTORS, VECTOR_SPLITS = f["vectors"], f["task_vectors"], f["vector_splits"]
    AT_BIAS, AT_BUFFER = f["at_bias"], f["at_buffer"]

    def kernel(g, x, weights, bias, y, workspace, control):
        tasks, grain = load_int(g + TASKS), load_int(g + GRAIN)
        channels, m = load_int(g + GROUPS), load_int(g + KG)
        od, oh, ow = load_int(g + OD), load_int(g + OH), load_int(g + OW)
        image_bytes = load_int(g + D) * load_int(g + H) * load_int(g + W) * channels * size
        hblocks, wblocks = load_int(g + HBLOCKS), load_int(g + WBLOCKS)
        block_rows, block_cols = load_int(g + ROWS), load_int(g + COLS)
        vectors, task_vectors = load_int(g + VECTORS), load_int(g + TASK_VECTORS)
        vector_splits = load_int(g + VECTOR_SPLITS)
        slot = 0
        if control != 0:
            slot = atomic_add(control + 64, 1)
        table = workspace + slot * load_int(g + SLOT_BYTES)
        addends, buffer = table + load_int(g + AT_BIAS), table + load_int(g + AT_BUFFER)
        first = 0
        while True:
            if control != 0:
                first = atomic_add(control, grain)
            if first >= tasks:
                break
            last = min(first + grain, tasks)
            for task in range(first, last):
                rest = task // vector_splits
                vector0 = (task - rest * vector_splits) * task_vectors
                vector1 = min(vector0 + task_vectors, vectors)
                block = rest // wblocks
                col0 = (rest - block * wblocks) * block_cols
                col1 = min(col0 + block_cols, ow)
                rest = block // hblocks
                r0 = (block - rest * hblocks) * block_rows
                image = x + rest // od * image_bytes
                add = bias
                if multiplier != 1 and bias != 0:
                    add = addends
                    for v in range(vector0, vector1):
                        c = min(v * vl, channels - vl)
                        for j in range(m):
                            for lane in range(vl):
                                to = ((v - vector0) * m + j) * vl + lane
                                number = (c + lane) * m + j
                                move_real(bits, addends + to * size, bias + number * size)
                for r in range(r0, min(r0 + block_rows, oh)):
                    rows = row_table(g, table, rest % od, r)
                    line = y + (rest * oh + r) * ow * channels * m * size
                    depthwise_line(
                        g, table, rows, image, weights, add, line, buffer,
                        vector0, vector1, col0, col1,
                    )  # fmt: skip
            if control == 0:
                first = last

    return kernel


# -------------------------------------------------------------------- the solver


class Depthwise:
    """Depthwise convolution of channels-last arrays, any multiplier, stride and dilation."""

    id = "numba.depthwise"
    algorithm = "depthwise"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        refusal = problem.refuse(spec, channels_last=True)
        if refusal is not None:
            return refusal
        if spec.groups != spec.in_channels:
            return Refusal(Feature.GROUPS, "convolves each channel by itself (groups = channels)")
        if not spec.channels_last:
            return Refusal(Feature.LAYOUT, f"reads channels-last arrays, not {spec.layout}")
        if spec.kernel_size[-1] > MAX_TAPS:
            return Refusal(Feature.SIZE, f"takes kernels of up to {MAX_TAPS} columns")
        return None

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        b = blocking(p, isa, target.cores)
        slots = min(target.cores, b.tasks)
        wakes = problem.wakes_helpers(target, p, isa, b.cycles, slots)
        # Threads without a task count as if they computed.
        cycles = b.makespan * target.cores if wakes else b.cycles * target.cores
        lanes_ = targets.tiles(isa, p.dtype)[0].vl
        weights = float(prod(packed_shape(p, b.vl)) * p.bytes)
        phase = Phase("depthwise", 4.0 * lanes_ * cycles, f"numba.depthwise.{p.dtype}", p.traffic)
        return Work(
            (phase,),
            Numerics("direct"),
            problem.pack_phase(p, weights),
            launches=int(wakes),
            workspace=slots * Slot.of(p, b.mr, b.vl, b.task_vectors).bytes,
            packed_bytes=int(weights),
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        yield DEFAULT_CONFIG
        most = blocking(Problem.of(spec), problem.isa_of(target), target.cores, 64).mr
        for mr in targets.splits(most, 4):
            yield (("mr", mr),)

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        b = blocking(p, isa, target.cores, dict(config).get("mr"))
        bits, taps = targets.BITS[p.dtype], p.kernel[2]
        kernel = cache.function(
            b.name(p), 7, partial(build, bits, b.mr, taps, b.stride, b.vl, b.kept, multiplier(p))
        )
        vectors = -(-p.groups // b.vl)
        slots = min(target.cores, b.tasks)
        slot = Slot.of(p, b.mr, b.vl, b.task_vectors)
        seconds = b.cycles / problem.cycles_per_second(target, p.dtype, isa)
        geometry = problem.pack_geometry(
            p.geometry()
            | problem.activation_fields(spec)
            | {
                "tasks": b.tasks,
                "grain": targets.grain(b.tasks, slots, seconds),
                "slot_bytes": slot.bytes,
                "rows": b.rows,
                "cols": b.cols,
                "hblocks": -(-p.out[1] // b.rows),
                "wblocks": -(-p.out[2] // b.cols),
                "classes": b.classes,
                "vectors": vectors,
                "task_vectors": b.task_vectors,
                "vector_splits": -(-vectors // b.task_vectors),
                "at_bias": slot.bias,
                "at_buffer": slot.buffer,
            }
        )
        return PanelExecutable(
            kernel, packer(p, b.vl), geometry, (),
            slots=slots, slot_bytes=slot.bytes, seconds=seconds,
        )  # fmt: skip
