"""What is played is not always what was asked for; then the answer says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sim import Scenario, simulate

FIXED = {"kind": "fixed", "input_tokens": 64, "output_tokens": 4}


def notes(workload: dict[str, Any], engine: dict[str, Any] | None = None) -> list[str]:
    cluster = {"topology": "dgx-h100"}
    asked = {"model": "llama-3.1-8b", "cluster": cluster, "workload": workload, "engine": engine or {}}
    return simulate(Scenario.from_dict(asked)).notes


def test_stages_that_end_before_all_requests_came_are_told_of() -> None:
    stages = [{"duration": "10 s", "request_rate": 2.0}, {"duration": "10 s", "request_rate": 0.0}]
    workload = {"arrivals": {"kind": "piecewise", "stages": stages}, "lengths": FIXED, "num_requests": 500}
    count = len(
        Scenario.from_dict(
            {"model": "llama-3.1-8b", "cluster": {"topology": "dgx-h100"}, "workload": workload}
        ).build_workload()
    )
    assert 5 < count < 50
    assert f"the stages of the arrivals give {count} requests, fewer than the 500 of num_requests" in notes(workload)
    assert not any("num_requests" in note for note in notes({**workload, "num_requests": 3}))


def test_rows_of_a_trace_that_are_left_out_or_missing_are_told_of(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,64,4\n1,64,0\n2,0,4\n3,64,4\n")
    found = notes({"arrivals": {"kind": "trace", "path": str(trace)}, "num_requests": 10})
    assert "2 rows of the trace ask for nothing (failed requests) and are left out" in found
    assert "the trace holds 2 requests, fewer than the 10 of num_requests" in found
    assert not any(
        "trace" in note for note in notes({"arrivals": {"kind": "burst"}, "lengths": FIXED, "num_requests": 2})
    )


def test_options_of_the_engine_that_change_nothing_are_told_of() -> None:
    workload = {"arrivals": {"kind": "burst"}, "lengths": FIXED, "num_requests": 2}
    idle_space = "engine.swap_space has no effect: it is used under on_kv_full: swap only"
    no_graphs = "engine.cuda_graphs has no effect: the preset trtllm-cpp captures none"
    found = notes(workload, {"preset": "trtllm-cpp", "cuda_graphs": False, "swap_space": "8 GiB"})
    assert idle_space in found
    assert no_graphs in found
    swaps = notes(workload, {"preset": "vllm", "cuda_graphs": False, "swap_space": "8 GiB", "on_kv_full": "swap"})
    assert not any("has no effect" in note for note in swaps)
    assert not any("has no effect" in note for note in notes(workload))


def test_sliding_windows_that_an_engine_ignores_are_told_of() -> None:
    ignored = "the model's sliding windows are ignored, as the runtime of trtllm-cpp does"
    workload = {"arrivals": {"kind": "burst"}, "lengths": FIXED, "num_requests": 2}
    for model, preset, told in (
        ("mistral-7b", "trtllm-cpp", True),
        ("mistral-7b", "vllm", False),
        ("llama-3.1-8b", "trtllm-cpp", False),
    ):
        asked = {
            "model": model,
            "cluster": {"topology": "dgx-h100"},
            "workload": workload,
            "engine": {"preset": preset},
        }
        assert (ignored in simulate(Scenario.from_dict(asked)).notes) is told
