"""Operators of one rank: they hold every weight once, and fusion only removes traffic and kernels."""

from __future__ import annotations

import pytest

from sim import catalogue
from sim.model.operators import Fusion, StageOperators, operators
from sim.model.precision import Precision, resolve_precision
from sim.model.sharding import Sharding, legal_tensor_sizes
from sim.model.transformer import load_model

BF16 = Precision("bf16", "bf16")


def of(name: str, sharding: Sharding | None = None, stage: int = 0, fusion: Fusion | None = None) -> StageOperators:
    model = load_model(name)
    return operators(model, resolve_precision(model.quantization, None, None), sharding or Sharding(), stage, fusion)


def gemm_elements(found: StageOperators) -> int:
    dense = sum(gemm.n * gemm.k * gemm.count for gemm in found.gemms)
    experts = sum(3 * moe.hidden * moe.intermediate * moe.local_experts * moe.count for moe in found.moes)
    return dense + experts


def test_the_kernels_of_llama_70b_at_tp2() -> None:
    found = of("llama-3.1-70b", Sharding(tensor=2))
    assert [(gemm.name, gemm.n, gemm.k, gemm.count, gemm.per) for gemm in found.gemms] == [
        ("qkv", 5120, 8192, 80, "token"),
        ("attention_output", 8192, 4096, 80, "token"),
        ("gate_up", 28_672, 8192, 80, "token"),
        ("down", 8192, 14_336, 80, "token"),
        ("head", 64_128, 8192, 1, "sampled"),
    ]
    (attention,) = found.attentions
    assert (attention.heads, attention.kv_heads, attention.head_dim, attention.count) == (32, 4, 128, 80)
    assert attention.kv_bytes_per_token == 2 * 4 * 128 * 2
    assert (found.all_reduces, found.all_reduce_bytes_per_token) == (161, 16_384)
    assert found.logits_gather_bytes_per_sampled == 128_256


def test_a_step_of_llama_70b_reads_139_gb_of_weights() -> None:
    assert round(2 * gemm_elements(of("llama-3.1-70b")) / 1e9, 1) == 139.0


@pytest.mark.parametrize("name", catalogue.files("models"))
def test_gemms_and_experts_hold_every_matrix_once(name: str) -> None:
    model = load_model(name)
    counts = model.parameters
    unused = (0 if model.tied else model.vocab * model.hidden) + model.learned_positions * model.hidden  # looked up
    matrices = counts.total - counts.norms - counts.expert_biases - unused
    small = (
        len(model.layers) * 2 * (model.hidden + model.layers[0].attention.heads * 3 * 256)
    )  # biases, q/k norms, sinks
    assert 0 <= matrices - gemm_elements(of(name)) <= small + model.vocab + 2 * counts.router // model.hidden


@pytest.mark.parametrize("name", ["llama-3.1-70b", "mixtral-8x7b", "qwen3-235b-a22b", "llama-3.1-405b"])
def test_ranks_together_compute_the_whole_model(name: str) -> None:
    model = load_model(name)
    whole = gemm_elements(of(name))
    kv_heads = model.layers[0].attention.kv_heads
    router = sum(gemm.n * gemm.k * gemm.count for gemm in of(name).gemms if gemm.name == "router")
    for tensor in legal_tensor_sizes(model):
        if tensor <= kv_heads and model.vocab % tensor == 0:
            assert tensor * gemm_elements(of(name, Sharding(tensor=tensor))) == whole + (tensor - 1) * router


@pytest.mark.parametrize("name", ["llama-3.1-70b", "deepseek-v3", "gpt-oss-120b", "gpt-j-6b"])
def test_stages_together_do_what_one_stage_does(name: str) -> None:
    whole, cut = of(name, Sharding(tensor=2)), Sharding(tensor=2, pipeline=3)
    stages = [of(name, cut, stage) for stage in range(3)]
    assert sum(map(gemm_elements, stages)) == gemm_elements(whole)
    assert sum(stage.all_reduces for stage in stages) == whole.all_reduces
    assert sum(stage.layers for stage in stages) == whole.layers
    assert [gemm.name for gemm in stages[0].gemms if gemm.per == "sampled"] == []
    assert [stage.stage_send_bytes_per_token > 0 for stage in stages] == [True, True, False]
    assert [stage.logits_gather_bytes_per_sampled > 0 for stage in stages] == [False, False, True]


def test_one_gpu_needs_no_collective() -> None:
    found = of("llama-3.1-8b")
    assert (found.all_reduces, found.all_reduce_bytes_per_token, found.logits_gather_bytes_per_sampled) == (0, 0.0, 0.0)


