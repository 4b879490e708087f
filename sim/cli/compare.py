"""`twowalls compare`: deployments side by side, and which of the first two to choose."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.options import Json, Overrides, load_all, print_json

if TYPE_CHECKING:
    from sim.studies.compare import Compared, Comparison, Slowdown

Scenarios = Annotated[
    list[str],
    typer.Argument(metavar="A B...", help="Scenario files, folders of them, or names of shipped scenarios."),
]
_PAGE = 110


def register(app: typer.Typer) -> None:
    app.command()(compare)


def compare(scenarios: Scenarios, json: Json = False, settings: Overrides = None) -> None:
    """Set deployments side by side: what their wires cost a token, and the network at which the choice flips.

    Each is held against an ideal twin, the same GPUs behind one NVLink switch. The break-even and the answer are about
    the first two.
    """
    from sim.studies.compare import compare as run_comparison

    found = run_comparison(load_all(scenarios, settings))
    if json:
        print_json(found.as_dict())
    else:
        print(_told(found))


def _told(found: Comparison) -> str:
    from sim.results.console import table

    each = found.deployments
    runs = table(
        ["scenario", "mean TPOT ms", "mean TTFT ms", "tok/s", "GPUs", "tok/s/GPU"],
        [
            [one.name, _number(one.mean_tpot_ms), _number(one.mean_ttft_ms), f"{one.output_throughput:.0f}",
             str(one.gpus), f"{one.output_throughput / one.gpus:.0f}"]
            for one in each
        ],
    )  # fmt: skip
    width = max(len(one.name) for one in each)
    parts = [
        "\n".join(f"{one.name:<{width}}  {one.label}" for one in each),
        runs,
        _slowdowns("Mean decode iteration, ms a token", each, [one.decode for one in each], "batch"),
        _slowdowns("Prefill of one mean prompt, ms", each, [one.prefill for one in each], "prompt"),
        _wrapped(
            "The twin is the same GPUs behind one NVLink switch. latency, bandwidth: of collectives and hand-overs;"
            " sharing: waiting for others on the same links; straggler: a slow GPU; rest: pipeline bubbles and host time."
            " The five sum to iteration less twin."
        ),
        _break_even(found),
        _wrapped(found.answer),
    ]
    return "\n\n".join(parts)


def _break_even(found: Comparison) -> str:
    names = {"latency": "latency between nodes, one way", "bandwidth": "bandwidth between nodes"}
    lines = [
        f"  {kind:<8} {names[quantity]:<31} {one.text}"
        for kind, by_quantity in found.break_even.items()
        for quantity, one in by_quantity.items()
    ]
    return "\n".join(["Where the faster of the first two changes (alone on their links)", *lines])


def _slowdowns(title: str, each: list[Compared], slowdowns: list[Slowdown], size: str) -> str:
    from sim.results.console import table
    from sim.studies.compare import PARTS

    sizes = [one.batch_text if size == "batch" else str(one.prefill_tokens) for one in each]
    rows = [
        [one.name, sizes[i], f"{found.ms:.3f}", f"{found.twin_ms:.3f}", f"{found.factor:.2f}x",
         *(_number(found.parts_ms[part], 3) for part in PARTS)]
        for i, (one, found) in enumerate(zip(each, slowdowns, strict=True))
    ]  # fmt: skip
    return title + "\n" + table(["scenario", size, "iteration", "twin", "slowdown", *PARTS], rows)


def _number(value: float | None, digits: int = 2) -> str:
    if value is None:
        return "n/a"
    return f"{value + 0.0:.{digits}f}" if abs(value) >= 0.5 * 10**-digits else "0"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _PAGE)
