"""The command validate: predictions beside published measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.options import Json, file_to_write, picture, print_json, say
from sim.errors import InputError, nearest

if TYPE_CHECKING:
    from sim.studies.validate import RowResult
    from sim.studies.validate_collectives import CollectiveRow
    from sim.studies.validate_report import Group

WORST_ROWS = 10
COLLECTIVES = Path("collectives")
KERNELS = Path("../shared/data/kernels")
"""Where the tables lie beside a checkout; the published points lie beside them."""


def register(app: typer.Typer) -> None:
    app.command()(validate)


def validate(
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Measurements as CSV; or `collectives` and a folder."),
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="Of measured collective tables; by default ../shared/data/kernels."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="CSV", help="Write every row with its prediction.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw predicted against measured.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes to simulate with.")] = 2,
    measured: Annotated[
        Path | None, typer.Option("--measured", metavar="CSV", help="Of collectives: published points shown beside.")
    ] = None,
    costs: Annotated[
        str, typer.Option("--costs", metavar="BACKEND", help="Kernels of the end-to-end rows: roofline or measured.")
    ] = "roofline",
    json: Json = False,
) -> None:
    """Simulate every published measurement of a file as it was made, and print the errors by group."""
    tables = path if path.is_dir() else folder
    if tables is not None or path == COLLECTIVES:
        for option, given in (("--out", out), ("--plot", plot)):
            if given is not None:
                raise InputError(option, "collectives are printed only", "leave it out, or take --json")
        _validate_collectives(tables or KERNELS, measured, json)
        return
    from sim.studies.validate import validate as validate_file
    from sim.studies.validate import write_rows

    backends = ("roofline", "measured")
    if costs not in backends:
        raise InputError("--costs", f"got '{costs}'", nearest(costs, backends))
    table = None if out is None else file_to_write(out, "--out")
    drawing = None if plot is None else picture(plot, "--plot")
    rows = validate_file(path, workers, _progress, costs)
    if table is not None:
        write_rows(rows, table)
    if drawing is not None:
        _draw(rows, drawing)
    _print_rows(rows, json)


def _draw(rows: Sequence[RowResult], path: Path) -> None:
    from sim.studies import validate_report

    figure = validate_report.figure(rows)
    if figure is None:
        say(f"--plot: no row tells of {', '.join(validate_report.PANELS)}, so {path} was not drawn")
    else:
        figure.savefig(path)


def _print_rows(rows: Sequence[RowResult], json: bool) -> None:
    from sim.studies import validate_report
    from sim.studies.validate import SKIPPED

    groups = validate_report.groups(rows)
    skipped = [{"id": row.id, "reason": row.reason} for row in rows if row.status == SKIPPED]
    simulated = len(rows) - len(skipped)
    if json:
        print_json({"groups": [asdict(g) for g in groups], "simulated": simulated, "skipped": len(skipped)})
        return
    print(group_table(groups))
    print(f"\n{simulated} of {len(rows)} rows predicted" + (f"; {len(skipped)} not:" if skipped else ""))
    for reason, count in validate_report.skipped(rows).items():
        print(f"  {count:5d}  {reason}")
    _print_worst(rows)


def group_table(groups: Sequence[Group]) -> str:
    """The errors of every group, for people."""
    from sim.results.console import table

    header = ["group", "metric", "n", "median abs", "mean abs", "bias", "p90 abs", "coverage"]
    lines = [
        [group.group, group.metric, f"{group.n:,}"]
        + [f"{x:.1%}" for x in (group.median_abs_error, group.mean_abs_error, group.bias, group.p90_abs_error)]
        + [f"{group.coverage:.0%}"]
        for group in groups
    ]
    return table(header, lines)


def _print_worst(rows: Sequence[RowResult]) -> None:
    from sim.studies.validate_report import likely_reason, worst

    found = worst(rows, WORST_ROWS)
    if found:
        print("\nWorst rows, and where to look first")
    for row in found:
        print(
            f"  {row.id} {row.metric}: measured {row.measured:.4g}, predicted {row.predicted:.4g} {row.unit} "
            f"({row.engine}, {row.model}, TP{row.tensor}, {row.load}): {likely_reason(row)}"
        )


def _progress(done: int, total: int) -> None:
    if not done % 50 or done == total:
        typer.echo(f"{done} of {total} runs", err=True)


# --- collectives ----------------------------------------------------------------------------------------------------


def _validate_collectives(folder: Path, measured: Path | None, json: bool) -> None:
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
