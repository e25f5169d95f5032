"""What the solvers share: the problem on three axes, geometry, phases of work.

They compute ``y[k, p] = sum over (c, t) of w[k, (c, t)] * x[(c, t), p]`` with register tiles, and
differ in what their lanes are and in how a task prepares its pixels.  All treat a 1-D or 2-D
problem as a 3-D one with leading axes of size 1, and hand their sizes to a kernel as one array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from convjit.algorithms.geometry import Range, outputs_of_tap
from convjit.algorithms.workspace import aligned
from convjit.precision import Numerics
from convjit.spec import ConvSpec, Direction
from convjit.spi import (
    DEFAULT_CONFIG,
    Config,
    Feature,
    Phase,
    Refusal,
    Target,
    Work,
)
from convjit_numba import targets, threads
from convjit_numba.targets import Tile

Axes = tuple[int, int, int]
ARRIVING = 1.2  # times the rate of a stream: computing hides a part
GATHERED_STEPS = 4  # strides along a row up to this are gathered by vectors
MAX_SLOT = 1 << 30  # offsets within a slot of workspace are int32

# Slots of the packed geometry, an int64 array that a kernel reads its sizes from.
FIELDS = (
    "tasks", "grain", "slot_bytes", "batch", "groups", "cg", "kg",
    "d", "h", "w", "od", "oh", "ow", "kd", "kh", "kw",
    "sd", "sh", "sw", "pd", "ph", "pw", "dd", "dh", "dw",
    "cblock", "cblocks", "panels", "task_panels", "task_splits", "pass_panels",
    "activation", "slope0", "slope1", "offsets",
    # direct
    "rows", "cols", "hblocks", "wblocks", "pitch", "plane", "slice", "phases_h", "phases_w",
    "extra_h", "extra_w", "flat",
    # gemm
    "pixels", "task_pixels", "pixel_blocks", "strips", "strip_blocks",
    # winograd
    "tiles_d", "tiles_h", "tiles_w", "tiles", "task_tiles", "tile_blocks", "row_bytes",
    "md", "mh", "mw", "nd", "nh", "nw", "points", "tile_rows", "tile_columns", "unit",
    "data_code", "output_code", "rows_code",
    "point_bytes", "product_bytes", "at_patch", "at_fold", "at_points", "at_products", "at_outputs",
    # indirect
    "task_groups", "plane_lines", "last", "merged", "zero_bytes", "slab_pitch",
    "at_positions", "at_zeros", "at_sums", "at_table", "at_patches", "at_slab", "table_bytes",
    "ends",
    # planes
    "kernel", "row_blocks", "col_blocks", "apart", "span", "deep", "mode", "swapped", "in_place",
    "wrow", "wcol", "table", "buffer_table", "per_depth", "step", "buffer_pitch", "buffer_step",
    "wide", "all_rows",
    # weight gradient
    "task_rows", "row_splits", "splits", "images", "image_blocks", "gy_pitch", "at_gy",
    "partial_bytes",
    # fft
    "line", "tile_h", "tile_w", "units", "task_pairs", "pair_blocks", "column_stages",
    "column_count", "row_stages", "row_count", "twist", "panel_rows", "line_bytes",
    "at_spectra", "at_line_sums", "at_results",
    "planes", "dblocks", "tile_d", "plane_bytes", "tile_bytes", "depth_stages", "depth_count",
    # depthwise
    "classes", "fetches", "vectors", "task_vectors", "vector_splits", "at_bias", "at_buffer",
    "ring",
    # separable
    "mixed", "mixed_activation", "mixed_slope0", "mixed_slope1",
    # subpixel
    "first_h", "first_w",
)  # fmt: skip
FIELD = {name: 8 * place for place, name in enumerate(FIELDS)}


@dataclass(frozen=True, slots=True)
class Problem:
    """A forward problem on three spatial axes."""

    batch: int
    groups: int
    cg: int
    kg: int
    size: Axes
    out: Axes
    kernel: Axes
    stride: Axes
    pad: Axes
    dilation: Axes
    dtype: str

    @classmethod
    def of(cls, spec: ConvSpec) -> Problem:
        def three(values: tuple[int, ...], fill: int) -> Axes:
            a, b, c = (fill,) * (3 - len(values)) + tuple(values)
            return a, b, c

        return cls(
            spec.batch,
            spec.groups,
            spec.in_channels // spec.groups,
            spec.out_channels // spec.groups,
            three(spec.in_size, 1),
            three(spec.out_size, 1),
            three(spec.kernel_size, 1),
            three(spec.stride, 1),
            three(tuple(lo for lo, _ in spec.padding), 0),
            three(spec.dilation, 1),
            spec.dtype,
        )

    @property
    def bytes(self) -> int:
        """Of one number."""
        return targets.BITS[self.dtype] // 8

    @property
    def taps(self) -> int:
        return prod(self.kernel)

    @property
    def depth(self) -> int:
        """Products summed for one result."""
        return self.cg * self.taps

    @property
    def pixels(self) -> int:
        """Results per image and channel."""
        return prod(self.out)

    @property
    def traffic(self) -> dict[str, float]:
        """Compulsory bytes by level: x read, y written, weights read.

        A call that is repeated finds in the shared cache what that held on to.
        """
        return self.moved()

    def moved(self, shared: float = 0.0) -> dict[str, float]:
        """:attr:`traffic` with ``shared`` bytes more that come from the shared cache."""
        x = self.batch * self.groups * self.cg * prod(self.size)
        y = self.batch * self.groups * self.kg * self.pixels
        w = self.groups * self.kg * self.depth
        return by_level(float((x + y + w) * self.bytes), shared)

    def outputs_of_tap(self, axis: int, tap: int) -> Range:
        """The outputs for which a tap reads inside the image, along an axis."""
        sizes = (self.size, self.out, self.stride, self.pad, self.dilation)
        return outputs_of_tap(tap, *(size[axis] for size in sizes))

    def geometry(self) -> dict[str, int]:
        values = {
            "batch": self.batch, "groups": self.groups, "cg": self.cg, "kg": self.kg,
        }  # fmt: skip
        for letter, axes in (
            ("", self.size), ("o", self.out), ("k", self.kernel), ("s", self.stride),
            ("p", self.pad), ("d", self.dilation),
        ):  # fmt: skip
            for axis, value in zip("dhw", axes, strict=True):
                values[letter + axis] = value
        return values


@lru_cache(maxsize=1024)
def inside_share(p: Problem, axis: int, run: float = 1.0) -> float:
    """The part of the taps along an axis that meet the image, over all runs of outputs.

    A run of neighbours meets what one of its outputs does.
    """
    out, taps = p.out[axis], p.kernel[axis]
    met = (len(p.outputs_of_tap(axis, tap)) for tap in range(taps))
    return sum(min(out, count + run - 1) for count in met if count) / (out * taps)


def refuse(
    spec: ConvSpec, *, channels_last: bool = False, also: Container[str] = ()
) -> Refusal | None:
    """What the solvers refuse alike, cheapest first.

    ``channels_last`` arrays only some take, and dtypes other than float32 and float64.
    """
    if spec.dtype not in targets.BITS and spec.dtype not in also:
        return Refusal(Feature.DTYPE, f"computes float32 and float64, not {spec.dtype}")
    if spec.direction is not Direction.FORWARD:
        return Refusal(Feature.DIRECTION, f"computes the forward direction, not {spec.direction}")
    if spec.strided:
        return Refusal(Feature.STRIDED, "reads contiguous arrays")
    if spec.channels_last and not channels_last:
        return Refusal(Feature.LAYOUT, f"reads channels-first arrays, not {spec.layout}")
    if spec.pad_mode != "zeros" and any(lo or hi for lo, hi in spec.padding):
        return Refusal(Feature.PAD_MODE, f"pads with zeros, not with {spec.pad_mode}")
    if spec.flip:
        return Refusal(Feature.FLIP, "does not reverse the kernel")
    if spec.is_empty:
        return Refusal(Feature.SIZE, "there is nothing to sum")
    return None


# -------------------------------------------------------------------- the geometry


@dataclass(frozen=True, slots=True)
class Scratch:
    """A thread's part of the workspace, in bytes from its start.

    First a register tile's worth of results (edges go through it), then ``mr`` numbers of bias,
    then the pixels that a task prepares.
    """

    pixel_bytes: int
    tile: Tile
    size: int

    @property
    def bias(self) -> int:
        return aligned(self.tile.mr * self.tile.nr * self.size)

    @property
    def pixels(self) -> int:
        return self.bias + aligned(self.tile.mr * self.size)

    @property
    def bytes(self) -> int:
        # The last register tile of a run may load one tile's width beyond the pixels.
        return self.pixels + aligned(self.pixel_bytes + self.tile.nr * self.size)


def gathered_step(stride: int) -> int:
    """A stride along a row that kernels gather by shuffles, 0 for one gathered by numbers."""
    return stride if stride <= GATHERED_STEPS else 0


def activation_fields(spec: ConvSpec) -> dict[str, int]:
    """Kind and bit patterns of the two parameters of an activation."""
    kind, first, second = 0, 0.0, 0.0
    if spec.activation is not None:
        name, *arguments = spec.activation
        if name == "relu":
            kind, first, second = 2, 0.0, math.inf
        elif name == "leaky_relu":
            kind, first = 1, float(arguments[0])
        else:
            kind, first, second = 2, float(arguments[0]), float(arguments[1])
    if spec.dtype == "float32":
        packed = np.array([first, second], np.float32).view(np.int64)
        return {"activation": kind, "slope0": int(packed[0]), "slope1": 0}
    bits = np.array([first, second]).view(np.int64)
    return {"activation": kind, "slope0": int(bits[0]), "slope1": int(bits[1])}


def pack_geometry(values: Mapping[str, int], tail: tuple[int, ...] = ()) -> np.ndarray[Any, Any]:
    """The geometry array; ``tail`` follows the named fields.

    ``slot_bytes`` is given as what a thread uses of the workspace, and kept as how far it is to the
    next thread's part.
    """
    unknown = set(values) - set(FIELDS)
    if unknown:
        raise KeyError(f"no geometry fields {sorted(unknown)}")
    array = np.zeros(len(FIELDS) + len(tail), np.int64)
    for name, value in values.items():
        array[FIELD[name] // 8] = threads.slot_step(value) if name == "slot_bytes" else value
    array[len(FIELDS) :] = tail
    return array


def wanted_tasks(config: Config, default: Callable[[], Any]) -> float | None:
    """The number of tasks that a configuration asks for, None where it asks for none.

    It is given as a share of the default blocking's (``tasks_percent``), so that a configuration
    means the same for similar sizes.
    """
    share = dict(config).get("tasks_percent")
    return None if share is None else share / 100 * default().tasks


def configs(
    tiles: Iterable[Tile], blocking: Callable[[Config], Any], *, divided: bool = True
) -> Iterator[Config]:
    """Block sizes to choose from: the default, then all whose blocking is another.

    Parameters
    ----------
    tiles : iterable of Tile
        Register tiles, each with the division into tasks that the model says is best.
    blocking : callable
        From a configuration to its blocking, which has a number of ``tasks``.
    divided : bool
        Whether twice and half as many tasks are offered: threads share caches and memory in ways
        that the model does not know.
    """
    yield DEFAULT_CONFIG
    seen = [blocking(DEFAULT_CONFIG)]
    wanted: list[Config] = [(("mr", tile.mr), ("nv", tile.nv)) for tile in tiles]
    if divided:
        wanted += [(("tasks_percent", share),) for share in (200, 50)]
    for config in wanted:
        found = blocking(config)
        if found not in seen:
            seen.append(found)
            yield config


@lru_cache(maxsize=1)
def caches() -> dict[str, int]:
    """Bytes of this machine's caches: ``l1``, ``l2`` (of a core each) and ``l3``."""
    return targets.cache_sizes()


