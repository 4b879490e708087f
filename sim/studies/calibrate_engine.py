"""Fits an engine's own times (`EnginePreset`) to published or own end-to-end measurements.

Least squares on log(predicted / measured), soft L1 so that a few odd rows do not decide, over the rows whose answer depends
on the engine: gaps between tokens, first tokens that do not wait for a slot, throughput at saturation. Every evaluation
simulates each case in full, so scheduling effects are in the fit; the cases are thinned out evenly to keep it to minutes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sim.cost.kernels import Floats
from sim.cost.preset import PRESETS
from sim.errors import InputError, TwoWallsError
from sim.studies.measured_engines import preset_name
from sim.studies.measured_metrics import RunFacts, family, predicted, unit_of
from sim.studies.measured_rows import MeasuredRow, read_rows
from sim.studies.measured_scenarios import Case, cases_of
from sim.studies.validate import run_case, saturated, simulated_rows
from sim.studies.validate_report import Group, groups

PARAMETERS = ("layer_s", "host_step_s", "host_request_s", "entry_s")
"""What is fitted if nothing else is asked for."""
WEIGHTS = {"ttft": 0.3, "tpot": 1.0, "itl": 1.0, "output throughput": 1.0, "e2e": 1.0}
"""Weight of a residual by metric: how a harness sends its requests, which TTFT depends on most, is seldom stated."""
SHORTEST_S = 1e-7
LARGEST_STEP = 3.5
"""A value is looked for within this many factors of e of where it starts."""
PULL = 0.01
"""What no row tells stays where it began: a value e times as large costs as much as one row that is off by this share."""
ENOUGH = 3e-3
"""A fit ends where a step lessens the sum of squares by no more than this share, or moves by no more than it."""
MOST_EVALUATIONS = 12
"""Steps of a fit at most, each of which simulates every case once for each parameter."""
MOST_CASES = 150
MOST_OTHERS = 60
"""Runs that a fit without some group uses at most, as many of each of the other groups."""
MOVED = 1.3
"""A fit without some group begins this factor from the preset, which was chosen with that group in sight; shares of a clock begin
half-way to 1."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A group predicted from a fit to the others."""

    group: str
    values: Mapping[str, float]
    """Parameter -> value fitted without the group."""
    errors: Sequence[Group]
    """Of all its rows, by metric."""

    def lines(self) -> Iterator[str]:
        found = ", ".join(f"{name} = {value:.3g}" for name, value in self.values.items())
        yield f"  without {self.group}: {found}"
        for error in self.errors:
            size, sign = f"{error.median_abs_error:.1%}", f"{error.median_error:+.1%}"
            yield f"    its {error.metric}: {error.n} rows, median error {size}, median signed {sign}"


@dataclass(frozen=True, slots=True)
class EngineFit:
    """What a calibration found."""

    engine: str
    values: Mapping[str, float]
    """Parameter of the preset -> fitted value, seconds or a share."""
    before: Mapping[str, float]
    """Metric -> median absolute error with the values before."""
    after: Mapping[str, float]
    left_out: Sequence[LeftOut]
    rows: int

    def text(self) -> str:
        """The preset's lines, and the errors before and after."""
        lines = [f"{self.engine}, fitted to {self.rows} rows"]
        lines += [f"  {name} = {value:.4g}" for name, value in self.values.items()]
        for metric in self.before:
            lines.append(f"  {metric}: median error {self.before[metric]:.1%} before, {self.after[metric]:.1%} after")
        return "\n".join([*lines, *(line for group in self.left_out for line in group.lines())])


def calibrate_engine(
    path: Path,
    engine: str,
    names: Sequence[str] = PARAMETERS,
    leave_out: Callable[[MeasuredRow], str] | None = None,
    most_cases: int = MOST_CASES,
) -> EngineFit:
    """Fits the fields `names` of the preset `engine` to the rows of `path` that this engine was measured with.

    Args:
        leave_out: group of a row; each group is once predicted, whole, from a fit to the others.
        most_cases: benchmark runs to fit to at most, evenly thinned.

    Raises:
        InputError: no row of the file was measured with this engine.
    """
    every = _cases(path, engine)
    cases = thinned(every, most_cases)
    if not cases:
        raise InputError(str(path), f"holds no row of engine '{engine}' that can be simulated", "")
    start = np.array([max(getattr(PRESETS[engine], name), SHORTEST_S) for name in names])
    before = _errors(engine, names, start, cases)
    values = _fit(engine, names, start, cases)
    after = _errors(engine, names, values, cases)
    left_out = [] if leave_out is None else [*_left_out(engine, names, every, leave_out)]
    found = dict(zip(names, values.tolist(), strict=True))
    return EngineFit(engine, found, _medians(before), _medians(after), left_out, len(after))


def _left_out(
    engine: str, names: Sequence[str], cases: Sequence[Case], leave_out: Callable[[MeasuredRow], str]
) -> Iterator[LeftOut]:
    """Each group of cases, predicted from a fit to the others."""
    by_group: dict[str, list[Case]] = {}
    for case in cases:
        by_group.setdefault(leave_out(case.rows[0]), []).append(case)
    usual = [getattr(PRESETS[engine], name) for name in names]
    moved = [
        value * MOVED if name.endswith("_s") else (1 + value) / 2 for name, value in zip(names, usual, strict=True)
    ]
    start = np.array([max(value, SHORTEST_S) for value in moved])
    if len(by_group) < 2:
        return
    for group, own in by_group.items():
        share = -(-MOST_OTHERS // (len(by_group) - 1))
        others = [case for name, rest in by_group.items() if name != group for case in thinned(rest, share)]
        values = _fit(engine, names, start, others)
        fitted = dict(zip(names, values.tolist(), strict=True))
        with preset_with(engine, fitted):
            errors = groups(simulated_rows(own), by=("all",))
        yield LeftOut(group, fitted, errors)


def _cases(path: Path, engine: str) -> list[Case]:
    rows = [row for row in read_rows(path) if row.kind == "e2e" and family(row.metric) in WEIGHTS and not row.problem]
    rows = [row for row in rows if _of(row, engine)]
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
        return np.array([*(WEIGHTS[metric] * error for _, metric, error in found), *(PULL * (x - 1))])

    found = least_squares(
        residuals,
        np.ones(len(start)),
        loss="soft_l1",
        f_scale=0.1,
        diff_step=0.05,
        ftol=ENOUGH,
        xtol=ENOUGH,
        max_nfev=MOST_EVALUATIONS,
        bounds=(1 - LARGEST_STEP, 1 + LARGEST_STEP),
    )
    return np.asarray(start * np.exp(found.x - 1), dtype=np.float64)


def _errors(engine: str, names: Sequence[str], values: Floats, cases: Sequence[Case]) -> list[tuple[str, str, float]]:
    """(row id, metric, log of predicted over measured) with these values in the preset; the same rows every time."""
    with preset_with(engine, dict(zip(names, values.tolist(), strict=True))):
        return [error for case in cases for error in _case_errors(case)]


@contextmanager
def preset_with(engine: str, values: Mapping[str, float]) -> Iterator[None]:
    """The preset holds these values, by field, for as long as the block lasts."""
    usual = PRESETS[engine]
    changed: dict[str, Any] = dict(values)
    PRESETS[engine] = dataclasses.replace(usual, **changed)
    try:
        yield
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
