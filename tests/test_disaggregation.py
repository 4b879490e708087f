"""Prefill and decode apart: what moves, how long it takes, who holds which blocks meanwhile, and that nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from small_scenarios import changed

from sim.engine.fluid import Fluid
from sim.errors import InputError
from sim.results.result import Result
from sim.scenario import Scenario
from sim.simulate import prepare, simulate

EXACT = 1e-9
PROMPT, OUTPUT = 512, 8
KV_BYTES = 131072.0
"""Of a token of Llama-3-8B: 2 x 32 layers x 8 heads x 128 x 2 bytes."""
MIXED = {
    "arrivals": {"kind": "poisson", "request_rate": 30.0},
    "lengths": {"kind": "lognormal", "input_mean": 600, "input_cv": 1.0, "output_mean": 40, "output_cv": 1.0,
                "max_tokens": 4000},
    "num_requests": 80,
}  # fmt: skip


def scenario(
    prefill: dict[str, Any] | None = None,
    decode: dict[str, Any] | None = None,
    kv_transfer: str = "after_prefill",
    **changes: Any,
) -> Scenario:
    """One prefill and one decode replica of Llama-3-8B; one request of 512 tokens unless told otherwise."""
    content: dict[str, Any] = {
        "model": "llama-3.1-8b",
        "cluster": {"topology": "dgx-h100"},
        "deployment": {
            "kv_transfer": kv_transfer,
            "pools": [
                {"name": "prompts", "role": "prefill"} | (prefill or {}),
                {"name": "tokens", "role": "decode"} | (decode or {}),
            ],
        },
        "engine": {"max_num_batched_tokens": 2048},
        "workload": {
            "arrivals": {"kind": "burst"},
            "lengths": {"kind": "fixed", "input_tokens": PROMPT, "output_tokens": OUTPUT},
            "num_requests": 1,
        },
    }  # fmt: skip
    return changed(content, changes)


def run(asked: Scenario) -> Result:
    found = simulate(asked)
    assert found.broken_laws == []
    return found


@contextmanager
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[dict[str, float], float, float]]]:
    """(bytes by edge, seconds alone, latency) of every flow that put bytes on an edge."""
    flows, start = [], Fluid.start

    def spy(self: Fluid, amounts: Any, alone_s: float, latency_s: float = 0.0) -> Any:
        if amounts:
            flows.append(({capacity.name: load for capacity, load in amounts.items()}, alone_s, latency_s))
        return start(self, amounts, alone_s, latency_s)

    monkeypatch.setattr(Fluid, "start", spy)
    yield flows
    monkeypatch.undo()


# --- nothing is lost ------------------------------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "one and one": {},
    "two and three": {"prefill": {"replicas": 2}, "decode": {"replicas": 3}},
    "two GPUs and one": {"prefill": {"tensor_parallel_size": 2}},
    "one GPU and four": {"decode": {"tensor_parallel_size": 4}},
    "layerwise": {"kv_transfer": "layerwise"},
    "over a slow port": {"prefill": {"replicas": 8}, "cluster": {"topology": "cloud-h100-10gbe", "nodes": 2}},
    "preemption": {"engine": {"num_gpu_blocks_override": 260}, "workload": {"arrivals": {"kind": "burst"}}},
    "preemption, shortest first": {
        "engine": {"num_gpu_blocks_override": 260, "scheduler": "sjf"},
        "workload": {"arrivals": {"kind": "burst"}},
    },
    "synchronous": {"engine": {"async_scheduling": False}},
    "prefix cache": {"engine": {"enable_prefix_caching": True}, "workload": {"shared_prefix": {"tokens": 256}}},
    "closed loop": {"workload": {"arrivals": {"kind": "closed_loop", "concurrency": 12}}},
    "latent attention": {"model": "deepseek-v2-lite"},
}


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_blocks_are_conserved(case: str) -> None:
    options = dict(CASES[case])
    options["workload"] = MIXED | options.get("workload", {})
    begun = prepare(scenario(**options))
    found = begun.result(begun.cluster.run())
    assert found.broken_laws == []
    assert found.status == "done"
    assert found.summary["completed"] == 80
    assert (found.preemptions > 0) == case.startswith("preemption")
    for replica in begun.fleet.replicas:
        assert replica.scheduler.pool.free == replica.scheduler.pool.usable_blocks
        assert replica.outstanding == 0
    assert found.walls_ms_per_token["kv_transfer"] > 0


@pytest.mark.parametrize("case", CASES)
def test_leap_is_step(case: str) -> None:
    options = dict(CASES[case])
    options["workload"] = MIXED | options.get("workload", {})
    asked = scenario(**options)
    leap, step = (run(asked.with_overrides({"granularity": g})) for g in ("leap", "step"))
    for column in step.requests:
        np.testing.assert_allclose(leap.requests[column], step.requests[column], rtol=EXACT, err_msg=column)
    assert leap.events < step.events


# --- one transfer -----------------------------------------------------------------------------------------------------------


def transfer_s(found: Result) -> float:
    """Seconds of a lone request's transfer: the gap after its first token, without the iteration that ends it."""
    decode = found.steps["replica"] == 1
    return float(found.irregular_gaps_s[0] - found.steps["first_s"][decode][0])


