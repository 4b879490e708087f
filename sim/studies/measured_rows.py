"""Rows of published measurements in the format of `measured.csv`, read as they are written.

Every row becomes a `MeasuredRow`; what a row means for a simulation is decided in `measured_scenarios.py` (end to end) and
`kernel_rows.py` (operators, collectives, memory).
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from sim.errors import InputError, nearest

COLUMNS = (
    "id", "source", "kind", "model", "precision", "gpu", "n_gpus", "nodes", "tp", "pp", "ep", "engine+version", "isl",
    "osl", "batch_or_concurrency_or_rate", "metric", "value", "unit", "conditions",
)  # fmt: skip
KINDS = ("e2e", "operator", "collective", "memory")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """One measurement; text as in the file."""

    id: str
    kind: str
    model: str
    precision: str
    gpu: str
    gpus: int
    nodes: int
    tensor: str
    pipeline: str
    expert: str
    engine: str
    isl: str
    osl: str
    load: str
    metric: str
    value: float
    unit: str
    conditions: str
    publication: str = ""
    """Where it was published, with the path of the file there."""
    problem: str = ""
    """Why nothing can be compared with it: its value or a count of GPUs makes no sense; empty if they do."""

    @property
    def source(self) -> str:
        """The id without its running number: rows of one publication."""
        return re.sub(r"[-_]?\d+$", "", self.id)

    @property
    def run(self) -> tuple[str, ...]:
        """What rows of one benchmark run share: their metrics come from one simulation."""
        return (
            self.source, self.model, self.precision, self.gpu, str(self.gpus), str(self.nodes), self.tensor, self.pipeline,
            self.expert, self.engine, self.isl, self.osl, self.load, harness_words(self.conditions),
        )  # fmt: skip


def harness_words(conditions: str) -> str:
    """Conditions without what only reports results (source ids, percentiles, memory in use)."""
    return re.sub(r"(source id \S+;|per-token p50.*|mem\(GB\)=\S+|FTL.*)", "", conditions).strip()


def read_rows(path: Path) -> list[MeasuredRow]:
    """The rows of a CSV file of measurements.

    Raises:
        InputError: the file is missing or no such table, a row is short or of an unknown kind, or an id stands twice.
    """
    needed = "a CSV with the columns " + ", ".join(COLUMNS)
    if not path.is_file():
        raise InputError(str(path), "there is no such file", needed)
    rows, lines = [], dict[str, int]()
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            _check_header(reader.fieldnames, str(path))
            for record in reader:
                where = f"{path.name}, line {reader.line_num}"
                row = _row(record, where)
                first = lines.setdefault(row.id, reader.line_num)
                if first != reader.line_num:  # answers are found again by id
                    raise InputError(
                        f"{where}: id", f"got '{row.id}', as line {first}", "an id of its own for each row"
                    )
                rows.append(row)
    except (UnicodeDecodeError, csv.Error):
        raise InputError(str(path), "is not UTF-8 text", needed) from None
    if not rows:
        raise InputError(str(path), "holds no measurement", "a row for each, below the header")
    return rows


def _check_header(found: Sequence[str] | None, where: str) -> None:
    if not found:
        raise InputError(where, "is empty", "a CSV with the columns " + ", ".join(COLUMNS))
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        more = f", and {len(missing) - 1} more" if missing[1:] else ""
        hint = f"found: {', '.join(found)[:200]}; needed: {', '.join(COLUMNS)}"
        raise InputError(where, f"column {missing[0]} is missing{more}", hint)


def _row(record: Mapping[str, str | None], where: str) -> MeasuredRow:
    given = {name: text for name, text in record.items() if text is not None}
    if len(given) < len(record):
        hint = "fix or remove the line"
        raise InputError(where, f"has {len(given)} values where the header has {len(record)}", hint)
    return _measured(given, where)


def _measured(record: Mapping[str, str], where: str) -> MeasuredRow:
    kind = record["kind"].strip()
    if kind not in KINDS:
        raise InputError(f"{where}: kind", f"got '{kind}'", nearest(kind, KINDS))
    problems: list[str] = []

    def read(name: str, parse: Callable[[str, str], T], instead: T) -> T:
        try:
            return parse(record[name].strip(), name)
        except InputError as error:
            problems.append(str(error).replace("\n ", ";"))
            return instead

    row = MeasuredRow(
        id=record["id"],
        kind=kind,
        model=record["model"].strip(),
        precision=record["precision"].strip(),
        gpu=record["gpu"].strip(),
        gpus=read("n_gpus", _whole, 1),
        nodes=read("nodes", _whole, 1),
        tensor=read("tp", _ranks, ""),
        pipeline=read("pp", _ranks, ""),
        expert=read("ep", _ranks, ""),
        engine=record["engine+version"].strip(),
        isl=record["isl"].strip(),
        osl=record["osl"].strip(),
        load=record["batch_or_concurrency_or_rate"].strip(),
        metric=record["metric"].strip(),
        value=read("value", _number, math.nan),
        unit=record["unit"].strip(),
        conditions=record["conditions"].strip(),
        publication=record["source"].strip(),
    )
    return replace(row, problem="; ".join(problems))


def _number(text: str, where: str) -> float:
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(where, f"got '{text}'", "a number greater than zero")
    return value


def _whole(text: str, where: str) -> int:
    """A count; "unknown" and blank count as 1."""
    if text in ("", "unknown"):
        return 1
    if not text.isdecimal() or not int(text):
        raise InputError(where, f"got '{text}'", "a whole number of one or more, unknown, or nothing")
    return int(text)


def _ranks(text: str, where: str) -> str:
    """Over how many GPUs something is cut, as it is written: a count, or words that say why there is none."""
    if text.isdecimal():
        _whole(text, where)
    return text


def tokens(text: str) -> tuple[int, int]:
    """(tokens shared with others, own tokens) of a length: "512", "~5", "100 + 466", "100 system + 447 question (mean)".

    Raises:
        InputError: it holds no number.
    """
    numbers = [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*(?:\.\d+)?", re.sub(r"\(.*?\)", "", text))]
    if not numbers or len(numbers) > 2 or (len(numbers) == 2 and "+" not in text):
        raise InputError("isl/osl", f"got '{text}'", 'a number of tokens, or "a + b" (shared prefix + own)')
    shared, own = (numbers[0], numbers[1]) if len(numbers) == 2 else (0.0, numbers[0])
    return round(shared), max(round(own), 1)
