"""Deployments side by side: slowdown against an ideal twin adds up, and the break-even is where the choice really flips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from sim import catalogue
from sim.cli import app
from sim.cost.causes import CAUSES
from sim.cost.pipeline import PipelineCost
from sim.cost.step import StepCost
from sim.engine.deployment import Deployment
from sim.errors import InputError
from sim.scenario import Scenario
from sim.simulate import simulate
from sim.studies.breakeven import crossing
from sim.studies.compare import PARTS, Compared, compare, compared
from sim.studies.twin import nvlink_twin

SHIPPED = Path(__file__).resolve().parents[1] / "scenarios" / "cross-node-tp"
FOUR_AND_FOUR = [f"n{node}.g{gpu}" for node in (0, 1) for gpu in range(4)]


def scenario(
    topology: str = "dgx-h100", users: int = 16, placement: list[str] | str = "pack", **changes: dict[str, Any]
) -> Scenario:
    """A 70B model for some users, each with 512 tokens in and 32 out; TP4 in one node unless told otherwise."""
    data: dict[str, Any] = {
        "name": "one",
        "model": "llama-3.1-70b",
        "cluster": {"topology": topology},
        "deployment": {"tensor_parallel_size": 4, "placement": placement},
        "engine": {},
        "workload": {
            "arrivals": {"kind": "closed_loop", "concurrency": users},
            "lengths": {"kind": "fixed", "input_tokens": 512, "output_tokens": 32},
            "num_requests": 2 * users,
        },
    }
    for section, value in changes.items():
        data[section] = data[section] | value
    return Scenario.from_dict(data)


def wide(topology: str = "dgx-h100", **cluster: Any) -> Scenario:
    """TP8, four GPUs in each of two nodes."""
    return scenario(
        topology, placement=FOUR_AND_FOUR, deployment={"tensor_parallel_size": 8}, cluster={"nodes": 2} | cluster
    )


SMALL = {"model": "llama-3.1-8b"}
TWO_ON_A_PORT = {"tensor_parallel_size": 2, "data_parallel_size": 2, "placement": ["n0.g0", "n1.g0", "n0.g1", "n1.g1"]}
CASES = {
    "one node": scenario(),
    "two nodes": wide(),
    "a slow port": wide("cloud-h100-10gbe"),
    "a slow GPU": wide(overrides=[{"gpu": "n1.g2", "speed": 0.7}]),
    "a rail at a quarter": wide(overrides=[{"link": ["n1.nic2", "leaf2"], "bandwidth_fraction": 0.25}]),
    "a pipeline": scenario(deployment={"pipeline_parallel_size": 2}, cluster={"nodes": 2}),
    "an uneven pipeline": scenario(
        deployment={"pipeline_parallel_size": 2},
        cluster={"overrides": [{"gpu": "n0.g5", "speed": 0.5}]},
        engine={"max_num_batched_tokens": 4096},  # eight prompts a batch, so that both lanes are used
    ),
    "two on one port": scenario("cloud-h100-100gbe", users=64, deployment=TWO_ON_A_PORT).with_overrides(SMALL),
    "sliding windows": scenario(deployment={"tensor_parallel_size": 2}).with_overrides({"model": "gpt-oss-20b"}),
    "no NVLink": scenario("pcie-box-l40s", users=8).with_overrides({"model": "llama-3.1-8b"}),
}  # fmt: skip
NOT_ZERO = {
    "one node": set(),
    "two nodes": {"latency", "bandwidth"},
    "a slow port": {"latency", "bandwidth"},
    "a slow GPU": {"latency", "bandwidth", "straggler"},
    "a rail at a quarter": {"latency", "bandwidth"},
    "a pipeline": set(),
    "an uneven pipeline": {"straggler", "rest"},
    "two on one port": {"latency", "bandwidth", "sharing"},
    "sliding windows": set(),
    "no NVLink": {"latency", "bandwidth"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_parts_are_the_difference_to_the_twin(case: str) -> None:
    found = compared(CASES[case])
    for slowdown in (found.decode, found.prefill):
        assert tuple(slowdown.parts_ms) == tuple(PARTS)
        assert sum(slowdown.parts_ms.values()) == pytest.approx(slowdown.ms - slowdown.twin_ms, abs=1e-9)
        assert sum(slowdown.causes_ms.values()) == pytest.approx(slowdown.ms, rel=1e-12)
        assert slowdown.factor == slowdown.ms / slowdown.twin_ms
    assert {part for part, ms in found.decode.parts_ms.items() if abs(ms) > 1e-9} == NOT_ZERO[case]
    assert found.decode.parts_ms["sharing"] >= 0


TWINNED = {**CASES, **{path.stem: Scenario.load(path) for path in sorted(SHIPPED.glob("*.yaml"))}}


@pytest.mark.parametrize("case", TWINNED)
def test_no_part_is_negative_on_any_fabric(case: str) -> None:
    """The twin has the same software, and for every message a way that is no worse in latency nor in bandwidth."""
    found = compared(TWINNED[case])
    for slowdown in (found.decode, found.prefill):
        assert min(slowdown.parts_ms.values()) >= -1e-9


@pytest.mark.parametrize("op", ["all_reduce", "all_gather", "all_to_all", "send_recv"])
@pytest.mark.parametrize(
    "name", ["dgx-h100", "cloud-h100-100gbe", "pcie-box-l40s", "dgx-1-v100", "fat-tree-oversubscribed"]
)
def test_a_twin_communicates_no_worse_at_any_size(name: str, op: str) -> None:
    two = {"cluster": {"topology": name, "nodes": 2}, "deployment": {"tensor_parallel_size": 16}}
    deployment = Deployment.of(wide().with_overrides(two))
    gpus, sizes = deployment.gpu_names, 2.0 ** np.arange(31)
    there, twin = deployment.communicator(gpus).times(op, sizes), nvlink_twin(deployment)
    here = twin.communicator(twin.gpu_names).times(op, sizes)
    assert (here.latency_s <= there.latency_s).all()
    assert (here.bandwidth_s <= there.bandwidth_s * (1 + 1e-12)).all()
    assert (here.latency_s > 0).all()


@pytest.mark.parametrize("case", [case for case in CASES if "pipeline" not in case])
def test_the_mean_decode_iteration_is_that_of_the_run(case: str) -> None:
    """Closed form (and, on shared links, the fluid engine) over the run's own batches: the gap of a mean token."""
    steps = simulate(CASES[case]).steps
    pure = (steps["prefills"] == 0) & (steps["decodes"] > 0)
    k = steps["iterations"]
    took_s = (k * steps["first_s"] + steps["growth_s"] * k * (k - 1) / 2) * steps["decodes"]
    mean_ms = 1e3 * took_s[pure].sum() / (k * steps["decodes"])[pure].sum()
    assert compared(CASES[case]).decode.ms == pytest.approx(mean_ms, rel=1e-9)


