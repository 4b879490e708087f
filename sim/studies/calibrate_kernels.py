"""Fit the constants of the roofline to measured kernels, and say how well they fit.

Every fit minimises a robust loss of log(predicted / measured), so a kernel of 5 us weighs as much as one of 5 ms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.cost.fits import Constants
from sim.cost.kernels import Floats
from sim.errors import InputError
from sim.hardware.gpu import GPU_FOLDER, Gpu, KernelFit, gpu_names, load_gpu
from sim.studies.kernel_kinds import KERNEL_KINDS, SKEWED, KernelKind
from sim.studies.kernel_tables import Table, read_table

FIT_ROWS = 4000
"""Rows a fit looks at, drawn evenly over the table; errors are counted on all rows."""
RIDGE = 0.1
"""Weight of a constant's own log distance from its start beside the log errors of thousands of rows."""
SEED = 0


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """How one fit meets the rows of its table; the errors are (predicted - measured) / measured."""

    gpu: str
    kind: str
    dtype: str
    rows_of: str
    """`headline` (for GEMMs n, k >= 512; prompts of more than one token) or `all`."""
    n: int
    mape: float
    median_abs_error: float
    bias: float
    p90_abs_error: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """The GPU with its fresh constants, and the error of each fit on the headline rows and on all rows."""

    gpu: Gpu
    errors: Sequence[ErrorRow]


def calibrate(folder: str | Path, gpu: str | Gpu) -> Calibration:
    """Fit every kernel kind that `folder` has a table of, for one GPU.

    Args:
        folder: tables of one GPU, or of several in folders that name them.
        gpu: a catalogue name, or a GPU whose printed numbers the constants are fractions of.

    Raises:
        InputError: no table of this GPU is there.
    """
    fitted = load_gpu(gpu) if isinstance(gpu, str) else gpu
    tables = table_folder(Path(folder), fitted)
    errors: list[ErrorRow] = []
    gemv = _elementwise(tables, fitted)
    if gemv is not None:
        fitted = _with_fit(fitted, "elementwise", "bf16", gemv[0], gemv[1], gemv[1])
        errors.append(gemv[1])
    for kind in KERNEL_KINDS:
        table = read_table(tables, kind.file, kind.where, kind.shape)
        if table is None and kind.kind == "moe":  # the A100's tables have no balanced routing
            table = read_table(tables, kind.file, {**kind.where, **SKEWED}, kind.shape)
        if table is None:
            continue
        constants = fit(kind, fitted, table)
        rows = error_rows(kind, fitted, constants, table)
        errors += rows
        fitted = _with_fit(fitted, kind.kind, kind.dtype, constants, *rows)
    if not errors:
        raise InputError(str(folder), f"has no kernel tables of {fitted.name}")
    return Calibration(fitted, errors)


def table_folder(folder: Path, gpu: Gpu) -> Path:
    """The folder of this GPU's tables: `folder` itself, or the one below it that names the GPU."""
    if (folder / "gemm").is_dir():
        return folder
    for below in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            if load_gpu(below.name).name == gpu.name:
                return below
        except InputError:
            continue
    raise InputError(str(folder), f"has no folder with kernel tables of {gpu.name}")


def measured_gpus(folder: str | Path) -> list[str]:
    """Names of the catalogue's GPUs that `folder` has tables of."""
    names = []
    for name in gpu_names():
        try:
            table_folder(Path(folder), load_gpu(name))
        except InputError:
            continue
        names.append(name)
    return names


def fit(kind: KernelKind, gpu: Gpu, table: Table) -> Constants:
    """The constants that minimise the log error on the headline rows of `table`."""
    from scipy.optimize import least_squares

    held = {name: gpu.kernels[kind.kind][dtype].constants[name] for name, dtype in kind.held.items()}
    held |= {name: kind.start[name] for name in kind.unseen}
    free = [name for name in kind.start if name not in held]
    rows = _sample(kind.headline(table))
    subset = {name: column[rows] for name, column in table.items()}
    measured = np.log(subset["latency_s"])

    def residuals(logs: NDArray[np.float64]) -> Floats:
        constants = {**held, **dict(zip(free, np.exp(logs), strict=True))}
        errors = np.log(kind.predict(constants, gpu, subset)) - measured
        # a constant that no row depends on stays where it started
        return np.concatenate([errors, RIDGE * (logs - start)])

    start = np.log([kind.start[name] for name in free])
    bounds = np.array([_bounds(name) for name in free]).T
    result = least_squares(residuals, start, bounds=np.log(bounds), loss="soft_l1", f_scale=0.1, max_nfev=400)
    return {**held, **{name: float(value) for name, value in zip(free, np.exp(result.x), strict=True)}}


_BOUNDS: Mapping[str, tuple[float, float]] = {
    "whole": (1e-3, 1.0),
    "launch_s": (1e-6, 1e-2),  # no kernel in a CUDA graph is measured below 1.8 us, and the pipeline is part of that
    "overlap": (0.7, 16.0),
    "depth_power": (0.3, 1.2),
    "serial": (1e-3, 3.0),
    "softmax": (0.05, 4.0),
    "combine": (0.1, 100.0),
    "kv": (0.1, 100.0),
    "stream": (0.1, 100.0),
    "quantise": (0.1, 100.0),
    "split": (0.1, 1e3),
    "unsplit": (0.1, 1e3),
    "tile": (1e-3, 1e3),
    "tail": (1e-3, 1e3),
    "wide": (1e-3, 10.0),
}


