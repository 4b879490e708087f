"""How far the error of the calibrated constants moves an answer: the same requests, constants drawn from their errors.

Every kernel fit, kind of link and the engine's own times take a factor, log-normal with the spread that their measurements
leave (`sim.results.provenance`). A factor is common to all shapes of a kernel kind, as if a fit erred everywhere alike, so
the intervals are rather too wide than too narrow. Not drawn: printed numbers, memory, the requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.engine.scaling import Scaling
from sim.results.intervals import CONFIDENCE, Interval
from sim.results.metrics import LATENCIES
from sim.results.provenance import Origin
from sim.scenario import Scenario
from sim.simulate import simulate
from sim.studies.executor import open_workers
from sim.studies.seeds import number, span

DRAWS = 40
"""Sets of constants that are drawn if nobody says."""
METRICS = (
    *(f"{statistic}_{latency}_ms" for latency in LATENCIES for statistic in ("mean", "median", "p99")),
    "request_throughput", "request_goodput", "output_throughput", "output_throughput_per_gpu",
    "output_tokens_per_s_per_user", "slo_attainment",
)  # fmt: skip
METHOD = "calibrated constants drawn from their errors"
DRIVEN = 3
"""Constants named for each metric, the strongest first."""

Metrics = dict[str, float | None]
Told = Callable[[int], None]
"""Called with the number of runs that are over."""


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """A scenario's answer with what its constants leave open."""

    scenario: str
    base: Metrics
    draws: int
    intervals: dict[str, Interval]
    """The middle `CONFIDENCE` of the draws, by key of the summary."""
    components: list[Origin]
    """What was drawn, with its spread."""
    drivers: dict[str, list[tuple[str, float]]]
    """For each metric (what moves it, share of its variance), the strongest first."""

    def as_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "scenario": self.scenario,
            "draws": self.draws,
            "values": self.base,
            "intervals": {key: list(interval) for key, interval in self.intervals.items()},
            "confidence": {"level": CONFIDENCE, "method": METHOD},
            "components": [{"number": one.number, "log_std": one.log_std} for one in self.components],
            "drivers": {
                key: [{"number": name, "share": share} for name, share in found] for key, found in self.drivers.items()
            },
        }


def uncertainty(
    scenario: Scenario, draws: int = DRAWS, jobs: int | None = None, told: Told = lambda _: None
) -> Uncertainty:
    """Simulates `scenario` as it is and with `draws` sets of constants; the seed stays, so do all random numbers.

    Args:
        jobs: processes at a time; None: one a core.

    Raises:
        InputError, DoesNotFit: as `simulate`.
    """
    result = simulate(scenario)
    components = [origin for origin in result.provenance if origin.log_std > 0]
    normal = _latin_hypercube(draws, len(components), scenario.workload.seed)
    data, found = scenario.to_dict(), []
    with open_workers(count=jobs) as workers:
        futures = [workers.submit(_play, data, scenario.where, scaling(components, row)) for row in normal]
        for future in futures:
            found.append(future.result())
            told(len(found))
    base = {key: result.summary[key] for key in METRICS}
    columns = {key: [row[key] for row in found] for key in METRICS}
    whole = {key: np.array(column, dtype=float) for key, column in columns.items() if None not in column}
    tail = (1 - CONFIDENCE) / 2
    intervals = {
        key: (float(np.quantile(column, tail)), float(np.quantile(column, 1 - tail))) for key, column in whole.items()
    }
    drivers = {key: _drivers(column, normal, components) for key, column in whole.items()}
    return Uncertainty(scenario.name, base, draws, dict(intervals), components, drivers)


def _latin_hypercube(draws: int, dimensions: int, seed: int) -> NDArray[np.float64]:
    """Standard normal numbers, [draw, dimension]: of every dimension one in each of `draws` equally likely slices (McKay,
    Beckman and Conover 1979), so that few draws cover the tails of all."""
    random, quantile = np.random.default_rng([seed, draws]), NormalDist().inv_cdf
    columns = [
        [
            quantile((place + shift) / draws)
            for place, shift in zip(random.permutation(draws), random.random(draws), strict=True)
        ]
        for _ in range(dimensions)
    ]
    return np.array(columns, dtype=float).T.reshape(draws, dimensions)


def scaling(components: Sequence[Origin], normal: Sequence[float] | NDArray[np.float64]) -> Scaling:
    """The factors that a draw of standard normal numbers, one a component, stands for."""
    kernels: dict[tuple[str, str, str], float] = {}
    collectives: dict[str, float] = {}
    host = 1.0
    for origin, z in zip(components, normal, strict=True):
        factor = float(np.exp(origin.log_std * z))
        match origin.component:
            case ("kernel", gpu, kind, dtype):
                kernels[gpu, kind, dtype] = factor
            case ("collective", link):
                collectives[link] = factor
            case _:
                host = factor
    return Scaling(host_overhead=host, kernel_times=kernels, collective_times=collectives)


def _play(data: dict[str, Any], where: str, factors: Scaling) -> Metrics:
    """One run with scaled constants; plain data in and out, so any process can do it."""
    summary = simulate(Scenario.from_dict(data, where), scaling=factors).summary
    return {key: summary[key] for key in METRICS}


def _drivers(
    column: NDArray[np.float64], normal: NDArray[np.float64], components: Sequence[Origin]
) -> list[tuple[str, float]]:
    """Squared rank correlation of a metric with each component, the largest first."""
    if np.ptp(column) == 0 or len(column) < 3:
        return []
    ranks = column.argsort().argsort()
    shares = [float(np.corrcoef(ranks, drawn.argsort().argsort())[0, 1] ** 2) for drawn in normal.T]
    named = [(one.number, share) for one, share in zip(components, shares, strict=True)]
    return sorted(named, key=lambda pair: -pair[1])[:DRIVEN]


def line(found: Uncertainty) -> str:
    """The headline metrics with their intervals."""
    shown: Mapping[str, str] = {"mean_ttft_ms": "TTFT mean ms", "mean_tpot_ms": "TPOT mean ms",
                                "output_throughput": "output tok/s"}  # fmt: skip
    parts = [
        f"{title} {number(value)} {span(found.intervals[key])}"
        for key, title in shown.items()
        if (value := found.base[key]) is not None and key in found.intervals
    ]
    return f"Constants leave open ({CONFIDENCE:.0%} of {found.draws} draws): " + "; ".join(parts)


def table(found: Uncertainty) -> str:
    """Every metric with its interval and what drives it, and the spread of what was drawn."""
    from sim.results.console import table as text

    # what chance alone reaches one time in twenty (two standard errors of a correlation, squared), or too little to matter
    least = max(0.1, 4 / (found.draws - 1))
    rows = [
        [key, "n/a" if found.base[key] is None else number(found.base[key] or 0.0), span(interval),
         ", ".join(f"{name} {share:.0%}" for name, share in found.drivers[key] if share >= least)
         or ("too few draws to say" if found.drivers[key] and least > 0.5 else "")]
        for key, interval in found.intervals.items()
    ]  # fmt: skip
    drawn = [[one.number, one.kind, f"{np.expm1(one.log_std):.1%}"] for one in found.components]
    return "\n\n".join(
        [
            text(["metric", "value", f"{CONFIDENCE:.0%} interval", "moved by (share of its variance)"], rows),
            text(["drawn", "", "one standard deviation"], drawn),
        ]
    )
