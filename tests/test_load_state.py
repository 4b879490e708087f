"""Stable, backlogged or overloaded: the verdict on single-server queues whose load is known."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from engine_runs import AffineCost, play
from records import make_result

from sim.results.result import Result
from sim.results.verdict import load_state
from sim.workload.workload import Workload

SECONDS_PER_TOKEN, MEAN_TOKENS = 0.01, 200
SEEDS = 20


def queue(load: float, requests: int, seed: int, equal: bool = False) -> Result:
    """One server, exponential gaps between arrivals, exponential (or equal) service times: M/M/1 (or M/D/1)."""
    random = np.random.default_rng(seed)
    drawn = np.full(requests, MEAN_TOKENS) if equal else random.exponential(MEAN_TOKENS, requests)
    outputs = np.maximum(np.rint(drawn), 1).astype(np.int64)
    arrivals = np.cumsum(random.exponential(MEAN_TOKENS * SECONDS_PER_TOKEN / load, requests))
    workload = Workload(np.ones(requests, dtype=np.int64), outputs, arrivals)
    run = play(workload, max_num_seqs=1, blocks=4096, cost=AffineCost(SECONDS_PER_TOKEN, 0.0, 0.0, 0.0))
    scenario = {"name": "queue", "model": "m", "workload": {"arrivals": {"kind": "poisson", "request_rate": 1.0}}}
    return make_result(run.requests, run.steps, scenario=scenario)


def states(load: float, requests: int, equal: bool = False) -> Counter[str]:
    return Counter(load_state(queue(load, requests, seed, equal)) for seed in range(SEEDS))


@pytest.mark.parametrize("equal", [False, True], ids=["M/M/1", "M/D/1"])
def test_a_queue_at_seven_tenths_is_stable(equal: bool) -> None:
    assert states(0.7, 1000, equal)["stable"] == SEEDS


@pytest.mark.parametrize("requests", [400, 1000])
def test_a_queue_just_below_its_capacity_is_backlogged(requests: int) -> None:
    found = states(0.97, requests)
    assert found["backlogged"] >= 0.85 * SEEDS
    # the noise of such a queue is as large as a slow growth: twice its standard error in one run of forty
    assert found["overloaded"] <= 0.1 * SEEDS


@pytest.mark.parametrize("equal", [False, True], ids=["M/M/1", "M/D/1"])
def test_a_queue_beyond_its_capacity_is_overloaded(equal: bool) -> None:
    assert states(1.2, 1000, equal)["overloaded"] == SEEDS
    assert states(1.2, 400, equal)["overloaded"] >= 0.85 * SEEDS
    assert states(2.0, 100, equal)["overloaded"] == SEEDS


def test_a_rush_that_is_over_is_not_an_overload() -> None:
    arrivals = np.concatenate([np.linspace(0, 40, 100), np.linspace(400, 1400, 300)])
    workload = Workload(np.ones(400, dtype=np.int64), np.full(400, MEAN_TOKENS, dtype=np.int64), arrivals)
    run = play(workload, max_num_seqs=1, blocks=4096, cost=AffineCost(SECONDS_PER_TOKEN, 0.0, 0.0, 0.0))
    assert load_state(make_result(run.requests, run.steps)) == "stable"
