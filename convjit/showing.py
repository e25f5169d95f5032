"""How an explanation is shown: as text, for JSON, and as a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convjit import config, pictures
from convjit.dispatch import Candidate
from convjit.environment import cpu_name
from convjit.errors import ConvSpecError
from convjit.spi import Refusal
from convjit.sweeps import Sweep
from convjit.tables import milliseconds, percent, size, table, three_digits
from convjit.tunedb import sizes

if TYPE_CHECKING:
    from convjit.explanation import Explanation


_TILES = re.compile(r"^F\([^)]*\) ")  # of a Winograd solver's refusals


def text(explained: Explanation, *, refused: bool = True, most: int | None = None) -> str:
    """What :meth:`convjit.explanation.Explanation.table` returns."""
    has_times = bool(explained.measured)
    has_errors = any(m.error is not None for m in explained.measured.values())
    is_remembered = any(c.remembered is not None for c in explained.admitted)
    columns = [">", "algorithm", ">predicted ms"]
    columns += [">remembered ms", "block sizes"] if is_remembered else []
    columns += [">measured ms", ">GFLOP/s", ">% peak"] if has_times else []
    columns += [">pack ms", ">workspace", ">weights", ">error ≤"]
    columns += [">error"] if has_errors else []
    rows: list[list[object]] = []
    for number, c in enumerate(explained.admitted[:most], 1):
        row: list[object] = [number, c.label, milliseconds(c.seconds)]
        if is_remembered:
            kept = c.remembered
            row += [milliseconds(kept.seconds), sizes(kept.config)] if kept else ["-", ""]
        if has_times:
            timed = explained.measured.get(c.label)
            taken = timed.seconds if timed is not None else None
            row += [milliseconds(taken)]
            row += [f"{explained.spec.flops / taken / 1e9:.1f}" if taken else "-"]
            row += [percent(explained.share_of_peak(c, taken))]
        row += [
            milliseconds(c.pack_seconds) if c.work is not None else "-",
            size(c.workspace),
            size(c.work.packed_bytes if c.work is not None else None),
            "-" if c.error_bound is None else f"{c.error_bound:.1e}",
        ]
        if has_errors:
            found = explained.measured.get(c.label)
            known = found is not None and found.error is not None
            row += [f"{found.error:.1e}" if found is not None and known else "-"]
        rows.append(row)
    parts = [f"{explained.spec}\n{conditions(explained.spec.flops, explained.request.packed)}"]
    if rows:
        parts[0] += "\nerror ≤: modelled bound, relative to the largest sum of magnitudes |x|·|w|"
        more = len(explained.admitted) - len(rows)
        tail = f"and {more} more: python -m convjit explain {explained.spec}" if more else ""
        parts += [table(columns, rows, caption=tail)]
    if refused and (explained.refused or explained.absent):
        parts += [table(["ruled out", "~because"], _ruled_out(explained))]
    return "\n\n".join([*parts, _ending(explained)])


def conditions(flops: float, packed: bool) -> str:
    """How much there is to do, and what of packing the weights counts."""
    packing = "once, before" if packed else "in each call: predicted + pack ms counts"
    return f"{flops / 1e9:.3g} GFLOP directly; weights packed {packing}"


def _ruled_out(explained: Explanation) -> list[tuple[str, str]]:
    """(labels, reason), the candidates of one reason together.

    Reasons that differ only in the tiles that they begin with, ``F(4, 5)``, are one: the labels
    name those.
    """
    groups: dict[str, list[Candidate]] = {}
    for c in explained.refused:
        groups.setdefault(_TILES.sub("", _reason(c)), []).append(c)
    rows = [
        (f"all of {name}", f"it does not work here: {why}")
        for name, why in explained.absent.items()
    ]
    for shared, group in groups.items():
        reason = shared if len(set(map(_reason, group))) > 1 else _reason(group[0])
        taken = [three_digits(c.total(explained.request.packed) * 1e3) for c in group if c.seconds]
        if taken:
            they = "it" if len(group) == 1 else "they"
            reason += f" ({they} would take {', '.join(taken)} ms)"
        rows.append((", ".join(c.label for c in group), reason))
    return rows


def _reason(candidate: Candidate) -> str:
    return candidate.refusal.reason if candidate.refusal is not None else ""


def _ending(explained: Explanation) -> str:
    winner = explained.winner
    if winner is None:
        return f"nothing runs: {explained.reason}"
    text = f"{winner.label} runs: {explained.reason}"
    fastest = min(explained.measured.items(), key=lambda m: m[1].seconds, default=None)
    if fastest is not None and winner.label in explained.measured:
        regret = explained.measured[winner.label].seconds / fastest[1].seconds
        if fastest[0] != winner.label and regret > 1.0:
            text += f"\nmeasured, {fastest[0]} was {regret:.2f} times faster"
        else:
            text += "\nmeasured, nothing was faster"
    if explained.left_out:
        text += f"\nnot measured, for they take too long: {', '.join(explained.left_out)}"
    return text


def as_dict(explained: Explanation) -> dict[str, Any]:
    """For JSON."""
    return {
        "spec": str(explained.spec),
        "flops": explained.spec.flops,
        "packed": explained.request.packed,
        "winner": explained.winner.label if explained.winner is not None else None,
        "reason": explained.reason,
        "candidates": [_candidate_dict(explained, c) for c in explained.candidates],
        "left_out": list(explained.left_out),
        "absent": dict(explained.absent),
    }


def _candidate_dict(explained: Explanation, candidate: Candidate) -> dict[str, Any]:
    timed = explained.measured.get(candidate.label) if candidate.refusal is None else None
    taken = timed.seconds if timed is not None else None
    return {
        "label": candidate.label,
        "backend": candidate.backend,
        "device": candidate.device,
        "solver": candidate.solver_id,
        "algorithm": candidate.algorithm,
        "lowering": list(candidate.steps),
        "spec": str(candidate.spec),
        "predicted_seconds": candidate.seconds,
        "pack_seconds": candidate.pack_seconds if candidate.work is not None else None,
        "remembered": candidate.remembered.as_dict() if candidate.remembered else None,
        "measured_seconds": taken,
        "gflops": explained.spec.flops / taken / 1e9 if taken else None,
        "share_of_peak": explained.share_of_peak(candidate, taken),
        "error": timed.error if timed is not None else None,
        "workspace": candidate.workspace if candidate.work is not None else None,
        "packed_bytes": candidate.work.packed_bytes if candidate.work is not None else None,
        "error_bound": candidate.error_bound,
        "refusal": _refusal_dict(candidate.refusal),
    }


def _refusal_dict(refusal: Refusal | None) -> dict[str, str] | None:
    if refusal is None:
        return None
    return {"feature": refusal.feature.value, "reason": refusal.reason}


def draw(explained: Explanation, path: Path, found: Sequence[Sweep]) -> None:
    """What :meth:`convjit.explanation.Explanation.plot` writes: the ranking, then the sweeps."""
    pictures.prepare(path)
    rows = [c for c in explained.candidates if c.seconds is not None]
    if not rows:
        raise ConvSpecError(f"there is nothing to draw of {explained.spec}: {explained.reason}.")
    shown = [sweep for sweep in found if len(sweep.sizes) > 1]

    def seconds(candidate: Candidate) -> tuple[float, float | None]:
        timed = None if candidate.refusal else explained.measured.get(candidate.label)
        return candidate.total(explained.request.packed), timed.seconds if timed else None

    threads = config.num_threads()
    machine = f"{threads} thread{'s' if threads > 1 else ''} of {cpu_name()}"
    heights = [pictures.ranking_height(len(rows)), *(pictures.PANEL for _ in shown)]
    with pictures.canvas(path, heights) as axes:
        title = f"{pictures.told(explained.spec)}: what could compute it, {machine}"
        pictures.draw_ranking(axes[0], rows, seconds, title)
        for axis, sweep in zip(axes[1:], shown, strict=True):
            pictures.draw_sweep(axis, sweep, pictures.told(explained.spec), machine)
