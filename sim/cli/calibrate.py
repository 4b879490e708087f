"""The commands calibrate kernels, collectives and engine: constants of the cost models from measurements."""

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

calibrate_app = typer.Typer(help="Fit the constants of the cost models to measurements.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    calibrate_app.command("kernels")(calibrate_kernels)
    calibrate_app.command("collectives")(calibrate_collectives)
    calibrate_app.command("engine")(calibrate_engine)
    app.add_typer(calibrate_app, name="calibrate")


def calibrate_kernels(
    folder: Annotated[
        str | None, typer.Argument(metavar="[DIR]", help="Folder of measured kernel tables; else those installed.")
    ] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="One GPU; all that were measured if not given.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Put the fitted constants into the GPU files.")] = False,
    without: Annotated[
        bool, typer.Option("--leave-one-out", help="Foretell each GPU's kernels from the other GPUs' instead.")
    ] = False,
    out: Out = None,
    json: Json = False,
) -> None:
    """Fit the kernel roofline to measured tables and print the error of each fit."""
    from sim.cost.measured_tables import tables_root
    from sim.hardware.gpu import gpu_name
    from sim.results.console import table
    from sim.studies.calibrate_kernels import run

    folder = folder or str(tables_root("DIR"))
    gpu = gpu and gpu_name(gpu, "--gpu")
    if out is not None:
        _write_kernel_factors(folder, gpu, out, json)
        return
    if without:
        _print_left_out(folder, json)
        return

    rows = run(folder, gpu, write)
    if json:
        print_json({"errors": [asdict(row) for row in rows]})
        return
    header = ["GPU", "kernel", "dtype", "rows", "n", "mean abs", "median abs", "bias", "p90 abs"]
    lines = [
        [row.gpu, row.kind, row.dtype, row.rows_of, f"{row.n:,}"]
        + [f"{error:.1%}" for error in (row.mape, row.median_abs_error, row.bias, row.p90_abs_error)]
        for row in rows
    ]
    print(table(header, lines))


def _write_kernel_factors(folder: str, gpu: str | None, out: Path, json: bool) -> None:
    """Instead of fitting anew: how much longer the tables' kernels took than the catalogue's constants say."""
    from sim.results.console import table
    from sim.studies.calibration_file import factor, fitted_to, write_calibration
    from sim.studies.kernel_factors import kernel_factors

    rows = kernel_factors(folder, gpu)
    kernels: dict[str, dict[str, dict[str, object]]] = {}
    for row in rows:
        kernels.setdefault(row.gpu, {}).setdefault(row.kind, {})[row.dtype] = factor(row.factor, row.interval)
    write_calibration(out, fitted_to(Path(folder), "measured kernel tables"), kernels=kernels)
    if json:
        print_json({"factors": [asdict(row) for row in rows]})
        return
    header = ["GPU", "kernel", "dtype", "n", "factor", "95 % interval", "mean abs before", "after"]
    lines = []
    for row in rows:
        interval, errors = "[{:.3f}, {:.3f}]".format(*row.interval), (f"{row.before:.1%}", f"{row.after:.1%}")
        lines.append([row.gpu, row.kind, row.dtype, f"{row.n:,}", f"{row.factor:.3f}", interval, *errors])
    print(table(header, lines))


def _print_left_out(folder: str, json: bool) -> None:
    from sim.results.console import table
    from sim.studies.leave_one_out import by_gpu, leave_one_out

    rows = leave_one_out(folder)
    gpus = by_gpu(rows)
    if json:
        left_out, of_gpus = ([asdict(row) | {"ratio": row.ratio} for row in found] for found in (rows, gpus))
        print_json({"left_out": left_out, "by_gpu": of_gpus})
        return
    header = ["GPU", "kernel", "dtype", "own fit", "left out", "ratio", "bias", "foretold from"]
    lines = [
        [
            row.gpu,
            row.kind,
            row.dtype,
            f"{row.own:.1%}",
            f"{row.left_out:.1%}",
            f"{row.ratio:.2f}",
            f"{row.bias:+.1%}",
            ", ".join(row.relatives) + ("" if row.same_software else " (other software)"),
        ]
        for row in rows
    ]
    print(table(header, lines))
    print("\nMeans over the kernels of a GPU that another GPU ran the same software for")
    means = [
        [
            one.gpu,
            str(one.kernels),
            f"{one.own:.1%}",
            f"{one.left_out:.1%}",
            f"{one.ratio:.2f}",
            str(one.other_software),
        ]
        for one in gpus
    ]
    print(table(["GPU", "kernels", "own fit", "left out", "ratio", "of other software"], means))


def calibrate_collectives(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Output of nccl-tests, such as all_reduce_perf.")],
    topology: Annotated[str, typer.Option("--topology", help="A shipped topology's name, or a YAML file.")],
    kind: Annotated[str, typer.Option("--kind", help="The kind of link to fit, as the topology names it.")],
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="Nodes of the measured group.")] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Fit latency and efficiency of one kind of link to an nccl-tests run; prints lines for the topology file."""
    from sim.hardware.placement import place
    from sim.hardware.topology import load_topology
    from sim.studies.calibrate_collectives import calibrate, read_nccl_tests

    test = read_nccl_tests(file.read_text(encoding="utf-8", errors="replace"), str(file))
    cluster = load_topology(topology, {} if nodes is None else {"nodes": nodes})
    # a rank a node, the usual test of a network, or whole nodes
    group = place(cluster, test.ranks, 1, 1, "spread" if test.ranks <= (nodes or 1) else "pack")[0][0]
    fit = calibrate(cluster, group, test.op, test.sizes_bytes, test.times_s, kind, f"nccl-tests: {file.name}")
    if out is not None:
        from sim.studies.calibration_file import fitted_to, write_calibration

        source = fitted_to(file, f"nccl-tests {test.op} among {test.ranks} GPUs")
        write_calibration(out, source, links={kind: fit.spec().model_dump()})
    if json:
        print_json(asdict(fit) | {"median_abs_error": fit.median_abs_error, "p90_abs_error": fit.p90_abs_error})
        return
    print(fit.yaml(), end="")
    print(f"# {len(fit.sizes_bytes)} sizes: median error {fit.median_abs_error:.1%}, P90 {fit.p90_abs_error:.1%}")


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
