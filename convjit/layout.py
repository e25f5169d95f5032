"""Memory layouts of the data operands.

The weights keep one order, ``(K, C/groups, *kernel)``; the two data operands (input and output)
are stored channels-first (``NCL``, ``NCHW``, ``NCDHW``) or channels-last (``NLC``, ``NHWC``,
``NDHWC``).  ``L``, ``HW`` and ``DHW`` name a stack of plain signals, images or volumes, which has
neither a batch axis of its own nor channels.
"""

from __future__ import annotations

from convjit.errors import ConvSpecError

CHANNELS_FIRST = {1: "NCL", 2: "NCHW", 3: "NCDHW"}
CHANNELS_LAST = {1: "NLC", 2: "NHWC", 3: "NDHWC"}
PLAIN = {1: "L", 2: "HW", 3: "DHW"}
LAYOUTS = (*CHANNELS_FIRST.values(), *CHANNELS_LAST.values(), *PLAIN.values())

_SPATIAL_NDIM = {
    name: ndim for names in (CHANNELS_FIRST, CHANNELS_LAST, PLAIN) for ndim, name in names.items()
}


def spatial_ndim(layout: str) -> int:
    """Number of spatial axes (1 to 3) that a layout's name states."""
    try:
        return _SPATIAL_NDIM[layout]
    except (KeyError, TypeError):
        raise ConvSpecError(
            f"layout={layout!r} is not known; choose one of {', '.join(LAYOUTS)}."
        ) from None


def is_channels_last(layout: str) -> bool:
    """Whether the channel axis of a layout is its last axis."""
    return layout in CHANNELS_LAST.values()


def is_plain(layout: str) -> bool:
    """Whether a layout has neither batch nor channels."""
    return layout in PLAIN.values()


def data_shape(layout: str, batch: int, channels: int, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a data operand: ``(N, C, *spatial)`` or ``(N, *spatial, C)``."""
    if is_channels_last(layout):
        return (batch, *spatial, channels)
    return (batch, channels, *spatial)


def channel_axis(layout: str, ndim: int) -> int:
    """Index of the channel axis in a batched data operand with ``ndim`` spatial axes."""
    return ndim + 1 if is_channels_last(layout) else 1


def spatial_axes(layout: str, ndim: int) -> tuple[int, ...]:
    """Indices of the spatial axes in a batched data operand with ``ndim`` spatial axes."""
    start = 1 if is_channels_last(layout) else 2
    return tuple(range(start, start + ndim))


def to_channels_last(ndim: int) -> tuple[int, ...]:
    """The permutation that takes channels-first axes to channels-last ones."""
    return (0, *range(2, ndim + 2), 1)


def to_channels_first(ndim: int) -> tuple[int, ...]:
    """The permutation that takes channels-last axes to channels-first ones."""
    return (0, ndim + 1, *range(1, ndim + 1))
