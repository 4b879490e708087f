"""What would move the answer: every resource doubled and halved in turn, under the same random numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sim.engine.scaling import Scaling
from sim.errors import DoesNotFit
from sim.scenario import Scenario
from sim.simulate import simulate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESOURCES = {
    "HBM bandwidth": "hbm_bandwidth",
    "FLOPs": "flops",
    "NVLink and PCIe bandwidth": "link_bandwidth",
    "network bandwidth": "network_bandwidth",
    "network latency": "network_latency",
    "KV memory": "kv_memory",
    "host overhead": "host_overhead",
}
METRICS = {
    "mean_ttft_ms": "TTFT, mean (ms)",
    "p99_ttft_ms": "TTFT, P99 (ms)",
    "mean_tpot_ms": "TPOT, mean (ms)",
    "output_throughput": "output tokens/s",
}
FACTORS = (0.5, 2.0)
NOTHING_PERCENT = 0.05
"""A change that would be printed as 0.0 %."""

Metrics = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Effect:
    """What one resource does to the metrics."""

    resource: str
    halved: Metrics | None
    """None: the scenario does not fit with half of it."""
    doubled: Metrics

    def swing(self, metric: str, base: Metrics) -> float:
        """The larger relative change of `metric`, halved or doubled."""
        start = base[metric]
        values = [case[metric] for case in (self.halved, self.doubled) if case is not None]
        return max((abs(v / start - 1) for v in values if v is not None and start), default=0.0)


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The tornado of a scenario: its metrics, and what each resource does to them, the strongest first."""

    scenario: str
    base: Metrics
    effects: list[Effect]

    def as_dict(self) -> dict[str, Any]:
        """As `twowalls whatif --json` prints it."""
        rows = [{"resource": e.resource, "halved": e.halved, "doubled": e.doubled} for e in self.effects]
        return {"scenario": self.scenario, "base": self.base, "effects": rows}


def whatif(scenario: Scenario, told: Callable[[str], None] = lambda _: None) -> WhatIf:
    """Simulates `scenario` as it is, and with each resource halved and doubled; the seed stays, so do all random numbers.

    Args:
        told: called with the name of each resource before its runs.

    Raises:
        InputError, DoesNotFit: as `simulate`, for the scenario as it is.
    """
    base = _metrics(scenario, Scaling())
    effects = []
    for name, field in RESOURCES.items():
        told(name)
        less, more = (replace(Scaling(), **{field: factor}) for factor in FACTORS)  # type: ignore[arg-type]
        try:
            halved: Metrics | None = _metrics(scenario, less)
        except DoesNotFit:
            halved = None
        effects.append(Effect(name, halved, _metrics(scenario, more)))
    effects.sort(key=lambda effect: -max(effect.swing(metric, base) for metric in METRICS))
    return WhatIf(scenario.name, base, effects)


def _metrics(scenario: Scenario, scaling: Scaling) -> Metrics:
    summary = simulate(scenario, scaling=scaling).summary
    return {metric: summary[metric] for metric in METRICS}


def table(found: WhatIf) -> str:
    """The tornado as text: change of every metric with half and with twice each resource."""
    lines = [f"{'resource':<26} {'':<7}" + "".join(f"{title:>20}" for title in METRICS.values())]
    lines.append(f"{'as it is':<26} {'':<7}" + "".join(f"{_number(found.base[m]):>20}" for m in METRICS))
    for effect in found.effects:
        for label, case in (("half", effect.halved), ("double", effect.doubled)):
            cells = [_change(None if case is None else case[m], found.base[m]) for m in METRICS]
            lines.append(
                f"{effect.resource if label == 'half' else '':<26} {label:<7}" + "".join(f"{c:>20}" for c in cells)
            )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:,.2f}"


def _change(value: float | None, base: float | None) -> str:
    if value is None or not base:
        return "does not fit"
    return f"{round(value / base - 1, 3) + 0.0:+.1%}"  # + 0.0: a change that rounds to none has no sign of its own


def tornado(found: WhatIf) -> Figure:
    """One panel a metric: bars from half to twice each resource, the strongest on top, with their change in percent."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = ["p99_ttft_ms", "mean_tpot_ms", "output_throughput"]
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    effects = found.effects[::-1]
    for axes, metric in zip(figure.subplots(1, len(shown), sharey=True), shown, strict=True):
        for row, effect in enumerate(effects):
            _bars(axes, row, effect, metric, found.base[metric])
        axes.set_yticks(range(len(effects)), [effect.resource for effect in effects])
        axes.axvline(0, color="black", linewidth=0.8)
        axes.margins(x=0.2)
        axes.set_ylim(-0.6, len(effects) - 0.4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"{METRICS[metric]}: {_number(found.base[metric])}", fontsize=10)
        axes.set_xlabel("change in %")
    colours = [Patch(color=_HALF, label="half of the resource"), Patch(color=_TWICE, label="twice the resource")]
    figure.legend(handles=colours, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(f"{found.scenario}: what would move it", fontsize=11)
    return figure


_HALF, _TWICE = "#c44e52", "#4c72b0"


def _bars(axes: Axes, row: int, effect: Effect, metric: str, base: float | None) -> None:
    """The two bars of one resource, from the longer to the shorter so that none is hidden, each with its number."""
    cases = ((effect.halved, _HALF), (effect.doubled, _TWICE))
    values = [(case[metric], colour) for case, colour in cases if case is not None]
    changes = [(100 * (value / base - 1), colour) for value, colour in values if value is not None and base]
    if effect.halved is None:
        axes.annotate(
            "half does not fit", (0, row), (4, 0), textcoords="offset points", va="center", fontsize=8, color=_HALF
        )
    if changes and max(abs(change) for change, _ in changes) < NOTHING_PERCENT:
        axes.annotate("no effect", (0, row), (4, 0), textcoords="offset points", va="center", fontsize=8, color="grey")
        return
    same_side = len(changes) == len(FACTORS) and changes[0][0] * changes[1][0] > 0
    for place, (change, colour) in enumerate(changes):
        height, at = (0.3, row + (0.16 if place == 0 else -0.16)) if same_side else (0.6, row)
        axes.barh(at, change, color=colour, height=height)
        axes.annotate(f"{change:+.1f}", (change, at), (3 if change > 0 else -3, 0), textcoords="offset points", fontsize=8,
                      va="center", ha="left" if change > 0 else "right")  # fmt: skip
