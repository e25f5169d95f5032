"""A complex problem as a real one with twice the channels.

With channel ``2c`` the real and ``2c + 1`` the imaginary part of channel c, the weights
``[[re, -im], [im, re]]`` for each pair of channels make the real problem compute the complex one:
four real products for a complex one, as the direct sum does.  The pairs stay inside their group.
Channels-last data is already stored like that, so there a view does.
"""

from __future__ import annotations

from convjit import precision
from convjit.algorithms.fills import Array, Copy
from convjit.spec import ConvSpec, Direction


class ComplexPairs:
    """The real problem of a complex one that does not flip, and how its data is filled.

    Attributes
    ----------
    inner : ConvSpec
    """

    def __init__(self, spec: ConvSpec) -> None:
        real = precision.REAL_OF[spec.dtype]
        self.inner = spec.replace(
            dtype=real, in_channels=2 * spec.in_channels, out_channels=2 * spec.out_channels,
            bias=False, activation=None, strided=False,
        )  # fmt: skip
        self._real, self._complex = map(precision.numpy_dtype, (real, spec.dtype))
        # Forward: y = M x.  TRANSPOSED and INPUT_GRAD read M transposed, and M(w)^T = M(conj(w)):
        # INPUT_GRAD conjugates, TRANSPOSED does not and takes M of the conjugated kernel.
        self._transposes = spec.direction is Direction.TRANSPOSED

    def as_real(self, array: Array) -> Array:
        """Contiguous channels-last data with its pairs of channels."""
        return array.view(self._real)

    def fill_last(self, copy: Copy, destination: Array, source: Array) -> None:
        """Channels-last data that is not contiguous."""
        copy(destination.view(self._complex), source)

    def split(self, copy: Copy, destination: Array, source: Array) -> None:
        """Channels-first data from complex numbers."""
        copy(destination[:, 0::2], source.real)
        copy(destination[:, 1::2], source.imag)

    def join(self, copy: Copy, destination: Array, source: Array) -> None:
        """Channels-first data to complex numbers."""
        copy(destination.real, source[:, 0::2])
        copy(destination.imag, source[:, 1::2])

    def fill_w(self, copy: Copy, destination: Array, source: Array) -> None:
        """The block matrix M of the weights.

        Row 2k makes the real part: re*re - im*im; a conjugated kernel swaps the two signs.
        """
        copy(destination[0::2, 0::2], source.real)
        copy(destination[1::2, 1::2], source.real)
        copy(destination[0::2, 1::2], source.imag)
        copy(destination[1::2, 0::2], source.imag)
        minus = destination[1::2, 0::2] if self._transposes else destination[0::2, 1::2]
        minus *= -1

    def fill_from_w(self, copy: Copy, destination: Array, source: Array) -> None:
        """The weights' gradient from that of the blocks.

        ``conj(x) g = (xr gr + xi gi) + i (xr gi - xi gr)``; rows of the source are g, columns x.
        """
        destination.real = source[0::2, 0::2]
        destination.real += source[1::2, 1::2]
        destination.imag = source[1::2, 0::2]
        destination.imag -= source[0::2, 1::2]
