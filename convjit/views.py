"""How a user's data maps to the batched form with channels that the library works with."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from convjit import layout as layouts
from convjit.errors import ConvSpecError
from convjit.parsing import Shape


@dataclass(frozen=True, slots=True)
class DataView:
    """How the user's data operand maps to the batched one with channels.

    Attributes
    ----------
    layout : str
        The batched layout.
    lead : tuple of int
        Axes in front that the batch axis stands for: ``(N,)``, ``()`` when unbatched, or the
        stack of plain images.
    channels : int
        1 for plain data.
    spatial : tuple of int
    plain : bool
    """

    layout: str
    lead: Shape
    channels: int
    spatial: Shape
    plain: bool

    @property
    def batch(self) -> int:
        return prod(self.lead)

    def user_shape(self, channels: int, spatial: Shape) -> Shape:
        """Shape in the user's form of the same kind of data with other sizes."""
        if self.plain:
            return (*self.lead, *spatial)
        return (*self.lead, *layouts.data_shape(self.layout, 0, channels, spatial)[1:])


def view_data(name: str, shape: Shape, w_shape: Shape, layout: str | None) -> DataView:
    """Read a data operand's shape, given the kernel's and the layout asked for."""
    if layout is None:
        if len(shape) == len(w_shape) and len(w_shape) in (1, 2):
            layout = layouts.PLAIN[len(w_shape)]
        elif 3 <= len(w_shape) <= 5:
            layout = layouts.CHANNELS_FIRST[len(w_shape) - 2]
        else:
            raise ConvSpecError(
                f"w has shape {w_shape} and {name} {shape}: w is (K, C/groups, *kernel) with 1 to "
                f"3 spatial axes, or has as many axes as {name} (1 or 2) for a plain signal or "
                'image; for a stack of plain ones say layout="L", "HW" or "DHW".'
            )
    elif not isinstance(layout, str):
        raise TypeError(f"layout={layout!r} is not a name; give one of {layouts.LAYOUTS}.")
    ndim = layouts.spatial_ndim(layout)
    if layouts.is_plain(layout):
        if len(w_shape) != ndim:
            raise ConvSpecError(
                f"layout={layout!r} wants w with {ndim} axes (a plain kernel), w has shape "
                f"{w_shape}; for channels say layout={layouts.CHANNELS_FIRST[ndim]!r}."
            )
        if len(shape) < ndim:
            raise ConvSpecError(
                f"layout={layout!r} wants {name} with at least {ndim} axes, {name} has shape "
                f"{shape}."
            )
        cut = len(shape) - ndim
        return DataView(layouts.CHANNELS_FIRST[ndim], shape[:cut], 1, shape[cut:], True)
    if len(w_shape) != ndim + 2:
        raise ConvSpecError(
            f"layout={layout!r} wants w as (K, C/groups, *kernel) with {ndim + 2} axes, w has "
            f"shape {w_shape}."
        )
    if len(shape) not in (ndim + 1, ndim + 2):
        raise ConvSpecError(
            f"{name} has shape {shape}; beside w {w_shape} it must be {layout} with {ndim + 2} "
            f"axes, or {layout[1:]} (unbatched) with {ndim + 1}."
        )
    lead, rest = (shape[:1], shape[1:]) if len(shape) == ndim + 2 else ((), shape)
    if layouts.is_channels_last(layout):
        return DataView(layout, lead, rest[-1], rest[:-1], False)
    return DataView(layout, lead, rest[0], rest[1:], False)
