"""Instructions of tensor cores: products of small matrices, and what loads their fragments."""

from __future__ import annotations

from ptxcpu.forms import Form, translates

_MATRICES = {
    ("m16n8k16", "f32", "f16", "f16", "f32"): ("f16", 16),
    ("m16n8k16", "f32", "bf16", "bf16", "f32"): ("bf16", 16),
    ("m16n8k8", "f32", "tf32", "tf32", "f32"): ("f32", 8),
}


@translates("mma")
def multiply_matrices(form: Form) -> str:
    """Products of a warp's fragments, accumulated in float32 or float64."""
    form.one_of("sync")
    form.flag("aligned")
    form.one_of("row")
    form.one_of("col")
    shape = form.one_of("m16n8k16", "m16n8k8", "m16n8k4", "m8n8k4")
    types = [form.type() for _ in range(4)][::-1]
    if shape.endswith("k4"):
        return _multiply_doubles(form, 16 if shape.startswith("m16") else 8, types)
    known = _MATRICES.get((shape, *types))
    if known is None:
        raise form.refuse()
    kind, depth = known
    form.count(4)
    d, a, b, c = (form.vector(i) for i in range(4))
    arrays = " ".join(
        f"u32 {name}_[] = {{{', '.join(form.value(v, 'u32') for v in values)}}};"
        for name, values in (("a", a), ("b", b), ("c", c))
    )
    results = " ".join(form.write("b32", f"d_[{i}]", name) for i, name in enumerate(d))
    return f"{arrays} u32 d_[4]; multiply_matrices<{kind}, {depth}>(d_, a_, b_, c_); {results}"


def _multiply_doubles(form: Form, rows: int, types: list[str]) -> str:
    """Products of float64; those of 16 rows are two of 8, whose registers follow each other."""
    if types != ["f64"] * 4:
        raise form.refuse()
    form.count(4)
    d, a, (b,), c = (form.vector(i) for i in range(4))
    if not len(d) == len(c) == 2 * len(a) == rows // 4:
        raise form.refuse("number of registers")
    added = f"u64 c_[] = {{{', '.join(form.value(v, 'u64') for v in c)}}};"
    calls = " ".join(
        f"multiply_doubles(d_ + {2 * i}, {form.value(v, 'u64')}, {form.value(b, 'u64')}, "
        f"c_ + {2 * i});"
        for i, v in enumerate(a)
    )
    results = " ".join(form.write("b64", f"d_[{i}]", name) for i, name in enumerate(d))
    return f"{added} u64 d_[{len(d)}]; {calls} {results}"


@translates("ldmatrix")
def load_matrices(form: Form) -> str:
    form.one_of("sync")
    form.flag("aligned")
    form.one_of("m8n8")
    form.type("b16")
    if not form.flag("shared", "shared::cta"):
        raise form.refuse()
    count = int(form.one_of("x1", "x2", "x4")[1:])
    into = form.vector(0)
    if len(into) != count:
        raise form.refuse("number of registers")
    base, offset = form.address(1)
    address = f"{form.names.bits(base)} + ({offset}ll)"
    transposed = str(form.flag("trans")).lower()
    results = " ".join(form.write("b32", f"d_[{i}]", name) for i, name in enumerate(into))
    call = f"load_matrices({count}, {transposed}, {address}, d_, {form.site});"
    return f"u32 d_[{count}]; {call} {results}"
