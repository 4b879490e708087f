"""What the harness of a published row is taken to be: options of its engine, lengths, pauses."""

import pytest
from measured_row import case

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


def test_vllm_runs_by_default_what_its_version_does_on_its_gpu():
    def limits(**changes: object) -> tuple[object, ...]:
        scenario = case(**{"load": "rate=4 req/s", "engine": "vllm 0.10.0"} | changes).scenario
        assert scenario is not None
        return tuple(scenario["engine"].get(key) for key in ("max_num_seqs", "max_num_batched_tokens", "scheduler"))

    assert limits() == limits(gpu="MI300X") == (1024, 8192, None)
    assert limits(gpu="A100-80G") == limits(gpu="L40S") == (256, 2048, None)
    assert limits(load="Offline (all samples at once)") == (1024, 16384, None)
    assert limits(conditions="max_num_seqs=512, max-num-batched-tokens 4096") == (512, 4096, None)
    assert limits(engine="vllm 0.6.3") == (None, 8192, "prefill_first")


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


def test_sglang_starts_on_small_cards_whose_chunks_are_shorter():
    """16 GB of weights, and the reserve of a chunk of 2,048 tokens, a quarter of that of 8,192."""
    found = case(engine="sglang 0.4.3", gpu="L4", load="rate=1 req/s", isl="512", osl="16")
    assert found.scenario is not None
    assert found.scenario["engine"]["gpu_memory_utilization"] == pytest.approx(1 - 15.7 / 4 / 23.6, abs=0.01)
    assert not isinstance(run_case(found), str)


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
