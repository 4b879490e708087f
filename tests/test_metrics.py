"""vLLM's definitions on records small enough to follow by hand, and the gap pool against the pool written out."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import make_result, random_steps, two_users

from sim.results.gaps import GapPool
from sim.results.metrics import gap_pool, peak_concurrency, peak_tokens_per_s

# conventions of `vllm bench serve --save-result`, in its order (its date would differ from run to run)
VLLM_KEYS = [
    "endpoint_type",
    "backend",
    "label",
    "model_id",
    "tokenizer_id",
    "num_prompts",
    "request_rate",
    "burstiness",
    "max_concurrency",
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
    "max_output_tokens_per_s",
    "max_concurrent_requests",
    "rtfx",
]


def written_out(pool: GapPool) -> np.ndarray:
    """Every gap of every token, one by one."""
    parts = [
        np.repeat(first + np.arange(k) * growth, weight)
        for first, growth, k, weight in zip(pool.first_s, pool.growth_s, pool.iterations, pool.weight, strict=True)
    ]
    return np.concatenate([*parts, pool.irregular_s])


def test_summary_of_two_requests_by_hand() -> None:
    summary = two_users().summary
    assert summary["duration"] == 3.75
    assert summary["completed"] == 2
    assert summary["failed"] == 0
    assert summary["total_input_tokens"] == 20
    assert summary["total_output_tokens"] == 8
    assert summary["request_throughput"] == 2 / 3.75
    assert summary["output_throughput"] == 8 / 3.75
    assert summary["total_token_throughput"] == 28 / 3.75
    assert summary["output_throughput_per_gpu"] == 4 / 3.75
    assert summary["mean_ttft_ms"] == (1000 + 1750) / 2
    assert summary["p99_ttft_ms"] == pytest.approx(1000 + 0.99 * 750)
    assert summary["mean_tpot_ms"] == pytest.approx((2250 / 4 + 750 / 2) / 2)
    assert summary["mean_e2el_ms"] == (3250 + 2500) / 2
    assert summary["mean_queue_time_ms"] == 750 / 2
    # gaps: 0.5 0.5 1.0 0.25 of request 0, 0.25 0.5 of request 1
    assert summary["mean_itl_ms"] == 500
    assert summary["median_itl_ms"] == 500
    assert summary["std_itl_ms"] == pytest.approx(250)
    assert summary["max_concurrent_requests"] == 2


def test_vllm_keys_come_first_and_in_order() -> None:
    summary = two_users().summary
    latencies = [
        f"{statistic}_{metric}_ms"
        for metric in ("ttft", "tpot", "itl", "e2el")
        for statistic in ("mean", "median", "std", "p50", "p90", "p95", "p99", "p99.9")
    ]
    assert list(summary)[: len(VLLM_KEYS) + len(latencies)] == VLLM_KEYS + latencies
    assert summary["request_rate"] == 0.8


def test_goodput_counts_requests_that_meet_every_objective() -> None:
    summary = two_users().summary  # TTFT 1.0 and 1.75 against 1.5 s; TPOT 562.5 and 375 ms against 600 ms
    assert summary["request_goodput"] == 1 / 3.75
    assert summary["slo_attainment"] == 0.5


def test_a_request_of_one_token_has_no_tpot_but_counts_as_zero_for_goodput() -> None:
    request = {"first_token_s": 1.0, "finish_s": 1.0, "input_tokens": 4, "output_tokens": 1, "generated_tokens": 1}
    scenario = {"name": "one", "slo": {"tpot": 0.01}, "workload": {"arrivals": {"kind": "burst"}}}
    summary = make_result([request], [], scenario=scenario).summary
    assert summary["mean_tpot_ms"] is None
    assert summary["request_rate"] == "inf"
    assert summary["slo_attainment"] == 1.0
    assert summary["mean_itl_ms"] is None


def test_nothing_finished_is_none_and_never_zero() -> None:
    request = {"first_token_s": math.nan, "finish_s": math.nan, "output_tokens": 9, "status": 2}
    summary = make_result([request], [], simulated_seconds=2.0).summary
    assert summary["completed"] == 0
    assert summary["failed"] == 1
    assert summary["mean_ttft_ms"] is None
    assert summary["p99.9_e2el_ms"] is None
    assert summary["output_throughput"] == 0.0


def test_warmup_requests_leave_the_latencies_and_their_gaps_leave_the_pool() -> None:
    result = two_users()
    result.scenario["workload"]["warmup_requests"] = 1
    summary = result.summary
    assert summary["mean_ttft_ms"] == 1750
    assert summary["completed"] == 2  # throughput still holds the whole run
    assert sorted(written_out(gap_pool(result))) == [0.25, 0.5]
    assert summary["mean_itl_ms"] == 375


def test_peak_output_tokens_are_counted_in_whole_seconds_since_the_first_arrival() -> None:
    result = two_users()  # tokens at 1, 1.5 | 2.0 | 3.0 3.0 3.25 3.25 3.75
    assert peak_tokens_per_s(result) == 5


def test_a_request_that_leaves_makes_room_for_the_one_that_arrives() -> None:
    rows = [{"arrival_s": float(i), "finish_s": i + 1.0} for i in range(5)]
    rows += [
        {"arrival_s": 1.5, "finish_s": 1.5, "status": 1},
        {"arrival_s": math.nan, "finish_s": math.nan, "status": 2},
    ]
    result = make_result(rows, [])
    assert peak_concurrency(result.requests, 10.0) == 1


@settings(derandomize=True, max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), segments=st.integers(1, 40), chunk=st.sampled_from([1, 7, 1000]))
def test_percentiles_equal_numpy_on_the_pool_written_out(seed: int, segments: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    steps = random_steps(rng, segments)
    irregular = rng.uniform(0, 3, rng.integers(0, 4))
    pool = gap_pool(make_result([], steps, irregular_gaps_s=irregular, simulated_seconds=1.0))
    plain = written_out(pool)
    percents = (0.0, 1.0, 50.0, 90.0, 99.0, 99.9, 100.0)
    found = dataclasses.replace(pool, chunk_iterations=chunk).percentiles(percents)
    assert pool.count == len(plain)
    if len(plain):
        assert found == np.percentile(plain, percents).tolist()
        mean, std = pool.mean_std()
        assert mean == pytest.approx(plain.mean(), rel=1e-12)
        assert std == pytest.approx(plain.std(), rel=1e-9, abs=1e-15)
    else:
        assert all(math.isnan(value) for value in found)


def test_an_outlier_does_not_spoil_the_bins() -> None:
    steps = random_steps(np.random.default_rng(1), 50)
    pool = gap_pool(make_result([], steps, irregular_gaps_s=[1e6], simulated_seconds=1.0))
    assert pool.percentiles([50, 99, 100]) == np.percentile(written_out(pool), [50, 99, 100]).tolist()


def test_equal_gaps_have_no_spread() -> None:
    steps = [{"iterations": 1000, "first_s": 0.02, "itl_tokens": 64}]
    pool = gap_pool(make_result([], steps, simulated_seconds=20.0))
    assert pool.count == 64_000
    assert pool.percentiles([50, 99.9]) == [0.02, 0.02]
    assert pool.mean_std() == (pytest.approx(0.02, rel=1e-15), pytest.approx(0.0, abs=1e-15))


def test_the_way_to_the_client_shifts_stamps_but_no_gap() -> None:
    near, far = two_users(), two_users()
    far.exit_s = 4.0  # longer than any iteration: a segment must still find the requests that decode in it
    for name in ("first_token_s", "finish_s"):
        far.requests[name] += 4.0
    far.scenario["workload"]["warmup_requests"] = near.scenario["workload"]["warmup_requests"] = 1
    assert written_out(gap_pool(far)).tolist() == written_out(gap_pool(near)).tolist()
    assert far.summary["p99_itl_ms"] == near.summary["p99_itl_ms"]
    assert far.summary["mean_ttft_ms"] == near.summary["mean_ttft_ms"] + 4000
    assert far.summary["duration"] == 7.75


def test_the_peak_of_a_run_of_a_century_needs_no_array_of_its_seconds() -> None:
    result = two_users()
    result.steps["start_s"][-1] += 4e9  # its tokens now stand alone
    assert 1 <= peak_tokens_per_s(result) <= 5
    near = two_users()
    near.steps["start_s"][-1] += 4e3
    assert peak_tokens_per_s(result) == peak_tokens_per_s(near)
