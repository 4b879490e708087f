"""The shipped scenarios of sparse, large and apart: what they answer is pinned here."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from sim import catalogue
from sim.results.result import Result
from sim.scenario import Scenario
from sim.simulate import simulate

FILES = catalogue.files("scenarios")


@cache
def answer(name: str) -> Result:
    scenario = Scenario.load(FILES[name])
    arrivals = scenario.workload.arrivals
    if arrivals.kind == "trace" and not Path(arrivals.path).exists():
        pytest.skip("its trace is an optional download")
    return simulate(scenario)


def test_deepseek_v3_over_32_gpus_holds_an_eighth_of_nothing_but_experts() -> None:
    """671 G parameters in fp8 over EP32: eight of 256 experts a layer, and all the rest, on each GPU."""
    result = answer("deepseek-v3-4x8h100")
    assert result.num_gpus == 32
    assert 38e9 < result.ledger.per_gpu[0].weights_bytes < 41e9
    assert result.ledger.kv_bytes_per_token == pytest.approx(61 * (512 + 64) * 2)
    # a decode-only iteration of a full group: some 1,500 tokens/s a GPU; with prompts among them a third of that
    assert 30_000 < result.summary["max_output_tokens_per_s"] < 64_000
    assert 10_000 < result.summary["output_throughput"] < 20_000
    assert result.walls_ms_per_token["lock_step"] > 1.0


def test_a_token_of_mixtral_costs_all_experts_once_64_users_ask() -> None:
    result = answer("mixtral-8x7b-2xh100")
    assert result.ledger.max_sequences > 64
    # every expert is touched, so a token costs the read of all 93 GB over two GPUs, and not of the 26 GB that it uses
    assert result.summary["median_itl_ms"] > 46.7e9 / 3.35e12 * 1e3
    assert 18 < result.summary["median_tpot_ms"] < 28


def test_gpt_oss_120b_fits_on_one_gpu() -> None:
    result = answer("gpt-oss-120b-1xh100")
    assert 60e9 < result.ledger.weights_bytes < 68e9
    assert result.ledger.max_sequences > 32
    assert 8 < result.summary["median_tpot_ms"] < 25


def test_405b_in_fp8_on_one_node_is_faster_a_token_than_in_bf16_on_two() -> None:
    fp8, bf16 = answer("llama3-405b-fp8-8xh100"), answer("llama3-405b-bf16-2x8h100")
    assert 405e9 < fp8.ledger.weights_bytes < 415e9
    assert 805e9 < bf16.ledger.weights_bytes < 820e9
    # 51 GB a GPU at 3.35 TB/s is 15 ms; two stages of 51 GB each are 30
    assert 15.3 < fp8.summary["median_itl_ms"] < 35
    assert 30.3 < bf16.summary["median_itl_ms"] < 55
    assert bf16.summary["median_itl_ms"] > 1.3 * fp8.summary["median_itl_ms"]


def test_prefill_apart_keeps_the_objectives_that_mixed_replicas_miss() -> None:
    apart, mixed = (answer(f"llama3-70b-{kind}-16xh100") for kind in ("disaggregated", "aggregated"))
    assert apart.num_gpus == mixed.num_gpus == 16
    assert apart.summary["slo_attainment"] > 0.9
    assert mixed.summary["slo_attainment"] < 0.85
    assert apart.summary["p99_itl_ms"] < 30 < 200 < mixed.summary["p99_itl_ms"]
    assert apart.walls_ms_per_token["kv_transfer"] > 0 == mixed.walls_ms_per_token["kv_transfer"]
    assert mixed.summary["median_ttft_ms"] < apart.summary["median_ttft_ms"]  # four replicas prefill there, two here


def test_chat_with_think_time_leaves_the_gpu_time_to_spare() -> None:
    result = answer("chat-64-users-1xh100")
    assert result.summary["max_concurrent_requests"] <= 64
    # 64 users that think for ten seconds and wait for 1.4 s in the mean
    busy = float(result.summary["mean_e2el_ms"]) / (10_000 + float(result.summary["mean_e2el_ms"]))
    assert 0.08 < busy < 0.2
    assert result.summary["p99_ttft_ms"] < 200


def test_what_a_prefix_cache_is_worth_to_mooncake_chats() -> None:
    plain, cached = answer("mooncake-conv-16xh100"), answer("mooncake-conv-16xh100-cached")
    assert plain.summary["prefix_cache_hit_rate"] == 0
    assert 0.05 < cached.summary["prefix_cache_hit_rate"] < 0.374  # what a cache without end would find
    assert cached.summary["mean_ttft_ms"] < plain.summary["mean_ttft_ms"]
    assert cached.summary["median_tpot_ms"] < plain.summary["median_tpot_ms"]


def test_a_small_model_that_proposes_makes_a_large_one_sooner() -> None:
    drafted = answer("llama3-70b-speculative-4xh100")
    scenario = Scenario.load(FILES["llama3-70b-speculative-4xh100"])
    plain = simulate(scenario.with_overrides({"engine.speculative": None}))
    assert 1.5 < plain.summary["median_tpot_ms"] / drafted.summary["median_tpot_ms"] < 2.2
    assert drafted.summary["median_itl_ms"] > plain.summary["median_itl_ms"]  # several tokens come at once