def _bounds(name: str) -> tuple[float, float]:
    """What a constant may be; a time is 1 ns to 10 ms, a fraction of a peak stays below it."""
    return _BOUNDS.get(name, (1e-9, 1e-2) if name.endswith("_s") else (1e-2, 1.0))


def _sample(headline: NDArray[np.bool_]) -> NDArray[np.int64]:
    rows = np.flatnonzero(headline)
    if len(rows) <= FIT_ROWS:
        return rows
    return np.sort(np.random.default_rng(np.random.SeedSequence(SEED)).choice(rows, FIT_ROWS, replace=False))


def error_rows(kind: KernelKind, gpu: Gpu, constants: Constants, table: Table) -> list[ErrorRow]:
    """The error of `constants` on the headline rows of a table, then on all of them."""
    error = kind.predict(constants, gpu, table) / table["latency_s"] - 1
    return [
        _error_row(gpu.name, kind.kind, kind.dtype, label, error[rows])
        for label, rows in (("headline", kind.headline(table)), ("all", np.ones(len(error), dtype=bool)))
    ]


def _error_row(gpu: str, kind: str, dtype: str, label: str, error: Floats) -> ErrorRow:
    size = np.abs(error)
    return ErrorRow(
        gpu, kind, dtype, label, len(error), float(size.mean()), float(np.median(size)), float(error.mean()),
        float(np.quantile(size, 0.9)),
    )  # fmt: skip


def _elementwise(tables: Path, gpu: Gpu) -> tuple[Constants, ErrorRow] | None:
    """Elementwise kernels, which nobody tabulated, from the two ends of the bf16 GEMM table.

    The fastest kernel of all has nothing to do: its time is the fixed cost of a node in a CUDA graph. The bandwidth is that
    of matrix-vector products whose weights cannot stay in L2 (eight times its size).
    """
    table = read_table(tables, "gemm/gemm_perf.parquet", {"gemm_dtype": "bfloat16"}, ("m", "n", "k"))
    if table is None:
        return None
    launch_s = float(table["latency_s"].min())
    bytes_read = 2 * table["n"] * table["k"]
    gemv = (table["m"] == 1) & (bytes_read > 8 * gpu.l2_bytes)
    body_s = table["latency_s"][gemv] - launch_s
    memory = float(np.median(bytes_read[gemv] / body_s)) / gpu.hbm_bytes_per_s
    error = (bytes_read[gemv] / (memory * gpu.hbm_bytes_per_s) + launch_s) / table["latency_s"][gemv] - 1
    return {"launch_s": launch_s, "memory": memory}, _error_row(gpu.name, "elementwise", "bf16", "headline", error)


def _with_fit(gpu: Gpu, kind: str, dtype: str, constants: Constants, headline: ErrorRow, everything: ErrorRow) -> Gpu:
    error = {"mape": headline.mape, "rows": headline.n, "mape_all": everything.mape, "rows_all": everything.n}
    fit_ = KernelFit(dict(constants), gpu.name, error)
    kernels: Mapping[str, Mapping[str, KernelFit]] = {
        **gpu.kernels, kind: {**gpu.kernels.get(kind, {}), dtype: fit_},
    }  # fmt: skip
    return replace(gpu, kernels=kernels)


def write_fits(gpu: Gpu, folder: Path = GPU_FOLDER) -> Path:
    """Write the constants fitted on `gpu` itself into its catalogue file, with the error beside each; what stood there before
    under `kernels` is replaced."""
    path = folder / f"{gpu.name}.yaml"
    head = path.read_text(encoding="utf-8").split("\nkernels:")[0].rstrip()
    lines = ["kernels:"]
    for kind, by_dtype in gpu.kernels.items():
        own = {dtype: fit_ for dtype, fit_ in by_dtype.items() if fit_.fitted_on == gpu.name}
        if own:
            lines.append(f"  {kind}:")
        for dtype, fit_ in own.items():
            parts = [_constant_text(name, value) for name, value in fit_.constants.items()]
            error = ", ".join(f"{name}: {round(value, 4):g}" for name, value in fit_.error.items())
            lines.append(f"    {dtype}: {{{', '.join([*parts, f'error: {{{error}}}'])}}}")
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    load_gpu.cache_clear()
    return path


def _constant_text(name: str, value: float) -> str:
    if name.endswith("_s"):
        return f"{name[:-2]}: {value / 1e-6:.4g} us"
    return f"{name}: {value:.4g}"


def run(folder: str | Path, gpu: str | None = None, write: bool = False) -> list[ErrorRow]:
    """Calibrate one GPU, or all that `folder` has tables of, and return the error table.

    Args:
        folder: of measured tables.
        gpu: a catalogue name; None for all.
        write: put the fitted constants into the catalogue files.
    """
    errors: list[ErrorRow] = []
    for name in [gpu] if gpu is not None else measured_gpus(folder):
        calibration = calibrate(folder, name)
        errors += calibration.errors
        if write:
            write_fits(calibration.gpu)
    return errors
