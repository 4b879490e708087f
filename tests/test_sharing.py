"""Groups that share wires slow each other as the fluid solution says; groups that share none are as if alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from reference.fluid import Job, fill, finish_times

from sim.cost.collectives import Communicator
from sim.cost.step import StepCost
from sim.engine.deployment import Deployment
from sim.engine.wires import Wires
from sim.results.result import Result
from sim.scenario import Scenario
from sim.simulate import simulate

ACROSS = (("n0.g0", "n1.g0"), ("n0.g1", "n1.g1"))
"""Two groups whose GPUs stand in two nodes: both cross the one port of each node."""
INSIDE = ("n0.g2", "n0.g3")
PORT_BYTES_PER_S = 12.5e9
"""100 Gbit/s, one direction."""
EXACT = 1e-9


def scenario(groups: tuple[tuple[str, ...], ...], tokens: list[int], output_tokens: int, **cluster: Any) -> Scenario:
    """One request a group, all at once, in the order of the groups; every group holds a replica of an 8B model."""
    lengths: dict[str, Any] = {"kind": "fixed", "input_tokens": tokens[0], "output_tokens": output_tokens}
    if len(set(tokens)) > 1:
        lengths = lengths | {"kind": "uniform", "input_tokens": tokens, "output_tokens": [output_tokens] * 2}
    return Scenario.from_dict({
        "model": "llama-3.1-8b",
        "cluster": {"topology": "cloud-h100-100gbe", "nodes": 2} | cluster,
        "deployment": {
            "tensor_parallel_size": len(groups[0]),
            "data_parallel_size": len(groups),
            "placement": [gpu for group in groups for gpu in group],
        },
        "workload": {"arrivals": {"kind": "burst"}, "lengths": lengths, "num_requests": len(groups)},
    })  # fmt: skip


def steps_of(result: Result, replica: int) -> dict[str, Any]:
    chosen = result.steps["replica"] == replica
    return {name: column[chosen] for name, column in result.steps.items()}


def wires_of(asked: Scenario) -> Wires:
    deployment = Deployment.of(asked)
    return Wires([(deployment, replica) for replica in range(deployment.sharding.data)])


def held(result: Result) -> None:
    assert result.broken_laws == []


# --- the fluid solution, worked out beside the engine ------------------------------------------------------------------


@dataclass
class Link:
    """One part of an iteration: a latency that occupies nothing, then work that may cross shared wires."""

    latency_s: float
    alone_s: float
    amounts: Mapping[str, float] = field(default_factory=dict)


def iteration(deployment: Deployment, replica: int, alone_s: float, tokens: int) -> list[Link]:
    """The chain of kernels and all-reduces that an iteration of `tokens` tokens and one sampled sequence is.

    Its 65 all-reduces stand as two a layer, of 65/64 each.
    """
    cost = deployment.cost(replica)
    assert isinstance(cost, StepCost)
    reduces, latency_s, bandwidth_s = cost.all_reduces(tokens)
    ranks, size_bytes = deployment.placement[replica][0], tokens * cost.operators.all_reduce_bytes_per_token
    alone = Communicator(deployment.topology, ranks, deployment.preset.software).time("all_reduce", size_bytes)
    amounts = {f"{a} {b}": amount for (a, b), amount in alone.edge_bytes.items() if "tor" in (a, b)}
    head_s = float(cost.sampled_causes[:, 1].sum())
    count = 2 * cost.operators.layers
    share = reduces / count
    kernels_s = (alone_s - head_s - reduces * (latency_s + bandwidth_s)) / count
    chain = []
    for _ in range(count):
        loads = {name: share * amount for name, amount in amounts.items()}
        chain += [Link(0.0, kernels_s), Link(share * latency_s, share * bandwidth_s, loads)]
    return [*chain, Link(0.0, head_s)]


def play(chains: list[list[Link]], rates_per_s: Mapping[str, float]) -> list[list[float]]:
    """When each link of each chain is done, by the plain reference's rates: every event finds all of them anew."""
    now_s, done = 0.0, [[] for _ in chains]
    place = [0] * len(chains)
    latency_s = [chain[0].latency_s for chain in chains]
    rest = [1.0] * len(chains)
    while any(place[i] < len(chain) for i, chain in enumerate(chains)):
        alive = [i for i, chain in enumerate(chains) if place[i] < len(chain)]
        working = {i: chains[i][place[i]] for i in alive if latency_s[i] == 0.0}
        speed = fill(rates_per_s, {i: Job(0.0, link.amounts, link.alone_s) for i, link in working.items()})
        next_s = min(rest[i] / speed[i] if i in working else latency_s[i] for i in alive)
        now_s += next_s
        for i in alive:
            if i not in working:
                latency_s[i] = 0.0 if latency_s[i] <= next_s * (1 + 1e-12) else latency_s[i] - next_s
                continue
            rest[i] -= speed[i] * next_s
            if rest[i] <= 1e-12:
                done[i].append(now_s)
                place[i] += 1
                rest[i], latency_s[i] = 1.0, chains[i][place[i]].latency_s if place[i] < len(chains[i]) else 0.0
    return done