def held_share(total: float) -> float:
    """Share of ``total`` bytes, read over and over, that the shared cache supplies.

    Everything up to three quarters of the cache, nothing from seven quarters on: streams of 16, 24,
    32, 48 and 80 MiB came at 155, 72, 59, 36 and 31 GB/s where the cache had 32 MiB.
    """
    return min(1.0, max(0.0, 1.75 - total / caches()["l3"]))


def by_level(total: float, shared: float = 0.0) -> dict[str, float]:
    """Compulsory bytes by the level that supplies them, and ``shared`` from the shared cache."""
    held = held_share(total)
    return {"l3": held * total + shared, "memory": (1 - held) * total}


def stream(total: float, isa: str) -> float:
    """Bytes of so many, read over and over, that a core gets a cycle of the models."""
    held, (shared, memory) = held_share(total), targets.streams(isa)
    return 1 / (held / shared + (1 - held) / memory)


def arriving(p: Problem, isa: str, most: float) -> float:
    """Bytes a cycle of the models, of pixels and results, that a core waits for as they come.

    That is ``most`` by a core whose own caches hold them, else what the shared cache adds.
    """
    held = caches()["l2"] >= sum(p.traffic.values())
    most /= targets.lag(isa)
    return most if held else min(most, ARRIVING * targets.streams(isa)[0])


