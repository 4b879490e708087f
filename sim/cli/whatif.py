"""The command whatif."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sim.cli.options import Json, Overrides, ScenarioArgument, load_one, picture, print_json


def register(app: typer.Typer) -> None:
    app.command()(whatif)


def whatif(
    scenario: ScenarioArgument,
    json: Json = False,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="Draw the tornado into this file.")] = None,
    settings: Overrides = None,
) -> None:
    """What would move the answer: every resource halved and doubled in turn, under the same random numbers."""
    from sim.studies.whatif import table, tornado
    from sim.studies.whatif import whatif as ask

    file = None if plot is None else picture(plot, "--plot")
    shows = sys.stderr.isatty()
    found = ask(load_one(scenario, settings), lambda name: print(f"  {name}", file=sys.stderr) if shows else None)
    if file is not None:
        tornado(found).savefig(file, dpi=120)
    if json:
        print_json(found.as_dict())
    else:
        print(table(found))
