"""Validation: rows simulated as they were measured, and what does not count."""

import csv
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sim.cli import app
from sim.studies.measured_metrics import metric_in, unit_of
from sim.studies.measured_rows import COLUMNS
from sim.studies.validate import INSENSITIVE, SIMULATED, SKIPPED, RowResult, validate, write_rows
from sim.studies.validate_report import figure, groups, skipped, worst

MEASURED = Path(__file__).resolve().parents[2] / "shared" / "data" / "measured.csv"
COMMON = {
    "source": "here", "kind": "e2e", "model": "Llama-3.1-8B", "precision": "BF16", "gpu": "H100-SXM-80GB", "n_gpus": "1",
    "nodes": "1", "tp": "1", "pp": "1", "ep": "1", "engine+version": "vllm 0.24.0", "isl": "512", "osl": "64",
    "batch_or_concurrency_or_rate": "concurrency=4", "metric": "tpot", "value": "7", "unit": "ms", "conditions": "",
}  # fmt: skip
ROWS = [
    {"id": "a-1"},
    {"id": "a-2", "metric": "ttft", "value": "40"},
    {"id": "b-1", "batch_or_concurrency_or_rate": "rate=1 req/s", "metric": "output_throughput", "value": "64",
     "unit": "out tok/s"},
    {"id": "c-1", "batch_or_concurrency_or_rate": "seven at a time"},
    {"id": "d-1", "metric": "colour"},
    {"id": "e-1", "kind": "collective", "n_gpus": "8", "tp": "8", "engine+version": "NCCL 2.29.2", "metric": "all_reduce_latency",
     "precision": "half (2 B/element)", "batch_or_concurrency_or_rate": "message=524288 elements", "value": "0.0254"},
    {"id": "f-1", "kind": "operator", "engine+version": "vllm 0.24.0", "metric": "gemm_latency",
     "batch_or_concurrency_or_rate": "M=1 N=10240 K=8192", "value": "0.0607"},
    {"id": "g-1", "kind": "memory", "model": "Mistral-Nemo-12B", "metric": "num_gpu_blocks", "unit": "blocks of 16 tokens",
     "value": "19251", "batch_or_concurrency_or_rate": "",
     "conditions": "gpu_memory_utilization 0.9; max_num_batched_tokens 1024"},
]  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("measured") / "rows.csv"
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        writer.writerows({**COMMON, **row} for row in ROWS)
    return path


@pytest.fixture(scope="module")
def results(file: Path) -> dict[str, RowResult]:
    return {row.id: row for row in validate(file, workers=1)}


def test_no_row_is_dropped(results: dict[str, RowResult]):
    assert list(results) == [row["id"] for row in ROWS]


def test_rows_of_one_run_share_a_simulation_and_stay_in_their_unit(results: dict[str, RowResult]):
    tpot, ttft = results["a-1"], results["a-2"]
    assert tpot.status == ttft.status == SIMULATED
    assert 4 < (tpot.predicted or 0) < 12  # ms: 16 GB of weights in 5 ms, and the small things
    assert 10 < (ttft.predicted or 0) < 150
    assert tpot.error == pytest.approx((tpot.predicted or 0) / 7 - 1)


def test_an_open_loop_that_keeps_up_does_not_count(results: dict[str, RowResult]):
    row = results["b-1"]
    assert row.status == INSENSITIVE
    assert row.predicted == pytest.approx(64, rel=0.15)


def test_what_cannot_be_simulated_says_why(results: dict[str, RowResult]):
    assert results["c-1"].status == results["d-1"].status == SKIPPED
    assert "seven at a time" in results["c-1"].reason
    assert "colour" in results["d-1"].reason
    assert sum(skipped(list(results.values())).values()) == 2


def test_kernels_collectives_and_memory_are_priced_directly(results: dict[str, RowResult]):
    assert abs(results["e-1"].error or 1) < 0.25  # 1 MiB over eight H100: 25.4 us
    assert abs(results["f-1"].error or 1) < 0.15  # 168 MB at 88 % of 3.35 TB/s
    assert abs(results["g-1"].error or 1) < 0.03


def test_groups_count_only_what_counts(results: dict[str, RowResult]):
    found = {(group.group, group.metric): group for group in groups(list(results.values()))}
    assert found["source: a", "tpot"].n == 1
    assert ("source: b", "output throughput") not in found
    assert found["all: e2e", "tpot"].n == 1
    assert found["all: e2e", "tpot"].coverage == pytest.approx(1 / 2)  # c-1 is not simulated
    assert {row.id for row in worst(list(results.values()), 10)} == {"a-1", "a-2"}


