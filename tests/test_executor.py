"""Local processes and a dask cluster: the same rows, also when a worker dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_scenarios import small

from sim.errors import InputError
from sim.scenario import Scenario
from sim.studies.attachments import attach, unpacked
from sim.studies.deadline import OutOfTime, deadline
from sim.studies.executor import LocalWorkers, open_workers
from sim.studies.study import Case, Study

SCENARIO = small(200)


def test_a_deadline_ends_work_in_any_thread() -> None:
    ended: list[str] = []

    def work() -> None:
        try:
            with deadline(0.02):
                while True:
                    sum(range(100))
        except OutOfTime:
            ended.append("out of time")

    work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == ["out of time"] * 2


def test_work_in_time_is_left_alone() -> None:
    with deadline(60):
        done = sum(range(10))
    with deadline(None):
        done += 1
    assert done == 46
    assert threading.active_count() == 1 or all(
        not thread.is_alive() or not isinstance(thread, threading.Timer) or thread.finished.is_set()
        for thread in threading.enumerate()
    )


def test_the_dead_are_told_from_the_failed() -> None:
    workers = LocalWorkers(1)
    assert workers.alone(os.getpid) not in (None, os.getpid())
    assert workers.alone(os._exit, 3) is None
    assert workers.submit(len, "four").result() == 4
    workers.close()


@pytest.mark.parametrize("spec", ["slurm", "dask", "local://x", "dask//host"])
def test_an_unknown_executor_is_refused(spec: str) -> None:
    with pytest.raises(InputError, match="--executor"), open_workers(spec):
        pass


def test_attachments_travel_and_leave_no_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n1,20,5\n")
    scenario = Scenario.from_dict(
        SCENARIO | {"workload": {"arrivals": {"kind": "trace", "path": str(trace)}}}
    ).to_dict()
    carried = attach(scenario)
    assert carried == {str(trace): trace.read_bytes()}
    trace.unlink()
    with unpacked(scenario, carried) as local:
        moved = Scenario.from_dict(local.scenario)
        assert len(moved.build_workload()) == 2
        assert local.original(data=moved.to_dict(), answer=f"read {local.scenario['workload']['arrivals']['path']}") == {
            "data": scenario, "answer": f"read {trace}",
        }  # fmt: skip
    assert attach(Scenario.from_dict(SCENARIO).to_dict()) == {}


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and two workers as processes of their own, which see none of this test's files."""
    pytest.importorskip("distributed")
    address = f"127.0.0.1:{_port()}"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    started: list[subprocess.Popen[bytes]] = []

    def start(kind: str, *arguments: str) -> None:
        code = f"from distributed.cli.dask_{kind} import main; main()"
        log = (tmp_path / f"{kind}{len(started)}.log").open("wb")
        started.append(
            subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=elsewhere, stdout=log, stderr=log)
        )

    start("scheduler", "--host", address, "--no-dashboard")
    for _ in range(2):
        start("worker", f"tcp://{address}", "--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0")
    yield address, started
    for process in started:
        process.kill()  # a scheduler asked politely waits for its workers
    for process in started:
        process.wait()


def test_a_cluster_that_loses_a_worker_gives_the_same_ledger(
    tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    address, (_, worker, _) = cluster
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n" + "".join(f"{n},{10 + n},5\n" for n in range(50)))
    base = Scenario.from_dict(SCENARIO)
    asked = [Case.of("", base.with_overrides({"name": f"case{seed}", "workload.seed": seed})) for seed in range(16)]
    recorded = {"name": "recorded", "workload": {"arrivals": {"kind": "trace", "path": str(trace)}}}
    asked.append(Case.of("", Scenario.from_dict(SCENARIO | recorded)))
    killed: list[int] = []

    def kill_once(over: int, running: int) -> None:
        if over >= 4 and not killed:
            worker.send_signal(signal.SIGKILL)
            killed.append(worker.wait())

    _until_workers(address, 2)
    with Study(tmp_path / "dask") as study, open_workers(f"dask://{address}") as workers:
        study.run(asked, workers, kill_once, outputs=True)
    with Study(tmp_path / "local") as study, open_workers(count=1) as workers:
        study.run(asked, workers, outputs=True)
    assert killed == [-signal.SIGKILL]
    for name in ("ledger.csv", "ledger.parquet", "recorded/summary.json", "case3/requests.parquet", "case3/answer.txt"):
        assert (tmp_path / "dask" / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name
    assert (tmp_path / "local" / "ledger.csv").read_text().count(",done,") == 17


def _until_workers(address: str, count: int) -> None:
    from distributed import Client

    with Client(f"tcp://{address}", timeout=30, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=60)


def test_nobody_at_the_address_is_an_error_of_the_user() -> None:
    pytest.importorskip("distributed")
    with (
        pytest.raises(InputError, match="no scheduler with a worker answers"),
        open_workers(f"dask://127.0.0.1:{_port()}"),
    ):
        pass
