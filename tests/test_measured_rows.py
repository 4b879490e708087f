"""Rows of published measurements: every form of load and length they take, and the scenario each row stands for."""

from pathlib import Path

import pytest
from measured_row import case, row

from sim.errors import InputError
from sim.scenario import Scenario
from sim.simulate import simulate
from sim.studies.kernel_rows import kernel_prediction
from sim.studies.load_forms import Load, message_bytes, parse_load
from sim.studies.measured_precision import precision_of
from sim.studies.measured_rows import COLUMNS, read_rows, tokens
from sim.studies.measured_scenarios import cases_of
from sim.studies.validate import run_case, validate

MEASURED = Path(__file__).resolve().parents[2] / "shared" / "data" / "measured.csv"


@pytest.mark.parametrize(
    ("text", "kind", "number"),
    [
        ("batch=64", "static", 64),
        ("max concurrency/batch=128", "closed_loop", 128),
        ("concurrency=16", "closed_loop", 16),
        ("rate=2 req/s", "poisson", 2.0),
        ("rate=8.5 req/s Poisson", "poisson", 8.5),
        ("rate=INF req/s", "burst", None),
        ("rate=inf", "burst", None),
        ("inf (max throughput)", "burst", None),
        ("Offline (all samples at once)", "burst", None),
        ("Server Poisson target_qps=21.8", "poisson", 21.8),
        ("Interactive Poisson target_qps=4", "poisson", 4.0),
        ("trace, 1200 requests over 600 s", "poisson", 2.0),
        ("num_tokens=128", "tokens", 128),
        ("4096 tokens/batch", "tokens", 4096),
        ("128 tokens/device", "tokens", 128),
        ("batch size 64", "static", 64),
        ("bs=64", "static", 64),
        ("32 concurrent users", "closed_loop", 32),
        ("users=32", "closed_loop", 32),
        ("single stream", "closed_loop", 1),
        ("max-concurrency 32", "closed_loop", 32),
        ("4 QPS", "poisson", 4.0),
        ("request rate: 4", "poisson", 4.0),
        ("Server target_qps=1,000", "poisson", 1000.0),
        ("request_rate=inf", "burst", None),
        ("max throughput", "burst", None),
        ("unknown", "unknown", None),
        ("concurrency=unknown", "unknown", None),
        ("", "blank", None),
    ],
)
def test_every_form_of_load_is_read(text: str, kind: str, number: float | None):
    load = parse_load(text)
    assert load.kind == kind
    if number is not None:
        assert (load.count or load.rate) == number


def test_stages_come_with_and_without_durations_and_with_a_remark():
    assert parse_load("8 req/s 600 s then 20 req/s 600 s").stages == ((8.0, 600.0), (20.0, 600.0))
    assert parse_load("5 req/s then 10 req/s (rate taken from elsewhere)").stages == ((5.0, None), (10.0, None))


def test_requests_are_counted_before_or_behind_a_load():
    assert parse_load("rate=8 req/s, 1,000 prompts") == Load("poisson", rate=8.0, requests=1000)
    assert parse_load("1000 requests, rate=inf") == Load("burst", requests=1000)
    assert parse_load("num_prompts=160, concurrency=16") == Load("closed_loop", count=16, requests=160)
    counted = case(load="num_prompts=48, concurrency=16").scenario
    assert counted is not None
    assert counted["workload"]["num_requests"] == 48


def test_messages_and_shapes():
    assert parse_load("message=65536 elements").message == (65536.0, "elements")
    assert message_bytes(65536, "elements", 2.0) == 131072
    assert message_bytes(16, "KB", 2.0) == 16384
    assert message_bytes(8, "GiB", 2.0) == 8 * 2**30
    assert parse_load("M=64 K=12288 N=4096").shape == (64, 4096, 12288)
    assert parse_load("M=1 N=10240 K=8192").shape == (1, 10240, 8192)


