"""Pipeline parallelism: batches in flight over stages, bubbles, hand-over, preemption; step and layer are one simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_scenarios import changed

from sim.cost.causes import INDEX
from sim.cost.collectives import Communicator
from sim.cost.pipeline import PipelineCost
from sim.engine.deployment import Deployment
from sim.results.result import Result
from sim.results.walls import Walls
from sim.scenario import Scenario
from sim.simulate import simulate

EXACT = 1e-9
PROMPT = 512


def scenario(
    stages: int = 2, tensor: int = 1, requests: int = 2, output_tokens: int = 12, **changes: dict[str, Any]
) -> Scenario:
    """Requests of 512 tokens, all at once, one prompt a batch: every request gets a lane while lanes are left."""
    data: dict[str, Any] = {
        "model": "llama-3.1-8b",
        "cluster": {"topology": "dgx-h100"},
        "deployment": {"pipeline_parallel_size": stages, "tensor_parallel_size": tensor},
        "engine": {"max_num_batched_tokens": PROMPT, "max_num_seqs": 256},
        "workload": {
            "arrivals": {"kind": "burst"},
            "lengths": {"kind": "fixed", "input_tokens": PROMPT, "output_tokens": output_tokens},
            "num_requests": requests,
        },
    }
    return changed(data, changes)


def run(asked: Scenario, granularity: str = "step") -> Result:
    """The finished run; every self-check holds, and causes that add up are one of them."""
    found = simulate(asked.with_overrides({"granularity": granularity}))
    assert found.broken_laws == []
    assert "the ledger of time adds up" in [check["name"] for check in found.self_checks]
    return found


def cost_of(asked: Scenario) -> PipelineCost:
    cost = Deployment.of(asked).cost(0)
    assert isinstance(cost, PipelineCost)
    return cost


def decode_stages_s(cost: PipelineCost, sequences: int, context_tokens: int) -> list[float]:
    """GPU seconds of each stage for a decode iteration; only the last one has a head."""
    return [
        stage.token_s[sequences] + stage.sampled_s[sequences] + stage.decode_fixed_s[sequences]
        + stage.full_slope_s[sequences] * context_tokens
        for stage in cost.stages
    ]  # fmt: skip


# --- one simulation at two speeds ---------------------------------------------------------------------------------------

MIXED = {
    "arrivals": {"kind": "poisson", "request_rate": 40.0},
    "lengths": {"kind": "lognormal", "input_mean": 300, "input_cv": 1.0, "output_mean": 40, "output_cv": 1.0,
                "max_tokens": 2000},
    "num_requests": 40,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "two stages": {},
    "four stages": {"stages": 4},
    "two stages of two": {"tensor": 2},
    "two stages of eight, one a node": {"tensor": 8, "cluster": {"nodes": 2}},
    "over a slow port": {"tensor": 8, "cluster": {"topology": "cloud-h100-10gbe", "nodes": 2}},
    "sliding windows": {"changes": {"model": "gpt-oss-20b"}},
    "preemption": {"engine": {"num_gpu_blocks_override": 200}},
    "chunked prompts": {"engine": {"max_num_batched_tokens": 256}},
    "two replicas": {"deployment": {"data_parallel_size": 2}},
    "a slow GPU": {"cluster": {"overrides": [{"gpu": "n0.g1", "speed": 0.7}]}},
}


@pytest.mark.parametrize("case", CASES)
def test_step_and_layer_agree(case: str) -> None:
    options = dict(CASES[case])
    more = options.pop("changes", {})
    asked = scenario(**options, workload=MIXED).with_overrides(more)
    step, layer = run(asked), run(asked, "layer")
    assert step.preemptions == layer.preemptions
    assert (step.preemptions > 0) == (case == "preemption")
    for table in ("requests", "steps"):
        fast, slow = getattr(step, table), getattr(layer, table)
        for column in slow:
            np.testing.assert_allclose(fast[column], slow[column], rtol=EXACT, atol=EXACT * 1e-3, err_msg=column)
    for cause, ms in layer.walls_ms_per_token.items():
        assert step.walls_ms_per_token[cause] == pytest.approx(ms, rel=EXACT, abs=1e-9), cause
    assert layer.events > 10 * step.events


def test_leap_is_step_with_stages() -> None:
    asked = scenario(workload=MIXED)
    leap, step = run(asked, "leap"), run(asked, "step")
    assert leap.requests["finish_s"].tobytes() == step.requests["finish_s"].tobytes()
    assert leap.events == step.events


# --- the passage of one batch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [2, 4])
def test_a_lone_request_passes_through_all_stages(stages: int) -> None:
    """First token: host, then each stage and each hand-over in turn; the same for every further token."""
    asked = scenario(stages, requests=1, output_tokens=4)
    cost, found = cost_of(asked), run(asked)
    prefill_s = sum(stage.token_s[PROMPT] + stage.chunks_s([(0, PROMPT)]) for stage in cost.stages)
    prefill_s += cost.host_s[1] + cost.stages[-1].sampled_s[1] + sum(table[PROMPT] for table in cost.hand_over_s)
    assert len(cost.hand_over_s) == stages - 1
    assert all(stage.sampled_s[1] == 0.0 for stage in cost.stages[:-1])
    preset = Deployment.of(asked).preset
    first_s = preset.entry_s + prefill_s + preset.exit_s
    assert found.requests["first_token_s"][0] == pytest.approx(first_s, rel=EXACT)
    tokens_s = [
        cost.host_s[1] + sum(decode_stages_s(cost, 1, PROMPT + n)) + sum(table[1] for table in cost.hand_over_s)
        for n in (1, 2, 3)
    ]
    np.testing.assert_allclose(found.steps["first_s"], [prefill_s, *tokens_s], rtol=EXACT)
    assert found.requests["finish_s"][0] == pytest.approx(first_s + sum(tokens_s), rel=EXACT)
    assert found.walls_ms_per_token["pipeline_bubble"] == pytest.approx(0.0, abs=1e-9)


def test_stages_hold_all_layers_once() -> None:
    whole = cost_of(scenario(4, requests=1))
    assert sum(stage.operators.layers for stage in whole.stages) == 32
    assert [stage.operators.layers for stage in whole.stages] == [8, 8, 8, 8]


# --- batches in flight --------------------------------------------------------------------------------------------------


def idle_share(found: Result, cost: PipelineCost, lanes: int) -> float:
    """Share of the stages' time without work, over the decode iterations in which all lanes are in flight."""
    rows = {name: column[found.steps["decodes"] == 1][2 * lanes : -2 * lanes] for name, column in found.steps.items()}
    busy_s = sum(sum(decode_stages_s(cost, 1, int(tokens))) for tokens in rows["context_tokens"])
    span_s = float(rows["start_s"][-1] + rows["first_s"][-1] - rows["start_s"][0])
    return 1 - busy_s / (span_s * len(cost.stages))


