"""Fits an engine's own times (`EnginePreset`) to published or own end-to-end measurements.

Least squares on log(predicted / measured), soft L1 so that a few odd rows do not decide, over the rows whose answer depends
on the engine: gaps between tokens, first tokens that do not wait for a slot, throughput at saturation. Every evaluation
simulates each case in full, so scheduling effects are in the fit; the cases are thinned out evenly to keep it to minutes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim.cost.kernels import Floats
from sim.cost.preset import PRESETS
from sim.errors import InputError, TwoWallsError
from sim.studies.measured_harness import preset_name
from sim.studies.measured_metrics import RunFacts, family, predicted, unit_of
from sim.studies.measured_rows import MeasuredRow, read_rows
from sim.studies.measured_scenarios import Case, cases_of
from sim.studies.validate import run_case, saturated

PARAMETERS = ("layer_s", "host_step_s", "host_request_s", "entry_s")
"""What is fitted if nothing else is asked for."""
WEIGHTS = {"ttft": 0.3, "tpot": 1.0, "itl": 1.0, "output throughput": 1.0, "e2e": 1.0}
"""Weight of a residual by metric: how a harness sends its requests, which TTFT depends on most, is seldom stated."""
SHORTEST_S = 1e-7
LARGEST_STEP = 3.5
"""A value is looked for within this many factors of e of where it starts."""
MOST_EVALUATIONS = 12
"""Steps of a fit at most, each of which simulates every case once for each parameter."""
MOST_CASES = 150


@dataclass(frozen=True, slots=True)
class EngineFit:
    """What a calibration found."""

    engine: str
    values: Mapping[str, float]
    """Parameter of the preset -> fitted value, seconds or a share."""
    before: Mapping[str, float]
    """Metric -> median absolute error with the values before."""
    after: Mapping[str, float]
    left_out: Mapping[str, Mapping[str, float]]
    """Group left out -> metric -> its median absolute error, predicted from a fit to the others."""
    rows: int

    def text(self) -> str:
        """The preset's lines, and the errors before and after."""
        lines = [f"{self.engine}, fitted to {self.rows} rows"]
        lines += [f"  {name} = {value:.4g}" for name, value in self.values.items()]
        for metric in self.before:
            lines.append(f"  {metric}: median error {self.before[metric]:.1%} before, {self.after[metric]:.1%} after")
        for group, errors in self.left_out.items():
            shown = ", ".join(f"{metric} {error:.1%}" for metric, error in errors.items())
            lines.append(f"  predicted without it, {group}: {shown}")
        return "\n".join(lines)


def calibrate_engine(
    path: Path,
    engine: str,
    names: Sequence[str] = PARAMETERS,
    leave_out: Callable[[MeasuredRow], str] | None = None,
    most_cases: int = MOST_CASES,
) -> EngineFit:
    """Fits the fields `names` of the preset `engine` to the rows of `path` that this engine was measured with.

    Args:
        leave_out: group of a row; each group is once predicted from a fit to the others.
        most_cases: benchmark runs to use at most, evenly thinned.

    Raises:
        InputError: no row of the file was measured with this engine.
    """
    cases = thinned(_cases(path, engine), most_cases)
    if not cases:
        raise InputError(str(path), f"holds no row of engine '{engine}' that can be simulated", "")
    start = np.array([max(getattr(PRESETS[engine], name), SHORTEST_S) for name in names])
    before = _errors(engine, names, start, cases)
    values = _fit(engine, names, start, cases)
    left_out = {}
    if leave_out is not None:
        for group in sorted({leave_out(case.rows[0]) for case in cases}):
            others = [case for case in cases if leave_out(case.rows[0]) != group]
            if others:
                apart = _fit(engine, names, values, others)
                left_out[group] = _medians(
                    _errors(engine, names, apart, [c for c in cases if leave_out(c.rows[0]) == group])
                )
    after = _errors(engine, names, values, cases)
    found = dict(zip(names, values.tolist(), strict=True))
    return EngineFit(engine, found, _medians(before), _medians(after), left_out, len(after))


def _cases(path: Path, engine: str) -> list[Case]:
    rows = [row for row in read_rows(path) if row.kind == "e2e" and family(row.metric) in WEIGHTS and _of(row, engine)]
    return [case for case in cases_of(rows) if case.scenario is not None]


def _of(row: MeasuredRow, engine: str) -> bool:
    try:
        return preset_name(row.engine) == engine
    except InputError:
        return False


def thinned(cases: Sequence[Case], most: int) -> list[Case]:
    """At most `most` cases, evenly spread over the file."""
    if len(cases) <= most:
        return list(cases)
    return [cases[int(i * len(cases) / most)] for i in range(most)]


def _fit(engine: str, names: Sequence[str], start: Floats, cases: Sequence[Case]) -> Floats:
    """Values with the least soft-L1 sum of log ratios; x = 1 + log(value / start), so that a step of 5 % is one of x."""
    from scipy.optimize import least_squares

    def residuals(x: Floats) -> Floats:
        found = _errors(engine, names, start * np.exp(x - 1), cases)
        return np.array([WEIGHTS[metric] * error for _, metric, error in found])

    found = least_squares(
        residuals,
        np.ones(len(start)),
        loss="soft_l1",
        f_scale=0.1,
        diff_step=0.05,
        max_nfev=MOST_EVALUATIONS,
        bounds=(1 - LARGEST_STEP, 1 + LARGEST_STEP),
    )
    return np.asarray(start * np.exp(found.x - 1), dtype=np.float64)


def _errors(engine: str, names: Sequence[str], values: Floats, cases: Sequence[Case]) -> list[tuple[str, str, float]]:
    """(row id, metric, log of predicted over measured) with these values in the preset; the same rows every time."""
    usual = PRESETS[engine]
    PRESETS[engine] = dataclasses.replace(usual, **dict(zip(names, values.tolist(), strict=True)))
    try:
        return [error for case in cases for error in _case_errors(case)]
    finally:
        PRESETS[engine] = usual


def _case_errors(case: Case) -> list[tuple[str, str, float]]:
    facts = run_case(case)
    errors = []
    for row in case.rows:
        metric = family(row.metric)
        if metric == "output throughput" and case.offered_rate is not None:
            continue
        if row.value > 0:
            errors.append((row.id, metric, 0.0 if isinstance(facts, str) else _log_ratio(row, case, facts)))
    return errors


def _log_ratio(row: MeasuredRow, case: Case, facts: RunFacts) -> float:
    if family(row.metric) == "ttft" and saturated(facts):
        return 0.0
    try:
        return float(np.log(predicted(row.metric, facts, case.before_first_s(facts)) / unit_of(row.unit) / row.value))
    except TwoWallsError:
        return 0.0


def _medians(errors: Sequence[tuple[str, str, float]]) -> dict[str, float]:
    """Metric -> median absolute error of the rows that were compared."""
    by: dict[str, list[float]] = {}
    for _, metric, error in errors:
        if error:
            by.setdefault(metric, []).append(abs(float(np.expm1(error))))
    return {metric: float(np.median(found)) for metric, found in by.items()}
