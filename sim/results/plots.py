"""Figures of a result, each a function from a result to a matplotlib figure."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim import units
from sim.results.console import span
from sim.results.gaps import Floats
from sim.results.metrics import gap_pool, latencies
from sim.results.occupancy import over_time
from sim.results.result import Result
from sim.results.verdict import CAUSES, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#888888")
"""Okabe and Ito's palette, which people with any kind of colour vision can tell apart."""
_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _SKY, _, _GREY = COLOURS
_CLASS_COLOURS = {
    "weights_bytes": ("weights", _BLUE),
    "activation_bytes": ("activations", _SKY),
    "overhead_bytes": ("runtime overhead", _GREY),
    "kv_pool_bytes": ("KV pool", _GREEN),
}
_WALL_COLOURS = {
    "memory": _BLUE, "communication": _RED, "compute": _GREEN, "overhead": _GREY, "prefill": _PURPLE, "waiting": _ORANGE,
}  # fmt: skip
_POINTS = 2000
"""A line has at most so many points: more cannot be told apart on a page."""
_MOST_BARS = 16
"""GPUs that are drawn one by one."""
_BINS = 300
"""Stretches of time that stand for a line of more points: their mean, and the band from lowest to highest."""


def timeline(result: Result) -> Figure:
    """KV cache in use, running and waiting requests over time, with preemptions and the end by OOM marked."""
    figure, (kv, people) = _figure(9.0, 5.6, rows=2)
    title = result.name
    replicas = max(1, len(np.unique(result.steps["replica"] // result.lanes)))
    if replicas > 1:
        title += " (sum of all replicas)"
    figure.suptitle(title)
    times, used = over_time(result, "used_blocks")
    blocks = result.kv_blocks * replicas if result.kv_blocks else None
    share = used * (100 / blocks) if blocks else used
    _draw_over_time(kv, times, share, _GREEN, filled=True)
    kv.set_ylabel("KV cache in use (%)" if blocks else "KV blocks in use")
    kv.set_ylim(0, 108 if blocks else None)
    if blocks:
        kv.axhline(100, color="black", linewidth=0.8, linestyle=":")
    _mark_preemptions(kv, result)
    _mark_oom(kv, result)
    for column, colour in (("running", _BLUE), ("waiting", _ORANGE)):
        times, values = over_time(result, column)
        _draw_over_time(people, times, values, colour, label=column)
    people.set_ylabel("requests")
    people.set_ylim(0, 1.18 * people.get_ylim()[1])  # room for the legend above the curves
    people.legend(loc="upper right", frameon=False, ncols=2)
    people.set_xlabel("simulated time (s)")
    people.set_xlim(0, max(result.end_s, 1e-9))
    return figure


def _mark_preemptions(axes: Axes, result: Result) -> None:
    hit = result.steps["preempted"] > 0
    if not hit.any():
        return
    at = result.steps["start_s"][hit]
    text = f"{int(result.steps['preempted'].sum()):,} preemptions"
    height = axes.get_ylim()[1]
    axes.plot(at, np.full(len(at), height * 0.965), "|", color=_RED, markersize=7, label=text)
    axes.legend(loc="lower right", frameon=True, framealpha=0.9)


def _mark_oom(axes: Axes, result: Result) -> None:
    if result.oom is None:
        return
    at = result.oom["time_s"]
    needed, free = (units.format_bytes(result.oom[key]) for key in ("needed_bytes", "free_bytes"))
    axes.axvline(at, color=_RED, linewidth=1.6)
    left = at > result.end_s / 2
    axes.annotate(
        f"out of memory at {at:.4g} s\n{result.oom['gpu']}, request {result.oom['request']}\n"
        f"needs {needed} of KV, {free} free",
        (at, 0.5),
        xycoords=("data", "axes fraction"),
        xytext=(-8 if left else 8, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        color=_RED,
        weight="bold",
        bbox={"facecolor": "white", "edgecolor": _RED, "alpha": 0.9},
    )


def latency_distributions(result: Result) -> Figure:
    """How TTFT, TPOT, ITL and E2EL are distributed, with P50 and P99 marked."""
    figure, grid = _figure(9.0, 6.4, rows=2, columns=2, share_x=False)
    figure.suptitle(f"{result.name}: latencies")
    samples = latencies(result)
    titles = {"ttft": "TTFT", "tpot": "TPOT (excl. 1st token)", "itl": "ITL (single gaps)", "e2el": "E2EL"}
    for axes, (metric, title) in zip(grid.flat, titles.items(), strict=True):
        values, shares = _gap_curve(result) if metric == "itl" else _sample_curve(samples[metric])
        axes.set_title(title, fontsize=10)
        axes.set_ylim(0, 103)
        axes.set_ylabel("% at or below")
        if not len(values):
            axes.text(0.5, 0.5, "nothing was measured", ha="center", va="center", transform=axes.transAxes)
            continue
        unit, factor = ("s", 1.0) if result.summary[f"p99_{metric}_ms"] >= 2000 else ("ms", 1e3)
        axes.step(values * factor, shares, where="post", color=_BLUE, linewidth=1.5)
        axes.set_xlabel(unit)
        _log_if_skewed(axes, values * factor)
        for percent, colour in ((50, _GREEN), (99, _RED)):
            summary_ms = result.summary[f"p{percent}_{metric}_ms"]
            at = summary_ms / 1e3 * factor
            axes.axvline(at, color=colour, linewidth=1, linestyle="--", label=f"P{percent} {at:.4g} {unit}")
        if metric in result.slo_s:
            axes.axvline(result.slo_s[metric] * factor, color="black", linewidth=1, linestyle=":", label="objective")
        axes.legend(loc="lower right", fontsize=8)
    return figure


def _log_if_skewed(axes: Axes, values: Floats) -> None:
    """A logarithmic axis where half of the values would lie in the first tenth of a linear one."""
    if values[0] > 0 and np.median(values) - values[0] < 0.1 * (values[-1] - values[0]):
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.set_xscale("log")
        # more labels would run into each other
        narrow = values[-1] < 100 * values[0]
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def memory_ledger(result: Result) -> Figure:
    """What fills the memory of each GPU; of many, one bar for those alike."""
    assert result.ledger is not None
    gpus, names = _bars(result.ledger.per_gpu)
    figure, axes = _figure(max(5.0, 2.5 + 0.55 * len(gpus)), 4.8)
    bottom = np.zeros(len(gpus))
    for attribute, (name, colour) in _CLASS_COLOURS.items():
        sizes = np.array([getattr(gpu, attribute) / 1e9 for gpu in gpus])
        bars = axes.bar(names, np.maximum(sizes, 0), bottom=bottom, color=colour, label=name, width=0.7)
        if len(gpus) <= 8:
            texts = [f"{size:.1f}" if size > 0.03 * gpus[0].capacity_bytes / 1e9 else "" for size in sizes]
            axes.bar_label(bars, texts, label_type="center", color="white", fontsize=8)
        bottom += np.maximum(sizes, 0)
    for attribute, style, name in (("capacity_bytes", "-", "capacity"), ("usable_bytes", "--", "usable by the engine")):
        levels = [getattr(gpu, attribute) / 1e9 for gpu in gpus]
        axes.hlines(
            levels, np.arange(len(gpus)) - 0.42, np.arange(len(gpus)) + 0.42, "black", style, label=name, lw=1.2
        )
    axes.set_ylabel("GB (1e9 bytes)")
    axes.set_xlim(-0.6, len(gpus) - 0.4)
    axes.grid(axis="x", visible=False)
    figure.suptitle(textwrap.fill(f"{result.name}: memory of each GPU", int(9 * figure.get_figwidth())))
    if len(gpus) > 4 or len(gpus) < len(result.ledger.per_gpu):
        axes.tick_params(axis="x", labelrotation=90 if len(gpus) > 16 else 45, labelsize=8)
    axes.set_ylim(0, 1.08 * max(float(bottom.max()), *(gpu.capacity_bytes / 1e9 for gpu in gpus)))
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure


def _bars(gpus: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """The GPUs to draw, and what to write under each."""
    if len(gpus) <= _MOST_BARS:
        return list(gpus), [gpu.gpu for gpu in gpus]
    alike: dict[tuple[float, ...], list[Any]] = {}
    for gpu in gpus:
        key = tuple(getattr(gpu, name) for name in (*_CLASS_COLOURS, "capacity_bytes", "usable_bytes"))
        alike.setdefault(key, []).append(gpu)
    return [same[0] for same in alike.values()], [span([gpu.gpu for gpu in same]) for same in alike.values()]


def token_by_wall(result: Result) -> Figure:
    """Where the milliseconds of a mean output token go, by cause, coloured by wall."""
    spent = {cause: ms for cause, ms in result.walls_ms_per_token.items() if ms > 0}
    figure, axes = _figure(8.0, 1.6 + 0.42 * max(3, len(spent)))
    total = sum(spent.values())
    order = list(spent)[::-1]
    walls = {cause: CAUSES[cause][1] if cause in CAUSES else "overhead" for cause in order}
    bars = axes.barh(
        [label(cause) for cause in order],
        [spent[cause] for cause in order],
        color=[_WALL_COLOURS[walls[cause]] for cause in order],
    )
    axes.bar_label(
        bars, [f"{spent[cause]:.2f} ms ({spent[cause] / total:.0%})" for cause in order], padding=4, fontsize=9
    )
    axes.set_xlim(0, 1.25 * max(spent.values(), default=1.0))
    axes.set_xlabel("ms of a mean output token")
    axes.set_title(f"{result.name}: {total:.2f} ms a token")
    axes.grid(axis="y", visible=False)
    from matplotlib.patches import Patch

    used = [wall for wall in _WALL_COLOURS if wall in walls.values()]
    axes.legend([Patch(color=_WALL_COLOURS[wall]) for wall in used], used, loc="lower right", frameon=False)
    return figure


FIGURES: dict[str, Callable[[Result], Figure]] = {
    "timeline": timeline,
    "latencies": latency_distributions,
    "memory": memory_ledger,
    "walls": token_by_wall,
}
"""Every figure by the name of its file."""


def save_plots(result: Result, out_dir: Path) -> list[Path]:
    """Write every figure that the result has data for as PNG into `out_dir`, and return the files."""
    out_dir.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in FIGURES.items():
        if not _drawable(name, result):
            continue
        path = out_dir / f"{name}.png"
        # without the version of matplotlib, the only metadata
        figure(result).savefig(path, dpi=130, metadata={"Software": None})
        written.append(path)
    return written


def _drawable(name: str, result: Result) -> bool:
    """Whether the result has data for the figure `name`."""
    if name == "memory":
        return result.ledger is not None
    if name == "walls":
        return any(ms > 0 for ms in result.walls_ms_per_token.values())
    return len(result.steps["start_s"]) > 0


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, share_x: bool = True) -> tuple[Figure, Any]:
    """A figure with its axes in one style; not known to pyplot, so nothing is left open."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=share_x and rows > 1)
    for one in np.atleast_1d(axes).flat:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(visible=True, color="#dddddd", linewidth=0.6)
        one.set_axisbelow(True)
    return figure, axes


def _draw_over_time(
    axes: Axes, times: Floats, values: Floats, colour: str, label: str | None = None, filled: bool = False
) -> None:
    """A step function of time as a line; where it moves too often to be seen, its mean and its range."""
    if len(times) <= _POINTS:
        axes.step(times, values, where="post", color=colour, linewidth=1.2, label=label)
        if filled:
            axes.fill_between(times, values, step="post", color=colour, alpha=0.35, linewidth=0)
        return
    edges, mean, low, high = _binned(times, values)
    axes.stairs(mean, edges, color=colour, linewidth=1.4, label=f"{label} (mean and range)" if label else None)
    axes.stairs(high, edges, baseline=low, color=colour, fill=True, alpha=0.3, linewidth=0)


def _binned(times: Floats, values: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """(edges, mean, lowest, highest) of a step function over stretches of equal time."""
    edges = np.linspace(times[0], times[-1], _BINS + 1)
    integral = np.concatenate([[0.0], np.cumsum(values[:-1] * np.diff(times))])
    mean = np.diff(np.interp(edges, times, integral)) / np.diff(edges)
    # the value at the start of a stretch was set at or before it
    begun = np.searchsorted(times, edges[:-1], side="right") - 1
    ends = np.maximum(np.searchsorted(times, edges[1:], side="left"), begun + 1)
    low = np.array([values[a:b].min() for a, b in zip(begun, ends, strict=True)])
    high = np.array([values[a:b].max() for a, b in zip(begun, ends, strict=True)])
    return edges, mean, low, high


def _sample_curve(samples: Floats) -> tuple[Floats, Floats]:
    """(values, % at or below) of samples."""
    values = np.sort(samples)
    shares = np.arange(1, len(values) + 1, dtype=np.float64) * (100 / max(1, len(values)))
    step = max(1, len(values) // _POINTS)
    kept = np.unique(np.append(np.arange(0, len(values), step), len(values) - 1)) if len(values) else np.arange(0)
    return values[kept], shares[kept]


def _gap_curve(result: Result) -> tuple[Floats, Floats]:
    """The same of all inter-token gaps, at a thousand percentiles."""
    pool = gap_pool(result)
    if not pool.count:
        return np.zeros(0), np.zeros(0)
    shares: Floats = np.linspace(0.0, 100.0, 1001, dtype=np.float64)
    return np.array(pool.percentiles(shares.tolist())), shares