@pytest.mark.parametrize("stages", [2, 4])
def test_batches_in_flight_fill_the_stages(stages: int) -> None:
    """One batch leaves every stage but one idle; as many as stages fill them but for host time and the uneven head."""
    one, all_lanes = scenario(stages, requests=1, output_tokens=60), scenario(stages, requests=stages, output_tokens=60)
    cost, lone, full = cost_of(one), run(one), run(all_lanes)
    assert sorted(set(full.steps["replica"])) == list(range(stages))
    assert idle_share(lone, cost, 1) > 1 - 1 / stages
    assert idle_share(full, cost, stages) < 0.5 * idle_share(lone, cost, 1)
    # nearly as many times the tokens in the same time
    speedup = full.summary["output_throughput"] / lone.summary["output_throughput"]
    assert 0.75 * stages < speedup < stages


@pytest.mark.parametrize("stages", [2, 4, 8])
def test_the_period_of_a_lane_is_that_of_a_cyclic_flow_shop(stages: int) -> None:
    """Equal batches settle into max(host + passage, stages x slowest stage, stages x host); the wait is the bubble."""
    asked = scenario(stages, requests=stages, output_tokens=200)
    cost, found = cost_of(asked), run(asked)
    rows = found.steps
    all_decode = (rows["decodes"] == 1) & (rows["start_s"] > 0.5 * found.simulated_seconds)
    all_decode &= rows["start_s"] < 0.8 * found.simulated_seconds
    assert all_decode.sum() > 20 * stages
    for context_tokens, took_s in zip(rows["context_tokens"][all_decode], rows["first_s"][all_decode], strict=True):
        each_s = decode_stages_s(cost, 1, int(context_tokens))
        passage_s = cost.host_s[1] + sum(each_s) + sum(table[1] for table in cost.hand_over_s)
        period_s = max(passage_s, stages * max(each_s), stages * cost.host_s[1])
        assert took_s == pytest.approx(period_s, rel=1e-4)  # contexts grow by a token in between
    # per token of the whole run, whose contexts and so passages differ a little
    waits_ms = 1e3 * (period_s - passage_s)
    assert found.walls_ms_per_token["pipeline_bubble"] == pytest.approx(waits_ms, abs=0.02)


