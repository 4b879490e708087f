"""`twowalls run`: one scenario with its whole answer, or many with one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sim.cli.options import Json, Overrides, load_each, print_json, read_overrides, say
from sim.errors import InputError, TwoWallsError

if TYPE_CHECKING:
    from sim.studies.batch import Job, Row

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
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Processes at a time; all cores if not given.")]


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
) -> None:
    """Simulate scenarios: does it fit, how fast is a token, which wall.

    Exit code: 0 done, 1 an assertion failed, 2 the input is wrong, 3 it does not fit or ran out of memory, 4 a self-check
    failed, 130 interrupted. Of several scenarios: the largest of 1, 2 and 4, else 0.
    """
    overrides = read_overrides(settings)
    if granularity is not None:
        overrides["granularity"] = granularity
    loaded = load_each(scenarios, overrides)
    if len(loaded) == 1:
        scenario = loaded[0][1]
        if isinstance(scenario, TwoWallsError):
            raise scenario
        folder = out if out is not None else Path() if plots else None
        raise typer.Exit(_run_alone(_job(scenario, folder, plots), scenario.workload.num_requests, json))
    raise typer.Exit(_run_batch(loaded, out, plots, jobs, json))


def _job(scenario: Any, out: Path | None, plots: bool) -> Job:
    from sim.studies.batch import Job

    return Job(scenario.to_dict(), scenario.where, None if out is None else str(out), plots)


def _run_alone(job: Job, num_requests: int | None, json: bool) -> int:
    from sim.progress import ProgressLine
    from sim.studies.batch import run_one

    with ProgressLine(job.name, num_requests) as progress:
        row = run_one(job, progress)
    if json and row.exit_code != 2:
        print_json(_record(row, job.scenario))
    elif row.answer:
        print(row.answer)
    if row.reason:
        say(f"{row.status}: {row.reason}")
    return row.exit_code


def _record(row: Row, scenario: dict[str, Any] | None) -> dict[str, Any]:
    """What `--json` prints of a scenario, also of one that gave no result: nothing measured is null, never zero."""
    from sim import __version__

    if row.record is not None:
        return row.record | ({"reason": row.reason} if row.reason else {})
    return {
        "status": row.status,
        "reason": row.reason,
        "events": 0,
        "preemptions": 0,
        "walls_ms_per_token": {},
        "self_checks": [],
        "simulated_seconds": 0.0,
        "wall_seconds": None,
        "scenario": scenario if scenario is not None else {"name": row.name},
        "seed": None if scenario is None else scenario["workload"]["seed"],
        "simulator_version": __version__,
    }


def _run_batch(loaded: list[tuple[str, Any]], out: Path | None, plots: bool, workers: int | None, json: bool) -> int:
    from sim.progress import ProgressLine
    from sim.studies.batch import batch_exit_code, comparison, failed, run_many

    if plots and out is None:
        raise InputError("--plots", "of several scenarios needs a folder", "add --out DIR")
    rows: dict[int, Row] = {}
    places: list[int] = []
    batch: list[Job] = []
    names: set[str] = set()
    for index, (name, scenario) in enumerate(loaded):
        if isinstance(scenario, TwoWallsError):
            rows[index] = failed(name, scenario)
            continue
        places.append(index)
        batch.append(_job(scenario, None if out is None else out / _unused(scenario.name, names), plots))
    interrupted = False
    with ProgressLine("scenarios", len(loaded), "scenarios") as progress:
        try:
            for place, row in run_many(batch, workers):
                rows[places[place]] = row
                progress(0.0, len(rows))
        except KeyboardInterrupt:
            interrupted = True
    finished = [rows[index] for index in sorted(rows)]
    if json:
        scenarios = dict(zip(places, (job.scenario for job in batch), strict=True))
        print_json([_record(rows[index], scenarios.get(index)) for index in sorted(rows)])
    else:
        print(comparison(finished))
    if interrupted:
        say(f"interrupted: {len(loaded) - len(rows)} of {len(loaded)} scenarios did not finish")
        return 130
    return batch_exit_code(finished)


def _unused(name: str, names: set[str]) -> str:
    """A folder name for a scenario that no other of the batch has."""
    clean = "".join(letter if letter.isalnum() or letter in "-_.=" else "_" for letter in name)
    unused, number = clean, 1
    while unused in names:
        number += 1
        unused = f"{clean}-{number}"
    names.add(unused)
    return unused
