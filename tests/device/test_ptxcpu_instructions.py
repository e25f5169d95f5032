"""The PTX tool, instruction by instruction: a table of what each computes.

All rows are kernels of one module, compiled once.  Thread i computes with the i-th numbers of the
operands' types, among which are the extreme ones; expected values are NumPy's or Python's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import ptxcpu
import pytest
from ptxcpu.forms import TABLE

from convjit import spi

THREADS = 64
DTYPES = {
    **{f"{kind}{8 * size}": np.dtype(f"{'i' if kind == 's' else 'u'}{size}")
       for kind in "bus" for size in (1, 2, 4, 8)},
    "f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8"),
    "bf16": np.dtype(ml_dtypes.bfloat16), "pred": np.dtype("u4"), "f16x2": np.dtype("u4"),
}  # fmt: skip
ARRAY = np.ndarray[Any, Any]


class Row(NamedTuple):
    """A kernel: its statements on the registers a, b, c and o, and what o is afterwards.

    ``ulps`` is how many units in the last place the host's mathematics may differ from NumPy's.
    """

    code: str
    kinds: str  # "s32 s32 -> s32"
    expected: Callable[..., Any]
    ulps: int = 0


def numbers(kind: str, seed: int) -> ARRAY:
    """Numbers of a type, extreme ones among them."""
    rng = np.random.default_rng(seed)
    dtype = DTYPES[kind]
    if kind == "pred":
        return rng.integers(0, 2, THREADS, dtype)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        edges = [info.min, info.max, 0, 1, info.max - 1, info.max // 2]
        drawn = rng.integers(info.min, info.max, THREADS - len(edges), dtype, endpoint=True)
        small = rng.integers(0, 70, drawn.size).astype(dtype)
        mixed = np.where(rng.integers(0, 2, drawn.size) == 1, drawn, small)
        values = np.concatenate([np.array(edges, dtype), mixed])
    else:
        edges = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, -1e-42, 0.5, 1.5, 2.5, -2.5, 3e9, -3e9]
        drawn = rng.standard_normal(THREADS - len(edges)) * 10.0
        with np.errstate(over="ignore"):
            values = np.concatenate([edges, drawn]).astype(dtype)
    return rng.permutation(values)


def exact(function: Callable[..., int], kind: str) -> Callable[..., ARRAY]:
    """Python's whole numbers, wrapped to a type."""

    def apply(*operands: ARRAY) -> ARRAY:
        width = DTYPES[kind].itemsize * 8
        results = [function(*map(int, row)) % 2**width for row in zip(*operands, strict=True)]
        return np.array(results, f"u{width // 8}").view(DTYPES[kind])

    return apply


def each(function: Callable[..., Any], kind: str) -> Callable[..., ARRAY]:
    """A function of NumPy scalars."""
    return lambda *operands: np.array(
        [function(*row) for row in zip(*operands, strict=True)], DTYPES[kind]
    )


def fused(a: Any, b: Any, c: Any) -> Any:
    """a * b + c of float32 rounded once: exact in float128 but for the sum's last bits."""
    return np.float32(np.longdouble(a) * np.longdouble(b) + np.longdouble(c))


def flushed(x: ARRAY) -> ARRAY:
    return np.where(np.abs(x) < np.finfo("f4").tiny, np.copysign(np.float32(0), x), x)


def saturated(x: ARRAY) -> ARRAY:
    return np.where(np.isnan(x), np.zeros_like(x), np.clip(x, 0, 1))


def to_integer(kind: str, rounding: Callable[[float], float]) -> Callable[[ARRAY], ARRAY]:
    info = np.iinfo(DTYPES[kind])

    def convert(x: Any) -> int:
        if math.isnan(x):
            return 0
        if math.isinf(x):
            return int(info.max if x > 0 else info.min)
        return int(min(max(rounding(float(x)), int(info.min)), int(info.max)))

    return each(convert, kind)


def round_half_even(x: float) -> float:
    return float(np.rint(x))


