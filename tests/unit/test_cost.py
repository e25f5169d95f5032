"""The cost model: a roofline whose every branch is an arithmetic identity."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from convjit import cost
from convjit.precision import Numerics
from convjit.spi import Phase, Target, Work

TARGET = Target(
    fingerprint="test",
    device="cpu",
    description="a machine of round numbers",
    cores=2,
    peak={"float32": 1e11, "float64": 5e10},
    rates={"gemm.f32": 8e10},
    bandwidth={"l1": 4e11, "l2": 2e11, "memory": 1e10},
    caches={"l1": 2**15, "l2": 2**19},
    launch=2e-6,
    call=1e-6,
)
DIRECT = Numerics("direct")


def target(**changes: Any) -> Target:
    return replace(TARGET, **changes)


@pytest.mark.parametrize(
    ("phase", "seconds", "bound"),
    [
        (Phase("gemm", 8e10, "gemm.f32"), 1.0, "compute"),
        (Phase("gemm", 8e10, "gemm.f32", {"memory": 5e9}), 1.0, "compute"),
        (Phase("gemm", 8e10, "gemm.f32", {"memory": 2e10}), 2.0, "memory"),
        (Phase("gemm", 8e10, "gemm.f32", {"memory": 1e10, "l1": 1.2e12}), 3.0, "l1"),
        (Phase("copy", bytes={"copy": 1e10}), 2.0, "copy"),
        # Where half of the cores' time is work, theirs lasts twice as long, and memory's does not.
        (Phase("gemm", 8e10, "gemm.f32", {"memory": 1e10}, busy=0.5), 2.0, "compute"),
        (Phase("gemm", 8e10, "gemm.f32", {"l1": 8e11}, busy=0.5), 4.0, "l1"),
        (Phase("gemm", 4e10, "gemm.f32", {"memory": 2e10}, busy=0.5), 2.0, "memory"),
    ],
)
def test_a_phase_takes_as_long_as_its_slowest_resource(
    phase: Phase, seconds: float, bound: str
) -> None:
    assert cost.phase_seconds(phase, TARGET) == pytest.approx(seconds)
    assert max(cost.phase_bounds(phase, TARGET), key=lambda b: b[1])[0] == bound


def test_a_phase_without_work_takes_no_time() -> None:
    assert cost.phase_seconds(Phase("nothing", bytes={"memory": 0.0}), TARGET) == 0.0


def test_phases_add_and_launches_and_the_call_are_counted() -> None:
    work = Work(
        (Phase("a", 8e10, "gemm.f32"), Phase("b", bytes={"memory": 1e10})), DIRECT, launches=3
    )
    assert cost.seconds(work, TARGET) == pytest.approx(2.0 + 3 * 2e-6 + 1e-6, abs=1e-12)


def test_packing_is_counted_apart() -> None:
    work = Work((), DIRECT, pack=Phase("pack", bytes={"memory": 1e10}))
    assert cost.pack_seconds(work, TARGET) == pytest.approx(1.0 + TARGET.call)
    assert cost.seconds(work, TARGET) == pytest.approx(2e-6 + 1e-6)
    assert cost.pack_seconds(Work((), DIRECT), TARGET) == 0.0


def test_the_fastest_is_first_and_the_first_of_equals() -> None:
    works = [
        ((("name", name),), Work((Phase("gemm", 8e10, "gemm.f32", busy=busy),), DIRECT))
        for name, busy in (("a", 0.5), ("b", 1.0), ("c", 0.25), ("d", 1.0))
    ]
    half = Work((Phase("gemm", 4e10, "gemm.f32", busy=0.5),), DIRECT)  # as long as b, less work
    works.append(((("name", "e"),), half))
    assert [dict(c)["name"] for c in cost.fastest(works, TARGET)] == ["e", "b", "d", "a", "c"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("gemm.f32", 8e10),  # measured
        ("gemm.f64", 0.75 * 5e10),
        ("direct.f32", 0.5 * 1e11),
        ("scipy.fft.f64", 0.1 * 5e10),
        ("winograd.f4x3.f32", 0.5 * 1e11),
        ("direct.c64", 0.5 * 1e11),  # a complex number's parts
        ("direct.float64", 0.5 * 5e10),
        ("direct.bf16", 0.5 * 1e11),  # accumulates in float32
        ("direct.i32", 0.5 * 5e10),  # the slowest that the target states
        ("surprise.f32", cost.DEFAULT_SHARE * 1e11),
        ("", cost.DEFAULT_SHARE * 5e10),
    ],
)
def test_a_missing_rate_is_a_share_of_the_peak_of_its_dtype(key: str, expected: float) -> None:
    assert cost.rate(key, TARGET) == pytest.approx(expected)


def test_a_rate_of_zero_counts_as_missing() -> None:
    assert cost.rate("gemm.f32", target(rates={"gemm.f32": 0.0})) == pytest.approx(7.5e10)


def test_a_target_without_figures_still_gives_finite_times() -> None:
    bare = target(peak={}, rates={}, bandwidth={})
    work = Work((Phase("x", 1e9, "gemm.f32", {"l1": 1e9, "memory": 1e9, "copy": 1e9}),), DIRECT)
    assert 0.0 < cost.seconds(work, bare) < 10.0


@pytest.mark.parametrize(
    ("level", "expected"),
    [("l1", 4e11), ("l3", 1e10), ("copy", 5e9), ("hbm", 1e10)],
)
def test_a_missing_level_is_bounded_by_the_next_one_outwards(level: str, expected: float) -> None:
    assert cost.bandwidth(level, TARGET) == expected


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"cast": 4.0, "elementwise": 3.0, "copy": 2.0}, 4.0),
        ({"elementwise": 3.0, "copy": 2.0}, 3.0),
        ({"copy": 2.0, "memory": 8.0}, 2.0),
        ({"memory": 8.0}, 4.0),
    ],
)
def test_casts_go_like_other_passes_over_arrays(known: dict[str, float], expected: float) -> None:
    assert cost.bandwidth("cast", target(bandwidth=known)) == expected


def test_more_work_never_takes_less_time() -> None:
    base = Phase("x", 1e9, "direct.f32", {"l2": 1e8, "memory": 1e7})
    for more in (
        replace(base, flops=2e9),
        replace(base, bytes={"l2": 2e9, "memory": 1e7}),
        replace(base, bytes={"l2": 1e8, "memory": 3e9}),
    ):
        assert cost.phase_seconds(more, TARGET) >= cost.phase_seconds(base, TARGET)
