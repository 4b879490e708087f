"""Confidence intervals of means and quantiles, from samples that depend on each other.

Latencies of one run are correlated: a queue that stands delays everyone in it. So the run is cut into batches in the order
of arrival, each long enough to be nearly independent of the next (batch means; Law, "Simulation Modeling and Analysis",
chapter 9); several seeds are batches that are independent by construction. The interval of a quantile is one of order
statistics: the share of samples below the quantile is a mean, whose interval over the batches gives the ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from sim.results.gaps import GapPool
from sim.results.metrics import LATENCIES, PERCENTS, gap_pool, latencies
from sim.results.result import Result

CONFIDENCE = 0.95
BATCHES = 20
"""Batches of one run: with 10 to 30 the interval is neither too short nor noisy (Schmeiser 1982)."""
LEAST_IN_BATCH = 10
"""Samples a batch; a run with fewer than two such batches says nothing of its own noise."""
METHOD = "order statistics, batch means of one run, 95 %"
METHOD_OF_SEEDS = "order statistics, seeds as batches, 95 %"

Floats = NDArray[np.float64]
Interval = tuple[float | None, float | None]
"""(low, high); None where there are too few samples to bound that side."""


@cache
def student_t(freedom: int) -> float:
    """Student's t that leaves half of 1 - `CONFIDENCE` on each side, by bisection of the finite sums for whole degrees of
    freedom (Abramowitz and Stegun 26.7.3 and 26.7.4): SciPy takes 0.3 s to import, a run may take less."""
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, freedom) < CONFIDENCE else (low, middle)
    return low


def _student_within(t: float, freedom: int) -> float:
    """Probability that |T| < t."""
    theta = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = 1.0, 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(theta) ** 2 * k / (k + 1)
    if not odd:
        return math.sin(theta) * total
    inner = math.sin(theta) * math.cos(theta) * total if freedom > 1 else 0.0
    return 2 / math.pi * (theta + inner)


@cache
def independent_ranks(count: int, share: float) -> tuple[int, int]:
    """Ranks (from 1) of the order statistics that hold the `share` quantile of `count` independent samples between them
    with probability `CONFIDENCE` or more; 0 and count + 1 stand for no bound.

    The number of samples below the quantile is binomial, whatever the distribution.
    """
    deviation = math.sqrt(count * share * (1 - share))
    first, last = max(0, int(count * share - 9 * deviation) - 9), min(count, int(count * share + 9 * deviation) + 9)
    below = np.arange(first, last + 1, dtype=np.float64)
    steps = np.log(count - below[:-1]) - np.log(below[:-1] + 1) + math.log(share / (1 - share))
    weight = np.exp((total := np.concatenate([[0.0], np.cumsum(steps)])) - total.max())
    reached = np.cumsum(weight) / weight.sum()
    tail = (1 - CONFIDENCE) / 2
    low = first + int(np.searchsorted(reached, tail, side="right"))
    high = first + int(np.searchsorted(reached, 1 - tail, side="left")) + 1
    return low, high


def ranks(count: int, share: float, below: Sequence[float], weights: Sequence[float]) -> tuple[int, int]:
    """Ranks of the order statistics around the `share` quantile of `count` samples in batches.

    Never closer than those of independent samples: a few batches may agree by chance.

    Args:
        below: of every batch, the share of its samples that are not above the quantile.
        weights: of every batch, its part of the samples.
    """
    low, high = independent_ranks(count, share)
    batches = len(below)
    if batches > 1:
        parts, whole = np.asarray(weights) * batches / np.sum(weights), float(np.average(below, weights=weights))
        variance = float(np.sum((parts * (np.asarray(below) - whole)) ** 2)) / (batches - 1)
        # in log odds, so that the interval of a share near 1 stays below 1
        half = student_t(batches - 1) * math.sqrt(variance / batches) / (share * (1 - share))
        odds = math.log(share / (1 - share))
        low = min(low, math.floor(count * _logistic(odds - half)))
        high = max(high, min(count + 1, math.ceil(count * _logistic(odds + half)) + 1))
    return low, high


def _logistic(odds: float) -> float:
    return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0


def quantile_interval(batches: Sequence[Floats], share: float) -> Interval:
    """Interval of the `share` quantile of the samples of all batches."""
    samples = np.sort(np.concatenate(batches)) if batches else np.zeros(0)
    count = len(samples)
    if not count:
        return None, None
    middle = np.quantile(samples, share)
    filled = [batch for batch in batches if len(batch)]
    low, high = ranks(
        count, share, [float((batch <= middle).mean()) for batch in filled], [len(batch) for batch in filled]
    )
    return (
        float(samples[low - 1]) if low >= 1 else None,
        float(samples[high - 1]) if high <= count else None,
    )


def mean_interval(means: Sequence[float]) -> Interval:
    """Student's interval of the mean of independent values, one a batch or a seed; none of fewer than two."""
    count = len(means)
    if count < 2:
        return None, None
    mean = math.fsum(means) / count
    half = student_t(count - 1) * math.sqrt(math.fsum((value - mean) ** 2 for value in means) / (count - 1) / count)
    return mean - half, mean + half


