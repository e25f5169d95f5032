"""Run the kernels of a PTX module on the CPU."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptxcpu.build import library
from ptxcpu.parser import Instruction
from ptxcpu.translate import translate

ALIGNMENT = 256  # of memory that a device allocates


class Fault(RuntimeError):
    """What a kernel did that it may not do, and which thread of which block."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What an instruction did, in checked mode.

    Attributes
    ----------
    instruction : Instruction
    accesses : int
        Accesses of threads to memory.
    requests : int
        Requests of warps to memory.
    ideal, actual : int
        Wavefronts of shared memory, or sectors of 32 bytes of global memory: the fewest that such
        requests could take, and those that these took.
    """

    instruction: Instruction
    accesses: int
    requests: int
    ideal: int
    actual: int


def empty(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Memory aligned as a device's is, filled with a pattern that is no number."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape)) * kind.itemsize
    block = np.full(size + ALIGNMENT, 0xFF, np.uint8)
    start = -block.ctypes.data % ALIGNMENT
    return block[start : start + size].view(kind).reshape(shape)


class _Library:
    """A compiled module in this process: its state, which counts are part of, is there once."""

    def __init__(self, path: Path, sites: int, checked: bool) -> None:
        self.functions = ctypes.CDLL(str(path))
        self.functions.last_error.restype = ctypes.c_char_p
        self.lock = threading.Lock()
        self._sites, self._checked = sites, checked

    def take_counts(self) -> np.ndarray[Any, Any]:
        """(sites, 4): what was counted since this was asked last."""
        raw = np.zeros((self._sites, 4), np.uint64)
        if self._checked:
            with self.lock:
                self.functions.take_counts(raw.ctypes.data_as(ctypes.c_void_p))
        return raw


_libraries: dict[Path, _Library] = {}
_libraries_lock = threading.Lock()


def forget_counts() -> None:
    """Count anew, whatever modules have run in this process."""
    with _libraries_lock:
        known = list(_libraries.values())
    for loaded in known:
        loaded.take_counts()


class Module:
    """The kernels of a PTX module, translated and compiled.

    Parameters
    ----------
    ptx : str
    folder : Path
        Where compiled modules are kept.
    checked : bool
        Whether accesses are checked and counted.
    """

    def __init__(self, ptx: str, folder: Path, *, checked: bool = False) -> None:
        translation = translate(ptx)
        self.entries = translation.entries
        self.sites = translation.sites
        self.checked = checked
        path = library(translation.source, folder, checked=checked)
        with _libraries_lock:
            if path not in _libraries:
                _libraries[path] = _Library(path, len(self.sites), checked)
            self._library = _libraries[path]

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Iterable[Any],
        *,
        dynamic_bytes: int = 0,
        memory: Iterable[np.ndarray[Any, Any]] = (),
    ) -> None:
        """Run a kernel for all blocks of a grid.

        Parameters
        ----------
        name : str
        grid, block : up to three numbers
        arguments : arrays and NumPy scalars
            One for each parameter: of an array its address is passed.
        dynamic_bytes : int
            Dynamic shared memory.
        memory : arrays
            What the kernel may access beside the arrays among its arguments.

        Raises
        ------
        Fault
        """
        entry = self.entries[name]
        values = list(arguments)
        if len(values) != len(entry.parameters):
            raise TypeError(f"{name} has {len(entry.parameters)} parameters, got {len(values)}")
        block_of_bytes = bytearray(max(entry.parameter_bytes, 1))
        for parameter, value in zip(entry.parameters, values, strict=True):
            raw = np.uint64(value.ctypes.data) if isinstance(value, np.ndarray) else value
            data = raw.tobytes()
            if len(data) != parameter.nbytes:
                raise TypeError(f"{parameter.name} has {parameter.nbytes} bytes, got {len(data)}")
            block_of_bytes[parameter.offset : parameter.offset + parameter.nbytes] = data
        arrays = [v for v in (*values, *memory) if isinstance(v, np.ndarray)]
        functions = self._library.functions
        with self._library.lock:
            if self.checked:
                bounds = [(a.ctypes.data, a.ctypes.data + a.nbytes) for a in arrays]
                flat = np.array(bounds, np.uint64).reshape(-1)
                functions.set_ranges(flat.ctypes.data_as(ctypes.c_void_p), len(bounds))
            failed = getattr(functions, entry.symbol)(
                (ctypes.c_uint * 3)(*_three(grid)),
                (ctypes.c_uint * 3)(*_three(block)),
                bytes(block_of_bytes),
                dynamic_bytes,
            )
            if failed:
                raise Fault(functions.last_error().decode())

    def take_counts(self) -> list[Counts]:
        """What each instruction did since this was asked last, of any module of the same PTX."""
        if not self.checked:
            raise RuntimeError("only checked mode counts")
        raw = self._library.take_counts()
        return [Counts(site, *map(int, row)) for site, row in zip(self.sites, raw, strict=True)]


def _three(sizes: Sequence[int]) -> tuple[int, ...]:
    return (*(int(s) for s in sizes), 1, 1, 1)[:3]