def test_a_lone_transfer_by_hand_inside_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """The KV cache of the prompt over NVLink: 67.1 MB at 450 GB/s, and two hops of 0.2 us."""
    with sent(monkeypatch) as flows:
        found = run(scenario())
    assert len(flows) == 1
    edges, alone_s, latency_s = flows[0]
    assert edges == {"n0.g0 -> n0.nvs": PROMPT * KV_BYTES, "n0.nvs -> n0.g1": PROMPT * KV_BYTES}
    assert alone_s == pytest.approx(PROMPT * KV_BYTES / 450e9)
    assert latency_s == pytest.approx(0.4e-6)
    assert transfer_s(found) == pytest.approx(alone_s + latency_s, rel=1e-6)
    # the first token comes from the prefill replica, before the transfer
    assert found.requests["first_token_s"][0] - found.exit_s == pytest.approx(
        found.steps["start_s"][0] + found.steps["first_s"][0]
    )


def test_the_bytes_are_those_of_the_kv_cache_however_the_groups_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    for senders, receivers in ((1, 4), (4, 1), (2, 2)):
        with sent(monkeypatch) as flows:
            run(scenario({"tensor_parallel_size": senders}, {"tensor_parallel_size": receivers}))
        kv = [edges for edges, alone_s, _ in flows if alone_s and sum(edges.values()) > 1e8]
        assert len(kv) == 1
        out = [load for edge, load in kv[0].items() if edge.startswith("n0.g")]
        into = [load for edge, load in kv[0].items() if edge.startswith("n0.nvs")]
        assert (len(out), len(into)) == (senders, receivers)
        assert sum(out) == pytest.approx(PROMPT * KV_BYTES)
        assert sum(into) == pytest.approx(PROMPT * KV_BYTES)


def test_a_slow_port_is_as_much_slower_as_its_rate_says() -> None:
    """Over 10 GbE the same bytes take 40 times as long as over NDR at 400 Gbit/s."""
    eight = {"prefill": {"replicas": 8}}
    times = [
        transfer_s_between_nodes(scenario(**eight, cluster={"topology": topology, "nodes": 2}))
        for topology in ("dgx-h100", "cloud-h100-10gbe")
    ]
    assert times[0] == pytest.approx(PROMPT * KV_BYTES / 50e9, rel=0.01)
    assert times[1] == pytest.approx(PROMPT * KV_BYTES / 1.25e9, rel=0.01)


def transfer_s_between_nodes(asked: Scenario) -> float:
    found = run(asked)
    decode = found.steps["replica"] == 8
    return float(found.irregular_gaps_s[0] - found.steps["first_s"][decode][0])


def test_layer_by_layer_only_the_last_layer_is_left_to_send() -> None:
    slow = {"prefill": {"replicas": 8}, "cluster": {"topology": "cloud-h100-10gbe", "nodes": 2}}
    after, layerwise = (
        transfer_s_between_nodes(scenario(**slow, kv_transfer=mode)) for mode in ("after_prefill", "layerwise")
    )
    assert layerwise == pytest.approx(after / 32, rel=0.01)


@pytest.mark.parametrize("rate", [5.0, 30.0])
def test_layerwise_is_never_later(rate: float) -> None:
    load = MIXED | {"arrivals": {"kind": "poisson", "request_rate": rate}}
    slow = {"prefill": {"replicas": 8}, "cluster": {"topology": "cloud-h100-100gbe", "nodes": 2}}
    after, layerwise = (
        run(scenario(**slow, kv_transfer=mode, workload=load)) for mode in ("after_prefill", "layerwise")
    )
    assert layerwise.walls_ms_per_token["kv_transfer"] < after.walls_ms_per_token["kv_transfer"]
    assert layerwise.summary["mean_e2el_ms"] < after.summary["mean_e2el_ms"]


def test_the_transfer_is_in_the_ledger_of_latency() -> None:
    found = run(scenario())
    gap_ms = float(found.irregular_gaps_s[0]) * 1e3
    assert found.walls_ms_per_token["kv_transfer"] == pytest.approx(gap_ms / OUTPUT)
    assert found.walls_ms_per_token["preemption"] == 0
    aggregated = scenario().to_dict()
    aggregated["deployment"] |= {"pools": None}
    assert run(Scenario.from_dict(aggregated)).walls_ms_per_token["kv_transfer"] == 0


