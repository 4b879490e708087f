"""The production scheduler decides as vLLM's does: on recordings, and on random cases against the plain reference."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from reference.random_cases import random_case
from reference.replay import drive
from reference.scheduler import ReferenceScheduler
from reference.trace import Case
from replay_scheduler import first_difference, replay

TRACES = Path(__file__).resolve().parents[2] / "shared" / "data" / "vllm_scheduler"


@pytest.mark.parametrize("path", sorted(TRACES.glob("**/dev_*.jsonl")), ids=lambda path: path.stem)
def test_every_recorded_decision_of_vllm_is_repeated(path: Path) -> None:
    assert replay(path) is None


def header_of(case: Case, scheduler: ReferenceScheduler) -> dict[str, Any]:
    """The header that a recording of `case` would have."""
    config = asdict(case.config)
    requests = []
    for request in case.requests:
        result = scheduler.results().get(request.id)
        if result is None:  # the case was cut before it was sent
            continue
        requests.append(
            {
                "id": request.id,
                "arrival": request.arrival,
                "prompt_len": request.prompt_len,
                "max_tokens": request.max_tokens,
                "prompt": [list(segment) for segment in request.prompt],
                "n_out": result.n_out,
                "n_preempt": result.n_preempt,
            }
        )
    return {"vllm": config["version"], "config": config, "requests": requests}


def difference(seed: int) -> str | None:
    """The first difference between production and reference on the random case of this seed."""
    case = random_case(seed)
    scheduler = ReferenceScheduler(case.config)
    records, _ = drive(scheduler, case)
    lines = [
        {**asdict(record), "adm": [list(a) for a in record.adm], "p": [list(c) for c in record.p]} for record in records
    ]
    header = header_of(case, scheduler)
    return first_difference(header, lines)


@pytest.mark.parametrize("start", range(0, 1000, 100))
def test_random_cases_are_scheduled_as_by_the_plain_reference(start: int) -> None:
    assert {seed: difference(seed) for seed in range(start, start + 100) if difference(seed)} == {}
