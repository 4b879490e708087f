"""What the harness of a published row is taken to be: options of its engine, lengths, pauses."""

import pytest
from measured_row import case

from sim.hardware.gpu import load_gpu
from sim.scenario import Scenario
from sim.simulate import plan_memory
from sim.studies.engine_defaults import sglang_memory_share
from sim.studies.measured_engines import engine_of, preset_name
from sim.studies.validate import run_case


def test_a_closed_loop_runs_ten_requests_a_user():
    scenario = case(load="concurrency=16").scenario
    assert scenario is not None
    pause = {"think_time": "0.01 s", "think_time_cv": 1.0}
    assert scenario["workload"]["arrivals"] == {"kind": "closed_loop", "concurrency": 16, **pause}
    assert scenario["workload"]["num_requests"] == 160
    assert scenario["engine"]["version"] == "0.24.0"


def test_nvidias_recipes_leave_room_for_one_prompt_an_iteration():
    scenario = case(id="aic-1", load="concurrency=16", isl="1024", osl="128", engine="trtllm 1.0.0rc3").scenario
    assert scenario is not None
    assert scenario["engine"]["max_num_batched_tokens"] == 1152  # 16 + 1024 + 64 tokens, rounded up to 64
    assert scenario["engine"]["max_num_seqs"] == 16


def test_runs_whose_precision_is_left_blank_have_uneven_outputs_and_a_place_too_few():
    series = {"id": "aic-1", "load": "concurrency=16", "isl": "1024", "osl": "128", "engine": "trtllm 1.0.0rc3"}
    blank, stated, other, later = (
        case(**series | changes)
        for changes in (
            {"precision": "unknown (blank in source)"},
            {"precision": "FP8"},
            {"precision": "", "isl": "4000"},
            {"precision": "", "engine": "trtllm 1.2.0rc6"},
        )
    )
    assert blank.scenario is not None
    assert blank.scenario["engine"]["max_num_seqs"] == 15
    lengths = {"kind": "uniform", "input_tokens": [1024, 1024], "output_tokens": [102, 154]}
    assert blank.scenario["workload"]["lengths"] == lengths
    assert any("one place fewer" in note for note in blank.notes)
    for case_ in (stated, other, later):
        assert case_.scenario is not None
        assert case_.scenario["engine"]["max_num_seqs"] == 16


def test_tensorrt_llm_has_a_preset_for_each_of_its_backends():
    assert preset_name("TensorRT-LLM v0.17") == "trtllm-cpp"
    assert preset_name("TensorRT-LLM v1.0") == preset_name("trtllm") == "trtllm"
    eager = case(engine="TensorRT-LLM v0.20", load="inf (max throughput)").scenario
    assert eager is not None
    assert eager["engine"]["preset"] == "trtllm"
    assert eager["engine"]["cuda_graphs"] is False


@pytest.mark.parametrize(
    ("written", "preset", "version"),
    [
        ("TRT-LLM 0.9", "trtllm-cpp", "0.9"), ("TensorRT LLM 1.1", "trtllm", "1.1"), ("VLLM V1 0.8.5", "vllm", "0.8.5"),
        ("vLLM (ROCm 6.2)", "vllm", None), ("rocm/vllm 0.6.3", "vllm", "0.6.3"), ("Dynamo 0.4 (TRT-LLM)", "trtllm", None),
        ("Dynamo 0.4.1 + vLLM v0.10.0", "vllm", "0.10.0"), ("dynamo-sglang", "sglang", None), ("NVIDIA NIM 1.3", "trtllm", None),
        ("TensorRT 10.2, CUDA 12.4", "trtllm-cpp", None), ("TensorRT-LLM (MLPerf v4.1)", "trtllm-cpp", None),
        ("TensorRT-LLM (MLPerf v5.1)", "trtllm", None), ("torch.compile", "trtllm-cpp", None),
    ],
)  # fmt: skip
def test_an_engine_is_known_by_its_own_name_and_version(written: str, preset: str, version: str | None):
    found = engine_of(written)
    assert (found.preset, found.version, found.relative) == (preset, version, False)


def limits(**changes: object) -> tuple[object, ...]:
    scenario = case(**{"load": "rate=4 req/s", "engine": "vllm 0.10.0"} | changes).scenario
    assert scenario is not None
    return tuple(scenario["engine"].get(key) for key in ("max_num_seqs", "max_num_batched_tokens", "scheduler"))


