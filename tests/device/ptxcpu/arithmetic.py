"""Instructions that compute: integers, floating point, comparisons, conversions, bits."""

from __future__ import annotations

from ptxcpu.forms import FLOATS, Form, cpp_type, translates
from ptxcpu.parser import SIZES

_SYMBOLS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_ROUNDINGS = ("rn", "rz", "rm", "rp")
_WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


def _signed(kind: str) -> bool:
    return kind.startswith("s")


def _float_result(form: Form, kind: str, expression: str, ftz: bool) -> str:
    if form.flag("sat"):
        expression = f"saturate({expression})"
    return form.write(kind, f"flush({expression})" if ftz else expression)


def _float_inputs(form: Form, kind: str, count: int) -> tuple[list[str], bool]:
    """The operands after the destination, and whether subnormal numbers are zeros."""
    ftz = form.flag("ftz") and kind == "f32"
    operands = range(1, count + 1)
    if ftz:
        return [f"flushed({form.bits(i)})" for i in operands], ftz
    return [form.read(i, kind) for i in operands], ftz


def _only_to_nearest(form: Form) -> None:
    if form.one_of(*_ROUNDINGS, default="rn") != "rn":
        raise form.refuse("rounds other than to nearest")


# ------------------------------------------------------------------------ add, mul, mad, ...


@translates("add", "sub", "mul", "div", "rem")
def arithmetic(form: Form) -> str:
    """``add.f32``, ``mul.lo.s32``, ``mul.wide.u32``, ``div.rn.f32``, ``add.cc.u32``."""
    form.count(3)
    kind = form.type()
    if kind == "f16x2":
        return _packed_half(form)
    if kind in FLOATS:
        if form.opcode not in _SYMBOLS:
            raise form.refuse()
        _only_to_nearest(form)
        if form.opcode == "div":
            form.flag("approx", "full")  # the host divides exactly
        (a, b), ftz = _float_inputs(form, kind, 2)
        return _float_result(form, kind, f"{a} {_SYMBOLS[form.opcode]} {b}", ftz)
    if form.opcode in ("add", "sub") and form.flag("cc"):
        return _carry(form, kind, carries_in=False, carries_out=True)
    if form.opcode in ("add", "sub") and form.flag("sat"):
        wide = f"(s64){form.read(1, kind)} {_SYMBOLS[form.opcode]} (s64){form.read(2, kind)}"
        return form.write(kind, f"saturate_signed<{cpp_type(kind)}>({wide})")
    a, b = form.read(1, kind), form.read(2, kind)
    if form.opcode == "mul":
        return _product(form, kind, a, b, "")
    if form.opcode in ("div", "rem"):
        sign = "/" if form.opcode == "div" else "%"
        divide = f'if (({b}) == 0) fail("division by zero"); '
        # The one quotient that does not fit, of the least number by -1, wraps.
        if _signed(kind):
            special = f"-(u64){a}" if form.opcode == "div" else "0"
            value = f"{b} == -1 ? {cpp_type(kind)}({special}) : {cpp_type(kind)}({a} {sign} {b})"
        else:
            value = f"{a} {sign} {b}"
        return divide + form.write(kind, value)
    return form.write(kind, f"{cpp_type(kind)}((u64){a} {_SYMBOLS[form.opcode]} (u64){b})")


def _product(form: Form, kind: str, a: str, b: str, addend: str) -> str:
    part = form.one_of("lo", "hi", "wide")
    plus = f" + {addend}" if addend else ""
    if part == "wide":
        wide = _WIDER[kind]
        plus = f" + {form.read(3, wide)}" if addend else ""
        return form.write(wide, f"{wide}(({wide}){a} * ({wide}){b}{plus})")
    name = cpp_type(kind)
    product = f"high_half<{name}>({a}, {b})" if part == "hi" else f"(u64){a} * (u64){b}"
    return form.write(kind, f"{name}({product}{plus})")


def _packed_half(form: Form) -> str:
    """Two halves in a register, each by itself."""
    form.flag("rn", "ftz")
    operation = {
        "add": "a + b",
        "sub": "a - b",
        "mul": "a * b",
        "fma": "fused(a, b, c)",
        "min": "smaller(a, b)",
        "max": "larger(a, b)",
    }.get(form.opcode)
    if operation is None:
        raise form.refuse()
    operands = zip("abc", range(1, form.count(3, 4)), strict=False)
    lines = [f"f16 {name} = as<f16>({form.bits(i)} >> h_);" for name, i in operands]
    body = " ".join(lines) + f" r_ |= (u32)bits(f16({operation})) << h_;"
    return f"u32 r_ = 0; for (u32 h_ = 0; h_ < 32; h_ += 16) {{ {body} }} " + form.write(
        "b32", "r_"
    )