def test_the_mean_decode_iteration_of_a_pipeline_holds_its_bubble() -> None:
    steps = simulate(CASES["an uneven pipeline"]).steps
    rows = (steps["prefills"] == 0) & (steps["decodes"] == 8)
    found = compared(CASES["an uneven pipeline"])
    assert found.batch == pytest.approx(8, rel=0.1)
    assert found.decode.ms == pytest.approx(1e3 * float(np.median(steps["first_s"][rows])), rel=0.01)
    assert found.decode.causes_ms["pipeline_bubble"] > 1


def test_in_one_nvlink_domain_a_deployment_is_its_own_twin() -> None:
    found = compared(scenario())
    assert found.decode.factor == found.prefill.factor == 1.0
    assert set(found.decode.parts_ms.values()) == {0.0}


def test_a_slow_gpu_costs_what_the_sound_group_would_have_saved() -> None:
    sound, slow = compared(CASES["two nodes"]), compared(CASES["a slow GPU"])
    assert slow.decode.twin_ms == pytest.approx(sound.decode.twin_ms, rel=1e-12)
    assert slow.decode.parts_ms["straggler"] == pytest.approx(slow.decode.ms - sound.decode.ms, rel=1e-9)
    assert slow.decode.parts_ms["latency"] == pytest.approx(sound.decode.parts_ms["latency"], rel=1e-9)


