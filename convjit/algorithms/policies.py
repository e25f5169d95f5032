"""Which errors each precision admits, and why a policy rules a solver out.

The bounds are those of :mod:`convjit.algorithms.error`.
"""

from __future__ import annotations

from convjit import precision
from convjit.algorithms.error import amplification, error_bound
from convjit.precision import Numerics, Policy
from convjit.spec import ConvSpec

# "fast" admits this many times the default limit.
FAST_FACTOR = 100.0

# Besides, "default" admits transforms whose products exceed what they add up to by this factor at
# most.  The bound on the error relates it to the sum of magnitudes, which grows like the number of
# products; results of data with mixed signs grow like its root, so that where many channels are
# summed F(6, 3) in two dimensions (139) stays under that bound with results whose last five or six
# bits are wrong.  F(4, 3) has 26 in two dimensions, F(2, 5) 32.
AMPLIFICATION_LIMIT = 64.0


def limit(dtype: str) -> float:
    """The error that ``precision="default"`` admits (0 for integers, which are exact).

    It is the same multiple of every dtype's unit roundoff: 1e-5 in float32.
    """
    if dtype in precision.INTEGER:
        return 0.0
    return precision.DEFAULT_LIMIT_IN_U * precision.UNIT_ROUNDOFF[dtype]


def policy_refusal(
    spec: ConvSpec, numerics: Numerics, policy: Policy, *, inner: ConvSpec | None = None,
    bound: float | None = None,
) -> str | None:  # fmt: skip
    """Why a policy excludes a solver, in a sentence, or None.

    Plain sums of products are never excluded for their precision: they are what every limit is
    measured against, and the fallback.

    Parameters
    ----------
    spec : ConvSpec
        The problem as it was posed (its dtype decides the limit).
    numerics : Numerics
    policy : Policy
    inner : ConvSpec, optional
        The problem as the solver gets it, if it is another one.
    bound : float, optional
        The candidate's error bound; ``error_bound(spec, numerics)`` if not given, which is right
        where the solver takes the problem as it was posed.
    """
    how = f"rounds operands to {numerics.operands}" if numerics.operands else "transforms"
    if policy.nonfinite == "local" and numerics.spreads_nonfinite:
        return (
            f"nonfinite='local' was asked, and {numerics.method} spreads a NaN or Inf beyond its "
            "receptive field"
        )
    if policy.deterministic and not numerics.deterministic:
        return "deterministic=True was asked, and the order of its sums varies between runs"
    if numerics.is_summation:
        return None
    if spec.dtype in precision.INTEGER:
        return f"integers are summed exactly, and {numerics.method} {how}"
    if policy.precision == "exact":
        return f"precision='exact' admits sums of products only, and {numerics.method} {how}"
    u = precision.UNIT_ROUNDOFF
    fast = policy.precision == "fast"
    if numerics.operands and not fast and u[numerics.operands] > u[spec.dtype]:
        return f"{numerics.method} {how}, which takes precision='fast'"
    if numerics.operands and fast and numerics.method in ("direct", "gemm"):
        return None
    amplified = amplification(inner or spec, numerics)
    if amplified > AMPLIFICATION_LIMIT and not fast:
        return (
            f"{numerics.method} with tiles of {'x'.join(map(str, numerics.tile))} amplifies "
            f"rounding errors {amplified:.0f} times; precision='default' admits "
            f"{AMPLIFICATION_LIMIT:.0f}, 'fast' any"
        )
    value = error_bound(spec, numerics) if bound is None else bound
    admitted = limit(spec.dtype) * (FAST_FACTOR if fast else 1.0)
    if value <= admitted:
        return None
    return (
        f"modelled error {value:.1e} of the sum of magnitudes is above the limit {admitted:.0e} "
        f"of precision={policy.precision!r} in {spec.dtype}"
    )
