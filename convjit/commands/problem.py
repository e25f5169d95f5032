"""A convolution and what may compute it, as the arguments of a command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from convjit.commands.common import UsageError
from convjit.commands.values import (
    activation,
    one_or_more,
    padding,
    positive,
    shape,
    size_in_bytes,
    sizes,
    words,
)

_PROBLEM = (
    "direction", "dtype", "stride", "padding", "dilation", "groups", "pad_mode", "flip", "layout",
    "bias", "activation", "output_padding", "output_size",
)  # fmt: skip
_CHOICE = ("algorithm", "precision", "nonfinite", "workspace_limit", "deterministic")


def add_convolution(parser: argparse.ArgumentParser) -> None:
    """What describes a convolution beside two shapes."""
    group = parser.add_argument_group("the convolution (with shapes)")
    group.add_argument("--direction", help="forward, transposed, input_grad or weight_grad")
    group.add_argument("--dtype", help="of both operands (default: float32)")
    group.add_argument("--stride", type=sizes, metavar="N[,N]", help="(default: 1)")
    group.add_argument("--padding", type=padding, metavar="P", help="1 or 1,2 or 0:1,2:2 or same")
    group.add_argument("--dilation", type=sizes, metavar="N[,N]", help="(default: 1)")
    group.add_argument("--groups", type=positive, metavar="N", help="(default: 1)")
    group.add_argument(
        "--pad-mode", metavar="MODE",
        help="zeros, reflect, replicate, circular or symmetric (default: zeros)",
    )  # fmt: skip
    group.add_argument(
        "--flip", action="store_true", default=None,
        help="the mathematical convolution, not the correlation",
    )  # fmt: skip
    group.add_argument("--layout", help="such as NCHW, NHWC, HW")
    group.add_argument("--bias", action="store_true", default=None, help="add one, per channel")
    group.add_argument(
        "--activation", type=activation, metavar="NAME[,NUMBER]",
        help="relu, or leaky_relu,0.1, or clip,0,6",
    )  # fmt: skip
    group.add_argument(
        "--output-padding", type=sizes, metavar="N[,N]", help="of a transposed convolution"
    )
    group.add_argument("--output-size", type=sizes, metavar="N[,N]", help="of a transposed one")


def add_choice(parser: argparse.ArgumentParser) -> Any:
    """What constrains the choice; returns the group of arguments."""
    group = parser.add_argument_group("the choice")
    group.add_argument(
        "--backend", type=words, metavar="NAME[,NAME]",
        help="such as numba, or a device: cpu or cuda",
    )  # fmt: skip
    group.add_argument("--algorithm", metavar="NAME", help="a family or a solver's id")
    group.add_argument("--precision", help="exact, default or fast")
    group.add_argument("--nonfinite", help="what a NaN may reach: local or spread")
    group.add_argument(
        "--workspace-limit", type=size_in_bytes, metavar="SIZE", help="bytes, or such as 64MiB"
    )
    group.add_argument(
        "--deterministic", action="store_true", default=None,
        help="the same bits in every run, for every number of threads",
    )  # fmt: skip
    return group


def add_input_shape(parser: Any) -> None:
    """What an ONNX model's file may leave open."""
    parser.add_argument(
        "--input-shape", type=shape, metavar="N,C,H,W",
        help="of an ONNX model's input, where the file leaves sizes open",
    )  # fmt: skip


def is_given(options: argparse.Namespace) -> list[str]:
    """The arguments of :func:`add_convolution` that were given, as they are spelt."""
    names = [name for name in _PROBLEM if getattr(options, name) is not None]
    return [f"--{name.replace('_', '-')}" for name in names]


def choice_of(options: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of :func:`add_choice`."""
    return {name: getattr(options, name) for name in _CHOICE} | {
        "backend": one_or_more(options.backend)
    }


def described(
    problem: Sequence[str], options: argparse.Namespace
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], dict[str, Any]]:
    """The two shapes and the keyword arguments that a spec, or shapes and options, mean.

    Raises
    ------
    UsageError
        For anything else.
    """
    from convjit import calls
    from convjit.spec import ConvSpec

    first, *rest = problem
    given = {
        name: getattr(options, name) for name in _PROBLEM if getattr(options, name) is not None
    }
    if len(rest) > 1:
        raise UsageError(f"give a spec, or two shapes, not {len(rest) + 1} of them")
    if rest:
        try:
            shapes = shape(first), shape(rest[0])
        except argparse.ArgumentTypeError as error:
            raise UsageError(str(error)) from error
    else:
        if "_" not in first:
            raise UsageError(f"{first!r} is neither a spec nor followed by the shape of w")
        if given:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(f"a spec says everything about the convolution; leave out {named}")
        shapes, given = calls.described(ConvSpec.parse(first))
    given |= choice_of(options)
    if "dtype" in given:
        given["dtype"] = _dtype(given["dtype"])
    return shapes, given


def _dtype(name: str) -> Any:
    from convjit import precision

    full = precision.DTYPES.get(name, name)
    if full not in precision.SHORT:
        raise UsageError(f"--dtype {name} is not known; choose one of {', '.join(precision.SHORT)}")
    return precision.numpy_dtype(full)