def blocks_of(dtype: str) -> targets.Blocks:
    """Block sizes on this machine."""
    return targets.blocks(dtype, caches()["l1"], caches()["l2"])


def isa_of(target: Target) -> str:
    """Instruction set of a target (plans may be made for another machine in tests)."""
    return target.features.get("isa", "") or targets.codegen().isa


def cycles_per_second(target: Target, dtype: str, isa: str) -> float:
    """Cycles of the model (two vector FMAs each) that one core does a second."""
    lanes = targets.tiles(isa, dtype)[0].vl
    return max(target.peak.get(dtype, 0.0) / max(target.cores, 1), 1e8) / (4 * lanes)


def wakes_helpers(target: Target, p: Problem, isa: str, cycles: float, slots: int) -> bool:
    """Whether a call with that much work and that many tasks runs on more than one thread."""
    seconds = cycles / cycles_per_second(target, p.dtype, isa)
    return slots > 1 and seconds >= threads.WORTH_WAKING


# How often a byte moves while weights are packed: one side of a transpose takes whole lines for
# parts of them, and lines are read before they are written.
PACKED = 4.0


def pack_phase(p: Problem, packed: float, moves: float = PACKED) -> Phase:
    """Reading the weights and writing ``packed`` bytes of them, to memory that is new."""
    once = by_level(p.groups * p.kg * p.depth * p.bytes + packed)
    return Phase("pack", bytes={level: moves * moved for level, moved in once.items()})