def test_an_unknown_form_is_reported_not_guessed():
    with pytest.raises(InputError, match="got 'seven at a time'"):
        parse_load("seven at a time")
    found = case(load="seven at a time")
    assert found.scenario is None
    assert "seven at a time" in found.reason


def test_lengths_are_numbers_sums_and_approximations():
    assert tokens("2048") == (0, 2048)
    assert tokens("~5") == (0, 5)
    assert tokens("100 + 466") == (100, 466)
    assert tokens("100 system + 447 question (mean; shared prefix)") == (100, 447)
    with pytest.raises(InputError):
        tokens("long")


def test_attention_data_parallel_makes_every_gpu_a_replica_that_shares_the_experts():
    changes = {"tensor": "8", "expert": "8", "gpus": 8, "load": "inf (max throughput)", "engine": "TensorRT-LLM v1.0"}
    remark = "MoE models used attention data parallel"
    sparse = case(model="Qwen3-235B-A22B", precision="FP8", gpu="H200-SXM-141GB", conditions=remark, **changes).scenario
    assert sparse is not None
    assert sparse["deployment"] == {"data_parallel_size": 8, "enable_expert_parallel": True}
    dense = case(conditions=remark, **changes).scenario
    assert dense is not None
    assert dense["deployment"]["tensor_parallel_size"] == 8


def test_offline_runs_of_mlperf_fill_every_replica_many_times():
    scenario = case(gpus=8, isl="294", osl="294", load="Offline (all samples at once)").scenario
    assert scenario is not None
    assert scenario["deployment"]["data_parallel_size"] == 8
    assert scenario["workload"]["num_requests"] == 24_576


def test_a_static_batch_arrives_at_once_and_calls_the_engine_directly():
    scenario = case(load="batch=64", engine="TensorRT-LLM v0.9.0", osl="2048").scenario
    assert scenario is not None
    assert scenario["workload"]["arrivals"] == {"kind": "burst"}
    assert scenario["workload"]["num_requests"] == 64
    assert scenario["engine"]["max_num_seqs"] == 64
    assert scenario["engine"]["api_server"] is False


def test_a_static_session_of_tensorrt_llm_has_the_cache_that_its_batch_needs():
    """112 sequences of 2176 tokens are 66 GB of the 69 GB that 7 GB of weights leave: more than any share kept free allows."""
    scenario = case(
        load="batch=112", engine="TensorRT-LLM v0.8.0", model="Llama-2-7B", precision="FP8", isl="128", osl="2048"
    ).scenario  # fmt: skip
    assert scenario is not None
    assert scenario["engine"]["num_gpu_blocks_override"] == 112 * 2176 // 16 + 1
    assert scenario["engine"]["max_num_batched_tokens"] == 112 * 128
    result = simulate(Scenario.from_dict(scenario))
    assert (result.status, result.preemptions) == ("done", 0)


def test_outputs_of_a_power_of_two_are_what_the_harness_asked_for():
    """The 467 + 256 rows of TensorRT-LLM's online tables: output tokens a second over requests a second is 255."""
    conditions = "500 requests, mean ISL/OSL (source dataset lengths vary)"
    asked, own = (
        case(load="rate=INF req/s", isl=isl, osl=osl, engine="TensorRT-LLM v0.14", conditions=conditions).scenario
        for isl, osl in (("467", "256"), ("202", "214"))
    )
    assert asked is not None
    assert own is not None
    assert asked["workload"]["lengths"]["output_cv"] == 0.0
    assert own["workload"]["lengths"]["output_cv"] > 0.0
    assert asked["workload"]["lengths"]["input_cv"] == own["workload"]["lengths"]["input_cv"]


