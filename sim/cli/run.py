"""`twowalls run`: one scenario with its whole answer, or many with one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sim.cli.confidence import ErrorBars, SeedsOption, UncertaintyOption, error_bars
from sim.cli.options import (
    Jobs,
    Json,
    Overrides,
    folder_to_fill,
    load_each,
    print_json,
    print_json_list,
    read_overrides,
    say,
)
from sim.errors import InputError, TwoWallsError
from sim.units import parse

if TYPE_CHECKING:
    from sim.scenario import Scenario
    from sim.studies.batch import Job
    from sim.studies.study import Case, Study

Scenarios = Annotated[
    list[str],
    typer.Argument(metavar="SCENARIO...", help="Scenario files, folders of them, or names of shipped scenarios."),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Write summary.json and the records as parquet there.")
]
Plots = Annotated[bool, typer.Option("--plots", help="Write figures too (into --out, or the current folder).")]
Granularity = Annotated[
    Literal["leap", "step", "layer"] | None, typer.Option("--granularity", help="Instead of the scenario's own.")
]
Timeout = Annotated[
    str | None, typer.Option("--timeout", metavar="TIME", help="Wall time after which a scenario is given up: 30 s.")
]
ExecutorOption = Annotated[
    str | None, typer.Option("--executor", metavar="WHERE", help="local, or dask://HOST:PORT of a running scheduler.")
]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Take over what is finished in the results folder.")]
Shards = Annotated[
    int | None,
    typer.Option("--shards", min=1, help="Spread the replicas of one big scenario over so many processes."),
]
LedgerOnly = Annotated[
    bool, typer.Option("--ledger-only", help="Of several scenarios: no folder for each, the ledger alone.")
]
RESULTS = Path("twowalls-results")
"""Where several scenarios leave their results unless told otherwise: without a folder nothing could be resumed."""


def register(app: typer.Typer) -> None:
    app.command()(run)


def run(
    scenarios: Scenarios,
    json: Json = False,
    out: Out = None,
    plots: Plots = False,
    granularity: Granularity = None,
    settings: Overrides = None,
    jobs: Jobs = None,
    timeout: Timeout = None,
    executor: ExecutorOption = None,
    resume: Resume = True,
    ledger_only: LedgerOnly = False,
    shards: Shards = None,
    seeds: SeedsOption = 1,
    uncertainty: UncertaintyOption = False,
) -> None:
    """Simulate scenarios: does it fit, how fast is a token, which wall.

    Several scenarios run in parallel and leave their results and a ledger of all in one folder (--out, or
    twowalls-results); the same command again runs only what is missing there.

    Exit code: 0 done, 1 an assertion failed, 2 the input is wrong, 3 it does not fit or ran out of memory, 4 a self-check
    failed, 130 interrupted. Of several scenarios: the largest of 1, 2 and 4, else 0.
    """
    overrides = read_overrides(settings)
    if granularity is not None:
        overrides["granularity"] = granularity
    loaded = load_each(scenarios, overrides)
    timeout_s = wall_time_s(timeout)
    if len(loaded) == 1 and executor is None:
        scenario = loaded[0][1]
        if isinstance(scenario, TwoWallsError):
            raise scenario
        folder = folder_to_fill(out, "--out") if out is not None else Path() if plots else None
        bars = error_bars(scenario, seeds, uncertainty, jobs)
        job = _job(scenario, folder is not None, plots, timeout_s, shards)
        raise typer.Exit(_run_alone(job, folder, scenario.workload.num_requests, json, bars))
    if seeds > 1 or uncertainty:
        where = "--seeds" if seeds > 1 else "--uncertainty"
        raise InputError(where, "is for one scenario on this machine", "name one, or use sweep --seeds")
    if shards is not None:
        raise InputError("--shards", "got several scenarios", "they run in parallel anyway (--jobs)")
    if ledger_only and plots:
        raise InputError("--plots", "got --ledger-only with it", "leave one of the two out")
    options = {"outputs": not ledger_only, "plots": plots, "timeout_s": timeout_s}
    with open_study(out, resume) as study:
        raise typer.Exit(_run_batch(study, loaded, executor, jobs, json, options))


def wall_time_s(timeout: str | None) -> float | None:
    """`--timeout` in seconds; None: no limit."""
    limit_s = None if timeout is None else parse(timeout, "s", "--timeout")
    if limit_s is not None and limit_s <= 0:
        raise InputError("--timeout", f"got '{timeout}'", "write a time longer than zero, such as 30 s")
    return limit_s


def _job(scenario: Any, outputs: bool, plots: bool, timeout_s: float | None, shards: int | None) -> Job:
    from sim.studies.batch import Job

    return Job(scenario.to_dict(), scenario.where, outputs, plots, timeout_s, shards)


def _run_alone(job: Job, folder: Path | None, num_requests: int | None, json: bool, bars: ErrorBars) -> int:
    from sim.progress import ProgressLine
    from sim.studies.batch import run_one

    with ProgressLine(job.name, num_requests) as progress:
        row = run_one(job, progress)
    if folder is not None and row.files:
        row.write(folder)
        bars.write(folder)
    if json and row.exit_code != 2:
        print_json(_record(asdict(row), job.scenario) | bars.record)
    elif row.answer:
        print("\n\n".join([row.answer, *bars.lines]))
    elif row.status == "infeasible":
        from sim.results.console import refusal

        print(refusal(job.scenario, row.reason.removeprefix(f"{job.where}: ")))
        say(f"{row.status}: does not fit")
    if row.reason and (json or row.status != "infeasible"):
        say(f"{row.status}: {row.reason}")
    return row.exit_code


def open_study(out: Path | None, resume: bool = True) -> Study:
    """The results folder of a study, which says where it is unless the user has."""
    from sim.studies.study import Study

    if out is None:
        say(f"results in {RESULTS}")
    return Study(folder_to_fill(out or RESULTS, "--out"), resume)


@contextmanager
def resumable() -> Iterator[None]:
    """What Ctrl-C ends in the block can be taken up again: what had finished is in the journal."""
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted: the same command goes on")
        raise typer.Exit(130) from None


def _record(entry: Mapping[str, Any], scenario: dict[str, Any] | None) -> dict[str, Any]:
    """What `--json` prints of a scenario, also of one that gave no result: nothing measured is null, never zero."""
    from sim import __version__

    reason, record = entry["reason"], entry["record"]
    if record is not None:
        date = datetime.now().strftime("%Y%m%d-%H%M%S")  # first of vLLM's keys
        return {"date": date, **record, "wall_seconds": entry["wall_seconds"], **({"reason": reason} if reason else {})}
    return {
        "status": entry["status"],
        "reason": reason,
        "events": 0,
        "preemptions": 0,
        "walls_ms_per_token": {},
        "self_checks": [],
        "simulated_seconds": 0.0,
        "wall_seconds": None,
        "scenario": scenario if scenario is not None else {"name": entry["name"]},
        "seed": None if scenario is None else scenario["workload"]["seed"],
        "simulator_version": __version__,
    }


def _run_batch(
    study: Study,
    loaded: list[tuple[str, Scenario | TwoWallsError]],
    executor: str | None,
    workers: int | None,
    json: bool,
    options: Mapping[str, Any],
) -> int:
    from sim.studies.batch import batch_exit_code
    from sim.studies.study import Case

    cases = [Case.of(name, found) for name, found in loaded]
    loaded.clear()  # ten thousand validated scenarios take more room than all that follows
    interrupted = run_cases(study, cases, executor, workers, options)
    if json:
        print_json_list(_record(entry, entry["scenario"]) for entry in study.entries())
    else:
        print(study_table(study))
    if interrupted:
        say(f"interrupted: {study.unfinished} of {len(study.cases)} scenarios did not finish; the same command goes on")
        return 130
    return batch_exit_code(entry["exit_code"] for entry in study.entries())


def run_cases(
    study: Study, cases: Sequence[Case], executor: str | None, workers: int | None, options: Mapping[str, Any]
) -> bool:
    """Run what a study lacks, with one progress line; returns whether Ctrl-C came in between."""
    from sim.progress import ProgressLine
    from sim.studies.executor import open_workers

    with ProgressLine("scenarios", len(cases), "scenarios") as progress:
        try:
            with open_workers(executor, workers) as opened:
                study.run(cases, opened, lambda over, running: progress(0.0, over, f", {running} running"), **options)
        except KeyboardInterrupt:
            return True
    return False


def study_table(study: Study) -> str:
    """The comparison of all scenarios of a study."""
    from sim.studies.batch import cells, comparison

    return comparison([(e["name"], e["status"], e["reason"], cells(e["record"])) for e in study.entries()])
