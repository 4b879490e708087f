"""Predictions beside published end-to-end measurements: every row simulated as it was measured, or its reason told."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

from sim.cost.measured_tables import tables_root
from sim.errors import TwoWallsError
from sim.studies.kernel_rows import kernel_prediction
from sim.studies.measured_metrics import RunFacts, facts_of, is_latency, metric_in, predicted, unit_of
from sim.studies.measured_rows import MeasuredRow, read_rows
from sim.studies.measured_scenarios import Case, cases_of

SIMULATED, INSENSITIVE, SKIPPED = "simulated", "insensitive", "skipped"
"""Status of a row: counted; predicted, but its answer does not depend on the simulation; not predicted."""
DRAIN_SHARE = 0.1
"""An open loop whose run lasts less than this share beyond its last arrival keeps up: its throughput is the offered one."""
QUEUE_SHARE = 0.1
"""A run is saturated if its requests wait in the queue for more than this share of the time they run: by Little's law, more
than one waits for every ten that run. Waiting for the iteration under way is not saturation."""

KV_FULL_SHARE = 0.97
"""Share of the KV blocks in use at some time above which a run counts as limited by them; set by hand."""


@dataclass(slots=True)
class RowResult:
    """One row of the answer."""

    id: str
    kind: str
    source: str
    engine: str
    model: str
    gpu: str
    tensor: str
    load: str
    metric: str
    unit: str
    measured: float
    predicted: float | None = None
    """In the unit of the measured value."""
    error: float | None = None
    """Predicted over measured, less one."""
    status: str = SKIPPED
    regime: str = ""
    saturated: bool = False
    reason: str = ""


def validate(
    path: Path, workers: int = 2, progress: Callable[[int, int], None] | None = None, costs: str = "roofline"
) -> list[RowResult]:
    """Every row of a file in the format of `measured.csv`, with what is predicted for it, in the file's order.

    Args:
        workers: processes to simulate with.
        progress: told of runs done and runs in all.
        costs: the kernel backend of the end-to-end rows, as a scenario names it.

    Raises:
        InputError: the file is missing or is not in that format; measured costs without tables installed.
    """
    if costs == "measured":
        tables_root("--costs")
    rows = read_rows(path)
    results = {row.id: _blank(row) for row in rows}
    for row in rows:
        if row.problem:
            results[row.id].reason = row.problem
        elif row.kind != "e2e":
            _fill_kernel(row, results[row.id])
    cases = cases_of([row for row in rows if row.kind == "e2e" and not row.problem])
    for case in cases:
        if case.scenario is not None:
            case.scenario["costs"] = costs
    for done, (case, facts) in enumerate(_simulated(cases, workers), start=1):
        _fill(case, facts, results)
        if progress is not None:
            progress(done, len(cases))
    return [results[row.id] for row in rows]


def simulated_rows(cases: Sequence[Case]) -> list[RowResult]:
    """The rows of `cases`, one simulated after the other in this process."""
    results = {row.id: _blank(row) for case in cases for row in case.rows}
    for case in cases:
        _fill(case, run_case(case), results)
    return [*results.values()]


def _blank(row: MeasuredRow) -> RowResult:
    return RowResult(
        row.id,
        row.kind,
        row.source,
        row.engine,
        row.model,
        row.gpu,
        row.tensor,
        row.load,
        row.metric,
        row.unit,
        row.value,
    )


def _fill_kernel(row: MeasuredRow, result: RowResult) -> None:
    """Operators, collectives and memory: priced directly."""
    try:
        value = kernel_prediction(row) / unit_of(row.unit)
    except TwoWallsError as error:
        result.reason = str(error).replace("\n", ";")
        return
    result.predicted, result.error = value, value / row.value - 1
    result.status, result.regime = SIMULATED, row.kind


# --- end to end -------------------------------------------------------------------------------------------------------


def run_case(case: Case) -> RunFacts | str:
    """Simulates one case: its facts, or why there are none."""
    from sim.scenario import Scenario
    from sim.simulate import simulate

    if case.scenario is None:
        return case.reason
    try:
        result = simulate(Scenario.from_dict(case.scenario, where=case.rows[0].id))
    except TwoWallsError as error:
        return str(error).replace("\n", ";")
    if result.status != "done":
        return f"the run ended {result.status}"
    return f"self-check broken: {', '.join(result.broken_laws)}" if result.broken_laws else facts_of(result)


def _simulated(cases: Sequence[Case], workers: int) -> Iterator[tuple[Case, RunFacts | str]]:
    """Each case with its facts, or why there are none, in the order given."""
    if workers <= 1:
        yield from ((case, run_case(case)) for case in cases)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from zip(cases, pool.map(run_case, cases, chunksize=8), strict=True)


def _fill(case: Case, facts: RunFacts | str, results: dict[str, RowResult]) -> None:
    for row in case.rows:
        result = results[row.id]
        if isinstance(facts, str):
            result.reason = facts
            continue
        try:
            metric = metric_in(row.metric, row.unit)
            value = predicted(metric, facts, case.before_first_s(facts)) / unit_of(row.unit)
        except TwoWallsError as error:
            result.reason = str(error).replace("\n", ";")
            continue
        result.predicted, result.error = value, value / row.value - 1
        result.status = INSENSITIVE if _insensitive(row, case, facts) else SIMULATED
        result.regime, result.saturated = regime(facts), saturated(facts)
        result.reason = "; ".join(case.notes)


def _insensitive(row: MeasuredRow, case: Case, facts: RunFacts) -> bool:
    """Whether the answer is the offered load, whatever the simulation does."""
    if case.offered_rate is None or is_latency(row.metric):
        return False
    return facts.duration_s - facts.last_arrival_s < DRAIN_SHARE * facts.duration_s


def saturated(facts: RunFacts) -> bool:
    """Whether requests wait for others to leave before they start."""
    stay_s = facts.latencies_s["e2el"].get("mean", 0.0)
    return facts.queue_s > QUEUE_SHARE * max(stay_s - facts.queue_s, 0.0)


def regime(facts: RunFacts) -> str:
    """What a mean output token mostly waits for."""
    if facts.preemptions or facts.peak_kv_share > KV_FULL_SHARE:
        return "KV-saturated"
    walls = facts.walls_ms
    shares = {
        "compute-bound": walls.get("compute", 0.0),
        "bandwidth-bound": sum(walls.get(name, 0.0) for name in ("weights_read", "kv_read", "activations")),
        "latency-bound": sum(walls.get(n, 0.0) for n in ("collective_latency", "kernel_fixed", "engine_overhead")),
    }
    return max(shares, key=lambda name: shares[name])


def write_rows(rows: Iterable[RowResult], path: Path) -> None:
    """Writes the answer as CSV."""
    names = [field.name for field in fields(RowResult)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for row in rows:
            values = [getattr(row, name) for name in names]
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else "" if v is None else v for v in values])