@translates("addc", "subc", "madc")
def carrying(form: Form) -> str:
    """With the carry of the instruction before: sums of numbers wider than a register."""
    kind = form.type("u32", "s32", "u64", "s64", "b32")
    return _carry(form, kind, carries_in=True, carries_out=form.flag("cc"))


def _carry(form: Form, kind: str, *, carries_in: bool, carries_out: bool) -> str:
    width = SIZES[kind] * 8
    a, b = form.read(1, f"u{width}"), form.read(2, f"u{width}")
    if form.opcode.startswith("mad"):
        part = form.one_of("lo", "hi")
        product = f"(u128){a} * {b}"
        a = f"u{width}({product} >> {width})" if part == "hi" else f"u{width}({product})"
        b = form.read(3, f"u{width}")
    sign = "-" if form.opcode.startswith("sub") else "+"
    carry = f" {sign} CARRY" if carries_in else ""
    out = f" CARRY = w_ >> {width} & 1;" if carries_out else ""
    return f"u128 w_ = (u128){a} {sign} {b}{carry};{out} " + form.write(
        f"u{width}", f"u{width}(w_)"
    )


@translates("fma", "mad")
def multiply_add(form: Form) -> str:
    """``fma.rn.f32``, ``mad.lo.s32``, ``mad.wide.u32``."""
    form.count(4)
    kind = form.type()
    if kind == "f16x2":
        return _packed_half(form)
    if kind in FLOATS:
        _only_to_nearest(form)
        # Most of what kernels do: g++ takes a third of the time for one call.
        how = (str(form.flag(flag)).lower() for flag in ("ftz", "sat"))
        registers = ", ".join(form.bits(i) for i in (1, 2, 3))
        fused = f"fused_registers<{', '.join((kind, *how))}>({registers})"
        return form.write(f"b{8 * SIZES[kind]}", fused)
    if form.flag("cc"):
        return _carry(form, kind, carries_in=False, carries_out=True)
    return _product(form, kind, form.read(1, kind), form.read(2, kind), form.read(3, kind))


@translates("min", "max")
def extreme(form: Form) -> str:
    form.count(3)
    kind = form.type()
    if kind == "f16x2":
        return _packed_half(form)
    name = "smaller" if form.opcode == "min" else "larger"
    if kind not in FLOATS:
        return form.write(kind, f"{name}({form.read(1, kind)}, {form.read(2, kind)})")
    (a, b), ftz = _float_inputs(form, kind, 2)
    value = f"{name}<{kind}>({a}, {b})"
    if form.flag("NaN"):
        value = f"nan_if_any<{kind}>({a}, {b}, {value})"
    return _float_result(form, kind, value, ftz)


@translates("neg", "abs")
def sign(form: Form) -> str:
    form.count(2)
    kind = form.type()
    if kind in FLOATS:
        (a,), ftz = _float_inputs(form, kind, 1)
        # The sign is a bit, of a NaN too.
        mask = 1 << (SIZES[kind] * 8 - 1)
        flip = (
            f"bits({a}) ^ {mask:#x}ull" if form.opcode == "neg" else f"bits({a}) & {mask - 1:#x}ull"
        )
        return _float_result(form, kind, f"as<{kind}>({flip})", ftz)
    a = form.read(1, kind)
    negated = f"{cpp_type(kind)}(-(u64){a})"
    return form.write(kind, negated if form.opcode == "neg" else f"{a} < 0 ? {negated} : {a}")


_FUNCTIONS = {
    "rcp": "{t}(1) / {a}",
    "sqrt": "std::sqrt({a})",
    "rsqrt": "{t}(1) / std::sqrt({a})",
    "ex2": "std::exp2({a})",
    "lg2": "std::log2({a})",
    "sin": "std::sin({a})",
    "cos": "std::cos({a})",
    "tanh": "std::tanh({a})",
}


