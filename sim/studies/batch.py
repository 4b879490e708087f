"""Many scenarios, each on a process of its own; one that fails does not stop the others.

`run_one` is the unit of work: plain data in, plain data out, whatever runs it. Nothing but the job reaches a worker and
nothing but the row comes back, so a worker on another machine needs no shared disk.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sim.errors import AssertionFailed, CheckFailed, ClockStuck, DoesNotFit, InputError, TwoWallsError
from sim.results.console import table
from sim.studies.attachments import Attachments, unpacked
from sim.studies.deadline import OutOfTime, deadline
from sim.studies.executor import Workers, open_workers

GAVE_UP = 124
"""Exit code of a scenario that `--timeout` ended before it had a result, as of timeout(1)."""
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
    """One scenario as plain data, and what is wanted of it."""

    scenario: dict[str, Any]
    where: str = "scenario"
    """What an error message begins with."""
    outputs: bool = False
    """Whether the row brings the files of a result folder: summary, answer, records and run facts."""
    plots: bool = False
    """Whether figures are among the files."""
    timeout_s: float | None = None
    """Wall time after which the run is given up; None: never."""
    shards: int | None = None
    """Processes that the run's replicas are spread over; None: one process runs all."""
    attachments: Attachments = field(default_factory=dict)
    """Files that the scenario names, for a worker that cannot read them."""

    @property
    def name(self) -> str:
        return str(self.scenario.get("name", "scenario"))


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one scenario, as plain data that travels between processes."""

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
    wall_seconds: float | None = None
    """How long the simulation took; kept apart from the record, which is equal in every run."""
    final: bool = True
    """Whether the same scenario would end the same way again: not after a time-out or the death of a process."""
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    """The result folder: file name to content."""

    def write(self, folder: Path) -> None:
        """Writes the files into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def run_one(job: Job, progress: Callable[[float, int], None] | None = None) -> Row:
    """Run one scenario and bring back what was asked for; never raises for what goes wrong inside.

    Args:
        progress: called with simulated seconds and finished requests as the run goes on.
    """
    try:
        with deadline(job.timeout_s):
            return _run(job, progress)
    except OutOfTime:
        reason = f"gave up after {job.timeout_s:g} s of wall time (--timeout)"
        return Row(job.name, "timed_out", GAVE_UP, reason, None, "", final=False)
    except TwoWallsError as error:
        return failed(job.name, error)
    except OSError as error:
        reason = f"{error.filename or 'file'}: {error.strerror or error}"
        return Row(job.name, "failed", 2, reason, None, "", final=False)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        return Row(job.name, "failed", 4, f"internal error at {place}: {type(error).__name__}: {error}", None, "")


def failed(name: str, error: TwoWallsError) -> Row:
    """The row of a scenario that ended with an error of twowalls."""
    return Row(name, _STATUS_OF.get(type(error), "failed"), error.exit_code, str(error), None, "")


def died(name: str) -> Row:
    """The row of a scenario whose process did not come back."""
    return Row(name, "failed", 4, "its process died (killed, or out of memory)", None, "", final=False)


def _run(job: Job, progress: Callable[[float, int], None] | None) -> Row:
    from sim.results import export
    from sim.results.assertions import verify
    from sim.results.console import render
    from sim.scenario import Scenario
    from sim.simulate import simulate

    with unpacked(job.scenario, job.attachments) as local:
        scenario = Scenario.from_dict(local.scenario, job.where)
        result = simulate(scenario, progress) if job.shards is None else _in_shards(scenario, job.shards)
        verified = verify(scenario.assertions, result)
        missed = [line.text for line in verified if not line.held]
        reason = ""
        if result.broken_laws:
            result.status, reason = "failed", "self-check broken: " + ", ".join(result.broken_laws)
        elif missed and result.status in ("done", "timed_out"):
            result.status, reason = "asserted", "does not hold: " + ", ".join(missed)
        elif result.status == "stuck":
            reason = result.notes[-1] if result.notes else "the clock cannot advance"
        files = _files(result, verified, job.plots) if job.outputs else {}
        row = Row(
            job.name,
            result.status,
            EXIT_CODES[result.status],
            reason,
            export.record(result, verified),
            render(result, verified),
            result.wall_seconds,
            files=files,
        )
        return replace(row, **local.original(record=row.record, answer=row.answer, reason=row.reason, files=row.files))


