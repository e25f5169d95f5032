"""Where tiles of outputs lie (:class:`convjit.planes.Tile`), and the patches beneath them."""

from __future__ import annotations

from numba import cuda, uint32


@cuda.jit(device=True, inline="always")
def corner(block, across, tile_rows, tiles_y, tiles_x):
    """(first row, first column) of the tile of a block; tiles of a row are neighbours."""
    tile = uint32(block % (tiles_y * tiles_x))
    tile_y = uint32(tile // tiles_x)
    tile_x = uint32(tile - tile_y * tiles_x)
    return uint32(tile_y * tile_rows), uint32(tile_x * across * uint32(32))


@cuda.jit(device=True, inline="always")
def place(strip, across, lane):
    """(row, column) in a tile of a lane's output of a strip."""
    row = uint32(strip // across)
    return row, uint32((strip - row * across) * uint32(32) + lane)


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
