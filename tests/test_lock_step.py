"""Data-parallel ranks in lock-step: one iteration for all, as long as the slowest; who waits is written down."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_scenarios import changed

from sim.cost.causes import INDEX
from sim.cost.experts import ExpertCost, LockStepCost
from sim.cost.step import StepCost
from sim.engine.batch import SchedulerLimits
from sim.engine.batching import VllmScheduler
from sim.engine.clock import Clock
from sim.engine.cluster import Cluster
from sim.engine.deployment import Deployment
from sim.engine.fleet import Fleet
from sim.engine.kv_cache import BlockPool
from sim.engine.lock_step import LockStepGroup, LockStepPricing, LockStepRank
from sim.engine.pricing import StagePricing
from sim.engine.recorder import Columns, Recorder
from sim.engine.replica import Replica
from sim.engine.router import LeastOutstanding
from sim.errors import InputError
from sim.model.operators import operators
from sim.results.result import Result
from sim.results.walls import Walls
from sim.scenario import Scenario
from sim.simulate import Run, simulate
from sim.workload.workload import Workload

EXACT = 1e-9
MIXED = {
    "arrivals": {"kind": "poisson", "request_rate": 60.0},
    "lengths": {"kind": "lognormal", "input_mean": 300, "input_cv": 1.0, "output_mean": 40, "output_cv": 1.0,
                "max_tokens": 2000},
    "num_requests": 60,
}  # fmt: skip


def scenario(data: int = 4, tensor: int = 1, **changes: Any) -> Scenario:
    content: dict[str, Any] = {
        "model": "mixtral-8x7b",
        "cluster": {"topology": "dgx-h100"},
        "deployment": {
            "data_parallel_size": data, "tensor_parallel_size": tensor, "enable_expert_parallel": True,
        },
        "engine": {"max_num_batched_tokens": 1024, "max_num_seqs": 64},
        "workload": MIXED,
    }  # fmt: skip
    return changed(content, changes)


def run(asked: Scenario) -> Result:
    found = simulate(asked)
    assert found.broken_laws == []
    assert found.status == "done"
    return found


# --- every run keeps the laws ---------------------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "four ranks": {},
    "two ranks of two GPUs": {"data": 2, "tensor": 2},
    "two nodes": {"data": 16, "cluster": {"nodes": 2}, "model": "qwen3-30b-a3b"},
    "deepep": {"deployment": {"all2all_backend": "deepep"}},
    "skewed": {"deployment": {"expert_load": {"kind": "zipf", "exponent": 1.0}}},
    "overlap": {"deployment": {"two_batch_overlap": True}},
    "synchronous": {"engine": {"async_scheduling": False}},
    "ideal": {"engine": {"preset": "ideal"}},
    "preemption": {"engine": {"num_gpu_blocks_override": 128}, "workload": {"arrivals": {"kind": "burst"}}},
    "closed loop": {"workload": {"arrivals": {"kind": "closed_loop", "concurrency": 9}}},
    "prefix cache": {"engine": {"enable_prefix_caching": True}, "workload": {"shared_prefix": {"tokens": 256}}},
    "sliding windows": {"model": "gpt-oss-20b"},
    "shortest first": {"engine": {"scheduler": "sjf"}},
    "round robin": {"deployment": {"router": "round_robin"}},
}


@pytest.mark.parametrize("case", CASES)
def test_every_law_holds_and_nothing_is_lost(case: str) -> None:
    found = run(scenario(**CASES[case]))
    assert found.summary["completed"] == 60
    assert (found.preemptions > 0) == (case == "preemption")
    steps = found.steps
    # ranks that start together end together
    for column in ("first_s", "group_rows", "widest_rows", "overlapped"):
        for start in np.unique(steps["start_s"]):
            assert len(np.unique(steps[column][steps["start_s"] == start])) == 1
    assert len(np.unique(steps["replica"])) > 1


@pytest.mark.parametrize("granularity", ["step", "layer"])
def test_it_is_the_same_at_every_granularity(granularity: str) -> None:
    leap, other = run(scenario()), run(scenario(granularity=granularity))
    assert leap.requests["finish_s"].tobytes() == other.requests["finish_s"].tobytes()


def test_swapping_is_refused() -> None:
    with pytest.raises(InputError, match="swap"):
        simulate(scenario(engine={"on_kv_full": "swap"}))


def test_prefill_and_decode_groups_apart() -> None:
    asked = scenario().to_dict()
    asked["deployment"] |= {"data_parallel_size": 1, "pools": [
        {"name": "prompts", "role": "prefill", "replicas": 4}, {"name": "tokens", "role": "decode", "replicas": 4},
    ]}  # fmt: skip
    found = run(Scenario.from_dict(asked))
    assert found.summary["completed"] == 60
    assert found.walls_ms_per_token["kv_transfer"] > 0
    prompts, tokens = found.steps["replica"] < 4, found.steps["replica"] >= 4
    # a decode rank computes the first token's KV only, for the prompt's came over the wires
    np.testing.assert_array_equal(found.steps["prefill_tokens"][tokens], found.steps["prefills"][tokens])
    assert found.steps["decodes"][prompts].sum() == 0


# --- one rank is a replica ------------------------------------------------------------------------------------------------


def one_rank(load: Workload, lock_step: bool, **limits: Any) -> tuple[Columns, Columns]:
    """Mixtral on one H200-like pair, as a plain replica or as a group of one rank."""
    deployment = Deployment.of(scenario(1, 2, workload={"num_requests": 1}))
    stage = operators(deployment.model, deployment.precision, deployment.sharding)
    ranks, options = deployment.placement[0][0], {"max_tokens": 1024, "max_seqs": 64, "async_scheduling": True}
    backend, wires = deployment._slowest(ranks), deployment.communicator(ranks)
    env, recorder = Clock(), Recorder()
    cluster = Cluster(env, load, recorder, LeastOutstanding(), max_model_len=1 << 20)
    limit = SchedulerLimits(max_num_seqs=64, max_num_batched_tokens=1024, async_scheduling=True, **limits)
    scheduler = VllmScheduler(limit, BlockPool(400, 16))
    replica: Replica
    if lock_step:
        experts = ExpertCost(stage, backend, None, tensor=2, data=1, clock=deployment.preset.sustained_clock)
        pricing = StagePricing(LockStepCost(stage, backend, wires, deployment.preset, experts=experts, **options))
        group = LockStepGroup(env)
        replica = LockStepRank(group, env, 0, scheduler, pricing, recorder, cluster.over)
        group.pricing = LockStepPricing([pricing])
    else:
        pricing = StagePricing(StepCost(stage, backend, wires, deployment.preset, **options))
        replica = Replica(env, 0, scheduler, pricing, recorder, cluster.over, leaps=False)
    cluster.replicas.append(replica)
    cluster.run()
    assert scheduler.pool.free == 400
    return recorder.request_columns(), recorder.step_columns()


def test_a_group_of_one_rank_is_a_plain_replica() -> None:
    random = np.random.default_rng(3)
    arrivals = np.sort(random.uniform(0, 2, 50))
    load = Workload(random.integers(10, 800, 50), random.integers(1, 100, 50), arrivals, None)
    plain, group = one_rank(load, False), one_rank(load, True)
    assert plain[0]["preemptions"].sum() > 0
    for one, other in zip(plain, group, strict=True):
        for column in (name for name in one if name != "growth_s"):
            np.testing.assert_allclose(other[column], one[column], rtol=EXACT, err_msg=column)


# --- the price of company -------------------------------------------------------------------------------------------------


def lone(output_tokens: int = 4, **changes: Any) -> Scenario:
    """One request of 64 tokens."""
    fixed = {"kind": "fixed", "input_tokens": 64, "output_tokens": output_tokens}
    return scenario(**changes, workload={"arrivals": {"kind": "burst"}, "lengths": fixed, "num_requests": 1})


def test_idle_ranks_run_along_padded_to_the_largest() -> None:
    asked = lone()
    found, deployment = run(asked), Deployment.of(asked)
    cost = deployment.cost(0)
    assert isinstance(cost, LockStepCost)
    np.testing.assert_array_equal(found.steps["group_rows"], [4 * 64, 4, 4, 4])
    shared_s = [cost.experts.experts_s(n) + cost.experts.exchange_s(n, n // 4) for n in (256, 4)]
    prefill_s = cost.token_s[64] + cost.sampled_s[1] + cost.chunks_s([(0, 64)]) + shared_s[0]
    decode_s = cost.token_s[1] + cost.sampled_s[1] + cost.decode_fixed_s[1] + cost.full_slope_s[1] * 65 + shared_s[1]
    np.testing.assert_allclose(found.steps["first_s"][:2], [prefill_s, decode_s], rtol=EXACT)
    assert found.walls_ms_per_token["lock_step"] == pytest.approx(0.0, abs=1e-9)


def test_beyond_the_graphs_every_rank_has_its_own_rows() -> None:
    fixed = {"kind": "fixed", "input_tokens": 700, "output_tokens": 2}
    asked = scenario(workload={"arrivals": {"kind": "burst"}, "lengths": fixed, "num_requests": 1})
    found = run(asked)
    assert found.steps["group_rows"][0] == 700 + 3
    assert found.steps["widest_rows"][0] == 700


def test_a_decoding_rank_waits_for_the_prompt_of_another() -> None:
    """Rank 0 decodes when a prompt of 1000 tokens reaches rank 1: that iteration is as long for both, and rank 0 waits."""
    rows = np.array([[0.0, 64, 40], [0.1, 1000, 2]])
    load = Workload(rows[:, 1].astype(int), rows[:, 2].astype(int), rows[:, 0], None)
    asked = scenario(2, workload={"num_requests": 2})
    run_ = Run(Fleet(asked, load), load, None)
    found = run_.result(run_.cluster.run())
    assert found.broken_laws == []
    assert sorted(np.unique(found.steps["replica"])) == [0, 1]
    steps, preset = found.steps, run_.fleet.pools[0].preset
    walls = Walls(run_.fleet.costs, steps, run_.recorder.chunks.to_columns(), preset)
    waits_s = walls.step_causes[INDEX["lock_step"]]
    prompt = int(np.flatnonzero(steps["prefill_tokens"] == 1000)[0])
    beside = int(np.flatnonzero((steps["start_s"] == steps["start_s"][prompt]) & (steps["replica"] == 0))[0])
    assert waits_s[prompt] == pytest.approx(0.0, abs=1e-12)
    assert waits_s[beside] > 1e-3
    assert steps["first_s"][beside] == steps["first_s"][prompt]
    alone = (steps["replica"] == 0) & (steps["prefill_tokens"] == 0) & (steps["start_s"] < steps["start_s"][prompt])
    assert np.abs(waits_s[alone]).max() < 1e-12
    assert (waits_s > -1e-12).all()


def test_company_costs_and_imbalance_more() -> None:
    plain = run(scenario(tensor=2)).summary["median_tpot_ms"]
    skews = [{"expert_load": {"kind": "zipf", "exponent": e}} for e in (0.5, 1.0, 2.0)]
    slower = [run(scenario(tensor=2, deployment=skew)).summary["median_tpot_ms"] for skew in skews]
    assert plain < slower[0] < slower[1] < slower[2]


def test_two_half_batches_are_used_where_they_are_sooner() -> None:
    """Prompts of 4,000 tokens over two nodes on one 100 Gbit/s port: the exchange is long, and half of it hides."""
    fixed = {"kind": "fixed", "input_tokens": 4000, "output_tokens": 2}
    slow = {"cluster": {"topology": "cloud-h100-100gbe", "nodes": 2}, "data": 16, "model": "qwen3-30b-a3b",
            "engine": {"max_num_batched_tokens": 4096},
            "workload": {"arrivals": {"kind": "burst"}, "lengths": fixed, "num_requests": 16}}  # fmt: skip
    plain, halves = (run(scenario(**slow, deployment={"two_batch_overlap": on})) for on in (False, True))
    assert not plain.steps["overlapped"].any()
    prompts = halves.steps["prefill_tokens"] > 0
    assert halves.steps["overlapped"][prompts].all()
    assert halves.steps["first_s"][prompts].max() < 0.95 * plain.steps["first_s"][prompts].max()
    assert (halves.steps["first_s"] <= plain.steps["first_s"]).all()