def _in_shards(scenario: Any, shards: int) -> Any:
    from sim.studies.shards import simulate_in_shards

    with open_workers(count=shards) as workers:
        return simulate_in_shards(scenario, workers, shards)


def _files(result: Any, verified: Any, plots: bool) -> dict[str, bytes]:
    """What a result folder holds, by file name."""
    from sim.results import export

    with tempfile.TemporaryDirectory(prefix="twowalls-") as folder:
        export.write(result, Path(folder), verified)
        if plots:
            from sim.results.plots import save_plots

            save_plots(result, Path(folder))
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def run_many(jobs: Iterable[Job], workers: Workers | int | None = None) -> Iterator[tuple[int, Row]]:
    """Run `jobs` in parallel and yield (index, row) as each is done; few are held at a time, however many there are.

    A worker process that dies (killed, out of host memory) takes only its own scenario with it: what was under way beside
    it is run again, each alone. After Ctrl-C what is already done is still yielded before KeyboardInterrupt goes on.

    Args:
        workers: an open executor, or the number of local processes; None: one a core.
    """
    if workers is None or isinstance(workers, int):
        with open_workers(count=workers) as opened:
            yield from run_many(jobs, opened)
        return
    waiting = enumerate(jobs)
    window: dict[Future[Row], tuple[int, Job]] = {}
    while True:
        try:
            while len(window) < workers.window and (entry := next(waiting, None)) is not None:
                window[_given(workers, entry[1])] = entry
            if not window:
                return
            wait(window, return_when=FIRST_COMPLETED)
        except KeyboardInterrupt:
            yield from _arrived(window)
            raise
        yield from _collect(window, workers)


def _given(workers: Workers, job: Job) -> Future[Row]:
    """The job's future; that of a pool found broken is broken too, so that there is one way to go on."""
    try:
        return workers.submit(run_one, job)
    except BrokenExecutor as error:
        future: Future[Row] = Future()
        future.set_exception(error)
        return future


def _arrived(window: dict[Future[Row], tuple[int, Job]]) -> Iterator[tuple[int, Row]]:
    """The rows of the window that are there already."""
    for future, (index, _) in window.items():
        if future.done() and not future.cancelled() and future.exception() is None:
            yield index, future.result()


def _collect(window: dict[Future[Row], tuple[int, Job]], workers: Workers) -> Iterator[tuple[int, Row]]:
    """Takes what is done out of the window; after the death of a worker, everything."""
    suspects: list[tuple[int, Job]] = []
    done = [future for future in window if future.done()]
    if any(isinstance(future.exception(), BrokenExecutor) for future in done if not future.cancelled()):
        wait(window)
        done = list(window)
    for future in done:
        index, job = window.pop(future)
        try:
            yield index, future.result()
        except BrokenExecutor:
            suspects.append((index, job))
        except CancelledError as error:
            raise InputError("--executor", f"lost the work it was given ({error})", "is the scheduler alive?") from None
        except Exception as error:
            if not workers.lost(error):
                raise
            yield index, died(job.name)
    for index, job in suspects:
        row = workers.alone(run_one, job)
        yield index, died(job.name) if row is None else row


def batch_exit_code(exit_codes: Iterable[int]) -> int:
    """0 unless a scenario ended with 1, 2 or 4, then the largest: what did not fit or was given up is a result too."""
    return max((code for code in exit_codes if code not in (3, GAVE_UP)), default=0)


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
SHOWN = 200
"""Rows of a comparison on the terminal: the ledger has them all."""


def cells(record: dict[str, Any] | None) -> list[str]:
    """The cells of one line of the comparison, after name and status."""
    values = [(record or {}).get(key) for key, _ in _COLUMNS.values()]
    forms = [form for _, form in _COLUMNS.values()]
    return ["-" if value is None else form.format(value) for value, form in zip(values, forms, strict=True)]


def comparison(lines: Sequence[tuple[str, str, str, list[str]]]) -> str:
    """A line for each scenario from its (name, status, reason, cells), and under the table why some are not done."""
    shown = [[name, status, *row] for name, status, _, row in lines[:SHOWN]]
    text = table(["scenario", "status", *_COLUMNS], shown)
    reasons = [f"{name}: {reason}" for name, _, reason, _ in lines[:SHOWN] if reason]
    more = [f"... and {len(lines) - SHOWN:,} more, all in the ledger"] if len(lines) > SHOWN else []
    return "\n".join([text, *more, *(["", *reasons] if reasons else [])])