def test_a_run_that_counts_its_tokens_tells_its_mean_lengths():
    """LMDeploy, Llama-2-7B, 64 users: 10.28 requests, 2562 output tokens and 5284 tokens in all a second."""
    common = {"isl": "ShareGPT", "osl": "ShareGPT", "engine": "LMDeploy TurboMind v0.1.0"}
    counted = (("request", 10.28), ("output", 2562.0), ("total_token", 5284.0))
    rows = [row(id=f"mine-{n}", metric=f"{of}_throughput", value=v, **common) for n, (of, v) in enumerate(counted)]
    whole, alone = cases_of(rows)[0].scenario, cases_of(rows[:1])[0].scenario
    assert whole is not None
    assert alone is not None
    lengths = whole["workload"]["lengths"]
    assert (lengths["input_mean"], lengths["output_mean"]) == (265, 249)
    assert alone["workload"]["lengths"]["output_mean"] != 249


def test_turbominds_first_token_takes_a_decode_after_the_prompt():
    of_turbomind, of_vllm = (
        case(engine="LMDeploy TurboMind v0.1.0", gpu="A100-80G", load="batch=1"),
        case(load="batch=1"),
    )
    facts = run_case(of_turbomind)
    assert not isinstance(facts, str)
    assert of_turbomind.before_first_s(facts) == facts.latencies_s["itl"]["mean"] > 0
    assert of_vllm.before_first_s(facts) == 0.0


@pytest.mark.parametrize(
    ("gpu", "topology"),
    [
        ("A100-SXM4-80GB", "dgx-a100"), ("H100-SXM-80GB", "dgx-h100"), ("H200-SXM-141GB", "dgx-h200"),
        ("B200-180GB", "hgx-b200"), ("L40S", "pcie-box-l40s"), ("MI300X", "mi300x-platform"),
        ("H100-PCIe", "pcie-box-rtx-pro-6000"),
        ("B300-SXM", "hgx-b300"), ("GB300", "gb300-nvl72"), ("MI355X", "mi355x-platform"), ("MI350X", "mi355x-platform"),
        ("MI325X", "mi300x-platform"), ("H200-NVL-141GB", "pcie-box-h200-nvl"), ("RTX 5090", "rtx-5090-box"),
        ("RTX 3090", "rtx-4090-box"), ("T4", "pcie-box-t4"), ("A10", "pcie4-box"), ("A10G", "pcie-box-a10g"),
        ("RTX A6000", "pcie4-box"), ("A40", "pcie4-box"), ("RTX PRO 6000", "pcie-box-rtx-pro-6000"),
        ("H800", "hgx-h800"), ("H100-NVL", "pcie-box-h100-nvl"), ("L40", "pcie4-box"), ("A100-PCIe-80GB", "pcie4-box"),
    ],
)  # fmt: skip
def test_every_gpu_stands_in_its_machine(gpu: str, topology: str):
    scenario = case(gpu=gpu).scenario
    assert scenario is not None
    assert scenario["cluster"]["topology"] == topology


@pytest.mark.parametrize("gpu", ["B200", "B300-SXM", "GB200", "GB300-NVL72", "MI350X", "MI355X"])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_a_node_of_any_number_of_gpus_is_simulated(gpu: str, count: int):
    """Of a rack, as many trays as the GPUs need."""
    scenario = case(
        gpu=gpu, gpus=count, tensor=str(count), load="batch=1", isl="128", osl="2", precision="FP8"
    ).scenario
    assert scenario is not None
    assert scenario["deployment"]["tensor_parallel_size"] == count
    assert simulate(Scenario.from_dict(scenario)).status == "done"


def test_four_bits_are_each_vendors_own():
    words = {gpu: precision_of(row(gpu=gpu, precision="FP4", engine="vllm 0.12.0"))[0] for gpu in ("B300", "MI355X")}
    assert words == {"B300": "nvfp4", "MI355X": "mxfp4"}


