"""The command calibrate engine: from published measurements, or from one benchmark run of a user's own server."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sim.cli.options import Json, load_one, print_json
from sim.errors import InputError, nearest

Out = Annotated[
    Path | None, typer.Option("--out", metavar="YAML", help="Write a calibration file for scenarios to name.")
]


def calibrate_engine(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="JSON of vllm bench serve, AIPerf, GuideLLM or inference-perf; or CSV in the format of validate.",
        ),
    ],
    scenario: Annotated[
        str | None, typer.Option("--scenario", metavar="SCENARIO", help="Of a JSON: the scenario that repeats its run.")
    ] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="Of a CSV: which preset to fit, such as vllm.")] = None,
    parameters: Annotated[
        str | None, typer.Option("--parameters", metavar="NAMES", help="Times of the preset, separated by commas.")
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Of a CSV: benchmark runs to use at most.")] = 100,
    leave_out: Annotated[
        str | None, typer.Option("--leave-out", help="Of a CSV: predict each source, model or gpu from the others too.")
    ] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Fit an engine's own times to measurements; prints them with the errors before and after."""
    names = tuple(parameters.split(",")) if parameters else None
    if scenario is not None or path.suffix == ".json":
        _from_benchmark(path, scenario, engine, names, out, json)
    else:
        _from_rows(path, engine, names, runs, leave_out, out, json)


def _from_benchmark(
    path: Path, scenario: str | None, engine: str | None, names: tuple[str, ...] | None, out: Path | None, json: bool
) -> None:
    from sim.studies.benchmark_files import read_benchmark
    from sim.studies.calibrate_server import PARAMETERS, calibrate_server
    from sim.studies.calibration_file import factor, fitted_to, write_calibration

    if scenario is None:
        hint = "give --scenario FILE: the server and the requests of that run"
        raise InputError(str(path), "is a benchmark's result, which does not say what ran", hint)
    measured, repeated = read_benchmark(path), load_one(scenario)
    if engine is not None and engine != repeated.engine.preset:
        raise InputError("--engine", f"got '{engine}' with a scenario of {repeated.engine.preset}", "leave it out")
    fit = calibrate_server(repeated, measured, names or PARAMETERS)
    if out is not None:
        factors = {name: factor(value, fit.intervals[name]) for name, value in fit.factors.items()}
        write_calibration(
            out,
            fitted_to(path, measured.tool),
            engine={"preset": fit.engine, "log_std": float(f"{fit.log_std:.3g}"), **factors},
        )
    if json:
        errors = {
            when: [{"latency": a, "statistic": b, "error": error} for (a, b), error in getattr(fit, when).items()]
            for when in ("before", "after")
        }
        kept = {"engine": fit.engine, "factors": fit.factors, "intervals": fit.intervals, "log_std": fit.log_std}
        print_json({**kept, "undetermined": list(fit.undetermined), **errors})
    else:
        print(fit.text())


def _from_rows(
    path: Path, engine: str | None, names: tuple[str, ...] | None, runs: int, leave_out: str | None, out: Path | None,
    json: bool,
) -> None:  # fmt: skip
    from sim.cost.preset import PRESETS
    from sim.studies import calibrate_engine as study
    from sim.studies.calibration_file import factor, fitted_to, write_calibration

    engines = [name for name, preset in PRESETS.items() if not preset.ideal]
    if engine not in engines:
        raise InputError("--engine", f"got '{engine}'" if engine else "is missing", nearest(engine or "", engines))
    keys = {"source": lambda row: row.source, "model": lambda row: row.model, "gpu": lambda row: row.gpu}
    if leave_out is not None and leave_out not in keys:
        raise InputError("--leave-out", f"got '{leave_out}'", nearest(leave_out, keys))
    fit = study.calibrate_engine(path, engine, names or study.PARAMETERS, keys[leave_out] if leave_out else None, runs)
    if out is not None:
        usual = {name: getattr(PRESETS[engine], name) for name in fit.values}
        factors = {
            name.removesuffix("_s"): factor(value / usual[name])
            for name, value in fit.values.items()
            if usual[name] and name.endswith("_s")
        }
        write_calibration(out, fitted_to(path, f"{fit.rows} rows of {engine}"), engine={"preset": engine, **factors})
    if json:
        print_json(asdict(fit))
    else:
        print(fit.text())
