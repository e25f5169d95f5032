"""Instructions that move: registers, loads and stores, atomics, asynchronous copies."""

from __future__ import annotations

from ptxcpu.forms import FLOATS, UNSIGNED, Form, cpp_type, translates
from ptxcpu.parser import SIZES

# How long a line stays in which cache changes no result.
_CACHING = (
    "ca", "cg", "cs", "cv", "lu", "wb", "wt", "nc", "relaxed", "weak", "volatile", "gpu", "cta",
    "sys", "L1::no_allocate", "L1::evict_last", "L1::evict_first", "L1::evict_normal",
    "L1::evict_unchanged", "L2::64B", "L2::128B", "L2::256B",
)  # fmt: skip
_SPACES = ("shared", "shared::cta", "global", "local", "const", "param")


@translates("mov")
def move(form: Form) -> str:
    """Also packs a vector into a wide register, and unpacks one."""
    form.count(2)
    kind = form.type()
    into, source = form.operands
    if into.startswith("{"):
        names = form.vector(0)
        width = SIZES[kind] * 8 // len(names)
        value = form.value(source, f"b{SIZES[kind] * 8}")
        parts = [
            form.write(f"b{width}", f"u{width}(v_ >> {i * width})", name)
            for i, name in enumerate(names)
        ]
        return f"u64 v_ = {value}; " + " ".join(parts)
    if source.startswith("{"):
        names = form.vector(1)
        width = SIZES[kind] * 8 // len(names)
        parts = [
            f"(u64){form.value(name, f'b{width}')} << {i * width}" for i, name in enumerate(names)
        ]
        whole = f"b{SIZES[kind] * 8}"
        return form.write(whole, f"{cpp_type(whole)}({' | '.join(parts)})")
    raw = kind if kind == "pred" else f"b{SIZES[kind] * 8}"
    return form.write(raw, form.read(1, raw))


@translates("cvta")
def convert_address(form: Form) -> str:
    """Between a state space's address and a generic one: only shared memory's differ."""
    kind = form.type("u64", "u32")
    space = form.one_of(*_SPACES)
    to_space = form.flag("to")
    value = form.bits(1)
    if space.startswith("shared"):
        name = "shared_of_generic" if to_space else "generic_of_shared"
        value = f"{name}({value})"
    return form.write(kind, f"{cpp_type(kind)}({value})")


def _space(form: Form) -> str:
    return form.one_of(*_SPACES, default="generic").partition("::")[0]


def _vector_length(form: Form) -> int:
    return int(form.one_of("v2", "v4", "v8", default="v1")[1:])


@translates("ld", "ldu")
def load(form: Form) -> str:
    kind = form.type()
    space, length = _space(form), _vector_length(form)
    form.flag(*_CACHING)
    into = form.vector(0)
    if len(into) != length:
        raise form.refuse("number of registers")
    size = SIZES[kind]
    if space == "param":
        name, offset = form.address(1)
        pointer = f"P + {form.names.parameters[name] + offset}"
    else:
        pointer = form.pointer(1, space, size * length, writes=False)
    # Narrow values are extended by their type's sign; floats are bits.
    raw = f"b{size * 8}" if kind in FLOATS else kind
    parts = [
        form.write(raw, f"load<{cpp_type(raw)}>(p_ + {i * size})", name)
        for i, name in enumerate(into)
        if name != "_"
    ]
    return f"const u8* p_ = {pointer}; " + " ".join(parts)


@translates("st")
def store(form: Form) -> str:
    kind = form.type()
    space, length = _space(form), _vector_length(form)
    form.flag(*_CACHING)
    values = form.vector(1)
    if len(values) != length or space in ("param", "const"):
        raise form.refuse()
    size = SIZES[kind]
    pointer = form.pointer(0, space, size * length, writes=True)
    parts = [
        f"store<{UNSIGNED[size]}>(p_ + {i * size}, {form.names.bits(value)});"
        for i, value in enumerate(values)
    ]
    return f"u8* p_ = {pointer}; " + " ".join(parts)


@translates("prefetch", "prefetchu")
def prefetch(form: Form) -> str:
    """Moves nothing that a program could see."""
    form.flag("global", "local", "L1", "L2")
    return ";"


# ------------------------------------------------------------------------ atomics

_REPLACED = {
    "add": "{t}(a + b)",
    "min": "smaller<{t}>(a, b)",
    "max": "larger<{t}>(a, b)",
    "and": "{t}(a & b)",
    "or": "{t}(a | b)",
    "xor": "{t}(a ^ b)",
    "exch": "b",
    "inc": "a >= b ? {t}(0) : {t}(a + 1)",
    "dec": "a == 0 || a > b ? b : {t}(a - 1)",
    "cas": "a == b ? c : a",
}


@translates("atom", "red")
def atomic(form: Form) -> str:
    """Read, replace, write, with nobody between; ``red`` does not give the old value."""
    kind = form.type()
    operation = form.one_of(*_REPLACED)
    space = _space(form)
    form.flag("relaxed", "acq_rel", "acquire", "release", "gpu", "cta", "sys", "noftz")
    at = 1 if form.opcode == "atom" else 0
    # Atomics are ordered among themselves: the place is checked, but it is nobody's to race for.
    pointer = {
        "shared": "BLOCK.shared + (u32)({a})",
        "global": "global_at({a}, {n}, true, {s})",
        "generic": "(is_shared({a}) ? (u8*)({a}) : global_at({a}, {n}, true, {s}))",
    }.get(space)
    if pointer is None:
        raise form.refuse(f"state space {space}")
    base, offset = form.address(at)
    address = f"{form.names.bits(base)} + ({offset}ll)"
    name = cpp_type(kind)
    values = [f"{name} b = {form.read(at + 1, kind)};"]
    if operation == "cas":
        values.append(f"{name} c = {form.read(at + 2, kind)};")
    replaced = _REPLACED[operation].format(t=name)
    place = pointer.format(a=address, n=SIZES[kind], s=form.site)
    old = f"atomic<{name}>({place}, [&]({name} a) {{ return {replaced}; }})"
    result = form.write(kind, old) if form.opcode == "atom" else f"(void){old};"
    return " ".join((*values, result))


# ------------------------------------------------------------------------ cp.async


@translates("cp")
def asynchronous_copy(form: Form) -> str:
    """``cp.async`` from global to shared memory, in groups that are waited for."""
    if not form.flag("async"):
        raise form.refuse()
    if form.flag("commit_group"):
        return "async_commit();"
    if form.flag("wait_group"):
        return f"async_wait({form.bits(0)}, false);"
    if form.flag("wait_all"):
        return "async_wait(0, true);"
    form.one_of("ca", "cg")
    if not (form.flag("shared", "shared::cta") and form.flag("global")):
        raise form.refuse()
    form.flag("L2::64B", "L2::128B", "L2::256B")
    count = form.count(3, 4)
    to, to_offset = form.address(0)
    source, source_offset = form.address(1)
    size = int(form.operands[2])
    # A fourth operand is how many bytes to read, or a predicate that says to read none.
    given = form.bits(3) if count == 4 else str(size)
    if count == 4 and form.names.registers.get(form.operands[3].lstrip("!")) == "pred":
        given = f"({given} ? 0 : {size})"
    return (
        f"async_copy((u32)({form.names.bits(to)} + ({to_offset}ll)), "
        f"{form.names.bits(source)} + ({source_offset}ll), {size}, {given}, {form.site});"
    )
