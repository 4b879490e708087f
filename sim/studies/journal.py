"""The journal of a results folder: one line of JSON for each finished scenario, written as it finishes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sim.results.export import plain_numbers


class Journal:
    """Entries by key in an append-only file; only the places of the lines are held in memory.

    An entry is plain data with `key` and `final`. What was interrupted in the middle of a line is passed over; of several
    entries with one key the last counts.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: BinaryIO = path.open("a+b")
        self._places: dict[str, int] = {}
        self._final: set[str] = set()
        self._index()

    def _index(self) -> None:
        self._file.seek(0)
        place, line = 0, b""
        for line in self._file:
            try:
                entry = json.loads(line)
                self._note(entry["key"], entry["final"], place)
            except (ValueError, KeyError, TypeError):
                pass  # a line that was cut off when the process was killed
            place += len(line)
        if line and not line.endswith(b"\n"):
            self._file.write(b"\n")

    def _note(self, key: str, final: bool, place: int) -> None:
        self._places[key] = place
        (self._final.add if final else self._final.discard)(key)

    def append(self, entry: dict[str, Any]) -> None:
        """Writes one entry; once this returns, killing the process no longer loses it."""
        self._file.seek(0, 2)
        self._note(entry["key"], entry["final"], self._file.tell())
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=plain_numbers)
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def holds(self, key: str) -> bool:
        """Whether the journal has an entry of `key` that would come out the same again."""
        return key in self._final

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def entry(self, key: str) -> dict[str, Any]:
        """The last entry of `key`."""
        self._file.seek(self._places[key])
        found: dict[str, Any] = json.loads(self._file.readline())
        return found

    def entries(self, keys: list[str]) -> Iterator[dict[str, Any]]:
        """The last entry of each of `keys` that has one, in their order, one at a time."""
        return (self.entry(key) for key in keys if key in self._places)

    def close(self) -> None:
        self._file.close()