def test_requests_of_one_token_never_move() -> None:
    fixed = {"kind": "fixed", "input_tokens": PROMPT, "output_tokens": 1}
    found = run(scenario(workload={"lengths": fixed, "num_requests": 5}))
    assert set(found.steps["replica"]) == {0}
    assert not len(found.irregular_gaps_s)


# --- whose blocks -----------------------------------------------------------------------------------------------------------


def test_the_sender_keeps_its_blocks_until_the_bytes_have_arrived() -> None:
    begun = prepare(scenario({"replicas": 8}, cluster={"topology": "cloud-h100-10gbe", "nodes": 2}))
    env, pools = begun.cluster.env, [begun.fleet.replicas[i].scheduler.pool for i in (0, 8)]
    moments = []

    def watch() -> Iterator[Any]:
        while True:
            moments.append((env.now, *(pool.usable_blocks - pool.free for pool in pools)))
            yield env.timeout(1e-3)

    env.process(watch())
    found = begun.result(begun.cluster.run())
    first_s = float(found.requests["first_token_s"][0]) - found.exit_s
    arrived_s = first_s + PROMPT * KV_BYTES / 1.25e9
    under_way = [(held, reserved) for now, held, reserved in moments if first_s + 2e-3 < now < arrived_s - 2e-3]
    assert len(under_way) > 30
    assert set(under_way) == {(PROMPT // 16, PROMPT // 16)}
    later = {held for now, held, _ in moments if now > arrived_s + 2e-3}
    assert later <= {0}
    assert pools[0].free == pools[0].usable_blocks


def test_a_full_receiver_makes_the_sender_wait() -> None:
    """32 + 1 blocks a request, and room for two of them: transfers wait for blocks, and nobody is preempted for them."""
    fixed = {"kind": "fixed", "input_tokens": PROMPT, "output_tokens": 100}
    roomy, tight = (
        run(scenario(engine=blocks, workload={"lengths": fixed, "num_requests": 6}))
        for blocks in ({}, {"num_gpu_blocks_override": 90})
    )
    assert tight.summary["completed"] == 6
    assert tight.walls_ms_per_token["kv_transfer"] > 5 * roomy.walls_ms_per_token["kv_transfer"]
    assert tight.steps["running"][tight.steps["replica"] == 1].max() <= 2


# --- kinds ------------------------------------------------------------------------------------------------------------------


def test_each_pool_has_its_own_kind_of_gpu() -> None:
    load = {"lengths": {"kind": "fixed", "input_tokens": 2000, "output_tokens": 200}, "num_requests": 1}
    h100 = run(scenario(workload=load))
    h200_decode = run(scenario(decode={"gpu": "h200-sxm"}, workload=load))
    h200_prefill = run(scenario(prefill={"gpu": "h200-sxm"}, workload=load))
    decode = h100.steps["replica"] == 1
    # decoding waits for HBM, of which the H200 has 1.43 times as much; a prompt waits for the tensor cores
    faster = h100.steps["first_s"][decode][0] / h200_decode.steps["first_s"][h200_decode.steps["replica"] == 1][0]
    assert 1.1 < faster < 1.45
    assert h200_decode.steps["first_s"][0] == h100.steps["first_s"][0]
    assert 0.85 < h200_prefill.steps["first_s"][0] / h100.steps["first_s"][0] <= 1.02


def test_a_pool_with_stages_is_refused() -> None:
    with pytest.raises(InputError, match="pipeline"):
        simulate(scenario(decode={"pipeline_parallel_size": 2}))


@pytest.mark.parametrize("scheduler", ["orca", "static"])
def test_memory_reserved_whole_cannot_be_handed_over(scheduler: str) -> None:
    with pytest.raises(InputError, match=f"engine.scheduler: got {scheduler} with prefill and decode apart"):
        simulate(scenario(engine={"scheduler": scheduler}))


@pytest.mark.parametrize("granularity", ["leap", "step"])
@pytest.mark.parametrize("cut_s", [0.2, 0.777, 1.5, 2.2])
def test_a_run_that_is_cut_has_whole_tokens(cut_s: float, granularity: str) -> None:
    """Some wait, some are on their way, some decode in the middle of a leap: tokens and gaps still add up."""
    slow = {"prefill": {"replicas": 8}, "cluster": {"topology": "cloud-h100-10gbe", "nodes": 2}}
    found = run(scenario(**slow, workload=MIXED | {"time_limit": f"{cut_s} s"}, granularity=granularity))
    assert found.status == "timed_out"
    assert found.summary["cut"] > 0
