"""What is written is equal in two runs, re-runnable, and plain."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from records import ledger, two_users
from small_engine import busy_engine

from sim import __version__
from sim.results import export
from sim.results.assertions import Verified

FILES = ["answer.txt", "requests.parquet", "run.json", "steps.parquet", "summary.json"]


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    for name, wall_seconds in (("first", 0.1), ("second", 7.0)):
        result = busy_engine(blocks=17)
        result.ledger, result.wall_seconds = ledger(), wall_seconds
        export.write(result, tmp_path / name, [Verified("ttft.p99 < 1 s", True, 0.5)])
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == FILES
    for name in FILES:
        same = (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
        assert same == (name != "run.json"), name


def test_the_summary_says_how_it_was_made(tmp_path: Path) -> None:
    result = two_users()
    export.write(result, tmp_path, [Verified("ttft.p99 < 1 s", False, 1.7425)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["scenario"] == result.scenario
    assert summary["seed"] == 7
    assert summary["simulator_version"] == __version__
    assert set(summary["versions"]) == {"twowalls", "python", "numpy", "simpy", "networkx", "scipy"}
    assert summary["assertions"] == [{"text": "ttft.p99 < 1 s", "held": False, "actual": 1.7425}]
    assert summary["walls_ms_per_token"]["weights_read"] == 12.0
    assert summary["load"] == "stable"
    assert "wall_seconds" not in summary
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["wall_seconds"] == 0.1
    assert {"date", "host", "command", "commit"} <= set(run)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    result = two_users()
    export.write(result, tmp_path)
    requests = pq.read_table(tmp_path / "requests.parquet")
    assert requests.column_names == list(result.requests)
    assert requests["finish_s"].to_pylist() == [3.25, 3.75]
    steps = pq.read_table(tmp_path / "steps.parquet")
    assert steps["iterations"].to_pylist() == [1, 2, 1, 1, 1]
    assert str(steps.schema.field("iterations").type) == "int64"


def test_numpy_numbers_are_plain_and_not_a_number_is_refused() -> None:
    assert json.loads(export.to_json({"a": np.float64(0.5), "b": np.arange(2)})) == {"a": 0.5, "b": [0, 1]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        export.to_json({"a": float("nan")})
    with pytest.raises(TypeError, match="object cannot be written"):
        export.to_json({"a": object()})


def test_the_commit_is_read_from_a_checkout(tmp_path: Path) -> None:
    assert export.commit(tmp_path) is None
    git = tmp_path / ".git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert export.commit(tmp_path) is None
    (git / "refs/heads/main").write_text("abc123\n")
    assert export.commit(tmp_path) == "abc123"
    (git / "HEAD").write_text("def456\n")
    assert export.commit(tmp_path) == "def456"
