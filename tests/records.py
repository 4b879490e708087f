"""Synthetic records for the tests of results: small engines that write what the real one writes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from sim.results.result import Result

REQUEST_COLUMNS = {
    "id": np.int64,
    "replica": np.int64,
    "arrival_s": np.float64,
    "scheduled_s": np.float64,
    "first_token_s": np.float64,
    "finish_s": np.float64,
    "input_tokens": np.int64,
    "output_tokens": np.int64,
    "generated_tokens": np.int64,
    "cached_tokens": np.int64,
    "preemptions": np.int64,
    "status": np.int64,
}
STEP_COLUMNS = {
    "replica": np.int64,
    "start_s": np.float64,
    "iterations": np.int64,
    "first_s": np.float64,
    "growth_s": np.float64,
    "prefill_tokens": np.int64,
    "prefills": np.int64,
    "decodes": np.int64,
    "context_tokens": np.int64,
    "sampled": np.int64,
    "itl_tokens": np.int64,
    "running": np.int64,
    "waiting": np.int64,
    "used_blocks": np.int64,
    "preempted": np.int64,
}


def table(columns: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Columns from rows; what a row leaves out is 0."""
    return {name: np.array([row.get(name, 0) for row in rows], dtype=kind) for name, kind in columns.items()}


def make_result(
    requests: list[dict[str, Any]] | dict[str, np.ndarray],
    steps: list[dict[str, Any]] | dict[str, np.ndarray],
    *,
    irregular_gaps_s: list[float] | np.ndarray = (),
    scenario: dict[str, Any] | None = None,
    simulated_seconds: float | None = None,
    **changes: Any,
) -> Result:
    """A `Result` of the given records; everything else is plain."""
    request_table = table(REQUEST_COLUMNS, requests) if isinstance(requests, list) else requests
    step_table = table(STEP_COLUMNS, steps) if isinstance(steps, list) else steps
    finishes = request_table["finish_s"]
    last = float(np.nanmax(finishes)) if np.isfinite(finishes).any() else 0.0
    fields: dict[str, Any] = {
        "scenario": scenario
        or {"name": "story", "model": "llama-3.1-70b", "workload": {"arrivals": {"kind": "burst"}}},
        "requests": request_table,
        "steps": step_table,
        "irregular_gaps_s": np.asarray(irregular_gaps_s, dtype=np.float64),
        "ledger": None,
        "walls_ms_per_token": {"weights_read": 12.0, "kv_read": 3.0, "collective_latency": 2.0},
        "self_checks": [{"name": "tokens conserved", "held": True, "detail": ""}],
        "status": "done",
        "events": 100,
        "preemptions": int(request_table["preemptions"].sum()),
        "simulated_seconds": last if simulated_seconds is None else simulated_seconds,
        "wall_seconds": 0.1,
        "num_gpus": 2,
    }
    return Result(**fields | changes)


def two_users() -> Result:
    """Two requests of one replica, 10 prompt tokens each, every time exact in binary.

    Request 0 arrives at 0: prefill 0..1, tokens at 1, 1.5, 2.0. Request 1 arrives at 1.25, is prefilled beside the
    decode 2.0..3.0 and has tokens at 3.0, 3.25, 3.75; request 0 goes on to 3.0 and 3.25.
    """
    requests = [
        {
            "id": 0,
            "arrival_s": 0.0,
            "scheduled_s": 0.0,
            "first_token_s": 1.0,
            "finish_s": 3.25,
            "input_tokens": 10,
            "output_tokens": 5,
            "generated_tokens": 5,
        },
        {
            "id": 1,
            "arrival_s": 1.25,
            "scheduled_s": 2.0,
            "first_token_s": 3.0,
            "finish_s": 3.75,
            "input_tokens": 10,
            "output_tokens": 3,
            "generated_tokens": 3,
        },
    ]
    steps = [
        {
            "start_s": 0.0,
            "iterations": 1,
            "first_s": 1.0,
            "prefill_tokens": 10,
            "prefills": 1,
            "sampled": 1,
            "running": 1,
        },
        {
            "start_s": 1.0,
            "iterations": 2,
            "first_s": 0.5,
            "decodes": 1,
            "context_tokens": 11,
            "sampled": 1,
            "itl_tokens": 1,
            "running": 1,
            "used_blocks": 1,
        },
        {
            "start_s": 2.0,
            "iterations": 1,
            "first_s": 1.0,
            "prefill_tokens": 10,
            "prefills": 1,
            "decodes": 1,
            "context_tokens": 13,
            "sampled": 2,
            "itl_tokens": 1,
            "running": 2,
            "used_blocks": 2,
        },
        {
            "start_s": 3.0,
            "iterations": 1,
            "first_s": 0.25,
            "decodes": 2,
            "context_tokens": 25,
            "sampled": 2,
            "itl_tokens": 2,
            "running": 2,
            "used_blocks": 2,
        },
        {
            "start_s": 3.25,
            "iterations": 1,
            "first_s": 0.5,
            "decodes": 1,
            "context_tokens": 12,
            "sampled": 1,
            "itl_tokens": 1,
            "running": 1,
            "used_blocks": 1,
        },
    ]
    scenario = {
        "name": "two-users",
        "model": "llama-3.1-70b",
        "slo": {"ttft": "1.5 s", "tpot": "600 ms"},
        "workload": {"arrivals": {"kind": "poisson", "request_rate": 0.8}, "num_requests": 2, "seed": 7},
    }
    return make_result(requests, steps, scenario=scenario)


def random_steps(rng: np.random.Generator, segments: int, longest: int = 12) -> dict[str, np.ndarray]:
    """A steps table whose segments follow one another, with growing iterations."""
    k = rng.integers(1, longest, segments)
    first, growth = rng.uniform(0.005, 0.05, segments), rng.uniform(0, 1e-4, segments)
    lasts = k * first + growth * k * (k - 1) / 2
    columns = {name: np.zeros(segments, dtype=kind) for name, kind in STEP_COLUMNS.items()}
    batch = rng.integers(0, 64, segments)
    start = np.concatenate([[0.0], np.cumsum(lasts)[:-1]])
    return columns | {
        "start_s": start,
        "iterations": k,
        "first_s": first,
        "growth_s": growth,
        "decodes": batch,
        "sampled": batch,
        "itl_tokens": batch,
        "running": batch,
    }


def ledger(gpus: int = 2) -> Any:
    """What a result shows of a memory ledger: Llama-3.1-70B in bf16 on H100s, two of which hold one copy."""
    rows = tuple(
        SimpleNamespace(
            gpu=f"n0.g{index}",
            capacity_bytes=85.04e9,
            usable_bytes=80.79e9,
            weights_bytes=70.56e9,
            activation_bytes=1.41e9,
            overhead_bytes=3.88e9,
            kv_pool_bytes=4.94e9,
        )
        for index in range(gpus)
    )
    return SimpleNamespace(
        fits=True,
        reason="n0.g0: 75.85 GB of 80.79 GB usable",
        parameters=70_553_706_496,
        weights_bytes=141.1e9,
        kv_bytes_per_token=327_680.0,
        kv_tokens_capacity=30_144,
        max_sequences=14,
        usable_blocks=1884,
        per_gpu=rows,
        suggestions=("fp8 weights fit: 72.69 GB on 2 GPUs",),
    )