def test_vllm_runs_by_default_what_its_version_does_on_its_gpu():
    assert limits() == limits(gpu="MI300X") == (1024, 8192, None)
    assert limits(gpu="A100-80G") == limits(gpu="L40S") == (256, 2048, None)
    assert limits(load="Offline (all samples at once)") == (1024, 16384, None)
    assert limits(conditions="max_num_seqs=512, max-num-batched-tokens 4096") == (512, 4096, None)
    # more users than places wait
    assert limits(load="concurrency=512", gpu="A100-80G") == (256, 2048, None)


def test_vllm_looked_at_names_first_then_at_memory_then_at_both():
    by_version = {
        version: limits(engine=f"vllm {version}", gpu="A100-80G")[:2] for version in ("0.8.2", "0.8.5", "0.9.0")
    }
    assert by_version == {"0.8.2": (1024, 2048), "0.8.5": (1024, 8192), "0.9.0": (256, 2048)}
    assert limits(engine="vllm 0.8.2") == limits(engine="vllm 0.8.5") == (1024, 8192, None)
    assert limits(engine="vllm 0.27.1", gpu="B200") == (1024, 8192, None)
    assert limits(engine="vllm 0.28.0", gpu="B200") == (1024, 16384, None)


def test_vllm_0_had_the_token_budget_of_its_longest_sequence():
    old = {"engine": "vllm 0.6.3"}
    assert limits(**old, model="meta-llama/Meta-Llama-3-8B") == (256, 8192, "prefill_first")
    assert limits(**old, model="llama-2-7b") == (256, 4096, "prefill_first")
    assert limits(**old, model="llama-2-7b", isl="4000", osl="1000") == (256, 5000, "prefill_first")
    assert limits(**old, conditions="--max-model-len 16384") == (256, 16384, "prefill_first")


def test_vllm_0_cut_the_prompts_of_models_with_long_contexts():
    """Llama-3.1 is made for 131,072 tokens; an L4 holds no such sequence, so whoever ran it there had set a shorter one."""
    assert limits(engine="vllm 0.5.3.post1") == limits(engine="vllm 0.6.3") == (256, 512, None)
    assert limits(engine="vllm 0.7.3") == (256, 2048, None)
    assert limits(engine="vllm 0.5.2") == (256, 131072, "prefill_first")
    assert limits(engine="vllm 0.6.3", gpu="L4") == (256, 8192, "prefill_first")


def test_the_v1_engine_came_later_to_old_gpus_and_to_those_of_amd():
    assert (
        limits(engine="vllm 0.9.2", gpu="V100-32G")[2]
        == limits(engine="vllm 0.8.5", gpu="MI300X")[2]
        == "prefill_first"
    )
    assert limits(engine="vllm 0.10.2", gpu="V100-32G") == (256, 2048, None)


def test_vllm_takes_two_percent_more_of_the_memory_since_0_20():
    def share(engine: str, conditions: str = "") -> float:
        scenario = case(engine=engine, conditions=conditions, load="rate=4 req/s").scenario
        assert scenario is not None
        return float(scenario["engine"]["gpu_memory_utilization"])

    assert (share("vllm 0.19.1"), share("vllm 0.20.0"), share("vllm")) == (0.9, 0.92, 0.9)
    assert share("vllm 0.24.0", "gpu_memory_utilization=0.85") == 0.85


def test_vllm_before_cuda_graphs_launches_every_kernel():
    changes = {"load": "batch=1", "model": "llama-2-70b", "gpus": 8, "tensor": "8", "isl": "512"}
    old, new = (run_case(case(engine=f"vllm {version}", **changes)) for version in ("0.2.0", "0.3.0"))
    assert not isinstance(old, str)
    assert not isinstance(new, str)
    # splitwise-sim's H100 table (data/perf_model.csv): 29.8 ms a token on eight GPUs, as many as on four
    assert old.latencies_s["tpot"]["mean"] == pytest.approx(29.8e-3, rel=0.05)
    assert new.latencies_s["tpot"]["mean"] < 15e-3


def test_sglang_computes_prompts_first_under_every_load():
    for load in ("rate=4 req/s", "rate=inf", "5 req/s then 10 req/s"):
        scenario = case(engine="sglang 0.4.3", load=load, isl="ShareGPT", osl="ShareGPT").scenario
        assert scenario is not None
        assert scenario["engine"]["scheduler"] == "prefill_first"
        assert scenario["engine"]["max_num_seqs"] == 1024