@pytest.mark.parametrize(
    ("precision", "engine", "weights", "kv_cache"),
    [
        ("FP8", "TensorRT-LLM v0.17", "fp8", "fp8"), ("FP8", "vllm 0.12.0", "fp8", "bf16"),
        ("FP4", "TensorRT-LLM v0.20", "nvfp4", "fp8"), ("NVFP4", "vllm 0.12.0", "nvfp4", "bf16"),
        ("unknown (blank in source)", "vllm 0.12.0", "bf16", "bf16"), ("", "sglang 0.5.6", "bf16", "bf16"),
        ("int4", "gpt-fast (torch.compile)", "int4", "bf16"), ("bf16, KV fp8", "vllm 0.24.0", "bf16", "fp8"),
        ("AWQ INT4", "vllm 0.24.0", "int4", "bf16"), ("INT8 (W8A8)", "vllm 0.24.0", "w8a8", "bf16"),
        ("int8 weight-only", "vllm 0.24.0", "int8", "bf16"), ("W8A8-FP8", "vllm 0.24.0", "fp8", "bf16"),
        ("FP16, FP8 KV cache", "vllm 0.24.0", "fp16", "fp8"), ("Q4_K_M", "llama.cpp b4000", "int4", "bf16"),
    ],
)  # fmt: skip
def test_precision_words(precision: str, engine: str, weights: str, kv_cache: str):
    found = case(precision=precision, engine=engine)
    assert found.scenario is not None
    assert found.scenario["precision"] == {"weights": weights, "kv_cache": kv_cache}
    assert any("bf16 assumed" in note for note in found.notes) == (precision in ("", "unknown (blank in source)"))


@pytest.mark.parametrize(
    ("model", "precision", "weights"),
    [
        ("openai/gpt-oss-120b", "", "mxfp4"), ("openai/gpt-oss-120b", "BF16", "mxfp4"), ("gpt-oss-20b", "FP4", "mxfp4"),
        ("deepseek-ai/DeepSeek-R1", "unknown (blank in source)", "fp8_block"), ("deepseek-r1", "NVFP4", "nvfp4"),
        ("Qwen/Qwen2.5-72B-Instruct-AWQ", "", "int4"), ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "", "fp8"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", "", "w8a8"), ("Qwen/Qwen3-32B", "", "bf16"),
    ],
)  # fmt: skip
def test_what_is_not_stated_is_as_the_checkpoint_has_it(model: str, precision: str, weights: str):
    assert weights_of(model=model, precision=precision, gpu="H200-SXM-141GB") == weights


def test_a_block_scaled_run_is_computed_as_such():
    stated = "mode=agg; gemm=fp8_block moe=fp8_block; harness not stated"
    assert weights_of(precision="FP8", conditions=stated) == "fp8_block"
    assert weights_of(precision="FP8", conditions="mode=agg; gemm=fp8 moe=fp8") == "fp8"


def weights_of(**changes: object) -> str:
    scenario = case(**changes).scenario
    assert scenario is not None
    return str(scenario["precision"]["weights"])


WORKERS = (
    "mode=disagg; prefill batch_size=1 num_workers=2 tp_size=1 pp_size=1 attention_dp_size=1 moe_tp_size=1 moe_ep_size=1"
    " | decode batch_size=48 num_workers=3 tp_size=2 pp_size=1 attention_dp_size=1 moe_tp_size=1 moe_ep_size=1; image=x"
)


def test_a_disaggregated_row_becomes_pools_of_the_workers_it_states():
    found = case(tensor="disagg", pipeline="disagg", expert="disagg", gpus=16, conditions=WORKERS)
    assert found.scenario is not None
    prompts, tokens_ = found.scenario["deployment"]["pools"]
    assert (prompts["role"], prompts["replicas"], prompts["tensor_parallel_size"]) == ("prefill", 2, 1)
    assert (tokens_["role"], tokens_["replicas"], tokens_["tensor_parallel_size"]) == ("decode", 3, 2)
    assert found.scenario["engine"]["max_num_seqs"] == 48
    assert found.scenario["cluster"]["nodes"] == 2
    facts = run_case(found)
    assert not isinstance(facts, str)
    assert facts.latencies_s["tpot"]["mean"] > 0


