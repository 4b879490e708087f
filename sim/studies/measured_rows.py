"""Rows of published measurements in the format of `measured.csv`, read as they are written.

Every row becomes a `MeasuredRow`; what a row means for a simulation is decided in `measured_scenarios.py` (end to end) and
`kernel_rows.py` (operators, collectives, memory).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sim.errors import InputError, nearest

COLUMNS = (
    "id", "source", "kind", "model", "precision", "gpu", "n_gpus", "nodes", "tp", "pp", "ep", "engine+version", "isl",
    "osl", "batch_or_concurrency_or_rate", "metric", "value", "unit", "conditions",
)  # fmt: skip
KINDS = ("e2e", "operator", "collective", "memory")


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
        InputError: the file is missing, a column is missing, or a value is not a number.
    """
    if not path.is_file():
        raise InputError(str(path), "there is no such file", "a CSV with the columns " + ", ".join(COLUMNS))
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            hint = nearest(missing[0], reader.fieldnames or ())
            raise InputError(str(path), f"column {missing[0]} is missing", hint)
        return [_row(record, f"{path.name}, line {reader.line_num}") for record in reader]


def _row(record: Mapping[str, str], where: str) -> MeasuredRow:
    kind = record["kind"].strip()
    if kind not in KINDS:
        raise InputError(f"{where}: kind", f"got '{kind}'", nearest(kind, KINDS))
    return MeasuredRow(
        id=record["id"],
        kind=kind,
        model=record["model"].strip(),
        precision=record["precision"].strip(),
        gpu=record["gpu"].strip(),
        gpus=_whole(record["n_gpus"], 1),
        nodes=_whole(record["nodes"], 1),
        tensor=record["tp"].strip(),
        pipeline=record["pp"].strip(),
        expert=record["ep"].strip(),
        engine=record["engine+version"].strip(),
        isl=record["isl"].strip(),
        osl=record["osl"].strip(),
        load=record["batch_or_concurrency_or_rate"].strip(),
        metric=record["metric"].strip(),
        value=_number(record["value"], f"{where}: value"),
        unit=record["unit"].strip(),
        conditions=record["conditions"].strip(),
        publication=record["source"].strip(),
    )


def _number(text: str, where: str) -> float:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        raise InputError(where, f"got '{text}'", "a number") from None


def _whole(text: str, default: int) -> int:
    """A count; "unknown" and blank count as `default`."""
    return int(text) if text.strip().isdigit() else default


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
