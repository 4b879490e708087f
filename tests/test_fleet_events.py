"""Replicas that fail, come back, start cold, or follow the load: nothing is lost, and cold is as slow as the wires say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_scenarios import changed

from sim.engine.deployment import Deployment
from sim.engine.fleet import Fleet
from sim.engine.fleet_events import weights_s
from sim.errors import InputError
from sim.results.result import Result
from sim.scenario import Scenario
from sim.simulate import Run, plan_memory, prepare, simulate

EXACT = 1e-9
MIXED = {
    "arrivals": {"kind": "poisson", "request_rate": 30.0},
    "lengths": {"kind": "lognormal", "input_mean": 300, "input_cv": 1.0, "output_mean": 80, "output_cv": 1.0,
                "max_tokens": 2000},
    "num_requests": 150,
}  # fmt: skip


def event(at: str, replica: int, kind: str) -> dict[str, Any]:
    return {"at": at, "replica": replica, "event": kind}


BLINK = [event("1 s", 0, "fail"), event("2 s", 0, "start")]


def scenario(events: list[dict[str, Any]] | None = None, data: int = 2, **changes: Any) -> Scenario:
    content: dict[str, Any] = {
        "model": "llama-3.1-8b",
        "cluster": {"topology": "dgx-h100"},
        "deployment": {"data_parallel_size": data, "events": events or []},
        "engine": {"max_num_seqs": 64},
        "workload": MIXED,
    }
    return changed(content, changes)


def run(asked: Scenario) -> Result:
    found = simulate(asked)
    assert found.broken_laws == []
    return found


def cold_s(asked: Scenario, source: str = "host") -> float:
    deployment = Deployment.of(asked)
    return weights_s(deployment, plan_memory(asked), 0, source)


# --- nothing is lost ------------------------------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "it comes back": {},
    "for good": {"events": [event("1 s", 0, "fail")]},
    "twice": {"events": [*BLINK, event("3.5 s", 0, "fail"), event("3.6 s", 0, "start")]},
    "both, one after the other": {"events": [*BLINK, event("4 s", 1, "fail"), event("4.1 s", 1, "start")]},
    "all at once": {"events": [*BLINK, event("1 s", 1, "fail"), event("2.5 s", 1, "start")]},
    "while it starts": {"events": [*BLINK, event("2.1 s", 0, "fail"), event("2.2 s", 0, "start")]},
    "synchronous": {"engine": {"async_scheduling": False}},
    "preemption": {"engine": {"num_gpu_blocks_override": 150}},
    "prefix cache": {"engine": {"enable_prefix_caching": True}, "workload": {"shared_prefix": {"tokens": 256}},
                     "deployment": {"router": "prefix_affinity"}},
    "conversations": {"workload": {"sessions": {"turns": [1, 4], "pause": "100 ms"}},
                      "deployment": {"router": "session_affinity"}},
    "round robin": {"deployment": {"router": "round_robin"}},
    "power of two": {"data": 3, "deployment": {"router": "power_of_two"}},
    "least KV": {"deployment": {"router": "least_kv"}},
    "closed loop": {"workload": {"arrivals": {"kind": "closed_loop", "concurrency": 20}}},
    "speculation": {"engine": {"speculative": {
        "num_speculative_tokens": 3, "acceptance_rate": 0.7, "draft_cost": 0.05}}},
    "shortest first": {"engine": {"scheduler": "sjf"}},
    "static": {"engine": {"scheduler": "static"}},
    "several kinds": {"data": 1, "deployment": {"pools": [
        {"name": "small", "replicas": 2}, {"name": "large", "tensor_parallel_size": 4}]}},
    "groups that share a port": {"cluster": {"topology": "cloud-h100-100gbe", "nodes": 2},
                                 "deployment": {"tensor_parallel_size": 8, "placement": "spread"}},
}  # fmt: skip


@pytest.mark.parametrize("granularity", ["leap", "step"])
@pytest.mark.parametrize("case", CASES)
def test_every_request_is_answered_whole(case: str, granularity: str) -> None:
    options = {"events": BLINK} | CASES[case]
    begun = prepare(scenario(**options).with_overrides({"granularity": granularity}))
    found = begun.result(begun.cluster.run())
    assert found.broken_laws == []
    assert found.status == "done"
    assert found.summary["completed"] == 150
    assert found.requests["preemptions"].sum() > 0
    for replica in begun.fleet.replicas:
        assert replica.scheduler.pool.free == replica.scheduler.pool.usable_blocks
        assert replica.outstanding == 0


@pytest.mark.parametrize("case", CASES)
def test_leap_is_step(case: str) -> None:
    asked = scenario(**({"events": BLINK} | CASES[case]))
    leap, step = (run(asked.with_overrides({"granularity": g})) for g in ("leap", "step"))
    for column in step.requests:
        np.testing.assert_allclose(leap.requests[column], step.requests[column], rtol=EXACT, err_msg=column)


def test_nobody_serves_between_failure_and_weights() -> None:
    asked = scenario(BLINK)
    found = run(asked)
    mine = found.steps["replica"] == 0
    starts = found.steps["start_s"][mine]
    ready_s = 2.0 + cold_s(asked)
    assert not ((starts > 1.0) & (starts < ready_s)).any()
    assert (starts >= ready_s).any()
    assert ((found.steps["start_s"] + found.steps["first_s"] * found.steps["iterations"])[mine & (
        found.steps["start_s"] < 1.0)] <= 1.0 + 1e-9).all()  # fmt: skip


def test_a_failure_costs_those_it_hits_and_the_ledger_says_so() -> None:
    whole, hit = run(scenario()), run(scenario([event("1 s", 0, "fail")]))
    lost = hit.requests["preemptions"] > 0
    assert 0 < lost.sum() < 150
    assert hit.walls_ms_per_token["preemption"] > 0 == whole.walls_ms_per_token["preemption"]
    # they go on where they were: the tokens that a client has are not sampled twice
    assert hit.requests["generated_tokens"].sum() == whole.requests["generated_tokens"].sum()
    assert np.nanmean((hit.requests["finish_s"] - whole.requests["finish_s"])[lost]) > 0


def test_without_anyone_requests_wait_for_the_first_that_starts() -> None:
    events = [event("1 s", 0, "fail"), event("5 s", 0, "start")]
    asked = scenario(events, data=1)
    found = run(asked)
    ready_s = 5.0 + cold_s(asked)
    waited = (found.requests["arrival_s"] > 1.0) & (found.requests["arrival_s"] < 4.9)
    assert waited.any()
    assert (found.requests["scheduled_s"][waited] >= ready_s - 1e-9).all()


def test_without_anyone_for_good_the_run_says_so() -> None:
    found = run(scenario([event("1 s", 0, "fail")], data=1))
    assert found.status == "stuck"
    assert any("no replica is there" in note for note in found.notes)
    assert found.summary["cut"] > 0


def test_a_run_that_is_cut_while_all_are_down() -> None:
    events = [event("1 s", 0, "fail"), event("5 s", 0, "start")]
    found = run(scenario(events, data=1, workload={"time_limit": "3 s"}))
    assert found.status == "timed_out"
    assert found.summary["cut"] > 50


def test_a_replica_whose_first_event_is_start_joins_later() -> None:
    asked = scenario([event("2 s", 1, "start")])
    found = run(asked)
    assert found.steps["start_s"][found.steps["replica"] == 1].min() >= 2.0 + cold_s(asked)
    assert found.requests["preemptions"].sum() == 0


# --- cold -----------------------------------------------------------------------------------------------------------------


def test_weights_come_over_the_host_link_or_the_network() -> None:
    """16.06 GB: over PCIe 5 at 64 GB/s, or over a port of 400 Gbit/s; with TP8 each GPU an eighth, four over one socket link."""
    one = scenario(data=1)
    weights = plan_memory(one).per_gpu[0].weights_bytes
    assert cold_s(one) == pytest.approx(weights / 64e9)
    assert cold_s(one, "network") == pytest.approx(weights / 50e9)
    eight = scenario(data=1, deployment={"tensor_parallel_size": 8})
    each = plan_memory(eight).per_gpu[0].weights_bytes
    assert cold_s(eight) == pytest.approx(2 * each / 64e9)  # two GPUs share a PCIe switch
    assert cold_s(eight, "network") == pytest.approx(each / 50e9)


def test_what_starting_takes_beside_the_weights() -> None:
    late = {"cold_start": {"startup": "1 s", "weights_from": "network"}}
    asked = scenario([event("1 s", 1, "start")], deployment=late)
    found = run(asked)
    assert found.steps["start_s"][found.steps["replica"] == 1].min() >= 2.0 + cold_s(asked, "network")


# --- by the load ------------------------------------------------------------------------------------------------------------


def scaled(**rule: Any) -> Scenario:
    """Two calm stretches, and a rush of 10 s between them."""
    stages = [{"duration": "10 s", "request_rate": r} for r in (4, 60, 4)]
    load = {"arrivals": {"kind": "piecewise", "stages": stages}, "num_requests": None}
    autoscale = {"target_outstanding": 16, "interval": "1 s"} | rule
    return scenario(data=4, workload=load, deployment={"autoscale": autoscale})


def test_replicas_follow_the_load() -> None:
    found = run(scaled())
    used = [
        len(np.unique(found.steps["replica"][(found.steps["start_s"] >= t) & (found.steps["start_s"] < t + 1)]))
        for t in range(30)
    ]
    assert max(used[:10]) == 1
    assert max(used[11:21]) >= 3
    assert used[27] == 1
    assert found.status == "done"
    note = next(note for note in found.notes if note.startswith("fleet"))
    assert 1.0 < float(note.split()[1]) < 3.0


def test_fewer_requests_a_replica_need_more_replicas() -> None:
    means = []
    for target in (4, 16, 64):
        begun = prepare(scaled(target_outstanding=target))
        end_s = begun.cluster.run(None).end_s
        assert begun.changes is not None
        means.append(begun.changes.mean_replicas(end_s))
    assert means[0] > means[1] > means[2] >= 1.0


def test_bounds_hold() -> None:
    found = run(scaled(min=2, max=3))
    assert set(np.unique(found.steps["replica"])) <= {0, 1, 2}


def test_nobody_is_cut_off_by_scaling_down() -> None:
    found = run(scaled(target_outstanding=4, interval="200 ms"))
    assert found.requests["preemptions"].sum() == 0
    assert found.summary["completed"] == len(found.requests["id"])


def test_a_stuck_clock_is_still_found() -> None:
    """A request that can never be admitted does not keep the autoscaler looking for ever."""
    asked = scaled().with_overrides({"engine.num_gpu_blocks_override": 20})
    load = asked.build_workload()
    outcome = Run(Fleet(asked, load), load, None).cluster.run()  # `prepare` would refuse it
    assert "can never be admitted" in outcome.stuck


# --- what makes no sense ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deployment", "problem"),
    [
        ({"events": [event("1 s", 5, "fail")]}, "replica 5 of 2"),
        ({"events": BLINK, "autoscale": {"target_outstanding": 4}}, "both given"),
        ({"autoscale": {"target_outstanding": 4, "max": 3}}, "3 replicas of 2"),
        ({"autoscale": {"target_outstanding": 4, "min": 2, "max": 1}}, "less than min"),
        ({"events": BLINK, "pipeline_parallel_size": 2}, "plain replicas"),
    ],
)
def test_what_makes_no_sense_is_refused(deployment: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        scenario(deployment=deployment)
