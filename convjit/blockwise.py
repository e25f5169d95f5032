"""Solvers that run whole algorithms as array operations, block by block: what they share.

The algorithms are in :mod:`convjit.algorithms.composed` and ``composed_winograd``; a backend adds
its array library, and what operations of it cost.  What they take does not depend on the library,
but for the dtypes that it multiplies or transforms.  How much workspace they need is decided by the
size of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import prod

from convjit.algorithms import im2col
from convjit.spec import ConvSpec, Direction
from convjit.spi import Config, Feature, Refusal


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """Sizes of a block, as configs.

    Attributes
    ----------
    name : str
        Of the number in a config, such as ``"block_kib"``.
    unit : int
        Bytes.
    sizes : tuple of int
        In units, the default first.
    """

    name: str
    unit: int
    sizes: tuple[int, ...]

    def budget(self, config: Config) -> int:
        """Bytes of a block."""
        return dict(config).get(self.name, self.sizes[0]) * self.unit

    def configs(self, blocks: Callable[[int], Hashable]) -> list[Config]:
        """The sizes that come to different blocks, as ``blocks`` tells from a number of bytes."""
        found: dict[Hashable, Config] = {}
        for size in self.sizes:
            found.setdefault(blocks(size * self.unit), ((self.name, size),))
        return list(found.values())


def refuse_gemm(spec: ConvSpec, dtypes: Sequence[str], library: str) -> Refusal | None:
    """What :class:`~convjit.algorithms.composed.Im2colGemm` does not take.

    Parameters
    ----------
    spec : ConvSpec
    dtypes : sequence of str
        That the library multiplies.
    library : str
        Its name, for people.
    """
    if (refusal := _refuse(spec, dtypes, f"{library} multiplies", "multiply")) is not None:
        return refusal
    if (refusal := _refuse_padding(spec, "im2col pads")) is not None:
        return refusal
    if spec.channels_last and spec.direction is not Direction.FORWARD:
        return Refusal(
            Feature.LAYOUT, f"only forward problems are taken channels-last, not {spec.layout}"
        )
    if spec.strided and (spec.computes_input or not im2col.needs_columns(spec)):
        return Refusal(
            Feature.STRIDED, f"the first operand goes to {library} as it is, so it is contiguous"
        )
    return None


def refuse_fft(spec: ConvSpec, dtypes: Sequence[str], library: str) -> Refusal | None:
    """What :class:`~convjit.algorithms.composed.OverlapSave` does not take."""
    if (refusal := _refuse(spec, dtypes, f"{library} transforms", "transform")) is not None:
        return refusal
    if spec.direction is not Direction.FORWARD:
        return Refusal(Feature.DIRECTION, f"overlap-save is forward, not {spec.direction}")
    if prod(spec.kernel_size) == 1:
        return Refusal(Feature.SIZE, "a kernel of one tap gains nothing from a transform")
    if (refusal := _refuse_padding(spec, "tiles are padded")) is not None:
        return refusal
    if spec.channels_last:
        return Refusal(
            Feature.LAYOUT, f"the spatial axes are transformed innermost, not {spec.layout}"
        )
    return None


def refuse_winograd(spec: ConvSpec, dtypes: Sequence[str], m: int, taps: int) -> Refusal | None:
    """What ``composed_winograd.ComposedWinograd`` for F(m, taps) does not take."""
    if (refusal := _refuse(spec, dtypes, "the transforms are for", "multiply")) is not None:
        return refusal
    if spec.direction is Direction.WEIGHT_GRAD:
        return Refusal(Feature.SIZE, "the weights' gradient has as many taps as outputs")
    if spec.direction is not Direction.FORWARD:
        return Refusal(
            Feature.DIRECTION, f"only the forward direction is taken, not {spec.direction}"
        )
    # Before the taps, of which the phases of a strided problem have fewer.
    if set(spec.stride) != {1}:
        return Refusal(Feature.STRIDE, f"winograd needs stride 1, got {_sizes(spec.stride)}")
    if not set(spec.kernel_size) <= {1, taps} or set(spec.kernel_size) == {1}:
        return Refusal(
            Feature.SIZE,
            f"F({m}, {taps}) takes {taps} taps per axis (or 1 on some), not "
            f"{_sizes(spec.kernel_size)}",
        )
    if set(spec.dilation) != {1}:
        return Refusal(Feature.DILATION, f"winograd needs dilation 1, got {_sizes(spec.dilation)}")
    return _refuse_padding(spec, "tiles are padded")


def _refuse(spec: ConvSpec, dtypes: Sequence[str], takes: str, does: str) -> Refusal | None:
    if spec.is_empty:
        return Refusal(Feature.SIZE, f"an operand is empty, there is nothing to {does}")
    if spec.dtype not in dtypes:
        return Refusal(Feature.DTYPE, f"{takes} {', '.join(dtypes)}; this is {spec.dtype}")
    return None


def _refuse_padding(spec: ConvSpec, padded: str) -> Refusal | None:
    if spec.pad_mode == "zeros":
        return None
    return Refusal(Feature.PAD_MODE, f"{padded} with zeros, not {spec.pad_mode}")


def _sizes(values: tuple[int, ...]) -> str:
    return "x".join(map(str, values))
