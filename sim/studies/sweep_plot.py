"""Figures of a sweep: one metric along one or two axes, and the front of tokens/s for a user against tokens/s a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.results.plots import COLOURS
from sim.studies.estimate import METHOD
from sim.studies.sweep import GPU_AXIS, USER_AXIS, Axis, Point, pareto

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure() -> tuple[Figure, Axes]:
    """A figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def metric_figure(axes: Sequence[Axis], found: Sequence[Point], metric: str) -> Figure:
    """`metric` along the first axis, one line for each value of the others."""
    figure, chart = new_figure()
    first, others = axes[0], _varied(axes[1:])
    series: dict[str, list[Point]] = {}
    for point in found:
        label = ", ".join(f"{axis.label}={point.values[axis.path]}" for axis in others)
        if metric in point.metrics:
            series.setdefault(label, []).append(point)
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in first.values)
    for number, (label, line) in enumerate(series.items()):
        places: list[Any] = [point.values[first.path] if numeric else str(point.values[first.path]) for point in line]
        means = [point.metrics[metric] for point in line]
        noise = [mean.half_width or 0.0 for mean in means]
        heights = [mean.mean for mean in means]
        chart.errorbar(places, heights, noise, marker="o", capsize=3, label=label, color=COLOURS[number % 8])
    if numeric and _spread(first.values):
        chart.set_xscale("log", base=2)
        chart.set_xticks(list(first.values), [f"{value:g}" for value in first.values])
    chart.set_xlabel(first.path)
    chart.set_ylabel(metric)
    chart.set_ylim(bottom=0)
    chart.grid(alpha=0.3)
    if others:
        chart.legend(frameon=False)
    if any(mean.metrics[metric].count > 1 for line in series.values() for mean in line):
        chart.set_title(f"bars: {METHOD}", fontsize=9, loc="right")
    return figure


def _varied(axes: Sequence[Axis]) -> list[Axis]:
    """Those that tell points apart."""
    return [axis for axis in axes if len(axis.values) > 1]


def _spread(values: Sequence[float]) -> bool:
    """Whether values stand by their ratios: positive and over more than a factor of eight."""
    return min(values) > 0 and max(values) > 8 * min(values)


def pareto_figure(axes: Sequence[Axis], found: Sequence[Point]) -> Figure:
    """Every point by tokens/s a user and tokens/s a GPU, and the front that none of them beats."""
    figure, chart = new_figure()
    whole = [point for point in found if {USER_AXIS, GPU_AXIS} <= set(point.metrics)]
    users, gpus = _places(whole)
    front = pareto(found)
    chart.plot(users, gpus, "o", color=COLOURS[7], alpha=0.6)
    chart.plot(*_places(front), "o-", color=COLOURS[0], label="no other point is better in both")
    varied = _varied(axes)
    for point in front:
        label = ", ".join(str(point.values[axis.path]) for axis in varied)
        place = (point.metrics[USER_AXIS].mean, point.metrics[GPU_AXIS].mean)
        chart.annotate(label, place, xytext=(5, 5), textcoords="offset points", fontsize=7)
    if varied:
        chart.set_title("numbers: " + ", ".join(axis.label for axis in varied), fontsize=9, loc="right")
    chart.set_xlabel("tokens/s a user (1 / median TPOT)")
    chart.set_ylabel("output tokens/s a GPU")
    chart.set_xlim(
        0, 1.1 * (max(users, default=0.0) or 1.0)
    )  # of all from zero on, so that the last point's label has room
    chart.set_ylim(0, 1.1 * (max(gpus, default=0.0) or 1.0))
    chart.grid(alpha=0.3)
    chart.legend(frameon=False, loc="lower left")  # the front never goes there
    return figure


def _places(found: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [p.metrics[USER_AXIS].mean for p in found], [p.metrics[GPU_AXIS].mean for p in found]


def save_sweep_plots(
    axes: Sequence[Axis], found: Sequence[Point], metrics: Sequence[str], front: bool, folder: Path
) -> list[Path]:
    """Write a figure for each of `metrics`, and of the front if asked; returns where."""
    saved = []
    for metric in metrics:
        saved.append(folder / f"{metric}.png")
        metric_figure(axes, found, metric).savefig(saved[-1], dpi=130)
    if front:
        saved.append(folder / "pareto.png")
        pareto_figure(axes, found).savefig(saved[-1], dpi=130)
    return saved
