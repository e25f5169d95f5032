"""convjit: the fastest correct convolution that the machine can do, from one call.

``convjit.conv(x, w)`` chooses among algorithms and backends, says why
(:func:`convjit.explain`), and lets anyone add a better one (:mod:`convjit.spi`).

Names are imported when they are first used: ``import convjit`` itself costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convjit._version import __version__

if TYPE_CHECKING:
    from convjit.api import (
        conv,
        conv_input_grad,
        conv_transpose,
        conv_weight_grad,
        depthwise_separable,
    )
    from convjit.errors import (
        BackendError,
        ConfigError,
        ConvjitWarning,
        ConvSpecError,
        UnsupportedError,
    )
    from convjit.packing import Weights
    from convjit.planning import (
        explain,
        explain_separable,
        plan,
        tune,
        tune_separable,
        weights,
    )
    from convjit.plans import Plan
    from convjit.profiling import profile
    from convjit.settings import use
    from convjit.spec import ConvSpec, Direction
    from convjit.upkeep import backends, refresh, register, release_memory, show_config

__all__ = [
    "BackendError",
    "ConfigError",
    "ConvSpec",
    "ConvSpecError",
    "ConvjitWarning",
    "Direction",
    "Plan",
    "UnsupportedError",
    "Weights",
    "__version__",
    "backends",
    "conv",
    "conv_input_grad",
    "conv_transpose",
    "conv_weight_grad",
    "depthwise_separable",
    "explain",
    "explain_separable",
    "plan",
    "profile",
    "refresh",
    "register",
    "release_memory",
    "show_config",
    "tune",
    "tune_separable",
    "use",
    "weights",
]

_ERRORS = ("BackendError", "ConfigError", "ConvSpecError", "ConvjitWarning", "UnsupportedError")
_WHERE = {
    **dict.fromkeys(_ERRORS, "errors"),
    **dict.fromkeys(("ConvSpec", "Direction"), "spec"),
    "Plan": "plans",
    "Weights": "packing",
    **dict.fromkeys(
        ("explain", "explain_separable", "plan", "tune", "tune_separable", "weights"), "planning"
    ),
    **dict.fromkeys(("backends", "refresh", "register", "release_memory", "show_config"), "upkeep"),
    "profile": "profiling",
    "use": "settings",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, and keep it (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'convjit' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"convjit.{_WHERE.get(name, 'api')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
