"""Tables of a benchmark, for people and for the README."""

from __future__ import annotations

from convjit.bench.runner import OURS, Report, Row, Total, geometric_mean
from convjit.tables import markdown, milliseconds, percent, table


def ratio_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _gflops(flops: float, seconds: float | None) -> str:
    return f"{flops / seconds / 1e9:.1f}" if seconds else "-"


def _engines(report: Report) -> list[str]:
    """The engines that ran at least once, ours first."""
    ran = [e for e in report.engines if any(row.seconds(e) is not None for row in report.rows)]
    return sorted(ran, key=lambda name: (not name.startswith(OURS), report.engines.index(name)))


def _columns(engines: list[str], first: list[str]) -> list[str]:
    peers = [e for e in engines if not e.startswith(OURS)]
    last = [">ratio", "best peer"] if peers else []
    return [*first, *(f">{e}" for e in engines), ">GFLOP/s", ">% peak", *last]


def case_table(report: Report, rows: list[Row], *, as_markdown: bool = False) -> str:
    """One row a case."""
    engines = [e for e in _engines(report) if any(r.seconds(e) is not None for r in rows)]
    columns = _columns(engines, ["case", ">count", "algorithm"])
    counted = any(row.case.count != 1 for row in rows)
    if not counted:
        columns.remove(">count")
    lines = []
    for row in rows:
        spec, ours = row.case.problem, row.seconds(OURS)
        timing = row.timings.get(OURS)
        line: list[object] = [row.case.title]
        line += [row.case.count] if counted else []
        line += [timing.label or timing.reason if timing is not None else "-"]
        line += [milliseconds(row.seconds(e)) for e in engines]
        share = report.share_of_peak(spec.dtype, spec.flops, ours)
        line += [_gflops(spec.flops, ours), percent(share)]
        if ">ratio" in columns:
            peer = row.best_peer()
            line += [ratio_text(row.ratio), peer[0] if peer is not None else "-"]
        lines.append(line)
    return markdown(columns, lines) if as_markdown else table(columns, lines)


def total_table(report: Report, totals: list[Total], *, as_markdown: bool = False) -> str:
    """One row a network or kind: its layers' times, summed."""
    engines = [e for e in _engines(report) if any(e in t.seconds for t in totals)]
    columns = _columns(engines, ["layers of", ">count"])
    groups = {row.case.group: row.case.problem.dtype for row in report.rows}
    lines = []
    for total in totals:
        ours = total.seconds.get(OURS)
        share = report.share_of_peak(groups[total.group], total.flops, ours)
        line: list[object] = [total.group, total.layers]
        line += [milliseconds(total.seconds.get(e)) for e in engines]
        line += [_gflops(total.flops, ours), percent(share)]
        if ">ratio" in columns:
            peer = total.best_peer()
            line += [ratio_text(total.ratio), peer[0] if peer is not None else "-"]
        lines.append(line)
    return markdown(columns, lines) if as_markdown else table(columns, lines)


def ending(report: Report) -> str:
    """What was left out, what failed, and the mean ratio."""
    lines = []
    ratios = report.ratios()
    if mean := geometric_mean(list(ratios.values())):
        worst = min(ratios, key=lambda name: ratios[name])
        lines.append(
            f"ratio = best peer's time / convjit's: geometric mean {mean:.2f} over {len(ratios)}, "
            f"least {ratios[worst]:.2f} ({worst})"
        )
    for dtype, found in report.peak.items():
        if found["peak"]:
            lines.append(f"peak in {dtype}: {found['peak'] / 1e9:.1f} GFLOP/s, {found['how']}")
    lines += [f"left out, {name}: {reason}" for name, reason in report.left_out.items()]
    lines += [f"failed, {failure}" for failure in report.failures]
    return "\n".join(lines)


def text(report: Report, *, detail: bool = False, as_markdown: bool = False) -> str:
    """All tables: networks as totals (case by case too with ``detail``), the rest case by case."""
    totals = report.totals()
    named = {total.group for total in totals}
    parts = []
    if totals:
        parts += ["milliseconds:", total_table(report, totals, as_markdown=as_markdown)]
    groups = dict.fromkeys(row.case.group for row in report.rows)
    for group in groups:
        if group in named and not detail:
            continue
        rows = [row for row in report.rows if row.case.group == group]
        parts += [f"{group}, milliseconds:", case_table(report, rows, as_markdown=as_markdown)]
    last = ending(report)
    if as_markdown:
        last = "\n".join(f"- {line}" for line in last.splitlines())
    return "\n\n".join(part for part in (*parts, last) if part)
