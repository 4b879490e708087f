"""Readers of trace files, one function a format, and how a format is recognised.

A reader turns a file into plain columns; order, zero point and failed requests are the caller's.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError


class Rows(NamedTuple):
    """The columns of a trace file, in its order; times in seconds from any zero."""

    arrival_s: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    hash_ids: Sequence[list[int]] | None = None
    hash_block_size: int = 0


# columns (time, input tokens, output tokens) by format; found by name, never by place
_COLUMNS = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
    "csv": ("arrival_s", "input_tokens", "output_tokens"),
}
# tokens of a hashed block: Mooncake (FAST'25 trace description), vLLM's --timed-trace-chunk-hash-size default
_MOONCAKE_BLOCK_TOKENS, _TIMED_TRACE_BLOCK_TOKENS = 512, 16


def detect(path: Path) -> str:
    """The format of `path`, by its extension and its first line.

    Raises:
        InputError: not recognised, with what was found.
    """
    if path.is_dir() or path.name.endswith("-trace.csv"):
        return "servegen"
    if path.name.endswith("-dataset.json"):
        beside = path.name.replace("-dataset.json", "-trace.csv")
        raise InputError(
            str(path), "holds the lengths of a ServeGen client, not its requests", f"give {beside} beside it"
        )
    if path.suffix.lower() == ".parquet":
        return "parquet"
    with _open(path) as file:
        first, more = file.readline().strip(), file.readline()
    if not first:
        problem = "begins with an empty line" if more else "is empty"
        raise InputError(str(path), problem, "give a trace with at least one request, from the first line on")
    if first.startswith("{"):
        return _jsonl_kind(first, path)
    header = _cells(first)
    for name, columns in _COLUMNS.items():
        if all(column in header for column in columns):
            return name
    known = "; ".join(f"{name}: {','.join(columns)}" for name, columns in _COLUMNS.items())
    raise InputError(
        f"{path}:1", f"got the header '{first[:80]}', which no known format has", f"known headers: {known}"
    )


def _jsonl_kind(first: str, path: Path) -> str:
    record = _record(first, path, 1)
    tokens, ids = record.get("input_length"), record.get("hash_ids")
    if isinstance(tokens, int) and isinstance(ids, list):
        if len(ids) == -(-tokens // _MOONCAKE_BLOCK_TOKENS):
            return "mooncake"
        if len(ids) in (tokens // _TIMED_TRACE_BLOCK_TOKENS, -(-tokens // _TIMED_TRACE_BLOCK_TOKENS)):
            return "timed_trace"
    raise InputError(
        f"{path}:1", "is JSON of an unknown kind", "name its format: mooncake (milliseconds) or timed_trace (seconds)"
    )


def read_csv(path: Path) -> Rows:
    """A plain CSV with the columns arrival_s, input_tokens, output_tokens (others are ignored)."""
    times, inputs, outputs = _csv_columns(path, "csv")
    return Rows(_seconds(times, path), _tokens(inputs, path, "input_tokens"), _tokens(outputs, path, "output_tokens"))


def read_burstgpt(path: Path) -> Rows:
    """BurstGPT, either layout: seconds from the first day; no response tokens means that the request failed."""
    times, inputs, outputs = _csv_columns(path, "burstgpt")
    return Rows(
        _seconds(times, path), _tokens(inputs, path, "Request tokens"), _tokens(outputs, path, "Response tokens")
    )


def read_azure(path: Path) -> Rows:
    """Azure LLM inference traces of 2023 and 2024: wall time with up to 7 fractional digits, perhaps with +00:00."""
    times, inputs, outputs = _csv_columns(path, "azure")
    arrival_s = _wall_seconds(times, path)
    return Rows(arrival_s, _tokens(inputs, path, "ContextTokens"), _tokens(outputs, path, "GeneratedTokens"))


def read_mooncake(path: Path) -> Rows:
    """Mooncake's JSONL: milliseconds, and prefix hashes of blocks of 512 tokens."""
    return _read_jsonl(path, 1e-3, _MOONCAKE_BLOCK_TOKENS)


