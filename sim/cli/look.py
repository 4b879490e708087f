"""Commands that look at the parts of a deployment without running it: memory, workload, list, schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sim.cli.options import Json, Overrides, ScenarioArgument, load_one, print_json


def register(app: typer.Typer) -> None:
    app.command()(memory)
    app.command()(workload)
    app.command("list")(list_)
    app.command()(schema)


def memory(scenario: ScenarioArgument, json: Json = False, settings: Overrides = None) -> None:
    """What fits on each GPU: weights, activations, overhead, KV pool; and what would make it fit.

    Exit code 3 if it does not fit.
    """
    from sim.model.memory import ledger_dict
    from sim.results.console import memory_answer
    from sim.simulate import plan_memory

    loaded = load_one(scenario, settings)
    ledger, nominal = plan_memory(loaded), plan_memory(loaded, "nominal")
    if json:
        print_json({**ledger_dict(ledger), "nominal": ledger_dict(nominal), "scenario": loaded.to_dict()})
    else:
        print(memory_answer(ledger, nominal))
    raise typer.Exit(0 if ledger.fits else 3)


def workload(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A trace file (or a ServeGen folder).")],
    format: Annotated[
        str | None, typer.Option(help="Its format, where that cannot be told from its first line.")
    ] = None,
    json: Json = False,
) -> None:
    """A trace in numbers: how many requests, how fast, how bursty, how long, how much alike."""
    from sim.workload.trace_summary import summary_of

    found = summary_of(Path(file), format)
    if json:
        print_json(found)
        return
    for key, value in found.items():
        if isinstance(value, dict):
            print(f"{key}: " + ", ".join(f"{name} {_number(number)}" for name, number in value.items()))
        else:
            print(f"{key}: {_number(value)}")


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def list_(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="gpus, models, topologies or scenarios; all if not given.")
    ] = None,
    json: Json = False,
) -> None:
    """The names that scenario files can use: GPUs, models, topologies, shipped scenarios."""
    from sim import catalogue

    found = {one: sorted(catalogue.files(one)) for one in (catalogue.KINDS if kind is None else (kind,))}
    if json:
        print_json(found)
    elif kind is not None:
        print("\n".join(found[kind]))
    else:
        print("\n\n".join("\n".join([f"{one}:", *(f"  {name}" for name in names)]) for one, names in found.items()))


def schema() -> None:
    """The JSON Schema of a scenario file, for completion in editors."""
    from sim.scenario.schema import schema_text

    print(schema_text(), end="")
