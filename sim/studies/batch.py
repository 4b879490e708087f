"""Many scenarios, each on a process of its own; one that fails does not stop the others.

`run_one` is the unit of work: plain data in, plain data out, whatever runs it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.errors import AssertionFailed, CheckFailed, ClockStuck, DoesNotFit, InputError, TwoWallsError
from sim.results.console import table

EXIT_CODES = {"done": 0, "timed_out": 0, "asserted": 1, "infeasible": 3, "oom": 3, "stuck": 4, "failed": 4}
_STATUS_OF: dict[type[TwoWallsError], str] = {
    AssertionFailed: "asserted",
    InputError: "failed",
    DoesNotFit: "infeasible",
    CheckFailed: "failed",
    ClockStuck: "stuck",
}


@dataclass(frozen=True, slots=True)
class Job:
    """One scenario as plain data, and where its outputs go."""

    scenario: dict[str, Any]
    where: str = "scenario"
    """What an error message begins with."""
    out_dir: str | None = None
    """Folder for summary, records and run facts; None: nothing is written."""
    plots: bool = False
    """Whether figures are written too."""

    @property
    def name(self) -> str:
        return str(self.scenario.get("name", "scenario"))


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one scenario, small enough to send between processes."""

    name: str
    status: str
    """A key of `EXIT_CODES`."""
    exit_code: int
    reason: str
    """Why it is not done; empty if it is."""
    record: dict[str, Any] | None
    """The summary with everything `--json` prints; None if the run gave none."""
    answer: str
    """The answer for people."""


def run_one(job: Job, progress: Callable[[float, int], None] | None = None) -> Row:
    """Run one scenario and write what was asked for; never raises for what goes wrong inside.

    Args:
        progress: called with simulated seconds and finished requests as the run goes on.
    """
    try:
        return _run(job, progress)
    except TwoWallsError as error:
        return failed(job.name, error)
    except OSError as error:
        return Row(job.name, "failed", 2, f"{error.filename or 'file'}: {error.strerror or error}", None, "")
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        return Row(job.name, "failed", 4, f"internal error at {place}: {type(error).__name__}: {error}", None, "")


def failed(name: str, error: TwoWallsError) -> Row:
    """The row of a scenario that ended with an error of twowalls."""
    return Row(name, _STATUS_OF.get(type(error), "failed"), error.exit_code, str(error), None, "")


def _run(job: Job, progress: Callable[[float, int], None] | None) -> Row:
    from sim.results import export
    from sim.results.assertions import verify
    from sim.results.console import render
    from sim.scenario import Scenario
    from sim.simulate import simulate

    scenario = Scenario.from_dict(job.scenario, job.where)
    result = simulate(scenario, progress)
    verified = verify(scenario.assertions, result)
    broken = [check["name"] for check in result.self_checks if not check["held"]]
    missed = [line.text for line in verified if not line.held]
    reason = ""
    if broken:
        result.status, reason = "failed", "self-check broken: " + ", ".join(broken)
    elif missed and result.status == "done":
        result.status, reason = "asserted", "does not hold: " + ", ".join(missed)
    if job.out_dir is not None:
        export.write(result, Path(job.out_dir), verified)
        if job.plots:
            from sim.results.plots import save_plots

            save_plots(result, Path(job.out_dir))
    record = export.record(result, verified) | {"wall_seconds": result.wall_seconds}
    return Row(job.name, result.status, EXIT_CODES[result.status], reason, record, render(result, verified))


def run_many(jobs: Sequence[Job], workers: int | None = None) -> Iterator[tuple[int, Row]]:
    """Run `jobs` in parallel and yield (index, row) as each is done.

    A worker process that dies (killed, out of host memory) takes only its own scenario with it: what was under way beside
    it is run again, each alone.

    Args:
        workers: processes at a time; None: one a core.
    """
    if not jobs:
        return
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    unfinished = set(range(len(jobs)))
    for index, row in _pool(jobs, sorted(unfinished), workers):
        if row is not None:
            unfinished.discard(index)
            yield index, row
    for index in sorted(unfinished):
        row = next(row for _, row in _pool(jobs, [index], 1))
        yield index, row or Row(jobs[index].name, "failed", 4, "its process died (killed, or out of memory)", None, "")


def _pool(jobs: Sequence[Job], indices: Sequence[int], workers: int) -> Iterator[tuple[int, Row | None]]:
    """(index, row) of each job in the order of completion; row None where the pool broke."""
    pool = ProcessPoolExecutor(max_workers=workers, initializer=_die_on_interrupt)
    try:
        futures: dict[Future[Row], int] = {pool.submit(run_one, jobs[index]): index for index in indices}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool:
                yield futures[future], None
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _die_on_interrupt() -> None:
    """Ctrl-C ends a worker at once and without a traceback; its parent reports."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def batch_exit_code(rows: Sequence[Row]) -> int:
    """0 unless a scenario ended with 1, 2 or 4, then the largest: what does not fit is a result like any other."""
    return max((row.exit_code for row in rows if row.exit_code != 3), default=0)


_COLUMNS = {
    "load": ("load", "{}"),
    "GPUs": ("num_gpus", "{:,.0f}"),
    "req/s": ("request_throughput", "{:,.2f}"),
    "tok/s": ("output_throughput", "{:,.0f}"),
    "tok/s/GPU": ("output_throughput_per_gpu", "{:,.0f}"),
    "TTFT p50 ms": ("median_ttft_ms", "{:,.0f}"),
    "TTFT p99 ms": ("p99_ttft_ms", "{:,.0f}"),
    "TPOT p50 ms": ("median_tpot_ms", "{:,.1f}"),
    "TPOT p99 ms": ("p99_tpot_ms", "{:,.1f}"),
    "preempted": ("preemptions", "{:,.0f}"),
    "in SLO": ("slo_attainment", "{:.1%}"),
}


def comparison(rows: Sequence[Row]) -> str:
    """One line a scenario, and under the table why some are not done."""
    lines = []
    for row in rows:
        values = [(row.record or {}).get(key) for key, _ in _COLUMNS.values()]
        shown = [
            "-" if value is None else form.format(value)
            for value, (_, form) in zip(values, _COLUMNS.values(), strict=True)
        ]
        lines.append([row.name, row.status, *shown])
    text = table(["scenario", "status", *_COLUMNS], lines)
    reasons = [f"{row.name}: {row.reason}" for row in rows if row.reason]
    return "\n".join([text, *(["", *reasons] if reasons else [])])