def test_an_even_pipeline_has_the_smallest_bubble() -> None:
    even = run(scenario(requests=2, output_tokens=60))
    slow = run(scenario(requests=2, output_tokens=60, cluster={"overrides": [{"gpu": "n0.g1", "speed": 0.5}]}))
    assert 10 * even.walls_ms_per_token["pipeline_bubble"] < slow.walls_ms_per_token["pipeline_bubble"]


def test_a_prompt_in_several_stages_at_once_is_one_prefill() -> None:
    """Chunk after chunk enters the first stage while those before are in the next: the prompt takes from first to last once."""
    found = run(scenario(4, requests=1, output_tokens=8, engine={"max_num_batched_tokens": 128, "max_num_seqs": 64}))
    chunks = found.steps["prefills"] > 0
    begin_s, took_s = found.steps["start_s"][chunks], found.steps["first_s"][chunks]
    assert list(found.steps["prefill_tokens"][chunks]) == [128] * 4
    assert (begin_s[1:] < begin_s[:-1] + took_s[:-1]).all()
    prefill_s = begin_s[-1] + took_s[-1] - begin_s[0]
    assert found.walls_ms_per_token["prefill"] == pytest.approx(prefill_s / 8 * 1e3, rel=EXACT)
    assert found.walls_ms_per_token["interference"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_pipelines_beside_replicas_of_other_lengths_keep_their_own_numbers(first: int) -> None:
    """Three lanes each, of which a replica uses as many as it has stages; requests of the one are not those of the other."""
    pools = [
        {"name": "a", "replicas": 2, "pipeline_parallel_size": first},
        {"name": "b", "replicas": 2, "pipeline_parallel_size": 3},
    ]
    asked = scenario(1, requests=24, cluster={"nodes": 3}, deployment={"pools": pools, "router": "round_robin"})
    found = run(asked)
    assert found.lanes == 3
    numbers = [*range(first), *range(3, 3 + first), *range(6, 12)]
    assert sorted(set(found.steps["replica"])) == numbers
    assert list(np.bincount(found.requests["replica"] // 3)) == [6, 6, 6, 6]
    cut = run(asked.with_overrides({"workload.time_limit": "50 ms"}))
    assert list(np.bincount(cut.requests["replica"] // 3)) == [6, 6, 6, 6]


# --- between stages -----------------------------------------------------------------------------------------------------


def test_the_hand_over_carries_hidden_state_and_residual_of_every_token() -> None:
    """2 x 4096 x 2 bytes a token (vLLM sends both); eight ranks send an eighth each, and the next stage gathers it."""
    asked = scenario(tensor=8, cluster={"nodes": 2})
    deployment = Deployment.of(asked)
    cost = cost_of(asked)
    assert cost.stages[0].operators.stage_send_bytes_per_token == 2 * 4096 * 2
    assert cost.stages[-1].operators.stage_send_bytes_per_token == 0
    senders, receivers = deployment.placement[0]
    pairs = Communicator(deployment.topology, [*senders, *receivers], "custom")
    gather = Communicator(deployment.topology, receivers, "custom")
    size_bytes = 256 * 2 * 4096 * 2
    sent = pairs.time("send_recv", size_bytes / 8)
    assert cost.hand_over_s[0][256] == pytest.approx(
        sent.time_s + gather.time("all_gather", size_bytes).time_s, rel=EXACT
    )
    # every rank by its own rail, out of one node and into the other
    wires = {edge: amount for edge, amount in sent.edge_bytes.items() if "leaf" in edge[0] + edge[1]}
    assert wires == {
        edge: size_bytes / 8
        for rail in range(8)
        for edge in ((f"n0.nic{rail}", f"leaf{rail}"), (f"leaf{rail}", f"n1.nic{rail}"))
    }


def test_a_pipeline_over_two_nodes_pays_for_its_hand_over_and_nothing_else() -> None:
    near = scenario(tensor=4, requests=1, cluster={"nodes": 2})
    far = near.with_overrides({"deployment.placement": [f"n{node}.g{gpu}" for node in (0, 1) for gpu in range(4)]})
    more_s = cost_of(far).hand_over_s[0][1] - cost_of(near).hand_over_s[0][1]
    assert more_s > 5e-6
    tokens_ms = [run(asked).summary["mean_tpot_ms"] for asked in (near, far)]
    assert tokens_ms[1] - tokens_ms[0] == pytest.approx(more_s * 1e3, rel=1e-6)
    wider = [run(asked).walls_ms_per_token for asked in (near, far)]
    changed = {cause for cause in wider[0] if wider[1][cause] != pytest.approx(wider[0][cause], rel=1e-9, abs=1e-9)}
    assert {"collective_latency"} <= changed <= {"collective_latency", "collective_bandwidth", "prefill"}


def test_replicas_that_differ_in_their_hand_over_only() -> None:
    names = ["n0.g0", "n0.g1", "n0.g2", "n0.g3", "n0.g4", "n0.g5", "n1.g0", "n1.g1"]
    deployment = Deployment.of(
        scenario(tensor=2, cluster={"nodes": 2}, deployment={"data_parallel_size": 2, "placement": names})
    )
    near, far = deployment.cost(0), deployment.cost(1)
    assert isinstance(near, PipelineCost)
    assert isinstance(far, PipelineCost)
    assert far.hand_over_s[0][1] > near.hand_over_s[0][1]


def test_hand_overs_that_meet_on_one_port_wait_for_each_other_and_not_for_a_stage() -> None:
    """Two pipelines from node to node over one Ethernet port: what each loses to the other stands under its own cause."""
    names = ["n0.g0", "n1.g0", "n0.g1", "n1.g1"]
    asked = scenario(
        requests=2, cluster={"topology": "cloud-h100-10gbe", "nodes": 4},
        deployment={"data_parallel_size": 2, "placement": names},
    )  # fmt: skip
    together = run(asked)
    apart = run(asked.with_overrides({"deployment.placement": [*names[:2], "n2.g1", "n3.g1"]}))
    assert "shared_s" not in apart.steps
    # both prompts are handed over at once: twice the bytes at the port's rate, instead of the time alone
    bytes_each, alone_s = PROMPT * 2 * 4096 * 2, cost_of(asked).hand_over_s[0][PROMPT]
    lost_s = 2 * bytes_each / 1.25e9 - alone_s
    prompts = together.steps["prefills"] > 0
    np.testing.assert_allclose(together.steps["shared_s"][prompts], [lost_s, lost_s], rtol=1e-9)
    decoding = together.steps["prefills"] == 0
    rows = {name: column[decoding] for name, column in together.steps.items()}
    chunks = {name: np.zeros(0, np.int64) for name in ("step", "request", "start", "tokens")}
    costs = [Deployment.of(asked).cost(replica) for replica in (0, 1)]
    causes = Walls(costs, rows, chunks, Deployment.of(asked).preset).step_causes
    np.testing.assert_allclose(causes[INDEX["shared_links"]], rows["shared_s"])
    np.testing.assert_allclose(causes[INDEX["pipeline_bubble"]], 0.0, atol=1e-12)  # one batch each waits for no stage


# --- memory runs out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [2, 4])
def test_preemption_with_batches_in_flight_keeps_every_law(stages: int) -> None:
    """Victims may have a token in flight in another lane; it comes, and every gap and token is still there."""
    asked = scenario(
        stages,
        requests=24,
        engine={"num_gpu_blocks_override": 260},
        workload={"lengths": {"kind": "uniform", "input_tokens": [100, 500], "output_tokens": [50, 300]}},
    )
    found = run(asked)
    assert found.preemptions > 5
    assert found.requests["preemptions"].sum() == found.preemptions
    assert (found.requests["generated_tokens"] == found.requests["output_tokens"]).all()
    assert len(found.irregular_gaps_s) > 0
    assert found.walls_ms_per_token["preemption"] > 0
