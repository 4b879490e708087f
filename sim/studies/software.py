"""What computed a result, as one digest: the simulator's code and data, and the libraries below it."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

from sim import catalogue
from sim.results.export import versions

_PACKAGE = Path(__file__).resolve().parents[1]
_COUNTS = {".py", ".yaml", ".json", ".csv"}


@cache
def software() -> str:
    """SHA-256 (hex) of versions, code and catalogue: while it stays the same, so does every result.

    The version alone would not do: in a checkout the code changes under one version, and a GPU's file decides a result
    as much as the scenario does.
    """
    total = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode())
    files = (path for path in _PACKAGE.rglob("*") if path.suffix in _COUNTS and path.is_file())
    # in a wheel, topologies and shipped scenarios stand below the package
    inside = sorted(path for path in files if path.relative_to(_PACKAGE).parts[0] != "data")
    for path in [*inside, *catalogue.files("topologies").values()]:
        total.update(f"{path.name}\0".encode())
        total.update(path.read_bytes())
    return total.hexdigest()
