"""What a backend imports: the protocol between the dispatcher and the kernels.

A *backend* is a toolchain on a device.  It offers *solvers*, one per algorithm (and variant), each
of which can refuse a problem with a sentence, estimate its work, and plan an *executable*.  The
core owns dispatch, lowering, allocation, caching and profiling; a solver owns kernels, blocking and
its packed form of the weights.

A solver is handed arrays exactly as the spec describes them: in the spec's layout, batched, with
channels, of the spec's dtype, C-contiguous and aligned unless ``spec.strided``.  What a solver does
not handle it refuses with the matching :class:`Feature`; for most features the core knows a
*lowering* to a cheaper problem and asks again, so that a solver for contiguous float32 NCHW is
reached from every call that can be lowered to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from convjit.arena import empty as empty
from convjit.config import cache_dir as cache_dir
from convjit.config import num_threads as num_threads
from convjit.precision import Numerics as Numerics
from convjit.spec import ConvSpec

SPI_VERSION = 1
DEVICES = ("cpu", "cuda")

Array = Any  # numpy.ndarray, or the array type that the backend names
Config = tuple[tuple[str, int], ...]  # block sizes by name, e.g. (("mr", 6), ("nr", 16))
DEFAULT_CONFIG: Config = ()


class Feature(StrEnum):
    """What a refusal is about.  The first group can be lowered; the second is final."""

    STRIDED = "strided"  # the first operand is not contiguous
    LAYOUT = "layout"
    DTYPE = "dtype"
    DIRECTION = "direction"
    NDIM = "ndim"
    PAD_MODE = "pad_mode"
    PADDING = "padding"  # the solver wants padding 0
    FLIP = "flip"
    STRIDE = "stride"
    DILATION = "dilation"
    GROUPS = "groups"
    EPILOGUE = "epilogue"  # bias or activation
    CONJUGATE = "conjugate"

    SIZE = "size"
    POLICY = "policy"
    WORKSPACE = "workspace"
    TARGET = "target"
    BROKEN = "broken"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a solver does not take a problem: the feature, and a sentence for people."""

    feature: Feature
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class Phase:
    """One stage of an execution.

    Attributes
    ----------
    name : str
        ``"pack"``, ``"transform"``, ``"gemm"``, ...
    flops : float
        Arithmetic operations really executed (edge waste included, clipped taps excluded).
    rate : str
        Key into :attr:`Target.rates` of the kernel family that executes them.
    bytes : mapping of level to float
        Traffic by level: ``"l1"``, ``"l2"``, ``"l3"``, ``"memory"``, ``"copy"`` (a strided copy
        by the backend), ``"cast"`` (one to another dtype), ``"elementwise"`` (another pass of the
        array library's).
    busy : float
        Share of the time of the target's cores that is work while the phase lasts: above 0, and 1
        where they all end together.  Arithmetic, and caches that cores have their own ways to
        (levels but memory and copies), go at so much of their rates.
    """

    name: str
    flops: float = 0.0
    rate: str = ""
    bytes: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    busy: float = 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """What one call costs, in machine-independent units.

    Attributes
    ----------
    phases : tuple of Phase
        What every call executes, in order; packing of the second operand not included.
    numerics : Numerics
        How the solver rounds, for the error model and the policies.
    pack : Phase or None
        What packing the second operand costs (paid by plain calls, not by planned ones).
    launches : int
        Parallel regions or kernel launches.
    workspace : int
        Bytes that the executable asks the core for.
    packed_bytes : int
        Size of the packed second operand.
    calls, pack_calls : int
        Calls of executables and assignments of fills that one run and one packing make, of
        :attr:`Target.call` seconds each.
    """

    phases: tuple[Phase, ...]
    numerics: Numerics
    pack: Phase | None = None
    launches: int = 1
    workspace: int = 0
    packed_bytes: int = 0
    calls: int = 1
    pack_calls: int = 1

    @property
    def flops(self) -> float:
        return sum(phase.flops for phase in self.phases)