@translates(*_FUNCTIONS)
def function(form: Form) -> str:
    """Functions of one number; approximate ones are computed by the host's library."""
    form.count(2)
    kind = form.type("f32", "f64")
    form.flag("approx")
    _only_to_nearest(form)
    (a,), ftz = _float_inputs(form, kind, 1)
    return _float_result(form, kind, _FUNCTIONS[form.opcode].format(t=kind, a=a), ftz)


@translates("copysign")
def copy_sign(form: Form) -> str:
    kind = form.type("f32", "f64")
    return form.write(kind, f"std::copysign({form.read(2, kind)}, {form.read(1, kind)})")


@translates("testp")
def test_property(form: Form) -> str:
    kind = form.type("f32", "f64")
    a = form.read(1, kind)
    test = {
        "finite": f"std::isfinite({a})",
        "infinite": f"std::isinf({a})",
        "number": f"!is_nan({a})",
        "notanumber": f"is_nan({a})",
        "normal": f"std::isnormal({a})",
        "subnormal": f"std::fpclassify({a}) == FP_SUBNORMAL",
    }
    return form.write("pred", test[form.one_of(*test)])


# ------------------------------------------------------------------------ bits


@translates("and", "or", "xor")
def logic(form: Form) -> str:
    kind = form.type("pred", "b16", "b32", "b64")
    symbol = {"and": "&", "or": "|", "xor": "^"}[form.opcode]
    value = f"{form.read(1, kind)} {symbol} {form.read(2, kind)}"
    return form.write(kind, f"{cpp_type(kind)}({value})")


@translates("not", "cnot")
def negation(form: Form) -> str:
    kind = form.type("pred", "b16", "b32", "b64")
    symbol = "!" if form.opcode == "cnot" or kind == "pred" else "~"
    return form.write(kind, f"{cpp_type(kind)}({symbol}{form.read(1, kind)})")


@translates("shl", "shr")
def shift(form: Form) -> str:
    kind = form.type()
    name = "shift_left" if form.opcode == "shl" else "shift_right"
    return form.write(
        kind, f"{name}<{cpp_type(kind)}>({form.read(1, kind)}, {form.read(2, 'u32')})"
    )


@translates("shf")
def funnel_shift(form: Form) -> str:
    form.type("b32")
    name = "funnel_left" if form.one_of("l", "r") == "l" else "funnel_right"
    by = form.read(3, "u32")
    by = f"{by} & 31" if form.one_of("wrap", "clamp") == "wrap" else f"std::min({by}, 32u)"
    return form.write("b32", f"{name}({form.read(1, 'u32')}, {form.read(2, 'u32')}, {by})")


@translates("bfe", "bfi")
def bit_field(form: Form) -> str:
    kind = form.type()
    if form.opcode == "bfe":
        arguments = f"{form.read(1, kind)}, {form.read(2, 'u32')}, {form.read(3, 'u32')}"
        return form.write(kind, f"field<{cpp_type(kind)}>({arguments})")
    arguments = f"{form.read(3, 'u32')}, {form.read(4, 'u32')}"
    both = f"{form.read(1, kind)}, {form.read(2, kind)}"
    return form.write(kind, f"insert<{cpp_type(kind)}>({both}, {arguments})")


@translates("popc", "clz", "brev")
def bit_count(form: Form) -> str:
    kind = form.type("b32", "b64")
    a = form.read(1, kind)
    if form.opcode == "brev":
        return form.write(kind, f"reversed<{cpp_type(kind)}>({a})")
    name = "std::popcount" if form.opcode == "popc" else "leading_zeros"
    return form.write("b32", f"u32({name}({a}))")


@translates("lop3")
def three_way_logic(form: Form) -> str:
    form.count(5)
    form.type("b32")
    a, b, c = (form.read(i, "u32") for i in (1, 2, 3))
    return form.write("b32", f"lop3({a}, {b}, {c}, {form.bits(4)})")


@translates("prmt")
def permute(form: Form) -> str:
    form.type("b32")
    a, b, c = (form.read(i, "u32") for i in (1, 2, 3))
    return form.write("b32", f"permute({a}, {b}, {c})")


# ------------------------------------------------------------------------ comparisons

_COMPARE = {
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    "lo": "<", "ls": "<=", "hi": ">", "hs": ">=",
}  # fmt: skip
_UNORDERED = {f"{name}u": name for name in ("eq", "ne", "lt", "le", "gt", "ge")}


