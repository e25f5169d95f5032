"""PTX text as a tree: a module's variables and kernels, a kernel's registers and instructions.

The grammar is that of the PTX ISA, as far as nvcc, NVRTC and NVVM write it.  What is not understood
raises :class:`Unsupported`; nothing is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

# Bytes of a value of each type.
SIZES = {
    "pred": 1,
    **{f"{kind}8": 1 for kind in "bus"},
    **{f"{kind}16": 2 for kind in "busf"},
    **{f"{kind}32": 4 for kind in "busf"},
    **{f"{kind}64": 8 for kind in "busf"},
    "bf16": 2,
    "f16x2": 4,
    "bf16x2": 4,
    "tf32": 4,
}

_NAME = r"[A-Za-z_$%][\w$.]*"
_VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak|common|managed)\s+)*\.(?P<space>shared|global|const|local)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?(?:\.attribute\([^)]*\)\s*)?\.(?P<type>\w+)\s+"
    rf"(?P<name>{_NAME})(?P<dims>(?:\[\d*\])*)\s*(?:=\s*(?P<init>.*))?$",
    re.S,
)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)"
    r"(?:\s+\.ptr(?:\s+\.(?:global|const|shared|local))?(?:\s+\.align\s+\d+)?)?"
    rf"\s+(?P<name>{_NAME})(?:\[(?P<count>\d+)\])?$"
)
_BRACE, _NO_SPACE = re.compile(r"[{}]"), re.compile(r"\S")
_REGISTERS = re.compile(rf"({_NAME})(?:<(\d+)>)?$")
_GUARDED = re.compile(rf"@(!?)({_NAME})\s+(.*)$", re.S)
_OPCODE = re.compile(r"([a-z][\w.:]*)\s*(.*)$", re.S)
_OPERAND = re.compile(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+")
_LABEL = re.compile(r"([A-Za-z_$][\w$]*)\s*:(?!:)")


class Unsupported(Exception):
    """PTX that this tool does not understand."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: ``@!%p1 ld.global.v2.f32 {%f1, %f2}, [%rd1+8];``

    Attributes
    ----------
    opcode : str
        The first word, ``"ld"``.
    modifiers : tuple of str
        The others in their order, ``("global", "v2", "f32")``.
    operands : tuple of str
    guard : str
        The predicate's register, empty for none.
    negated : bool
        Whether the guard is inverted.
    """

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str = ""
    negated: bool = False

    @property
    def name(self) -> str:
        """``"ld.global.v2.f32"``."""
        return ".".join((self.opcode, *self.modifiers))

    def __str__(self) -> str:
        guard = f"@{'!' if self.negated else ''}{self.guard} " if self.guard else ""
        return f"{guard}{self.name} {', '.join(self.operands)}"


@dataclass(frozen=True, slots=True)
class Label:
    """A place to branch to."""

    name: str


@dataclass(frozen=True, slots=True)
class Variable:
    """An array in a state space; ``count`` is 0 where the launch decides (dynamic shared memory).

    ``init`` has the elements that are given, the rest being zero.
    """

    space: str
    name: str
    type: str
    count: int
    align: int
    init: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return self.count * SIZES[self.type]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A kernel's parameter: where its bytes stand in the block of parameters."""

    name: str
    offset: int
    nbytes: int


@dataclass(slots=True)
class Kernel:
    """A ``.entry``.

    Attributes
    ----------
    registers : dict of str to str
        Type of each register.  One that is declared in an inner scope has a name of its own.
    """

    name: str
    parameters: tuple[Parameter, ...]
    registers: dict[str, str] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
    body: list[Instruction | Label] = field(default_factory=list)

    @property
    def parameter_bytes(self) -> int:
        return max((p.offset + p.nbytes for p in self.parameters), default=0)


@dataclass(slots=True)
class Module:
    """The variables of a module, and its kernels by name."""

    variables: list[Variable] = field(default_factory=list)
    kernels: dict[str, Kernel] = field(default_factory=dict)


