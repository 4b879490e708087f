"""Files that a scenario names, carried to a worker that shares no disk with whoever asked."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Attachments = Mapping[str, bytes]
"""Absolute path of a file on the asking machine -> its content."""

_PLACES = (
    ("model",),
    ("cluster", "topology"),
    ("cluster", "gpu"),
    ("engine", "calibration"),
    ("workload", "arrivals", "path"),
    ("workload", "lengths", "path"),
)
"""Keys of a scenario that may hold the path of a file (or of a folder, for models and ServeGen traces)."""
_NEVER = {".safetensors", ".bin", ".gguf", ".pt", ".pth"}
"""Weights beside a config.json stay where they are."""


def attach(scenario: Mapping[str, Any]) -> dict[str, bytes]:
    """The content of every file that `scenario` (plain data with absolute paths) names.

    Raises:
        OSError: a file cannot be read.
    """
    found: dict[str, bytes] = {}
    for section, key in _sections(scenario):
        path = Path(str(section[key]))
        files = [path] if path.is_file() else [f for f in path.iterdir() if f.suffix not in _NEVER and f.is_file()]
        found |= {str(file): file.read_bytes() for file in sorted(files)}
    return found


def _sections(scenario: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """(section, key) of every path in a scenario."""
    for *sections, key in _PLACES:
        section: Any = scenario
        for name in sections:
            section = section.get(name) if isinstance(section, Mapping) else None
        if isinstance(section, Mapping) and Path(str(section.get(key) or "")).is_absolute():
            yield section, key


@dataclass(frozen=True)
class Unpacked:
    """A scenario whose files stand in a folder of the worker."""

    scenario: Mapping[str, Any]
    _folder: str = ""
    """Stands before every path; empty where nothing was carried."""

    def original(self, **values: Any) -> dict[str, Any]:
        """`values` with the paths that the asking machine knows, so that a result is the same wherever it was computed."""
        return {name: self._restored(value) for name, value in values.items()}

    def _restored(self, value: Any) -> Any:
        if not self._folder:
            return value
        if isinstance(value, str):
            return value.replace(self._folder, "")
        if isinstance(value, bytes):
            return value.replace(self._folder.encode(), b"")
        if isinstance(value, dict):
            return {key: self._restored(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._restored(item) for item in value]
        return value


@contextmanager
def unpacked(scenario: Mapping[str, Any], attachments: Attachments) -> Iterator[Unpacked]:
    """`scenario` with its attachments written below a temporary folder, for as long as the block lasts."""
    if not attachments:
        yield Unpacked(scenario)
        return
    with tempfile.TemporaryDirectory(prefix="twowalls-") as folder:
        for name, content in attachments.items():
            file = Path(folder + name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        yield Unpacked(_moved(scenario, folder), folder)


def _moved(scenario: Mapping[str, Any], folder: str) -> dict[str, Any]:
    import copy

    moved = copy.deepcopy(dict(scenario))
    for section, key in list(_sections(moved)):
        section[key] = folder + section[key]
    return moved
