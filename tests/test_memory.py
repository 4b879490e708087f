"""The memory ledger: the article's numbers, published vLLM measurements, and laws that hold for every cut."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import InputError
from sim.model.activation import activation_peak_bytes
from sim.model.balance import CONTEXT_IN_BUDGET, CONTEXT_OUTSIDE_BUDGET, GIB, MemoryLedger, MemoryOptions
from sim.model.kv_layout import kv_bytes_per_token, kv_layout
from sim.model.memory import ledger, ledger_dict
from sim.model.precision import Precision, resolve_precision
from sim.model.sharding import Sharding, legal_tensor_sizes
from sim.model.transformer import load_model

BF16 = Precision("bf16", "bf16")
MODELS = ["llama-3.1-8b", "llama-3.1-70b", "mixtral-8x7b", "deepseek-v3", "gpt-oss-20b", "gpt-j-6b", "gemma-2-9b"]


@dataclass(frozen=True)
class Card:
    memory_bytes: float
    visible_memory_bytes: float


H100 = Card(80e9, 79.2 * GIB)
A100 = Card(80e9, 79.2 * GIB)
H200 = Card(141e9, 139.8 * GIB)


def deploy(name: str, tensor: int, card: Card = H100, weights: str | None = None, **options: Any) -> MemoryLedger:
    model = load_model(name)
    sharding = options.pop("sharding", Sharding(tensor=tensor))
    precision = resolve_precision(model.quantization, weights, options.pop("kv_cache", None))
    count = sharding.ranks * sharding.data
    names = [f"gpu{i}" for i in range(count)]
    return ledger(model, precision, sharding, [card] * count, names, MemoryOptions(**options))


# --- the source article, claim by claim ------------------------------------------------------------------------------


def test_a_70b_model_weighs_140_gb_and_needs_two_80_gb_cards() -> None:
    one = deploy("llama-3-70b", 1, accounting="nominal")
    assert one.parameters == 70_553_706_496
    assert one.weights_bytes == 2 * 70_553_706_496 == 141_107_412_992
    assert 2 * 70e9 == 140e9  # the article rounds the parameters
    assert not one.fits
    assert math.ceil(one.weights_bytes / 80e9) == 2
    assert "TP2 fits" in " ".join(one.suggestions)
    assert deploy("llama-3-70b", 2, accounting="nominal").fits


def test_a_step_reads_139_gb() -> None:
    counts = load_model("llama-3-70b").parameters
    read_bytes = 2 * (counts.total - counts.embedding)
    assert round(read_bytes / 1e9, 1) == 139.0
    assert round(read_bytes / 3e12 * 1e3, 1) == 46.3


def test_kv_a_token_grows_eightfold_under_mha() -> None:
    gqa, mha = load_model("llama-3-70b"), load_model("llama-3.1-70b-mha")
    assert kv_bytes_per_token(gqa, BF16) == 327_680 == 0.3125 * 2**20
    assert kv_bytes_per_token(mha, BF16) == 2.5 * 2**20
    assert 32 * 1024 * kv_bytes_per_token(gqa, BF16) == 10 * GIB
    assert 32 * 1024 * kv_bytes_per_token(mha, BF16) == 80 * GIB
    assert 128 * 1024 * kv_bytes_per_token(gqa, BF16) == 40 * GIB
    huge = 128 * 1024 * kv_bytes_per_token(mha, BF16)
    assert huge == 320 * GIB
    assert round(huge / 1e9, 1) == 343.6
    assert math.ceil(huge / 80e9) == 5  # the article says four


def test_64_users_of_2k_run_out_of_memory_on_two_cards() -> None:
    kv_bytes = 64 * 2048 * kv_bytes_per_token(load_model("llama-3-70b"), BF16)
    assert kv_bytes == 40 * GIB
    found = deploy("llama-3-70b", 2, accounting="nominal", longest_sequence_tokens=2048, concurrency=64)
    assert round((found.weights_bytes + kv_bytes) / 1e9, 1) == 184.1
    assert found.weights_bytes + kv_bytes > 2 * 80e9
    assert found.max_sequences == 28
    assert "at most 28 sequences of 2,048 tokens at a time" in found.suggestions


def test_fewer_bits_mean_fewer_cards_and_the_ledger_says_how_many() -> None:
    refused = deploy("llama-3-70b", 1, accounting="nominal")
    assert any(line.startswith("int8 weights fit: 70.55 GB on 1 GPU") for line in refused.suggestions)
    assert any(line.startswith("int4 weights fit: 35.28 GB on 1 GPU") for line in refused.suggestions)
    for word in ("int8", "int4"):
        assert deploy("llama-3-70b", 1, weights=word, accounting="nominal").fits
    assert deploy("llama-3-70b", 1, weights="int4", longest_sequence_tokens=4096).fits  # also for a real engine


# --- the knife's edge: 70B in bf16 on two H100 -----------------------------------------------------------------------


def test_the_edge_at_090_utilisation_is_visible() -> None:
    found = deploy("llama-3.1-70b", 2)
    assert found.fits
    assert 4_900 < found.kv_tokens_capacity < 24_400
    # with the overhead of vLLM before V1, 5.3 GB, 0.7 GB of KV are left on a GPU
    assert 4_000 < found.cautious_kv_tokens < 5_000
    cautious = deploy("llama-3.1-70b", 2, overhead=CONTEXT_IN_BUDGET)
    row = cautious.per_gpu[0]
    assert row.activation_bytes + row.overhead_bytes == pytest.approx(5.2e9, rel=0.03)
    assert row.kv_pool_bytes == pytest.approx(0.7e9, abs=0.1e9)
    assert found.cautious_kv_tokens == cautious.kv_tokens_capacity
    # a card that showed only its printed 80e9 bytes would not start
    assert not deploy("llama-3.1-70b", 2, Card(80e9, 80e9), overhead=CONTEXT_IN_BUDGET).fits


def test_095_utilisation_holds_15_to_25_sequences() -> None:
    found = deploy("llama-3.1-70b", 2, gpu_memory_utilization=0.95, longest_sequence_tokens=2048)
    assert 31_000 <= found.kv_tokens_capacity <= 50_000
    assert found.cautious_kv_tokens == pytest.approx(31_000, rel=0.03)
    assert 15 <= found.max_sequences <= 25


def test_fp8_weights_turn_the_edge_into_a_compute_story() -> None:
    found = deploy("llama-3.1-70b", 2, weights="fp8", longest_sequence_tokens=1280)
    assert found.per_gpu[0].kv_pool_bytes == pytest.approx(38.6e9, rel=0.02)
    assert found.max_sequences == 180
    assert found.weights_bytes > 70_553_706_496  # embedding and head stay in 16 bit


# --- published measurements ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tensor", "weights_gib", "non_torch_gib"), [(1, 14.96, 1.79), (2, 7.48, 3.58)])
def test_the_published_profile_of_llama_3_8b(tensor: int, weights_gib: float, non_torch_gib: float) -> None:
    # vLLM pull request 10511, 79.22 GiB visible, 256 sequences, 8192 batched tokens (its max_model_len)
    row = deploy("llama-3-8b", tensor, Card(80e9, 79.22 * GIB), overhead=CONTEXT_IN_BUDGET).per_gpu[0]
    assert row.weights_bytes / GIB == pytest.approx(weights_gib, abs=0.005)
    assert row.overhead_bytes / GIB == pytest.approx(non_torch_gib, abs=0.005)
    assert row.activation_bytes / GIB == pytest.approx(1.26, rel=0.01)
    if tensor == 1:
        assert row.kv_pool_bytes / GIB == pytest.approx(53.29, rel=0.001)


@pytest.mark.parametrize(
    ("name", "card", "tokens", "sequences", "overhead", "blocks", "tolerance"),
    [
        ("llama-2-7b", A100, 4096, 256, CONTEXT_IN_BUDGET, 7351, 0.02),  # vLLM pull request 2031
        ("llama-2-7b", H100, 2048, 128, CONTEXT_OUTSIDE_BUDGET, 7463, 0.005),  # vLLM 0.15.1, by BLIS's logs
        ("mistral-nemo-12b", H100, 1024, 128, CONTEXT_OUTSIDE_BUDGET, 19251, 0.005),
        ("qwen2.5-7b", H100, 2048, 128, CONTEXT_OUTSIDE_BUDGET, 65368, 0.005),
    ],
)
def test_published_block_counts(
    name: str, card: Card, tokens: int, sequences: int, overhead: Any, blocks: int, tolerance: float
) -> None:
    found = deploy(name, 1, card, max_num_batched_tokens=tokens, max_num_seqs=sequences, overhead=overhead)
    assert found.num_blocks == pytest.approx(blocks, rel=tolerance)
    assert found.kv_tokens_capacity == 16 * found.num_blocks
    # even the overhead of the other age is within 3 %
    for other in (CONTEXT_IN_BUDGET, CONTEXT_OUTSIDE_BUDGET):
        tried = deploy(name, 1, card, max_num_batched_tokens=tokens, max_num_seqs=sequences, overhead=other)
        assert tried.num_blocks == pytest.approx(blocks, rel=0.03)


# --- how a deployment is refused -------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_the_sum_and_with_ways_out() -> None:
    found = deploy("llama-3.1-70b", 1, longest_sequence_tokens=2048)
    assert not found.fits
    assert found.reason.startswith(
        "gpu0: 141.1 GB weights + 1.678 GB activations + 516.7 MB overhead = 143.3 GB of 76.54"
    )
    assert found.reason.endswith("66.77 GB too much")
    assert found.per_gpu[0].kv_pool_bytes == 0
    assert found.suggestions[0].startswith("fp8 weights fit: 72.69 GB on 1 GPU")
    assert found.suggestions[-1].startswith("TP2 fits: 70.56 GB of weights a GPU")


def test_a_pool_too_small_for_one_sequence_names_the_longest_that_fits() -> None:
    found = deploy("llama-3.1-70b", 2, longest_sequence_tokens=131_072)
    assert not found.fits
    assert "one sequence of 131,072 tokens needs 21.47 GB of KV" in found.reason
    longest = int(found.suggestions[-1].removeprefix("sequences of at most ").split()[0].replace(",", ""))
    assert deploy("llama-3.1-70b", 2, longest_sequence_tokens=longest).fits
    assert not deploy("llama-3.1-70b", 2, longest_sequence_tokens=longest + 16).fits


def test_a_raised_utilisation_or_a_smaller_cache_is_offered_where_it_helps() -> None:
    found = deploy("llama-3.1-70b", 2, longest_sequence_tokens=40_000)
    text = "\n".join(found.suggestions)
    assert "an fp8 KV cache fits" in text
    assert "gpu_memory_utilization 0.95 fits" in text


def test_the_override_sets_the_number_of_blocks() -> None:
    found = deploy("llama-3.1-8b", 1, num_gpu_blocks_override=100, longest_sequence_tokens=99 * 16)
    assert (found.num_blocks, found.usable_blocks, found.fits) == (100, 99, True)
    assert not deploy("llama-3.1-8b", 1, num_gpu_blocks_override=100, longest_sequence_tokens=99 * 16 + 1).fits
    greedy = deploy("llama-3.1-8b", 1, num_gpu_blocks_override=10**6)
    assert not greedy.fits
    assert "KV blocks asked for" in greedy.reason


def test_the_json_has_the_stable_keys() -> None:
    content = ledger_dict(deploy("llama-3.1-70b", 2))
    assert {
        *("fits", "parameters", "weights_bytes", "kv_bytes_per_token", "kv_tokens_capacity", "max_sequences"),
        *("per_gpu", "suggestions"),
    } <= content.keys()
    assert {
        *("gpu", "capacity_bytes", "usable_bytes", "weights_bytes", "activation_bytes", "overhead_bytes"),
        "kv_pool_bytes",
    } <= content["per_gpu"][0].keys()
    assert len(content["per_gpu"]) == 2


# --- sharding --------------------------------------------------------------------------------------------------------


def test_a_tp_that_does_not_divide_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(InputError, match=r"tensor_parallel_size: got 3, but 64 attention heads.*\n.*1, 2, 4, 8, 16"):
        Sharding(tensor=3).check(load_model("llama-3.1-70b"))
    # phi-4 has 40 heads and 10 KV heads: 4 divides the heads, but not the KV heads
    with pytest.raises(InputError, match="neither divides 10 KV heads"):
        Sharding(tensor=4).check(load_model("phi-4"))
    assert legal_tensor_sizes(load_model("phi-4")) == [1, 2, 5, 10, 20, 40]
    with pytest.raises(InputError, match="has 32 layers"):
        Sharding(pipeline=33).check(load_model("llama-3.1-8b"))
    with pytest.raises(InputError, match="0 routed experts"):
        Sharding(tensor=2, expert_parallel=True).check(load_model("llama-3.1-8b"))


def test_left_over_layers_go_to_the_stages_before_the_last() -> None:
    def sizes(layers: int, pipeline: int) -> list[int]:
        return [len(Sharding(pipeline=pipeline).stage_layers(layers, stage)) for stage in range(pipeline)]

    assert sizes(61, 2) == [31, 30]
    assert sizes(61, 4) == [15, 15, 16, 15]
    assert sizes(126, 4) == [31, 32, 32, 31]
    assert sizes(80, 8) == [10] * 8


def test_tp_beyond_the_kv_heads_replicates_the_cache() -> None:
    model = load_model("llama-3.1-70b")
    per_rank = [kv_layout(model, BF16, Sharding(tensor=t), 0, 16).bytes_per_token for t in (1, 2, 4, 8, 16)]
    assert per_rank == [327_680, 163_840, 81_920, 40_960, 40_960]
    latent = load_model("deepseek-v3")
    assert kv_layout(latent, BF16, Sharding(tensor=8), 0, 16).bytes_per_token == 70_272


def test_expert_parallelism_spreads_whole_experts_over_tp_and_dp() -> None:
    model = load_model("deepseek-v3")
    experts = model.parameters.experts
    sliced = Sharding(tensor=8).rank_parameters(model, 0)
    spread = Sharding(tensor=8, data=2, expert_parallel=True).rank_parameters(model, 0)
    assert sliced.experts == experts / 8
    assert spread.experts == experts / 16
    assert spread.attention == sliced.attention


@given(
    st.sampled_from(MODELS),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 6),
)
@settings(derandomize=True, max_examples=60, deadline=None)
def test_every_cut_covers_the_model_and_only_replicates_what_must_be(name: str, tensor: int, pipeline: int) -> None:
    model, cut = load_model(name), Sharding(tensor=tensor, pipeline=pipeline)
    layers = [i for stage in range(pipeline) for i in cut.stage_layers(len(model.layers), stage)]
    assert layers == list(range(len(model.layers)))
    held = [cut.rank_parameters(model, stage).by_class() for stage in range(pipeline)]
    whole = model.parameters.by_class()
    for part in ("mlp", "experts", "shared_experts", "attention_output"):
        together = tensor * sum(stage[part] for stage in held)
        biases = len(model.layers) * model.hidden  # biases of the outputs are on every rank
        assert whole[part] <= together <= whole[part] + tensor * biases
    for part in ("router", "norms"):
        assert sum(stage[part] for stage in held) == whole[part]
    tied_copy = 1 if model.tied and pipeline > 1 else 0
    assert tensor * sum(stage["embedding"] for stage in held) >= whole["embedding"]
    assert (sum(stage["head"] for stage in held) > 0) == (not model.tied or bool(tied_copy))


@given(st.sampled_from(MODELS), st.sampled_from([1, 2, 4]), st.integers(1, 100_000), st.sampled_from([0.8, 0.9, 0.95]))
@settings(derandomize=True, max_examples=80, deadline=None)
def test_the_balance_sums_up_and_the_answer_is_true(name: str, tensor: int, tokens: int, utilization: float) -> None:
    found = deploy(name, tensor, H200, gpu_memory_utilization=utilization, longest_sequence_tokens=tokens)
    for row in found.per_gpu:
        balance = row.usable_bytes - row.needed_bytes
        assert row.kv_pool_bytes - row.shortfall_bytes == pytest.approx(balance, abs=1.0)
        assert sum(row.weights_by_class.values()) == pytest.approx(row.weights_bytes)
        assert found.num_blocks * found.layout.block_bytes <= row.kv_pool_bytes + 1.0
    blocks = found.layout.blocks_of_sequence(tokens)
    assert found.fits == (blocks <= found.usable_blocks and all(not row.shortfall_bytes for row in found.per_gpu))
    assert found.max_sequences * blocks <= found.usable_blocks < (found.max_sequences + 1) * blocks
    kept_bytes = sum(group.bytes_per_token * group.kept_tokens(tokens) for group in found.layout.groups)
    assert blocks * found.layout.block_bytes >= kept_bytes


def test_nothing_is_suggested_where_everything_fits() -> None:
    assert deploy("llama-3.1-8b", 1, longest_sequence_tokens=8192, concurrency=16).suggestions == ()


# --- windows ---------------------------------------------------------------------------------------------------------


def test_sliding_layers_hold_their_window_only() -> None:
    model = load_model("gpt-oss-20b")  # 24 layers of 2 KiB a token, every other one with a window of 128
    layout = kv_layout(model, BF16, Sharding(), 0, 16)
    assert {group.reach: group.bytes_per_token for group in layout.groups} == {128: 24_576, None: 24_576}
    assert [group.kept_tokens(100) for group in layout.groups] == [100, 100]
    assert sorted(group.kept_tokens(10_000) for group in layout.groups) == [128, 10_000]
    assert (layout.layers_per_block, layout.block_bytes) == (12, 16 * 24_576)
    assert layout.blocks_of_sequence(128) == 8 + 8
    assert layout.blocks_of_sequence(1600) == 100 + 8 + 1
    mistral = kv_layout(load_model("mistral-7b"), BF16, Sharding(), 0, 16)
    assert mistral.blocks_of_sequence(4097) == mistral.blocks_of_sequence(100_000) == 256 + 1


def test_a_hybrid_model_holds_more_tokens_in_longer_sequences() -> None:
    short = deploy("gpt-oss-20b", 1, longest_sequence_tokens=128)
    long = deploy("gpt-oss-20b", 1, longest_sequence_tokens=16_384)
    assert long.kv_tokens_capacity > 1.9 * short.kv_tokens_capacity


# --- activations -----------------------------------------------------------------------------------------------------


def test_the_activation_peak_is_the_sampler_at_few_tokens_and_the_widest_layer_at_many() -> None:
    model, alone = load_model("llama-3-8b"), Sharding()
    few = activation_peak_bytes(model, alone, 0, 1024, 256)
    assert few == 1024 * 4096 * 2 + 256 * 128_256 * 39
    many = activation_peak_bytes(model, alone, 0, 65_536, 256)
    assert many == 65_536 * (2 * 4096 + 3 * 14_336) * 2
    assert activation_peak_bytes(model, Sharding(tensor=2), 0, 65_536, 256) < many


def test_positions_of_a_million_cost_a_quarter_gibibyte() -> None:
    row = deploy("mistral-nemo-12b", 1).per_gpu[0]
    rope_bytes = row.overhead_bytes - CONTEXT_OUTSIDE_BUDGET.runtime_bytes
    assert rope_bytes == pytest.approx(1_024_000 * 128 * 2)