def align_up(offset: int, alignment: int) -> int:
    """The first multiple of ``alignment`` from ``offset`` on."""
    return -(-offset // alignment) * alignment


def parse(text: str) -> Module:
    """The module that PTX text describes.

    Raises
    ------
    Unsupported
        For a directive that is not understood, and for functions: a kernel is one whole here.
    """
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    module = Module()
    at = 0
    header = re.compile(r"\s*\.(version|target|address_size|file)\b[^\n]*")
    section = re.compile(r"\s*\.section\s+[^{]*\{[^}]*\}", re.S)
    function = re.compile(r"\s*(?:\.(?:visible|weak|extern)\s+)*\.(entry|func)\b")
    while text[at:].strip():
        if found := header.match(text, at) or section.match(text, at):
            at = found.end()
        elif found := function.match(text, at):
            at = _function(module, text, found)
        else:
            end = text.find(";", at)
            if end < 0:
                raise Unsupported(f"no statement ends after {text[at : at + 60].strip()!r}")
            if statement := text[at:end].strip():
                module.variables.append(_variable(statement))
            at = end + 1
    return module


def _function(module: Module, text: str, found: re.Match[str]) -> int:
    """Add a kernel; the position after it.  A prototype has no body and is passed over."""
    brace, semicolon = text.find("{", found.end()), text.find(";", found.end())
    if semicolon >= 0 and (brace < 0 or semicolon < brace):
        return semicolon + 1
    head = text[found.end() : brace].strip()
    if found[1] == "func":
        raise Unsupported(f".func {head[:60]}: functions are not called here, inline them")
    end = _closing(text, brace)
    name, _, rest = head.partition("(")
    kernel = Kernel(name.strip(), _parameters(rest.rpartition(")")[0]))
    _body(kernel, text[brace + 1 : end])
    module.kernels[kernel.name] = kernel
    return end + 1


def _closing(text: str, at: int) -> int:
    """Position of the brace that closes the one at ``at``."""
    depth = 0
    for found in _BRACE.finditer(text, at):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return found.start()
    raise Unsupported("a brace is not closed")


def _parameters(text: str) -> tuple[Parameter, ...]:
    parameters, offset = [], 0
    for declaration in filter(None, map(str.strip, text.split(","))):
        found = _PARAMETER.match(declaration)
        if found is None or found["type"] not in SIZES:
            raise Unsupported(f"parameter {declaration!r}")
        size = SIZES[found["type"]]
        offset = align_up(offset, int(found["align"] or size))
        parameters.append(Parameter(found["name"], offset, size * int(found["count"] or 1)))
        offset += parameters[-1].nbytes
    return tuple(parameters)


def _variable(statement: str) -> Variable:
    found = _VARIABLE.match(statement)
    if found is None or found["type"] not in SIZES:
        raise Unsupported(f"statement {statement[:80]!r}")
    sizes = re.findall(r"\[(\d*)\]", found["dims"])
    count = 0 if "" in sizes else prod(map(int, sizes))
    init = tuple(v.strip() for v in (found["init"] or "").strip().strip("{}").split(",") if v)
    align = int(found["align"] or SIZES[found["type"]])
    return Variable(found["space"], found["name"], found["type"], count, align, init)


def _body(kernel: Kernel, text: str) -> None:
    """Statements one after the other; braces at the start of one are scopes of registers."""
    scopes: list[dict[str, str]] = [{}]
    opened = 0
    for statement in _statements(text):
        if statement == "{":
            opened += 1
            scopes.append({})
        elif statement == "}":
            scopes.pop()
        elif statement.startswith(".reg"):
            _declare(kernel, statement, scopes[-1], f"_s{opened}" if len(scopes) > 1 else "")
        elif statement.startswith(".pragma"):
            continue  # hints to the optimiser
        elif statement.startswith("."):
            kernel.variables.append(_variable(statement))
        elif found := _LABEL.fullmatch(statement):
            kernel.body.append(Label(found[1]))
        else:
            kernel.body.append(_instruction(statement, scopes))


def _statements(text: str) -> Iterator[str]:
    """Labels with their colon, scopes' braces, and whatever a semicolon ends."""
    at = 0
    while True:
        start = _NO_SPACE.search(text, at)
        if start is None:
            return
        at = start.start()
        if text[at] in "{};":
            if text[at] != ";":
                yield text[at]
            at += 1
        elif text.startswith((".loc ", ".loc\t"), at):
            at = text.find("\n", at)
            if at < 0:
                return
        elif found := _LABEL.match(text, at):
            yield found[0]
            at = found.end()
        else:
            end = text.find(";", at)
            if end < 0:
                raise Unsupported(f"no semicolon ends {text[at : at + 60].strip()!r}")
            yield text[at:end].strip()
            at = end + 1


def _declare(kernel: Kernel, statement: str, scope: dict[str, str], suffix: str) -> None:
    words = statement.split(None, 2)
    kind = words[1].removeprefix(".")
    if kind not in SIZES:
        raise Unsupported(f"registers {statement!r}")
    for part in words[2].split(","):
        found = _REGISTERS.match(part.strip())
        if found is None:
            raise Unsupported(f"registers {statement!r}")
        numbers = range(int(found[2])) if found[2] else [""]
        for number in numbers:
            name = f"{found[1]}{number}"
            scope[name] = name + suffix
            kernel.registers[name + suffix] = kind


def _instruction(statement: str, scopes: list[dict[str, str]]) -> Instruction:
    guard, negated = "", False
    if found := _GUARDED.match(statement):
        guard, negated, statement = _scoped(found[2], scopes), bool(found[1]), found[3]
    found = _OPCODE.match(statement)
    if found is None:
        raise Unsupported(f"statement {statement[:80]!r}")
    opcode, *modifiers = found[1].split(".")
    operands = (_scoped(o.strip(), scopes) for o in _OPERAND.findall(found[2]))
    return Instruction(opcode, tuple(modifiers), tuple(operands), guard, negated)


def _scoped(operand: str, scopes: list[dict[str, str]]) -> str:
    """An operand with the registers of inner scopes by their own names."""
    if len(scopes) == 1:
        return operand

    def rename(found: re.Match[str]) -> str:
        word = found[0]
        return next((s[word] for s in reversed(scopes) if word in s), word)

    return re.sub(_NAME, rename, operand)
