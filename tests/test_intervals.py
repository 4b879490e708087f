"""Confidence intervals hold the true value as often as they say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from records import make_result, random_steps, two_users
from scipy import stats

from sim.results.export import record, to_json
from sim.results.gaps import GapPool
from sim.results.intervals import (
    Gaps,
    in_batches,
    independent_ranks,
    mean_interval,
    quantile_interval,
    run_intervals,
    student_t,
)

SEEDS = 200
CERTAIN = 0.999
"""A wrong coverage is called so only with this certainty."""


def misses(intervals: list[tuple[float | None, float | None]], truth: float) -> int:
    return sum((low is not None and low > truth) or (high is not None and high < truth) for low, high in intervals)


def too_many(share: float) -> float:
    """More misses than this do not come from intervals that miss `share` of the time."""
    return float(stats.binom.ppf(CERTAIN, SEEDS, share))


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 19, 40])
def test_student_is_student(freedom: int) -> None:
    assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


@pytest.mark.parametrize(("count", "share"), [(5, 0.5), (100, 0.5), (100, 0.99), (1000, 0.99), (100_000, 0.999)])
def test_ranks_of_independent_samples_are_binomial(count: int, share: float) -> None:
    low, high = independent_ranks(count, share)
    assert (low, high - 1) == tuple(stats.binom.ppf([0.025, 0.975], count, share))
    assert stats.binom.cdf(high - 1, count, share) - stats.binom.cdf(low - 1, count, share) >= 0.95


def test_a_hundred_samples_do_not_bound_their_p99_from_above() -> None:
    low, high = quantile_interval([np.arange(100.0)], 0.99)
    assert (low, high) == (96.0, None)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_the_interval_of_an_exponential_quantile_holds_it_nineteen_times_of_twenty(share: float) -> None:
    truth = float(stats.expon.ppf(share))
    alone, batched = [], []
    for seed in range(SEEDS):
        samples = np.random.default_rng(seed).exponential(size=1000)
        alone.append(quantile_interval([samples], share))
        batched.append(quantile_interval(in_batches(samples), share))
    assert misses(alone, truth) <= too_many(0.05)
    # of independent samples the ranks are those of 95 %, no wider than whole ranks make them
    assert misses(alone, truth) >= stats.binom.ppf(1 - CERTAIN, SEEDS, 0.03)
    assert misses(batched, truth) <= misses(alone, truth)


def correlated(seed: int, count: int, memory: float) -> NDArray[np.float64]:
    """Exponential samples that remember: an autoregressive normal series through the exponential's quantiles."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=count) * np.sqrt(1 - memory**2)
    series = np.empty(count)
    series[0] = random.normal()
    for i in range(1, count):
        series[i] = memory * series[i - 1] + noise[i]
    return np.asarray(stats.expon.ppf(stats.norm.cdf(series)))


def test_samples_that_remember_need_batches() -> None:
    truth = float(stats.expon.ppf(0.9))
    runs = [correlated(seed, 2000, 0.9) for seed in range(SEEDS)]
    assert misses([quantile_interval([run], 0.9) for run in runs], truth) > 3 * too_many(0.05)
    # 19 independent samples' worth in a batch of 100: the batches still lean on each other a little
    assert misses([quantile_interval(in_batches(run), 0.9) for run in runs], truth) <= too_many(0.08)


def test_seeds_are_batches() -> None:
    truth = float(stats.expon.ppf(0.9))
    found = [
        quantile_interval([correlated(5 * study + seed, 500, 0.95) for seed in range(5)], 0.9) for study in range(SEEDS)
    ]
    assert misses(found, truth) <= too_many(0.08)


def test_the_interval_of_a_mean_is_students() -> None:
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.3026527 / 3**0.5, 2 + 4.3026527 / 3**0.5))
    assert mean_interval([1.0]) == (None, None)
    found = [
        mean_interval(np.random.default_rng(seed).exponential(size=(20, 50)).mean(axis=1)) for seed in range(SEEDS)
    ]
    assert misses(found, 1.0) <= too_many(0.05)


def pool(seed: int) -> GapPool:
    steps = random_steps(np.random.default_rng(seed), 400)
    return GapPool(steps["first_s"], steps["growth_s"], steps["iterations"], steps["itl_tokens"], np.array([0.1, 0.2]))


def written_out(gaps: GapPool) -> NDArray[np.float64]:
    regular = [
        np.repeat(first + growth * np.arange(count), weight)
        for first, growth, count, weight in zip(gaps.first_s, gaps.growth_s, gaps.iterations, gaps.weight, strict=True)
    ]
    return np.concatenate([*regular, gaps.irregular_s])


def test_gaps_are_counted_without_being_written_out() -> None:
    pools = [pool(seed) for seed in range(4)]
    every = [written_out(one)[:-2] for one in pools]
    gaps = Gaps.of_seeds(pools)
    below, weights = gaps.below(0.03)
    assert weights == [len(gap_s) for gap_s in every]
    assert below == pytest.approx([float((gap_s <= 0.03).mean()) for gap_s in every])
    assert gaps.means() == pytest.approx([float(gap_s.mean()) for gap_s in every])
    whole = np.concatenate([written_out(one) for one in pools])
    for percent, (low, high) in zip((50.0, 99.0), gaps.quantiles((50.0, 99.0)), strict=True):
        assert low is not None
        assert high is not None
        assert low <= np.percentile(whole, percent) <= high
        assert np.isclose(whole, low, rtol=1e-12).any()
        assert np.isclose(whole, high, rtol=1e-12).any()


def test_every_interval_of_a_run_holds_its_estimate() -> None:
    random = np.random.default_rng(3)
    count = 600
    arrival_s = np.cumsum(random.exponential(0.1, count))
    requests = [
        {"id": i, "arrival_s": t, "scheduled_s": t + 0.1 * u, "first_token_s": t + 0.2 + u, "finish_s": t + 2 + 3 * u,
         "input_tokens": 8, "output_tokens": 5, "generated_tokens": 5}
        for i, (t, u) in enumerate(zip(arrival_s, random.random(count), strict=True))
    ]  # fmt: skip
    result = make_result(requests, random_steps(random, 500))
    found = run_intervals(result)
    assert {"mean_ttft_ms", "median_tpot_ms", "p99_itl_ms", "p99.9_e2el_ms", "p90_queue_time_ms"} <= set(found)
    for key, (low, high) in found.items():
        value = result.summary[key]
        assert low is None or low <= value * (1 + 1e-12), key
        assert high is None or high >= value * (1 - 1e-12), key


def test_a_run_of_two_requests_bounds_little_and_json_says_null() -> None:
    result = two_users()
    assert run_intervals(result)["median_ttft_ms"] == (None, None)
    # two samples say that the P99 is hardly below both of them
    assert run_intervals(result)["p99_ttft_ms"] == (1750.0, None)
    assert json.loads(to_json(record(result)))["intervals"]["p99_ttft_ms"] == [1750.0, None]