def test_sglang_computes_chunks_by_version_and_memory():
    def chunks(version: str) -> list[object]:
        gpus = ("L4", "A100-40G", "H100-SXM-80GB", "B200")
        return [limits(engine=f"sglang {version}", gpu=gpu, isl="512")[1] for gpu in gpus]

    assert chunks("0.4.3") == [2048, 8192, 8192, 8192]
    assert chunks("0.5.1.post1") == [2048, 8192, 8192, 16384]
    assert chunks("0.5.8") == [2048, 4096, 8192, 16384]
    assert chunks("0.5.23") == [4096, 4096, 8192, 16384]


def test_sglangs_share_of_the_memory_is_a_table_before_0_4_8_and_leaves_bytes_free_since():
    h100, b200 = load_gpu("h100-sxm"), load_gpu("b200-sxm")
    assert [sglang_memory_share((0, 4, 3), h100, gpus) for gpus in (1, 2, 4, 8, 16)] == [0.88, 0.87, 0.85, 0.81, 0.79]
    assert sglang_memory_share((0, 2, 13), b200, 8) == 0.83
    gib = h100.visible_memory_bytes / 2**30
    assert sglang_memory_share((0, 5, 1), h100, 1) == pytest.approx(1 - 10 / gib)
    # half a GiB, 1.5 MiB for each of 8,192 tokens, 2 MiB for each of 256 or 512 sequences, 128 MiB a GPU
    assert sglang_memory_share((0, 5, 8), h100, 1) == pytest.approx(1 - (512 + 12288 + 512 + 128) / 1024 / gib)
    assert sglang_memory_share((0, 5, 8), h100, 4) == pytest.approx(1 - (512 + 12288 + 1024 + 512) / 1024 / gib)


def test_sglangs_cache_is_what_weights_leave_of_its_share():
    """16.06 GB of weights in 0.88 of an L4's 23.6 GB leave 4.7 GB, 36,000 tokens of 131 KB; activations come from the rest."""
    found = case(engine="sglang 0.4.3", gpu="L4", load="rate=1 req/s", isl="512", osl="16")
    assert found.scenario is not None
    ledger = plan_memory(Scenario.from_dict(found.scenario, where="the row"))
    assert ledger.kv_tokens_capacity == pytest.approx((0.88 * 23.62e9 - 16.06e9) / 131072, rel=0.01)
    assert not isinstance(run_case(found), str)


def test_a_range_of_random_lengths_is_what_the_tool_means_by_its_ratio():
    def lengths(engine: str, conditions: str) -> object:
        scenario = case(engine=engine, conditions=conditions, load="rate=4 req/s", isl="1000", osl="100").scenario
        assert scenario is not None
        return scenario["workload"]["lengths"]

    asked = "--random-range-ratio 0.5"
    below = {"kind": "uniform", "input_tokens": [500, 1000], "output_tokens": [50, 100]}
    around = {"kind": "uniform", "input_tokens": [500, 1500], "output_tokens": [50, 150]}
    assert lengths("vllm 0.8.4", f"benchmark_serving {asked}") == below
    assert lengths("vllm 0.8.5", f"benchmark_serving {asked}") == around
    assert lengths("sglang 0.5.8", f"sglang.bench_serving {asked}") == below
    assert lengths("vllm 0.10.0", f"sglang.bench_serving {asked}") == below
    # without a ratio SGLang's tool draws from one token on, vLLM's sends the nominal lengths
    anything = {"kind": "uniform", "input_tokens": [1, 1000], "output_tokens": [1, 100]}
    assert lengths("sglang 0.5.8", "python -m sglang.bench_serving --dataset-name random") == anything
    fixed = {"kind": "fixed", "input_tokens": 1000, "output_tokens": 100}
    assert lengths("vllm 0.10.0", "vllm bench serve --dataset-name random") == fixed


def test_stages_of_a_pipeline_are_scheduled_as_vllm_does():
    for engine in ("sglang 0.5.6", "vllm 0.6.3"):
        found = case(engine=engine, gpus=2, pipeline="2", isl="128", osl="8")
        assert found.scenario is not None
        assert "scheduler" not in found.scenario["engine"]
        assert not isinstance(run_case(found), str)


def test_a_static_batch_of_a_data_set_is_simulated():
    assert case(engine="vllm 0.10.0", isl="ShareGPT", osl="ShareGPT", load="batch=4").scenario is not None


def test_an_engine_that_nobody_modelled_has_the_times_of_a_relative_and_says_so():
    found = case(engine="text-generation-inference 2.0")
    assert found.scenario is not None
    assert found.scenario["engine"]["preset"] == "vllm"
    assert found.scenario["engine"]["async_scheduling"] is False
    assert "version" not in found.scenario["engine"]
    assert any("nobody modelled text-generation-inference 2.0" in note for note in found.notes)
    assert engine_of("MLC-LLM").preset == engine_of("llama.cpp b4000").preset == "trtllm-cpp"
    assert "known: tensorrtllm" in case(engine="an abacus").reason


