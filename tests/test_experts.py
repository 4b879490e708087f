"""Routed experts of a group: the hottest rank, the exchange of tokens, two half batches."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cost.causes import INDEX
from sim.cost.experts import LOW_LATENCY_ROWS, ExpertCost, LockStepCost, destinations, hottest_share
from sim.cost.kernels import Floats
from sim.engine.deployment import Deployment
from sim.errors import InputError
from sim.model.operators import Moe, operators
from sim.scenario import Scenario

GROUP = {"data_parallel_size": 4, "tensor_parallel_size": 2, "enable_expert_parallel": True}


def scenario(model: str = "mixtral-8x7b", nodes: int = 1, **deployment: Any) -> Scenario:
    return Scenario.from_dict({
        "model": model,
        "cluster": {"topology": "dgx-h100", "nodes": nodes},
        "deployment": deployment,
        "engine": {"max_num_seqs": 64, "max_num_batched_tokens": 2048},
        "workload": {
            "arrivals": {"kind": "burst"},
            "lengths": {"kind": "fixed", "input_tokens": 64, "output_tokens": 8},
            "num_requests": 8,
        },
    })  # fmt: skip


@cache
def cost(model: str = "mixtral-8x7b", nodes: int = 1, skew: float = 0.0, **more: Any) -> LockStepCost:
    load = {"expert_load": {"kind": "zipf", "exponent": skew}} if skew else {}
    found = Deployment.of(scenario(model, nodes, **(GROUP | load | more))).cost(0)
    assert isinstance(found, LockStepCost)
    return found


# --- the hottest rank ---------------------------------------------------------------------------------------------------


def simulated_share(experts: int, local: int, top_k: int, exponent: float) -> float:
    """The same by drawing: tokens pick experts one after another (Gumbel's trick), experts are shuffled over ranks."""
    random = np.random.default_rng(7)
    log_weight = -exponent * np.log(np.arange(1, experts + 1))
    most = []
    for _ in range(200):
        noisy = random.permutation(log_weight) + random.gumbel(size=(400, experts))
        chosen = np.argpartition(-noisy, top_k - 1, axis=1)[:, :top_k]
        loads = np.bincount(chosen.ravel() // local, minlength=-(-experts // local))
        most.append(loads.max() / (400 * top_k * local / experts))
    return float(np.mean(most))


@pytest.mark.parametrize(("experts", "local", "top_k"), [(8, 4, 2), (64, 16, 6), (256, 8, 8)])
@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_the_hottest_share_is_what_drawing_gives(experts: int, local: int, top_k: int, exponent: float) -> None:
    found = hottest_share(experts, local, top_k, exponent)
    assert found == pytest.approx(simulated_share(experts, local, top_k, exponent), rel=0.06)


def test_nothing_is_hot_when_all_are_alike_or_one_rank_has_all() -> None:
    assert hottest_share(8, 2, 2, 0.0) == 1.0
    assert hottest_share(8, 8, 2, 1.0) == 1.0
    assert hottest_share(8, 2, 8, 1.0) == pytest.approx(1.0)


@given(st.sampled_from([8, 16, 64]), st.sampled_from([1, 2, 4]), st.floats(0.0, 1.5), st.floats(0.01, 0.5))
@settings(max_examples=30, derandomize=True, deadline=None)
def test_more_skew_is_never_cooler_and_a_rank_cannot_have_more_than_all(
    experts: int, local: int, exponent: float, more: float
) -> None:
    shares = [hottest_share(experts, local, 2, e) for e in (exponent, exponent + more)]
    assert 1.0 <= shares[0] <= shares[1] * (1 + 1e-9)
    assert shares[1] <= experts / local * (1 + 1e-9)


def test_skew_slows_the_experts_and_the_exchange_to_them() -> None:
    even, hot, hotter = (cost(skew=s, all2all_backend="deepep").experts for s in (0.0, 0.5, 1.0))
    for rows in (8, 256, 4096):
        assert even.experts_s(rows) < hot.experts_s(rows) < hotter.experts_s(rows)
        assert even.exchange_s(rows, rows // 4) < hot.exchange_s(rows, rows // 4) < hotter.exchange_s(rows, rows // 4)


def test_one_replica_with_whole_experts_exchanges_nothing_beyond_its_all_reduces() -> None:
    sliced, whole = (Deployment.of(scenario(tensor_parallel_size=2, enable_expert_parallel=e)) for e in (False, True))
    costs = [sliced.cost(0), whole.cost(0)]
    assert not isinstance(costs[1], LockStepCost)
    for deployment in (sliced, whole):
        operators = deployment.cost(0).operators  # type: ignore[union-attr]
        assert operators.expert_exchanges == 0
        assert operators.all_reduces == 2 * 32 + 1
    collective = [c.token_causes[INDEX["collective_bandwidth"], 512] for c in costs]
    assert collective[0] == collective[1]
    moes = [d.cost(0).operators.moes[0] for d in (sliced, whole)]  # type: ignore[union-attr]
    assert [(m.local_experts, m.intermediate) for m in moes] == [(8, 7168), (4, 14336)]
    # the same weights and FLOPs a rank: within a fifth of each other
    assert costs[1].token_causes.sum(axis=0)[512] == pytest.approx(costs[0].token_causes.sum(axis=0)[512], rel=0.2)
    skewed = Deployment.of(
        scenario(tensor_parallel_size=2, enable_expert_parallel=True, expert_load={"kind": "zipf", "exponent": 1.0})
    )
    assert skewed.cost(0).token_causes.sum(axis=0)[512] > costs[1].token_causes.sum(axis=0)[512]


@pytest.mark.parametrize(
    ("deployment", "key"),
    [
        ({"expert_load": {"kind": "zipf", "exponent": 1.0}}, "expert_load"),
        ({"two_batch_overlap": True}, "two_batch_overlap"),
        ({"tensor_parallel_size": 2, "enable_expert_parallel": True, "two_batch_overlap": True}, "two_batch_overlap"),
        ({**GROUP, "tensor_parallel_size": 1, "pipeline_parallel_size": 2}, "pipeline_parallel_size"),
    ],
)
def test_what_makes_no_sense_is_refused(deployment: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=key):
        Deployment.of(scenario(**deployment))


# --- the exchange -------------------------------------------------------------------------------------------------------


class Counting:
    """Collectives that remember what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, float]] = []

    def times(self, op: str, sizes_bytes: Floats) -> tuple[Floats, Floats]:
        self.sent += [(op, float(size)) for size in sizes_bytes]
        return np.full_like(sizes_bytes, 1e-5), sizes_bytes / 1e11


def expert_cost(collectives: Counting, **more: Any) -> ExpertCost:
    """Mixtral's experts on 4 x 2 ranks."""
    full = Deployment.of(scenario(**GROUP))
    stage = operators(full.model, full.precision, full.sharding)
    return ExpertCost(stage, full._slowest(full.gpu_names), collectives, tensor=2, data=4, **more)


def test_all_gather_and_reduce_scatter_carry_every_row_once_a_layer() -> None:
    wires = Counting()
    found = expert_cost(wires).exchange_s(group_rows=100, widest_rows=40)
    assert wires.sent == [("all_gather", 100 * 4096 * 2), ("reduce_scatter", 100 * 4096 * 2)]
    assert found == pytest.approx(32 * 2 * (1e-5 + 100 * 8192 / 1e11))


def test_deepep_sends_a_copy_to_each_expert_or_one_to_each_node() -> None:
    wires = Counting()
    cost = expert_cost(wires, deepep=True, nodes=2)
    cost.exchange_s(4 * 100, 100)
    # 100 rows over 2 tensor-parallel ranks, 2 experts each, 8192 bytes there and back
    assert wires.sent == [("all_to_all", 50 * 2 * 8192)] * 2
    wires.sent.clear()
    cost.exchange_s(4 * 512, 512)
    nodes = 2 * (1 - (4 * 3) / (8 * 7))  # C(4, 2) / C(8, 2)
    assert [size for _, size in wires.sent] == pytest.approx([256 * nodes * 8192] * 2)


def test_destinations() -> None:
    moe = Moe(7168, 2048, 256, 8, 8, "fp8_block", 58)
    assert destinations(moe, 1) == pytest.approx(1.0)
    assert destinations(moe, 32) == pytest.approx(32 * (1 - (1 - 8 / 256) ** 8), rel=0.02)
    assert destinations(moe, 256) == pytest.approx(8.0)


def test_deepseek_over_four_nodes_is_exchanged_as_fast_as_deepep_says() -> None:
    """128 rows a GPU, EP32, low latency: 155 us there in fp8, 273 us back in bf16 (DeepEP's own table, H800 and CX7)."""
    stage = cost("deepseek-v3", 4, data_parallel_size=32, tensor_parallel_size=1, all2all_backend="deepep").experts
    rows = (np.array([32 * 128]), np.array([128]))
    times = [sum(float(part[0]) for part in stage._collectives.times(*x)) for x in stage.exchange_bytes(*rows)]  # type: ignore[union-attr]
    assert times[0] == pytest.approx(155e-6, rel=0.3)
    assert times[1] == pytest.approx(273e-6, rel=0.3)
    assert LOW_LATENCY_ROWS >= 128


@given(st.integers(1, 2000), st.integers(1, 2000))
@settings(max_examples=50, derandomize=True, deadline=None)
def test_more_rows_never_take_less_time(rows: int, more: int) -> None:
    experts = cost().experts
    assert experts.experts_s(rows) <= experts.experts_s(rows + more) * (1 + 1e-9)
    assert experts.exchange_s(rows, rows) <= experts.exchange_s(rows + more, rows + more) * (1 + 1e-9)


# --- two half batches -----------------------------------------------------------------------------------------------------


def test_two_half_batches_hide_the_shorter_of_compute_and_exchange() -> None:
    found = cost(two_batch_overlap=True)
    experts, own_s, head_s = found.experts, found.token_s[512] + 0.001, 0.0002
    halves_s = found.overlapped_s(own_s, head_s, 512, 0, 4 * 512, 512)
    compute_s = own_s - head_s - found.token_s[512] + 2 * found.token_s[256] - found.preset.step_s
    compute_s += 2 * experts.experts_s(2 * 512)
    exchange_s = 2 * experts.exchange_s(2 * 512, 256)
    longer, shorter = max(compute_s, exchange_s), min(compute_s, exchange_s)
    assert halves_s == pytest.approx(head_s + longer + shorter / 64)
    assert halves_s > longer