def phases(
    parts: Mapping[tuple[str, str], float], flops: float, moved: Mapping[str, float]
) -> list[Phase]:
    """What takes turns within a task, as phases by (name, rate key) and share of all its ``flops``.

    The traffic, which goes on meanwhile, is shared out alike.
    """
    return [
        Phase(name, share * flops, rate, {level: share * n for level, n in moved.items()})
        for (name, rate), share in parts.items()
    ]


def work(
    algorithm: str,
    p: Problem,
    tile: Tile,
    weights: int,
    *,
    cycles: float,
    streamed: float,
    workspace: int,
    wakes: bool,
    numerics: Numerics,
    family: str = "",
) -> Work:
    """What a call costs: the model's ``cycles`` of all threads, those without a task included.

    They are stated as the multiply-adds that fit into them, so that one measured rate says how much
    slower than the model the kernels are.  ``streamed`` is the traffic of weights from L3.  Kernels
    whose rate is not that of the algorithm name their ``family``.
    """
    rate = f"numba.{family or algorithm}.{p.dtype}"
    return Work(
        (Phase(algorithm, cycles * 4 * tile.vl, rate, p.moved(float(streamed))),),
        numerics,
        pack_phase(p, weights),
        launches=int(wakes),
        workspace=workspace,
        packed_bytes=weights,
    )