def in_batches(samples: Floats) -> list[Floats]:
    """The samples of one run, in the order of arrival, cut into batches."""
    return np.array_split(samples, max(1, min(BATCHES, len(samples) // LEAST_IN_BATCH)))


@dataclass(frozen=True, slots=True)
class Gaps:
    """A pool of gaps with the batch of each of its segments."""

    pool: GapPool
    batch: NDArray[np.int64]

    @classmethod
    def of_run(cls, result: Result) -> Gaps:
        """The gaps of one run in batches of equal stretches of time."""
        pool, end_s = gap_pool(result), max(result.end_s, 1e-12)
        count = max(1, min(BATCHES, len(result.steps["start_s"]) // LEAST_IN_BATCH))
        share = np.asarray(result.steps["start_s"], dtype=np.float64) / end_s
        return cls(pool, np.minimum((share * count).astype(np.int64), count - 1))

    @classmethod
    def of_seeds(cls, pools: Sequence[GapPool]) -> Gaps:
        """The gaps of several runs, a batch each."""
        joined = GapPool(
            first_s=np.concatenate([pool.first_s for pool in pools]),
            growth_s=np.concatenate([pool.growth_s for pool in pools]),
            iterations=np.concatenate([pool.iterations for pool in pools]),
            weight=np.concatenate([pool.weight for pool in pools]),
            irregular_s=np.concatenate([pool.irregular_s for pool in pools]),
        )
        return cls(joined, np.repeat(np.arange(len(pools)), [len(pool.first_s) for pool in pools]))

    def _by_batch(self, values: Floats) -> Floats:
        return np.asarray(np.bincount(self.batch, weights=values * self.pool.weight), dtype=np.float64)

    def below(self, limit_s: float) -> tuple[list[float], list[float]]:
        """(share of each batch's gaps that are not above `limit_s`, gaps of each batch); batches without gaps are left
        out, and so are irregular gaps, which are few and bear no time."""
        pool = self.pool
        # contexts only grow, and iterations with them
        grows = pool.growth_s > 0
        reached = np.floor((limit_s - pool.first_s) / np.where(grows, pool.growth_s, 1.0)) + 1
        inside = np.where(grows, reached, np.where(pool.first_s <= limit_s, pool.iterations, 0))
        counts = self._by_batch(pool.iterations.astype(np.float64))
        found = self._by_batch(np.clip(inside, 0, pool.iterations))
        full = counts > 0
        return list(found[full] / counts[full]), list(counts[full])

    def quantiles(self, percents: Sequence[float]) -> list[Interval]:
        """Intervals of percentiles, in seconds."""
        count = self.pool.count
        if not count:
            return [(None, None)] * len(percents)
        middles = self.pool.percentiles(percents)
        found = [ranks(count, p / 100, *self.below(m)) for p, m in zip(percents, middles, strict=True)]
        # a percentile of rank r (from 1) among n is 100 (r - 1) / (n - 1), without interpolation
        asked = [min(max(rank, 1), count) for pair in found for rank in pair]
        values = iter(self.pool.percentiles([100 * (rank - 1) / max(count - 1, 1) for rank in asked]))
        ends = [(next(values), next(values)) for _ in found]
        return [
            (low_s if low >= 1 else None, high_s if high <= count else None)
            for (low, high), (low_s, high_s) in zip(found, ends, strict=True)
        ]

    def means(self) -> list[float]:
        """Mean gap of each batch, in seconds."""
        pool, k = self.pool, self.pool.iterations.astype(np.float64)
        counts, sums = self._by_batch(k), self._by_batch(k * pool.first_s + pool.growth_s * k * (k - 1) / 2)
        return [float(total / count) for total, count in zip(sums, counts, strict=True) if count]


def latency_intervals(batches: Mapping[str, Sequence[Floats]], gaps: Gaps) -> dict[str, Interval]:
    """Intervals in milliseconds by the summary's key (`p99_ttft_ms`), of mean, median and percentiles.

    Args:
        batches: samples in seconds, by latency: ttft, tpot, e2el, queue_time.
        gaps: for itl.
    """
    found: dict[str, Interval] = {}
    for name in (*LATENCIES, "queue_time"):
        if name == "itl":
            mean, quantiles = mean_interval(gaps.means()), gaps.quantiles(PERCENTS)
        else:
            mean = mean_interval([float(batch.mean()) for batch in batches[name] if len(batch)])
            quantiles = [quantile_interval(batches[name], percent / 100) for percent in PERCENTS]
        named = {"mean": mean, "median": quantiles[PERCENTS.index(50.0)]}
        named |= {f"p{percent:g}": one for percent, one in zip(PERCENTS, quantiles, strict=True)}
        found |= {f"{key}_{name}_ms": _in_ms(one) for key, one in named.items()}
    return found


def _in_ms(interval: Interval) -> Interval:
    low, high = interval
    return None if low is None else low * 1e3, None if high is None else high * 1e3


def run_intervals(result: Result) -> dict[str, Interval]:
    """95 % intervals of the latencies of one run, from its own batches."""
    samples = latencies(result)
    return latency_intervals({name: in_batches(values) for name, values in samples.items()}, Gaps.of_run(result))
