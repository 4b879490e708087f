"""Measured kernel tables as the fits read them: every column of a file, its texts too.

`sim/cost/measured_tables.py` reads the same files for runs, and says what to beware of in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.cost.measured_tables import DEFAULT_FRAMEWORK, GpuTables, fastest_rows
from sim.errors import InputError

Table = Mapping[str, NDArray[Any]]
"""Columns of one table by name, all of one length; `latency_s` is in seconds, texts stay texts."""


def read_table(
    folder: Path,
    file: str,
    where: Mapping[str, str | int],
    shape: Sequence[str],
    framework: str = DEFAULT_FRAMEWORK,
) -> Table | None:
    """The fastest row of every shape of one file, or None where the file or such rows do not exist.

    Args:
        folder: of one GPU, with gemm/, attention/, mla/ and moe/ below, in either layout of `GpuTables`; of several versions
            the newest that has such rows.
        file: family and name, such as "gemm/gemm_perf.parquet".
        where: values that columns must have; a column the file lacks is taken as matching.
        shape: columns that together name a shape.
        framework: whose kernels, where there are those of several engines.
    """
    family, name = file.split("/")
    versions = [path for paths in GpuTables(folder, framework).paths(family, name) for path in reversed(paths)]
    return next((table for path in versions if (table := _read(path, where, shape)) is not None), None)


def _read(path: Path, where: Mapping[str, str | int], shape: Sequence[str]) -> Table | None:
    import pyarrow.parquet as parquet

    names = parquet.read_schema(path).names
    missing = [name for name in [*shape, "latency"] if name not in names]
    if missing:
        raise InputError(str(path), f"lacks the columns {', '.join(missing)}")
    filters = [(name, "==", value) for name, value in where.items() if name in names]
    raw = parquet.read_table(path, filters=filters or None)
    if not raw.num_rows:
        return None
    return _fastest({name: raw[name].to_numpy() for name in names}, shape)


def _fastest(columns: Table, shape: Sequence[str]) -> Table:
    """One row a shape: that of the least latency; `latency` in ms becomes `latency_s`."""
    first = fastest_rows([columns[name] for name in shape], columns["latency"])
    table = {
        name: column[first].astype(np.float64) if name in shape else column[first] for name, column in columns.items()
    }
    return table | {"latency_s": columns["latency"][first] * 1e-3}
