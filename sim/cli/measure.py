"""Commands that hold the models against measurements: calibrate, validate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.calibrate import Out, calibrate_engine
from sim.cli.options import Json, print_json
from sim.cli.validate import validate

if TYPE_CHECKING:
    from sim.studies.validate_collectives import CollectiveRow

calibrate_app = typer.Typer(help="Fit the constants of the cost models to measurements.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    calibrate_app.command("kernels")(calibrate_kernels)
    calibrate_app.command("collectives")(calibrate_collectives)
    calibrate_app.command("engine")(calibrate_engine)
    app.add_typer(calibrate_app, name="calibrate")
    app.command("validate")(validate)


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


def validate_collectives(folder: Path, measured: Path | None = None, json: bool = False) -> None:
    """Predicted collectives beside measured ones: error by system, software and operation."""
    from sim.studies.validate_collectives import grouped_errors, published_rows, table_rows

    beside = folder.parent / "measured.csv"
    rows = table_rows(folder)
    published = measured or (beside if beside.is_file() else None)
    other = published_rows(published) if published is not None else []
    if json:
        groups = {"groups": grouped_errors(rows), "published": grouped_errors(other)}
        print_json({name: [asdict(group) for group in found] for name, found in groups.items()})
        return
    print(_error_table(rows))
    if other:
        print("\nOther software, versions and fabrics, not fitted")
        print(_error_table(other))
        print("\nPoint by point, us: measured (predicted)")
        print(_points(other))


def _points(rows: Sequence[CollectiveRow]) -> str:
    """Measured and predicted microseconds by size, a paragraph for a group of GPUs."""
    from sim.units import format_bytes

    groups: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: (row.source, row.system, row.op, row.nodes, row.gpus, row.size_bytes)):
        nodes = f" in {row.nodes} nodes" if row.nodes > 1 else ""
        name = f"{row.op} among {row.gpus} {row.system}{nodes} ({row.source})"
        size = format_bytes(row.size_bytes, binary=True)
        groups.setdefault(name, []).append(f"{size} {1e6 * row.measured_s:.0f} ({1e6 * row.predicted_s:.0f})")
    return "\n".join(f"{name}\n  {', '.join(points)}" for name, points in groups.items())


def _error_table(rows: Sequence[CollectiveRow]) -> str:
    from sim.results.console import table
    from sim.studies.validate_collectives import grouped_errors

    header = ["system, software, operation", "n", "median abs", "mean abs", "bias", "p90 abs", "within 25 %"]
    return table(
        header,
        [
            [group.group, f"{group.n:,}"]
            + [
                f"{share:.1%}"
                for share in (
                    group.median_abs_error, group.mean_abs_error, group.bias, group.p90_abs_error, group.within_25_percent,
                )
            ]
            for group in [*grouped_errors(rows), *grouped_errors(rows, lambda row: "all")]
        ],
    )  # fmt: skip
