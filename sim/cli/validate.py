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
    from sim.studies.validate_report import Group

WORST_ROWS = 10
COLLECTIVES = Path("collectives")
KERNELS = Path("../shared/data/kernels")
"""Where the tables lie beside a checkout; the published points lie beside them."""


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
        from sim.cli.measure import validate_collectives

        for option, given in (("--out", out), ("--plot", plot)):
            if given is not None:
                raise InputError(option, "collectives are printed only", "leave it out, or take --json")
        validate_collectives(tables or KERNELS, measured, json)
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
