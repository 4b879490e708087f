"""A plot of collectives by size: time by cause, and bus bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sim.cost.collectives import CollectiveTime


def draw_collectives(times: Sequence[CollectiveTime], title: str, path: Path) -> None:
    """Write time and bus bandwidth over the sizes of `times` to `path` (its suffix names the format).

    Where the algorithm or protocol changes from one size to the next, its name stands at the point.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 7.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    sizes = [time.size_bytes for time in times]
    alpha = [1e6 * (time.launch_s + time.latency_s) for time in times]
    total = [1e6 * time.time_s for time in times]
    above.plot(sizes, total, marker="o", color="#08519c", label="time")
    above.fill_between(sizes, alpha, color="#d9a441", alpha=0.5, label="launch and steps (no bandwidth shortens them)")
    above.fill_between(sizes, alpha, total, color="#6baed6", alpha=0.4, label="bytes over the slowest edge")
    below.plot(sizes, [time.bus_bandwidth_bytes_per_s / 1e9 for time in times], marker="o", color="#08519c")
    before = ""
    for time, y in zip(times, total, strict=True):
        name = f"{time.algorithm} {time.protocol}".strip()
        if name != before:
            # the first name stays inside the axes
            place = {"xytext": (-6, 6), "ha": "right"} if before else {"xytext": (0, 8), "ha": "left"}
            above.annotate(name, (time.size_bytes, y), textcoords="offset points", fontsize=8, **place)
        before = name
    above.set(xscale="log", yscale="log", ylabel="time, us", title=title)
    below.set(xscale="log", xlabel="size, bytes", ylabel="bus bandwidth, GB/s")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    above.legend(loc="upper left", fontsize=8)
    figure.savefig(path, dpi=130)
