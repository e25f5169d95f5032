"""What is used of CuPy exists in the CuPy that is installed, with the keywords that are used.

The sources that may run on CuPy are parsed: the backends', and the core's.  In them a name
``cupy``, ``xp`` or ``self._xp`` is the module, and ``self._fft`` its Fourier transforms; what
hangs on it is looked up in the real package, which is imported without a driver.  Methods of
arrays are looked up by what the stand-in has, which is all that may be called.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import standin_cupy

import convjit
import convjit_cupy
import convjit_numba_cuda

pytestmark = pytest.mark.skipif(
    find_spec("cupy") is None, reason="CuPy is not installed (the extra gpu-test)"
)

CORE = Path(convjit.__file__).parent
SOURCES = (
    *sorted(Path(convjit_cupy.__file__).parent.glob("*.py")),
    *sorted(Path(convjit_numba_cuda.__file__).parent.glob("*.py")),
    *sorted(CORE.rglob("*.py")),
)

# How the sources call the module, and what each is.
ROOTS = {
    "cupy": "cupy", "xp": "cupy", "self._xp": "cupy", "self._cupy": "cupy", "self.cupy": "cupy",
    "self.device.cupy": "cupy", "self._namespace": "cupy", "self.namespace": "cupy",
    "self._fft": "cupy.fft", "self.array_namespace()": "cupy",
    "namespace(out)": "cupy", "namespace(array)": "cupy",
}  # fmt: skip

# What calls return, on which attributes are looked up in their turn.
RESULTS = {
    "cupy.cuda.Device()": "cupy.cuda.Device",
    "cupy.cuda.get_current_stream().ptr": "cupy.cuda.Stream.null.ptr",  # made with each stream
    "cupy.cuda.get_current_stream()": "cupy.cuda.Stream",
    "cupy.get_default_memory_pool()": "cupy.cuda.MemoryPool",
    "cupy.isfinite(array)": "cupy.ndarray",
    "cupy.asarray(rhs)": "cupy.ndarray",
    "cupy.ascontiguousarray(panelled)": "cupy.ndarray",
}

# cupy.ufunc takes these and no other keyword (cupy/_core/_kernel.pyx, ufunc.__call__), and
# its generalised functions what their signature says.
UFUNC_KEYWORDS = {"out", "dtype", "casting"}

# Of classes that are compiled, which inspect cannot look into: their documented parameters.
COMPILED = {
    "cupy.ndarray": ("shape", "dtype", "memptr", "strides", "order"),
    "cupy.RawModule": (
        "code", "path", "options", "backend", "translate_cucomplex", "enable_cooperative_groups",
        "name_expressions", "jitify",
    ),
    "cupy.cuda.UnownedMemory": ("ptr", "size", "owner", "device_id"),
    "cupy.cuda.MemoryPointer": ("mem", "offset"),
    "cupy.cuda.Device": ("device",),
    "cupy.cuda.ExternalStream": ("ptr", "device_id"),
}  # fmt: skip


class Use(NamedTuple):
    """A name of CuPy's at a line, and how it is called there (None where it is not)."""

    where: str
    name: str
    positional: int | None
    keywords: tuple[str, ...]
    is_partial: bool  # whether there are arguments that the source does not count (*these)