def field(x: int, pos: int, length: int, width: int, signed: bool) -> int:
    pos, length = pos & 255, length & 255
    bits = [(x >> i) & 1 if i < width else 0 for i in range(600)]
    sign = bits[min(pos + length - 1, width - 1)] if signed and length else 0
    return sum(
        (bits[pos + i] if i < length and pos + i < width else sign) << i for i in range(width)
    )


def inserted(a: int, b: int, pos: int, length: int, width: int) -> int:
    mask = (((1 << (length & 255)) - 1) << (pos & 255)) & (2**width - 1)
    return (b & ~mask) | ((a << (pos & 255)) & mask)


def permuted(a: int, b: int, selector: int) -> int:
    source = (a | b << 32).to_bytes(8, "little")
    result = 0
    for i in range(4):
        code = selector >> 4 * i & 15
        byte = source[code & 7]
        if code & 8:
            byte = 255 if byte & 128 else 0
        result |= byte << 8 * i
    return result


def halves(operation: Callable[..., Any]) -> Callable[..., ARRAY]:
    def apply(*operands: ARRAY) -> ARRAY:
        with np.errstate(all="ignore"):
            return operation(*(o.view("f2") for o in operands)).astype("f2").view("u4")

    return apply


def minimum(a: Any, b: Any, sign: int = 1) -> Any:
    """The lesser of the numbers (the greater for sign -1); -0 is below 0."""
    if np.isnan(a) or np.isnan(b):
        return b if np.isnan(a) else a
    if a == b:
        return min((a, b), key=lambda v: sign * np.copysign(1.0, v))
    return min(a, b) if sign > 0 else max(a, b)