@pytest.mark.parametrize("speed", [0.5, 0.7])
def test_a_straggler_on_printed_peaks_costs_the_inverse_of_its_speed(speed: float) -> None:
    """Kernels without fixed costs, collectives that are free: all that a GPU at 0.7 of its rates takes is 1 / 0.7 as long."""
    slow = wide(overrides=[{"gpu": "n1.g2", "speed": speed}]).with_overrides({"engine.preset": "ideal"})
    found = compared(slow)
    for slowdown in (found.decode, found.prefill):
        assert slowdown.parts_ms["straggler"] == pytest.approx((1 / speed - 1) * slowdown.twin_ms, rel=1e-12)
        assert slowdown.factor == pytest.approx(1 / speed, rel=1e-12)


def test_a_straggler_in_one_of_two_stages_slows_that_stage() -> None:
    """n0.g5 is in the second; a batch passes both, so of the passage that stage's kernels are twice as long."""
    halves = scenario(
        deployment={"pipeline_parallel_size": 2},
        cluster={"overrides": [{"gpu": "n0.g5", "speed": 0.5}]},
        engine={"preset": "ideal"},
    )
    found, cost = compared(halves), nvlink_twin(Deployment.of(halves)).cost(0)
    assert isinstance(cost, PipelineCost)
    second = cost.stages[1]
    tokens = found.prefill_tokens
    alone_s = second.token_s[tokens] + second.sampled_s[1] + second.chunks_s([(0, tokens)])
    assert found.prefill.parts_ms["straggler"] == pytest.approx(1e3 * alone_s, rel=1e-12)


def test_every_cause_of_what_can_be_compared_has_one_part() -> None:
    causes = sorted(cause for part in PARTS for cause in PARTS[part])
    assert causes == sorted(set(CAUSES) - {"lock_step", "draft"})


@pytest.mark.parametrize(
    ("topology", "kind", "rate_bytes_per_s"),
    [("dgx-h100", "nvlink4", 450e9), ("dgx-a100", "nvlink3", 300e9), ("gb200-nvl72", "nvlink5", 900e9),
     ("pcie-box-l40s", "nvlink3", 300e9), ("dgx-1-v100", "nvlink2", 150e9), ("mi300x-platform", "infinity_fabric", 448e9),
     ("hgx-b300", "nvlink5", 900e9), ("mi355x-platform", "infinity_fabric", 537.6e9)],
)  # fmt: skip
def test_the_twin_joins_the_same_gpus_by_one_switch(topology: str, kind: str, rate_bytes_per_s: float) -> None:
    deployment = Deployment.of(scenario(topology).with_overrides(SMALL))
    twin = nvlink_twin(deployment)
    assert [gpu.name for gpu in twin.gpus.values()] == [gpu.name for gpu in deployment.gpus.values()]
    assert twin.sharding == deployment.sharding
    link = twin.topology.graph.edges["n0.g0", "n0.nvs"]
    assert link["kind"] == kind
    assert link["bandwidth_bytes_per_s"] == pytest.approx(rate_bytes_per_s)
    assert isinstance(twin.cost(0), StepCost)


# --- break-even ---------------------------------------------------------------------------------------------------------


def order(narrow: Scenario, broad: Scenario, kind: str) -> bool:
    """Whether eight GPUs over two nodes beat four in one."""
    times = [getattr(one, kind).ms for one in (compared(narrow), compared(broad))]
    return bool(times[1] < times[0])


