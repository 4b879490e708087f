"""Errors of a validation by group, the worst rows with their likely reason, and a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.studies.measured_metrics import family
from sim.studies.validate import SIMULATED, SKIPPED, RowResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = ("ttft", "tpot", "itl", "output throughput")
"""The metrics that the figure shows, where they were measured."""


@dataclass(frozen=True, slots=True)
class Group:
    """Errors of rows that belong together; all but the counts are fractions."""

    group: str
    metric: str
    n: int
    median_abs_error: float
    mean_abs_error: float
    bias: float
    """Mean of the signed errors."""
    median_error: float
    """Median of the signed errors."""
    p90_abs_error: float
    coverage: float
    """Rows counted here over all rows of the group."""


def _metric(row: RowResult) -> str:
    name = family(row.metric)
    return f"{name} saturated" if name == "ttft" and row.saturated else name


KEYS: dict[str, Callable[[RowResult], str]] = {
    "all": lambda row: row.kind,
    "source": lambda row: row.source,
    "engine": lambda row: row.engine,
    "GPU": lambda row: row.gpu,
    "model": lambda row: row.model,
    "TP": lambda row: f"TP{row.tensor or '?'}",
    "regime": lambda row: row.regime or "unknown",
}


def groups(rows: Sequence[RowResult], by: Sequence[str] = tuple(KEYS)) -> list[Group]:
    """Errors by every key of `by` and by metric; operators, collectives and memory by source only."""
    found = []
    for name in by:
        cells: dict[tuple[str, str], list[RowResult]] = {}
        for row in rows:
            if row.kind == "e2e" or name in ("all", "source"):
                cells.setdefault((KEYS[name](row), _metric(row) if row.kind == "e2e" else row.kind), []).append(row)
        for (value, metric), members in cells.items():
            if group := _group(f"{name}: {value}", metric, members):
                found.append(group)
    return found


def _group(name: str, metric: str, members: Sequence[RowResult]) -> Group | None:
    errors = np.array([row.error for row in members if row.status == SIMULATED and row.error is not None])
    if not errors.size:
        return None
    size = np.abs(errors)
    return Group(
        name, metric, errors.size, float(np.median(size)), float(size.mean()), float(errors.mean()), float(np.median(errors)),
        float(np.quantile(size, 0.9)), errors.size / len(members),
    )  # fmt: skip


def worst(rows: Sequence[RowResult], count: int) -> list[RowResult]:
    """The counted end-to-end rows with the largest error, as factors either way."""
    counted = [r for r in rows if r.status == SIMULATED and r.kind == "e2e" and r.error is not None and r.error > -1]
    return sorted(counted, key=lambda row: -abs(np.log1p(row.error or 0.0)))[:count]


def likely_reason(row: RowResult) -> str:
    """Where to look first for the error of a row."""
    if row.saturated and family(row.metric) == "ttft":
        return "waits for a slot: a small error of the KV capacity or of the harness's own limit decides it"
    if row.regime == "KV-saturated":
        return "at the edge of the KV cache"
    if family(row.metric) == "ttft":
        return "how the harness sends requests (warm-up, waves) is not stated"
    if row.regime == "latency-bound":
        return "kernel gaps and host time of this engine version"
    return "kernel rates of this engine version"


def skipped(rows: Sequence[RowResult]) -> dict[str, int]:
    """Reason -> rows that were not predicted for it."""
    counts: dict[str, int] = {}
    for row in rows:
        if row.status == SKIPPED:
            reason = row.reason.split(";")[0]
            counts[reason] = counts.get(reason, 0) + 1
    return counts


def figure(rows: Sequence[RowResult]) -> Figure | None:
    """Predicted against measured, a panel for each metric that was both, one colour an engine; None without any."""
    import matplotlib.figure

    counted = [row for row in rows if row.status == SIMULATED and row.kind == "e2e" and row.predicted]
    panels = {name: [row for row in counted if family(row.metric) == name] for name in PANELS}
    panels = {name: shown for name, shown in panels.items() if shown}
    if not panels:
        return None
    columns = min(len(panels), 2)
    down = -(-len(panels) // columns)
    drawn = matplotlib.figure.Figure(figsize=(5 * columns, 5 * down), layout="constrained")
    for place, (name, shown) in enumerate(panels.items(), start=1):
        _panel(drawn.add_subplot(down, columns, place), name, shown)
    return drawn


def _panel(axes: Axes, name: str, shown: Sequence[RowResult]) -> None:
    for engine in sorted({row.engine for row in shown}):
        mine = [row for row in shown if row.engine == engine]
        predicted = [row.predicted or 0.0 for row in mine]
        axes.scatter([row.measured for row in mine], predicted, s=8, alpha=0.6, label=engine)
    ends = [min(row.measured for row in shown), max(row.measured for row in shown)]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.legend(fontsize=5)
    units = ", ".join(sorted({row.unit for row in shown}))
    axes.set(xscale="log", yscale="log", xlabel=f"measured {name} ({units})", ylabel=f"predicted ({units})", title=name)