def integer_rows() -> list[Row]:
    rows = []
    for kind in ("u16", "s16", "u32", "s32", "u64", "s64"):
        two, three = f"{kind} {kind} -> {kind}", f"{kind} {kind} {kind} -> {kind}"
        width = int(kind[1:])
        rows += [
            Row(f"add.{kind} o, a, b;", two, exact(lambda a, b: a + b, kind)),
            Row(f"sub.{kind} o, a, b;", two, exact(lambda a, b: a - b, kind)),
            Row(f"mul.lo.{kind} o, a, b;", two, exact(lambda a, b: a * b, kind)),
            Row(f"mul.hi.{kind} o, a, b;", two, exact(lambda a, b, w=width: a * b >> w, kind)),
            Row(f"mad.lo.{kind} o, a, b, c;", three, exact(lambda a, b, c: a * b + c, kind)),
            Row(f"min.{kind} o, a, b;", two, exact(min, kind)),
            Row(f"max.{kind} o, a, b;", two, exact(max, kind)),
            Row(
                f"or.b{width} b, b, 1; div.{kind} o, a, b;", two,
                exact(lambda a, b: int(math.copysign(1, a) * math.copysign(1, b | 1))
                      * (abs(a) // abs(b | 1)), kind),
            ),
            Row(
                f"or.b{width} b, b, 1; rem.{kind} o, a, b;", two,
                exact(lambda a, b: int(math.copysign(1, a)) * (abs(a) % abs(b | 1)), kind),
            ),
            Row(f"shr.{kind} o, a, b;", f"{kind} u32 -> {kind}",
                exact(lambda a, n, w=width: a >> min(n, w), kind)),
            Row(f"setp.lt.{kind} o, a, b;", f"{kind} {kind} -> pred", lambda a, b: a < b),
        ]  # fmt: skip
    for kind, wide in (("u16", "u32"), ("s16", "s32"), ("u32", "u64"), ("s32", "s64")):
        rows += [
            Row(f"mul.wide.{kind} o, a, b;", f"{kind} {kind} -> {wide}",
                exact(lambda a, b: a * b, wide)),
            Row(f"mad.wide.{kind} o, a, b, c;", f"{kind} {kind} {wide} -> {wide}",
                exact(lambda a, b, c: a * b + c, wide)),
        ]  # fmt: skip
    for kind in ("s16", "s32", "s64"):
        rows += [
            Row(f"neg.{kind} o, a;", f"{kind} -> {kind}", exact(lambda a: -a, kind)),
            Row(f"abs.{kind} o, a;", f"{kind} -> {kind}", exact(abs, kind)),
        ]
    rows.append(
        Row("add.sat.s32 o, a, b;", "s32 s32 -> s32",
            each(lambda a, b: min(max(int(a) + int(b), -(2**31)), 2**31 - 1), "s32"))
    )  # fmt: skip
    # 64-bit sums and products by way of the carry.
    pair = "mov.b64 {x0, x1}, a; mov.b64 {y0, y1}, b;"
    rows += [
        Row(f"{pair} add.cc.u32 z0, x0, y0; addc.u32 z1, x1, y1; mov.b64 o, {{z0, z1}};",
            "u64 u64 -> u64", exact(lambda a, b: a + b, "u64")),
        Row(f"{pair} sub.cc.u32 z0, x0, y0; subc.u32 z1, x1, y1; mov.b64 o, {{z0, z1}};",
            "u64 u64 -> u64", exact(lambda a, b: a - b, "u64")),
        Row(f"{pair} mad.lo.cc.u32 z0, x0, y0, y1; madc.hi.u32 z1, x0, y0, x1;"
            "mov.b64 o, {z0, z1};", "u64 u64 -> u64",
            exact(lambda a, b: (a % 2**32) * (b % 2**32) + (b >> 32) + ((a >> 32) << 32), "u64")),
    ]  # fmt: skip
    for width in (16, 32, 64):
        kind, mask = f"b{width}", 2**width - 1
        two = f"{kind} {kind} -> {kind}"
        rows += [
            Row(f"and.{kind} o, a, b;", two, lambda a, b: a & b),
            Row(f"or.{kind} o, a, b;", two, lambda a, b: a | b),
            Row(f"xor.{kind} o, a, b;", two, lambda a, b: a ^ b),
            Row(f"not.{kind} o, a;", f"{kind} -> {kind}", lambda a: ~a),
            Row(f"cnot.{kind} o, a;", f"{kind} -> {kind}", lambda a: a == 0),
            Row(f"shl.{kind} o, a, b;", f"{kind} u32 -> {kind}",
                exact(lambda a, n, w=width, m=mask: (a << min(n, w)) & m, kind)),
        ]  # fmt: skip
    for width in (32, 64):
        kind = f"b{width}"
        rows += [
            Row(f"popc.{kind} o, a;", f"{kind} -> u32", exact(int.bit_count, "u32")),
            Row(f"clz.{kind} o, a;", f"{kind} -> u32",
                exact(lambda a, w=width: w - a.bit_length(), "u32")),
            Row(f"brev.{kind} o, a;", f"{kind} -> {kind}",
                exact(lambda a, w=width: int(f"{a:0{w}b}"[::-1], 2), kind)),
            Row(f"bfi.{kind} o, a, b, c, {width // 4};", f"{kind} {kind} u32 -> {kind}",
                exact(lambda a, b, p, w=width: inserted(a, b, p, w // 4, w), kind)),
        ]  # fmt: skip
        rows += [
            Row(f"bfe.{sign}{width} o, a, b, c;", f"{sign}{width} u32 u32 -> {sign}{width}",
                exact(lambda a, p, n, w=width, s=sign: field(a % 2**w, p, n, w, s == "s"),
                      f"{sign}{width}"))
            for sign in "us"
        ]  # fmt: skip
    for mode, limit in (("wrap", lambda n: n & 31), ("clamp", lambda n: min(n, 32))):
        rows += [
            Row(f"shf.l.{mode}.b32 o, a, b, c;", "u32 u32 u32 -> u32",
                exact(lambda a, b, n, f=limit: ((b << 32 | a) << f(n)) >> 32, "u32")),
            Row(f"shf.r.{mode}.b32 o, a, b, c;", "u32 u32 u32 -> u32",
                exact(lambda a, b, n, f=limit: (b << 32 | a) >> f(n), "u32")),
        ]  # fmt: skip
    return [
        *rows,
        Row("lop3.b32 o, a, b, c, 0xCA;", "b32 b32 b32 -> b32", lambda a, b, c: (a & b) | (~a & c)),
        Row("prmt.b32 o, a, b, c;", "b32 b32 b32 -> b32", exact(permuted, "b32")),
        Row("and.pred o, a, b;", "pred pred -> pred", lambda a, b: a & b),
        Row("not.pred o, a;", "pred -> pred", lambda a: 1 - a),
    ]


def float_rows() -> list[Row]:
    rows = []
    for kind in ("f32", "f64", "f16"):
        two = f"{kind} {kind} -> {kind}"
        rn = "" if kind == "f16" else ".rn"
        rows += [
            Row(f"add{rn}.{kind} o, a, b;", two, np.add),
            Row(f"sub.{kind} o, a, b;", two, np.subtract),
            Row(f"mul.{kind} o, a, b;", two, np.multiply),
            Row(f"min.{kind} o, a, b;", two, each(minimum, kind)),
            Row(f"max.{kind} o, a, b;", two, each(lambda a, b: minimum(a, b, -1), kind)),
            Row(f"min.NaN.{kind} o, a, b;", two, np.minimum),
            Row(f"neg.{kind} o, a;", f"{kind} -> {kind}", np.negative),
            Row(f"abs.{kind} o, a;", f"{kind} -> {kind}", np.abs),
        ]
        for name, test in (
            ("eq", np.equal),
            ("ne", np.not_equal),
            ("lt", np.less),
            ("le", np.less_equal),
            ("gt", np.greater),
            ("ge", np.greater_equal),
        ):
            nan = lambda a, b: np.isnan(a) | np.isnan(b)  # noqa: E731
            rows += [
                Row(f"setp.{name}.{kind} o, a, b;", f"{kind} {kind} -> pred",
                    lambda a, b, t=test, n=nan: t(a, b) & ~n(a, b)),
                Row(f"setp.{name}u.{kind} o, a, b;", f"{kind} {kind} -> pred",
                    lambda a, b, t=test, n=nan: t(a, b) | n(a, b)),
            ]  # fmt: skip
        rows += [
            Row(f"setp.nan.{kind} o, a, b;", f"{kind} {kind} -> pred",
                lambda a, b: np.isnan(a) | np.isnan(b)),
            Row(f"setp.num.{kind} o, a, b;", f"{kind} {kind} -> pred",
                lambda a, b: ~(np.isnan(a) | np.isnan(b))),
        ]  # fmt: skip
    functions = {"rcp": lambda a: 1 / a, "sqrt": np.sqrt}
    approximate = {
        "rsqrt": lambda a: 1 / np.sqrt(a), "ex2": np.exp2, "lg2": np.log2, "sin": np.sin,
        "cos": np.cos, "tanh": np.tanh, **functions,
    }  # fmt: skip
    for kind in ("f32", "f64"):
        one = f"{kind} -> {kind}"
        rows += [Row(f"{n}.rn.{kind} o, a;", one, f) for n, f in functions.items()]
        rows += [
            Row(f"div.rn.{kind} o, a, b;", f"{kind} {kind} -> {kind}", np.divide),
            Row(f"copysign.{kind} o, a, b;", f"{kind} {kind} -> {kind}",
                lambda a, b: np.copysign(b, a)),
        ]  # fmt: skip
        rows += [
            Row(f"testp.{name}.{kind} o, a;", f"{kind} -> pred", test)
            for name, test in (
                ("finite", np.isfinite), ("infinite", np.isinf), ("notanumber", np.isnan),
                ("number", lambda a: ~np.isnan(a)),
                ("normal", lambda a: np.isfinite(a) & (np.abs(a) >= np.finfo(a.dtype).tiny)),
                ("subnormal", lambda a: (a != 0) & (np.abs(a) < np.finfo(a.dtype).tiny)),
            )
        ]  # fmt: skip
    rows += [
        Row(f"{n}.approx.f32 o, a;", "f32 -> f32", lambda a, g=f: g(a.astype("f8")), 2)
        for n, f in approximate.items()
    ]
    return [
        *rows,
        Row("fma.rn.f32 o, a, b, c;", "f32 f32 f32 -> f32", each(fused, "f32")),
        Row("mad.rn.f32 o, a, b, c;", "f32 f32 f32 -> f32", each(fused, "f32")),
        Row("fma.rn.f64 o, a, a, b;", "f64 f64 -> f64",
            each(lambda a, b: np.float64(np.longdouble(a) * a + b), "f64"), 1),
        Row("fma.rn.f16 o, a, b, c;", "f16 f16 f16 -> f16",
            each(lambda a, b, c: np.float16(np.float64(a) * np.float64(b) + np.float64(c)), "f16")),
        Row("fma.rn.ftz.f32 o, a, b, c;", "f32 f32 f32 -> f32",
            lambda a, b, c: flushed(each(fused, "f32")(flushed(a), flushed(b), flushed(c)))),
        Row("fma.rn.ftz.sat.f32 o, a, b, c;", "f32 f32 f32 -> f32",
            lambda a, b, c: flushed(saturated(each(fused, "f32")(*map(flushed, (a, b, c)))))),
        Row("fma.rn.sat.f32 o, a, b, c;", "f32 f32 f32 -> f32",
            lambda a, b, c: saturated(each(fused, "f32")(a, b, c))),
        Row("div.full.f32 o, a, b;", "f32 f32 -> f32", np.divide),
        Row("add.ftz.f32 o, a, b;", "f32 f32 -> f32",
            lambda a, b: flushed(flushed(a) + flushed(b))),
        Row("mul.ftz.f32 o, a, b;", "f32 f32 -> f32",
            lambda a, b: flushed(flushed(a) * flushed(b))),
        Row("add.sat.f32 o, a, b;", "f32 f32 -> f32", lambda a, b: saturated(a + b)),
        Row("setp.lt.ftz.f32 o, a, b;", "f32 f32 -> pred", lambda a, b: flushed(a) < flushed(b)),
        *(Row(f"setp.lt.{name}.{kind} o, a, b, c;", f"{kind} {kind} pred -> pred",
              lambda a, b, c, f=combine: f(a < b, c == 1))
          for kind in ("f32", "s32")
          for name, combine in (("and", np.logical_and), ("or", np.logical_or),
                                ("xor", np.logical_xor))),
        Row("setp.gt.s32 p|o, a, b;", "s32 s32 -> pred", lambda a, b: ~(a > b)),
        Row("setp.hi.u32 o, a, b;", "u32 u32 -> pred", lambda a, b: a > b),
        Row("set.lt.u32.f32 o, a, b;", "f32 f32 -> u32",
            lambda a, b: np.where(a < b, 2**32 - 1, 0)),
        Row("set.ge.f32.s32 o, a, b;", "s32 s32 -> f32", lambda a, b: a >= b),
        Row("selp.f32 o, a, b, c;", "f32 f32 pred -> f32", lambda a, b, c: np.where(c, a, b)),
        Row("selp.b64 o, a, b, c;", "b64 b64 pred -> b64", lambda a, b, c: np.where(c, a, b)),
        Row("slct.f32.s32 o, a, b, c;", "f32 f32 s32 -> f32",
            lambda a, b, c: np.where(c >= 0, a, b)),
        *(Row(f"{name}.f16x2 o, a, b;", "f16x2 f16x2 -> f16x2", halves(f)) for name, f in (
            ("add", np.add), ("sub", np.subtract), ("mul", np.multiply),
            ("min", np.fmin), ("max", np.fmax))),
        Row("fma.rn.f16x2 o, a, b, c;", "f16x2 f16x2 f16x2 -> f16x2",
            halves(lambda a, b, c: a.astype("f8") * b + c)),
    ]  # fmt: skip


def conversion_rows() -> list[Row]:
    rows = [
        Row(f"cvt.{to}.{of} o, a;", f"{of} -> {to}", lambda a, t=to: a.astype(DTYPES[t]))
        for of, to in (
            ("u32", "u64"), ("s32", "s64"), ("u64", "u32"), ("s64", "s32"), ("s16", "s32"),
            ("u16", "u32"), ("s32", "s16"), ("u32", "u16"),
        )
    ]  # fmt: skip
    rows += [
        Row(f"cvt.rn.{to}.{of} o, a;", f"{of} -> {to}", lambda a, t=to: a.astype(DTYPES[t]))
        for of in ("s32", "u32", "s64", "u64")
        for to in ("f32", "f64")
    ]
    rows += [
        Row(f"cvt.{mode}.{to}.{of} o, a;", f"{of} -> {to}", to_integer(to, function))
        for mode, function in (
            ("rzi", math.trunc), ("rmi", math.floor), ("rpi", math.ceil), ("rni", round_half_even),
        )
        for to in ("s32", "u32", "s64")
        for of in ("f32", "f64")
    ]  # fmt: skip
    return [
        *rows,
        Row("cvt.f64.f32 o, a;", "f32 -> f64", lambda a: a.astype("f8")),
        Row("cvt.rn.f32.f64 o, a;", "f64 -> f32", lambda a: a.astype("f4")),
        Row("cvt.f32.f16 o, a;", "f16 -> f32", lambda a: a.astype("f4")),
        Row("cvt.rn.f16.f32 o, a;", "f32 -> f16", lambda a: a.astype("f2")),
        Row("cvt.rn.bf16.f32 o, a;", "f32 -> bf16", lambda a: a.astype(ml_dtypes.bfloat16)),
        Row("cvt.f32.bf16 o, a;", "bf16 -> f32", lambda a: a.astype("f4")),
        Row("cvt.rmi.f32.f32 o, a;", "f32 -> f32", np.floor),
        Row("cvt.rni.f64.f64 o, a;", "f64 -> f64", np.rint),
        Row("cvt.ftz.f32.f32 o, a;", "f32 -> f32", flushed),
        Row("cvt.sat.f32.f32 o, a;", "f32 -> f32",
            lambda a: np.where(np.isnan(a), 0, np.clip(a, 0, 1)) + 0),
        Row("cvt.sat.u16.s32 o, a;", "s32 -> u16", lambda a: np.clip(a, 0, 65535).astype("u2")),
        Row("cvt.rn.f16x2.f32 o, a, b;", "f32 f32 -> f16x2",
            lambda a, b: np.stack([b.astype("f2"), a.astype("f2")], 1).view("u4")[:, 0]),
        Row("cvt.rna.tf32.f32 o, a;", "f32 -> b32",
            lambda a: np.where(np.isfinite(a), (a.view("u4") + 0x1000) & 0xFFFFE000, a.view("u4"))),
        Row("mov.b32 o, a;", "f32 -> b32", lambda a: a.view("u4")),
        Row("mov.f32 o, 0f3FC00000;", "f32 -> f32", lambda a: np.full_like(a, 1.5)),
        Row("mov.f64 o, 0d3FF8000000000000;", "f64 -> f64", lambda a: np.full_like(a, 1.5)),
        Row("mov.s32 o, -5;", "s32 -> s32", lambda a: np.full_like(a, -5)),
        Row("mov.b32 {x0h, x1h}, a; mov.b32 o, {x1h, x0h};", "b32 -> b32",
            lambda a: a << 16 | a >> 16),
        # Registers of an inner scope are others.
        Row("{ .reg .b32 a; mov.b32 a, 7; mov.b32 o, a; } add.u32 o, o, a;", "u32 -> u32",
            lambda a: a + 7),
    ]  # fmt: skip


ROWS = [*integer_rows(), *float_rows(), *conversion_rows()]
HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"


def register_type(kind: str) -> str:
    return "pred" if kind == "pred" else f"b{8 * max(DTYPES[kind].itemsize, 2)}"


def memory_type(kind: str) -> str:
    return f"b{8 * DTYPES[kind].itemsize}"


def kernel(number: int, row: Row) -> str:
    """A row as a kernel that loads a, b and c, and stores o."""
    inputs, output = row.kinds.split(" -> ")
    kinds = inputs.split()
    lines = [f".visible .entry row_{number}("]
    lines.append(",\n".join(f".param .u64 p_{name}" for name in ["o", *"abc"[: len(kinds)]]))
    lines += [")", "{", ".reg .b64 at, base; .reg .b32 i, word, x<2>, y<2>, z<2>;"]
    lines.append(".reg .b16 x0h, x1h; .reg .pred p;")
    lines += [
        f".reg .{register_type(k)} {n};" for n, k in zip("oabc", [output, *kinds], strict=False)
    ]
    lines.append("mov.u32 i, %tid.x;")

    def address(name: str, kind: str) -> str:
        size = DTYPES[kind].itemsize
        return f"ld.param.u64 base, [p_{name}]; mad.wide.u32 at, i, {size}, base;"

    for name, kind in zip("abc", kinds, strict=False):
        lines.append(address(name, kind))
        if kind == "pred":
            lines.append(f"ld.global.u32 word, [at]; setp.ne.u32 {name}, word, 0;")
        else:
            lines.append(f"ld.global.{memory_type(kind)} {name}, [at];")
    lines += [row.code, address("o", output)]
    if output == "pred":
        lines.append("selp.u32 word, 1, 0, o; st.global.u32 [at], word;")
    else:
        lines.append(f"st.global.{memory_type(output)} [at], o;")
    return "\n".join([*lines, "ret;", "}", ""])


if ptxcpu.missing():
    pytest.skip(f"PTX is not run: {ptxcpu.missing()}", allow_module_level=True)


@pytest.fixture(scope="module")
def rows() -> ptxcpu.Module:
    text = HEAD + "".join(kernel(i, row) for i, row in enumerate(ROWS))
    return ptxcpu.Module(text, Path(spi.cache_dir()) / "ptxcpu")


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[f"{r.code} {r.kinds}" for r in ROWS])
def test_an_instruction_computes(rows: ptxcpu.Module, number: int) -> None:
    row = ROWS[number]
    inputs, output = row.kinds.split(" -> ")
    operands = [numbers(kind, seed) for seed, kind in enumerate(inputs.split())]
    dtype = DTYPES[output]
    result = ptxcpu.empty(THREADS, dtype)
    given = [ptxcpu.empty(THREADS, o.dtype) for o in operands]
    for memory, operand in zip(given, operands, strict=True):
        memory[...] = operand
    rows.launch(f"row_{number}", (1,), (THREADS,), [result, *given])
    with np.errstate(all="ignore"):
        expected = np.asarray(row.expected(*operands)).astype(dtype)
    if dtype.kind in "iub":
        np.testing.assert_array_equal(result, expected)
        return
    nan = np.isnan(expected.astype("f8"))
    np.testing.assert_array_equal(np.isnan(result.astype("f8")), nan)
    if row.ulps:
        np.testing.assert_array_max_ulp(result[~nan], expected[~nan], row.ulps)
    else:
        raw = f"u{dtype.itemsize}"  # so that zeros have signs
        np.testing.assert_array_equal(result[~nan].view(raw), expected[~nan].view(raw))


def test_every_instruction_that_computes_has_a_row(rows: ptxcpu.Module) -> None:
    computing = {name for name, f in TABLE.items() if f.__module__ == "ptxcpu.arithmetic"}
    assert computing <= {site.opcode for site in rows.sites}
