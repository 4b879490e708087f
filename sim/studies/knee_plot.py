"""The saturation knee: throughput, and how near each objective is to its limit, over the load."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sim.results.plots import COLOURS
from sim.studies.capacity import Capacity

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def knee_figure(found: Capacity) -> Figure:
    """Two charts over the load, a line a seed: output tokens/s, and measured / limit of every objective; with the interval."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(8.0, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for seed, one in enumerate(found.found):
        trials = sorted((trial for trial in one.trials if not trial.pilot), key=lambda trial: trial.load)
        loads = [trial.load for trial in trials]
        tokens_per_s = [trial.record.get("output_throughput") or math.nan for trial in trials]
        top.plot(loads, tokens_per_s, "o-", color=COLOURS[0], markersize=3, linewidth=0.8)
        for number, objective in enumerate(found.slo):
            excess = [objective.excess(trial.record) for trial in trials]
            label = None if seed else objective.text
            colour = COLOURS[(number + 3) % len(COLOURS)]
            bottom.plot(loads, excess, "o-", color=colour, label=label, markersize=3, linewidth=0.8)
    top.set_ylabel("output tokens/s")
    top.set_ylim(bottom=0)
    if len(found.found) > 1:
        top.set_title(f"a line for each of {len(found.found)} seeds", fontsize=9, loc="right")
    bottom.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    bottom.set_yscale("log")
    bottom.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bottom.yaxis.set_major_formatter("{x:g}")
    bottom.yaxis.set_minor_formatter(NullFormatter())
    bottom.set_ylabel("measured / limit")
    bottom.set_xlabel("requests a second" if found.over == "request_rate" else "users")
    low, high = found.interval
    for chart in (top, bottom):
        chart.grid(alpha=0.3)
        if found.value and math.isfinite(high):
            chart.axvspan(low, high, color=COLOURS[2], alpha=0.25, label="capacity")
    bottom.legend(frameon=False)
    return figure
