"""The models of the catalogue: how many parameters they have, how they are built, and by which names they are found."""

from __future__ import annotations

import json

import pytest

from sim import catalogue
from sim.errors import InputError
from sim.model.names import keys_of
from sim.model.sharding import Sharding
from sim.model.transformer import Transformer, load_model

TOTALS = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.1-70b-mha": 79_948_947_456,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "codellama-7b": 6_738_546_688,
    "codellama-13b": 13_016_028_160,
    "codellama-34b": 33_743_970_304,
    "codellama-70b": 68_976_910_336,
    "tinyllama-1.1b": 1_100_048_384,
    "solar-10.7b": 10_731_524_096,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "yi-6b": 6_061_035_520,
    "yi-9b": 8_829_407_232,
    "yi-34b": 34_388_917_248,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.2": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
    "mistral-large-123b": 122_610_069_504,
    "ministral-8b": 8_019_808_256,
    "codestral-22b": 22_247_282_688,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "qwen1.5-0.5b": 463_987_712,
    "qwen1.5-1.8b": 1_836_828_672,
    "qwen1.5-4b": 3_950_369_280,
    "qwen1.5-7b": 7_721_324_544,
    "qwen1.5-14b": 14_167_290_880,
    "qwen1.5-32b": 32_512_218_112,
    "qwen1.5-72b": 72_287_920_128,
    "qwen1.5-110b": 111_209_914_368,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-coder-480b-a35b": 480_154_875_392,
    "baichuan-7b": 7_000_559_616,
    "baichuan-13b": 13_264_901_120,
    "bloom-7b1": 7_069_016_064,
    "falcon3-7b": 7_455_550_464,
    "falcon3-10b": 10_305_653_760,
    "granite-3.1-8b": 8_170_848_256,
    "starcoder2-3b": 3_030_371_328,
    "deepseek-llm-7b": 6_910_365_696,
    "deepseek-coder-6.7b": 6_740_512_768,
    "deepseek-coder-33b": 33_342_991_360,
    "deepseek-moe-16b": 16_375_728_128,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_419_200,
    "deepseek-r1": 671_026_419_200,
    "deepseek-r1-distill-qwen-1.5b": 1_777_088_000,
    "kimi-k2": 1_026_408_232_448,
    "kimi-k2-thinking": 1_026_408_232_448,
    "minimax-m2": 228_703_644_928 - 13_880_064,  # the index counts the scales of the fp8 blocks too
    # the index counts the multi-token-prediction layer too: 5,539,962,272 parameters, 3,616,573,568 in Air
    "glm-4.5": 358_337_791_296 - 5_539_962_272,
    "glm-4.5-air": 110_468_824_832 - 3_616_573_568,
    "glm-4-9b": 9_399_951_360,
    "chatglm3-6b": 6_243_584_000,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "gpt-j-6b": 6_050_882_784,
    "gpt-neox-20b": 20_554_567_680,
    # the index counts the head apart from the embedding that it shares: 65,024 x 4,544 and 65,024 x 14,848
    "falcon-7b": 7_217_189_760 - 295_469_056,
    "falcon-40b": 41_303_293_952,
    "falcon-180b": 179_522_565_120 - 965_476_352,
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "bloom-176b": 176_247_271_424,
    "mpt-7b": 6_649_286_656,
    "starcoder-15b": 15_517_456_384,
    "starcoder2-7b": 7_173_923_840,
    "starcoder2-15b": 15_957_889_024,
    "command-r": 34_980_831_232,
    "command-r-08-2024": 32_296_476_672,
    "command-r-plus": 103_810_674_688,
    "phi-2": 2_779_683_840,
    "phi-3-mini": 3_821_079_552,
    "phi-3-medium": 13_960_238_080,
    "phi-3.5-moe": 41_873_153_344,
    "phi-4": 14_659_507_200,
    "phi-4-mini": 3_836_021_760,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,
    "gemma-3-12b": 11_766_034_176,
    "gemma-3-27b": 27_009_346_304,
    "internlm-20b": 20_088_714_240,
    "internlm2-7b": 7_737_708_544,
    "internlm2-20b": 19_861_149_696,
    "baichuan2-7b": 7_505_973_248,
    "baichuan2-13b": 13_896_668_160,
    "seed-oss-36b": 36_151_104_512,
    "dbrx": 131_596_523_520,
    "olmoe-1b-7b": 6_919_161_856,
}
"""As the models' safetensors index or model card counts them, the language model alone."""

