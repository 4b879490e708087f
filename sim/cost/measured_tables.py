"""Measured kernel tables (NVIDIA aiconfigurator's parquet files) as arrays in SI units.

What to beware of: latency is in milliseconds; several rows of one shape are several kernels, of which an engine takes the
fastest; a window_size other than 0 is sliding-window attention; `step` of a decode row is the number of earlier tokens.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.cost.kernels import Floats
from sim.errors import InputError
from sim.hardware.gpu import Gpu, load_gpu

VARIABLE = "TWOWALLS_TABLES"
"""Environment variable that names a folder of tables: one folder a GPU, or the folder of one GPU."""
PACKAGE = "aiconfigurator_core"
"""Optional package that brings tables of many GPUs and engines (PyPI: aiconfigurator-core, Apache-2.0)."""
DEFAULT_FRAMEWORK = "vllm"

Where = tuple[tuple[str, str | int], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one table: the fastest of every shape."""

    columns: Mapping[str, Floats]
    """The shape's columns, and `latency_s`."""
    origin: str
    """Folder and file, engine and version, for readers."""
    engine: str = ""
    """Whose kernels: vllm, trtllm, sglang; empty where the file does not say."""
    version: str = ""
    """Of that engine; empty where the file does not say."""

    def __getitem__(self, column: str) -> Floats:
        return self.columns[column]

    def __len__(self) -> int:
        return len(self.columns["latency_s"])

    def only(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Table:
        """The rows marked true, or the rows of these indices."""
        return Table(
            {name: values[rows] for name, values in self.columns.items()}, self.origin, self.engine, self.version
        )


@dataclass(frozen=True, slots=True)
class GpuTables:
    """The tables of one GPU: `folder`/<family>/<file>, or `folder`/<family>/<framework>/<version>/<file>."""

    folder: Path
    framework: str = DEFAULT_FRAMEWORK

    def read(self, family: str, file: str, where: Mapping[str, str | int], shape: Sequence[str]) -> Table | None:
        """The fastest row of every shape, or None where there is no such file or no such row.

        Args:
            family: gemm, attention, mla, moe or quantize.
            file: name of the parquet file.
            where: values that columns must have; a column that the file lacks counts as matching.
            shape: columns that together name a shape.

        Raises:
            InputError: the file lacks one of the columns.
        """
        for paths in self.paths(family, file):
            tables = [table for path in paths if (table := _read(path, tuple(where.items()), tuple(shape))) is not None]
            most = max((len(table) for table in tables), default=0)
            # the newest may be a release candidate, which brings only the few shapes that it added
            for table in reversed(tables):
                if 2 * len(table) >= most:
                    return table
        return None

    def paths(self, family: str, file: str) -> Iterator[list[Path]]:
        """The places to look in one after the other, each with its versions in ascending order."""
        yield [path for path in [self.folder / family / file] if path.is_file()]
        for framework in dict.fromkeys((self.framework, DEFAULT_FRAMEWORK)):
            yield sorted((self.folder / family / framework).glob(f"*/{file}"), key=_version)


def find_tables(gpu: Gpu, framework: str = DEFAULT_FRAMEWORK, where: str = "costs") -> GpuTables | None:
    """The measured tables of `gpu`, or None where there are tables but none of this GPU.

    They are looked for in the folder that TWOWALLS_TABLES names, else in the installed package aiconfigurator-core.

    Args:
        gpu: of the catalogue.
        framework: whose kernels, where tables of several engines are there: vllm, trtllm or sglang.
        where: file and key path that asks for tables, for the error message.

    Raises:
        InputError: no tables are installed, or TWOWALLS_TABLES names no folder.
    """
    root = tables_root(where, ", or write costs: roofline")
    if (root / "gemm").is_dir() or (root / "attention").is_dir():
        return GpuTables(root, framework)
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        try:
            if load_gpu(folder.name).name == gpu.name:
                return GpuTables(folder, framework)
        except InputError:
            continue
    return None


def tables_root(where: str, otherwise: str = "") -> Path:
    """The folder of the installed tables, one folder a GPU or the folder of one GPU.

    Args:
        where: what asks for tables, for the error message.
        otherwise: what the message offers beside installing them.

    Raises:
        InputError: no tables are installed, or TWOWALLS_TABLES names no folder.
    """
    named = os.environ.get(VARIABLE)
    if named:
        folder = Path(named).expanduser()
        if not folder.is_dir():
            raise InputError(where, f"{VARIABLE} is '{named}', which is no folder")
        return folder
    spec = importlib.util.find_spec(PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / "systems" / "data"
        if folder.is_dir():
            return folder
    raise InputError(
        where,
        "no measured kernel tables are installed",
        f'pip install "twowalls[measured]", or set {VARIABLE} to a folder of tables{otherwise}',
    )


def _version(path: Path) -> tuple[int, ...]:
    """Sorts folders named by version; a release comes after its own candidates (1.3.0rc20 before 1.3.0)."""
    name = path.parent.name
    release, _, candidate = name.partition("rc")
    numbers = [int(text) for text in re.findall(r"\d+", release)]
    return (*(numbers + [0] * 4)[:4], int(candidate) if candidate.isdigit() else 10**6)


@lru_cache(maxsize=64)
def _read(path: Path, where: Where, shape: tuple[str, ...]) -> Table | None:
    import pyarrow.parquet as parquet

    has = set(parquet.read_schema(path).names)
    missing = [name for name in (*shape, "latency") if name not in has]
    if missing:
        raise InputError(str(path), f"lacks the columns {', '.join(missing)}")
    origins = [name for name in ("framework", "version") if name in has]
    filters = [(name, "==", value) for name, value in where if name in has]
    raw = parquet.read_table(path, columns=[*shape, "latency", *origins], filters=filters or None)
    if not raw.num_rows:
        return None
    columns = {name: raw[name].to_numpy().astype(np.float64) for name in (*shape, "latency")}
    latency_s = columns.pop("latency") * 1e-3
    first = fastest_rows([columns[name] for name in shape], latency_s)
    parts = path.parts[-3:] if path.parent.name in ("gemm", "attention", "mla", "moe", "quantize") else path.parts[-5:]
    said = " ".join(str(raw[name][0]) for name in origins)
    kept = {name: column[first] for name, column in columns.items()} | {"latency_s": latency_s[first]}
    engine, version = (str(raw[name][0]) if name in has else "" for name in ("framework", "version"))
    return Table(kept, "/".join(parts) + (f" ({said})" if said else ""), engine.lower(), version)


def fastest_rows(shape: Sequence[NDArray[Any]], latency: Floats) -> NDArray[np.intp]:
    """Indices of one row for each shape, that of the least latency; `shape` holds the columns that name a shape."""
    code = np.zeros(len(latency), dtype=np.int64)
    for column in shape:
        _, inverse = np.unique(column, return_inverse=True)
        code = code * (int(inverse.max()) + 1) + inverse
    order = np.lexsort((latency, code))
    return order[np.r_[True, np.diff(code[order]) > 0]]