@dataclass(frozen=True, slots=True)
class Target:
    """A machine as the cost model sees it: measured where that was done, else from a table.

    Attributes
    ----------
    fingerprint : str
        Changes when a remembered measurement stops being valid: with the processor, the number of
        threads, the toolchain.
    device : str
        ``"cpu"`` or ``"cuda"``.
    description : str
        For people: model, cores, vector width.
    cores : int
    peak : mapping of dtype to flop/s
        Of all the cores together.
    rates : mapping of rate key to flop/s
        What each kernel family achieves at its best, of all the cores together.
    bandwidth : mapping of level to byte/s
    caches : mapping of level to bytes
        Of one core.
    launch : float
        Seconds that one parallel region or kernel launch costs.
    call : float
        Seconds that one call of an executable costs besides.
    measured : bool
        Whether the figures were measured on this machine.
    features : mapping of str to str
        Whatever the backend's own solvers need: ``{"isa": "avx2"}``.
    """

    fingerprint: str
    device: str
    description: str
    cores: int
    peak: Mapping[str, float]
    rates: Mapping[str, float]
    bandwidth: Mapping[str, float]
    caches: Mapping[str, int]
    launch: float
    call: float = 1e-6
    measured: bool = False
    features: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """A kernel as a GPU's driver is given it, and how it is launched.

    Attributes
    ----------
    name : str
        For people, and the key under which figures are kept: ``"gemm.float32.128"``.
    ptx : str
    threads : int
        Of a block.
    shared_bytes : int
        Dynamic shared memory of a block.
    entry : str
        The kernel's name in the PTX; the first one's if empty.
    solver : str
        The id of the solver that launches it.
    """

    name: str
    ptx: str
    threads: int
    shared_bytes: int = 0
    entry: str = ""
    solver: str = ""