BILLIONS = {
    "deepseek-llm-67b": 67,
    "qwen2-57b-a14b": 57.4,
    "opt-66b": 66,
    "opt-175b": 175,
    "mpt-30b": 30,
    "nemotron-4-340b": 331.6 + 9.4,
    "grok-1": 314,
    "aya-23-8b": 8.03,
    "internlm-7b": 7.3,
    "granite-20b-code": 20.1,
    "granite-34b-code": 33.7,
}
"""Where only a rounded total is published."""


@pytest.mark.parametrize(("name", "total"), TOTALS.items())
def test_parameter_totals_are_exact(name: str, total: int) -> None:
    assert load_model(name).parameters.total == total


@pytest.mark.parametrize(("name", "billions"), BILLIONS.items())
def test_parameter_totals_are_near_the_rounded_ones(name: str, billions: float) -> None:
    assert load_model(name).parameters.total / 1e9 == pytest.approx(billions, rel=0.01)


def test_every_total_is_held_against_a_published_one() -> None:
    # Llama 4 is published with its vision tower only; the rest have the shape of one that is listed
    unlisted = {"llama-4-scout", "llama-4-maverick", "glm-4.6", "chatglm2-6b", "phi-3-mini-4k", "phi-3-medium-4k"}
    assert set(catalogue.files("models")) == TOTALS.keys() | BILLIONS.keys() | unlisted


@pytest.mark.parametrize(
    ("name", "heads", "kv_heads", "head_dim", "norms"),
    [("falcon-7b", 71, 1, 64, 1), ("falcon-40b", 128, 8, 64, 2), ("falcon-180b", 232, 8, 64, 2)],
)
def test_falcon_sums_attention_and_mlp_and_counts_its_kv_heads(
    name: str, heads: int, kv_heads: int, head_dim: int, norms: int
) -> None:
    model = load_model(name)
    (group,) = model.groups()
    shape = group.attention
    assert (shape.heads, shape.kv_heads, shape.head_dim) == (heads, kv_heads, head_dim)
    assert (model.parallel_block, model.norms_per_layer, model.tied) == (True, norms, True)
    assert (group.mlp.gated, group.mlp.intermediate, group.mlp.bias) == (False, 4 * model.hidden, False)


def test_two_families_say_themselves_whether_their_blocks_are_parallel() -> None:
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
    neox = {"model_type": "gpt_neox", "max_position_embeddings": 2048, "intermediate_size": 256} | small
    assert Transformer.from_config(neox, "neox").parallel_block
    assert not Transformer.from_config(neox | {"use_parallel_residual": False}, "neox").parallel_block
    falcon = Transformer.from_config({"model_type": "falcon", "parallel_attn": False, "bias": True} | small, "falcon")
    assert (falcon.parallel_block, falcon.norms_per_layer, falcon.max_position) == (False, 2, 2048)
    assert falcon.layers[0].mlp.bias
    assert falcon.layers[0].attention.out_bias


def test_positions_are_rotated_learned_or_none() -> None:
    rope = {name: load_model(name).layers[0].attention for name in ("opt-13b", "bloom-176b", "mpt-7b", "baichuan2-13b")}
    assert {name: shape.rope_dim for name, shape in rope.items()} == dict.fromkeys(rope, 0)
    assert (load_model("opt-13b").learned_positions, load_model("starcoder-15b").learned_positions) == (2050, 8192)
    parts = {"gpt-neox-20b": 24, "chatglm3-6b": 64, "phi-2": 32, "minimax-m2": 64, "glm-4.5": 64, "nemotron-4-340b": 96}
    assert {name: load_model(name).layers[0].attention.rope_dim for name in parts} == parts


