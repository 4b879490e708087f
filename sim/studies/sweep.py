"""Grids of scenarios: values along axes, their product or pairs, repeated over seeds."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.errors import InputError, TwoWallsError, nearest
from sim.results.console import table
from sim.scenario import Scenario
from sim.studies.estimate import METHOD, Estimate, estimate
from sim.studies.study import Case, Study

MOST_CELLS = 100_000
USER_AXIS, GPU_AXIS = "output_tokens_per_s_per_user", "output_throughput_per_gpu"
"""Tokens a second that a user sees, and that a GPU gives: the two axes of InferenceMAX's charts."""
METRICS = ("output_throughput", GPU_AXIS, USER_AXIS, "p99_ttft_ms", "p99_tpot_ms")
_SHOWN = {
    "output_throughput": "tok/s", GPU_AXIS: "tok/s/GPU", USER_AXIS: "tok/s/user",
    "p99_ttft_ms": "TTFT p99 ms", "p99_tpot_ms": "TPOT p99 ms",
}  # fmt: skip
_RANGE = re.compile(r"^\s*(?P<first>[\d.eE+-]+?)\.\.(?P<last>[\d.eE]+)(?P<step>[*+])(?P<by>[\d.eE]+)\s*$")
_STEPLESS = re.compile(r"^\s*[\d.eE+-]*\d\.\.\d[\d.eE]*\s*$")
_RANGES = "ranges are written 1..256*2 (each twice the last) or 1..9+2 (each two more)"
_STATISTIC = re.compile(r"^(ttft|tpot|itl|e2el|queue_time)\.(mean|median|std|p50|p90|p95|p99|p99\.9)$")


@dataclass(frozen=True, slots=True)
class Axis:
    """One key of the scenario and the values that it takes."""

    path: str
    values: tuple[Any, ...]

    @property
    def label(self) -> str:
        return self.path.rsplit(".", 1)[-1]

    @classmethod
    def parse(cls, text: str) -> Axis:
        """The axis written as `path=v1,v2,...`, `path=1..256*2` or `path=1..9+2`; each value is read as YAML.

        Raises:
            InputError: no `=`, no value, or a range that never ends.
        """
        from sim.scenario.loading import parse_yaml

        path, equals, right = text.partition("=")
        path = path.strip()
        if not equals or not path or not right.strip():
            raise InputError("--set", f"got '{text}'", "write a key path and its values: engine.max_num_seqs=64,256")
        where = f"--set {path}"
        match = _RANGE.match(right)
        if match:
            return cls(path, tuple(_range(match, where)))
        if _STEPLESS.match(right):
            raise InputError(where, f"got '{right}', a range without a step", _RANGES)
        parts = _split(right)
        if any(not part.strip() for part in parts):
            raise InputError(where, f"got '{right}', where a value is missing", "write values between the commas")
        return cls(path, tuple(parse_yaml(f"value: {part}", where)["value"] for part in parts))


def _range(match: re.Match[str], where: str) -> Iterator[float]:
    try:
        first, last, by = (float(match[name]) for name in ("first", "last", "by"))
    except ValueError:
        raise InputError(where, f"got '{match[0]}'", _RANGES) from None
    grows = by > 0 if match["step"] == "+" else by > 1 and first > 0
    if not grows or last < first:
        raise InputError(where, f"got '{match[0]}', which never reaches its end", _RANGES)
    whole = all(float(match[name]).is_integer() for name in ("first", "by"))
    for number in range(MOST_CELLS + 1):  # one more than allowed, for the grid to refuse
        value = first + number * by if match["step"] == "+" else first * by**number
        if value > last * (1 + 1e-9):
            return
        yield int(value) if whole else value


def _split(text: str) -> list[str]:
    """`text` cut at its commas, save those inside brackets or quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and not depth:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid: a case for each seed."""

    values: dict[str, Any]
    cases: list[Case]


def grid(base: Scenario, axes: Sequence[Axis], *, zipped: bool = False, seeds: int = 1) -> list[Cell]:
    """The points of a sweep; a point that is no valid scenario is a case with its error.

    Args:
        base: what the axes change.
        axes: along which it is changed.
        zipped: the first values together, then the second ones, and so on, instead of every combination.
        seeds: runs of each point, with the seeds from the scenario's own upwards.

    Raises:
        InputError: pairs of unequal length; an axis twice; more than `MOST_CELLS` points; no point is a valid scenario.
    """
    names = [axis.path for axis in axes]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"--set {twice}", "is given twice", "give all its values in one list")
    lengths = {len(axis.values) for axis in axes}
    if zipped and len(lengths) > 1:
        counts = ", ".join(f"{axis.path} {len(axis.values)}" for axis in axes)
        raise InputError("--zip", f"got lists of unequal length: {counts}", "give each the same number of values")
    count = seeds * (max(lengths, default=1) if zipped else math.prod(len(axis.values) for axis in axes))
    if count > MOST_CELLS:
        raise InputError("--set", f"asks for {count:,} runs", f"at most {MOST_CELLS:,} at a time")
    lists = [axis.values for axis in axes]
    points = zip(*lists, strict=True) if zipped else itertools.product(*lists)
    cells = [_cell(base, dict(zip(names, point, strict=True)), seeds) for point in points]
    errors = [case.error for cell in cells for case in cell.cases]
    if errors and errors[0] is not None and None not in errors:
        raise InputError("--set", "makes no point a valid scenario", errors[0].reason)
    return cells