def port_edges(nodes: int = 2) -> dict[str, float]:
    return {name: PORT_BYTES_PER_S for n in range(nodes) for name in (f"n{n}.nic tor", f"tor n{n}.nic")}


def test_two_equal_groups_on_one_port_take_what_two_equal_flows_take() -> None:
    """In step with each other, both always reduce together: each gets half the port, whatever it reached alone."""
    together = simulate(scenario(ACROSS, [1024], 1))
    alone = simulate(scenario(ACROSS[:1], [1024], 1))
    deployment = Deployment.of(scenario(ACROSS, [1024], 1))
    cost = deployment.cost(0)
    assert isinstance(cost, StepCost)
    reduces, _, bandwidth_s = cost.all_reduces(1024)
    # a ring of two sends the whole message each way; hidden 4096 in bf16
    size_bytes = 1024 * 4096 * 2
    jobs = [Job(0.0, dict.fromkeys(port_edges(), size_bytes), bandwidth_s)] * 2
    both_s = finish_times(port_edges(), jobs)[0]
    assert both_s == pytest.approx(2 * size_bytes / PORT_BYTES_PER_S, rel=EXACT)
    expected_s = alone.steps["first_s"][0] + reduces * (both_s - bandwidth_s)
    for replica in (0, 1):
        assert steps_of(together, replica)["first_s"][0] == pytest.approx(expected_s, rel=EXACT)
    assert reduces == 65  # two a layer, and the embedding
    assert bandwidth_s < both_s < 2 * bandwidth_s  # alone a group does not reach the whole port
    held(together)


def test_groups_out_of_step_follow_the_fluid_solution_to_the_last_token() -> None:
    """Different prompts: kernels of one run beside reductions of the other, in prefill and in every decode iteration."""
    asked = scenario(ACROSS, [600, 1800], 6)
    together = simulate(asked)
    inputs = together.requests["input_tokens"]
    assert inputs[0] != inputs[1]
    deployment = Deployment.of(asked)
    chains, ends = [], []
    for replica in (0, 1):
        alone = simulate(
            scenario(ACROSS[replica : replica + 1], [int(inputs[replica])], 6).with_overrides({"granularity": "step"})
        )
        rows = alone.steps
        chain: list[Link] = []
        last = []
        for alone_s, tokens in zip(rows["first_s"], rows["prefill_tokens"] + rows["decodes"], strict=True):
            chain += iteration(deployment, replica, float(alone_s), int(tokens))
            last.append(len(chain) - 1)
        chains.append(chain)
        ends.append(last)
    expected = play(chains, port_edges())
    for replica in (0, 1):
        rows = steps_of(together, replica)
        found_s = rows["start_s"] + rows["first_s"] - rows["start_s"][0]
        np.testing.assert_allclose(found_s, [expected[replica][i] for i in ends[replica]], rtol=EXACT)
        alone_s = sum(link.latency_s + link.alone_s for link in chains[replica])
        assert found_s[-1] > 1.05 * alone_s
    held(together)


def test_a_group_that_shares_nothing_is_byte_for_byte_as_if_alone() -> None:
    """In one run with two groups that fight for the port, the third leaps, and its records are those of a run alone."""
    groups = (*ACROSS, INSIDE)
    three = simulate(scenario(groups, [1024], 40))
    alone = simulate(scenario((INSIDE,), [1024], 40))
    mine = three.requests["replica"] == 2
    for name, column in alone.requests.items():
        if name not in ("id", "replica"):
            assert three.requests[name][mine].tobytes() == column.tobytes(), name
    own = steps_of(three, 2)
    for name, column in alone.steps.items():
        if name != "replica":
            assert own[name].tobytes() == column.tobytes(), name
    assert own["iterations"].max() > 30  # it leapt
    assert steps_of(three, 0)["iterations"].max() == 1  # the others ran layer by layer
    slowed = simulate(scenario(ACROSS[:1], [1024], 40))
    assert three.requests["finish_s"][0] > 1.05 * slowed.requests["finish_s"][0]
    held(three)


def test_waiting_for_a_shared_port_has_its_own_line_in_the_ledger() -> None:
    """64 users a group: a decode iteration reduces 512 KiB, and what it waits beyond its own time is `shared_links`."""
    many = {"workload.num_requests": 128, "workload.lengths.output_tokens": 12}
    together = simulate(scenario((*ACROSS, INSIDE), [64], 12).with_overrides({"workload.num_requests": 192}))
    alone = simulate(scenario(ACROSS[:1], [64], 12).with_overrides({"workload.num_requests": 64}))
    both = simulate(scenario(ACROSS, [64], 12).with_overrides(many))
    assert alone.walls_ms_per_token["shared_links"] == 0
    assert both.walls_ms_per_token["shared_links"] > 0.1 * alone.walls_ms_per_token["collective_bandwidth"]
    for cause in ("collective_latency", "collective_bandwidth", "weights_read"):
        assert both.walls_ms_per_token[cause] == pytest.approx(alone.walls_ms_per_token[cause], rel=1e-6)
    # the third group shares nothing: two thirds of all tokens wait
    third = both.walls_ms_per_token["shared_links"] * 2 / 3
    assert together.walls_ms_per_token["shared_links"] == pytest.approx(third, rel=1e-6)
    held(together)


