"""`twowalls sweep`, `capacity` and `plan`: questions that need many runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from sim.cli.options import Jobs, Json, Overrides, ScenarioArgument, load_one, print_json, say
from sim.cli.run import ExecutorOption, Resume, Timeout, open_study, resumable, run_cases, wall_time_s
from sim.errors import InputError

Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Results folder: ledger, figures, resumable.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Runs of each point, each with another seed.")]
AxisOptions = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="PATH=V1,V2,...", help="An axis: a list, 1..256*2 or 1..9+2. Give it again for more."
    ),
]
Zip = Annotated[bool, typer.Option("--zip", help="Values of equal place together, instead of every combination.")]
PlotMetric = Annotated[
    list[str] | None,
    typer.Option("--plot", metavar="METRIC", help="Draw it along the axes: ttft.p99, output_throughput."),
]
Slo = Annotated[
    list[str] | None,
    typer.Option("--slo", metavar="LIMIT", help="ttft.p99=2s, tpot.p99=50ms, goodput=95%; all must hold."),
]
Tolerance = Annotated[
    float, typer.Option("--tolerance", min=0.001, max=1.0, help="Width of the final bracket, as a share of the load.")
]
Plot = Annotated[bool, typer.Option("--plot", help="Draw the saturation knee into the results folder.")]
Model = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="A model by name, or the path of its config.json.")
]
Workload = Annotated[
    str,
    typer.Option(
        "--workload", metavar="KIND", help="chat, code, reasoning, summary, or a scenario file to take it from."
    ),
]
Gpus = Annotated[
    str | None, typer.Option("--gpus", metavar="A,B", help="Kinds of GPUs; all that have a price if not given.")
]
MaxGpus = Annotated[int, typer.Option("--max-gpus", min=1, max=16, help="GPUs of one replica at most.")]
Precisions = Annotated[
    str, typer.Option("--precisions", metavar="A,B", help="Formats of the weights that are good enough for you.")
]
PricesFile = Annotated[
    Path | None, typer.Option("--prices", metavar="FILE", help="Your own prices, as sim/hardware/prices.yaml.")
]
Rate = Annotated[
    float | None, typer.Option("--rate", metavar="REQ/S", help="What all replicas together have to carry.")
]
Pareto = Annotated[bool, typer.Option("--pareto", help="Draw tokens/s a user against tokens/s a GPU.")]


def register(app: typer.Typer) -> None:
    app.command()(sweep)
    app.command()(capacity)
    app.command()(plan)


def sweep(
    base: ScenarioArgument,
    settings: AxisOptions,
    zipped: Zip = False,
    seeds: Seeds = 1,
    plot: PlotMetric = None,
    pareto: Pareto = False,
    out: Out = None,
    json: Json = False,
    jobs: Jobs = None,
    timeout: Timeout = None,
    executor: ExecutorOption = None,
    resume: Resume = True,
) -> None:
    """Run a scenario over a grid of values, and say which points no other beats."""
    from sim.studies.sweep import Axis, grid, metric_key, points, sweep_table

    axes = [Axis.parse(text) for text in settings]
    metrics = [metric_key(name) for name in plot or ()]
    cells = grid(load_one(base), axes, zipped=zipped, seeds=seeds)
    cases = [case for cell in cells for case in cell.cases]
    options: dict[str, Any] = {"timeout_s": wall_time_s(timeout)}
    with open_study(out, resume) as study:
        interrupted = run_cases(study, cases, executor, jobs, options)
        found = points(cells, study, metrics)
        if json:
            print_json(_sweep_record(axes, found))
        else:
            print(sweep_table(axes, found, metrics))
        if metrics or pareto:
            from sim.studies.sweep_plot import save_sweep_plots

            for path in save_sweep_plots(axes, found, metrics, pareto, study.folder):
                say(f"wrote {path}")
        if interrupted:
            say(f"interrupted: {study.unfinished} of {len(cases)} runs did not finish; the same command goes on")
            raise typer.Exit(130)
        if not any(point.done for point in found):
            raise InputError("sweep", "no point gave a result", found[0].reason if found else "")


def _sweep_record(axes: Any, found: Any) -> dict[str, Any]:
    from sim.studies.estimate import METHOD
    from sim.studies.sweep import pareto

    return {
        "axes": [{"path": axis.path, "values": list(axis.values)} for axis in axes],
        "intervals": METHOD,
        "points": [point.to_dict() for point in found],
        "pareto": [point.values for point in pareto(found)],
    }


def capacity(
    scenario: ScenarioArgument,
    slo: Slo = None,
    seeds: Seeds = 3,
    tolerance: Tolerance = 0.02,
    settings: Overrides = None,
    plot: Plot = False,
    out: Out = None,
    json: Json = False,
    jobs: Jobs = None,
    executor: ExecutorOption = None,
    resume: Resume = True,
) -> None:
    """Find the highest request rate or concurrency that keeps the SLO, by bisection with several seeds."""
    from sim.progress import ProgressLine
    from sim.studies.batch import batch_exit_code
    from sim.studies.capacity import capacity as find
    from sim.studies.capacity import capacity_text
    from sim.studies.executor import open_workers
    from sim.studies.objective import objectives

    loaded = load_one(scenario, settings)
    wanted = objectives(slo, loaded.slo)
    with resumable(), open_study(out, resume) as study:
        with ProgressLine("capacity", None, "runs") as progress, open_workers(executor, jobs) as workers:
            found = find(
                loaded, wanted, study, workers, seeds=seeds, tolerance=tolerance, told=lambda runs: progress(0.0, runs)
            )
        codes = [entry["exit_code"] for entry in study.entries()]
        if found.failed and not json:
            say(f"error: {found.reason.partition(': ')[2]}")
            raise typer.Exit(batch_exit_code(codes))
        if json:
            print_json(found.to_dict())
        else:
            print(capacity_text(found))
        if plot:
            from sim.studies.knee_plot import knee_figure

            knee_figure(found).savefig(study.folder / "knee.png", dpi=130)
            say(f"wrote {study.folder / 'knee.png'}")
    if found.failed:
        raise typer.Exit(batch_exit_code(codes))
    if found.reason.startswith(("infeasible", "oom")):
        raise typer.Exit(3)


def plan(
    model: Model,
    workload: Workload,
    slo: Slo = None,
    gpus: Gpus = None,
    prices: PricesFile = None,
    rate: Rate = None,
    max_gpus: MaxGpus = 8,
    precisions: Precisions = "bf16,fp8,int4",
    out: Out = None,
    json: Json = False,
    jobs: Jobs = None,
    executor: ExecutorOption = None,
    resume: Resume = True,
) -> None:
    """Find which GPUs, how many, cut how and in which precision serve a workload within its SLO at the least cost."""
    if rate is not None and not 0 < rate < math.inf:
        raise InputError("--rate", f"got {rate:g}", "requests a second: a number greater than zero")
    from sim.progress import ProgressLine
    from sim.studies.executor import open_workers
    from sim.studies.objective import objectives
    from sim.studies.plan import USUAL_SLO, Question
    from sim.studies.plan import plan as find
    from sim.studies.plan_candidates import known_precisions
    from sim.studies.plan_words import plan_rows, plan_text, write_plan
    from sim.studies.plan_workload import limits_of, plan_base
    from sim.studies.prices import SHIPPED, load_prices

    offered = load_prices(prices or SHIPPED)
    offers = offered.chosen(None if gpus is None else [name.strip() for name in gpus.split(",")])
    base = plan_base(model, workload)
    wanted = objectives(slo, limits_of(base), USUAL_SLO)
    question = Question(base, wanted, offers, max_gpus, known_precisions(precisions))
    with resumable(), open_study(out, resume) as study:
        with ProgressLine("plan", None, "runs") as progress, open_workers(executor, jobs) as workers:
            choices = find(question, study, workers, lambda stage, runs: progress(0.0, runs, f", {stage}"))
        write_plan(choices, study.folder)
        if json:
            print_json({"prices": {"date": offered.date, "source": offered.source}, "candidates": plan_rows(choices)})
        else:
            print(plan_text(choices, offered, rate))
        say(f"scenarios and candidates.csv in {study.folder}")
    if not any(choice.cost for choice in choices):
        raise typer.Exit(3)
