"""The PTX tool: tensor cores' products, and the loads of their fragments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import ptxcpu
import pytest
from ptxcpu.forms import TABLE

from convjit import spi

if ptxcpu.missing():
    pytest.skip(f"PTX is not run: {ptxcpu.missing()}", allow_module_level=True)

ARRAY = np.ndarray[Any, Any]

# Each body begins with the thread's number in i; O and A are where the arrays begin.
HEAD = """
.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 dynamic[];
"""
PROLOGUE = """
.reg .b64 O, A, rd<9>; .reg .b32 i, r<20>;
ld.param.u64 O, [out]; ld.param.u64 A, [given]; mov.u32 i, %tid.x;
cvta.to.global.u64 O, O; cvta.to.global.u64 A, A;
"""
# D = A B + C for a warp's fragments: a lane's registers stand one after the other.
MATRICES = {
    "f16": "m16n8k16.row.col.f32.f16.f16.f32",
    "bf16": "m16n8k16.row.col.f32.bf16.bf16.f32",
    "tf32": "m16n8k8.row.col.f32.tf32.tf32.f32",
}
BODIES = {
    f"mma_{name}": f"""mad.wide.u32 rd0, i, 48, A; mad.wide.u32 rd1, i, 16, O;
        ld.global.v4.b32 {{r0, r1, r2, r3}}, [rd0]; ld.global.v2.b32 {{r4, r5}}, [rd0+16];
        ld.global.v4.b32 {{r6, r7, r8, r9}}, [rd0+32];
        mma.sync.aligned.{kinds}
        {{r10, r11, r12, r13}}, {{r0, r1, r2, r3}}, {{r4, r5}}, {{r6, r7, r8, r9}};
        st.global.v4.b32 [rd1], {{r10, r11, r12, r13}};"""
    for name, kinds in MATRICES.items()
}
# The same of doubles: A, B and C of a lane are 2, 1 and 4 of them, or half of A and C.
BODIES["mma_f64_m16"] = """mad.wide.u32 rd0, i, 56, A; mad.wide.u32 rd1, i, 32, O;
    ld.global.b64 rd2, [rd0]; ld.global.b64 rd3, [rd0+8]; ld.global.b64 rd4, [rd0+16];
    ld.global.b64 rd5, [rd0+24]; ld.global.b64 rd6, [rd0+32]; ld.global.b64 rd7, [rd0+40];
    ld.global.b64 rd8, [rd0+48];
    mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64
    {rd5, rd6, rd7, rd8}, {rd2, rd3}, {rd4}, {rd5, rd6, rd7, rd8};
    st.global.b64 [rd1], rd5; st.global.b64 [rd1+8], rd6; st.global.b64 [rd1+16], rd7;
    st.global.b64 [rd1+24], rd8;"""
BODIES["mma_f64_m8"] = """mad.wide.u32 rd0, i, 32, A; mad.wide.u32 rd1, i, 16, O;
    ld.global.b64 rd2, [rd0]; ld.global.b64 rd3, [rd0+8]; ld.global.b64 rd4, [rd0+16];
    ld.global.b64 rd5, [rd0+24];
    mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {rd4, rd5}, {rd2}, {rd3}, {rd4, rd5};
    st.global.b64 [rd1], rd4; st.global.b64 [rd1+8], rd5;"""
# Rows of 16 bytes are written where their lane says, and read from there.
for number in (1, 2, 4):
    into = ", ".join(f"r{6 + k}" for k in range(number))
    for suffix in ("", ".trans"):
        BODIES[f"ldmatrix_x{number}{suffix[1:]}"] = f"""mov.u32 r5, dynamic;
            mad.wide.u32 rd0, i, 20, A; ld.global.u32 r10, [rd0]; add.u32 r0, r5, r10;
            ld.global.b32 r1, [rd0+4]; ld.global.b32 r2, [rd0+8]; ld.global.b32 r3, [rd0+12];
            ld.global.b32 r4, [rd0+16];
            st.shared.v4.b32 [r0], {{r1, r2, r3, r4}}; bar.sync 0;
            ldmatrix.sync.aligned.m8n8.x{number}{suffix}.shared.b16 {{{into}}}, [r0];
            mad.wide.u32 rd1, i, {4 * number}, O;
            """ + " ".join(f"st.global.b32 [rd1+{4 * k}], r{6 + k};" for k in range(number))
BODIES["rounded"] = """mad.wide.u32 rd0, i, 4, A; ld.global.u32 r0, [rd0];
    cvt.rna.tf32.f32 r1, r0; mad.wide.u32 rd1, i, 4, O; st.global.u32 [rd1], r1;"""
TEXT = HEAD + "".join(
    f".visible .entry {name}(.param .u64 out, .param .u64 given)\n"
    f"{{\n{PROLOGUE}\n{body}\nret;\n}}\n"
    for name, body in BODIES.items()
)


def module(checked: bool) -> ptxcpu.Module:
    return ptxcpu.Module(TEXT, Path(spi.cache_dir()) / "ptxcpu", checked=checked)


@pytest.fixture(scope="module")
def plain() -> ptxcpu.Module:
    return module(checked=False)


@pytest.fixture(scope="module")
def checked() -> ptxcpu.Module:
    return module(checked=True)


def run(kernels: ptxcpu.Module, name: str, words_out: int, given: ARRAY) -> ARRAY:
    out, memory = ptxcpu.empty(words_out, np.uint32), ptxcpu.empty(given.shape, given.dtype)
    memory[...] = given
    kernels.launch(name, (1,), (32,), [out, memory], dynamic_bytes=4096)
    return out


def product(kernels: ptxcpu.Module, name: str, dtype: Any, a: ARRAY, b: ARRAY, c: ARRAY) -> ARRAY:
    """D, put together of its fragments.

    The layout is the PTX ISA's, written anew: lane 4g + t.
    """
    depth = a.shape[1]
    lane = np.arange(32)[:, None]
    g, t = lane // 4, lane % 4
    per = 2 if depth == 16 else 1
    e = np.arange(4 * per)[None]
    rows_a = g + 8 * (e // per % 2)
    columns_a = t * per + e % per + depth // 2 * (e // (2 * per))
    f = np.arange(2 * per)[None]
    rows_b = t * per + f % per + depth // 2 * (f // per)
    four = np.arange(4)[None]
    rows_c, columns_c = g + 8 * (four // 2), 2 * t + four % 2
    given = np.zeros((32, 12), np.uint32)
    for first, last, matrix, rows, columns in (
        (0, 4, a.astype(dtype), rows_a, columns_a),
        (4, 6, b.astype(dtype), rows_b, g + 0 * f),
        (8, 12, c.astype(np.float32), rows_c, columns_c),
    ):
        given[:, first:last] = np.ascontiguousarray(matrix[rows, columns]).view(np.uint32)
    out = run(kernels, f"mma_{name}", 128, given).view(np.float32).reshape(32, 4)
    whole = np.empty((16, 8), np.float32)
    whole[rows_c, columns_c] = out
    return whole


@pytest.mark.parametrize("rows", [8, 16])
def test_products_of_doubles(plain: ptxcpu.Module, rows: int) -> None:
    rng = np.random.default_rng(7)
    a, b, c = (rng.standard_normal(shape) for shape in ((rows, 4), (4, 8), (rows, 8)))
    lane, parts = np.arange(32)[:, None], np.arange(rows // 8)[None]
    g, t = lane // 4, lane % 4
    rows_c = np.repeat(g + 8 * parts, 2, axis=1)
    columns_c = 2 * t + np.tile([0, 1], rows // 8)
    given = np.concatenate([a[g + 8 * parts, t], b[t, g], c[rows_c, columns_c]], axis=1)
    out = run(plain, f"mma_f64_m{rows}", 32 * rows // 2, given.view(np.uint32))
    whole = np.empty((rows, 8))
    whole[rows_c, columns_c] = out.view(np.float64).reshape(32, rows // 4)
    np.testing.assert_allclose(whole, a @ b + c, rtol=0, atol=1e-14)


KINDS = [("f16", np.float16, 16), ("bf16", ml_dtypes.bfloat16, 16), ("tf32", np.float32, 8)]


@pytest.mark.parametrize(("name", "dtype", "depth"), KINDS)
def test_products_of_fragments(plain: ptxcpu.Module, name: str, dtype: Any, depth: int) -> None:
    rng = np.random.default_rng(5)
    a, b, c = (
        rng.integers(-8, 8, s).astype(np.float32) for s in ((16, depth), (depth, 8), (16, 8))
    )
    np.testing.assert_array_equal(product(plain, name, dtype, a, b, c), a @ b + c)


@pytest.mark.parametrize(("name", "dtype", "depth"), KINDS)
def test_sums_are_cut_off(plain: ptxcpu.Module, name: str, dtype: Any, depth: int) -> None:
    # 1 + 2**-24 + ...: each of the small terms lies below the largest one's last place.
    a, b, c = np.zeros((16, depth)), np.zeros((depth, 8)), np.ones((16, 8))
    a[:, : depth // 2], b[: depth // 2] = 2.0**-12, 2.0**-12
    assert (product(plain, name, dtype, a, b, c) == 1).all()
    # As to the negative side, so that a sum comes out nearer to zero.
    assert (product(plain, name, dtype, -a, b, -c) == -1).all()
    # What fills the last place stays; the result is cut off, not rounded.
    a[:, 0], b[0] = 3.0, 1.0
    a[:, 1], b[1] = 2.0**-12, 2.0**-12 * 7
    c[...] = 1.0 + 2.0**-23
    assert (product(plain, name, dtype, a, b, c) == 4).all()


def test_tf32_ignores_the_bits_that_it_has_not(plain: ptxcpu.Module) -> None:
    a, b, c = np.zeros((16, 8)), np.zeros((8, 8)), np.zeros((16, 8))
    a[:, 3], b[3] = 1 + 2.0**-10 + 2.0**-11 + 2.0**-23, 1.0
    assert (product(plain, "tf32", np.float32, a, b, c) == 1 + 2.0**-10).all()


def test_products_of_what_is_not_finite(plain: ptxcpu.Module) -> None:
    a, b, c = np.zeros((16, 16)), np.ones((16, 8)), np.zeros((16, 8))
    a[2, 5], a[3, 9] = np.inf, np.nan
    whole = product(plain, "f16", np.float16, a, b, c)
    assert np.isinf(whole[2]).all()
    assert np.isnan(whole[3]).all()
    assert not whole[[0, 1, 4]].any()


def test_rounding_to_tf32(plain: ptxcpu.Module) -> None:
    given = np.random.default_rng(2).standard_normal(32).astype(np.float32)
    given[:3] = 1 + 2.0**-11, -1 - 2.0**-11, np.inf  # ties go away from zero
    result = run(plain, "rounded", 32, given.view(np.uint32)).view(np.float32)
    mantissa, exponent = np.frexp(given[3:].astype(np.float64))
    expected = np.ldexp(
        np.copysign(np.floor(np.abs(mantissa) * 2**11 + 0.5), mantissa), exponent - 11
    )
    np.testing.assert_array_equal(result[3:], expected)
    assert list(result[:3]) == [1 + 2.0**-10, -1 - 2.0**-10, np.inf]


def rows_at(offsets: ARRAY, matrices: ARRAY) -> ARRAY:
    """What the kernels of ldmatrix are given: of each lane an offset and a row."""
    given = np.zeros((32, 5), np.uint32)
    given[:, 0] = offsets
    given[:, 1:] = matrices.reshape(32, 8).view(np.uint32)
    return given


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_matrices_are_loaded(plain: ptxcpu.Module, number: int, turned: bool) -> None:
    matrices = np.arange(32 * 8, dtype=np.uint16).reshape(4, 8, 8)
    offsets = np.random.default_rng(1).permutation(32) * 16
    name = f"ldmatrix_x{number}{'trans' if turned else ''}"
    out = run(plain, name, 32 * number, rows_at(offsets, matrices))
    source = (matrices.swapaxes(1, 2) if turned else matrices)[:number]
    expected = np.ascontiguousarray(source).reshape(number, 32, 2).swapaxes(0, 1)
    np.testing.assert_array_equal(out.view(np.uint16).reshape(32, number, 2), expected)


# Bytes from one row to the next, and wavefronts of a matrix.
@pytest.mark.parametrize(("pitch", "wavefronts"), [(16, 1), (32, 2), (64, 4), (80, 1), (128, 8)])
@pytest.mark.parametrize("name", ["ldmatrix_x4", "ldmatrix_x2", "ldmatrix_x4trans"])
def test_conflicts_of_rows_are_counted(
    checked: ptxcpu.Module, name: str, pitch: int, wavefronts: int
) -> None:
    checked.take_counts()
    matrices = np.zeros((4, 8, 8), np.uint16)
    run(checked, name, 128, rows_at(np.arange(32) * pitch, matrices))
    (count,) = [
        c for c in checked.take_counts() if c.requests and c.instruction.opcode == "ldmatrix"
    ]
    number = int(name[10])
    assert (count.requests, count.ideal, count.actual) == (1, number, number * wavefronts)


def test_rows_lie_at_16_bytes(checked: ptxcpu.Module) -> None:
    given = rows_at(np.arange(32) * 16, np.zeros((4, 8, 8), np.uint16))
    given[5, 0] = 4096
    with pytest.raises(ptxcpu.Fault, match="out of bounds"):
        run(checked, "ldmatrix_x4", 128, given)
    with pytest.raises(ptxcpu.Fault, match="misaligned"):
        run(checked, "ldmatrix_x4", 128, rows_at(np.arange(32) * 24, np.zeros((4, 8, 8), "u2")))


def test_every_instruction_of_matrices_is_tried(plain: ptxcpu.Module) -> None:
    tried = {site.opcode for site in plain.sites}
    assert {n for n, f in TABLE.items() if f.__module__ == "ptxcpu.matrix"} <= tried
