"""A module of PTX as C++: each kernel a function, each instruction a statement."""

from __future__ import annotations

from dataclasses import dataclass

from ptxcpu import arithmetic, control, matrix, movement  # noqa: F401  (they fill the table)
from ptxcpu.control import unknown
from ptxcpu.forms import SPECIAL, SPECIAL_USED, TABLE, UNSIGNED, Form, Names, identifier, register
from ptxcpu.parser import (
    SIZES,
    Instruction,
    Kernel,
    Label,
    Parameter,
    Unsupported,
    Variable,
    align_up,
    parse,
)

# Local arrays live on the fibers' stacks, whose size the runtime sets.
MOST_LOCAL_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Entry:
    """What a launch needs to know of a translated kernel.

    Attributes
    ----------
    symbol : str
        Of the C function that runs it.
    shared_bytes : int
        Static shared memory; dynamic shared memory begins there.
    """

    symbol: str
    parameters: tuple[Parameter, ...]
    parameter_bytes: int
    shared_bytes: int


@dataclass(frozen=True, slots=True)
class Translation:
    """The C++ of a module.

    Attributes
    ----------
    source : str
    entries : dict of str to Entry
        By the kernels' names.
    sites : tuple of Instruction
        Instruction i is what the runtime calls site i.
    """

    source: str
    entries: dict[str, Entry]
    sites: tuple[Instruction, ...]


def translate(ptx: str) -> Translation:
    """Translate PTX text.

    Raises
    ------
    Unsupported
        For whatever is not understood, with the statement.
    """
    module = parse(ptx)
    sites: list[Instruction] = []
    entries: dict[str, Entry] = {}
    shared = [v for v in module.variables if v.space == "shared"]
    static = [v for v in module.variables if v.space in ("global", "const")]
    functions = [_static(v) for v in static]
    ranges = "".join(
        f" RANGES.push_back({{(u64)g_{identifier(v.name)}, (u64)g_{identifier(v.name)} + "
        f"{max(v.nbytes, 1)}}});"
        for v in static
    )
    functions.append(
        f"#ifdef CHECKED\nstatic void add_ranges() {{{ranges}}}\n"
        "#else\nstatic void add_ranges() {}\n#endif"
    )
    for kernel in module.kernels.values():
        static += [v for v in kernel.variables if v.space in ("global", "const")]
        of_kernel = [v for v in kernel.variables if v.space == "shared"]
        places, shared_bytes = _place_shared([*shared, *of_kernel])
        places |= {v.name: f"(u64)g_{identifier(v.name)}" for v in static}
        functions.append(_function(kernel, places, sites))
        symbol = f"run_{identifier(kernel.name)}"
        functions.append(
            f"API int {symbol}(const u32* grid, const u32* block, const u8* parameters, "
            f"u32 dynamic) {{ add_ranges(); return launch(k_{identifier(kernel.name)}, SITES, "
            f"grid, block, parameters, {shared_bytes} + dynamic, dynamic); }}"
        )
        entries[kernel.name] = Entry(
            symbol, kernel.parameters, kernel.parameter_bytes, shared_bytes
        )
    head = ['#include "runtime.hpp"', f"const int SITES = {len(sites)};"]
    return Translation("\n".join([*head, *functions, ""]), entries, tuple(sites))


def _static(variable: Variable) -> str:
    kind = UNSIGNED[SIZES[variable.type]]
    values = ", ".join(
        f"({kind}){v}" if not v.startswith(("0f", "0F")) else f"0x{v[2:]}u" for v in variable.init
    )
    return (
        f"alignas({max(variable.align, 8)}) static {kind} g_{identifier(variable.name)}"
        f"[{max(variable.count, 1)}] = {{{values}}};"
    )


def _place_shared(variables: list[Variable]) -> tuple[dict[str, str], int]:
    """Where shared arrays begin, dynamic ones behind all others; and the bytes of those."""
    places, end = {}, 0
    for variable in variables:
        if variable.count:
            end = align_up(end, variable.align)
            places[variable.name] = f"{end}ull"
            end += variable.nbytes
    dynamic = [v for v in variables if not v.count]
    end = align_up(end, max([16, *(v.align for v in dynamic)])) if dynamic else end
    return places | {v.name: f"{end}ull" for v in dynamic}, end


def _function(kernel: Kernel, places: dict[str, str], sites: list[Instruction]) -> str:
    local = [v for v in kernel.variables if v.space == "local"]
    if sum(v.nbytes for v in local) > MOST_LOCAL_BYTES:
        raise Unsupported(f"{kernel.name} has more than {MOST_LOCAL_BYTES} local bytes")
    places = places | {v.name: f"(u64)l_{identifier(v.name)}" for v in local}
    names = Names(kernel.registers, places, {p.name: p.offset for p in kernel.parameters})
    body = [_statement(item, names, sites) for item in kernel.body]
    used = sorted(set(SPECIAL_USED.findall(" ".join(str(item) for item in kernel.body))))
    lines = [f"static void k_{identifier(kernel.name)}(const u8* P) {{", "u32 CARRY = 0;"]
    lines += [f"const u32 {identifier(name)} = {SPECIAL[name]};" for name in used]
    lines += [
        f"alignas({max(v.align, 16)}) u8 l_{identifier(v.name)}[{max(v.nbytes, 1)}];" for v in local
    ]
    ends = ", ".join(f"{{{places[v.name]}, {places[v.name]} + {v.nbytes}}}" for v in local)
    lines.append(f"const Range LOCALS[] = {{{ends or '{0, 0}'}}};")
    lines.append(f"const int LOCALS_COUNT = {len(local)};")
    for name, kind in kernel.registers.items():
        cpp = "bool" if kind == "pred" else UNSIGNED[SIZES[kind]]
        lines.append(f"{cpp} {register(name)} = 0;")
    return "\n".join([*lines, *body, "}"])


def _statement(item: Instruction | Label, names: Names, sites: list[Instruction]) -> str:
    if isinstance(item, Label):
        return f"L_{identifier(item.name)}:;"
    form = Form(item, names, len(sites))
    handler = TABLE.get(item.opcode)
    if handler is None:
        raise unknown(form)
    try:
        code = handler(form)
    except (KeyError, IndexError) as error:
        raise form.refuse(f"{type(error).__name__} {error}") from error
    form.finish()
    sites.append(item)
    guard = ""
    if item.guard:
        guard = f"if ({'!' if item.negated else ''}{names.bits(item.guard)}) "
    return f"{guard}{{ {code} }}"
