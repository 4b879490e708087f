"""A folder of results: nothing finished is lost, nothing is run twice, and the ledger is the same whoever computed it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from small_scenarios import small

from sim.errors import InputError
from sim.scenario import Scenario
from sim.studies.executor import open_workers
from sim.studies.journal import Journal
from sim.studies.ledger import ledger_row, write_ledger
from sim.studies.study import Case, Study

SCENARIO = small(20)


def cases(count: int, **changes: Any) -> list[Case]:
    found = []
    for number in range(count):
        scenario = Scenario.from_dict(SCENARIO | {"name": f"case{number}"} | changes)
        found.append(Case.of(scenario.name, scenario.with_overrides({"workload.seed": number})))
    return found


def run(folder: Path, asked: list[Case], jobs: int = 1, **options: Any) -> dict[str, dict[str, Any]]:
    with Study(folder) as study, open_workers(count=jobs) as workers:
        study.run(asked, workers, **options)
        return {entry["name"]: entry for entry in study.entries()}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_ledger_has_parameters_metrics_and_status(tmp_path: Path) -> None:
    wrong = Case.of("wrong.yaml", InputError("wrong.yaml: modell", "is an unknown key", "did you mean model?"))
    run(tmp_path, [*cases(2), *cases(1, name="tight", model="llama-3.1-70b"), wrong])
    with (tmp_path / "ledger.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["scenario"], row["status"]) for row in rows] == [
        ("case0", "done"), ("case1", "done"), ("tight", "infeasible"), ("wrong.yaml", "failed"),
    ]  # fmt: skip
    assert "usable" in rows[2]["reason"]
    assert rows[3]["reason"] == "wrong.yaml: modell: is an unknown key did you mean model?"
    assert (rows[1]["workload.seed"], rows[1]["completed"], rows[1]["workload.arrivals.kind"]) == ("1", "20", "poisson")
    assert float(rows[0]["p99_ttft_ms"]) > 0 == len(rows[2]["p99_ttft_ms"])
    table = pq.read_table(tmp_path / "ledger.parquet")
    assert table.column_names == list(rows[0])
    assert table["p99_ttft_ms"].to_pylist()[:2] == [float(row["p99_ttft_ms"]) for row in rows[:2]]
    assert table["deployment.tensor_parallel_size"].to_pylist() == [1, 1, 1, None]


def test_ledgers_are_equal_to_the_byte_whatever_the_worker_count(tmp_path: Path) -> None:
    for jobs in (1, 2, 3):
        run(tmp_path / str(jobs), cases(7), jobs)
    for name in ("ledger.csv", "ledger.parquet"):
        first = (tmp_path / "1" / name).read_bytes()
        assert (tmp_path / "2" / name).read_bytes() == (tmp_path / "3" / name).read_bytes() == first


def test_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    asked = cases(3)
    run(tmp_path, asked[:2])
    run(tmp_path, asked)
    assert sorted(line["name"] for line in lines(tmp_path / "journal.jsonl")) == ["case0", "case1", "case2"]
    with Study(tmp_path, resume=False) as study, open_workers(count=1) as workers:
        study.run(asked, workers)
    assert len(lines(tmp_path / "journal.jsonl")) == 3


def test_a_time_out_is_tried_again(tmp_path: Path) -> None:
    endless = Scenario.from_dict(SCENARIO).with_overrides({"workload.num_requests": 300000})
    asked = [Case.of("endless", endless)]
    assert run(tmp_path, asked, timeout_s=0.2)["base"]["status"] == "timed_out"
    assert run(tmp_path, asked, timeout_s=0.2)["base"]["status"] == "timed_out"
    assert len(lines(tmp_path / "journal.jsonl")) == 2


def test_each_scenario_has_a_folder_and_a_changed_one_is_run_again(tmp_path: Path) -> None:
    run(tmp_path, cases(1), outputs=True)
    summary = json.loads((tmp_path / "case0" / "summary.json").read_text())
    assert summary["scenario"]["workload"]["num_requests"] == 20
    changed = Scenario.from_dict(
        summary["scenario"] | {"workload": summary["scenario"]["workload"] | {"num_requests": 10}}
    )
    run(tmp_path, [Case.of("case0", changed)], outputs=True)
    assert json.loads((tmp_path / "case0" / "summary.json").read_text())["completed"] == 10
    # the first result is still in the journal, but its folder now belongs to the other
    run(tmp_path, cases(1), outputs=True)
    assert json.loads((tmp_path / "case0" / "summary.json").read_text())["completed"] == 20
    assert len(lines(tmp_path / "journal.jsonl")) == 3


def test_equal_names_of_different_scenarios_do_not_share_a_folder(tmp_path: Path) -> None:
    asked = [
        Case.of("same", Scenario.from_dict(SCENARIO).with_overrides({"workload.seed": seed})) for seed in (0, 1, 1)
    ]
    run(tmp_path, asked, outputs=True)
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == sorted(f"base-{case.key[:8]}" for case in asked[:2])


def test_whatever_a_scenario_is_called_its_folder_is_in_the_folder_of_the_study(tmp_path: Path) -> None:
    names = ["..", ".", "../up", "a/b", "run.json", "journal.jsonl", "x" * 300, "é" * 150]
    asked = [Case.of(name, Scenario.from_dict(SCENARIO | {"name": name})) for name in names]
    inside = tmp_path / "study"
    assert {entry["status"] for entry in run(inside, asked, outputs=True).values()} == {"done"}
    keys = {case.name: case.key[:8] for case in asked}
    clean = ["_.", "_", "_._up", "a_b", "x" * 200, "é" * 100]
    reserved = [f"{name}-{keys[name]}" for name in ("run.json", "journal.jsonl")]
    assert sorted(path.parent.name for path in inside.glob("*/summary.json")) == sorted(clean + reserved)
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


def test_a_file_that_a_scenario_names_counts_by_its_content(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n1,20,5\n")
    workload = {"arrivals": {"kind": "trace", "path": str(trace)}}
    before = Case.of("t", Scenario.from_dict(SCENARIO | {"workload": workload}))
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n1,20,6\n")
    assert Case.of("t", Scenario.from_dict(SCENARIO | {"workload": workload})).key != before.key


def test_a_line_cut_off_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with_first = Journal(path)
    with_first.append({"key": "a", "final": True, "n": 1})
    with_first.close()
    with path.open("ab") as file:
        file.write(b'{"key": "b", "fin')
    journal = Journal(path)
    journal.append({"key": "c", "final": False, "n": 3})
    journal.append({"key": "a", "final": True, "n": 4})
    journal.close()
    again = Journal(path)
    assert [entry["n"] for entry in again.entries(["a", "b", "c"])] == [4, 3]
    assert (again.holds("a"), again.holds("b"), again.holds("c"), "c" in again) == (True, False, False, True)


def test_columns_take_the_type_that_holds_all_values(tmp_path: Path) -> None:
    def entry(name: str, **scenario: Any) -> dict[str, Any]:
        return {"name": name, "status": "done", "reason": "", "key": name, "record": {"x": 1}, "scenario": scenario}

    entries = [entry("a", n=1, flag=True, mixed=1), entry("b", n=2.5, mixed="config", sizes=[1, 2])]
    write_ledger(lambda: entries, tmp_path)
    table = pq.read_table(tmp_path / "ledger.parquet").to_pydict()
    assert (table["n"], table["flag"], table["mixed"]) == ([1.0, 2.5], [True, None], ["1", "config"])
    assert (table["sizes"], table["x"]) == ([None, "[1, 2]"], [1, 1])
    assert "reason" not in ledger_row(entries[0])
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupt_keeps_what_is_finished_and_the_same_command_goes_on(tmp_path: Path, jobs: str) -> None:
    matrix = {"base": SCENARIO, "matrix": {"workload.seed": list(range(12))}}
    (tmp_path / "many.yaml").write_text(yaml.safe_dump(matrix))
    # the interrupt comes when the fourth result is in the journal: no clock decides what the test sees
    code = (
        "import os, signal\n"
        "from sim.studies.journal import Journal\n"
        "append = Journal.append\n"
        "def interrupting(self, entry):\n"
        "    append(self, entry)\n"
        "    if len(self._places) == 4 and 'STOP' in os.environ: os.kill(os.getpid(), signal.SIGINT)\n"
        "Journal.append = interrupting\n"
        "from sim.cli import main\n"
        "main()"
    )
    command = [sys.executable, "-c", code, "run", "many.yaml", "--out", "out", "--jobs", jobs]

    def start(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ | environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    stopped = start(STOP="1")
    assert stopped.returncode == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr
    kept = lines(tmp_path / "out" / "journal.jsonl")
    assert 4 <= len(kept) < 12
    assert len((tmp_path / "out" / "ledger.csv").read_text().splitlines()) == len(kept) + 1
    finished = start()
    assert finished.returncode == 0, finished.stderr
    names = [line["name"] for line in lines(tmp_path / "out" / "journal.jsonl")]
    assert sorted(names) == sorted(f"many-seed={seed}" for seed in range(12))
    assert len((tmp_path / "out" / "ledger.csv").read_text().splitlines()) == 13
