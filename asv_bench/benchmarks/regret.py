"""How much slower the chosen algorithm is than the best of those it was chosen from.

The problems are those of ``python -m convjit regret``, to which no constant was fitted.
"""

from __future__ import annotations

from convjit.bench import heldout, regret

TRIALS = {trial.title: trial for trial in heldout.trials()}


class Regret:
    params = list(TRIALS)
    param_names = ("problem",)
    unit = "ratio"
    timeout = 300

    def track_regret(self, title: str) -> float:
        """Time of the choice over time of the best candidate, measured now; 1 is perfect."""
        return regret.measured(TRIALS[title]).regret
