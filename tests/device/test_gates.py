"""Figures of GPU kernels are no worse than recorded: machine code, and traffic in the emulator."""

from __future__ import annotations

import json
from typing import Any

import gates
import pytest
from emulated import missing

from convjit import cli, machinecode

NO_TOOLS = machinecode.missing() or missing()
REPAIR = "if that is meant: python tests/device/gates.py"

pytestmark = pytest.mark.skipif(NO_TOOLS is not None, reason=str(NO_TOOLS))


def marks(backend: str, *, slow: bool = False) -> list[pytest.MarkDecorator]:
    """Of a comparison: variants are compared under -m exhaustive alone."""
    variants = backend.endswith(gates.VARIANTS)
    return [pytest.mark.slow] * (slow or variants) + [pytest.mark.exhaustive] * variants


@pytest.mark.parametrize(
    ("backend", "capability"),
    [
        pytest.param(b, c, marks=marks(b, slow=c != (8, 0)), id=f"{b}-{c[0]}.{c[1]}")
        for b in gates.BACKENDS
        for c in gates.GENERATIONS
    ],
)
def test_machine_code_is_no_worse(backend: str, capability: tuple[int, int]) -> None:
    then = gates.recorded()[backend][f"sm_{capability[0]}{capability[1]}"]
    now = gates.static(backend, capability)
    assert set(now) == set(then), f"other kernels than recorded; {REPAIR}"
    told = [
        f"{kernel}: {line}"
        for kernel in now
        for line in gates.worse(now[kernel], then[kernel], gates.limit_of(backend, kernel))
    ]
    assert not told, "\n".join([*told, REPAIR])


@pytest.mark.parametrize("backend", [pytest.param(b, marks=marks(b)) for b in gates.BACKENDS])
def test_memory_is_read_in_whole_lines(backend: str) -> None:
    then = gates.recorded()[backend]["counts"]
    now = gates.counted(backend)
    assert set(now) == set(then), f"other kernels than recorded; {REPAIR}"
    assert all("sectors" in figures for figures in now.values())
    told = [
        f"{kernel}: {line}"
        for kernel in now
        for line in gates.costlier(now[kernel], then[kernel], gates.limit_of(backend, kernel))
    ]
    assert not told, "\n".join([*told, REPAIR])


def test_what_is_held_to_less_says_why() -> None:
    for backend, limits in gates.LIMITS.items():
        for kernel, limit in limits.items():
            share = 0.5 if kernel == "tensor_core" else 0.85 if "cupy" in backend else 0.6
            lenient = limit.share < share or limit.wavefronts > 1.1 or limit.sectors > 1.2
            assert lenient == bool(limit.reason), f"{backend}: {kernel}"


def test_every_kernel_is_counted() -> None:
    assert set(gates.recorded()) == set(gates.BACKENDS)
    for backend, kept in gates.recorded().items():
        generations = [set(kernels) for name, kernels in kept.items() if name != "counts"]
        assert len(generations) == len(gates.GENERATIONS)
        assert all(kernels == set(kept["counts"]) for kernels in generations), backend


def test_the_command_shows_a_solvers_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    spec = "conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1x1"
    options = ["--ptx", "8.0", "--backend", "numba_cuda", "--algorithm", "gemm", "--json"]
    assert cli.main(["explain", spec, *options]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["kernel"], shown["solver"]) == ("gemm.float32.64", "numba_cuda.gemm")
    recorded = gates.recorded()["numba_cuda"]["sm_80"]["gemm.float32.64"]
    assert abs(shown["share"] - recorded["share"]) <= gates.SLACK
    assert cli.main(["explain", spec, "--ptx", "8.0", "--backend", "scipy"]) == 2
    assert "has no kernels for GPUs" in capsys.readouterr().err


GOOD: dict[str, Any] = {
    "registers": 64, "spilled_bytes": 0, "local": 0, "shared_bytes": 4096, "blocks": 4,
    "share": 0.7, "shared_loads": {"32": 4, "128": 2}, "global_loads": {"32": 8},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, ""),
        ({"spilled_bytes": 8}, "8 bytes of registers are spilled"),
        ({"local": 2}, "2 instructions reach local memory"),
        ({"share": 0.65}, "65.0% of the hottest loop multiplies, 70.0% recorded"),
        ({"share": 0.59}, "less than 60%"),
        ({"blocks": 3}, "3 blocks fit a multiprocessor"),
        ({"shared_loads": {"32": 12}}, "shared_loads of"),
    ],
)
def test_a_regression_is_told(change: dict[str, Any], told: str) -> None:
    lines = list(gates.worse({**GOOD, **change}, GOOD, gates.Limit(0.6)))
    assert bool(lines) == bool(told)
    assert any(told in line for line in lines) or not told


def test_more_traffic_is_told() -> None:
    then = {"wavefronts": 1.0, "sectors": 1.1}
    assert not list(gates.costlier(then, then, gates.Limit(0.6)))
    (line,) = gates.costlier({"wavefronts": 1.05}, then, gates.Limit(0.6))
    assert line == "1.050 times the fewest wavefronts, 1.0 recorded"
    assert len(list(gates.costlier({"sectors": 1.5}, then, gates.Limit(0.6)))) == 2
