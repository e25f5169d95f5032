"""The gradient of depthwise weights: every channel by itself, lanes are output columns.

    gw[k, t] = sum over n, o of gy[n, k, o] * x[n, k // m, o * stride - pad + t * dilation]

There is no sum over channels and nothing to share between them, so this is no matrix product: it is
one dot product of two planes for each tap.  A task owns an output channel.  It copies one plane of
x at a time, padded left and right and its columns split by their residues modulo the stride, so
that every tap reads consecutive numbers; the sums of a kernel row's taps, a vector each, stay in
registers while the rows of gy pass (as in Zhang, Lo and Lu 2020, "High Performance Depthwise and
Pointwise Convolutions on Mobile Devices", section 3.3).  Kernel rows that meet the padding above
and below are left out.

A channel's products are always added in the same order, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from convjit.algorithms.workspace import aligned
from convjit.precision import Numerics
from convjit.spec import ConvSpec, Direction
from convjit.spi import (
    DEFAULT_CONFIG,
    Config,
    Executable,
    Feature,
    Phase,
    Refusal,
    Target,
    Work,
)
from convjit_numba import cache, problem, targets, taskloop, threads
from convjit_numba.executable import PanelExecutable, as_it_is
from convjit_numba.problem import FIELD, FIELDS, Problem

MOST_TAPS = 8  # of a kernel row that are summed together
# Cycles of the model: a tap's load, most of which lie across two cache lines; a row of a pass; a
# row copied, a number copied one by one, a vector copied.
LOAD, ROW, COPY, NUMBER, VECTOR = 2.0, 8.0, 8.0, 1.5, 3.0


def build(bits: int, vl: int, chunk: int, rest: int) -> Callable[..., None]:
    """The kernel that sums ``chunk`` taps at a time, and then ``rest`` (imports numba)."""
    from convjit_numba.depthwisegradtile import copy_row, lane_sum, split_row, tap_sums
    from convjit_numba.memory import copy_bytes, load_int, move_real, zero_bytes

    slot_of, take = taskloop.sharing()
    size, half = bits // 8, vl // 2
    f = dict(FIELD)
    TASKS, GRAIN, SLOT_BYTES, BATCH, GROUPS, KG = (
        f["tasks"], f["grain"], f["slot_bytes"], f["batch"], f["groups"], f["kg"],
    )  # fmt: skip
    D, H, W, OD, OH, OW = f["d"], f["h"], f["w"], f["od"], f["oh"], f["ow"]
    KD, KH, KW, SD, SH, SW = f["kd"], f["kh"], f["kw"], f["sd"], f["sh"], f["sw"]
    PD, PH, PW, DD, DH = f["pd"], f["ph"], f["pw"], f["dd"], f["dh"]
    WIDE, GY_PITCH, AT_GY, AT_SLAB = f["wide"], f["gy_pitch"], f["at_gy"], f["at_slab"]
    OFFSETS = 8 * len(FIELDS)

    def kernel(g, x, gy, bias, y, workspace, control):
        tasks, grain = load_int(g + TASKS), load_int(g + GRAIN)
        batch, groups, m = load_int(g + BATCH), load_int(g + GROUPS), load_int(g + KG)
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        od, oh, ow = load_int(g + OD), load_int(g + OH), load_int(g + OW)
        kd, kh, kw = load_int(g + KD), load_int(g + KH), load_int(g + KW)
        sd, sh, sw = load_int(g + SD), load_int(g + SH), load_int(g + SW)
        pd, ph, pw = load_int(g + PD), load_int(g + PH), load_int(g + PW)
        dd, dh = load_int(g + DD), load_int(g + DH)
        wide, gy_pitch = load_int(g + WIDE) * size, load_int(g + GY_PITCH) * size
        line = sw * wide
        numbers = oh * ow
        sums = workspace + slot_of(control) * load_int(g + SLOT_BYTES)
        rows, slab = sums + load_int(g + AT_GY), sums + load_int(g + AT_SLAB)
        # What is padding in one plane is padding in all.
        zero_bytes(slab, h * line)
        first, last, turn = take(control, tasks, grain, 0)
        while first < last:
            for k in range(first, last):
                zero_bytes(sums, kd * kh * kw * vl * size)
                for plane in range(batch * d):
                    n, zx = plane // d, plane % d
                    source = x + ((n * groups + k // m) * d + zx) * h * w * size
                    copied = 0
                    for t in range(kd):
                        z = zx + pd - t * dd
                        if z < 0 or z % sd != 0 or z >= od * sd:
                            continue
                        if copied == 0:
                            copied = 1
                            for i in range(h):
                                # Column j is number (j + pw) // sw of phase (j + pw) % sw.
                                target, row = slab + i * line, source + i * w * size
                                if sw == 1:
                                    count = min(w, wide // size - pw)
                                    copy_row(bits, vl, half, target + pw * size, row, count)
                                elif sw == 2:
                                    split_row(
                                        bits, vl,
                                        target + pw % 2 * wide + pw // 2 * size,
                                        target + (1 - pw % 2) * wide + (pw + 1) // 2 * size,
                                        row, min(w, 2 * (wide // size) - pw),
                                    )  # fmt: skip
                                else:
                                    for j in range(min(w, sw * (wide // size) - pw)):
                                        at = (j + pw) % sw * wide + (j + pw) // sw * size
                                        move_real(bits, target + at, row + j * size)
                        index = (n * tasks + k) * od + z // sd
                        given, pitch = gy + index * numbers * size, ow * size
                        if (batch * tasks * od - index - 1) * numbers < vl:
                            # The last row's last vector would end beyond the array.
                            for i in range(oh):
                                copy_bytes(rows + i * gy_pitch, given + i * ow * size, ow * size)
                            given, pitch = rows, gy_pitch
                        for a in range(kh):
                            # Row i of gy meets row i * sh + above of x.
                            above = a * dh - ph
                            low, high = 0, 0
                            if above < 0:
                                low = (-above + sh - 1) // sh
                            if above < h:
                                high = min(oh, (h - 1 - above) // sh + 1)
                            if low >= high:
                                continue
                            here = slab + (low * sh + above) * line
                            there = given + low * pitch
                            to = sums + (t * kh + a) * kw * vl * size
                            tap = 0
                            while tap + chunk <= kw:
                                tap_sums(
                                    bits, vl, chunk, here, sh * line, g + OFFSETS + 8 * tap,
                                    there, pitch, high - low, ow, to + tap * vl * size,
                                )  # fmt: skip
                                tap += chunk
                            if rest > 0:
                                tap_sums(
                                    bits, vl, rest, here, sh * line, g + OFFSETS + 8 * tap,
                                    there, pitch, high - low, ow, to + tap * vl * size,
                                )  # fmt: skip
                taps = kd * kh * kw
                for t in range(taps):
                    lane_sum(bits, vl, y + (k * taps + t) * size, sums + t * vl * size)
            first, last, turn = take(control, tasks, grain, turn)

    return kernel


@dataclass(frozen=True, slots=True)
class Plan:
    """Vectors, the passes over a kernel row's taps, and a thread's workspace."""

    p: Problem
    vl: int

    @classmethod
    def of(cls, p: Problem, isa: str) -> Plan:
        vl = targets.tiles(isa, p.dtype)[0].vl
        while p.out[2] <= vl // 2 and vl * p.bytes > 16:
            vl //= 2
        return cls(p, vl)

    @property
    def passes(self) -> tuple[int, int]:
        """Taps of each whole pass over a kernel row, and of the last one."""
        kw = self.p.kernel[2]
        chunk = min(kw, MOST_TAPS)
        return chunk, kw % chunk

    @property
    def offsets(self) -> tuple[int, ...]:
        """Bytes from a row of the copy to what each tap column of a kernel row meets first."""
        p = self.p
        found = (divmod(b * p.dilation[2], p.stride[2]) for b in range(p.kernel[2]))
        return tuple((phase * self.wide + at) * p.bytes for at, phase in found)

    @property
    def gy_pitch(self) -> int:
        return -(-self.p.out[2] // self.vl) * self.vl

    @property
    def wide(self) -> int:
        """Numbers of a phase of a row of x."""
        p = self.p
        return self.gy_pitch + (p.kernel[2] - 1) * p.dilation[2] // p.stride[2]

    @property
    def places(self) -> dict[str, int]:
        p = self.p
        at_gy = aligned(p.taps * self.vl * p.bytes)
        at_slab = at_gy + aligned(p.out[1] * self.gy_pitch * p.bytes)
        slab = p.size[1] * p.stride[2] * self.wide * p.bytes
        return {"at_gy": at_gy, "at_slab": at_slab, "slot_bytes": at_slab + aligned(slab)}

    @property
    def tasks(self) -> int:
        return self.p.groups * self.p.kg

    @property
    def cycles(self) -> float:
        """The model's, of all tasks."""
        p = self.p
        vectors = self.gy_pitch // self.vl
        chunk, rest = self.passes
        pass_ = sum(
            vectors * max(LOAD * (taps + 0.5), 4.0) + ROW
            for taps in (chunk,) * (p.kernel[2] // chunk) + ((rest,) if rest else ())
        )
        met = p.kernel[0] * p.kernel[1] * p.out[0] * p.out[1] * pass_
        number = NUMBER if p.stride[2] > 2 else VECTOR / self.vl
        copied = p.size[0] * p.size[1] * (COPY + p.size[2] * number)
        return self.tasks * (p.batch * (met + copied) + 10.0 * p.taps + 100.0)


class DepthwiseWeightGrad:
    """Dot products of planes, channels first."""

    id = "numba.weight_grad.depthwise"
    algorithm = "depthwise"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if spec.direction is not Direction.WEIGHT_GRAD:
            return Refusal(Feature.OTHER, "computes the weights' gradient alone")
        refusal = problem.refuse(spec.replace(direction=Direction.FORWARD))
        if refusal is not None:
            return refusal
        if spec.groups != spec.in_channels:
            return Refusal(Feature.GROUPS, "convolves each channel by itself (groups = channels)")
        plan = Plan.of(Problem.of(spec), problem.isa_of(target))
        if plan.places["slot_bytes"] > problem.MAX_SLOT:
            return Refusal(Feature.SIZE, "the padded planes of one channel exceed 1 GiB")
        return None

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        plan = Plan.of(p, isa)
        slots = min(target.cores, plan.tasks)
        wakes = problem.wakes_helpers(target, p, isa, plan.cycles, slots)
        # Threads without a task count as if they computed.
        share = -(-plan.tasks // slots) * slots / plan.tasks * target.cores / slots
        lanes = targets.tiles(isa, p.dtype)[0].vl
        flops = 4.0 * lanes * plan.cycles * (share if wakes else target.cores)
        return Work(
            (Phase("depthwise", flops, f"numba.weight_grad.{p.dtype}", p.traffic),),
            # Each lane of a vector sums its part of the columns.
            Numerics("direct", chain=p.batch * p.out[0] * p.out[1] * -(-p.out[2] // lanes)),
            launches=int(wakes),
            workspace=threads.slots_bytes(slots, plan.places["slot_bytes"]),
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        yield DEFAULT_CONFIG

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        plan = Plan.of(p, isa)
        bits, (chunk, rest) = targets.BITS[p.dtype], plan.passes
        name = f"weight_grad.depthwise.{targets.SHORT[p.dtype]}.{plan.vl}x{chunk}.{rest}"
        kernel = cache.function(name, 7, partial(build, bits, plan.vl, chunk, rest))
        slots = min(target.cores, plan.tasks)
        seconds = plan.cycles / problem.cycles_per_second(target, p.dtype, isa)
        geometry = problem.pack_geometry(
            p.geometry()
            | plan.places
            | {
                "tasks": plan.tasks,
                "grain": targets.grain(plan.tasks, slots, seconds),
                "wide": plan.wide,
                "gy_pitch": plan.gy_pitch,
            },
            plan.offsets,
        )
        return PanelExecutable(
            kernel, as_it_is, geometry, (),
            slots=slots, slot_bytes=plan.places["slot_bytes"], seconds=seconds,
        )  # fmt: skip
