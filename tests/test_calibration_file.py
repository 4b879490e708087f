"""Calibration files that a scenario names: what they change, how they are told of, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sim import Scenario, simulate
from sim.cli import app
from sim.cost.collective_constants import CONSTANTS
from sim.cost.preset import PRESETS
from sim.engine.deployment import Deployment
from sim.engine.scaling import Scaling
from sim.errors import InputError
from sim.results.provenance import HOST_LOG_STD
from sim.studies.attachments import attach
from sim.studies.calibration_file import factor, write_calibration

ENGINE = "source: by hand\nengine: {preset: vllm, layer: {factor: 3}, entry: {factor: 2, interval: [1.5, 2.5]}}\n"
NCCL = """\
# nThread 1 nGpus 1 all_reduce_perf
#  Rank  0 Group  0 Pid  1 on node-a device  0 [0x18] NVIDIA H100 80GB HBM3
#  Rank  1 Group  0 Pid  2 on node-b device  0 [0x18] NVIDIA H100 80GB HBM3
#       size         count      type   redop    root     time   algbw   busbw #wrong
           8             2     float     sum      -1    58.61    0.00    0.00      0
     1048576        262144     float     sum      -1   196.20   10.90   10.90      0
   134217728      33554432     float     sum      -1   7604.1   37.24   37.24      0
