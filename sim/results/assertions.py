"""The `assert:` lines of a scenario, held against its run."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.errors import InputError, nearest
from sim.results.gaps import Floats
from sim.results.metrics import gap_pool, latencies, segment_s
from sim.results.occupancy import over_time
from sim.results.result import Result
from sim.scenario.assertion import Assertion, metric_names

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_REQUEST_METRICS = ("ttft", "tpot", "e2el", "queue_time")
_TIME_METRICS = {"kv_usage": "used_blocks", "running": "running"}


@dataclass(frozen=True)
class Verified:
    """What became of one assertion."""

    text: str
    held: bool
    actual: float | None
    """The measured value in SI units; None where there was nothing to measure, and then it does not hold."""


def verify(assertions: Iterable[Assertion], result: Result) -> list[Verified]:
    """Hold every assertion against the run.

    Raises:
        InputError: for a metric that no run has, with the nearest name.
    """
    verified = []
    for assertion in assertions:
        actual = measure(result, assertion.metric)
        held = actual is not None and _OPERATORS[assertion.operator](actual, assertion.value)
        verified.append(Verified(assertion.text, held, actual))
    return verified


def measure(result: Result, metric: str) -> float | None:
    """The value of a metric such as `ttft.p99` or `output_throughput` in SI units; None if there is nothing to measure.

    `kv_usage`, `running` and `waiting` are weighted by time: the first two of every replica alike, `waiting` of all together.

    Raises:
        InputError: no run has this metric.
    """
    name, _, statistic = metric.partition(".")
    if statistic:
        return _statistic(result, name, statistic)
    if name not in result.summary or isinstance(result.summary[name], (str, dict, list)):
        raise InputError("assert", f"got the metric '{metric}', which no run has", nearest(metric, metric_names()))
    value = result.summary[name]
    return None if value is None else float(value)


def _statistic(result: Result, name: str, statistic: str) -> float | None:
    if name == "itl":
        pool = gap_pool(result)
        if not pool.count:
            return None
        mean, std = pool.mean_std()
        return {"mean": mean, "std": std}.get(statistic, pool.percentiles([_percent(statistic)])[0])
    if name in _REQUEST_METRICS:
        return _of_samples(latencies(result)[name], statistic)
    if name in _TIME_METRICS:
        values = result.steps[_TIME_METRICS[name]] / (1 if name != "kv_usage" else result.kv_blocks or np.nan)
        return _of_times(values[~np.isnan(values)], segment_s(result.steps)[~np.isnan(values)], statistic)
    if name == "waiting":
        times, values = over_time(result, name)
        # nobody waits before the first arrival
        lasts_s = np.diff(times.clip(0.0, result.end_s), prepend=0.0, append=result.end_s)
        return _of_times(np.concatenate([[0.0], values]), lasts_s, statistic)
    raise InputError("assert", f"got the metric '{name}', which no run has", nearest(name, metric_names()))


def _of_samples(samples: Floats, statistic: str) -> float | None:
    if not len(samples):
        return None
    if statistic in ("mean", "std"):
        return float(samples.mean() if statistic == "mean" else samples.std())
    return float(np.percentile(samples, _percent(statistic)))


def _of_times(values: Floats, lasts_s: Floats, statistic: str) -> float | None:
    """A statistic of a step function of time: the p-th percentile is the value not exceeded during p % of the time."""
    if not lasts_s.sum() > 0:
        return None
    mean = float(np.average(values, weights=lasts_s))
    if statistic == "mean":
        return mean
    if statistic == "std":
        return float(np.sqrt(np.average((values - mean) ** 2, weights=lasts_s)))
    return float(np.quantile(values, _percent(statistic) / 100, weights=lasts_s, method="inverted_cdf"))


def _percent(statistic: str) -> float:
    """The percentile that a statistic's name stands for: median, min, max or p99.9."""
    named = {"median": 50.0, "min": 0.0, "max": 100.0, "mean": 50.0, "std": 50.0}
    return named[statistic] if statistic in named else float(statistic.removeprefix("p"))
