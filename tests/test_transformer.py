"""Models: what their configs say of layers, paths and precision."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sim import catalogue
from sim.errors import InputError
from sim.model.kv_layout import kv_bytes_per_token
from sim.model.precision import Precision, Quantization, parse_quantization, resolve_precision, weight_bytes
from sim.model.transformer import Transformer, count_parameters, load_model

HF_CONFIGS = Path(__file__).resolve().parents[2] / "shared" / "data" / "hf_configs"

KV_BYTES = {
    "llama-3.1-8b": 131_072,
    "llama-3.1-70b": 327_680,
    "llama-3.1-405b": 516_096,
    "mixtral-8x7b": 131_072,
    "mixtral-8x22b": 229_376,
    "deepseek-v3": 70_272,
    "kimi-k2": 70_272,
    "qwen3-8b": 147_456,
    "qwen3-32b": 262_144,
    "qwen3-30b-a3b": 98_304,
    "qwen3-235b-a22b": 192_512,
    "gpt-oss-20b": 49_152,
    "gpt-oss-120b": 73_728,
}


def active_parameters(name: str) -> int:
    """Parameters that one token passes through, both embeddings and the whole router included."""
    model = load_model(name)
    active = [(x.attention, replace(x.mlp, local_experts=x.mlp.top_k, correction_bias=False)) for x in model.layers]
    return count_parameters(model, active).total


def test_active_parameters_are_exact() -> None:
    assert active_parameters("deepseek-v3") == 37_552_282_624
    assert active_parameters("qwen3-30b-a3b") == 3_353_032_704
    billions = {"mixtral-8x7b": 12.88, "mixtral-8x22b": 39.15, "kimi-k2": 32.86, "qwen3-235b-a22b": 22.19}
    billions |= {"gpt-oss-20b": 4.19, "gpt-oss-120b": 5.71}
    for name, value in billions.items():
        assert round(active_parameters(name) / 1e9, 2) == value
    without_embedding = active_parameters("gpt-oss-120b") - load_model("gpt-oss-120b").parameters.embedding
    assert round(without_embedding / 1e9, 2) == 5.13
    assert active_parameters("llama-3.1-70b") == load_model("llama-3.1-70b").parameters.total


@pytest.mark.parametrize(("name", "size"), KV_BYTES.items())
def test_kv_bytes_per_token_in_16_bit(name: str, size: int) -> None:
    assert kv_bytes_per_token(load_model(name), Precision("bf16", "bf16")) == size


def test_classes_of_a_llama_sum_up() -> None:
    counts = load_model("llama-3.1-70b").parameters
    assert counts.embedding == counts.head == 128_256 * 8192
    assert counts.attention + counts.attention_output == 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024)
    assert counts.mlp == 80 * 3 * 8192 * 28_672
    assert counts.norms == 161 * 8192
    assert counts.experts == counts.router == counts.shared_experts == 0


def test_mixture_of_experts_layers_follow_the_config() -> None:
    dense, moe = load_model("deepseek-v3").groups()
    assert (dense.mlp.kind, dense.count, moe.mlp.kind, moe.count) == ("dense", 3, "moe", 58)
    assert (moe.mlp.experts, moe.mlp.top_k, moe.mlp.expert_intermediate, moe.mlp.shared_intermediate) == (
        256,
        8,
        2048,
        2048,
    )
    maverick = load_model("llama-4-maverick")
    assert [layer.mlp.kind for layer in maverick.layers[:4]] == ["dense", "moe", "dense", "moe"]
    assert maverick.layers[0].mlp.intermediate == 16_384


def test_windows_and_chunks_follow_the_config() -> None:
    assert [layer.attention.window for layer in load_model("gpt-oss-20b").layers[:4]] == [128, None, 128, None]
    assert {layer.attention.window for layer in load_model("mistral-7b").layers} == {4096}
    assert {layer.attention.window for layer in load_model("qwen2.5-7b").layers} == {None}
    assert [layer.attention.window for layer in load_model("gemma-3-27b").layers[:6]] == [1024] * 5 + [None]
    scout = load_model("llama-4-scout").layers
    assert [layer.attention.chunk for layer in scout[:4]] == [8192, 8192, 8192, None]
    assert [layer.attention.rope_dim for layer in scout[:4]] == [128, 128, 128, 0]


def test_head_dim_is_the_field_and_not_the_quotient() -> None:
    assert load_model("qwen3-30b-a3b").layers[0].attention.head_dim == 128  # the quotient is 64


def test_a_path_may_be_a_config_or_its_folder(tmp_path: Path) -> None:
    config = json.loads(catalogue.files("models")["llama-3.1-8b"].read_text())
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["X"], "text_config": config}))
    for path in (folder, folder / "config.json"):
        model = load_model(str(path))
        assert (model.name, model.parameters.total) == ("my-model", 8_030_261_248)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"num_hidden_layers": "32"}, "'num_hidden_layers' is '32'"),
        ({"num_attention_heads": 30}, "is 30, no multiple of 'num_key_value_heads', 8"),
        ({"layer_types": ["linear_attention"] * 32}, "'layer_types' has 'linear_attention'"),
        ({"mamba_d_state": 128}, "not modelled"),
        ({"index_topk": 2048}, "'index_topk': .*sparse attention"),
        ({"linear_attn_config": {"kda_layers": [1]}}, "not modelled"),
        ({"quantization_config": {"quant_method": "magic"}}, "'quant_method' is 'magic'"),
    ],
)
def test_a_broken_config_is_refused_by_its_key(change: dict[str, object], message: str) -> None:
    config = json.loads(catalogue.files("models")["llama-3.1-8b"].read_text()) | change
    with pytest.raises(InputError, match=message):
        Transformer.from_config(config, "broken", "config.json")


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(InputError, match="not readable as JSON"):
        load_model(str(path))


# --- precision -------------------------------------------------------------------------------------------------------


def weights_gb(name: str) -> float:
    model = load_model(name)
    precision = resolve_precision(model.quantization, None, None)
    counts = model.parameters.by_class()
    return sum(count * precision.parameter_bytes(part, model.hidden) for part, count in counts.items()) / 1e9


def test_checkpoints_weigh_what_they_say() -> None:
    assert round(weights_gb("llama-3.1-70b"), 1) == 141.1
    assert round(weights_gb("deepseek-v3"), 1) == 673.2
    assert round(weights_gb("gpt-oss-20b"), 2) == 13.76
    assert round(weights_gb("gpt-oss-120b"), 2) == 65.25


def test_scales_of_activations_are_static_where_the_checkpoint_or_the_user_says_so() -> None:
    modelopt = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    tensors = {
        "quant_method": "compressed-tensors",
        "config_groups": {
            "group_0": {
                "weights": {"num_bits": 8, "type": "float"},
                "input_activations": {"num_bits": 8, "dynamic": False},
            }
        },
    }
    for section in (modelopt, tensors, {"quant_method": "fp8", "activation_scheme": "static"}):
        known = parse_quantization({"quantization_config": section}, "config.json")
        assert resolve_precision(known, None, None).static_scales
        assert resolve_precision(known, None, None, activation_scales="dynamic").static_scales is False
    assert resolve_precision(load_model("deepseek-v3").quantization, None, None).static_scales is False
    assert resolve_precision(None, "fp8", None, activation_scales="static").static_scales
    assert resolve_precision(None, "fp8", None).static_scales is None


def test_the_users_word_beats_the_checkpoint_and_keeps_its_exceptions() -> None:
    block = load_model("deepseek-v3").quantization
    assert resolve_precision(block, "fp8", None).weights == "fp8_block"
    assert resolve_precision(block, "bf16", "fp8") == Precision("bf16", "fp8", "bf16")
    oss = load_model("gpt-oss-20b").quantization
    assert resolve_precision(oss, "mxfp4", None).of("attention") == "bf16"
    assert resolve_precision(oss, None, None).of("experts") == "mxfp4"
    int4 = resolve_precision(None, "int4", None)
    assert (int4.weights, int4.of("head"), int4.arithmetic("mlp"), int4.kv_cache) == (
        "int4_wo",
        "bf16",
        "int4_wo",
        "bf16",
    )
    assert resolve_precision(load_model("llama-2-7b").quantization, None, None).kv_cache == "fp16"


def test_unknown_words_are_refused() -> None:
    with pytest.raises(InputError, match=r"precision\.weights: got 'fp7'"):
        resolve_precision(None, "fp7", None)
    with pytest.raises(InputError, match=r"precision\.kv_cache: got 'int3'"):
        resolve_precision(None, None, "int3")


def test_bytes_of_quantised_elements() -> None:
    assert weight_bytes("nvfp4", 4096) == 0.5625
    assert weight_bytes("mxfp4", 4096) == 4.25 / 8
    assert weight_bytes("fp8_block", 4096) == 1 + 4 / 16384
    assert weight_bytes("int4_wo", 4096) == 0.5 + 2.5 / 128
    assert Precision("bf16", "int4").kv_bytes(128) == 0.5 + 4 / 128


@pytest.mark.parametrize(
    ("section", "weights", "kv_cache"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "int4_wo", None),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "int8_wo", None),
        ({"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16}}, "nvfp4", "fp8"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
                "kv_cache_scheme": {"num_bits": 8},
            },
            "fp8",
            "fp8",
        ),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4_wo", None),
    ],
)
def test_quantization_sections_of_all_tools(section: dict[str, object], weights: str, kv_cache: str | None) -> None:
    found = parse_quantization({"quantization_config": section, "torch_dtype": "float16"}, "config.json")
    assert (found.base, found.weights, found.kv_cache) == ("fp16", weights, kv_cache)


def test_int8_activations_make_the_weights_more_than_packed() -> None:
    group: dict[str, object] = {"weights": {"num_bits": 8, "type": "int"}}
    section = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    assert parse_quantization({"quantization_config": section}, "c").weights == "int8_wo"
    group["input_activations"] = {"num_bits": 8}
    assert parse_quantization({"quantization_config": section}, "c").weights == "int8"


def test_no_quantization_means_the_base_type() -> None:
    assert parse_quantization({"torch_dtype": "bfloat16"}, "c") == Quantization("bf16")


# --- the published files themselves ----------------------------------------------------------------------------------


@pytest.mark.skipif(not HF_CONFIGS.is_dir(), reason="the optional data folder is absent")
def test_the_published_configs_give_the_catalogues_models() -> None:
    checked = 0
    for path in HF_CONFIGS.glob("*_config.json"):
        if "hf_quant" in path.name:
            continue
        published = Transformer.from_config(json.loads(path.read_text()), path.name, path.name)
        ours = load_model(path.name.removesuffix("_config.json").split("--")[1])
        assert published.layers == ours.layers
        assert published.parameters == ours.parameters
        assert (published.max_position, published.tied) == (ours.max_position, ours.tied)
        if "FP8" not in path.name and "NVFP4" not in path.name:
            assert published.quantization == ours.quantization
        checked += 1
    assert checked == 17


@pytest.mark.skipif(not HF_CONFIGS.is_dir(), reason="the optional data folder is absent")
def test_an_nvfp4_checkpoint_keeps_its_latent_projections(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((HF_CONFIGS / "nvidia--DeepSeek-V3.1-NVFP4_config.json").read_text())
    quant = HF_CONFIGS / "nvidia--DeepSeek-V3.1-NVFP4_hf_quant_config.json"
    (tmp_path / "hf_quant_config.json").write_text(quant.read_text())
    precision = resolve_precision(load_model(str(tmp_path)).quantization, None, None)
    assert (precision.weights, precision.kv_cache) == ("nvfp4", "fp8")
    assert (precision.of("attention"), precision.of("attention_output"), precision.of("experts")) == (
        "bf16",
        "nvfp4",
        "nvfp4",
    )