def test_learned_positions_are_on_every_rank() -> None:
    model = load_model("opt-13b")
    held = Sharding(tensor=4).rank_parameters(model, 0)
    assert held.embedding == (50_272 // 4 + 2050) * 5120


def test_norms_of_queries_and_keys_follow_the_config() -> None:
    shapes = {
        name: load_model(name).layers[-1].attention for name in ("glm-4.5", "glm-4.5-air", "command-r", "qwen3-8b")
    }
    assert [shape.qk_norm for shape in shapes.values()] == [True, False, False, True]
    assert not shapes["glm-4.5"].qk_norm_by_head
    for name in ("minimax-m2", "command-r-plus", "olmoe-1b-7b"):
        assert load_model(name).layers[0].attention.qk_norm_by_head


def test_a_window_as_long_as_the_longest_sequence_is_none() -> None:
    assert not load_model("phi-3-mini").has_windows
    assert not load_model("ministral-8b").has_windows
    assert {layer.attention.window for layer in load_model("phi-3-mini-4k").layers} == {2047}
    assert [load_model(f"mistral-7b{version}").has_windows for version in ("", "-v0.2", "-v0.3")] == [
        True,
        False,
        False,
    ]


def test_kimi_k2_thinking_has_its_experts_in_int4() -> None:
    quantization = load_model("kimi-k2-thinking").quantization
    assert quantization is not None
    assert (quantization.weights, quantization.group_size) == ("int4_wo", 32)
    assert quantization.kept >= {"attention", "attention_output", "shared_experts", "head"}


# --- names ------------------------------------------------------------------------------------------------------------

WRITTEN = {
    "llama-7b": ("LLaMA 7B", "LLaMA-v1-7B"),
    "llama-33b": ("LLaMA-30B", "lmsys/vicuna-33b-v1.3"),
    "llama-2-7b": ("meta-llama/Llama-2-7b-chat-hf", "Vicuna-7B"),
    "llama-2-13b": ("lmsys/vicuna-13b-v1.5",),
    "llama-2-70b": ("LLaMA 2 70B", "Llama2-70b", "Llama2-70B", "llama2-70b-99.9", "llama2-70b-interactive-99"),
    "llama-3-8b": ("LLaMA-v3-8B", "Meta-Llama-3-8B", "neuralmagic/Meta-Llama-3-8B-Instruct-FP8"),
    "llama-3-70b": ("Llama-3-70B",),
    "llama-3.1-8b": (
        "meta-llama/Llama-3.1-8B-Instruct",
        "nvidia/Llama-3.1-8B-Instruct-FP8",
        "llama3_1-8b",
        "Llama 3.1 8B",
    ),
    "llama-3.1-70b": (
        "RedHatAI/Meta-Llama-3.1-70B-Instruct-quantized.w8a8",
        "nvidia/Llama-3.1-Nemotron-70B-Instruct-HF",
    ),
    "llama-3.1-405b": ("llama3.1-405b", "amd/Llama-3.1-405B-Instruct-FP8-KV"),
    "llama-3.3-70b": ("Llama-3.3-70B-Instruct", "nvidia/Llama-3.3-70B-Instruct-FP4", "DeepSeek-R1-Distill-Llama-70B"),
    "llama-4-scout": ("meta-llama/Llama-4-Scout-17B-16E-Instruct",),
    "llama-4-maverick": ("nvidia/Llama-4-Maverick-17B-128E-Instruct-FP8",),
    "codellama-34b": ("codellama/CodeLlama-34b-Instruct-hf",),
    "mistral-7b": ("Mistral-7B", "mistralai/Mistral-7B-Instruct-v0.1"),
    "mistral-7b-v0.2": ("Mistral 7B Instruct v0.2",),
    "mistral-7b-v0.3": ("neuralmagic/Mistral-7B-Instruct-v0.3-FP8",),
    "mistral-nemo-12b": ("Mistral-Nemo-12B", "mistralai/Mistral-Nemo-Instruct-2407"),
    "mistral-small-24b": ("mistralai/Devstral-Small-2507", "mistralai/Mistral-Small-24B-Instruct-2501"),
    "mistral-large-123b": ("mistralai/Mistral-Large-Instruct-2407",),
    "mixtral-8x7b": (
        "mistralai/Mixtral-8x7B-Instruct-v0.1",
        "Mixtral 8x7B",
        "mixtral-8x7b",
        "mistralai/Mixtral-8x7B-v0.1",
    ),
    "mixtral-8x22b": ("Mixtral 8x22B",),
    "qwen2-57b-a14b": ("Qwen2-57B",),  # not Qwen2.5-7B
    "qwen2.5-7b": ("Qwen/Qwen2.5-Coder-7B-Instruct", "Qwen2-7B"),
    "qwen2.5-32b": ("Qwen/QwQ-32B",),
    "qwen2.5-72b": ("Qwen2.5-72B-Instruct-AWQ",),
    "qwen3-32b": ("Qwen/Qwen3-32B",),
    "qwen3-30b-a3b": ("Qwen/Qwen3-30B-A3B-Thinking-2507", "Qwen3-Coder-30B-A3B-Instruct"),
    "qwen3-235b-a22b": ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", "Qwen3-235B-A22B-FP4", "Qwen3-235B-A22B"),
    "qwen3-coder-480b-a35b": ("Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8",),
    "deepseek-v3": ("deepseek-ai/DeepSeek-V3.1", "DeepSeek-V3", "deepseek-ai/DeepSeek-V3-0324"),
    "deepseek-r1": ("nvidia/DeepSeek-R1-0528-FP4-v2", "amd/DeepSeek-R1-0528-MXFP4-Preview", "deepseek-r1"),
    "kimi-k2": ("moonshotai/Kimi-K2-Instruct-0905",),
    "kimi-k2-thinking": ("moonshotai/Kimi-K2-Thinking", "nvidia/Kimi-K2.5-NVFP4"),
    "minimax-m2": ("MiniMaxAI/MiniMax-M2.5",),
    "glm-4.5-air": ("zai-org/GLM-4.5-Air-FP8",),
    "glm-4-9b": ("THUDM/glm-4-9b-chat",),
    "gpt-oss-120b": ("gpt-oss-120b", "openai/gpt-oss-120b"),
    "gpt-oss-20b": ("openai/gpt-oss-20b",),
    "gpt-j-6b": ("GPT-J 6B", "GPT-J-6B", "gptj-99"),
    "falcon-180b": ("Falcon 180B", "tiiuae/falcon-180B-chat"),
    "opt-1.3b": ("facebook/opt-1.3b",),
    "opt-13b": ("OPT-13B",),
    "opt-175b": ("GPT-3 175B",),
    "command-r-plus": ("Command R+",),
    "internlm-20b": ("InternLM-20B",),
    "nemotron-4-340b": ("nvidia/Nemotron-4-340B-Instruct",),
}


ODDLY_WRITTEN = {
    "Meta Llama 3 70B Instruct": "llama-3-70b",
    "llama31-8b": "llama-3.1-8b",
    "Llama 2 (7B)": "llama-2-7b",
    "amd/Llama-2-70b-chat-hf-WMXFP4-AMXFP4-KVFP8-Scale-UINT8-MLPerf-GPTQ": "llama-2-70b",
    "Mixtral 8x7B (46.7B)": "mixtral-8x7b",
    "DeepSeek R1 (671B)": "deepseek-r1",
    "deepseek-r1-671b": "deepseek-r1",
    "Qwen2.5-7B-Instruct-Q4_K_M.gguf": "qwen2.5-7b",
    "internlm/internlm2-chat-20b": "internlm2-20b",
}


@pytest.mark.parametrize(("written", "name"), ODDLY_WRITTEN.items())
def test_remarks_and_formats_beside_a_name_do_not_hide_the_model(written: str, name: str) -> None:
    assert load_model(written).name == name


@pytest.mark.parametrize(("written", "name"), [(text, name) for name, texts in WRITTEN.items() for text in texts])
def test_published_names_find_the_catalogue(written: str, name: str) -> None:
    assert load_model(written).name == name


@pytest.mark.parametrize(
    ("written", "near"),
    [
        ("llama-3.1-71b", "llama-3.1-70b"),
        ("nvidia/Llama-3_3-Nemotron-Super-49B-v1", "llama-3.1-nemotron-nano-8b-v1"),
        ("deepseek-ai/DeepSeek-V3.2-Exp", "deepseek-v3.1"),
        ("mistralai/Mistral-Large-3-675B-Instruct-2512", "mistral-large-instruct-2411"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "qwen3-coder-480b-a35b"),
        ("zai-org/GLM-5-FP8", "glm-4.5"),
    ],
)
def test_an_unknown_model_is_refused_with_the_nearest_name(written: str, near: str) -> None:
    with pytest.raises(InputError) as refused:
        load_model(written)
    assert refused.value.problem == f"got '{written}', which is no model of the catalogue and no config.json"
    assert refused.value.hint == f"did you mean '{near}'?"


def test_no_two_catalogue_models_share_a_name() -> None:
    models = {name: json.loads(entry.read_text()) for name, entry in catalogue.files("models").items()}
    assert all(config["source"] for config in models.values())
    found = {(next(keys_of(text)), name) for name in models for text in (name, *models[name].get("aliases", ()))}
    assert len({key for key, _ in found}) == len(found)
