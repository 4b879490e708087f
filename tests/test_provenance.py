"""Every result says where its numbers come from, and what of them was extrapolated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sim import Scenario, simulate
from sim.hardware.gpu import gpu_names, load_gpu
from sim.results.export import record, to_json
from sim.results.provenance import SAME_SILICON, SHARED_ERROR, Origin, extrapolations, kind_of
from sim.results.result import Result

TABLES = Path(__file__).resolve().parents[2] / "shared" / "data" / "kernels"


def run(**changes: Any) -> Result:
    scenario = {
        "model": "llama-3.1-8b",
        "cluster": {"topology": "dgx-h100"},
        "deployment": {"tensor_parallel_size": 2},
        "workload": {
            "arrivals": {"kind": "burst"},
            "lengths": {"kind": "fixed", "input_tokens": 512, "output_tokens": 8},
            "num_requests": 4,
        },
    }
    return simulate(Scenario.from_dict(scenario).with_overrides(changes))


def by_number(result: Result) -> dict[str, dict[str, Any]]:
    return {origin.number: origin.as_dict() for origin in result.provenance}


def test_numbers_are_datasheet_fitted_measured_or_assumed() -> None:
    rows = by_number(run())
    kinds = {name: row["kind"] for name, row in rows.items()}
    assert kinds == {
        "h100-sxm: hbm_bandwidth": "datasheet",
        "h100-sxm: flops.bf16": "datasheet",
        "h100-sxm: visible_memory": "measured",
        "h100-sxm: gemm bf16": "fitted",
        "h100-sxm: prefill_attention bf16": "fitted",
        "h100-sxm: decode_attention bf16": "fitted",
        "h100-sxm: elementwise bf16": "fitted",
        "dgx-h100: bandwidth of nvlink4": "datasheet",
        "collectives over nvlink4": "fitted",
        "engine: vllm": "fitted",
        "memory beside weights and KV cache": "fitted",
        "requests": "assumed",
    }
    assert rows["h100-sxm: gemm bf16"]["error"] == load_gpu("h100-sxm").kernels["gemm"]["bf16"].error["mape"]
    assert all(row["source"] for row in rows.values())
    assert all(row["extrapolated"] is None for row in rows.values())


def test_prompts_of_an_engine_with_kernels_of_its_own_attend_in_bf16() -> None:
    fp8 = {"precision.weights": "fp8", "precision.kv_cache": "fp8"}
    vllms, trtllms = (by_number(run(**fp8, **{"engine.preset": engine})).keys() for engine in ("vllm", "trtllm"))
    assert "h100-sxm: prefill_attention fp8" in vllms
    assert "h100-sxm: prefill_attention bf16" in trtllms
    assert "h100-sxm: prefill_attention fp8" not in trtllms
    assert "h100-sxm: decode_attention fp8" in trtllms


def test_experts_state_the_error_of_their_tiles() -> None:
    """An A100's experts were measured with the small tiles of vLLM before 0.17, not by the rule of today."""
    a100 = load_gpu("a100-sxm-80gb").kernels["moe"]
    qwen = {"model": "qwen3-30b-a3b", "cluster.topology": "dgx-a100", "deployment.tensor_parallel_size": 1}
    old, new = (by_number(run(**qwen, **{"engine.version": version})) for version in ("0.14.0", "0.24.0"))
    assert old["a100-sxm-80gb: moe bf16"]["error"] == a100["bf16_small"].error["mape"]
    assert old["a100-sxm-80gb: moe bf16"]["extrapolated"] is None
    assert new["a100-sxm-80gb: moe bf16"]["error"] == SHARED_ERROR["moe"][0]


def test_a_gpu_nobody_measured_borrows_and_says_so() -> None:
    result = run(**{"cluster.gpu": "a40"})
    gemm = by_number(result)["a40: gemm bf16"]
    assert gemm["error"] == SHARED_ERROR["gemm"][0]
    assert gemm["extrapolated"] == "constants of all measured GPUs on the datasheet of a40"
    assert any(note.startswith("extrapolated: a40: gemm bf16, a40: prefill_attention bf16") for note in result.notes)


