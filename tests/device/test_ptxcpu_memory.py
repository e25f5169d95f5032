"""The PTX tool: memory, control flow, warps, and what checked mode finds in a kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ptxcpu
import pytest
from ptxcpu.forms import TABLE
from ptxcpu.translate import translate

from convjit import spi

if ptxcpu.missing():
    pytest.skip(f"PTX is not run: {ptxcpu.missing()}", allow_module_level=True)

ARRAY = np.ndarray[Any, Any]
HEAD = """
.version 8.0
.target sm_80
.address_size 64
.const .align 4 .b32 table[4] = {10, 20, 30, 40};
.global .align 4 .b32 counter[2] = {5};
.extern .shared .align 16 .b8 dynamic[];
"""

# Each body begins with the thread's number in i, and o and a pointing at its own words of the
# arrays `out` and `given` (of 32 bits).  O and A are where these begin.
PROLOGUE = """
.reg .b64 o, a, O, A, rd<9>; .reg .b32 i, n, r<20>; .reg .b16 h<9>; .reg .pred p, q;
ld.param.u64 O, [out]; ld.param.u64 A, [given]; mov.u32 i, %tid.x;
cvta.to.global.u64 O, O; mad.wide.u32 o, i, 4, O; mad.wide.u32 a, i, 4, A;
"""

BODIES = {
    "vectors": """and.b32 r0, i, 7; mad.wide.u32 rd0, r0, 16, A; mad.wide.u32 rd1, r0, 16, O;
        ld.global.nc.v4.f32 {r1, r2, r3, r4}, [rd0]; ld.global.v2.b32 {_, r5}, [rd0+8];
        setp.ne.u32 p, r4, r5; @p trap; st.global.v4.b32 [rd1], {r4, r3, r2, r1};""",
    "narrow": """ld.global.s8 r0, [a]; ld.global.u8 r1, [a+1]; ld.global.s16 r2, [a+2];
        add.s32 r0, r0, r1; add.s32 r0, r0, r2; st.global.u32 [o], r0; st.global.u8 [o+3], 7;""",
    "constants": """and.b32 r0, i, 3; mul.wide.u32 rd0, r0, 4; mov.u64 rd1, table;
        add.u64 rd0, rd0, rd1;
        ld.const.u32 r1, [rd0]; ld.const.u32 r2, [table+4]; ld.global.u32 r3, [counter];
        add.u32 r1, r1, r2; add.u32 r1, r1, r3; st.global.u32 [o], r1;""",
    "reverse": """.shared .align 4 .b8 words[256]; mov.u64 rd1, words;
        shl.b32 r0, i, 2; cvt.u64.u32 rd0, r0; add.u64 rd0, rd0, rd1;
        ld.global.u32 r1, [a]; st.shared.u32 [rd0], r1; bar.sync 0;
        sub.u32 r2, 63, i; mad.wide.u32 rd2, r2, 4, rd1; ld.shared.u32 r3, [rd2];
        st.global.u32 [o], r3;""",
    "generic": """.shared .align 4 .b8 words[256]; mov.u64 rd1, words; cvta.shared.u64 rd2, rd1;
        mad.wide.u32 rd0, i, 4, rd2; ld.u32 r1, [a]; st.u32 [rd0], r1; cvta.to.shared.u64 rd3, rd0;
        ld.shared.u32 r2, [rd3]; add.u32 r2, r2, 1; st.u32 [o], r2;""",
    "dynamic": """mov.u32 r5, dynamic; mad.lo.u32 r0, i, 4, r5; ld.global.u32 r1, [a];
        st.shared.u32 [r0], r1;
        barrier.sync 0; xor.b32 r2, i, 1; mad.lo.u32 r2, r2, 4, r5; ld.shared.u32 r3, [r2];
        st.global.u32 [o], r3;""",
    "local": """.local .align 4 .b8 depot[16]; mov.u64 rd0, depot; and.b32 r0, i, 3;
        mad.wide.u32 rd1, r0, 4, rd0;
        st.local.v4.u32 [rd0], {i, i, i, i}; st.local.u32 [rd1], 9; ld.local.u32 r1, [depot+4];
        st.global.u32 [o], r1;""",
    "loop": """mov.u32 r0, 0; mov.u32 n, 0;
        again: setp.ge.u32 p, n, i; @p bra done; add.u32 n, n, 1; add.u32 r0, r0, n; bra.uni again;
        done: setp.lt.u32 q, i, 32; @!q exit; st.global.u32 [o], r0; ret;""",
    "reductions": """setp.lt.u32 p, i, 10; bar.red.popc.u32 r0, 0, p; bar.red.or.pred q, 0, p;
        selp.u32 r1, 100, 0, q; bar.red.and.pred q, 0, p; selp.u32 r2, 1000, 0, q;
        add.u32 r0, r0, r1; add.u32 r0, r0, r2; st.global.u32 [o], r0;""",
    "shuffles": """ld.global.u32 r9, [a]; shfl.sync.up.b32 r1|p, r9, 1, 0, -1;
        shfl.sync.down.b32 r2|q, r9, 2, 31, -1;
        shfl.sync.bfly.b32 r3, r9, 5, 31, -1; shfl.sync.idx.b32 r4, r9, 3, 0x181f, -1;
        selp.u32 r5, 1, 0, p; selp.u32 r6, 1, 0, q; mul.lo.u32 r1, r1, 3; mul.lo.u32 r2, r2, 5;
        mul.lo.u32 r3, r3, 7;
        mul.lo.u32 r4, r4, 11; add.u32 r1, r1, r2; add.u32 r1, r1, r3; add.u32 r1, r1, r4;
        add.u32 r1, r1, r5;
        mad.lo.u32 r1, r6, 2, r1; st.global.u32 [o], r1;""",
    "votes": """setp.lt.u32 p, i, 40; vote.sync.ballot.b32 r1, p, -1;
        vote.sync.any.pred q, p, -1; selp.u32 r2, 1, 0, q;
        vote.sync.all.pred q, p, -1; selp.u32 r3, 2, 0, q; vote.sync.uni.pred q, p, -1;
        selp.u32 r4, 4, 0, q;
        bar.warp.sync -1; add.u32 r1, r1, r2; add.u32 r1, r1, r3; add.u32 r1, r1, r4;
        st.global.u32 [o], r1;""",
    "atomics": """.shared .align 4 .b8 word[4]; mov.u32 r5, word; setp.eq.u32 p, i, 0;
        @p st.shared.u32 [r5], 0;
        bar.sync 0; atom.shared.add.u32 r0, [r5], 2; bar.sync 0; ld.shared.u32 r6, [r5];
        atom.global.add.u32 r1, [O], 1;
        red.global.max.u32 [O+4], i; red.global.min.s32 [O+8], -3; red.global.and.b32 [O+12], 6;
        red.global.or.b32 [O+16], i; red.global.xor.b32 [O+20], 1;
        atom.global.inc.u32 r2, [O+24], 9;
        atom.global.dec.u32 r2, [O+28], 9; atom.exch.b32 r3, [O+32], i;
        atom.global.cas.b32 r4, [O+36], i, 99;
        red.global.add.f32 [O+40], 0f3F800000; atom.global.add.u32 r7, [O+44], r6;""",
    "copies": """mad.lo.u32 r0, i, 16, 0; mov.u32 r5, dynamic; add.u32 r0, r0, r5;
        and.b32 r1, i, 15;
        mad.wide.u32 rd0, r1, 16, A; st.shared.u32 [r0], 77;
        cp.async.cg.shared.global [r0], [rd0], 16; cp.async.commit_group;
        ld.shared.u32 r2, [r0]; setp.ne.u32 p, r2, 77; @p trap;
        cp.async.ca.shared.global [r0+4], [rd0], 4, 0; cp.async.commit_group; cp.async.wait_group 1;
        ld.shared.u32 r3, [r0+4]; cp.async.wait_all; ld.shared.u32 r4, [r0+4];
        setp.ne.u32 p, r4, 0; @p trap;
        st.global.u32 [o], r3;""",
    "silent": """prefetch.global.L2 [a]; membar.gl; fence.acq_rel.gpu; nanosleep.u32 20;
        st.global.u32 [o], i;""",
    "numbers": """mov.u32 r0, %laneid; mov.u32 r1, %ntid.x; mov.u32 r2, %warpid;
        mov.u32 r3, %lanemask_lt;
        mov.u32 r4, %nctaid.x; add.u32 r0, r0, r1; mad.lo.u32 r0, r2, 1000, r0;
        add.u32 r0, r0, r3; add.u32 r0, r0, r4;
        st.global.u32 [o], r0;""",
}  # fmt: skip

# What checked mode must find, and what it says.
WORDS = ".shared .align 4 .b8 words[256]; mov.u32 r5, words; mad.lo.u32 r0, i, 4, r5;"
FAULTS = {
    "race read": (
        f"{WORDS} st.shared.u32 [r0], i; setp.ge.u32 p, i, 32; @p ld.shared.u32 r2, [r0+-128];",
        "shared memory race: read of byte 0 after a write by thread 0 .*thread 32",
    ),
    "race write": (
        f"{WORDS} st.shared.u32 [r5], i;",
        "race: write of byte 0 after a write by thread 0",
    ),
    "race overwrite": (
        f"{WORDS} st.shared.u32 [r0], i; bar.sync 0; ld.shared.u32 r1, [r5+8]; "
        f"st.shared.u32 [r0], 1;",
        "race: write of byte 8 after a read by thread",
    ),
    "warps are not in order": (
        f"{WORDS} st.shared.u32 [r0], i; bar.warp.sync -1; "
        "setp.ge.u32 p, i, 32; @p ld.shared.u32 r2, [r0+-128];",
        "race: read of byte 0 after a write by thread 0",
    ),
    "uninitialised": (f"{WORDS} ld.shared.u32 r1, [r0];", "read of uninitialised shared memory"),
    "beyond shared": (
        f"{WORDS} st.shared.u32 [r0+8], i;",
        "shared memory access out of bounds .*thread 62",
    ),
    "misaligned shared": (f"{WORDS} st.shared.u32 [r0+2], i;", "misaligned access of shared"),
    "load beyond": ("ld.global.u32 r0, [a+4];", "global load out of bounds .*thread 63"),
    "load before": ("ld.global.u32 r0, [a+-4];", "global load out of bounds .*thread 0"),
    "store beyond": ("st.global.u32 [o+4], i;", "global store out of bounds .*thread 63"),
    "misaligned": ("ld.global.u16 h0, [a+1];", "misaligned access of global"),
    "misaligned vector": ("ld.global.v2.u32 {r0, r1}, [a];", "misaligned access of global"),
    "local": (
        ".local .align 4 .b8 depot[16]; mov.u64 rd0, depot; st.local.u32 [rd0+16], i;",
        "local memory access out",
    ),
    "some do not wait": (
        "setp.lt.u32 p, i, 7; @p bar.sync 0;",
        "divergent barrier: 7 of 64 threads",
    ),
    "different barriers": (
        "setp.lt.u32 p, i, 32; @p bar.sync 0; @!p bar.sync 0;",
        "divergent barrier: threads 0 and 32",
    ),
    "division": ("div.u32 r0, i, i;", "division by zero"),
    "shuffle": (
        "setp.lt.u32 p, i, 16; @p shfl.sync.idx.b32 r0, i, 20, 31, 0xffff;",
        "a lane outside its mask",
    ),
    "not a member": ("bar.warp.sync 1;", "a mask that it is not in"),
    "copy not waited for": (
        f"{WORDS} cp.async.ca.shared.global [r0], [a], 4; "
        "cp.async.commit_group; ld.shared.u32 r1, [r0];",
        "uninitialised",
    ),
    "atomic beyond": ("atom.global.add.u32 r0, [o+4], 1;", "out of bounds"),
}
# What looks like a fault and is none.
FINE = {
    "a warp exchanges": f"""{WORDS} st.shared.u32 [r0], i; bar.warp.sync -1; xor.b32 r1, i, 1;
        mad.lo.u32 r1, r1, 4, r5;
        ld.shared.u32 r2, [r1]; bar.warp.sync -1; st.shared.u32 [r0], r2; st.global.u32 [o], r2;""",
    "many read": f"{WORDS} st.shared.u32 [r0], i; bar.sync 0; ld.shared.u32 r1, [r5+4]; "
    "bar.sync 0; st.shared.u32 [r0], r1;",
    "others end first": "setp.lt.u32 p, i, 7; @!p ret; shfl.sync.idx.b32 r0, i, 3, 31, 0x7f; "
    "st.global.u32 [o], r0;",
    "strides": f"""{WORDS} and.b32 r1, i, 31; mad.lo.u32 r1, r1, 8, r5; setp.lt.u32 p, i, 32;
        @p st.shared.u32 [r1], i;
        mad.wide.u32 rd0, i, 32, A; ld.global.u32 r2, [rd0]; ld.global.u32 r3, [a];""",
}


def module_text(bodies: dict[str, str]) -> str:
    """Kernels by the names of their bodies, blanks as underscores."""
    parts = [
        f".visible .entry {name.replace(' ', '_')}(.param .u64 out, .param .u64 given)\n"
        f"{{\n{PROLOGUE}\n{body}\nret;\n}}\n"
        for name, body in bodies.items()
    ]
    return HEAD + "".join(parts)


CHECKED = {**{name: body for name, (body, _) in FAULTS.items()}, **FINE}


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(spi.cache_dir()) / "ptxcpu"


@pytest.fixture(scope="module")
def plain(folder: Path) -> ptxcpu.Module:
    return ptxcpu.Module(module_text(BODIES), folder)


@pytest.fixture(scope="module")
def checked(folder: Path) -> ptxcpu.Module:
    return ptxcpu.Module(module_text({**CHECKED, "copies": BODIES["copies"]}), folder, checked=True)


def arrays(words_out: int, given: ARRAY) -> tuple[ARRAY, ARRAY]:
    out, memory = ptxcpu.empty(words_out, np.uint32), ptxcpu.empty(given.shape, given.dtype)
    out[...] = 0
    memory[...] = given
    return out, memory


I = np.arange(64, dtype=np.uint32)  # noqa: E741
LANE = I % 32


def shuffled(a: ARRAY) -> ARRAY:
    warp = I - LANE
    up = np.where(LANE >= 1, a[np.maximum(I, 1) - 1], a)
    down = np.where(LANE + 2 <= 31, a[np.minimum(I + 2, 63)], a)
    told = (LANE >= 1) + 2 * (LANE + 2 <= 31)
    return up * 3 + down * 5 + a[warp + (LANE ^ 5)] * 7 + a[I // 8 * 8 + 3] * 11 + told


EXPECTED: dict[str, Callable[[ARRAY], ARRAY]] = {
    "vectors": lambda a: a[:32].reshape(8, 4)[:, ::-1].reshape(-1),
    "narrow": lambda a: (
        (a.view("i1")[::4].astype("i4") + a.view("u1")[1::4] + a.view("i2")[1::2]).view("u4")
        & 0xFFFFFF
    ) | 7 << 24,
    "constants": lambda a: 10 * (I % 4 + 1) + 25,
    "reverse": lambda a: a[::-1],
    "generic": lambda a: a + 1,
    "dynamic": lambda a: a[I ^ 1],
    "local": lambda a: np.where(I % 4 == 1, 9, I),
    "loop": lambda a: np.where(I < 32, I * (I + 1) // 2, 0),
    "reductions": lambda a: np.full(64, 110),
    "shuffles": shuffled,
    "votes": lambda a: np.where(I < 32, 2**32 - 1 + 7, 255 + 1) % 2**32,
    "copies": lambda a: np.full(64, 0),
    "silent": lambda a: I,
    "numbers": lambda a: LANE + 64 + 1000 * (I // 32) + 2**LANE.astype("u8") - 1 + 1,
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_a_kernel_computes(plain: ptxcpu.Module, name: str) -> None:
    rng = np.random.default_rng(3)
    out, given = arrays(64, rng.integers(0, 2**32, 64, np.uint32))
    expected = EXPECTED[name](given.copy())
    if name == "copies":
        expected = given.reshape(16, 4)[I % 16, 1]
    plain.launch(name, (1,), (64,), [out, given], dynamic_bytes=1024)
    np.testing.assert_array_equal(out[: expected.size], expected.astype(np.uint32))


def test_atomics(plain: ptxcpu.Module) -> None:
    out, given = arrays(64, I)
    out[:10] = (0, 3, 0, 7, 0, 0, 0, 0, 0, 5)
    plain.launch("atomics", (1,), (64,), [out, given])
    assert out[0] == 64
    assert out[1] == 63
    assert out[2] == 2**32 - 3
    assert out[3] == 6
    assert out[4] == 63
    assert out[5] == 0
    assert out[6] == 64 % 10
    assert out[7] == 6  # 0, 9, 8, ..., 0, 9, ...
    assert out[8] == 63
    assert out[9] == 99
    assert out[10:11].view(np.float32)[0] == 64
    assert out[11] == 64 * 128


def test_blocks_of_a_grid(plain: ptxcpu.Module) -> None:
    out, given = arrays(64, I)
    plain.launch("atomics", (2, 2), (8, 2, 4), [out, given])
    assert out[0] == 4 * 64


@pytest.mark.parametrize("name", FAULTS)
def test_checked_mode_finds(checked: ptxcpu.Module, name: str) -> None:
    out, given = arrays(64, I)
    with pytest.raises(ptxcpu.Fault, match=FAULTS[name][1]):
        checked.launch(name.replace(" ", "_"), (1,), (64,), [out, given])


@pytest.mark.parametrize("name", [*FINE, "copies"])
def test_checked_mode_lets_pass(checked: ptxcpu.Module, name: str) -> None:
    out, given = arrays(64, np.zeros(64 * 8, np.uint32))
    checked.launch(name.replace(" ", "_"), (1,), (64,), [out, given], dynamic_bytes=1024)


def test_conflicts_and_sectors_are_counted(checked: ptxcpu.Module) -> None:
    out, given = arrays(64, np.zeros(64 * 8, np.uint32))
    checked.take_counts()
    checked.launch("strides", (3,), (64,), [out, given])
    told = {str(c.instruction): c for c in checked.take_counts() if c.requests}
    shared = told["@p st.shared.u32 [r1], i"]
    assert (shared.accesses, shared.requests, shared.ideal, shared.actual) == (96, 3, 3, 6)
    wide = told["ld.global.u32 r2, [rd0]"]
    assert (wide.accesses, wide.requests, wide.ideal, wide.actual) == (192, 6, 24, 192)
    close = told["ld.global.u32 r3, [a]"]
    assert (close.ideal, close.actual) == (24, 24)


def test_a_launch_is_held_to_the_kernel(plain: ptxcpu.Module) -> None:
    out, given = arrays(64, I)
    with pytest.raises(TypeError, match="has 2 parameters, got 1"):
        plain.launch("silent", (1,), (64,), [out])
    with pytest.raises(TypeError, match="given has 8 bytes, got 4"):
        plain.launch("silent", (1,), (64,), [out, np.uint32(1)])
    with pytest.raises(ptxcpu.Fault, match="at most 1024 threads, not 2048"):
        plain.launch("silent", (1,), (2048,), [out, given])


def test_every_instruction_that_moves_or_steers_is_tried(
    plain: ptxcpu.Module, checked: ptxcpu.Module
) -> None:
    tried = {site.opcode for module in (plain, checked) for site in module.sites}
    others = ("ptxcpu.arithmetic", "ptxcpu.matrix")
    missing = {n for n, f in TABLE.items() if f.__module__ not in others} - tried
    assert missing == {"ldu", "prefetchu"}  # as ld and prefetch


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("wgmma.fence.sync.aligned;", "does not know the instruction"),
        ("call (r0), function, (r1);", "does not know the instruction"),
        ("activemask.b32 r0;", "does not know the instruction"),
        ("add.rz.f32 r0, r0, r1;", "rounds other than to nearest"),
        ("add.s32.surprise r0, r0, r1;", "has no type"),
        ("add.surprise.s32 r0, r0, r1;", "modifier .surprise"),
        ("add.s32 r0, r0;", "2 operands"),
        ("mul.s32 r0, r0, r1;", "has none of lo, hi, wide"),
        ("ld.shared::cluster.u32 r0, [r1];", "modifier .shared::cluster"),
        ("bar.sync 1, 64;", "2 operands"),
        ("bar.sync 1;", "only barrier 0"),
        ("cvt.rz.f32.f64 r0, rd0;", "rounds other than"),
        ("mov.u32 r0, %clock;", "operand '%clock'"),
        ("mov.u32 nowhere, 3;", "destination 'nowhere'"),
        ("ld.param.u32 r0, [nothing];", "KeyError 'nothing'"),
        (".surprise .b8 x[3];", "statement"),
        ("cp.async.bulk.shared.global [r0], [rd0], 16;", "has none of ca, cg"),
        ("mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {r0}, {r0}, {r0}, {r0};", "mma"),
        ("st.const.u32 [rd0], r0;", "st.const"),
    ],
)  # fmt: skip
def test_what_is_not_understood_raises(statement: str, said: str) -> None:
    with pytest.raises(ptxcpu.Unsupported, match=said):
        translate(module_text({"kernel": statement}))


def test_functions_are_refused() -> None:
    with pytest.raises(ptxcpu.Unsupported, match="inline them"):
        translate(HEAD + ".visible .func f(.param .b64 x)\n{\nret;\n}\n")
    assert not translate(HEAD + ".extern .func (.param .b32 r) vprintf(.param .b64 x);").entries
