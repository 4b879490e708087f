"""Calibration of an engine's own times: constants hidden in made-up measurements are found again."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from sim.cost.preset import PRESETS
from sim.errors import InputError
from sim.studies.calibrate_engine import calibrate_engine, thinned
from sim.studies.measured_rows import COLUMNS
from sim.studies.validate import validate

HIDDEN = {"layer_s": 2e-5, "host_step_s": 3e-3}
LOADS = [("1", "concurrency=1"), ("4", "concurrency=2")]


def measured(path: Path, engine: str = "vllm 0.12.0") -> None:
    """A file of TPOT rows with a value of 1 ms each, two runs a model."""
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        for i, (tp, load) in enumerate(LOADS):
            for model in ("Llama-3.1-8B", "Qwen3-32B"):
                writer.writerow({
                    "id": f"made-{model}-{i}", "source": "made up", "kind": "e2e", "model": model, "precision": "FP8",
                    "gpu": "H100-SXM-80GB", "n_gpus": tp, "nodes": "1", "tp": tp, "pp": "1", "ep": "1",
                    "engine+version": engine, "isl": "128", "osl": "16", "batch_or_concurrency_or_rate": load,
                    "metric": "tpot", "value": "1", "unit": "ms", "conditions": "",
                })  # fmt: skip


def test_hidden_constants_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "made.csv"
    measured(path)
    with monkeypatch.context() as patch:
        patch.setitem(PRESETS, "vllm", replace(PRESETS["vllm"], **HIDDEN))
        truth = {row.id: row.predicted for row in validate(path, workers=1)}
    lines = list(csv.DictReader(path.open(newline="")))
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        writer.writerows({**line, "value": f"{truth[line['id']]:.6g}"} for line in lines)
    fit = calibrate_engine(path, "vllm", tuple(HIDDEN), leave_out=lambda row: row.tensor)
    assert fit.values["layer_s"] == pytest.approx(HIDDEN["layer_s"], rel=0.1)
    assert fit.values["host_step_s"] == pytest.approx(HIDDEN["host_step_s"], rel=0.1)
    assert fit.after["tpot"] < 0.01 < fit.before["tpot"]
    assert [found.group for found in fit.left_out] == ["1", "4"]
    for found in fit.left_out:
        (tpot,) = found.errors
        assert (tpot.metric, tpot.n) == ("tpot", 2)
        assert tpot.median_abs_error < 0.05
        assert f"without {found.group}: layer_s = " in fit.text()


def test_a_file_without_rows_of_the_engine_is_refused(tmp_path: Path):
    path = tmp_path / "made.csv"
    measured(path, engine="TensorRT-LLM v1.0")
    with pytest.raises(InputError, match="holds no row of engine 'vllm'"):
        calibrate_engine(path, "vllm")


def test_cases_are_thinned_evenly():
    assert thinned([*range(10)], 5) == [0, 2, 4, 6, 8]  # type: ignore[list-item]
    assert thinned([*range(3)], 5) == [0, 1, 2]  # type: ignore[list-item]