def _cell(base: Scenario, values: dict[str, Any], seeds: int) -> Cell:
    labels = [f"{path.rsplit('.', 1)[-1]}={_plain(value)}" for path, value in values.items()]
    asked = values.get("workload.seed", base.workload.seed)
    first = asked if isinstance(asked, int) else base.workload.seed
    cases = []
    for seed in range(first, first + seeds):
        seeded = {"workload.seed": seed} if isinstance(asked, int) else {}
        name = "-".join([base.name, *labels, *([f"seed={seed}"] if seeds > 1 else [])])
        found: Scenario | TwoWallsError
        try:
            found = base.with_overrides({**values, **seeded, "name": name})
        except TwoWallsError as error:
            found = error
        cases.append(Case.of(name, found))
    return Cell(values, cases)


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True)
class Point:
    """What became of one point of the grid, over its seeds."""

    values: dict[str, Any]
    statuses: dict[str, int]
    reason: str
    metrics: dict[str, Estimate]
    """By name of the summary, of the seeds that gave a result."""

    @property
    def done(self) -> bool:
        return bool(self.metrics)

    def to_dict(self) -> dict[str, Any]:
        metrics = {name: found.to_dict() for name, found in self.metrics.items()}
        return {"parameters": self.values, "statuses": self.statuses, "reason": self.reason, "metrics": metrics}


def metric_key(name: str) -> str:
    """The key of the summary that `name` stands for: ttft.p99 is p99_ttft_ms."""
    match = _STATISTIC.match(name)
    return f"{match[2]}_{match[1]}_ms" if match else name


def points(cells: Sequence[Cell], study: Study, metrics: Sequence[str] = ()) -> list[Point]:
    """What became of each cell.

    Args:
        metrics: further keys of the summary, beside `METRICS`.

    Raises:
        InputError: a metric that no run has.
    """
    found: list[Point] = []
    known: set[str] = set()
    wanted = list(dict.fromkeys([*METRICS, *metrics]))
    for cell in cells:
        statuses: dict[str, int] = {}
        samples: dict[str, list[float]] = {name: [] for name in wanted}
        reason = ""
        for case in cell.cases:
            entry = study.entry(case)
            if entry is None:
                continue
            statuses[entry["status"]] = statuses.get(entry["status"], 0) + 1
            reason = reason or entry["reason"]
            record: Mapping[str, Any] = entry["record"] or {}
            known.update(name for name, value in record.items() if isinstance(value, (int, float)))
            for name, values in samples.items():
                if isinstance(record.get(name), (int, float)):
                    values.append(float(record[name]))
        means = {name: mean for name, values in samples.items() if (mean := estimate(values)) is not None}
        found.append(Point(cell.values, statuses, reason, means))
    for name in metrics:
        if known and name not in known:
            raise InputError("--plot", f"got the metric '{name}', which no run has", nearest(name, known))
    return found


def pareto(found: Sequence[Point]) -> list[Point]:
    """The points that no other beats in tokens a second both a user and a GPU, from the fastest for a user on."""
    whole = [point for point in found if {USER_AXIS, GPU_AXIS} <= set(point.metrics)]
    front: list[Point] = []
    for point in sorted(whole, key=lambda p: (-p.metrics[USER_AXIS].mean, -p.metrics[GPU_AXIS].mean)):
        if not front or point.metrics[GPU_AXIS].mean > front[-1].metrics[GPU_AXIS].mean:
            front.append(point)
    return front


def sweep_table(axes: Sequence[Axis], found: Sequence[Point], metrics: Sequence[str] = ()) -> str:
    """One line a point: its values, what became of it, the metrics with their intervals, and whether it is on the front."""
    front = {id(point) for point in pareto(found)}
    names = list(dict.fromkeys([*METRICS, *metrics]))
    header = [*(axis.label for axis in axes), "status", *(_SHOWN.get(name, name) for name in names), "front"]
    lines = []
    for point in found:
        status = ", ".join(point.statuses) if len(point.statuses) < 2 else _counts(point.statuses)
        numbers = [_number(point.metrics.get(name)) for name in names]
        lines.append([*map(_plain, point.values.values()), status, *numbers, "*" if id(point) in front else ""])
    text = [table(header, lines), "", "front *: no other point gives more tokens/s to a user and to a GPU"]
    if any(mean.count > 1 for point in found for mean in point.metrics.values()):
        text.append(f"± {METHOD}")
    reasons = [f"{', '.join(map(_plain, p.values.values()))}: {p.reason}" for p in found if p.reason]
    return "\n".join([*text, *(["", *reasons] if reasons else [])])


def _counts(statuses: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in statuses.items())


def _number(found: Estimate | None) -> str:
    if found is None:
        return "-"
    digits = 0 if abs(found.mean) >= 100 else 2
    noise = "" if found.half_width is None else f" ± {found.half_width:,.{digits}f}"
    return f"{found.mean:,.{digits}f}{noise}"