def uses(path: Path) -> Iterator[Use]:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    inner = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    calls = {id(n.func): n for n in ast.walk(tree) if isinstance(n, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        text = ast.unparse(node)
        for root, name in ROOTS.items():
            if text.startswith(f"{root}."):
                call = calls.get(id(node))
                given = () if call is None else tuple(k.arg for k in call.keywords if k.arg)
                count = None if call is None else len(call.args)
                where = f"{path.name}:{node.lineno}"
                starred = call is not None and any(isinstance(a, ast.Starred) for a in call.args)
                count = count - 1 if count and starred else count
                yield Use(where, name + text.removeprefix(root), count, given, starred)


USES = [use for path in SOURCES for use in uses(path)]


def found(name: str) -> Any:
    """The object of a dotted name, on the classes of what calls return."""
    import importlib

    value: Any = importlib.import_module("cupy")
    for result, kind in RESULTS.items():
        name = name.replace(result, kind)
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


def test_the_walk_sees_what_is_used() -> None:
    names = {use.name for use in USES}
    assert {"cupy.matmul", "cupy.fft.rfftn", "cupy.RawModule", "cupy.cuda.Device"} <= names
    assert {"cupy.empty", "cupy.add", "cupy.isfinite", "cupy.may_share_memory"} <= names
    assert {"planes.py", "gauges.py", "suite.py"} <= {use.where.partition(":")[0] for use in USES}


@pytest.mark.parametrize("use", USES, ids=lambda use: f"{use.where}-{use.name}")
def test_a_name_exists_and_takes_its_arguments(use: Use) -> None:
    import cupy

    function = found(use.name)
    if use.positional is None:
        return
    if isinstance(function, cupy.ufunc):
        assert set(use.keywords) <= UFUNC_KEYWORDS
        assert use.positional <= function.nargs
    elif use.name in COMPILED:
        assert set(use.keywords) <= set(COMPILED[use.name])
    else:
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # compiled, and called without keywords
            assert not use.keywords, f"nothing is known of the keywords of {use.name}"
            return
        bind = signature.bind_partial if use.is_partial else signature.bind
        method = "()." in use.name  # whose signature, on its class, begins with self
        bind(*range(use.positional + method), **dict.fromkeys(use.keywords))


@pytest.mark.parametrize("name", standin_cupy.PROPERTIES)
def test_a_property_of_a_device_has_cupys_name(name: str) -> None:
    """The dictionary needs a driver; its keys are words of the module that makes it."""
    import cupy

    module = Path(cupy.cuda.runtime.__file__).read_bytes()
    assert name.encode() in module
    assert b"multiProcessorsCount" not in module


# Of the stand-in's own, which tests set or read.
OWN = {"checked", "launches", "used", "loaded", "waited"}


@pytest.mark.parametrize(
    ("ours", "theirs", "name"),
    [
        (ours, theirs, name)
        for ours, theirs in (
            ("RawModule", "cupy.RawModule"), ("RawKernel", "cupy.RawKernel"),
            ("Stream", "cupy.cuda.ExternalStream"),
        )
        for name in vars(getattr(standin_cupy, ours))
        if name not in OWN and (not name.startswith("_") or name == "__call__")
    ],
)  # fmt: skip
def test_what_a_kernel_and_a_stream_of_the_stand_in_have_is_cupys(
    ours: str, theirs: str, name: str
) -> None:
    assert hasattr(found(theirs), name)


def test_what_is_set_of_a_kernel_is_cupys() -> None:
    import cupy

    made = standin_cupy.RawKernel(standin_cupy.RawModule(code=""), "none")
    for name in vars(made):
        assert name.startswith("_") or hasattr(cupy.RawKernel, name)


def test_the_stand_ins_device_has_what_cupys_has() -> None:
    import cupy

    for name in vars(standin_cupy.Device):
        assert name.startswith("__") or name == "free" or hasattr(cupy.cuda.Device, name)


@pytest.mark.parametrize(
    "name",
    sorted(
        name for name in vars(standin_cupy.ndarray)
        if not name.startswith("_") or name in ("__cuda_array_interface__", "__iadd__", "__bool__")
    ),
)  # fmt: skip
def test_an_arrays_method_of_the_stand_in_is_cupys(name: str) -> None:
    import cupy

    assert hasattr(cupy.ndarray, name)


@pytest.mark.parametrize(
    "name",
    sorted(
        name for name, value in vars(standin_cupy).items()
        if callable(value) and not name.startswith("_") and hasattr(value, "__module__")
        and value.__module__ == "standin_cupy"
        and name not in ("Flags", "Stream", "Device", "UnownedMemory", "MemoryPointer", "ptx_of")
    ),
)  # fmt: skip
def test_a_function_of_the_stand_in_is_cupys(name: str) -> None:
    """With its parameters by their names, where both can be looked into."""
    import cupy

    ours, theirs = getattr(standin_cupy, name), getattr(cupy, name)
    if isinstance(theirs, (cupy.ufunc, type)):
        return
    try:
        parameters = inspect.signature(theirs).parameters
    except ValueError:  # compiled
        return
    if any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        return
    own = inspect.signature(ours).parameters
    assert [n for n in own if n in parameters] == list(own)
