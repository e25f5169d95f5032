"""What every group of instructions needs: modifiers taken one by one, operands as C++.

A translation function gets a :class:`Form`, takes from it every modifier that it understands, and
returns C++ statements; a modifier that nobody took raises, so that none is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from ptxcpu.parser import SIZES, Instruction, Unsupported

TABLE: dict[str, Callable[[Form], str]] = {}

UNSIGNED = {1: "u8", 2: "u16", 4: "u32", 8: "u64"}
FLOATS = ("f16", "bf16", "f32", "f64")

SPECIAL = {
    **{f"%tid.{axis}": f"self().tid[{i}]" for i, axis in enumerate("xyz")},
    **{f"%ctaid.{axis}": f"BLOCK.ctaid[{i}]" for i, axis in enumerate("xyz")},
    **{f"%ntid.{axis}": f"BLOCK.ntid[{i}]" for i, axis in enumerate("xyz")},
    **{f"%nctaid.{axis}": f"BLOCK.nctaid[{i}]" for i, axis in enumerate("xyz")},
    "%laneid": "(self().index & 31)",
    "%warpid": "(self().index >> 5)",
    "WARP_SZ": "32u",
    "%lanemask_eq": "(1u << (self().index & 31))",
    "%lanemask_lt": "((1u << (self().index & 31)) - 1)",
    "%lanemask_le": "((2u << (self().index & 31)) - 1)",
    "%lanemask_gt": "~((2u << (self().index & 31)) - 1)",
    "%lanemask_ge": "~((1u << (self().index & 31)) - 1)",
    "%dynamic_smem_size": "BLOCK.dynamic_bytes",
    "%total_smem_size": "BLOCK.shared_bytes",
}
SPECIAL_USED = re.compile(r"%(?:tid|ctaid|ntid|nctaid)\.[xyz]")

_FLOAT = re.compile(r"0[fF]([0-9a-fA-F]{8})$|0[dD]([0-9a-fA-F]{16})$")
_INTEGER = re.compile(r"-?(?:0x[0-9a-fA-F]+|\d+)U?$")
_OFFSET = re.compile(r"(.+?)\s*\+\s*(-?\w+)$")


def translates(*opcodes: str) -> Callable[[Callable[[Form], str]], Callable[[Form], str]]:
    """Enter a function into the table of opcodes."""

    def enter(function: Callable[[Form], str]) -> Callable[[Form], str]:
        for opcode in opcodes:
            TABLE[opcode] = function
        return function

    return enter


@cache
def identifier(name: str) -> str:
    """A PTX name as part of a C++ one."""
    return re.sub(r"\W", lambda found: f"_{ord(found[0]):02x}", name)


def cpp_type(kind: str) -> str:
    """The C++ type of a PTX type's value."""
    if kind == "pred":
        return "bool"
    if kind.startswith("b") and kind[1:].isdigit():
        return f"u{kind[1:]}"
    if kind in FLOATS or kind[0] in "us":
        return kind
    raise Unsupported(f"type .{kind}")


class Names:
    """What operands may name: the registers of a kernel, and where its variables stand.

    Attributes
    ----------
    registers : dict of str to str
        Their types.
    places : dict of str to str
        C++ for the address of each variable.
    parameters : dict of str to int
        Offsets of the kernel's parameters.
    """

    def __init__(
        self, registers: dict[str, str], places: dict[str, str], parameters: dict[str, int]
    ) -> None:
        self.registers = registers
        self.places = places
        self.parameters = parameters

    def bits(self, operand: str) -> str:
        """C++ for the bits of an operand."""
        if operand in SPECIAL:
            return identifier(operand) if SPECIAL_USED.match(operand) else SPECIAL[operand]
        if operand in self.registers:
            return register(operand)
        if operand.startswith("!") and operand[1:] in self.registers:
            return f"!{register(operand[1:])}"
        if found := _FLOAT.match(operand):
            return f"0x{found[1]}u" if found[1] else f"0x{found[2]}ull"
        if _INTEGER.match(operand):
            number = int(operand.rstrip("U"), 0)
            return f"0x{number % 2**64:x}ull"
        if operand in self.places:
            return self.places[operand]
        if found := _OFFSET.match(operand):
            return f"({self.bits(found[1])} + {int(found[2], 0)})"
        raise Unsupported(f"operand {operand!r}")