"""


def scenario(folder: Path, text: str | None, **changes: Any) -> Scenario:
    """One H100 and eight users, with the calibration file `text` beside it."""
    data: dict[str, Any] = {
        "model": "llama-3.1-8b", "cluster": {"topology": "dgx-h100"},
        "workload": {
            "arrivals": {"kind": "closed_loop", "concurrency": 8},
            "lengths": {"kind": "fixed", "input_tokens": 256, "output_tokens": 16}, "num_requests": 16,
        },
    }  # fmt: skip
    if text is not None:
        (folder / "mine.yaml").write_text(text)
        data["engine"] = {"calibration": "mine.yaml"}
    return Scenario.from_dict(data, "here.yaml", folder).with_overrides(changes)


def test_the_engines_own_times_are_multiplied(tmp_path: Path) -> None:
    preset = Deployment.of(scenario(tmp_path, ENGINE)).preset
    assert preset.layer_s == 3 * PRESETS["vllm"].layer_s
    assert preset.entry_s == 2 * PRESETS["vllm"].entry_s
    assert preset.host_step_s == PRESETS["vllm"].host_step_s
    plain, slow = simulate(scenario(tmp_path, None)), simulate(scenario(tmp_path, ENGINE))
    later_ms = slow.summary["mean_tpot_ms"] - plain.summary["mean_tpot_ms"]
    assert later_ms == pytest.approx(32 * 2 * PRESETS["vllm"].layer_s * 1e3, rel=0.01)


def test_the_result_names_the_file_and_what_it_was_fitted_to(tmp_path: Path) -> None:
    result = simulate(scenario(tmp_path, ENGINE))
    (origin,) = [one for one in result.provenance if one.number == "engine: vllm"]
    assert origin.kind == "fitted"
    assert origin.source.startswith("fitted by file mine.yaml (")
    assert origin.source.endswith("): by hand")
    assert origin.source in result.notes
    assert origin.log_std == HOST_LOG_STD


def test_what_a_run_left_open_of_an_engine_is_what_uncertainty_draws_from(tmp_path: Path) -> None:
    result = simulate(scenario(tmp_path, ENGINE.replace("vllm,", "vllm, log_std: 0.04,")))
    (origin,) = [one for one in result.provenance if one.number == "engine: vllm"]
    assert origin.log_std == 0.04


def test_kernels_of_one_kind_take_longer_and_what_ifs_multiply_on_top(tmp_path: Path) -> None:
    text = "source: by hand\nkernels: {h100-sxm: {gemm: {bf16: {factor: 1.5}}}}\n"
    plain, slow = Deployment.of(scenario(tmp_path, None)), Deployment.of(scenario(tmp_path, text))
    gpu = next(iter(plain.gpus.values()))
    before_s = float(plain.backend(gpu).gemm(64, 4096, 4096, "bf16").total_s)
    assert float(slow.backend(gpu).gemm(64, 4096, 4096, "bf16").total_s) == pytest.approx(1.5 * before_s)
    assert slow.backend(gpu).elementwise(1e6).total_s == plain.backend(gpu).elementwise(1e6).total_s
    twice = Scaling(kernel_times={(gpu.name, "gemm", "bf16"): 2.0}).deployment(slow)
    assert float(twice.backend(gpu).gemm(64, 4096, 4096, "bf16").total_s) == pytest.approx(3 * before_s)
    (origin,) = [one for one in simulate(scenario(tmp_path, text)).provenance if one.number == "h100-sxm: gemm bf16"]
    assert "mine.yaml" in origin.source


def test_links_take_what_was_measured_of_them_and_an_engines_own_kernels_stay(tmp_path: Path) -> None:
    text = "source: x\nlinks: {nvlink4: {step_overhead: 9 us, source: nccl-tests}}\n"
    found = Deployment.of(scenario(tmp_path, text, **{"deployment.tensor_parallel_size": 2}))
    communicator = found.communicator(found.gpu_names)
    assert found.topology.calibration["nvlink4"].step_overhead == "9 us"
    assert "mine.yaml" in found.topology.calibration["nvlink4"].source
    plain = Deployment.of(scenario(tmp_path, None, **{"deployment.tensor_parallel_size": 2}))
    ours, theirs = communicator.time("all_gather", 1e6), plain.communicator(plain.gpu_names).time("all_gather", 1e6)
    assert ours.latency_s > theirs.latency_s + 5e-6
    assert (
        communicator.time("all_reduce", 16384).time_s
        == plain.communicator(plain.gpu_names).time("all_reduce", 16384).time_s
    )
    assert CONSTANTS["nvlink4"].methods["one_shot"].step_s == 0


def test_a_changed_file_is_another_scenario_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, same = scenario(tmp_path / "a", ENGINE), scenario(tmp_path / "b", ENGINE)
    assert first.content_hash() == same.content_hash()
    assert first.content_hash() != scenario(tmp_path / "b", ENGINE.replace("3", "4")).content_hash()
    assert list(attach(first.to_dict())) == [str(tmp_path / "a" / "mine.yaml")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source: x\n", "calibrates nothing"),
        ("engine: {preset: vllm}\n", "source"),
        (ENGINE.replace("layer", "layr"), "engine.layr: is an unknown key"),
        (ENGINE.replace("3", "-3"), "engine.layer.factor"),
        (ENGINE.replace("vllm", "trtllm"), "got a file of trtllm with the preset vllm"),
        ("source: x\nkernels: {h1000: {gemm: {bf16: {factor: 1}}}}\n", "h1000"),
        ("source: x\nkernels: {h100-sxm: {gem: {bf16: {factor: 1}}}}\n", "did you mean 'gemm'"),
        ("source: x\nlinks: {nvlink9: {source: x}}\n", "got the link kind 'nvlink9'"),
        ("source: x\nlinks: {nvlink4: {efficiency: 0.5}}\n", "is missing\n  needed here: source$"),
        ("source: x\nkernels: {h100-sxm: 1}\n", "kernels.h100-sxm: got 1\n  write keys and values here$"),
    ],
)
def test_mistakes_are_located_in_both_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Deployment.of(scenario(tmp_path, text))
    assert str(caught.value).startswith("here.yaml: engine.calibration: ")


def test_a_missing_file_and_an_ideal_engine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"here.yaml: engine.calibration: .*nowhere.yaml: cannot be read"):
        Deployment.of(scenario(tmp_path, None, **{"engine.calibration": str(tmp_path / "nowhere.yaml")}))
    with pytest.raises(InputError, match="the preset ideal"):
        Deployment.of(scenario(tmp_path, ENGINE, **{"engine.preset": "ideal"}))


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    write_calibration(tmp_path / "mine.yaml", "x", engine={"preset": "vllm", "layer": factor(3.0, (2.0, 4.0))})
    text = (tmp_path / "mine.yaml").read_text()
    assert Deployment.of(scenario(tmp_path, text)).preset.layer_s == 3 * PRESETS["vllm"].layer_s
    with pytest.raises(InputError, match="whose folder does not exist"):
        write_calibration(tmp_path / "no" / "mine.yaml", "x", engine={"preset": "vllm"})


def test_an_nccl_run_becomes_a_file_that_a_scenario_names(tmp_path: Path) -> None:
    (tmp_path / "nccl.txt").write_text(NCCL)
    arguments = ["calibrate", "collectives", str(tmp_path / "nccl.txt"), "--topology", "dgx-h100", "--nodes", "2"]
    run = CliRunner().invoke(app, [*arguments, "--kind", "infiniband", "--out", str(tmp_path / "mine.yaml"), "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["kind"] == "infiniband"
    far = {"cluster.nodes": 2, "deployment.tensor_parallel_size": 2, "deployment.placement": "spread"}
    text = (tmp_path / "mine.yaml").read_text()
    slow, plain = simulate(scenario(tmp_path, text, **far)), simulate(scenario(tmp_path, None, **far))
    assert slow.summary["mean_tpot_ms"] > 1.3 * plain.summary["mean_tpot_ms"]
    assert any("nccl-tests all_reduce among 2 GPUs" in one.source for one in slow.provenance)


def test_kernel_tables_become_a_file_that_a_scenario_names(tmp_path: Path) -> None:
    tables = Path(__file__).resolve().parents[2] / "shared" / "data" / "kernels"
    if not tables.is_dir():
        pytest.skip("needs the measured tables")
    out = tmp_path / "mine.yaml"
    arguments = ["calibrate", "kernels", str(tables), "--gpu", "a100-sxm-80gb", "--out", str(out), "--json"]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    found = {(row["kind"], row["dtype"]): row["factor"] for row in json.loads(run.stdout)["factors"]}
    assert found["gemm", "bf16"] == pytest.approx(1.0, abs=0.05)
    a100 = simulate(scenario(tmp_path, out.read_text(), **{"cluster.topology": "dgx-a100"}))
    assert any("mine.yaml" in one.source for one in a100.provenance)
