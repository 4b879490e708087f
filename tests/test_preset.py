"""Engine presets: what differs between a server and a library, and between versions."""

from dataclasses import fields

import numpy as np
import pytest

from sim.cost.preset import PRESETS, VLLM_GRAPH_SIZES, launches, padded, preset_for
from sim.hardware.gpu import load_gpu
from sim.scenario import Scenario
from sim.simulate import simulate


@pytest.mark.parametrize("name", ["vllm", "trtllm", "trtllm-cpp", "sglang"])
def test_every_time_is_one_that_a_profile_could_show(name: str):
    preset = PRESETS[name]
    times = {field.name: getattr(preset, field.name) for field in fields(preset) if field.name.endswith("_s")}
    assert all(0 <= value < 0.1 for value in times.values())
    assert preset.layer_s < 50e-6
    assert 0.5 < preset.sustained_clock <= 1.0
    assert preset.source


def test_ideal_adds_nothing():
    preset = preset_for("ideal")
    assert all(getattr(preset, field.name) == 0 for field in fields(preset) if field.name.endswith("_s"))
    assert preset.sustained_clock == 1.0


def test_a_library_pays_neither_http_nor_streaming():
    served, called = preset_for("trtllm"), preset_for("trtllm", api_server=False)
    assert called.entry_s == called.exit_s == 0.0
    assert served.entry_s > 0
    assert served.host_request_s == pytest.approx(called.host_request_s + PRESETS["trtllm"].stream_s)


def test_a_server_hands_over_the_tokens_of_every_iteration():
    served, called = preset_for("trtllm-cpp"), preset_for("trtllm-cpp", api_server=False)
    assert served.host_step_s == pytest.approx(called.host_step_s + PRESETS["trtllm-cpp"].serve_step_s)
    assert served.serve_step_s == called.serve_step_s == 0.0


def test_an_a100_and_an_l40s_keep_the_clock_of_their_measured_kernels_where_later_gpus_are_out_of_power():
    preset = PRESETS["trtllm-cpp"]
    assert {preset.clock_on(load_gpu(name)) for name in ("a100-sxm-80gb", "l40s", "l4", "rtx-5090")} == {1.0}
    assert {preset.clock_on(load_gpu(name)) for name in ("h100-sxm", "b200-sxm")} == {preset.sustained_clock}


def test_the_first_compiled_engines_had_no_all_reduce_of_their_own():
    assert preset_for("trtllm-cpp", "v0.1.0").software == "nccl"
    assert preset_for("trtllm-cpp", "v0.6.1").software == preset_for("trtllm-cpp").software == "trtllm"


def test_candidates_of_tensorrt_llm_1_0_quantise_in_kernels_of_their_own():
    how = {version: preset_for("trtllm", version).quantisation for version in ("0.20", "1.0.0rc3", "1.0", "1.2.0rc6")}
    assert how == {"0.20": "static", "1.0.0rc3": "static", "1.0": "fused", "1.2.0rc6": "fused"}


def test_vllm_schedules_asynchronously_since_0_14():
    assert not preset_for("vllm", "0.12.0").async_scheduling
    assert preset_for("vllm", "v0.15.1").async_scheduling
    assert preset_for("vllm").async_scheduling
    assert preset_for("vllm", "nightly, version unknown").async_scheduling


def test_the_first_engine_of_vllm_waited_for_its_own_server_up_to_0_5_and_for_its_python_up_to_0_7():
    """Decodes of 256 streams with a GPU that slept for 0, 11 and 30 ms: 0.5.3 needed 41 to 46 ms more, whatever the GPU did."""
    one, all_at_once = np.array([1]), np.array([256])
    shared, apart, rewritten = (preset_for("vllm", version) for version in ("0.5.3.post1", "0.7.3", "0.8.0"))
    assert shared.host_s(all_at_once) == pytest.approx(43.5e-3, rel=0.08)
    assert shared.host_s(one) == pytest.approx(1.2e-3, rel=0.08)
    assert apart.host_s(all_at_once) == pytest.approx(0.2e-3 + 256 * 58e-6)
    assert rewritten.host_s(all_at_once) == pytest.approx(0.2e-3 + 256 * 28e-6)
    assert (shared.server_token_s, apart.server_token_s, rewritten.server_token_s) == (0.0, 66e-6, 0.0)
    assert preset_for("vllm", "0.6.0rc1") == apart
    assert not shared.async_scheduling
    assert not apart.async_scheduling


