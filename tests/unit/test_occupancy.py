"""How busy a grid of blocks keeps a GPU: in figures that can be counted on one's fingers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from convjit import gpus
from convjit.occupancy import Block, busy, held
from convjit.spi import Target

FULL = Block(256, registers=128)  # of which a multiprocessor holds two, and one keeps it busy
SMALL = Block(64, registers=128, shared_bytes=40 << 10)  # four, and three keep it busy


def target(multiprocessors: int, capability: tuple[int, int] = (8, 0)) -> Target:
    description = replace(gpus.model(capability), multiprocessors=multiprocessors)
    return gpus.target(description, gpus.figures(description), {})


@pytest.mark.parametrize(
    ("block", "blocks", "share"),
    [
        (FULL, 1, 1 / 8),
        (FULL, 8, 1.0),
        (FULL, 9, 9 / 16),  # one multiprocessor has two
        (FULL, 16, 1.0),
        (FULL, 800, 1.0),
        (FULL, 801, 801 / 808),
        (SMALL, 1, 1 / 8 / 3),  # two warps of the six that a multiprocessor needs
        (SMALL, 8, 1 / 3),
        (SMALL, 16, 2 / 3),
        (SMALL, 24, 1.0),
        (SMALL, 32, 1.0),
        (SMALL, 40, 5 / 7),  # four at once, then one by itself, which takes as long as three
    ],
)
def test_the_busiest_multiprocessor_decides(block: Block, blocks: int, share: float) -> None:
    assert busy(blocks, block, target(8)) == pytest.approx(share)


def test_what_a_generation_holds() -> None:
    assert held(FULL, target(8)) == 2
    assert held(SMALL, target(8)) == 4
    assert held(SMALL, target(8, (8, 6))) == 2  # 100 KiB of shared memory
    assert held(SMALL, target(8, (12, 1))) == 2  # not known: as the one before
    assert held(Block(1024, registers=255), target(8)) == 1  # however large
    unknown = replace(target(8), features={})
    assert held(SMALL, unknown) == 1


def test_matrices_of_float64_have_cores_of_their_own() -> None:
    for capability, times in (((8, 0), 2), ((9, 0), 2), ((8, 9), 1), ((10, 0), 1)):
        found = gpus.figures(gpus.model(capability))
        assert found.matrices64 / found.float64 == pytest.approx(times, rel=0.02)
        other = replace(gpus.model(capability), name="a GPU of the same generation")
        lanes = gpus.figures(other)
        assert lanes.matrices64 / lanes.float64 == times
