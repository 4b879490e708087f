"""The highest load that keeps the SLO, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sim.scenario import Scenario
from sim.studies.estimate import estimate
from sim.studies.executor import Workers
from sim.studies.objective import Objective
from sim.studies.search import Found, Load, Search, Trial, load_of, search
from sim.studies.study import Case, Study

TOLERANCE = 0.02
"""Width of the bracket that a search ends with, as a share of the load."""


@dataclass(frozen=True)
class Capacity:
    """What the searches with several seeds say together."""

    over: Load
    slo: Sequence[Objective]
    found: tuple[Found, ...]
    """One a seed."""

    @property
    def value(self) -> float:
        """The highest load that was run with every seed's requests, or lies below one that was, and held; 0: none."""
        return min(one.low for one in self.found)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the capacity lies: every bracket, and Student's 95 % interval of their middles."""
        low, high = self.value, max(one.high for one in self.found)
        if not low or math.isinf(high):
            return low, high
        middle = estimate([math.sqrt(one.low * one.high) for one in self.found])
        if middle is None or middle.low is None or middle.high is None:
            return low, high
        return max(0.0, min(low, middle.low)), max(high, middle.high)

    @property
    def best(self) -> Trial | None:
        """The run at `value`."""
        return min(self.found, key=lambda one: one.low).best

    @property
    def reason(self) -> str:
        """Why there is no capacity; empty where there is."""
        return next((one.reason for one in self.found if one.reason), "")

    @property
    def failed(self) -> bool:
        """Whether a run ended with an error, so that nothing is known of the capacity."""
        return self.reason.startswith(("failed", "stuck"))

    @property
    def binding(self) -> str:
        """What breaks first beyond it."""
        return min(self.found, key=lambda one: one.high).binding

    @property
    def trials(self) -> list[Trial]:
        """Every run in full, by load."""
        return sorted((trial for one in self.found for trial in one.trials if not trial.pilot), key=lambda t: t.load)

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval
        best = self.best
        return {
            f"max_{self.over}": self.value,
            "interval": [low, None if math.isinf(high) else high],
            "slo": [objective.text for objective in self.slo],
            "binding": self.binding,
            "reason": self.reason,
            "seeds": len(self.found),
            "per_seed": [{"low": f.low, "high": None if math.isinf(f.high) else f.high} for f in self.found],
            "metrics": None if best is None else dict(best.record),
            "trials": [
                {"load": t.load, "requests": t.requests, "holds": t.holds,
                 "excess": None if math.isinf(t.excess) else t.excess, "binding": t.binding}
                for t in self.trials
            ],
        }  # fmt: skip


Told = Callable[[int], None]
"""Called with the number of runs so far."""


def run_searches(searches: Sequence[Search], study: Study, workers: Workers, told: Told | None = None) -> list[Found]:
    """Run `searches` side by side: in each round, the next run of every one that is not at its end."""
    found: dict[int, Found] = {}
    asked: dict[int, Case] = {}
    runs = 0
    for index, one in enumerate(searches):
        scenario = next(one)
        asked[index] = Case.of(scenario.name, scenario)
    while asked:
        study.run(asked.values(), workers)
        runs += len(asked)
        if told is not None:
            told(runs)
        for index, case in list(asked.items()):
            entry = study.entry(case) or {"status": "failed", "record": None, "reason": "no result"}
            try:
                scenario = searches[index].send((entry["status"], entry["record"], entry["reason"]))
                asked[index] = Case.of(scenario.name, scenario)
            except StopIteration as end:
                found[index] = end.value
                del asked[index]
    return [found[index] for index in range(len(searches))]


def capacity(
    scenario: Scenario,
    slo: Sequence[Objective],
    study: Study,
    workers: Workers,
    *,
    seeds: int = 3,
    tolerance: float = TOLERANCE,
    told: Told | None = None,
) -> Capacity:
    """The highest request rate (open loop) or concurrency (closed loop) of `scenario` at which `slo` holds.

    Args:
        scenario: its arrivals say which; their own rate or concurrency is where the search starts.
        slo: all must hold.
        study: keeps every run; a search that was interrupted goes on where it was.
        workers: where they run.
        seeds: independent searches, with the seeds from the scenario's own upwards.
        tolerance: relative width of each search's bracket.

    Raises:
        InputError: the arrivals have no load that could be turned up.
    """
    over = load_of(scenario)
    start = float(getattr(scenario.workload.arrivals, over))
    first = scenario.workload.seed
    searches = [
        search(scenario.with_overrides({"workload.seed": seed}), slo, start, tolerance)
        for seed in range(first, first + seeds)
    ]
    return Capacity(over, slo, tuple(run_searches(searches, study, workers, told)))


def capacity_text(found: Capacity) -> str:
    """The answer in words, and the runs behind it."""
    from sim.results.console import table

    unit = "requests/s" if found.over == "request_rate" else "users"
    slo = " and ".join(objective.text for objective in found.slo)
    if not found.value:
        return f"No load keeps {slo}: {found.reason}"
    low, high = found.interval
    lines = [
        f"Up to {_shown(found.value)} {unit} keep {slo}.",
        f"Between {_shown(low)} and {_shown(high)} over {len(found.found)} seeds;"
        f" beyond, what gives way is {found.binding or 'nothing'}.",
        "",
    ]
    rows = []
    for trial in found.trials:
        r = trial.record
        numbers = [r.get("output_throughput"), r.get("p99_ttft_ms"), r.get("p99_tpot_ms")]
        rows.append(
            [_shown(trial.load), f"{trial.requests:,}", *("-" if n is None else f"{n:,.1f}" for n in numbers),
             f"{trial.excess:.2f}", "holds" if trial.holds else "overloaded" if trial.excess <= 1 else "misses"]
        )  # fmt: skip
    header = [found.over, "requests", "tok/s", "TTFT p99 ms", "TPOT p99 ms", "of its limit", "SLO"]
    return "\n".join([*lines, table(header, rows)])


def _shown(load: float) -> str:
    return "any load tried" if math.isinf(load) else f"{load:,.4g}"