def test_a_parallel_block_reduces_once_a_layer() -> None:
    assert of("gpt-j-6b", Sharding(tensor=2)).all_reduces == 28 + 1
    assert of("llama-2-7b", Sharding(tensor=2)).all_reduces == 2 * 32 + 1


def test_latent_attention_projects_replicated_and_by_head() -> None:
    gemms = {gemm.name: (gemm.n, gemm.k, gemm.dtype) for gemm in of("deepseek-v3", Sharding(tensor=8)).gemms}
    assert gemms["q_a_and_kv_a"] == (1536 + 576, 7168, "fp8_block")
    assert gemms["q_b"] == (16 * 192, 1536, "fp8_block")
    assert gemms["kv_b"] == (16 * 256, 512, "bf16")
    assert gemms["attention_output"] == (7168, 16 * 128, "fp8_block")
    assert gemms["router"] == (256, 7168, "bf16")
    (attention,) = of("deepseek-v3", Sharding(tensor=8)).attentions
    assert (attention.kind, attention.heads, attention.kv_bytes_per_token, attention.count) == ("mla", 16, 1152, 61)


def test_experts_are_sliced_by_tp_or_spread_whole_by_ep() -> None:
    (sliced,) = of("deepseek-v3", Sharding(tensor=8)).moes
    assert (sliced.intermediate, sliced.local_experts, sliced.top_k, sliced.count) == (256, 256, 8, 58)
    spread = of("deepseek-v3", Sharding(tensor=8, data=2, expert_parallel=True))
    assert (spread.moes[0].intermediate, spread.moes[0].local_experts) == (2048, 16)
    assert spread.expert_exchanges == 58
    assert spread.all_reduces == 2 * 61 + 1 - 58
    assert of("deepseek-v3", Sharding(tensor=8, expert_parallel=True)).expert_exchanges == 0


def test_windowed_and_full_layers_are_separate_attentions() -> None:
    found = of("gpt-oss-20b")
    assert [(x.reach, x.count) for x in found.attentions] == [(128, 12), (None, 12)]
    assert [gemm.count for gemm in found.gemms if gemm.name == "qkv"] == [24]
    assert [(x.reach, x.count) for x in of("llama-4-scout").attentions] == [(8192, 36), (None, 12)]


def test_only_quantised_parts_have_the_quantised_type() -> None:
    dtypes = {gemm.name: gemm.dtype for gemm in of("gpt-oss-20b").gemms}
    assert set(dtypes.values()) == {"bf16"}
    assert of("gpt-oss-20b").moes[0].dtype == "mxfp4"
    model = load_model("llama-3.1-70b")
    fp8 = operators(model, resolve_precision(None, "fp8", "fp8"), Sharding(tensor=2))
    assert {gemm.dtype for gemm in fp8.gemms if gemm.name != "head"} == {"fp8"}
    assert {gemm.dtype for gemm in fp8.gemms if gemm.name == "head"} == {"bf16"}
    assert fp8.attentions[0].kv_dtype == "fp8"
    assert {gemm.dtype for gemm in of("llama-2-7b").gemms} == {"bf16"}  # fp16 costs the same


def test_elementwise_traffic_of_a_llama_layer() -> None:
    found = {x.name: x for x in of("llama-3.1-8b").elementwise}
    assert (found["add_norm"].bytes_per_token, found["add_norm"].count) == (4 * 4096 * 2, 64)
    assert (found["norm"].count, found["activation"].bytes_per_token) == (1, 3 * 14_336 * 2)
    assert found["rope"].bytes_per_token == 2 * (32 + 8) * 128 * 2
    assert found["kv_cache_write"].bytes_per_token == 2 * 2 * 8 * 128 * 2
    assert (found["sampling"].per, found["sampling"].bytes_per_token) == ("sampled", 128_256 * 18)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-8b", "gpt-j-6b", "deepseek-v3", "mixtral-8x7b", "gemma-2-9b"])
def test_fusion_removes_kernels_and_traffic_but_no_arithmetic(name: str) -> None:
    fused, unfused = of(name), of(name, fusion=Fusion(attention=False, elementwise=False))

    def total(found: StageOperators, field: str) -> float:
        return sum(getattr(x, field) * x.count for x in found.elementwise)

    assert total(unfused, "kernels") > total(fused, "kernels")
    assert total(unfused, "bytes_per_token") > total(fused, "bytes_per_token")
    assert unfused.gemms == fused.gemms
    assert unfused.moes == fused.moes
    assert {(x.score_bytes_per_pair, x.kernels) for x in fused.attentions} == {(0.0, 1)}
    assert {(x.score_bytes_per_pair, x.kernels) for x in unfused.attentions} == {
        (8.0 * x.heads, 3) for x in fused.attentions
    }
