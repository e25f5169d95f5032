"""What the assembler makes of a GPU kernel: registers, spills, occupancy, and its hottest loop.

PTX is assembled by ptxas and read back by nvdisasm, which need neither a GPU nor its driver.  The
figures are bounds, not speed: a kernel whose hottest loop has one multiply-add among two
instructions cannot pass half of the peak, and may stay far below.

NVIDIA, "CUDA Binary Utilities" (instructions by architecture).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from convjit.errors import BackendError
from convjit.occupancy import Capability, occupancy
from convjit.spi import DeviceCode
from convjit.tables import table

TOOLS = {"ptxas": "nvidia-cuda-nvcc", "nvdisasm": "nvidia-cuda-nvdisasm"}
INSTRUCTION_BYTES = 16  # since compute capability 7.0

# One multiply-add of a lane (FFMA2 is two), and products of small matrices by a warp.
MULTIPLY_ADDS = frozenset({"FFMA", "FFMA2", "DFMA", "HFMA2"})
MATRIX_PRODUCTS = frozenset(
    {"HMMA", "DMMA", "IMMA", "BMMA", "QMMA", "OMMA", "HGMMA", "IGMMA", "QGMMA", "UTCHMMA"}
)
SHARED_LOADS = frozenset({"LDS", "LDSM"})
GLOBAL_LOADS = frozenset({"LDG", "LD", "LDGSTS"})
LOCAL = frozenset({"LDL", "STL"})


# -------------------------------------------------------------------- the tools


def tool(name: str) -> Path | None:
    """Where a tool is: in NVIDIA's wheels, else on the path."""
    found = find_spec("nvidia")
    for place in (found.submodule_search_locations or ()) if found is not None else ():
        for path in sorted(Path(place).glob(f"*/bin/{name}")):
            return path
    on_path = shutil.which(name)
    return Path(on_path) if on_path else None


