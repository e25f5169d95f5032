"""What the assembler makes of kernels: loops, widths and occupancy as they are read."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from convjit import cli, machinecode, registry
from convjit.errors import BackendError
from convjit.machinecode import Instruction, hottest, loops, measure
from convjit.occupancy import MULTIPROCESSORS, occupancy
from convjit.spi import DeviceCode

needs_tools = pytest.mark.skipif(
    machinecode.missing() is not None, reason=str(machinecode.missing())
)

# Sums n products of two arrays, one thread; a loop of four multiply-adds for eight 32-bit loads.
PTX = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry dot(.param .u64 a, .param .u64 b, .param .u32 n, .param .u64 y)
{
    .reg .u64 %p<4>; .reg .u32 %r<3>; .reg .f32 %f<10>; .reg .pred %q; .shared .f32 room[64];
    ld.param.u64 %p1, [a]; ld.param.u64 %p2, [b]; ld.param.u32 %r1, [n]; ld.param.u64 %p3, [y];
    mov.f32 %f0, 0f00000000;
next:
    ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%p1];
    ld.global.f32 %f5, [%p2];
    ld.shared.f32 %f6, [room];
    fma.rn.f32 %f0, %f1, %f5, %f0; fma.rn.f32 %f0, %f2, %f6, %f0;
    fma.rn.f32 %f0, %f3, %f5, %f0; fma.rn.f32 %f0, %f4, %f6, %f0;
    st.shared.f32 [room], %f0;
    add.u64 %p1, %p1, 16; add.u64 %p2, %p2, 4; sub.u32 %r1, %r1, 1;
    setp.ne.u32 %q, %r1, 0;
    @%q bra next;
    st.global.f32 [%p3], %f0;
    ret;
}
"""


def code(*texts: str) -> list[Instruction]:
    return [Instruction(*text.split(" ", 1)) for text in texts]


def test_a_loop_is_without_those_inside_it() -> None:
    listing = code(
        "MOV R1", "LDG R2", "LDS R3", "FFMA R4", "BRA 0x20", "STS R5", "BRA P0,0x10",
        "BRA.U UP0,0x10", "EXIT", "BRA 0x90",
    )  # fmt: skip
    outer, inner = loops(listing)
    assert [one.head for one in outer] == ["LDG", "STS", "BRA", "BRA"]
    assert [one.head for one in inner] == ["LDS", "FFMA", "BRA"]
    assert hottest(listing) == inner
    assert hottest(listing[:3]) == listing[:3]  # straight-line code


def test_the_hottest_loop_is_the_one_that_multiplies_most() -> None:
    unrolled = code(*["FFMA R1"] * 4, "BRA 0x0")
    rest = code("FFMA R1", "BRA 0x50")
    copying = code(*["LDG R1"] * 20, "BRA 0x70")
    assert hottest(unrolled + rest + copying) == unrolled
    products = code("HMMA.16816.F32 R1", "BRA 0x1c0")
    assert hottest(unrolled + rest + copying + products) == products


@pytest.mark.parametrize(
    ("opcode", "width"),
    [("LDG.E", 32), ("LDG.E.128.CONSTANT", 128), ("LDS.64", 64), ("LDG.E.U8", 8), ("LDS.S16", 16),
     ("LDSM.16.M88.4", 128), ("LDSM.16.MT88.2", 64), ("LDSM.16.M88", 32),
     ("LDGSTS.E.BYPASS.128", 128)],
)  # fmt: skip
def test_widths(opcode: str, width: int) -> None:
    assert Instruction(opcode).width == width


def test_a_constant_moved_by_a_multiply_add_is_none() -> None:
    assert Instruction("HFMA2.MMA", "R1,-RZ,RZ,0,0").multiplies is False
    assert Instruction("HFMA2", "R1,R2,R3,R1").multiplies
    assert Instruction("IMAD", "R1,R2,R3,R1").multiplies is False


