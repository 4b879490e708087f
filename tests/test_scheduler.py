"""The production scheduler decides as vLLM's does: on recordings, and on random cases against the plain reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from reference.random_cases import random_case
from reference.replay import drive
from reference.scaled_cases import scaled_case
from reference.scheduler import ReferenceScheduler
from reference.trace import Case
from replay_scheduler import first_difference, main, replay

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


def recording(case: Case) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(header, lines) of what the plain reference does with `case`, as a recording of it would have."""
    scheduler = ReferenceScheduler(case.config)
    records, status = drive(scheduler, case)
    lines = [
        {**asdict(record), "adm": [list(a) for a in record.adm], "p": [list(c) for c in record.p]} for record in records
    ]
    return {**header_of(case, scheduler), "status": status}, lines


def difference(seed: int, case_of: Callable[[int], Case] = random_case) -> str | None:
    """The first difference between production and reference on the random case of this seed."""
    return first_difference(*recording(case_of(seed)))


@pytest.mark.parametrize("start", range(0, 1000, 100))
def test_random_cases_are_scheduled_as_by_the_plain_reference(start: int) -> None:
    assert {seed: difference(seed) for seed in range(start, start + 100) if difference(seed)} == {}


def test_random_cases_at_the_sizes_of_real_engines_are_scheduled_as_by_the_plain_reference() -> None:
    assert {seed: found for seed in range(60) if (found := difference(seed, scaled_case))} == {}


# --- the runner -------------------------------------------------------------------------------------------------------


def written(folder: Path, name: str, case: Case, **header: Any) -> Path:
    """A file as vLLM's recordings are: empty fields left out, ids in runs."""
    path = folder / f"{name}.jsonl"
    head, lines = recording(case)
    records = []
    for line in lines:
        kept = {key: value for key, value in line.items() if value != [] or key in ("i", "run", "wait", "free")}
        for key in {"add", "d"} & kept.keys():
            kept[key] = ",".join(str(id) for id in kept[key])
        if kept["free_end"] == kept["free"]:
            del kept["free_end"]
        records.append(kept)
    path.write_text("".join(json.dumps(row) + "\n" for row in [{**head, **header}, *records]))
    return path


def test_the_runner_prints_the_first_difference_of_each_case_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [written(tmp_path, f"good{seed}", random_case(seed)) for seed in range(8)]
    assert main([str(path) for path in good]) == 0
    assert capsys.readouterr().out.endswith("8 of 8 cases without a difference\n")
    rows = next(rows for path in good if len(rows := path.read_text().splitlines()) > 4)
    changed = tmp_path / "changed.jsonl"
    changed.write_text("\n".join([rows[0], *rows[1:3], rows[3].replace('"free": ', '"free": 9'), *rows[4:]]))
    broken, absent = tmp_path / "broken.jsonl", tmp_path / "absent.jsonl"
    broken.write_text("{")
    other = written(tmp_path, "other", random_case(1))
    other.write_text(other.read_text().replace('"config": {', '"config": {"policy": "priority", ', 1))
    assert main([str(path) for path in (changed, broken, absent, other, good[1])]) == 1
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told[:5]] == ["DIFFERS"] * 4 + ["same"]
    assert "iteration 2: free is" in told[0]
    assert all("cannot be replayed" in line for line in told[1:4])
    assert "policy priority is not mirrored" in told[3]
    assert told[5] == "1 of 5 cases without a difference"


def test_the_runner_takes_what_a_config_leaves_out_as_vllm_does(tmp_path: Path) -> None:
    case = random_case(
        3, version="0.33.0", block_size=16, enable_prefix_caching=True, enable_chunked_prefill=True, watermark=0.0,
        long_prefill_token_threshold=0, scheduler_reserve_full_isl=True, async_scheduling=True,
    )  # fmt: skip
    path = written(tmp_path, "short", case, scheduler="vllm.v1.core.sched.async_scheduler.AsyncScheduler")
    head, *rows = path.read_text().splitlines()
    header = json.loads(head)
    asked = ("max_num_seqs", "max_num_batched_tokens", "num_gpu_blocks", "max_model_len")
    header["config"] = {key: header["config"][key] for key in asked}
    path.write_text("\n".join([json.dumps(header), *rows]))
    assert main([str(path)]) == 0
