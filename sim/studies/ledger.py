"""The ledger of a study: one line a scenario with its parameters, its metrics, and what became of it.

`ledger.csv` and `ledger.parquet` hold the same table, equal to the last byte whatever computed it: wall times, dates and
hosts are not in it.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_HEAD = ("scenario", "status", "reason", "key")
_NO_PARAMETER = {"name", "description", "assert"}
_NO_METRIC = {
    # what vLLM repeats of the scenario, and what says nothing about it
    "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate", "burstiness",
    "max_concurrency", "warmup_requests", "rtfx", "status", "seed", "simulator_version",
}  # fmt: skip
_ROWS_AT_ONCE = 1024

Entries = Callable[[], Iterable[Mapping[str, Any]]]
"""Gives the entries of a journal from the start, as often as it is asked."""


def ledger_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the ledger from an entry {name, status, reason, key, scenario, record, facts}; None is left out.

    Args:
        entry: `facts` are further columns that a study knows of the scenario.
    """
    record = entry.get("record") or {}
    row: dict[str, Any] = {
        "scenario": entry["name"],
        "status": entry["status"],
        "reason": " ".join(entry["reason"].split()) or None,
        "key": entry["key"],
        **(entry.get("facts") or {}),
        **dict(_flat({k: v for k, v in (entry.get("scenario") or {}).items() if k not in _NO_PARAMETER})),
        **{name: value for name, value in record.items() if name not in _NO_METRIC and _is_metric(value)},
        **{f"walls_ms_per_token.{cause}": ms for cause, ms in (record.get("walls_ms_per_token") or {}).items()},
    }
    return {name: value for name, value in row.items() if value is not None}


def _is_metric(value: object) -> bool:
    return isinstance(value, (int, float, str))


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested data; a list becomes its JSON."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, list) else value


def write_ledger(entries: Entries, folder: Path) -> None:
    """Write ledger.csv and ledger.parquet into `folder`, a part at a time; a reader never sees half a file."""
    columns = _columns(entries)
    _replace(folder / "ledger.csv", lambda path: _write_csv(entries, columns, path))
    _replace(folder / "ledger.parquet", lambda path: _write_parquet(entries, columns, path))


def _columns(entries: Entries) -> dict[str, type]:
    """Columns in the order in which they first appear, with the narrowest type that holds every value."""
    found: dict[str, type] = dict.fromkeys(_HEAD, str)
    for entry in entries():
        for name, value in ledger_row(entry).items():
            before, kind = found.get(name), type(value)
            if before is not None and before is not kind:
                kind = float if {before, kind} == {int, float} else str
            found[name] = kind
    return found


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    part = path.with_name(f".{path.name}.part")
    write(part)
    os.replace(part, path)


def _write_csv(entries: Entries, columns: Mapping[str, type], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        for entry in entries():
            writer.writerow({name: _cell(value) for name, value in ledger_row(entry).items()})


def _cell(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value


def _write_parquet(entries: Entries, columns: Mapping[str, type], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        part: list[dict[str, Any]] = []
        for entry in entries():
            row = ledger_row(entry)
            part.append({name: columns[name](value) for name, value in row.items()})
            if len(part) == _ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist(part, schema))
                part = []
        if part or not columns:
            writer.write_table(pa.Table.from_pylist(part, schema))