def missing() -> str | None:
    """Why kernels cannot be assembled and read here, in a sentence; None if they can."""
    for name, wheel in TOOLS.items():
        if tool(name) is None:
            return f"{name} is not installed ({wheel}): pip install 'convjit[gpu-test]'"
    return None


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = tool(name)
    if path is None:
        raise BackendError(f"{missing()}.")
    answer = subprocess.run([str(path), *arguments], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise BackendError(f"{name} failed: {(answer.stderr or answer.stdout).strip()[:500]}")
    return answer


# -------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Instruction:
    """One of machine code.

    Attributes
    ----------
    opcode : str
        With its modifiers: ``"LDG.E.128.CONSTANT"``.
    operands : str
    """

    opcode: str
    operands: str = ""

    @property
    def head(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def multiplies(self) -> bool:
        """Whether it is a multiply-add.  HFMA2 of the zero register is how a constant is moved."""
        moves = self.head == "HFMA2" and "RZ,RZ" in self.operands.replace("-", "")
        return self.head in MULTIPLY_ADDS and not moves

    @property
    def width(self) -> int:
        """Bits that a lane loads."""
        if self.head == "LDSM":  # one to four matrices of 8 x 8 halves
            return 32 * int((re.findall(r"\.([24])\b", self.opcode) or ["1"])[-1])
        found = re.search(r"\.[US]?(8|16|64|128|256)\b", self.opcode)
        return int(found[1]) if found else 32

    @property
    def target(self) -> int | None:
        """Where a branch goes, as an index into the kernel; None for what is none."""
        found = re.search(r"\b0x([0-9a-f]+)$", self.operands) if self.head == "BRA" else None
        return int(found[1], 16) // INSTRUCTION_BYTES if found else None


def loops(code: Sequence[Instruction]) -> list[list[Instruction]]:
    """The loops of a kernel, each without the loops inside it.

    A loop is what lies between a branch backwards and its target; branches to the same target are
    one loop.  A branch to itself is what fills up a kernel's end.
    """
    ends: dict[int, int] = {}
    for place, instruction in enumerate(code):
        target = instruction.target
        if target is not None and target < place:
            ends[target] = place
    spans = sorted(ends.items())
    own = []
    for first, last in spans:
        inner = [(a, b) for a, b in spans if first <= a and b <= last and (a, b) != (first, last)]
        places = [n for n in range(first, last + 1) if not any(a <= n <= b for a, b in inner)]
        own.append([code[n] for n in places])
    return own


def hottest(code: Sequence[Instruction]) -> list[Instruction]:
    """The loop with most products, or most multiply-adds, or the longest; all where there is none.

    What unrolls a loop leaves a copy of it for the remainder, which has fewer.
    """

    def rank(loop: Sequence[Instruction]) -> tuple[int, int, int]:
        products = sum(one.head in MATRIX_PRODUCTS for one in loop)
        return products, sum(one.multiplies for one in loop), len(loop)

    return max(loops(code), key=rank, default=list(code))


# -------------------------------------------------------------------- figures


@dataclass(frozen=True, slots=True)
class Figures:
    """What is known of a kernel without running it.

    Attributes
    ----------
    kernel : str
    capability : (int, int)
    registers : int
        Of a thread.
    spilled_bytes, local : int
        Bytes that registers were spilled to, and instructions that reach local memory at all.
    shared_bytes : int
        Of a block, static and dynamic.
    blocks, occupancy : int, float
        Blocks that one multiprocessor holds, and the share of its threads that they are.
    instructions, loop : int
        Of the kernel and of its hottest loop (0: it has none, and what follows is of all of it).
    products : bool
        Whether the loop multiplies on tensor cores: ``share`` is of those.
    share : float
        Of multiply-adds, or of matrix products, among the loop's instructions.
    shared_loads, global_loads : mapping of int to int
        Loads by their bits a lane: of shared memory in the loop, of global memory everywhere.
    """

    kernel: str
    capability: Capability
    registers: int
    spilled_bytes: int
    local: int
    shared_bytes: int
    blocks: int
    occupancy: float
    instructions: int
    loop: int
    products: bool
    share: float
    shared_loads: Mapping[int, int]
    global_loads: Mapping[int, int]

    @property
    def architecture(self) -> str:
        """``"sm_80"``."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the kernel and its architecture, which are the keys there."""
        return {
            "registers": self.registers, "spilled_bytes": self.spilled_bytes, "local": self.local,
            "shared_bytes": self.shared_bytes, "blocks": self.blocks,
            "occupancy": round(self.occupancy, 3), "instructions": self.instructions,
            "loop": self.loop, "products": self.products, "share": round(self.share, 3),
            "shared_loads": {str(bits): n for bits, n in sorted(self.shared_loads.items())},
            "global_loads": {str(bits): n for bits, n in sorted(self.global_loads.items())},
        }  # fmt: skip


def entries(ptx: str) -> list[str]:
    """The names of the kernels in PTX."""
    return re.findall(r"^\s*(?:\.visible\s+)?\.entry\s+([\w$]+)", ptx, re.MULTILINE)


def _widths(code: Iterable[Instruction], heads: frozenset[str]) -> dict[int, int]:
    return dict(Counter(one.width for one in code if one.head in heads))


def measure(code: DeviceCode, capability: Capability) -> Figures:
    """Assemble a kernel for a compute capability and read what came out.

    Parameters
    ----------
    code : DeviceCode
    capability : (int, int)
        At least that of the PTX.

    Raises
    ------
    BackendError
        If a tool is not installed or refuses the PTX, or has no such kernel.
    """
    wanted = f"sm_{capability[0]}{capability[1]}"
    given = re.search(r"^\.target\s+(\w+)", code.ptx, re.MULTILINE)
    # PTX for "sm_90a" runs on that one generation, and is assembled for it alone.
    architecture = given[1] if given and given[1].startswith(wanted) else wanted
    with tempfile.TemporaryDirectory(prefix="convjit-") as folder:
        ptx, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        ptx.write_text(code.ptx, encoding="utf-8")
        told = _run("ptxas", "-v", "-arch", architecture, str(ptx), "-o", str(cubin)).stderr
        listing = json.loads(_run("nvdisasm", "-json", str(cubin)).stdout)
    functions = {one["function-name"]: one["sass-instructions"] for one in listing[1]}
    name = code.entry or next(iter(functions), "")
    resources = _resources(told).get(name)
    if name not in functions or resources is None:
        raise BackendError(f"{code.name}: the PTX has no kernel {name!r}.")
    instructions = [Instruction(one["opcode"], one.get("operands", "")) for one in functions[name]]
    loop = hottest(instructions)
    products = any(one.head in MATRIX_PRODUCTS for one in loop)
    counted = sum(one.head in MATRIX_PRODUCTS if products else one.multiplies for one in loop)
    shared = resources["smem"] + code.shared_bytes
    blocks, share_of_threads = occupancy(capability, code.threads, resources["registers"], shared)
    return Figures(
        kernel=code.name,
        capability=capability,
        registers=resources["registers"],
        spilled_bytes=resources["spilled"],
        local=sum(one.head in LOCAL for one in instructions),
        shared_bytes=shared,
        blocks=blocks,
        occupancy=share_of_threads,
        instructions=len(instructions),
        loop=len(loop) if len(loop) < len(instructions) else 0,
        products=products,
        share=counted / max(len(loop), 1),
        shared_loads=_widths(loop, SHARED_LOADS),
        global_loads=_widths(instructions, GLOBAL_LOADS),
    )


def _resources(told: str) -> dict[str, dict[str, int]]:
    """What ``ptxas -v`` says of each kernel."""
    found = {}
    for part in re.split(r"Compiling entry function ", told)[1:]:
        name = re.match(r"'(\S+)'", part)
        registers = re.search(r"Used (\d+) registers", part)
        if name is None or registers is None:
            continue
        shared = re.search(r"(\d+) bytes smem", part)
        spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", part)
        found[name[1]] = {
            "registers": int(registers[1]),
            "smem": int(shared[1]) if shared else 0,
            "spilled": sum(map(int, spilled)),
        }
    return found


def text(figures: Iterable[Figures]) -> str:
    """The figures as a table."""

    def widths(loads: Mapping[int, int]) -> str:
        return " ".join(f"{count}x{bits}" for bits, count in sorted(loads.items())) or "-"

    columns = [
        "kernel", "for", ">registers", ">spilled", ">shared", ">blocks", ">occupancy", ">code",
        ">loop", ">multiplies", "shared loads", "global loads",
    ]  # fmt: skip
    rows = [
        (
            f.kernel, f.architecture, f.registers, f"{f.spilled_bytes} B" if f.spilled_bytes else 0,
            f"{f.shared_bytes} B", f.blocks, f"{f.occupancy:.0%}", f.instructions, f.loop or "-",
            f"{f.share:.0%}{' mma' if f.products else ''}", widths(f.shared_loads),
            widths(f.global_loads),
        )
        for f in figures
    ]  # fmt: skip
    caption = (
        "\nregisters of a thread, shared memory of a block, blocks of a multiprocessor;\n"
        "multiplies: share of multiply-adds (mma: of matrix products) among the instructions of\n"
        "the hottest loop; loads by bits a lane, of shared memory in that loop, of global memory\n"
        "everywhere.  Bounds, not speed."
    )
    return table(columns, rows, caption=caption)
