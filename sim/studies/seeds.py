"""One scenario under several seeds: what of its answer is the scenario, and what is chance.

Seed s gives request i of every scenario the same arrival, lengths and content (one stream of random numbers for each purpose),
so two scenarios under the same seeds differ by what was changed and not by luck: common random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.results.gaps import GapPool
from sim.results.intervals import (
    CONFIDENCE,
    METHOD_OF_SEEDS,
    Gaps,
    Interval,
    latency_intervals,
    mean_interval,
)
from sim.results.metrics import LATENCIES, PERCENTS, gap_pool, gap_statistics, latencies, statistics_of
from sim.scenario import Scenario
from sim.simulate import simulate
from sim.studies.executor import open_workers

RATES = (
    "request_throughput", "request_goodput", "output_throughput", "total_token_throughput", "output_throughput_per_gpu",
    "output_tokens_per_s_per_user", "slo_attainment", "prefix_cache_hit_rate", "preemptions", "duration",
)  # fmt: skip
"""Keys of the summary that have one value a run: their interval is that of a mean over seeds."""
HEADLINES = {
    "median_ttft_ms": "TTFT p50 ms", "p99_ttft_ms": "TTFT p99 ms", "median_tpot_ms": "TPOT p50 ms",
    "p99_tpot_ms": "TPOT p99 ms", "output_throughput": "output tok/s",
}  # fmt: skip
"""What a line on the terminal has room for."""

Told = Callable[[int], None]
"""Called with the number of runs that are over."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one seed gives."""

    seed: int
    summary: dict[str, Any]
    latencies_s: dict[str, NDArray[np.float64]]
    gaps: GapPool


@dataclass(frozen=True, slots=True)
class Seeds:
    """A scenario over its seeds."""

    scenario: str
    seeds: list[int]
    values: dict[str, float]
    """By key of the summary: quantiles and means of the samples of all seeds together, rates averaged over seeds."""
    intervals: dict[str, Interval]
    by_seed: list[dict[str, Any]]
    """Summary of each seed."""

    def as_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "scenario": self.scenario,
            "seeds": self.seeds,
            "values": self.values,
            "intervals": {key: list(interval) for key, interval in self.intervals.items()},
            "confidence": {"level": CONFIDENCE, "method": METHOD_OF_SEEDS},
        }

    @property
    def line(self) -> str:
        """The headline metrics with their intervals."""
        parts = [
            f"{title} {number(self.values[key])} {span(self.intervals[key])}"
            for key, title in HEADLINES.items()
            if key in self.values
        ]
        return f"Over {len(self.seeds)} seeds ({CONFIDENCE:.0%}): " + "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one scenario is from another under the same seeds."""

    scenario: str
    values: dict[str, float]
    intervals: dict[str, Interval]

    @property
    def line(self) -> str:
        """The headline metrics, and whether chance alone could make the difference."""
        parts = []
        for key, title in HEADLINES.items():
            if key in self.values:
                low, high = self.intervals[key]
                sure = low is not None and high is not None and not low <= 0 <= high
                parts.append(
                    f"{title} {self.values[key]:+,.4g} {span((low, high))}{'' if sure else ' (may be chance)'}"
                )
        return f"{self.scenario}: " + "; ".join(parts)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def span(interval: Interval) -> str:
    """An interval in brackets; a side that the samples do not bound is a question mark."""
    return "[" + ", ".join("?" if end is None else number(end) for end in interval) + "]"


def play(data: dict[str, Any], where: str, seed: int) -> Sample:
    """One run of the scenario written in `data`, with another seed; plain data in and out, so any process can do it.

    Raises:
        InputError, DoesNotFit: as `simulate`.
    """
    result = simulate(Scenario.from_dict(data, where).with_overrides({"workload.seed": seed}))
    return Sample(seed, result.summary, latencies(result), gap_pool(result))


def several(scenario: Scenario, count: int, jobs: int | None = None, told: Told = lambda _: None) -> Seeds:
    """Runs `scenario` under `count` seeds, from its own upwards.

    Args:
        jobs: processes at a time; None: one a core.

    Raises:
        InputError, DoesNotFit: as `simulate`.
    """
    data, first = scenario.to_dict(), scenario.workload.seed
    with open_workers(count=jobs) as workers:
        futures = [workers.submit(play, data, scenario.where, seed) for seed in range(first, first + count)]
        samples = []
        for future in futures:
            samples.append(future.result())
            told(len(samples))
    return together(scenario.name, samples)


def together(name: str, samples: Sequence[Sample]) -> Seeds:
    """The answer of several seeds: each is a batch of samples that is independent of the others."""
    batches = {key: [sample.latencies_s[key] for sample in samples] for key in samples[0].latencies_s}
    gaps = Gaps.of_seeds([sample.gaps for sample in samples])
    intervals = latency_intervals(batches, gaps)
    values: dict[str, float] = {}
    for latency in (*LATENCIES, "queue_time"):
        pooled = gap_statistics(gaps.pool) if latency == "itl" else statistics_of(np.concatenate(batches[latency]))
        wanted = ("mean", "median", *(f"p{percent:g}" for percent in PERCENTS))
        values |= {f"{key}_{latency}_ms": found for key in wanted if (found := pooled[key]) is not None}
    for key in RATES:
        found_each = [float(sample.summary[key]) for sample in samples if sample.summary[key] is not None]
        if found_each:
            values[key] = float(np.mean(found_each))
            intervals[key] = mean_interval(found_each)
    kept = {key: interval for key, interval in intervals.items() if key in values}
    return Seeds(name, [sample.seed for sample in samples], values, kept, [sample.summary for sample in samples])


def difference(first: Seeds, other: Seeds) -> Difference:
    """Mean of `other` - `first` over their common seeds, seed by seed: luck that both had cancels."""
    pairs = list(zip(first.by_seed, other.by_seed, strict=True))
    values: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    for key in (*(key for key in first.values if key not in RATES), *RATES):
        found = [b[key] - a[key] for a, b in pairs if a.get(key) is not None and b.get(key) is not None]
        if found and key in first.values:
            values[key], intervals[key] = float(np.mean(found)), mean_interval(found)
    return Difference(other.scenario, values, intervals)


def table(found: Seeds) -> str:
    """Every metric with its interval."""
    from sim.results.console import table as text

    shown = {key: value for key, value in found.values.items() if not key.startswith("p50_")}  # the median again
    rows = [[key, number(value), span(found.intervals[key])] for key, value in shown.items()]
    return text(["metric", "value", f"{CONFIDENCE:.0%} interval"], rows)


def differences_record(found: Sequence[Difference]) -> list[Mapping[str, Any]]:
    """As `--json` prints them."""
    return [
        {
            "scenario": one.scenario,
            "values": one.values,
            "intervals": {key: list(interval) for key, interval in one.intervals.items()},
        }
        for one in found
    ]