@runtime_checkable
class Executable(Protocol):
    """A planned problem: immutable, callable from several threads at once.

    ``workspace`` is the number of bytes the core hands to :meth:`run` (64-byte aligned,
    uninitialised).

    An executable that reads memory by its own geometry and looks at no shape of an operand or of
    the result says so by an attribute ``shapeless = True``: :meth:`run` then gets the caller's
    arrays as they are, without batch or channels where they have none, which saves the views.
    """

    workspace: int

    def pack(self, rhs: Array) -> Any:
        """The second operand in the solver's own form.

        ``rhs`` has ``spec.rhs_shape``, is C-contiguous, aligned and of ``spec.dtype``.  What is
        returned is opaque to the core and must not alias memory that the caller may change,
        unless it is ``rhs`` itself.  :func:`convjit.spi.empty` allocates it without the page
        faults that large arrays cost every plain call.
        """
        ...

    def run(
        self, lhs: Array, packed: Any, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        """Compute into ``out`` (C-contiguous, uninitialised, ``spec.result_shape``).

        ``bias`` (``spec.result_channels`` numbers of the result's dtype) is given exactly if
        ``spec.bias``; bias and activation are the executable's to apply.
        """
        ...


@runtime_checkable
class Solver(Protocol):
    """One algorithm of one backend."""

    id: str  # "numba.winograd.f4x3": permanent, no shapes in it
    algorithm: str  # the family: "direct", "gemm", "fft", "winograd", "depthwise"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        """None if the problem is taken; guards are flat, cheapest first, each a sentence."""
        ...

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        """Work of a problem that was not refused."""
        ...

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        """Block sizes to choose from; the first is the default.

        The others are what ``convjit.tune`` measures.  They are kept on disk by their names, for
        similar sizes too; one that is no longer offered is passed over.  No more than a dozen, and
        none that comes to the same as another: each costs a measurement, and maybe a compilation.
        They must not change what the error model is told (:attr:`Work.numerics`).

        A solver whose block sizes decide how much workspace it needs may have a further method,
        ``workspace_of(spec, target, config)``: the bytes that ``plan`` would say.  Where the
        default needs more than ``workspace_limit``, the first that fit take its place.
        """
        ...

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        """Choose kernels, blocking, packer and workspace size; allocate no data."""
        ...


class SeparableExecutable(Protocol):
    """A planned separable layer: immutable, callable from several threads at once."""

    workspace: int

    def pack_depth(self, weights: Array) -> Any:
        """The depthwise kernels in the solver's own form, as :meth:`Executable.pack` gives it."""
        ...

    def pack_point(self, weights: Array) -> Any:
        """The pointwise kernels in the solver's own form."""
        ...

    def run(
        self, x: Array, depth: Any, depth_bias: Array | None, point: Any, bias: Array | None,
        out: Array, workspace: Array | None,
    ) -> None:  # fmt: skip
        """Compute into ``out``, from the packed kernels and the two convolutions' biases."""
        ...


class SeparableSolver(Protocol):
    """A depthwise and the pointwise convolution after it, as one.

    Optional: a backend that has one returns it from a method ``separable()``.  The core asks each
    backend that it considers; what is refused, or faster in two calls, is computed in two calls.
    """

    id: str

    def refuse(self, depth: ConvSpec, point: ConvSpec, target: Target) -> Refusal | None:
        """None if the pair is taken; every refusal is final."""
        ...

    def estimate(self, depth: ConvSpec, point: ConvSpec, target: Target) -> Work:
        """Work of a pair that was not refused."""
        ...

    def configs(self, depth: ConvSpec, point: ConvSpec, target: Target) -> Iterable[Config]:
        """Block sizes to choose from, as :meth:`Solver.configs` gives them."""
        ...

    def plan(
        self, depth: ConvSpec, point: ConvSpec, target: Target, config: Config
    ) -> SeparableExecutable:
        """Choose kernels, blocking, packers and workspace size; allocate no data."""
        ...


@runtime_checkable
class Backend(Protocol):
    """A toolchain on a device, found through the entry-point group ``convjit.backends``.

    The entry point names a callable without arguments (a class, usually) that returns a backend;
    calling it must be cheap, heavy imports belong into :meth:`solvers`.

    A backend may have more, which is used where it is there: ``gauges(target)`` says how each
    figure of its target is measured (:mod:`convjit.gauges`), for the core to calibrate it;
    ``peak(dtype)`` gives its flop/s, measured now;
    ``compiled()`` names the kernels that this process compiled; ``uncompiled(make)`` those that
    ``make()``, which plans, would have to compile, the first of them at least, and compiles none
    (tuning keeps to its budget by it); ``release_memory()`` gives up
    whatever the backend keeps for later calls; ``copy(destination, source)`` assigns one of its
    arrays to another that does not overlap it, of any strides, with a cast where their dtypes
    differ (lowering moves data with it); ``device_code(spec, capability)`` yields a
    :class:`DeviceCode` for each kernel that its solvers would launch for a problem on a GPU of a
    compute capability such as ``(8, 0)``, compiled where there need be none (``python -m convjit
    explain --ptx``); ``resident(solver, spec)`` gives a call of one of its solvers on operands that
    lie on the device already, which returns when it is done (``selftest --device cuda`` times it).

    One whose arrays lie on a device, its ``array_namespace()`` being a library like CuPy, has these
    methods besides: ``adopt(value)`` gives another library's array that lies on the device as one
    of its own, over the same memory, and None for anything else; ``device_of(array)`` names the
    device of an array that does not lie on the current one, else gives None.  If it names
    ``"numpy:ndarray"`` among its ``array_types`` too, the core copies NumPy arrays there and back,
    with ``upload(array)``, ``download(array, out)`` and ``free_bytes()``, the memory that could be
    allocated now.
    """

    name: str
    device: str  # "cpu" or "cuda"
    spi_version: int
    array_types: tuple[str, ...]  # "module:qualname" of the arrays taken, e.g. "numpy:ndarray"

    def probe(self) -> str | None:
        """None when healthy, else the reason in one sentence."""
        ...

    def array_namespace(self) -> Any:
        """The module that allocates this backend's arrays (``numpy`` or ``cupy``)."""
        ...

    def target(self, device_id: int = 0) -> Target:
        """The machine with the number of threads in force, out of a table.

        The core lays measured figures over it, by its fingerprint, before solvers see it.
        """
        ...

    def solvers(self) -> Sequence[Solver]:
        """The solvers, in the order preferred where the cost model does not decide."""
        ...