def test_the_first_engine_of_vllm_called_as_a_library_does_not_wait_for_a_server():
    called = preset_for("vllm", "0.5.3", api_server=False)
    assert called.host_s(np.array([256])) == pytest.approx(0.35e-3 + 256 * 88e-6)


def test_vllm_0_5_spent_a_third_of_its_time_each_on_its_gpu_its_scheduler_and_its_server(
    monkeypatch: pytest.MonkeyPatch,
):
    """vLLM's blog of 5 September 2024, for Llama-3-8B on an H100 and 500 prompts of ShareGPT at once: 38, 29 and 33 %."""
    lengths = {"kind": "lognormal", "input_mean": 220, "input_cv": 1.3, "output_mean": 200, "output_cv": 1.2}
    engine = {"preset": "vllm", "scheduler": "prefill_first", "max_num_seqs": 256}

    def run_s(version: str, **options: bool) -> float:
        scenario = {
            "model": "llama-3-8b",
            "cluster": {"topology": "dgx-h100"},
            "engine": engine | {"version": version} | options,
            "workload": {"arrivals": {"kind": "burst"}, "lengths": lengths | {"max_tokens": 1024}, "num_requests": 500},
        }
        return float(simulate(Scenario.from_dict(scenario)).summary["duration"])

    served_s, engine_s, newer_s = run_s("0.5.3"), run_s("0.5.3", api_server=False), run_s("0.6.0")
    monkeypatch.setattr("sim.cost.preset.VLLM_V0_HOST", (((0, 6), {"host_step_s": 0.0, "host_request_s": 0.0}),))
    gpu_s = run_s("0.5.3", api_server=False)
    shares = [part / served_s for part in (gpu_s, engine_s - gpu_s, served_s - engine_s)]
    assert shares == pytest.approx([0.38, 0.29, 0.33], abs=0.07)
    # published: 2.7, with ten iterations scheduled at once, which was an option
    assert served_s / newer_s == pytest.approx(1.62, rel=0.05)


def test_an_older_tensorrt_llm_has_a_server_of_its_own_and_before_1_0_launches_faster():
    newest, first, before = (preset_for("trtllm", version) for version in (None, "1.0.0rc3", "0.20"))
    assert (newest.server_token_s, first.server_token_s, before.server_token_s) == (0.0, 108e-6, 108e-6)
    assert before.launch_layer_s < first.launch_layer_s == newest.launch_layer_s


def test_batches_are_padded_to_the_next_captured_graph():
    tokens = np.array([1, 3, 9, 256, 257, 512, 513, 8192])
    assert padded(tokens, VLLM_GRAPH_SIZES).tolist() == [1, 4, 16, 256, 272, 512, 513, 8192]
    assert padded(tokens, ()).tolist() == tokens.tolist()


def test_graphs_hold_decodes_and_small_mixed_iterations_of_vllm_but_nothing_of_compiled_engines():
    tokens = np.array([1, 512, 513])
    assert launches(tokens, False, PRESETS["trtllm"]).tolist() == [False, False, True]
    assert launches(tokens, True, PRESETS["trtllm"]).tolist() == [True, True, True]
    assert launches(tokens, True, PRESETS["vllm"]).tolist() == [False, False, True]
    assert launches(tokens, False, preset_for("vllm", cuda_graphs=False)).all()
    assert launches(tokens, False, PRESETS["trtllm-cpp"]).all()


