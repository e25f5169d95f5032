"""Sizes, paddings and index ranges along one spatial axis.

One axis of a forward convolution maps an input of ``n`` samples to ``m`` outputs through a kernel
of ``k`` taps: output ``o`` reads input position ``o * stride - lo + t * dilation`` for tap ``t``.
Everything here follows from that line.
"""

from __future__ import annotations

from typing import NamedTuple

PAD_MODES = ("zeros", "reflect", "replicate", "circular", "symmetric")


def extent(kernel: int, dilation: int) -> int:
    """Input samples that a dilated kernel spans: ``dilation * (kernel - 1) + 1``."""
    return dilation * (kernel - 1) + 1


def output_size(n: int, kernel: int, stride: int, lo: int, hi: int, dilation: int) -> int:
    """Outputs of a forward convolution; negative or zero when the kernel does not fit."""
    return (n + lo + hi - extent(kernel, dilation)) // stride + 1


def transposed_size(
    n: int, kernel: int, stride: int, lo: int, hi: int, dilation: int, extra: int = 0
) -> int:
    """Outputs of a transposed convolution of ``n`` inputs, ``extra`` being output_padding."""
    return (n - 1) * stride - lo - hi + extent(kernel, dilation) + extra


def same_padding(
    n: int, kernel: int, stride: int, dilation: int, *, lower: bool = False
) -> tuple[int, int]:
    """(lo, hi) that give ``ceil(n / stride)`` outputs, the odd element at the end.

    ``lower=True`` puts the odd element at the start (ONNX's ``SAME_LOWER``, SciPy's ``same``).
    """
    outputs = -(-n // stride)
    total = max((outputs - 1) * stride + extent(kernel, dilation) - n, 0)
    small, large = total // 2, total - total // 2
    return (large, small) if lower else (small, large)


class Range(NamedTuple):
    """Half-open range of indices, empty when ``stop <= start``."""

    start: int
    stop: int

    def __len__(self) -> int:
        return max(0, self.stop - self.start)


def outputs_of_tap(tap: int, n: int, outputs: int, stride: int, lo: int, dilation: int) -> Range:
    """The outputs for which a tap reads inside the image (the others read padding).

    ``0 <= o * stride - lo + tap * dilation < n`` solved for ``o`` and clipped to the outputs.
    """
    shift = lo - tap * dilation
    start = max(0, -(-shift // stride))
    stop = min(outputs, -(-(n + shift) // stride))
    return Range(start, max(start, stop))


def inside_taps(n: int, outputs: int, kernel: int, stride: int, lo: int, dilation: int) -> int:
    """How many (output, tap) pairs of one axis read inside the image."""
    return sum(len(outputs_of_tap(t, n, outputs, stride, lo, dilation)) for t in range(kernel))


def border_limit(pad_mode: str, n: int) -> int | None:
    """Largest padding that a mode allows beside ``n`` samples (None: no limit)."""
    if pad_mode == "reflect":
        return max(n - 1, 0)
    if pad_mode in ("circular", "symmetric"):
        return n
    if pad_mode == "replicate" and n == 0:
        return 0
    return None


def source_index(position: int, n: int, pad_mode: str) -> int | None:
    """The sample that stands at a position of the padded axis (None: a zero).

    ``position`` counts from the first sample of the image and may be negative or beyond ``n``
    by at most :func:`border_limit`.
    """
    if 0 <= position < n:
        return position
    if pad_mode == "zeros":
        return None
    if pad_mode == "replicate":
        return min(max(position, 0), n - 1)
    if pad_mode == "circular":
        return position % n
    if pad_mode == "reflect":
        return -position if position < 0 else 2 * (n - 1) - position
    if pad_mode == "symmetric":
        return -1 - position if position < 0 else 2 * n - 1 - position
    raise ValueError(f"pad_mode={pad_mode!r} is not one of {', '.join(PAD_MODES)}")