def read_timed_trace(path: Path) -> Rows:
    """vLLM's timed_trace JSONL: seconds, and prefix hashes of blocks of 16 tokens."""
    return _read_jsonl(path, 1.0, _TIMED_TRACE_BLOCK_TOKENS)


def read_parquet(path: Path) -> Rows:
    """A parquet table with the columns arrival_s, input_tokens, output_tokens."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(str(path), f"is no parquet table ({error})") from None
    columns = []
    for name in _COLUMNS["csv"]:
        if name not in table.column_names:
            raise InputError(str(path), f"has no column '{name}'", f"its columns: {', '.join(table.column_names)}")
        columns.append(table[name].to_pylist())
    times, inputs, outputs = columns
    for row, values in enumerate(zip(times, inputs, outputs, strict=True), start=1):
        numeric = all(isinstance(value, (int, float)) for value in values)
        if not numeric or values[0] != values[0] or any(v < 0 or v != int(v) for v in values[1:]):
            raise InputError(f"{path}: row {row}", f"got {values}", "expected seconds and two whole numbers of tokens")
    return Rows(np.array(times, float), np.array(inputs, np.int64), np.array(outputs, np.int64))


READERS: dict[str, Callable[[Path], Rows]] = {
    "azure": read_azure,
    "burstgpt": read_burstgpt,
    "mooncake": read_mooncake,
    "timed_trace": read_timed_trace,
    "csv": read_csv,
    "parquet": read_parquet,
}


def _open(path: Path) -> Any:
    return path.open(encoding="utf-8-sig", errors="replace", newline="")


def _cells(line: str) -> list[str]:
    """The cells of one line; in quotes or not."""
    cells = next(csv.reader([line]), []) if '"' in line else line.split(",")
    return [cell.strip() for cell in cells]


def _csv_columns(path: Path, name: str) -> tuple[list[str], list[str], list[str]]:
    """The three columns of a CSV file, as text; index i stands on line i + 2, blank lines end the file."""
    with _open(path) as file:
        lines = file.read().split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    header = _cells(lines[0]) if lines else []
    places = []
    for column in _COLUMNS[name]:
        if column not in header:
            raise InputError(f"{path}:1", f"has no column '{column}'", f"its header: {', '.join(header)}")
        places.append(header.index(column))
    width = len(header)
    rows = [_cells(line) if '"' in line else line.split(",") for line in lines[1:]]
    for number, row in enumerate(rows, start=2):
        if len(row) != width:
            problem = f"has {len(row)} values where the header has {width}: '{lines[number - 1].strip()[:60]}'"
            raise InputError(f"{path}:{number}", problem, "fix or remove the line")
    time, inputs, outputs = ([row[place] for row in rows] for place in places)
    return time, inputs, outputs


def _tokens(column: Sequence[str], path: Path, name: str) -> NDArray[np.int64]:
    try:
        tokens = np.array([int(cell) for cell in column], dtype=np.int64)
    except (ValueError, OverflowError):
        _refuse(column, path, name, "a whole number of tokens", lambda cell: 0 <= int(cell) < 2**63)
    if len(tokens) and tokens.min() < 0:
        _refuse(column, path, name, "zero or more tokens", lambda cell: int(cell) >= 0)
    return tokens


def _seconds(column: Sequence[str], path: Path) -> NDArray[np.float64]:
    try:
        seconds = np.array([float(cell) for cell in column])
    except ValueError:
        _refuse(column, path, "the time", "seconds", _is_finite)
    if not np.isfinite(seconds).all():
        _refuse(column, path, "the time", "finite seconds", _is_finite)
    return seconds


def _is_finite(cell: str) -> bool:
    return bool(np.isfinite(float(cell)))


def _wall_seconds(column: Sequence[str], path: Path) -> NDArray[np.float64]:
    """Seconds of wall times, from the first; exact to the 100 ns that the files have, which datetime would cut."""
    stamps = [cell.strip() for cell in column]
    if any(stamp.endswith("+00:00") for stamp in stamps[:1]):
        stamps = [stamp.removesuffix("+00:00") for stamp in stamps]
    # numpy also takes words and bare years: only a full date with a time may pass
    plain = [stamp if len(stamp) >= 19 and stamp[4] == "-" and stamp[13] == ":" else "?" for stamp in stamps]
    try:
        nanoseconds = np.array(plain, dtype="datetime64[ns]").astype(np.int64)
    except ValueError:
        _refuse(column, path, "the time", "a time such as 2023-11-16 18:17:03.9799600", _is_wall_time)
    if not len(nanoseconds):
        return np.zeros(0)
    return np.asarray((nanoseconds - nanoseconds[0]) / 1e9)


def _is_wall_time(cell: str) -> bool:
    stamp = datetime.fromisoformat(cell.strip().removesuffix("+00:00"))
    return stamp.tzinfo in (None, UTC) and len(cell.strip()) >= 19


def _refuse(column: Sequence[str], path: Path, name: str, expected: str, good: Callable[[str], bool]) -> NoReturn:
    """Name the first line whose cell is not good."""
    for number, cell in enumerate(column, start=2):
        try:
            fine = good(cell)
        except ValueError:
            fine = False
        if not fine:
            raise InputError(f"{path}:{number}", f"got '{cell.strip()}' for {name}", f"expected {expected}")
    raise InputError(str(path), f"has a value that is no {expected} in {name}")


def _record(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{number}", f"is not JSON ({error.msg})", "every line holds one JSON object") from None
    if not isinstance(record, dict):
        raise InputError(f"{path}:{number}", "is not a JSON object", "every line holds one JSON object")
    return record


def _read_jsonl(path: Path, unit_s: float, block_tokens: int) -> Rows:
    """Lines {"timestamp", "input_length", "output_length", "hash_ids"}; the hashes may be absent on all lines."""
    times: list[float] = []
    inputs: list[int] = []
    outputs: list[int] = []
    hashes: list[list[int]] = []
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            record = _record(line, path, number)
            time, ids = record.get("timestamp"), record.get("hash_ids")
            if not isinstance(time, (int, float)) or not np.isfinite(time):
                raise InputError(f"{path}:{number}", f"got {time!r} for timestamp", "expected a number")
            for name, column in (("input_length", inputs), ("output_length", outputs)):
                tokens = record.get(name)
                if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
                    raise InputError(
                        f"{path}:{number}", f"got {tokens!r} for {name}", "expected a whole number of tokens"
                    )
                column.append(tokens)
            times.append(time * unit_s)
            if ids is not None:
                hashes.append(_whole_hashes(ids, inputs[-1], block_tokens, f"{path}:{number}"))
    if hashes and len(hashes) != len(times):
        raise InputError(
            str(path), f"has hash_ids on {len(hashes)} of {len(times)} lines", "give them on all or on none"
        )
    arrays = np.array(times, float), np.array(inputs, np.int64), np.array(outputs, np.int64)
    return Rows(*arrays, hashes or None, block_tokens)


def _whole_hashes(ids: object, tokens: int, block_tokens: int, where: str) -> list[int]:
    """The hashes of one prompt: whole numbers, for every block or for every full block of it."""
    if not isinstance(ids, list) or not all(type(block) is int for block in ids):
        raise InputError(where, "got hash_ids that are no list of whole numbers", "expected one number a block")
    if len(ids) not in (tokens // block_tokens, -(-tokens // block_tokens)):
        needed = -(-tokens // block_tokens)
        problem = f"has {len(ids)} hash_ids for {tokens} tokens, which are {needed} blocks of {block_tokens}"
        raise InputError(where, problem, "choose the format with that block size")
    return ids
