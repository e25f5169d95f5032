"""Tiles of outputs and the patches of the image beneath them, for kernels that sum tap by tap.

A strip is 32 neighbouring outputs of a row, one for each lane of a warp.  A tile is a number of
strips side by side and below each other: eight rows of one strip suit a picture, one row of eight
a signal.
"""

from __future__ import annotations

from dataclasses import dataclass

from numba import cuda, uint32

from convjit_numba_cuda.problem import Plane

LANES = 32


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of a plane.

    Attributes
    ----------
    across, rows : int
        Strips side by side, and rows of strips.
    patch_height, patch_width : int
        Samples that its outputs read.
    tiles_y, tiles_x : int
        Tiles of the plane.
    """

    across: int
    rows: int
    patch_height: int
    patch_width: int
    tiles_y: int
    tiles_x: int

    @property
    def patch(self) -> int:
        return self.patch_height * self.patch_width

    @property
    def count(self) -> int:
        return self.tiles_y * self.tiles_x


def tile_of(p: Plane, strips: int) -> Tile:
    """``strips`` (a power of two) arranged for the fewest tiles, then for the least patch."""

    def arranged(across: int) -> Tile:
        rows = strips // across
        return Tile(
            across,
            rows,
            (rows - 1) * p.stride[0] + (p.rows - 1) * p.dilation[0] + 1,
            (across * LANES - 1) * p.stride[1] + (p.columns - 1) * p.dilation[1] + 1,
            -(-p.out_height // rows),
            -(-p.out_width // (across * LANES)),
        )

    choices = [arranged(1 << k) for k in range(strips.bit_length())]
    return min(choices, key=lambda tile: (tile.count, tile.patch))


@cuda.jit(device=True, inline="always")
def load_patch(
    shared, to, zero, x, image, warp, warps, lane, channels, height, width, patch_height,
    patch_width, top, left,
):  # fmt: skip
    """Copy a patch of some channels to shared memory, zeros where it lies outside the image.

    Each warp takes rows of the patch, which begins at ``to`` in shared memory.  ``image`` is where
    the first channel begins in x, ``top`` and ``left`` where the patch does (below zero by
    wrapping); ``zero`` is a number of the arrays' type.
    """
    line = uint32(warp)
    while line < uint32(channels * patch_height):
        channel = uint32(line // patch_height)
        y = uint32(top + line - channel * patch_height)
        from_row = uint32(image + (channel * height + y) * width)
        column = uint32(lane)
        while column < patch_width:
            at = uint32(left + column)
            value = zero
            if y < height and at < width:
                value = x[uint32(from_row + at)]
            shared[uint32(to + line * patch_width + column)] = value
            column = uint32(column + uint32(32))
        line = uint32(line + warps)
