"""Calibration files: what `twowalls calibrate` found, for scenarios to name (`engine.calibration`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim.errors import InputError

HEAD = "# Written by twowalls calibrate; a scenario names it: engine: {calibration: FILE}\n"

Interval = tuple[float, float]


def fitted_to(path: Path, what: str) -> str:
    """The source line of a calibration: the measured file, the beginning of its SHA-256, and what it is."""
    if path.is_dir():
        return f"{path.name}, {what}"
    return f"{path.name} ({hashlib.sha256(path.read_bytes()).hexdigest()[:12]}), {what}"


def factor(value: float, interval: Interval | None = None) -> dict[str, Any]:
    """A factor as the file holds it."""
    found: dict[str, Any] = {"factor": float(f"{value:.5g}")}
    return found if interval is None else found | {"interval": [float(f"{end:.5g}") for end in interval]}


def write_calibration(path: Path, source: str, **sections: Mapping[str, Any]) -> None:
    """Writes a calibration file, and reads it back.

    Args:
        source: what it was fitted to.
        sections: engine, kernels or links, as the file holds them.

    Raises:
        InputError: the folder does not exist.
    """
    import yaml

    from sim.scenario.calibration import load_calibration

    if not path.parent.is_dir():
        raise InputError("--out", f"got '{path}', whose folder does not exist", "make the folder first")
    text = yaml.safe_dump({"source": source, **sections}, sort_keys=False, allow_unicode=True, width=120)
    path.write_text(HEAD + text, encoding="utf-8")
    load_calibration(path, "--out")
