"""The self-checks hold on records of a small engine, and each breaks when its law is broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from records import make_result, two_users
from small_engine import busy_engine

from sim.results.checks import run_checks
from sim.results.result import Result


def checks(result: Result, **options: Any) -> dict[str, bool]:
    found = run_checks(result.requests, result.steps, result.irregular_gaps_s, result.end_s, **options)
    return {check["name"]: check["held"] for check in found}


@pytest.mark.parametrize(
    "result",
    [
        two_users(),
        busy_engine(),
        busy_engine(blocks=16),
        busy_engine(concurrency=6),
        busy_engine(blocks=17, concurrency=6),
    ],
    ids=["by hand", "roomy", "preempting", "closed loop", "closed loop, preempting"],
)
def test_every_law_holds_on_a_sound_run(result: Result) -> None:
    held = checks(result, min_iteration_s=0.02, concurrency=result.concurrency)
    assert all(held.values()), held
    assert len(held) == (6 if result.concurrency is None else 7)


def test_the_small_engine_preempts() -> None:
    assert busy_engine(blocks=16).preemptions > 0
    assert busy_engine().preemptions == 0


def _set(table: str, column: str, row: int, value: float) -> Callable[[Result], None]:
    def change(result: Result) -> None:
        getattr(result, table)[column][row] = value

    return change


@pytest.mark.parametrize(
    ("broken", "change"),
    [
        ("requests add up", _set("requests", "status", 0, 7)),
        ("tokens conserved", _set("requests", "generated_tokens", 1, 2)),
        ("life in order", _set("requests", "scheduled_s", 1, 1.0)),
        ("life in order", _set("requests", "first_token_s", 0, 3.5)),
        ("Little's law", _set("requests", "finish_s", 0, -1.0)),
        ("gaps add up", _set("steps", "itl_tokens", 1, 2)),
        ("gaps add up", _set("steps", "first_s", 1, 0.4)),
        ("no iteration too short", _set("steps", "first_s", 3, 0.1)),
    ],
)
def test_a_broken_law_is_found(broken: str, change: Callable[[Result], None]) -> None:
    result = two_users()
    change(result)
    assert not checks(result, min_iteration_s=0.2)[broken]


def test_an_iteration_that_shrinks_is_held_to_its_last_one() -> None:
    result = make_result([], [{"iterations": 11, "first_s": 1.0, "growth_s": -0.05}], simulated_seconds=9.0)
    assert checks(result, min_iteration_s=0.5)["no iteration too short"]
    assert not checks(result, min_iteration_s=0.51)["no iteration too short"]


def test_a_bound_of_its_own_for_each_segment() -> None:
    result = two_users()
    bounds = result.steps["first_s"].copy()
    assert checks(result, min_iteration_s=bounds)["no iteration too short"]
    bounds[2] *= 1.001
    assert not checks(result, min_iteration_s=bounds)["no iteration too short"]


def test_more_in_flight_than_users_is_found() -> None:
    assert not checks(two_users(), concurrency=1)["closed loop"]
    assert checks(two_users(), concurrency=2)["closed loop"]


def test_a_cut_run_keeps_its_laws() -> None:
    """Cut at 3.0 s: request 1 has one token, request 2 was turned away, request 3 was never due."""
    result = two_users()
    nan = np.nan
    rows = [
        {"id": 0, "first_token_s": 1.0, "finish_s": nan, "output_tokens": 5, "generated_tokens": 4, "status": 2},
        {"id": 1, "arrival_s": 1.25, "scheduled_s": 2.0, "first_token_s": 3.0, "finish_s": nan, "output_tokens": 3,
         "generated_tokens": 1, "status": 2},
        {"id": 2, "arrival_s": 1.5, "scheduled_s": nan, "first_token_s": nan, "finish_s": nan, "output_tokens": 9,
         "status": 1},
        {"id": 3, "arrival_s": 9.0, "scheduled_s": nan, "first_token_s": nan, "finish_s": nan, "output_tokens": 3,
         "status": 2},
    ]  # fmt: skip
    steps = {name: column[:3] for name, column in result.steps.items()}
    cut = make_result(rows, steps, simulated_seconds=3.0)
    held = checks(cut, min_iteration_s=0.2)
    assert all(held.values()), held
    assert cut.summary["failed"] == 3  # the one that was never due did not fail


def test_what_a_finished_request_lacks_is_explained_by_max_model_len_or_by_nothing() -> None:
    result = two_users()
    result.requests["output_tokens"][0] += 3
    total = int(result.requests["input_tokens"][0] + result.requests["generated_tokens"][0])
    assert not checks(result)["tokens conserved"]
    assert checks(result, max_model_len=total)["tokens conserved"]
    assert not checks(result, max_model_len=total - 1)["tokens conserved"]