@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_the_choice_flips_at_the_break_even_bandwidth(kind: str) -> None:
    """Put into the topology file, a little more and a little less of it give opposite answers."""
    found = compare([scenario(), wide()])
    flip = found.break_even[kind]["bandwidth"]
    assert flip.flips_at is not None
    assert flip.now == 50e9
    for factor, broad_wins in ((1.01, True), (0.99, False)):
        assert order(scenario(), wide(nic_bandwidth=f"{flip.flips_at * factor!r} B/s"), kind) == broad_wins


def test_the_choice_flips_at_the_break_even_latency(tmp_path: Path) -> None:
    """All links of the fabric longer by the same factor, in a topology file of its own."""
    found = compare([wide(), scenario()])
    flip, wire = found.break_even["decode"]["latency"], crossing(Deployment.of(wide()))
    assert wire is not None
    assert flip.now == wire.latency_s == pytest.approx(1.6e-6)  # NIC to leaf twice, leaf to spine twice
    assert flip.flips_at is not None
    assert flip.flips_at > flip.now
    data = yaml.safe_load(catalogue.files("topologies")["dgx-h100"].read_text(encoding="utf-8"))
    for more, broad_wins in ((0.99, True), (1.01, False)):
        factor = more * flip.flips_at / flip.now
        data["parameters"]["nic_latency"] = f"{0.6 * factor!r} us"
        data["fabric"]["links"][1]["latency"] = f"{0.2 * factor!r} us"
        file = tmp_path / f"{more}.yaml"
        file.write_text(yaml.safe_dump(data), encoding="utf-8")
        assert order(scenario(), wide(str(file)), "decode") == broad_wins


def test_never_is_said_when_no_network_changes_the_choice() -> None:
    inside = compare([scenario(), scenario(deployment={"tensor_parallel_size": 8})])
    assert inside.break_even["decode"]["latency"].text == "never: neither crosses a network"
    fabrics = compare([wide(), wide("cloud-h100-10gbe")])
    assert fabrics.break_even["decode"]["latency"].flips_at is None
    assert fabrics.break_even["decode"]["latency"].text.startswith("never")


# --- in words -----------------------------------------------------------------------------------------------------------


def test_links_that_change_leave_a_slow_gpu_slow() -> None:
    slow = [{"gpu": "n1.g1", "speed": 0.5}]
    across = scenario(deployment=TWO_ON_A_PORT, cluster={"nodes": 2})
    lagging = across.with_overrides({"cluster.overrides": slow})
    flips = compare([across, lagging]).break_even["decode"]
    assert [flips[quantity].flips_at for quantity in ("latency", "bandwidth")] == [None, None]


def test_equals_have_no_break_even() -> None:
    twice = compare([wide(), wide().with_overrides({"name": "again"})]).break_even["decode"]["bandwidth"]
    assert (twice.flips_at, twice.text) == (None, "never: alone on their links there is no lead to lose")


def shipped(*names: str) -> list[Scenario]:
    return [Scenario.load(SHIPPED / f"{name}.yaml") for name in names]


def test_the_answer_names_winner_ratio_batch_and_reason() -> None:
    found = compare(shipped("tp8-one-node", "tp16-two-nodes", "tp8-pp2-two-nodes"))
    eight, sixteen, pipeline = found.deployments
    ratio = sixteen.decode.ms / eight.decode.ms
    assert found.answer.startswith(
        f"TP8 inside one node beats TP16 over two nodes joined by infiniband (50 GB/s) by {ratio:.2f}x per token at batch 64"
    )
    assert ", because all-reduce latency costs it " in found.answer
    assert ", more than it loses by weights read (" in found.answer
    assert pipeline.label == "TP8 x PP2 over two nodes joined by infiniband (50 GB/s)"
    assert pipeline.batch_text == "2 x 32"
    assert [one.gpus for one in found.deployments] == [8, 16, 16]