@pytest.mark.parametrize(
    ("conditions", "told"),
    [
        ("", "do not say 'prefill batch_size=.. num_workers=..'"),
        (WORKERS.replace("num_workers=3", "num_workers=0"), "the decode workers have no num_workers"),
        (WORKERS.replace("batch_size=48", "batch_size=unknown"), "the decode workers have no batch_size"),
        (WORKERS.replace("attention_dp_size=1", "attention_dp_size=8"), "prefill workers with data-parallel attention"),
        (
            WORKERS.replace("moe_ep_size=1 |", "moe_ep_size=8 |"),
            "experts spread over the GPUs of one kind of worker only",
        ),
    ],
)
def test_a_replica_without_one_number_for_each_cut_is_told(conditions: str, told: str):
    found = case(tensor="disagg", conditions=conditions)
    assert found.scenario is None
    assert told in found.reason


def test_an_unknown_cut_is_the_smallest_with_room_for_a_batch():
    found = case(
        model="llama-2-70b", precision="FP8", gpus=8, tensor="unknown", pipeline="unknown", expert="unknown",
        isl="294", osl="283", load="Offline (all samples at once)", engine="TensorRT-LLM v1.0",
    )  # fmt: skip
    assert found.scenario is not None
    deployment = found.scenario["deployment"]
    # 69 GB of weights leave an 80 GB card room for some 230 sequences of 577 tokens, each of 80 KiB in fp8
    assert (deployment["tensor_parallel_size"], deployment["data_parallel_size"]) == (2, 4)
    assert any("cut not stated: replicas of 2 GPUs" in note for note in found.notes)


def test_experts_over_more_gpus_than_a_replica_has_make_attention_data_parallel():
    found = case(model="deepseek-r1", precision="FP8", gpu="GB200", gpus=8, tensor="1", expert="8").scenario
    assert found is not None
    assert (found["deployment"]["data_parallel_size"], found["deployment"]["enable_expert_parallel"]) == (8, True)
    assert found["cluster"] == {"topology": "gb200-nvl72", "gpu": "gb200", "nodes": 2}


def test_a_missing_column_is_named(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text(",".join(name for name in COLUMNS if name != "metric") + "\n")
    with pytest.raises(InputError, match="column metric is missing"):
        read_rows(path)


ROW = [
    "a-1", "here", "e2e", "Llama-3.1-8B", "BF16", "H100-SXM-80GB", "1", "1", "1", "1", "1", "vllm 0.24.0", "512", "64",
    "concurrency=4", "tpot", "7", "ms", "",
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"value": "0"}, "value: got '0'; a number greater than zero"),
        ({"value": "-7"}, "value: got '-7'"),
        ({"value": "nan"}, "value: got 'nan'"),
        ({"n_gpus": "eight"}, "n_gpus: got 'eight'; a whole number of one or more"),
        ({"nodes": "0", "tp": "0"}, "nodes: got '0'; a whole number of one or more, unknown, or nothing; tp: got '0'"),
        ({}, ""),
    ],
)
def test_a_row_that_makes_no_sense_is_listed_with_what_is_wrong(tmp_path: Path, changes: dict[str, str], told: str):
    """The others of its file are compared all the same."""
    path = tmp_path / "rows.csv"
    wrong = ",".join((dict(zip(COLUMNS, ROW, strict=True)) | changes).values())
    path.write_text(f"{','.join(COLUMNS)}\n{wrong}\n{','.join(['a-2', *ROW[1:]])}\n")
    first, second = read_rows(path)
    assert first.problem.startswith(told)
    assert bool(first.problem) == bool(told)
    assert second.problem == ""
    if told:
        mine, other = validate(path, workers=1)
        assert (mine.status, mine.reason, other.status) == ("skipped", first.problem, "simulated")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "rows.csv: is empty"),
        (b"\xdf\x00\xff" * 9, "rows.csv: is not UTF-8 text"),
        (b"a,b\n1,2\n", "rows.csv: column id is missing, and 18 more\n  found: a, b; needed: id, source, kind"),
        (",".join(COLUMNS).encode(), "rows.csv: holds no measurement"),
        (",".join(COLUMNS).encode() + b"\na-1,here,e2e\n", "line 2: has 3 values where the header has 19"),
        (f"{','.join(COLUMNS)}\n{','.join(ROW)}\n{','.join(ROW)}\n".encode(), "line 3: id: got 'a-1', as line 2"),
    ],
    ids=["empty", "binary", "another table", "no row", "short row", "an id twice"],
)
def test_a_file_that_holds_no_measurements_is_told_so(tmp_path: Path, content: bytes, told: str):
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_rows(path)
    assert told in str(error.value)