def test_only_the_replicas_on_the_port_share_it() -> None:
    wires = wires_of(scenario((*ACROSS, INSIDE), [1024], 4))
    assert sorted(wires.sharing) == [0, 1]
    ports = {("n0.nic", "tor"), ("tor", "n0.nic"), ("n1.nic", "tor"), ("tor", "n1.nic")}
    assert all(ports <= edges for edges in wires.sharing.values())
    by_rail = scenario(ACROSS, [1024], 4, topology="dgx-h100")
    assert wires_of(by_rail).sharing == {}


# --- degraded links and slow GPUs ---------------------------------------------------------------------------------------


def durations(groups: tuple[tuple[str, ...], ...], nodes: int, overrides: list[dict[str, Any]]) -> list[float]:
    """End-to-end seconds of one request on each group, all groups in one run on rail-optimised DGX nodes."""
    asked = scenario(groups, [1024], 8, topology="dgx-h100", nodes=nodes, overrides=overrides)
    found = simulate(asked)
    held(found)
    assert found.requests["replica"].tolist() == list(range(len(groups)))
    return list(found.requests["finish_s"] - found.requests["arrival_s"])


PAIRS = tuple((f"n0.g{rail}", f"n1.g{rail}") for rail in range(8))
"""Eight groups over two nodes, each on a rail of its own."""


@pytest.mark.parametrize("link", [["n0.nic3", "leaf3"], ["n1.nic3", "leaf3"]])
def test_one_rail_at_a_quarter_slows_exactly_the_group_on_it(link: list[str]) -> None:
    sound = durations(PAIRS, 2, [])
    degraded = durations(PAIRS, 2, [{"link": link, "bandwidth_fraction": 0.25}])
    assert [i for i in range(8) if degraded[i] != sound[i]] == [3]
    before, after = (
        Deployment.of(scenario(PAIRS, [1024], 8, topology="dgx-h100", overrides=overrides)).cost(3)
        for overrides in ([], [{"link": link, "bandwidth_fraction": 0.25}])
    )
    assert isinstance(before, StepCost)
    assert isinstance(after, StepCost)
    assert after.all_reduces(1024)[2] == pytest.approx(4 * before.all_reduces(1024)[2], rel=EXACT)
    # one prefill and seven decode iterations, each with a gather of the logits at its end
    extra_s = sum(after.token_s[tokens] - before.token_s[tokens] for tokens in (1024, *[1] * 7))
    extra_s += 8 * (after.sampled_s[1] - before.sampled_s[1])
    assert degraded[3] - sound[3] == pytest.approx(extra_s, rel=1e-6)


NODE_PAIRS = tuple(tuple(f"n{node}.g{g}" for node in pair for g in (0, 2, 4, 6)) for pair in ((0, 1), (2, 3)))
"""Two groups of eight, each over two nodes with four GPUs in each."""


@pytest.mark.parametrize("node", [3, 2])
def test_a_degraded_rail_slows_the_wide_group_over_it(node: int) -> None:
    sound = durations(NODE_PAIRS, 4, [])
    degraded = durations(NODE_PAIRS, 4, [{"link": [f"n{node}.nic2", "leaf2"], "bandwidth_fraction": 0.25}])
    assert degraded[0] == sound[0] == sound[1]
    assert degraded[1] > 1.02 * sound[1]


def test_a_missing_rail_is_gone_round_by_another() -> None:
    sound = durations(PAIRS, 2, [])
    without = durations(PAIRS, 2, [{"link": ["n0.nic3", "leaf3"], "missing": True}])
    assert without[3] > sound[3]


def test_a_slow_gpu_slows_its_group_and_no_other() -> None:
    sound = durations(PAIRS, 2, [])
    slow = durations(PAIRS, 2, [{"gpu": "n1.g5", "speed": 0.8}])
    assert [i for i in range(8) if slow[i] != sound[i]] == [5]
    assert 1.05 < slow[5] / sound[5] < 1.25  # bodies of kernels take 1 / 0.8, launches and wires what they took


def slower(change: Callable[[dict[str, Any]], None]) -> float:
    data: dict[str, Any] = {"link": ["n0.nic3", "leaf3"]}
    change(data)
    return durations(PAIRS, 2, [data])[3]


def test_a_longer_cable_adds_its_latency_to_every_step() -> None:
    base = durations(PAIRS, 2, [])[3]
    one = slower(lambda data: data.update(extra_latency="1 us"))
    two = slower(lambda data: data.update(extra_latency="2 us"))
    assert two - one == pytest.approx(one - base, rel=1e-6)
    assert one > base