def test_of_equals_none_beats_the_other() -> None:
    found = compare(shipped("tp8-one-node", "tp8-one-node"))
    assert found.answer.startswith(
        "TP8 inside one node (tp8-one-node) and TP8 inside one node (tp8-one-node) are equally fast"
    )
    assert "because" not in found.answer


def test_a_slower_fabric_is_slower_part_by_part() -> None:
    names = ["tp2-one-node", *(f"tp2-two-nodes-{fabric}" for fabric in ("ib-ndr", "100gbe", "25gbe", "10gbe"))]
    found = [compared(scenario) for scenario in shipped(*names)]
    for kind in ("decode", "prefill"):
        times = [getattr(one, kind).ms for one in found]
        assert times == sorted(times)
        assert len({round(getattr(one, kind).twin_ms, 9) for one in found}) == 1
    ethernet = found[2:]
    assert len({round(one.decode.parts_ms["latency"], 3) for one in ethernet}) == 1  # the same stack and cables
    assert ethernet[-1].decode.parts_ms["bandwidth"] == pytest.approx(
        10 * ethernet[0].decode.parts_ms["bandwidth"], rel=0.1
    )


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="at least two"):
        compare([scenario()])
    one_token = scenario(workload={"lengths": {"kind": "fixed", "input_tokens": 512, "output_tokens": 1}})
    with pytest.raises(InputError, match="only decodes"):
        compare([one_token, scenario()])
    drafted = scenario(engine={"speculative": {"num_speculative_tokens": 2, "acceptance_rate": 0.5, "draft_cost": 0.0}})
    with pytest.raises(InputError, match="more than one token"):
        compare([scenario(), drafted])
    experts = {"tensor_parallel_size": 1, "data_parallel_size": 4, "enable_expert_parallel": True}
    lock_step = scenario(deployment=experts).with_overrides({"model": "mixtral-8x7b"})
    with pytest.raises(InputError, match="in lock-step"):
        compare([scenario(), lock_step])


# --- the command --------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["compare", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_compare_prints_tables_break_even_and_the_answer() -> None:
    printed = command(*(str(SHIPPED / f"{name}.yaml") for name in ("tp2-one-node", "tp2-two-nodes-10gbe")))
    for text in ("Mean decode iteration, ms a token", "Prefill of one mean prompt", "slowdown", "straggler", "tok/s/GPU",
                 "latency between nodes", "TP2 inside one node beats TP2 over two nodes"):  # fmt: skip
        assert text in printed


def test_compare_as_json() -> None:
    data = json.loads(
        command("--json", *(str(SHIPPED / f"{name}.yaml") for name in ("tp8-one-node", "tp16-two-nodes")))
    )
    assert set(data) == {"deployments", "break_even", "answer"}
    for row in data["deployments"]:
        assert {
            "name",
            "deployment",
            "gpus",
            "mean_tpot_ms",
            "mean_ttft_ms",
            "output_throughput",
            "batch",
            "decode",
            "prefill",
        } <= set(row)
        parts = row["decode"]["parts_ms"]
        assert sum(parts.values()) == pytest.approx(row["decode"]["ms"] - row["decode"]["twin_ms"], abs=1e-6)
        assert row["decode"]["slowdown"] == pytest.approx(row["decode"]["ms"] / row["decode"]["twin_ms"])
    for kind in ("decode", "prefill"):
        assert set(data["break_even"][kind]) == {"latency", "bandwidth"}
        assert set(data["break_even"][kind]["latency"]) == {"quantity", "now", "flips_at", "text"}


def test_a_compared_deployment_knows_its_own_run() -> None:
    found: Compared = compared(shipped("tp2-one-node")[0])
    summary = simulate(shipped("tp2-one-node")[0]).summary
    assert found.mean_tpot_ms == summary["mean_tpot_ms"]
    assert found.output_throughput == summary["output_throughput"]
    assert found.prefill_tokens == 1024
