"""Many scenarios: what fails does not stop the others, and a row says why."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from records import ledger
from small_engine import busy_engine

from sim.errors import CheckFailed, ClockStuck, DoesNotFit
from sim.results.result import Result
from sim.scenario import Scenario
from sim.studies.batch import Job, batch_exit_code, cells, comparison, run_many, run_one
from sim.studies.executor import open_workers

SCENARIO: dict[str, Any] = {
    "name": "good",
    "model": "llama-3.1-8b",
    "cluster": {"topology": "dgx-h100"},
    "workload": {
        "arrivals": {"kind": "poisson", "request_rate": 5.0},
        "lengths": {"kind": "fixed", "input_tokens": 100, "output_tokens": 40},
        "num_requests": 60,
    },
}


def fake_simulate(scenario: Scenario, progress: Any = None) -> Result:
    """Plays the part that the scenario's name asks for."""
    errors = {"tight": DoesNotFit("75.85 GB of 72.28 GB usable"), "stuck": ClockStuck("request 3 waits for ever"),
              "leaky": CheckFailed("Little's law")}  # fmt: skip
    if scenario.name in errors:
        raise errors[scenario.name]
    if scenario.name == "buggy":
        raise KeyError("wide")
    if scenario.name == "killed":
        os._exit(9)
    while scenario.name == "slow":
        threading.Event().wait(0.001)
    result = busy_engine(30)
    result.scenario, result.ledger = scenario.to_dict(), ledger()
    if scenario.name == "broken":
        result.self_checks = [{"name": "tokens conserved", "held": False, "detail": "8 asked = 7 generated"}]
    if scenario.name == "full":
        result.status = "oom"
        result.oom = {
            "time_s": 1.0, "gpu": "n0.g1", "request": 17, "kv_tokens": 10, "needed_bytes": 5e6, "free_bytes": 0.0,
        }  # fmt: skip
    return result


@pytest.fixture(autouse=True)
def _no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("sim.simulate"), "simulate", fake_simulate)
    multiprocessing.set_start_method("fork", force=True)  # a worker that is forked has the fake too


def job(name: str = "good", **changes: Any) -> Job:
    return Job(SCENARIO | {"name": name} | changes)


def test_a_good_run_is_done_and_its_row_travels() -> None:
    row = run_one(job())
    assert (row.status, row.exit_code, row.reason) == ("done", 0, "")
    assert row.record is not None
    assert row.record["completed"] == 30
    assert row.wall_seconds == 0.1
    assert "wall_seconds" not in row.record
    assert row.files == {}
    assert "Serving Benchmark Result" in row.answer
    assert pickle.loads(pickle.dumps(row)) == row


@pytest.mark.parametrize(
    ("name", "status", "exit_code", "reason"),
    [
        ("tight", "infeasible", 3, "75.85 GB of 72.28 GB usable"),
        ("stuck", "stuck", 4, "request 3 waits for ever"),
        ("leaky", "failed", 4, "Little's law"),
        ("broken", "failed", 4, "self-check broken: tokens conserved"),
        ("full", "oom", 3, ""),
        ("slow", "timed_out", 124, "gave up after 0.05 s of wall time (--timeout)"),
    ],
)
def test_what_goes_wrong_is_a_status_with_a_reason(name: str, status: str, exit_code: int, reason: str) -> None:
    row = run_one(replace(job(name), timeout_s=0.05 if name == "slow" else None))
    assert (row.status, row.exit_code, row.reason) == (status, exit_code, reason)
    assert row.final == (name != "slow")  # the same scenario may end in time tomorrow


def test_a_bug_is_named_with_its_place() -> None:
    row = run_one(job("buggy"))
    assert (row.status, row.exit_code) == ("failed", 4)
    assert row.reason.startswith("internal error at test_batch.py:")
    assert row.reason.endswith("KeyError: 'wide'")


def test_a_wrong_scenario_is_an_input_error() -> None:
    row = run_one(job(engine={"max_num_seq": 3}))
    assert (row.status, row.exit_code) == ("failed", 2)
    assert "max_num_seqs" in row.reason


def test_an_assertion_that_does_not_hold() -> None:
    row = run_one(job(**{"assert": ["ttft.p99 < 1 us", "completed == 30"]}))
    assert (row.status, row.exit_code, row.reason) == ("asserted", 1, "does not hold: ttft.p99 < 1 us")
    assert row.record is not None
    assert row.record["status"] == "asserted"
    assert [line["held"] for line in row.record["assertions"]] == [False, True]


def test_a_row_brings_the_files_of_a_result_folder(tmp_path: Path) -> None:
    run_one(Job(SCENARIO, outputs=True, plots=True)).write(tmp_path / "a")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"summary.json", "requests.parquet", "steps.parquet", "run.json", "timeline.png", "memory.png"} <= names


def test_one_that_fails_does_not_stop_the_others() -> None:
    names = ["good", "tight", "buggy", "good"]
    rows = dict(run_many([job(name) for name in names], workers=2))
    assert [rows[index].status for index in range(4)] == ["done", "infeasible", "failed", "done"]


def test_a_killed_worker_takes_only_its_own_scenario_with_it() -> None:
    names = ["good", "killed", "good", "good"]
    rows = dict(run_many([job(name) for name in names], workers=2))
    assert [rows[index].status for index in range(4)] == ["done", "failed", "done", "done"]
    assert rows[1].reason == "its process died (killed, or out of memory)"


def test_parallel_and_alone_give_the_same_rows() -> None:
    alone = run_one(job())
    rows = dict(run_many([job(), job()], workers=2))
    assert rows[0] == rows[1] == alone


def test_jobs_are_taken_one_by_one_however_many_there_are() -> None:
    taken: list[int] = []

    def endless() -> Iterator[Job]:
        for number in range(10**9):
            taken.append(number)
            yield job()

    with open_workers(count=1) as workers:
        rows = run_many(endless(), workers)
        assert next(rows)[1].status == "done"
        assert len(taken) <= workers.window + 1
        rows.close()


def test_no_jobs_give_no_rows() -> None:
    assert list(run_many([])) == []


def test_the_exit_code_of_a_batch() -> None:
    assert batch_exit_code([]) == 0
    assert batch_exit_code([0, 3]) == 0  # what does not fit is a result like any other
    assert batch_exit_code([1, 3, 2]) == 2
    assert batch_exit_code([4, 2]) == 4


def test_the_comparison_has_a_line_a_scenario_and_the_reasons_below() -> None:
    rows = [run_one(job()), run_one(job("tight"))]
    text = comparison([(row.name, row.status, row.reason, cells(row.record)) for row in rows])
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["scenario", "status", "load", "GPUs"]
    assert lines[1].split()[:3] == ["good", "done", "stable"]
    assert lines[2].split() == ["tight", "infeasible", *["-"] * 11]
    assert lines[-1] == "tight: 75.85 GB of 72.28 GB usable"
