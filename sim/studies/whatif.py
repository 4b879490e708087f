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
    """One panel a metric: bars from half to twice each resource, the strongest on top."""
    from matplotlib.figure import Figure

    shown = ["p99_ttft_ms", "mean_tpot_ms", "output_throughput"]
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(shown), sharey=True), shown, strict=True):
        base = found.base[metric]
        for row, effect in enumerate(reversed(found.effects)):
            for case, colour in ((effect.halved, "#c44e52"), (effect.doubled, "#4c72b0")):
                value = None if case is None else case[metric]
                if value is not None and base:
                    axes.barh(row, 100 * (value / base - 1), color=colour, height=0.6)
        axes.set_yticks(range(len(found.effects)), [effect.resource for effect in reversed(found.effects)])
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(f"{METRICS[metric]}: {_number(base)}", fontsize=10)
        axes.set_xlabel("change in %")
    figure.suptitle(f"{found.scenario}: half (red) and twice (blue) of each resource", fontsize=11)
    return figure
