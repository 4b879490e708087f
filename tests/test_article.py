"""The source article, number by number, on the code that answers users."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from sim import catalogue
from sim.cost.causes import INDEX
from sim.cost.collectives import Communicator
from sim.cost.preset import PRESETS
from sim.cost.roofline import Roofline
from sim.cost.step import StepCost
from sim.hardware.gpu import load_gpu
from sim.hardware.topology import load_topology
from sim.model.balance import GIB, MIB, MemoryLedger
from sim.model.operators import Gemm, StageOperators, operators
from sim.model.precision import Precision
from sim.model.sharding import Sharding
from sim.model.transformer import load_model
from sim.scenario import Scenario
from sim.simulate import plan_memory, simulate

BF16 = Precision("bf16", "bf16")
PARAMETERS = 70_553_706_496
GQA, MHA = "llama-3-70b", "llama-3.1-70b-mha"
CARD_BYTES = 80e9


def scenario(users: int = 1, tokens: int = 2048, **overrides: Any) -> Scenario:
    """So many users, `tokens` each, on H100s."""
    data = {
        "model": "llama-3.1-70b",
        "cluster": {"topology": "dgx-h100"},
        "deployment": {"tensor_parallel_size": 2},
        "workload": {
            "arrivals": {"kind": "closed_loop", "concurrency": users},
            "lengths": {"kind": "fixed", "input_tokens": tokens - 1, "output_tokens": 1},
            "num_requests": users,
        },
    }
    return Scenario.from_dict(data).with_overrides({key.replace("__", "."): value for key, value in overrides.items()})


def nominal(**asked: Any) -> MemoryLedger:
    return plan_memory(scenario(**asked), "nominal")


def engine(**asked: Any) -> MemoryLedger:
    return plan_memory(scenario(**asked))


# --- "the weights are 140 GB" ----------------------------------------------------------------------------------------


def test_weights_are_140_gb_in_the_article_and_141_1_exactly() -> None:
    for ledger in (nominal(), engine()):
        assert ledger.parameters == PARAMETERS
        assert ledger.weights_bytes == 2 * PARAMETERS == 141_107_412_992
    assert 2 * 70e9 == 140e9  # what "70B" in 16 bit makes on an envelope


def test_they_need_at_least_two_80_gb_cards() -> None:
    assert math.ceil(2 * PARAMETERS / CARD_BYTES) == math.ceil(140e9 / CARD_BYTES) == 2
    for plan in (nominal, engine):
        assert not plan(deployment__tensor_parallel_size=1).fits
        assert plan(deployment__tensor_parallel_size=2).fits


def test_int8_and_int4_need_fewer_cards_and_the_ledger_says_how_many() -> None:
    one = {"deployment__tensor_parallel_size": 1}
    said = " ".join(nominal(**one).suggestions)
    assert "int8 weights fit: 70.55 GB on 1 GPU" in said
    assert "int4 weights fit: 35.28 GB on 1 GPU" in said
    assert nominal(precision__weights="int8", **one).fits
    assert nominal(precision__weights="int4", **one).fits
    # a real engine: 72.7 GB of int8 with scales, and embeddings in 16 bit, leave room for eight users on one card
    assert engine(precision__weights="int8", **one).weights_bytes == pytest.approx(72.67e9, rel=1e-3)
    assert engine(precision__weights="int8", **one).max_sequences == 8
    assert engine(precision__weights="int4", **one).max_sequences > 50
    # and four cards of 24 GB hold what two of 80 GB did
    small = {"cluster__topology": "pcie-box-l40s", "cluster__gpu": "rtx-4090", "precision__weights": "int4"}
    assert not engine(deployment__tensor_parallel_size=1, **small).fits
    assert engine(deployment__tensor_parallel_size=4, **small).fits


# --- "a token of KV cache is 0.31 MB, 2.5 MB under MHA" --------------------------------------------------------------


def test_a_token_of_kv_cache() -> None:
    assert nominal().kv_bytes_per_token == 327_680 == 0.3125 * MIB
    assert nominal(model=MHA).kv_bytes_per_token == 2.5 * MIB


def test_one_user_of_32k() -> None:
    assert 32 * 1024 * nominal().kv_bytes_per_token == 10 * GIB
    assert 32 * 1024 * nominal(model=MHA).kv_bytes_per_token == 80 * GIB
    assert engine(tokens=32 * 1024).fits
    assert not engine(tokens=32 * 1024, model=MHA).fits
    assert engine(tokens=32 * 1024, model=MHA, deployment__tensor_parallel_size=4).fits


def test_one_user_of_128k_under_mha_needs_five_cards_for_its_cache_alone_not_four() -> None:
    gqa_bytes, mha_bytes = (128 * 1024 * nominal(model=model).kv_bytes_per_token for model in (GQA, MHA))
    assert gqa_bytes == 40 * GIB
    assert mha_bytes == 320 * GIB
    assert round(mha_bytes / 1e9, 1) == 343.6
    assert math.ceil(mha_bytes / CARD_BYTES) == 5
    assert 320 / 80 == 4  # GiB of cache over GB of card: the article's four
    # with its weights it needs seven, and so, with cuts that divide 64 heads, eight
    mha = nominal(model=MHA)
    assert math.ceil((mha.weights_bytes + mha_bytes) / CARD_BYTES) == 7
    fits = {tp: engine(tokens=128 * 1024, model=MHA, deployment__tensor_parallel_size=tp).fits for tp in (4, 8)}
    assert fits == {4: False, 8: True}
    assert engine(tokens=128 * 1024, deployment__tensor_parallel_size=4).fits


def test_the_model_that_mha_would_be_has_79_95_billion_parameters() -> None:
    assert round(load_model(MHA).parameters.total / 1e9, 2) == 79.95
    assert load_model(MHA).parameters.total - load_model(GQA).parameters.total == 80 * 2 * 8192 * (64 - 8) * 128


# --- "64 users of 2k run out of memory on two cards" -----------------------------------------------------------------


def test_64_users_of_2k_take_40_gib_and_do_not_fit_on_two_cards() -> None:
    ledger = nominal(users=64)
    kv_bytes = 64 * 2048 * ledger.kv_bytes_per_token
    assert kv_bytes == 40 * GIB
    assert round((ledger.weights_bytes + kv_bytes) / 1e9, 1) == 184.1
    # the article's 181: 140 plus 64 x 2048 x 0.3125 taken as MB, of which 1000 make a GB
    assert round(140 + 64 * 2048 * 0.3125 / 1000) == 181
    assert ledger.weights_bytes + kv_bytes > 2 * CARD_BYTES
    assert ledger.max_sequences == 28
    assert engine(users=64).max_sequences == 23
    assert engine(users=64, engine__gpu_memory_utilization=0.9).max_sequences < engine(users=64).max_sequences


def test_a_naive_engine_crashes_on_them_at_a_named_time() -> None:
    crash = simulate(Scenario.load(catalogue.files("scenarios")["llama3-70b-2xh100-64way-oom"]))
    assert crash.status == "oom"
    assert crash.oom is not None
    assert 0 < crash.oom["time_s"] < 60
    assert crash.oom["gpu"] == "n0.g0"
    assert crash.oom["needed_bytes"] > crash.oom["free_bytes"]
    assert crash.oom["kv_tokens"] <= engine(users=64).kv_tokens_capacity


def test_an_engine_with_a_gate_makes_them_wait_instead() -> None:
    served = simulate(Scenario.load(catalogue.files("scenarios")["llama3-70b-2xh100-64way"]))
    assert served.status == "done"
    assert served.summary["completed"] == 512
    assert served.preemptions > 0
    assert served.steps["running"].max() < 64


# --- "46 ms to stream the weights" -----------------------------------------------------------------------------------


def step_cost(stage: StageOperators, tensor: int = 1) -> StepCost:
    """Iterations of the back of an envelope on GPUs of 3 TB/s."""
    gpu = replace(load_gpu("h100-sxm"), hbm_bytes_per_s=3e12)
    group = (
        Communicator(load_topology("dgx-h100", {}), [f"n0.g{i}" for i in range(tensor)], "ideal")
        if tensor > 1
        else None
    )
    return StepCost(
        stage, Roofline(gpu, ideal=True), group, PRESETS["ideal"], max_tokens=64, max_seqs=64, async_scheduling=False
    )


def decode_ms(cost: StepCost, users: int = 1) -> float:
    """An iteration that decodes one token for each of `users`, with next to no context."""
    return 1e3 * (cost.token_s[users] + cost.sampled_s[users] + cost.decode_fixed_s[users] + cost.host_s[users])


def test_140_gb_at_3_tb_s_take_46_7_ms() -> None:
    stage = StageOperators(gemms=[Gemm("all", 250_000, 280_000, "bf16", 1)])  # 70e9 weights
    assert decode_ms(step_cost(stage)) == pytest.approx(46.67, abs=0.01)


def test_a_step_reads_139_0_gb_in_46_3_ms_so_about_21_tokens_a_second() -> None:
    cost = step_cost(operators(load_model(GQA), BF16, Sharding()))
    weights = INDEX["weights_read"]
    read_s = cost.token_causes[weights, 1] + cost.sampled_causes[weights, 1]
    assert read_s * 3e12 / 1e9 == pytest.approx(139.0, abs=0.05)  # all but the input embedding
    assert read_s * 1e3 == pytest.approx(46.3, abs=0.05)
    assert decode_ms(cost) == pytest.approx(46.3, abs=0.1)
    assert 21 < 1e3 / decode_ms(cost) < 22


def test_tp2_halves_it() -> None:
    one, two = (step_cost(operators(load_model(GQA), BF16, Sharding(tensor=tp)), tp) for tp in (1, 2))
    assert decode_ms(two) == pytest.approx(decode_ms(one) / 2, rel=2e-3)  # norms are on both


def test_64_users_share_one_read_of_the_weights() -> None:
    cost = step_cost(operators(load_model(GQA), BF16, Sharding()))
    assert decode_ms(cost, 64) < 1.05 * decode_ms(cost, 1)


def test_the_whole_simulator_gives_the_same_step_on_the_printed_bandwidth() -> None:
    # 139.0 GB over two H100 of 3.35 TB/s: 20.7 ms a token, measured as TPOT through scenario, engine and metrics
    run = simulate(
        scenario(workload__lengths__output_tokens=64, workload__lengths__input_tokens=64, engine__preset="ideal")
    )
    assert run.summary["median_tpot_ms"] == pytest.approx(139.0 / (2 * 3.35), rel=0.005)