def _comparison(form: Form, kind: str) -> str:
    names = (*_UNORDERED, "num", "nan") if kind in FLOATS else ("lo", "ls", "hi", "hs")
    name = form.one_of("eq", "ne", "lt", "le", "gt", "ge", *names)
    (a, b), _ = _float_inputs(form, kind, 2)
    some_nan = f"(is_nan({a}) || is_nan({b}))"
    if name == "nan":
        return some_nan
    if name == "num":
        return f"!{some_nan}"
    holds = f"({a} {_COMPARE[_UNORDERED.get(name, name)]} {b})"
    if name in _UNORDERED:
        return f"({holds} || {some_nan})"
    # In C++ too a NaN is neither less, equal nor greater; it is unequal.
    return f"({holds} && !{some_nan})" if name == "ne" and kind in FLOATS else holds


@translates("setp", "set")
def compare(form: Form) -> str:
    """``setp.lt.and.f32 %p|%q, a, b, %c`` and ``set.lt.u32.f32``."""
    count = form.count(3, 4)
    kind = form.type()
    into = form.type("u32", "s32", "f32") if form.opcode == "set" else "pred"
    combine = form.one_of("and", "or", "xor", default="none")
    holds = _comparison(form, kind)
    other = "true"
    if count == 4:
        symbol = {"and": "&&", "or": "||", "xor": "!="}[combine]
        other = form.read(3, "pred")
        holds = f"({holds} {symbol} {other})"
    first, _, second = form.operands[0].partition("|")
    if into == "f32":
        return form.write("f32", f"{holds} ? 1.0f : 0.0f")
    if into != "pred":
        return form.write(into, f"{cpp_type(into)}({holds} ? -1 : 0)")
    if not second:
        return form.write("pred", holds, first)
    if count == 4:
        raise form.refuse("combines both predicates")
    both = form.write("pred", "h_", first) + form.write("pred", "!h_", second)
    return f"bool h_ = {holds}; {both}"


@translates("selp", "slct")
def select(form: Form) -> str:
    if form.opcode == "selp":
        kind = form.type()
        condition = form.read(3, "pred")
    else:
        test = form.type("s32", "f32")
        kind = form.type()
        condition = f"{form.read(3, test)} >= 0"
    return form.write(kind, f"{condition} ? {form.read(1, kind)} : {form.read(2, kind)}")


# ------------------------------------------------------------------------ conversions


@translates("cvt")
def convert(form: Form) -> str:
    """``cvt.rn.f32.s32``, ``cvt.rzi.s32.f32``, ``cvt.u64.u32``, ``cvt.rn.f16.f32`` ..."""
    source = form.type()
    target = form.type()
    ftz = form.flag("ftz")
    rounding = form.one_of("rn", "rna", "rni", "rzi", "rmi", "rpi", "rz", default="")
    if target in ("f16x2", "bf16x2"):
        half = target.removesuffix("x2")
        upper, lower = (f"(u32)bits({half}({form.read(i, 'f32')}))" for i in (1, 2))
        if rounding != "rn" or source != "f32":
            raise form.refuse()
        return form.write("b32", f"{upper} << 16 | {lower}")
    if target == "tf32":
        if rounding != "rna" or source != "f32":
            raise form.refuse()
        return form.write("b32", f"to_tf32({form.read(1, 'f32')})")
    form.count(2)
    value = form.read(1, source)
    if ftz and source == "f32":
        value = f"flush({value})"
    function = {"rni": "nearbyint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}.get(rounding)
    name = cpp_type(target)
    if source in FLOATS and target not in FLOATS:
        if function is None:
            raise form.refuse("does not round to an integer")
        form.flag("sat")  # it saturates anyway
        return form.write(target, f"to_integer<{name}>(std::{function}((f64){value}))")
    if rounding == "rz":
        raise form.refuse("rounds other than to nearest")
    if function is not None:
        value = f"std::{function}({value})"
    if target in FLOATS:
        result = f"({name}){value}" if source != "bf16" else f"({name})(f32){value}"
        if form.flag("sat"):
            result = f"saturate({result})"
        return form.write(target, f"flush({result})" if ftz and target == "f32" else result)
    if form.flag("sat"):
        low = f"std::numeric_limits<{name}>::min()"
        high = f"std::numeric_limits<{name}>::max()"
        value = f"std::clamp((s128){value}, (s128){low}, (s128){high})"
    return form.write(target, f"{name}({value})")
