"""What the tables say of processors: names behind a virtual machine, clocks of the models."""

from __future__ import annotations

import pytest

from convjit_numba import microarchitectures, targets

OLD = "+avx2,+avx512f"


@pytest.mark.parametrize(
    ("cpu", "features", "name"),
    [
        ("rocketlake", OLD, "rocketlake"),
        ("rocketlake", f"{OLD},+amx-tile,-avx10.1", "sapphirerapids"),
        ("rocketlake", f"{OLD},+amx-tile,+avx10.1", "graniterapids"),
        ("graniterapids", f"{OLD},+amx-tile", "graniterapids"),
        # One that is newer than the table has the row of its instruction set.
        ("oncetherelake", f"{OLD},+amx-tile", "oncetherelake"),
    ],
)
def test_a_guest_is_the_processor_of_its_newest_instructions(
    cpu: str, features: str, name: str
) -> None:
    assert microarchitectures.named(cpu, features) == name


@pytest.mark.parametrize("isa", ["avx512", "avx2", "sse2", "neon", "generic"])
def test_a_cycle_of_the_models_is_that_of_two_products(isa: str) -> None:
    row, clock = targets.machine(isa), targets.model_clock(isa)
    assert clock == pytest.approx(row.clock * targets.lag(isa) / 2)
    shared, memory = targets.streams(isa)
    assert shared > memory > 0.0
    assert targets.tile_cycles(targets.tiles(isa, "float32")[0], isa) > 0.0
