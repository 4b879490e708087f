"""Commands that hold the models against measurements: calibrate, validate."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from sim.cli.options import Json, print_json

calibrate_app = typer.Typer(help="Fit the constants of the cost models to measurements.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    calibrate_app.command("kernels")(calibrate_kernels)
    app.add_typer(calibrate_app, name="calibrate")


def calibrate_kernels(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of measured kernel tables.")],
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="One GPU of the catalogue; all that were measured if not given.")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Put the fitted constants into the GPU files.")] = False,
    json: Json = False,
) -> None:
    """Fit the kernel roofline to measured tables and print the error of each fit."""
    from sim.results.console import table
    from sim.studies.calibrate_kernels import run

    rows = run(folder, gpu, write)
    if json:
        print_json({"errors": [asdict(row) for row in rows]})
        return
    header = ["GPU", "kernel", "dtype", "rows", "n", "mean abs", "median abs", "bias", "p90 abs"]
    print(
        table(
            header,
            [
                [row.gpu, row.kind, row.dtype, row.rows_of, f"{row.n:,}"]
                + [f"{error:.1%}" for error in (row.mape, row.median_abs_error, row.bias, row.p90_abs_error)]
                for row in rows
            ],
        )
    )
