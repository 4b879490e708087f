"""Who runs and who waits over time: Little's law, at every granularity, and lanes of a pipeline that count once."""

from __future__ import annotations

import numpy as np
import pytest
from engine_runs import AffineCost, play, workload
from records import make_result

from sim.results.assertions import measure
from sim.results.occupancy import mean_over_time, over_time, peak
from sim.scenario import Scenario
from sim.simulate import simulate


def test_a_replica_that_idles_holds_nothing() -> None:
    steps = [
        {"replica": 0, "start_s": 0.0, "iterations": 2, "first_s": 1.0, "running": 3},
        {"replica": 0, "start_s": 2.0, "iterations": 1, "first_s": 1.0, "running": 1},
        {"replica": 0, "start_s": 5.0, "iterations": 1, "first_s": 1.0, "running": 2},
        {"replica": 1, "start_s": 1.0, "iterations": 1, "first_s": 4.5, "running": 10},
    ]
    times, values = over_time(make_result([], steps), "running")
    assert dict(zip(times.tolist(), values.tolist(), strict=True)) == {
        0.0: 3, 1.0: 13, 2.0: 11, 3.0: 10, 5.0: 12, 5.5: 2, 6.0: 0,
    }  # fmt: skip


@pytest.mark.parametrize("granularity", ["leap", "step"])
def test_who_comes_in_the_middle_of_a_leap_waits_from_then_on(granularity: str) -> None:
    """One place, 0.1 s an iteration: the first holds it for 5 s, the second comes after 4 s and waits for one."""
    load, cost = workload([(0.0, 4, 50), (4.0, 4, 10)]), AffineCost(0.1, 0.0, 0.0, 0.0)
    run = play(load, cost=cost, granularity=granularity, max_num_seqs=1, async_scheduling=False)
    result = make_result(run.requests, run.steps)
    assert result.end_s == pytest.approx(6.0)
    assert mean_over_time(result, "running") == pytest.approx(1.0)
    assert mean_over_time(result, "waiting") == pytest.approx(1.0 / 6.0)
    assert measure(result, "waiting.mean") == pytest.approx(1.0 / 6.0)
    assert (measure(result, "waiting.p50"), measure(result, "waiting.max")) == (0.0, 1.0)


def test_a_preempted_request_waits_again() -> None:
    """Four blocks of four tokens: two grow until they need five, and one has to stand back."""
    run = play(
        workload([(0.0, 4, 8), (0.0, 4, 8)]), blocks=4, cost=AffineCost(0.1, 0.0, 0.0, 0.0), async_scheduling=False
    )
    result = make_result(run.requests, run.steps)
    assert result.preemptions == 1
    times, waiting = over_time(result, "waiting")
    assert times[waiting > 0].tolist() == [0.5, 0.6]
    assert mean_over_time(result, "waiting") == pytest.approx((0.8 - 0.5) / 1.1)


def test_the_lanes_of_a_pipeline_share_their_requests() -> None:
    """Sixteen users, two batches in flight over one queue: no more than sixteen run, and the KV cache is not counted twice."""
    result = simulate(Scenario.from_dict({
        "model": "llama-3.1-8b",
        "cluster": {"topology": "dgx-h100"},
        "deployment": {"pipeline_parallel_size": 2},
        "engine": {"max_num_batched_tokens": 1024},
        "workload": {
            "arrivals": {"kind": "closed_loop", "concurrency": 16},
            "lengths": {"kind": "fixed", "input_tokens": 256, "output_tokens": 64},
            "num_requests": 64,
        },
    }))  # fmt: skip
    assert len(np.unique(result.steps["replica"])) == 2
    assert peak(result, "running") == 16
    assert 14 < mean_over_time(result, "running") < 16
    assert mean_over_time(result, "running") + mean_over_time(result, "waiting") == pytest.approx(16, abs=0.3)
    assert peak(result, "used_blocks") <= 16 * 20
