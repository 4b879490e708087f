"""The saturation knee: throughput, and how near each objective is to its limit, over the load."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sim.studies.capacity import Capacity
from sim.studies.sweep_plot import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def knee_figure(found: Capacity) -> Figure:
    """Two charts over the load: output tokens/s, and measured / limit of every objective, with the capacity's interval."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True)
    trials = found.trials
    loads = [trial.load for trial in trials]
    top.plot(
        loads, [t.record.get("output_throughput") or math.nan for t in trials], "o-", color=COLOURS[0], markersize=4
    )
    top.set_ylabel("output tokens/s")
    top.set_ylim(bottom=0)
    for number, objective in enumerate(found.slo):
        excess = [objective.excess(trial.record) for trial in trials]
        bottom.plot(loads, excess, "o-", color=COLOURS[number + 1], label=objective.text, markersize=4)
    bottom.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    bottom.set_yscale("log")
    bottom.set_ylabel("measured / limit")
    bottom.set_xlabel("requests a second" if found.over == "request_rate" else "users")
    low, high = found.interval
    for chart in (top, bottom):
        chart.grid(alpha=0.3)
        if found.value and math.isfinite(high):
            chart.axvspan(low, high, color=COLOURS[2], alpha=0.25, label="capacity")
    bottom.legend(frameon=False)
    return figure