def test_vllm_captured_graphs_of_nothing_then_of_decodes_then_of_mixed_iterations_too():
    tokens = np.array([256, 264, 512, 513])

    def launched(version: str, mixed: bool) -> list[bool]:
        return [bool(by_hand) for by_hand in launches(tokens, mixed, preset_for("vllm", version))]

    assert launched("0.2.5", mixed=False) == [True] * 4
    assert launched("0.2.6", mixed=False) == launched("0.5.5", mixed=False) == [False, True, True, True]
    assert launched("0.6.6", mixed=False) == [False] * 4  # up to max_num_seqs, and no batch is larger
    assert launched("0.7.3", mixed=True) == [True] * 4
    assert launched("0.8.0", mixed=True) == launched("0.24.0", mixed=True) == [False, False, False, True]
    assert padded(np.array([257]), preset_for("vllm", "0.11.0").graph_sizes).tolist() == [264]
    assert padded(np.array([257]), preset_for("vllm", "0.11.1").graph_sizes).tolist() == [272]


def test_sglang_overlaps_since_0_3_6_and_captures_prompts_since_0_5_10():
    versions = ("0.2.13", "0.3.5", "0.3.6", "0.4.3.post2", "0.5.9", "0.5.10", None)
    presets = {version: preset_for("sglang", version) for version in versions}
    assert [version for version, preset in presets.items() if not preset.async_scheduling] == ["0.2.13", "0.3.5"]
    assert [version for version, preset in presets.items() if preset.mixed_graph_tokens] == ["0.5.10", None]
    assert [max(presets[version].graph_sizes) for version in ("0.2.13", "0.4.3.post2", "0.5.9")] == [128, 160, 512]


def test_hosts_kept_the_ranks_of_in_flight_batching_in_step_up_to_0_12():
    """Llama-2-70B has two all-reduces in each of 80 layers and one after the embedding; one sequence waits for nothing else."""
    by_version = {}
    for version in ("0.12.0", "0.17"):
        preset = preset_for("trtllm-cpp", version, api_server=False)
        scenario = {
            "model": "llama-2-70b",
            "cluster": {"topology": "dgx-h100"},
            "deployment": {"tensor_parallel_size": 8},
            "engine": {"preset": "trtllm-cpp", "version": version, "api_server": False},
            "workload": {
                "arrivals": {"kind": "burst"},
                "lengths": {"kind": "fixed", "input_tokens": 100, "output_tokens": 11},
                "num_requests": 1,
            },
        }
        by_version[version] = preset, simulate(Scenario.from_dict(scenario)).summary["mean_tpot_ms"]
    old, old_ms = by_version["0.12.0"]
    launching_s = 80 * old.launch_layer_s + 161 * old.launch_all_reduce_s
    assert old_ms == pytest.approx(1e3 * (launching_s + old.host_step_s + old.host_request_s), rel=1e-9)
    new, new_ms = by_version["0.17"]
    assert new.launch_all_reduce_s == 0.0
    assert new_ms < old_ms / 2


def test_without_cuda_graphs_an_iteration_takes_at_least_the_launching_of_its_layers():
    """Llama-3.1-8B has 32 layers; one token of one user is computed sooner than TensorRT-LLM's host launches 32 layers."""
    scenario = {
        "model": "llama-3.1-8b",
        "cluster": {"topology": "dgx-h100"},
        "deployment": {"tensor_parallel_size": 8},
        "workload": {
            "arrivals": {"kind": "burst"},
            "lengths": {"kind": "fixed", "input_tokens": 100, "output_tokens": 11},
            "num_requests": 1,
        },
    }
    preset = preset_for("trtllm")
    launching_s = 32 * preset.launch_layer_s + preset.host_step_s + preset.host_request_s
    eager = simulate(Scenario.from_dict(scenario | {"engine": {"preset": "trtllm", "cuda_graphs": False}}))
    assert eager.summary["mean_tpot_ms"] == pytest.approx(1e3 * launching_s, rel=1e-9)
    graphs = simulate(Scenario.from_dict(scenario | {"engine": {"preset": "trtllm"}}))
    assert graphs.summary["mean_tpot_ms"] < eager.summary["mean_tpot_ms"] / 3
    assert graphs.summary["mean_ttft_ms"] == pytest.approx(eager.summary["mean_ttft_ms"])