@cache
def register(name: str) -> str:
    """The C++ variable of a register."""
    return f"R_{identifier(name.lstrip('%'))}"


class Form:
    """An instruction while it is translated.

    Attributes
    ----------
    site : int
        Number of the instruction in the module, for counts and messages.
    """

    def __init__(self, instruction: Instruction, names: Names, site: int) -> None:
        self.instruction = instruction
        self.opcode = instruction.opcode
        self.operands = instruction.operands
        self.names = names
        self.site = site
        self._left = list(instruction.modifiers)

    # ------------------------------------------------------------------ modifiers

    def refuse(self, why: str = "") -> Unsupported:
        """The error for this instruction."""
        return Unsupported(f"{self.instruction}{': ' if why else ''}{why}")

    def flag(self, *names: str) -> bool:
        """Take the modifiers of these names; whether there was one."""
        found = [name for name in names if name in self._left]
        for name in found:
            self._left.remove(name)
        return bool(found)

    def one_of(self, *names: str, default: str | None = None) -> str:
        """Take the one modifier among ``names`` that is there."""
        for name in self._left:
            if name in names:
                self._left.remove(name)
                return name
        if default is None:
            raise self.refuse(f"has none of {', '.join(names)}")
        return default

    def type(self, *allowed: str) -> str:
        """Take the last modifier, a type."""
        if not self._left or self._left[-1] not in SIZES:
            raise self.refuse("has no type")
        kind = self._left.pop()
        if allowed and kind not in allowed:
            raise self.refuse(f"type .{kind}")
        return kind

    def finish(self) -> None:
        """Raise for modifiers that nobody took."""
        if self._left:
            raise self.refuse(f"modifier .{self._left[0]}")

    # ------------------------------------------------------------------ operands

    def count(self, *numbers: int) -> int:
        """Number of operands, which must be one of those that are understood."""
        if len(self.operands) not in numbers:
            raise self.refuse(f"{len(self.operands)} operands")
        return len(self.operands)

    def bits(self, index: int) -> str:
        return self.names.bits(self.operands[index])

    def read(self, index: int, kind: str) -> str:
        """The value of an operand."""
        return self.value(self.operands[index], kind)

    def value(self, operand: str, kind: str) -> str:
        """The value of an operand; integers by casts, which g++ compiles sooner than calls."""
        name = cpp_type(kind)
        return f"{f'as<{name}>' if kind in FLOATS else f'({name})'}({self.names.bits(operand)})"

    def write(self, kind: str, expression: str, operand: str | None = None) -> str:
        """Assign a value of a type to the destination; ``_`` drops it."""
        into = self.operands[0] if operand is None else operand
        if into == "_":
            return f"(void)({expression});"
        if into not in self.names.registers:
            raise self.refuse(f"destination {into!r}")
        name = cpp_type(kind)
        to_bits = f"bits<{name}>" if kind in FLOATS else f"({name})"
        return f"{register(into)} = {to_bits}({expression});"

    def vector(self, index: int) -> list[str]:
        """``{%r1, %r2}`` as its elements; a single operand as one."""
        text = self.operands[index].strip("{}")
        return [element.strip() for element in text.split(",")]

    def address(self, index: int) -> tuple[str, int]:
        """``[%rd1+8]`` as base and offset."""
        text = self.operands[index].strip()
        if not (text.startswith("[") and text.endswith("]")):
            raise self.refuse(f"address {text!r}")
        text = text[1:-1].strip()
        if found := _OFFSET.match(text):
            return found[1], int(found[2], 0)
        return text, 0

    def pointer(self, index: int, space: str, nbytes: int, *, writes: bool) -> str:
        """C++ for the host's pointer to an operand in memory, checked in checked mode."""
        base, offset = self.address(index)
        address = f"{self.names.bits(base)} + ({offset}ll)"
        access = f"{nbytes}, {str(writes).lower()}, {self.site}"
        if space == "shared":
            return f"shared_at((u32)({address}), {access})"
        if space == "local":
            return f"local_at({address}, {nbytes}, LOCALS, LOCALS_COUNT)"
        if space == "generic":
            return f"generic_at({address}, {access}, LOCALS, LOCALS_COUNT)"
        if space in ("global", "const"):
            return f"global_at({address}, {access})"
        raise self.refuse(f"state space {space}")
