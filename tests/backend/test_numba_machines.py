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


@pytest.mark.parametrize(
    ("sizes", "cores", "rounds"),
    [
        ([1.0] * 4, 1, 4.0),  # one thread has no other to wait for
        ([1.0] * 4, 2, 2.0),
        ([1.0] * 3, 2, 2.0),
        ([1.0] * 25, 8, 4.0),
        ([4.0, 3.0], 2, 4.0),
        ([4.0, 3.0, 4.0, 3.0], 2, 7.0),  # the thread of the shorter task takes the next long one
        ([2.0, 3.0, 3.0, 3.0], 2, 6.0),
        ([1.0] * 7 + [9.0], 4, 10.0),
        ([5.0] * 4 + [4.0] * 4, 2, 20.0),  # each has a range of its own, of the long or the short
    ],
)
def test_threads_take_the_next_task(sizes: list[float], cores: int, rounds: float) -> None:
    longest = max(sizes)
    end = targets.makespan(len(sizes), sum(sizes), longest, cores, lambda: sizes)
    assert end == pytest.approx(rounds + (targets.LATE * longest if cores > 1 else 0.0))


@pytest.mark.parametrize("tasks", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("cores", [1, 2, 48])
def test_tasks_of_one_size_run_in_rounds(tasks: int, cores: int) -> None:
    end = targets.makespan(tasks, 5.0 * tasks, 5.0, cores)
    late = 5.0 * targets.LATE if cores > 1 else 0.0
    assert end == pytest.approx(5.0 * -(-tasks // cores) + late)
