"""What the direct and the GEMM solver share: the problem on three axes, geometry, executable.

Both compute ``y[k, p] = sum over (c, t) of w[k, (c, t)] * x[(c, t), p]`` with the register tile of
:mod:`convjit_numba.microkernel`, on weights packed alike, and differ in how a task prepares its
pixels.  Both treat a 1-D or 2-D problem as a 3-D one with leading axes of size 1.
"""

from __future__ import annotations

import ctypes
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
    Array,
    Config,
    Feature,
    Phase,
    Refusal,
    Target,
    Work,
    num_threads,
)
from convjit_numba import cache, targets, threads
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
    "classes", "vectors", "task_vectors", "vector_splits", "at_bias", "at_buffer",
    # separable
    "mixed", "mixed_activation", "mixed_slope0", "mixed_slope1",
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


# -------------------------------------------------------------------- the executable


_DATA = object.__basicsize__  # PyArrayObject's first field after the object's header is ``data``
_ITEMS = tuple.__basicsize__  # where PyTupleObject's items begin


def _address_by_field(array: Array) -> int:
    return ctypes.c_size_t.from_address(id(array) + _DATA).value


def _address_by_name(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _choose_address() -> Callable[[Array], int]:
    """The cheap way (0.2 µs instead of 1.5) where it gives what NumPy says."""
    trials = [np.empty(3), np.empty((2, 5), np.float32)[1:, 2:], np.empty((), np.uint8)]
    if all(_address_by_field(a) == _address_by_name(a) for a in trials):
        return _address_by_field
    return _address_by_name


address = _choose_address()


def _items_follow() -> bool:
    """Whether a tuple's items lie where its type says that its fixed part ends."""
    trial = (object(), None, address)
    items = (ctypes.c_size_t * len(trial)).from_address(id(trial) + _ITEMS)
    return list(items) == [id(item) for item in trial]


def _build_entry() -> Callable[..., None]:
    from numba import njit

    from convjit_numba.microkernel import OPTIONS, call_code, load_int

    field, items = int(_DATA), int(_ITEMS)

    @njit(**OPTIONS)
    def data(given, number, none):
        array = load_int(given + items + 8 * number)
        place = 0
        if array != none:
            place = load_int(array + field)
        return place

    def entry(given):
        head = data(given, 0, 0)
        code, geometry, none = load_int(head), load_int(head + 8), load_int(head + 16)
        call_code(
            code,
            (
                geometry, data(given, 1, none), data(given, 2, none), data(given, 3, none),
                data(given, 4, none), data(given, 5, none), 0,
            ),
        )  # fmt: skip

    return entry


@lru_cache(maxsize=2)
def _entry(brief: bool) -> Callable[[tuple[Any, ...]], None] | None:
    """What calls a kernel with the addresses of five arrays, given a tuple of them.

    The tuple's first item is :func:`_head`'s; an array may be None.  Reading an array's ``data`` in
    compiled code takes a nanosecond, where ctypes takes 0.2 microseconds, and it takes ctypes 0.2
    microseconds to hand over one object, 0.9 for seven numbers.  None if objects do not lie in
    memory as supposed.

    Parameters
    ----------
    brief : bool
        Whether the kernel takes so few microseconds that other threads can wait for the
        interpreter's lock meanwhile.
    """
    if address is not _address_by_field or not _items_follow():
        return None
    address_of = cache.function(f"entry.{_ITEMS}.{_DATA}", 1, _build_entry).address
    prototype = ctypes.PYFUNCTYPE if brief else ctypes.CFUNCTYPE
    entry: Callable[[tuple[Any, ...]], None] = prototype(None, ctypes.py_object)(address_of)
    return entry


def _head(kernel: Any, geometry: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What :func:`_entry` calls, with which geometry, and what None looks like."""
    return np.array([code_address(kernel), address(geometry), id(None)], np.int64)


def code_address(function: Any) -> int:
    """Of a compiled kernel, for a kernel that calls it (:func:`microkernel.call_code`)."""
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


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
    """The geometry array; ``tail`` follows the named fields."""
    unknown = set(values) - set(FIELDS)
    if unknown:
        raise KeyError(f"no geometry fields {sorted(unknown)}")
    array = np.zeros(len(FIELDS) + len(tail), np.int64)
    for name, value in values.items():
        array[FIELD[name] // 8] = value
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


class PanelExecutable:
    """A planned problem: kernel, geometry and packer; immutable."""

    shapeless = True

    __slots__ = (
        "_alone", "_enter", "_geometry", "_head", "_keep", "_kernel", "_place", "_seconds",
        "_slots", "pack", "workspace",
    )  # fmt: skip

    def __init__(
        self,
        kernel: Any,
        pack: Callable[[Array], Any],
        geometry: np.ndarray[Any, Any],
        keep: tuple[Any, ...],
        *,
        slots: int,
        slot_bytes: int,
        seconds: float,
    ) -> None:
        self._kernel = kernel
        self.pack = pack  # panels of weights, see convjit_numba.pack
        self._geometry = geometry
        self._place = address(geometry)
        self._keep = keep
        self._slots = slots
        self._seconds = seconds
        self._alone = seconds < threads.WORTH_WAKING or slots == 1
        self._enter = _entry(seconds < threads.WORTH_WAKING) if self._alone else None
        self._head = None if self._enter is None else _head(kernel, geometry)
        self.workspace = slots * slot_bytes

    def run(
        self, lhs: Array, packed: Any, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        """Compute into ``out`` on as many threads as are in force and had been at planning."""
        if self._enter is not None:
            # A call of microseconds: the compiled entry looks the addresses up.
            self._enter((self._head, lhs, packed, bias, out, workspace))
            return
        arguments = (
            self._place,
            address(lhs),
            address(packed),
            0 if bias is None else address(bias),
            address(out),
            0 if workspace is None else address(workspace),
        )
        if self._alone:
            self._kernel(*arguments, 0)
        else:
            count = min(num_threads(), self._slots)
            threads.run(self._kernel, arguments, count, self._seconds)


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


def pack_phase(p: Problem, packed: float) -> Phase:
    """Reading the weights and writing ``packed`` bytes of them, to memory that is new.

    Every byte moves about twice: one side of a transpose takes whole lines for parts of them, and
    lines are read before they are written.
    """
    return Phase("pack", bytes=by_level(2.0 * (p.groups * p.kg * p.depth * p.bytes + packed)))


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
) -> Work:
    """What a call costs: the model's ``cycles`` of all threads, those without a task included.

    They are stated as the multiply-adds that fit into them, so that one measured rate says how much
    slower than the model the kernels are.  ``streamed`` is the traffic of weights from L3.
    """
    rate = f"numba.{algorithm}.{p.dtype}"
    return Work(
        (Phase(algorithm, cycles * 4 * tile.vl, rate, p.moved(float(streamed))),),
        numerics,
        pack_phase(p, weights),
        launches=int(wakes),
        workspace=workspace,
        packed_bytes=weights,
    )