def test_cycled_prompts_are_found_in_the_prefix_cache():
    found = case(
        isl="100 + 466", load="5 req/s then 10 req/s",
        conditions="100 distinct single-turn prompts cycled (10 groups x 10), prefix caching ON, max_num_seqs 128",
    ).scenario  # fmt: skip
    assert found is not None
    assert found["workload"]["shared_prefix"] == {"tokens": 565, "prefixes": 100}
    assert found["engine"]["enable_prefix_caching"] is True
    assert found["engine"]["max_num_seqs"] == 128


def test_tensorrt_llm_admits_only_what_fits_at_full_length():
    scenario = case(
        load="inf (max throughput)", engine="TensorRT-LLM v0.17", isl="2048", osl="2048",
        conditions="trtllm-bench throughput, in-flight batching; kv_cache_free_gpu_mem_fraction 0.95",
    ).scenario  # fmt: skip
    assert scenario is not None
    # 5 % of what 16 GB of weights and some activations leave of 85 GB stays free
    assert scenario["engine"]["gpu_memory_utilization"] == pytest.approx(0.96, abs=0.005)
    assert 64 < scenario["engine"]["max_num_seqs"] < 256  # (75 GB - 16 GB) / 128 KiB / 4096 tokens


def test_sglang_leaves_bytes_free_not_a_share():
    small, large = (
        case(engine="sglang 0.5.8", gpu=gpu, id="aic-1", isl="1024").scenario
        for gpu in ("H100-SXM-80GB", "H200-SXM-141GB")
    )
    assert small is not None
    assert large is not None
    # 15.7 GB of 85 and of 150 GB
    assert small["engine"]["gpu_memory_utilization"] == pytest.approx(0.815, abs=1e-3)
    assert large["engine"]["gpu_memory_utilization"] == pytest.approx(0.895, abs=1e-3)


def test_lengths_in_thousands_find_every_engine_set_up_alike():
    alike = {"id": "aic-1", "isl": "4000", "osl": "500", "load": "concurrency=16"}
    sglang, vllm = (case(engine=engine, **alike).scenario for engine in ("sglang 0.5.6.post2", "vllm 0.12.0"))
    assert sglang is not None
    assert vllm is not None
    for scenario in (sglang, vllm):
        assert scenario["engine"]["max_num_batched_tokens"] == 4096  # 16 + 4000 + 64 tokens, rounded up to 64
        assert "scheduler" not in scenario["engine"]
    assert sglang["workload"]["lengths"] == {"kind": "fixed", "input_tokens": 4000, "output_tokens": 500}
    assert vllm["workload"]["lengths"]["kind"] == "uniform"
    other = case(engine="sglang 0.5.1", **{**alike, "isl": "4096"}).scenario
    assert other is not None
    assert other["engine"]["scheduler"] == "prefill_first"


def test_a_nightly_build_of_vllm_steps_synchronously():
    found = case(engine="vLLM (nightly, version unknown)", load="batch=8")
    assert found.scenario is not None
    assert found.scenario["engine"]["async_scheduling"] is False
    assert any("before it scheduled asynchronously" in note for note in found.notes)


def test_nvidias_fp8_checkpoints_bring_their_scales():
    own, theirs = (
        case(model=model, precision="FP8").scenario for model in ("nvidia/Llama-3.1-8B-Instruct-FP8", "Llama-3.1-8B")
    )
    assert own is not None
    assert theirs is not None
    assert own["precision"]["activation_scales"] == "static"
    assert "activation_scales" not in theirs["precision"]


def test_inferencemax_is_known_by_its_conditions_or_by_where_it_was_published():
    row = {"id": "aic-1", "isl": "1024", "osl": "1024", "engine": "vllm 0.12.0"}
    for told in ({"conditions": "InferenceMAX; mode=agg"}, {"publication": "SemiAnalysisAI/InferenceMAX results"}):
        scenario = case(**row, **told).scenario
        assert scenario is not None
        lengths = {"kind": "uniform", "input_tokens": [819, 1024], "output_tokens": [819, 1024]}
        assert scenario["workload"]["lengths"] == lengths
        assert "max_num_batched_tokens" not in scenario["engine"]  # the scripts' own recipe is TensorRT-LLM's
    fixed = case(**row).scenario
    assert fixed is not None
    assert fixed["workload"]["lengths"]["kind"] == "fixed"