@pytest.mark.parametrize(
    ("capability", "threads", "registers", "shared", "blocks"),
    [
        ((8, 0), 256, 32, 0, 8),  # all 2048 threads
        ((8, 0), 256, 128, 0, 2),
        ((8, 0), 256, 129, 0, 1),  # registers are given in units of 256 to a warp
        ((8, 0), 128, 255, 0, 2),
        ((8, 0), 128, 32, 47 << 10, 3),  # and 1 KiB of the system's for each
        ((8, 6), 128, 32, 48 << 10, 2),
        ((7, 5), 64, 32, 0, 16),
        ((9, 0), 33, 16, 0, 32),  # two warps
    ],
)
def test_occupancy(
    capability: tuple[int, int], threads: int, registers: int, shared: int, blocks: int
) -> None:
    found, share = occupancy(capability, threads, registers, shared)
    assert found == blocks
    limit = MULTIPROCESSORS[capability]
    assert share == blocks * 32 * -(-threads // 32) / limit.threads


def test_an_unknown_generation_is_told() -> None:
    with pytest.raises(BackendError, match=r"capability 6\.1 is not known; known are 7\.5"):
        occupancy((6, 1), 32, 32, 0)


@needs_tools
def test_a_kernel_is_measured() -> None:
    figures = measure(DeviceCode("dot", PTX, 64, 1024), (8, 0))
    assert figures.architecture == "sm_80"
    assert figures.shared_bytes == 256 + 1024
    assert figures.spilled_bytes == figures.local == 0
    assert 0 < figures.loop < figures.instructions
    assert round(figures.share * figures.loop) % 4 == 0  # however often it is unrolled
    assert 0.2 < figures.share < 0.5
    assert set(figures.shared_loads) == {32}
    assert set(figures.global_loads) == {32, 128}


@needs_tools
def test_spills_are_seen() -> None:
    many = 48
    loads = "".join(f"ld.volatile.global.f32 %x{i}, [%p1+{4 * i}];\n" for i in range(many))
    sums = "".join(f"fma.rn.f32 %f0, %x{i}, %x{many - 1 - i}, %f0;\n" for i in range(many))
    crowded = PTX.replace("next:", f"{loads}next:\n{sums}")
    crowded = crowded.replace(".reg .pred %q;", f".reg .pred %q; .reg .f32 %x<{many}>;")
    crowded = crowded.replace(".param .u64 y)", ".param .u64 y) .maxnreg 24")
    figures = measure(DeviceCode("crowded", crowded, 64), (8, 0))
    assert figures.spilled_bytes > 0
    assert figures.local > 0


@needs_tools
def test_what_is_no_kernel_is_told() -> None:
    with pytest.raises(BackendError, match="ptxas failed"):
        measure(DeviceCode("wrong", PTX.replace("fma.rn", "fmma.rn"), 64), (8, 0))
    with pytest.raises(BackendError, match="has no kernel 'other'"):
        measure(DeviceCode("other", PTX, 64, entry="other"), (8, 0))


@needs_tools
def test_a_file_of_ptx_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dot.ptx"
    path.write_text(PTX)
    assert cli.main(["explain", str(path), "--ptx", "8.0,9.0", "--threads", "64", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(one["kernel"], one["architecture"]) for one in shown] == [
        ("dot", "sm_80"), ("dot", "sm_90"),
    ]  # fmt: skip


def test_a_compiler_that_is_missing_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offer(spec: object, capability: object) -> object:
        raise ModuleNotFoundError("No module named 'cuda'")

    backend = SimpleNamespace(device_code=offer)
    monkeypatch.setattr(machinecode, "missing", lambda: None)
    monkeypatch.setattr(registry, "without_device", lambda name: backend)
    assert cli.main(["explain", "conv_f32_NCHW_n1c1k1g1_i8x8_w3x3", "--ptx"]) == 2
    told = capsys.readouterr().err
    assert "cannot be compiled: No module named 'cuda'; pip install 'convjit[gpu-test]'" in told


@pytest.mark.skipif(machinecode.missing() is None, reason="the tools are here")
def test_without_tools_a_sentence_says_what_to_install(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["explain", "kernel.ptx", "--ptx"]) == 2
    assert "pip install 'convjit[gpu-test]'" in capsys.readouterr().err
