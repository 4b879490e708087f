"""The highest load of one scenario and seed at which its SLO holds: bracketing, then bisection.

A search says what to run next and is told what came of it, so many searches share the same workers.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sim.errors import InputError
from sim.scenario import Scenario
from sim.studies.objective import Objective

Load = Literal["request_rate", "concurrency"]
SPANS = 6.0
"""Requests keep arriving for so many times their mean end-to-end latency at least: a shorter run is over before the queue
that an overload builds can be seen."""
ROUNDS = 6
"""Requests a user of a closed loop sends at least, the first left out of the statistics: all users begin at once."""
PILOT_SHARE, PILOT_EXCESS = 8, 2.0
"""A run of an eighth of the requests that misses the SLO twice over is not run in full: queues only grow."""
MOST_REQUESTS = 200_000
"""Of one run, however long the latency at its load asks it to be."""
MOST_LOAD = 1e6
"""Requests a second, or users: a search that still holds there ends."""
IDLE = 0.2
"""Requests in flight on average below which a smaller load cannot help any more: each has the machine to itself."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a search."""

    load: float
    requests: int
    excess: float
    """By which factor the worst objective was missed; up to 1 the SLO holds."""
    binding: str
    """The objective that came nearest to its limit, or went furthest beyond."""
    overloaded: bool
    record: Mapping[str, Any] = field(repr=False)
    pilot: bool = False
    """Whether it was a part of the requests only, for an early stop."""

    @property
    def holds(self) -> bool:
        return self.excess <= 1.0 and not self.overloaded


@dataclass(frozen=True, slots=True)
class Found:
    """Where a search ended."""

    low: float
    """The highest load at which the SLO held; 0: it does not hold at any."""
    high: float
    """The lowest load at which it did not; infinite if none was found."""
    trials: tuple[Trial, ...]
    reason: str = ""
    """Why there is no capacity."""

    @property
    def best(self) -> Trial | None:
        """The run at the highest load that held."""
        held = [trial for trial in self.trials if trial.holds and trial.load == self.low]
        return held[-1] if held else None

    @property
    def binding(self) -> str:
        """What broke at the lowest load that did not hold."""
        missed = [trial for trial in self.trials if trial.load == self.high and not trial.holds]
        if not missed:
            return ""
        return "the queue grows without end" if missed[-1].excess <= 1 else missed[-1].binding


Search = Generator[Scenario, tuple[str, Mapping[str, Any] | None, str], Found]
"""Yields scenarios; is sent (status, record, reason) of each."""


def load_of(scenario: Scenario) -> Load:
    """Which load a scenario is searched over.

    Raises:
        InputError: its arrivals have none that could be turned up.
    """
    if scenario.workload.arrivals.kind == "closed_loop":
        return "concurrency"
    if hasattr(scenario.workload.arrivals, "request_rate"):
        return "request_rate"
    hint = "use poisson or another kind with a request_rate, or closed_loop"
    raise InputError(f"{scenario.where}: workload.arrivals", f"got {scenario.workload.arrivals.kind}", hint)


def search(scenario: Scenario, slo: Sequence[Objective], start: float, tolerance: float, stride: float = 2.0) -> Search:
    """Search the capacity of `scenario` from the load `start` on, until high / low <= 1 + `tolerance`.

    Until the capacity lies between two loads, each load is `stride` times the one before, or divided by it; a stride little
    above 1 suits a `start` that is a good guess.

    The SLO is taken to hold below any load at which it holds; scheduling is not always so kind, and the tolerance of the
    answer is no smaller than such ripples.
    """
    over, whole = load_of(scenario), load_of(scenario) == "concurrency"
    low, high, load = 0.0, math.inf, max(1.0, round(start)) if whole else start
    trials: list[Trial] = []
    latency_s = 0.0
    while True:
        trial, reason = yield from _try(scenario, slo, load, latency_s, trials, piloted=low > 0 and high == math.inf)
        if trial is None:
            return Found(0.0, math.inf, tuple(trials), reason)
        stay_s = (trial.record.get("mean_e2el_ms") or 0.0) / 1e3
        if trial.holds:
            # of a run that misses the SLO it grows with the run, and would make the next one longer and longer
            low, latency_s = max(low, load), stay_s
        else:
            high = min(high, load)
            if _idle(over, load, stay_s) and not low and not trial.overloaded:
                return Found(0.0, high, tuple(trials), f"even at next to no load {_missed(trial)}")
        narrow = high <= low * (1 + tolerance) or (whole and high - low <= 1)
        if (low and narrow) or low >= MOST_LOAD:
            return Found(low, high, tuple(trials))
        load = _next(low, high, stride, whole)


