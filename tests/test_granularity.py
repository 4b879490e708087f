"""Leap, step and layer are one simulation at three speeds: equal to 1e-9, only the number of events differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_runs import AffineCost, play, workload

from sim import catalogue
from sim.results.result import Result
from sim.scenario import Scenario
from sim.simulate import plan_memory, simulate

TOLERANCE = 1e-9
LAYER_ITERATIONS = 200

# shipped scenarios whose full size is a matter of seconds in step: fewer requests show the same phases
CUT = {
    "azure-conv-4xh100": 250,
    "chat-64-users-1xh100": 300,
    "deepseek-v3-4x8h100": 2048,
    "gpt-oss-120b-1xh100": 64,
    "llama3-70b-2xh100-64way": 110,
    "llama3-70b-2xh100-64way-edge": 80,
    "llama3-70b-2xh100-64way-fp8": 160,
    "llama3-70b-2xh100-64way-oom": None,
    "llama3-70b-one-gpu-int4": 64,
    "llama3-70b-two-gpus-bf16": 64,
    "llama3-70b-aggregated-16xh100": 120,
    "llama3-70b-disaggregated-16xh100": 120,
    "llama3-70b-speculative-4xh100": 24,
    "llama3-405b-bf16-2x8h100": 64,
    "llama3-405b-fp8-8xh100": 64,
    "mixtral-8x7b-2xh100": 128,
    "mooncake-conv-16xh100": 120,
    "mooncake-conv-16xh100-cached": 120,
    "synthetic-conv-4xh100": 200,
}


def shipped() -> list[str]:
    return list(catalogue.files("scenarios"))


def load(name: str, **overrides: Any) -> Scenario:
    """A shipped scenario, cut; skips one whose trace is not on this machine, or that does not fit."""
    changes: dict[str, object] = {} if CUT.get(name) is None else {"workload.num_requests": CUT[name]}
    scenario = Scenario.load(catalogue.files("scenarios")[name], changes | overrides)
    source = scenario.workload.arrivals
    if source.kind == "trace" and not Path(source.path).exists():
        pytest.skip("its trace is an optional download")
    if not plan_memory(scenario).fits:
        pytest.skip("does not fit: refused before the clock starts")
    return scenario


def small(**changes: Any) -> Scenario:
    """120 mixed requests on one 8B model; a section given by `changes` is merged into it."""
    data: dict[str, Any] = {
        "model": "llama-3.1-8b",
        "cluster": {"topology": "dgx-h100"},
        "engine": {},
        "workload": {
            "arrivals": {"kind": "poisson", "request_rate": 20.0},
            "lengths": {"kind": "lognormal", "input_mean": 400, "input_cv": 1.0, "output_mean": 100, "output_cv": 1.0,
                        "max_tokens": 4000},
            "num_requests": 120,
        },
    }  # fmt: skip
    for section, value in changes.items():
        data[section] = data[section] | value if isinstance(data.get(section), dict) else value
    return Scenario.from_dict(data)


def at(scenario: Scenario, granularity: str, **overrides: Any) -> Result:
    return simulate(scenario.with_overrides({"granularity": granularity} | overrides))


def assert_close(name: str, left: Any, right: Any, scale: float = 0.0) -> None:
    """Equal to 1e-9 of each value, or of `scale` where that is larger."""
    left, right = np.asarray(left, dtype=float), np.asarray(right, dtype=float)
    assert left.shape == right.shape, name
    np.testing.assert_allclose(left, right, rtol=TOLERANCE, atol=TOLERANCE * scale, err_msg=name)


def assert_same_run(fast: Result, slow: Result) -> None:
    """Every stamp of every request, every number of the summary, every cause, to 1e-9."""
    assert fast.status == slow.status
    assert fast.preemptions == slow.preemptions
    assert fast.steps["iterations"].sum() == slow.steps["iterations"].sum()
    for name in slow.requests:
        assert_close(name, fast.requests[name], slow.requests[name])
    assert fast.summary.keys() == slow.summary.keys()
    for name, value in slow.summary.items():
        if isinstance(value, (int, float)):
            # a deviation is what rounding leaves where all requests are alike: its scale is that of the mean
            mean = slow.summary[name.replace("std_", "mean_")] if name.startswith("std_") else 0.0
            assert_close(name, fast.summary[name], value, mean)
        else:
            assert fast.summary[name] == value
    total_ms = sum(slow.walls_ms_per_token.values())
    for cause, ms in slow.walls_ms_per_token.items():
        assert_close(cause, fast.walls_ms_per_token[cause], ms, total_ms)
    for result in (fast, slow):
        assert result.broken_laws == []


ALWAYS_STEP = {"deepseek-v3-4x8h100", "llama3-70b-speculative-4xh100"}
"""Ranks in lock-step, and speculation, run iteration by iteration, whatever is asked."""

# --- what is shipped -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_scenario_leaps_as_it_steps(name: str) -> None:
    scenario = load(name)
    leap, step = at(scenario, "leap"), at(scenario, "step")
    assert_same_run(leap, step)
    # the naive engine crashes among the first prompts, before there is anything to leap over
    never = name in ALWAYS_STEP or scenario.deployment.pipeline_parallel_size > 1 or step.status == "oom"
    assert leap.events == step.events if never else leap.events < step.events


@pytest.mark.parametrize("name", sorted(set(shipped()) - ALWAYS_STEP))
def test_its_first_200_iterations_are_the_same_layer_by_layer(name: str) -> None:
    scenario = load(name)
    whole = at(scenario, "step").steps
    # the clock stops in the middle of the iteration after the two hundredth
    last = min(LAYER_ITERATIONS, len(whole["start_s"]) - 1)
    limit_s = float(whole["start_s"][last] + whole["first_s"][last] / 2)
    last = int((whole["start_s"] + whole["first_s"] <= limit_s).sum())  # other replicas end theirs at other times
    limit = {"workload.time_limit": f"{limit_s!r} s"}
    step, layer = at(scenario, "step", **limit), at(scenario, "layer", **limit)
    for column in whole.keys() - {"growth_s"}:  # a layer's iterations are rows of their own: nothing grows within one
        assert_close(column, layer.steps[column][:last], whole[column][:last])
    for column in step.requests:
        assert_close(column, layer.requests[column], step.requests[column])
    assert len(layer.steps["start_s"]) >= last
    assert layer.events > 20 * step.events


# --- what is not: every feature of the engine that could tell the two apart ------------------------------------------

LONG = {"lengths": {"kind": "uniform", "input_tokens": [3000, 6000], "output_tokens": [50, 400]}, "num_requests": 40}
PREFIX = {"shared_prefix": {"tokens": 512, "prefixes": 3}}
CASES: dict[str, dict[str, Any]] = {
    "asynchronous scheduling": {"engine": {"async_scheduling": True}},
    "synchronous scheduling": {"engine": {"async_scheduling": False}},
    "small prefill chunks": {"engine": {"max_num_batched_tokens": 256}},
    "whole prompts": {"engine": {"enable_chunked_prefill": False}},
    "long_prefill_token_threshold": {"engine": {"long_prefill_token_threshold": 128}},
    "few places": {"engine": {"max_num_seqs": 4}},
    "preemption": {"engine": {"num_gpu_blocks_override": 400}},
    "preemption, synchronous": {"engine": {"num_gpu_blocks_override": 400, "async_scheduling": False}},
    "preemption, vLLM 0.11": {"engine": {"num_gpu_blocks_override": 400, "version": "0.11.0"}},
    "watermark": {"engine": {"num_gpu_blocks_override": 500, "watermark": 0.1}},
    "prefix caching": {"engine": {"enable_prefix_caching": True}, "workload": PREFIX},
    "prefix caching, little room": {
        "engine": {"enable_prefix_caching": True, "num_gpu_blocks_override": 600},
        "workload": PREFIX,
    },
    "prompts launched by the host": {"engine": {"preset": "trtllm"}},
    "everything launched by the host": {"engine": {"preset": "trtllm", "cuda_graphs": False}},
    "everything launched by the host, synchronous": {
        "engine": {"preset": "trtllm", "cuda_graphs": False, "async_scheduling": False}
    },
    "a server that streams slower than its engine": {
        "engine": {"preset": "sglang"},
        "workload": {"arrivals": {"kind": "closed_loop", "concurrency": 400}, "num_requests": 1200},
    },
    "two replicas": {"deployment": {"data_parallel_size": 2}},
    "two replicas that preempt": {
        "deployment": {"data_parallel_size": 2},
        "engine": {"num_gpu_blocks_override": 300},
        "workload": {"arrivals": {"kind": "burst"}},
    },
    "tensor parallel": {"deployment": {"tensor_parallel_size": 4}},
    "sliding window on every layer": {"model": "mistral-7b", "workload": LONG},
    "sliding window on every other layer": {"model": "gpt-oss-20b"},
    "sliding window of thousands": {"model": "gemma-2-9b", "workload": LONG},
    "latent attention": {"model": "deepseek-v2-lite"},
    "users who think": {
        "workload": {"arrivals": {"kind": "closed_loop", "concurrency": 16, "think_time": "100 ms", "ramp": "1 s"}}
    },
    "everybody at once": {"workload": {"arrivals": {"kind": "burst"}}},
    "cut by the time limit": {"workload": {"time_limit": "1 s"}},
    "cut in the middle of a leap": {
        "workload": {"arrivals": {"kind": "burst"}, "num_requests": 4, "time_limit": "500 ms"}
    },
    "the back of an envelope": {"engine": {"preset": "ideal"}},
    "out of memory among the decodes": {
        "engine": {"on_kv_full": "oom", "num_gpu_blocks_override": 30},
        "workload": {
            "arrivals": {"kind": "burst"},
            "lengths": {"kind": "fixed", "input_tokens": 100, "output_tokens": 100},
            "num_requests": 4,
        },
    },
}


@pytest.mark.parametrize("case", CASES)
def test_leap_and_step_agree_with(case: str) -> None:
    leap, step = at(small(**CASES[case]), "leap"), at(small(**CASES[case]), "step")
    assert_same_run(leap, step)
    assert leap.events < step.events
    if "preempt" in case:
        assert leap.preemptions > 0
    if "prefix" in case:
        assert leap.requests["cached_tokens"].max() >= 512


@pytest.mark.parametrize(
    "case",
    [
        "asynchronous scheduling",
        "preemption",
        "sliding window on every other layer",
        "everything launched by the host",
        "everything launched by the host, synchronous",
    ],
)
def test_three_granularities_of_a_whole_run(case: str) -> None:
    changes = CASES[case] | {"workload": {"num_requests": 12}}
    leap, step, layer = (at(small(**changes), granularity) for granularity in ("leap", "step", "layer"))
    assert_same_run(leap, step)
    assert_same_run(step, layer)
    assert leap.events < step.events < layer.events
    assert layer.events > 20 * step.events


@pytest.mark.parametrize("granularity", ["leap", "layer"])
def test_a_token_under_way_when_the_clock_stops_does_not_count(granularity: str) -> None:
    lengths = {"kind": "fixed", "input_tokens": 100, "output_tokens": 50}
    scenario = small(workload={"arrivals": {"kind": "burst"}, "lengths": lengths, "num_requests": 1})
    steps = at(scenario, "step").steps
    limit = {"workload.time_limit": f"{float(steps['start_s'][20] + steps['first_s'][20] * (1 - 1e-6))!r} s"}
    assert at(scenario, "step", **limit).requests["generated_tokens"].tolist() == [20]
    assert at(scenario, granularity, **limit).requests["generated_tokens"].tolist() == [20]


# --- ties -------------------------------------------------------------------------------------------------------------


def test_an_arrival_at_the_end_of_an_iteration_is_seen_by_the_schedule_of_that_time() -> None:
    # Eight iterations of 0.1 s end at 0.8 s; added one after another they would end at 0.7999999999999999 s.
    load = workload([(0.0, 8, 40), (0.8, 8, 2)])
    for granularity in ("leap", "step"):
        run = play(load, cost=AffineCost(0.1, 0.0, 0.0, 0.0), granularity=granularity)
        assert run.requests["scheduled_s"].tolist() == [0.0, 0.8]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("context_s", [0.0, 1e-3])
def test_whatever_ties_leap_and_step_end_at_the_same_times_to_the_last_digit(is_async: bool, context_s: float) -> None:
    for seed in range(60):
        random = np.random.default_rng(seed)
        rows = [(float(t) / 10, int(p), int(o)) for t, p, o in random.integers([0, 1, 1], [60, 12, 30], (12, 3))]
        load = workload(sorted(rows))
        cost = AffineCost(0.1, 0.0, 0.0, context_s)
        limits = {"max_num_seqs": 3, "blocks": 24, "async_scheduling": is_async, "cost": cost}
        leap, step = play(load, granularity="leap", **limits), play(load, granularity="step", **limits)
        for name, column in leap.requests.items():
            assert column.tolist() == step.requests[name].tolist(), (seed, name)
