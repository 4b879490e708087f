"""A result on disk: what is the same in every run of a scenario, and beside it what is not (`run.json`)."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sim import __version__
from sim.results.assertions import Verified
from sim.results.console import render
from sim.results.intervals import CONFIDENCE, METHOD, run_intervals
from sim.results.result import Columns, Result
from sim.results.verdict import load_state, verdict
from sim.results.warmup import warm_up

_LIBRARIES = ("numpy", "simpy", "networkx", "scipy")


@cache
def versions() -> dict[str, str]:
    """What computed a result: its numbers are equal to the last byte on one machine with these."""
    found = {name: metadata.version(name) for name in _LIBRARIES}
    return {"twowalls": __version__, "python": platform.python_version(), **found}


def record(result: Result, verified: Sequence[Verified] = ()) -> dict[str, Any]:
    """The result as plain data: vLLM's result keys, then ours; equal in two runs of a scenario."""
    return {
        **result.summary,
        "status": result.status,
        "load": load_state(result),
        "verdict": verdict(result),
        "events": result.events,
        "preemptions": result.preemptions,
        "num_gpus": result.num_gpus,
        "walls_ms_per_token": result.walls_ms_per_token,
        "self_checks": result.self_checks,
        "intervals": {key: list(interval) for key, interval in run_intervals(result).items()},
        "confidence": {"level": CONFIDENCE, "method": METHOD},
        "warmup": asdict(warm_up(result)),
        "assertions": [{"text": line.text, "held": line.held, "actual": line.actual} for line in verified],
        **({} if result.oom is None else {"oom": result.oom}),
        "notes": result.notes,
        "provenance": [origin.as_dict() for origin in result.provenance],
        "simulated_seconds": result.simulated_seconds,
        "scenario": result.scenario,
        "seed": result.seed,
        "simulator_version": __version__,
        "versions": versions(),
    }


def to_json(data: Any) -> str:
    """`data` as JSON text with the scalars and arrays of NumPy as plain numbers; not-a-number is refused."""
    return json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False, default=plain_numbers) + "\n"


def plain_numbers(value: Any) -> Any:
    """NumPy's scalars and arrays as plain numbers: the `default` of `json.dumps`.

    Raises:
        TypeError: anything else that JSON does not know.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def write(result: Result, out_dir: Path, verified: Sequence[Verified] = ()) -> None:
    """Write a result into the folder `out_dir`.

    summary.json, answer.txt, requests.parquet and steps.parquet are byte-equal in two runs of a scenario;
    run.json holds what is not.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "summary.json").write_text(to_json(record(result, verified)), encoding="utf-8")
    (out_dir / "answer.txt").write_text(render(result, verified) + "\n", encoding="utf-8")
    write_parquet(result.requests, out_dir / "requests.parquet")
    write_parquet(result.steps, out_dir / "steps.parquet")
    (out_dir / "run.json").write_text(to_json(this_run(result)), encoding="utf-8")


def write_parquet(columns: Columns, path: Path) -> None:
    """A table of columns as parquet (zstd)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(dict(columns)), path, compression="zstd")


def this_run(result: Result) -> dict[str, Any]:
    """What differs from run to run: date, host, wall time, and the command that asked."""
    return {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "wall_seconds": result.wall_seconds,
        "host": platform.node(),
        "platform": platform.platform(),
        "command": sys.argv,
        "commit": commit(Path(__file__).resolve().parents[2]),
    }


def commit(root: Path) -> str | None:
    """The git commit that a checkout at `root` stands on; None outside a checkout."""
    head = root / ".git" / "HEAD"
    if not head.is_file():
        return None
    text = head.read_text().strip()
    reference = root / ".git" / text.removeprefix("ref: ")
    if not text.startswith("ref: "):
        return text
    return reference.read_text().strip() if reference.is_file() else None