def test_fewer_bits_on_a_gpu_nobody_measured_err_more() -> None:
    """The scales and packings of fp8 and four bits are other software on every generation; bf16 is cuBLAS on all."""
    rows = by_number(run(**{"cluster.gpu": "mi325x", "precision": {"weights": "fp8", "kv_cache": "fp8"}}))
    assert rows["mi325x: gemm fp8"]["error"] == SHARED_ERROR["gemm"][1] > 2 * SHARED_ERROR["gemm"][0]
    assert rows["mi325x: prefill_attention fp8"]["error"] == SHARED_ERROR["prefill_attention"][1]


def test_a_gpu_of_measured_silicon_errs_a_little_more() -> None:
    gemm = by_number(run(**{"cluster.gpu": "h100-nvl"}))["h100-nvl: gemm bf16"]
    own = load_gpu("h100-sxm").kernels["gemm"]["bf16"].error["mape"]
    assert gemm["error"] == pytest.approx(SAME_SILICON * own)
    assert gemm["extrapolated"] == "constants of h100-sxm on the datasheet of h100-nvl"


def test_what_lies_beyond_the_measured_shapes_is_named() -> None:
    far = {
        "workload.lengths": {"kind": "fixed", "input_tokens": 140_000, "output_tokens": 8},
        "workload.num_requests": 1,
    }
    rows = by_number(run(**far, **{"engine.max_model_len": 150_000}))
    assert rows["h100-sxm: decode_attention bf16"]["extrapolated"] == "context 140,008 (measured 1 to 131,072)"
    chunks = "prompt chunks after cached tokens (measured without)"
    assert rows["h100-sxm: prefill_attention bf16"]["extrapolated"] == chunks
    # the vocabulary of one GPU is wider than any measured product
    alone = by_number(run(**{"deployment.tensor_parallel_size": 1}))
    assert alone["h100-sxm: gemm bf16"]["extrapolated"] == "n 128,256 (measured 512 to 65,536)"
    assert not any(name.startswith("collectives") for name in alone)


def test_links_nobody_measured_are_assumed() -> None:
    rows = by_number(run(**{"cluster.topology": "cloud-h100-25gbe", "deployment.placement": ["n0.g0", "n1.g0"]}))
    assert rows["collectives over ethernet"]["kind"] == "assumed"
    assert rows["collectives over ethernet"]["extrapolated"] == "no measurement of ethernet"
    assert rows["collectives over ethernet"]["error"] == 0.5


def test_printed_peaks_are_a_datasheet_and_rest_on_no_fit() -> None:
    rows = by_number(run(**{"engine.preset": "ideal"}))
    assert rows["h100-sxm: gemm bf16"]["kind"] == "datasheet"
    assert not any(row["kind"] == "fitted" for row in rows.values())


def test_measured_tables_are_named_with_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    if not TABLES.is_dir():
        pytest.skip("no measured tables here")
    monkeypatch.setenv("TWOWALLS_TABLES", str(TABLES))
    rows = by_number(run(costs="measured"))
    assert rows["h100-sxm: gemm bf16"]["kind"] == "measured"
    assert rows["h100-sxm: decode_attention bf16"]["kind"] == "measured"
    assert rows["h100-sxm: elementwise bf16"]["kind"] == "fitted"


@pytest.mark.parametrize("gpu", gpu_names())
def test_every_number_of_every_gpu_has_a_source_that_says_what_it_is(gpu: str) -> None:
    sources = load_gpu(gpu).sources
    assert all(sources.values())
    assert kind_of(sources["hbm_bandwidth"]) in ("datasheet", "assumed")
    assert kind_of(sources["visible_memory"]) in ("measured", "datasheet", "assumed")


def test_one_reason_is_told_once() -> None:
    rows = [
        Origin("a", "fitted", "x", 0.1, "too far"),
        Origin("b", "fitted", "x"),
        Origin("c", "assumed", "y", None, "too far"),
    ]
    assert extrapolations(rows) == ["extrapolated: a, c: too far"]


def test_json_carries_the_provenance_and_is_the_same_in_two_runs() -> None:
    first, second = (to_json(record(run())) for _ in range(2))
    assert first == second
    assert json.loads(first)["provenance"] == [origin.as_dict() for origin in run().provenance]