def _next(low: float, high: float, stride: float, whole: bool) -> float:
    if high == math.inf:
        return math.ceil(low * stride) if whole else low * stride
    load = high / stride if not low else math.sqrt(low * high)
    if not whole:
        return load
    return float(max(1, min(round(load), high - 1)) if not low else min(max(round(load), low + 1), high - 1))


def _idle(over: Load, load: float, latency_s: float) -> bool:
    return load <= 1 if over == "concurrency" else load * latency_s < IDLE


def _missed(trial: Trial) -> str:
    return f"{trial.binding} is missed by a factor of {trial.excess:.2f}"


def _try(
    scenario: Scenario,
    slo: Sequence[Objective],
    load: float,
    latency_s: float,
    trials: list[Trial],
    *,
    piloted: bool,
) -> Generator[Scenario, tuple[str, Mapping[str, Any] | None, str], tuple[Trial | None, str]]:
    """Run `load`, first in part and then in full, and again with more requests where they were too few."""
    over = load_of(scenario)
    requests = _enough(scenario, over, load, latency_s)
    pilot = requests // PILOT_SHARE
    # a closed loop begins with all its users at once, so a part of it is no smaller picture of the whole
    counts = [pilot, requests] if piloted and pilot >= 100 and over == "request_rate" else [requests]
    while counts:
        count = counts.pop(0)
        status, record, reason = yield loaded(scenario, over, load, count)
        if record is None or status in ("infeasible", "oom", "failed", "stuck"):
            return None, f"{status}: {reason or 'see the ledger'}"
        trial = _judged(load, count, slo, record, pilot=bool(counts))
        trials.append(trial)
        if counts and trial.excess > PILOT_EXCESS:
            return trial, ""
        needed = _enough(scenario, over, load, (record.get("mean_e2el_ms") or 0.0) / 1e3)
        if not counts and trial.holds and count < 0.8 * needed:
            counts = [needed]
    return trials[-1], ""


def _enough(scenario: Scenario, over: Load, load: float, latency_s: float) -> int:
    """Requests of a run that is long enough to believe."""
    asked = scenario.workload.num_requests or 1000
    least = load * ROUNDS if over == "concurrency" else load * SPANS * latency_s
    return min(max(asked, math.ceil(least)), MOST_REQUESTS)


def loaded(scenario: Scenario, over: Load, load: float, requests: int) -> Scenario:
    """The scenario at a load."""
    value: float | int = int(load) if over == "concurrency" else load
    warmup = scenario.workload.warmup_requests
    if over == "concurrency":
        warmup = min(max(warmup, int(load)), requests - 1)
    return scenario.with_overrides(
        {
            f"workload.arrivals.{over}": value,
            "workload.num_requests": requests,
            "workload.warmup_requests": min(warmup, requests - 1),
            "name": f"{scenario.name}-{over}={load:.6g}-requests={requests}-seed={scenario.workload.seed}",
        }
    )


def _judged(load: float, requests: int, slo: Sequence[Objective], record: Mapping[str, Any], *, pilot: bool) -> Trial:
    worst = max(slo, key=lambda objective: objective.excess(record))
    return Trial(load, requests, worst.excess(record), worst.text, record.get("load") == "overloaded", record, pilot)