def test_the_table_is_written(results: dict[str, RowResult], tmp_path: Path):
    write_rows(results.values(), tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as lines:
        written = list(csv.DictReader(lines))
    assert len(written) == len(ROWS)
    assert {"id", "metric", "measured", "predicted", "error", "status", "reason"} <= set(written[0])
    assert written[3]["predicted"] == ""
    assert set(asdict(results["a-1"])) == set(written[0])


def test_the_figure_has_a_panel_for_every_metric_that_was_measured_and_no_other(
    results: dict[str, RowResult], tmp_path: Path
):
    drawn = figure([results["a-1"], results["a-2"]])
    assert drawn is not None
    assert [(axes.get_title(), axes.get_xlabel()) for axes in drawn.axes] == [
        ("ttft", "measured ttft (ms)"),
        ("tpot", "measured tpot (ms)"),
    ]
    assert figure([results["e-1"], results["f-1"]]) is None


@pytest.mark.parametrize(
    ("option", "name", "told"),
    [
        ("--plot", "nowhere/rows.png", "whose folder does not exist"),
        ("--plot", "rows.foo", "give a file ending in .png"),
        ("--out", "nowhere/rows.csv", "whose folder does not exist"),
        ("--out", ".", "which is a folder"),
    ],
)
def test_where_nothing_can_be_written_is_told_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, file: Path, tmp_path: Path, option: str, name: str, told: str
):
    monkeypatch.setattr("sim.studies.validate.validate", None)
    run = CliRunner().invoke(app, ["validate", str(file), option, str(tmp_path / name)])
    assert told in str(run.exception)


def test_collectives_refuse_what_they_do_not_write(tmp_path: Path):
    run = CliRunner().invoke(app, ["validate", "collectives", "--plot", str(tmp_path / "rows.png")])
    assert "--plot: collectives are printed only" in str(run.exception)


def test_the_command_prints_stable_keys(file: Path, tmp_path: Path):
    out = tmp_path / "rows.csv"
    run = CliRunner().invoke(app, ["validate", str(file), "--out", str(out), "--workers", "1", "--json"])
    assert run.exit_code == 0
    answer = json.loads(run.stdout)
    assert set(answer) >= {"groups", "simulated", "skipped"}
    assert answer["simulated"] == 6
    assert answer["skipped"] == 2
    assert out.is_file()
    keys = {"group", "metric", "n", "median_abs_error", "mean_abs_error", "bias", "p90_abs_error"}
    assert all(keys <= set(group) for group in answer["groups"])


@pytest.mark.skipif(not MEASURED.is_file(), reason="the published measurements are not here")
def test_a_sample_of_published_rows_stays_within_its_error(tmp_path: Path):
    with MEASURED.open(encoding="utf-8", newline="") as lines:
        rows = [
            row
            for row in csv.DictReader(lines)
            if row["metric"] == "tpot" and row["batch_or_concurrency_or_rate"] == "concurrency=16"
        ]
    path = tmp_path / "sample.csv"
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        writer.writerows(rows[::10])
    found = {group.metric: group for group in groups(validate(path, workers=1), by=("all",))}
    assert found["tpot"].n > 8
    assert found["tpot"].median_abs_error < 0.12


def test_rows_are_priced_with_measured_kernels_where_asked(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TWOWALLS_TABLES", str(tmp_path / "nowhere"))
    run = CliRunner().invoke(app, ["validate", str(file), "--workers", "1", "--costs", "measured"])
    assert "--costs: TWOWALLS_TABLES is" in str(run.exception)
    run = CliRunner().invoke(app, ["validate", str(file), "--costs", "guessed"])
    assert "--costs: got 'guessed'" in str(run.exception)
    kernels = MEASURED.parent / "kernels"
    if not kernels.is_dir():
        pytest.skip("needs the measured tables")
    monkeypatch.setenv("TWOWALLS_TABLES", str(kernels))
    measured = {row.id: row for row in validate(file, workers=1, costs="measured")}
    fitted = {row.id: row for row in validate(file, workers=1)}
    ratio = (measured["a-1"].predicted or 0.0) / (fitted["a-1"].predicted or 1.0)
    assert ratio != 1.0
    assert ratio == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("written", "same"),
    [
        ("Tokens/s", "tok/s"), ("output tokens/sec", "tok/s"), ("tokens per second", "tok/s"), ("tokens/s/GPU", "tok/s"),
        ("samples/s", "req/s"), ("queries/s", "req/s"), ("milliseconds", "ms"), ("ms/token", "ms"),
    ],
)  # fmt: skip
def test_units_are_read_in_many_spellings(written: str, same: str) -> None:
    assert unit_of(written) == unit_of(same)


def test_a_unit_may_say_that_a_throughput_is_of_each_gpu() -> None:
    assert metric_in("output_throughput", "tok/s/GPU") == "output_throughput_per_gpu"
    assert metric_in("output_throughput_per_gpu", "tok/s/GPU") == "output_throughput_per_gpu"
    assert metric_in("output_throughput", "tok/s") == "output_throughput"
    assert metric_in("tpot", "ms") == "tpot"
