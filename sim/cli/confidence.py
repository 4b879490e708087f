"""How sure an answer is: `twowalls seeds`, `twowalls uncertainty`, and the same beside the answer of `twowalls run`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.options import Jobs, Json, Overrides, ScenarioArgument, load_all, load_one, print_json

if TYPE_CHECKING:
    from sim.scenario import Scenario

Scenarios = Annotated[
    list[str],
    typer.Argument(metavar="SCENARIO...", help="Scenario files; each after the first is set against the first."),
]
Count = Annotated[int, typer.Option("--count", "-n", min=2, help="Seeds, from the scenario's own upwards.")]
Draws = Annotated[int, typer.Option("--draws", min=2, help="Sets of constants.")]
SeedsOption = Annotated[
    int, typer.Option("--seeds", min=1, help="Of one scenario: runs with as many seeds, for intervals.")
]
UncertaintyOption = Annotated[
    bool, typer.Option("--uncertainty", help="Of one scenario: what the error of the calibrated constants leaves open.")
]


def register(app: typer.Typer) -> None:
    app.command()(seeds)
    app.command()(uncertainty)


def seeds(
    scenarios: Scenarios, count: Count = 5, json: Json = False, jobs: Jobs = None, settings: Overrides = None
) -> None:
    """Run a scenario under several seeds: every metric with its confidence interval.

    Further scenarios run under the same seeds, and their difference to the first is given: what both owe to luck cancels.
    """
    from sim.studies.seeds import difference, differences_record, table

    found = [_over_seeds(scenario, count, jobs) for scenario in load_all(scenarios, settings)]
    differences = [difference(found[0], other) for other in found[1:]]
    if json:
        against = {"differences": differences_record(differences)} if differences else {}
        print_json({**found[0].as_dict(), **against})
        return
    print("\n\n".join([table(found[0]), found[0].line]))
    if differences:
        print("\n" + "\n".join([f"Difference to {found[0].scenario}, seed by seed", *(d.line for d in differences)]))


def uncertainty(
    scenario: ScenarioArgument, draws: Draws = 40, json: Json = False, jobs: Jobs = None, settings: Overrides = None
) -> None:
    """What the error of the calibrated constants leaves open: the same requests with constants drawn from their errors."""
    from sim.studies.uncertainty import line, table

    found = _over_constants(load_one(scenario, settings), draws, jobs)
    if json:
        print_json(found.as_dict())
    else:
        print("\n\n".join([table(found), line(found)]))


@dataclass(frozen=True, slots=True)
class ErrorBars:
    """What stands beside the answer of one run."""

    lines: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    """Further keys of the JSON; `intervals` and `confidence` stand in for those of the one run."""

    def write(self, folder: Path) -> None:
        """Writes error-bars.json into `folder`, if there is anything to write."""
        from sim.results.export import to_json

        if self.record:
            (folder / "error-bars.json").write_text(to_json(self.record), encoding="utf-8")


def error_bars(scenario: Scenario, count: int, constants: bool, jobs: int | None) -> ErrorBars:
    """The error bars that `twowalls run` was asked for.

    Args:
        count: seeds; 1: no runs beyond the one.
        constants: whether the error of the calibrated constants is propagated.
    """
    bars = ErrorBars()
    if count > 1:
        several = _over_seeds(scenario, count, jobs)
        record = several.as_dict()
        bars.lines.append(several.line)
        bars.record.update({key: record[key] for key in ("seeds", "values", "intervals", "confidence")})
    if constants:
        from sim.studies.uncertainty import DRAWS, line

        found = _over_constants(scenario, DRAWS, jobs)
        bars.lines.append(line(found))
        bars.record["uncertainty"] = found.as_dict()
    return bars


def _over_seeds(scenario: Scenario, count: int, jobs: int | None) -> Any:
    from sim.progress import ProgressLine
    from sim.studies.seeds import several

    with ProgressLine(scenario.name, count, "seeds") as progress:
        return several(scenario, count, jobs, lambda over: progress(0.0, over))


def _over_constants(scenario: Scenario, draws: int, jobs: int | None) -> Any:
    from sim.progress import ProgressLine
    from sim.studies.uncertainty import uncertainty as ask

    with ProgressLine(scenario.name, draws, "draws") as progress:
        return ask(scenario, draws, jobs, lambda over: progress(0.0, over))