@pytest.mark.skipif(not MEASURED.is_file(), reason="the published measurements are not here")
def test_every_published_row_becomes_a_valid_scenario_or_says_why():
    rows = [r for r in read_rows(MEASURED) if r.kind == "e2e"]
    cases = cases_of(rows[::40])
    told = [found for found in cases if found.scenario is None]
    assert all(found.reason for found in told)
    assert len(told) < 0.01 * len(cases)
    for found in cases:
        if found.scenario is not None:
            Scenario.from_dict(found.scenario)


GEMM = {
    "kind": "operator", "metric": "gemm_latency", "load": "M=8192 K=4096 N=6144", "unit": "us", "precision": "fp8",
    "gpu": "H20",
}  # fmt: skip


def test_a_bare_kernel_does_not_pay_for_quantisation():
    """DeepGEMM is handed quantised matrices: 412 GFLOP at 94 % of an H20's 296 TFLOP/s take 1.48 ms. An engine's layer
    quantises 8192 rows first."""
    bare = kernel_prediction(row(**GEMM, engine="DeepGEMM (version unknown)"))
    assert bare == pytest.approx(1.49e-3, rel=0.02)
    assert kernel_prediction(row(**GEMM, engine="vllm 0.24.0")) > 1.1 * bare


def test_heads_of_an_mla_prefill_are_those_of_queries_nope_and_rope():
    """128 heads, 16,384 tokens: 128 x 16384^2 / 2 pairs of 2 x (192 + 128) FLOPs are 11 TFLOP, at least 11.1 ms."""
    values = {
        "kind": "operator", "metric": "prefill_attention_latency", "load": "batch=1", "isl": "16384", "gpu": "H800",
        "engine": "FlashAttention", "unit": "us", "precision": "bf16", "conditions": "heads config 128-128-64",
    }  # fmt: skip
    latent = kernel_prediction(row(**values, publication="bench_data/mla/prefill/h800/128-128-64.csv"))
    assert 11.1e-3 < latent < 22e-3
    assert kernel_prediction(row(**values, publication="bench_data/mha/prefill/h800/x.csv")) < 11.1e-3


def test_a_cache_in_fp8_is_read_faster():
    values = {
        "kind": "operator", "metric": "mha_decode_attention_latency", "load": "batch=128", "isl": "16384", "unit": "us",
        "engine": "FlashAttention", "conditions": "heads config 32-8-128",
    }  # fmt: skip
    assert kernel_prediction(row(**values, precision="bf16, KV fp8")) < 0.8 * kernel_prediction(
        row(**values, precision="bf16, KV bf16")
    )


def test_one_matmul_of_pytorch_waits_for_its_launch():
    """8192 x 64 x 64 is nothing to compute: 21 of the 26 us are the host's (LLMCompass measured 29.6 us on an A100)."""
    values = {"kind": "operator", "metric": "gemm_latency", "load": "M=8192 K=64 N=64", "gpu": "A100-SXM", "unit": "ms"}
    alone = kernel_prediction(row(**values, engine="PyTorch/cuBLAS (version unknown)", precision="fp16"))
    captured = kernel_prediction(row(**values, engine="vllm 0.14.0", precision="fp16"))
    assert alone == pytest.approx(29.6e-6, rel=0.15)
    assert alone - captured == pytest.approx(21e-6)
