"""Fit the constants of the roofline to measured kernels, and say how well they fit.

Every fit minimises a robust loss of log(predicted / measured), so a kernel of 5 us weighs as much as one of 5 ms. GPUs are
fitted together (`sim/studies/joint_fit.py`): each has its own constants, drawn to those that all share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.cost.attention_software import attention_software
from sim.cost.fits import Constants
from sim.cost.kernels import Floats
from sim.cost.measured_corrections import spoilt_rows
from sim.errors import InputError
from sim.hardware.gpu import Gpu, KernelFit, gpu_names, load_gpu, shared_kernels
from sim.studies.expert_rows import expert_rows
from sim.studies.joint_fit import TO_START, JointFit, Part, fit, in_cycles
from sim.studies.kernel_kinds import HOST, KERNEL_KINDS, KernelKind, library
from sim.studies.kernel_tables import Table, read_table

FIT_ROWS = 1500
"""Rows a fit looks at, drawn evenly over the table; errors are counted on all rows."""
SEED = 0
BEYOND_HOST = "beyond host"
ONE_SOFTWARE = ("gemm", "prefill_attention", "decode_attention")
"""Kernel kinds whose implementations in bf16 are told apart by their formulas (`AttentionSoftware`, whole waves)."""
TO_CATALOGUE = 0.5
"""Weight of the shared constants' distance from the catalogue's, where one GPU is fitted alone."""

Shared = dict[str, dict[str, Constants]]
"""Constants by kernel kind and dtype, fixed costs in cycles."""


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """How one fit meets the rows of its table; the errors are (predicted - measured) / measured."""

    gpu: str
    kind: str
    dtype: str
    rows_of: str
    """`headline` (for GEMMs n, k >= 512; prompts and contexts of 256 tokens or more; experts of the
    commonest library) or `all`; and, where the bench launched kernel by kernel, `beyond host`: those of the headline
    whose kernels take longer than the host did, which is what an engine sees."""
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


@dataclass(frozen=True, slots=True)
class Measured:
    """The rows of one kernel kind and dtype on one GPU."""

    gpu: str
    kind: KernelKind
    table: Table

    def part(self, gpu: Gpu) -> Part:
        """What is fitted of it, with the constants that `gpu` holds from another dtype."""
        rows = _sample(self.kind.headline(self.table))
        held = {name: gpu.kernels[self.kind.kind][dtype].constants[name] for name, dtype in self.kind.held.items()}
        return Part(gpu, self.kind, {name: column[rows] for name, column in self.table.items()}, held)


def calibrate(folder: str | Path, gpu: str | Gpu) -> Calibration:
    """Fit every kernel kind that `folder` has a table of, for one GPU, starting from the constants that all share.

    Args:
        folder: tables of one GPU, or of several in folders that name them.
        gpu: a catalogue name, or a GPU whose printed numbers the constants are fractions of.

    Raises:
        InputError: no table of this GPU is there.
    """
    fitted = load_gpu(gpu) if isinstance(gpu, str) else gpu
    catalogue = {
        kind: {dtype: in_cycles(known.constants, fitted) for dtype, known in by_dtype.items()}
        for kind, by_dtype in shared_kernels(fitted).items()
    }
    return calibrate_together(folder, [fitted], catalogue)[0][0]


def calibrate_together(
    folder: str | Path,
    gpus: Sequence[Gpu],
    catalogue: Mapping[str, Mapping[str, Constants]] | None = None,
    kinds: Sequence[KernelKind] = KERNEL_KINDS,
) -> tuple[list[Calibration], Shared]:
    """Fit the constants of several GPUs together, and those that they share.

    Args:
        folder: their tables, in folders that name them.
        catalogue: shared constants to stay near, fixed costs in cycles; None: fitted from scratch.
        kinds: of kernels; what a kind holds from another dtype must be among them.

    Raises:
        InputError: no table of one of the GPUs is there.
    """
    tables = read_tables(folder, gpus, kinds)
    fitted = {gpu.name: gpu for gpu in gpus}
    errors: dict[str, list[ErrorRow]] = {gpu.name: [] for gpu in gpus}
    shared: Shared = {}
    most: dict[tuple[str, str], int] = {}
    launches = {}
    for gpu in gpus:
        gemv = _elementwise(table_folder(Path(folder), gpu), gpu)
        if gemv is not None:
            fitted[gpu.name] = _with_fit(gpu, "elementwise", "bf16", gemv[0], gemv[1], replace(gemv[1], rows_of="all"))
            errors[gpu.name].append(gemv[1])
            launches[gpu.name] = gemv[0]
    for measured in tables:
        kind, dtype = measured[0].kind.kind, measured[0].kind.dtype
        found = fit_group(measured, fitted, catalogue)
        wide = generations(measured, fitted)
        if wide > most.get((kind, dtype), 0):  # of several kinds of software, what most generations of GPUs run
            most[kind, dtype] = wide
            shared.setdefault(kind, {})[dtype] = shared_constants(found, measured, shared)
        for one in measured:
            constants = found.own[one.gpu]
            rows = error_rows(one.kind, fitted[one.gpu], constants, one.table)
            errors[one.gpu] += rows
            fitted[one.gpu] = _with_fit(fitted[one.gpu], kind, dtype, constants, *rows)
    if launches:
        shared["elementwise"] = {"bf16": _mean(launches.values())}
    for name, rows in errors.items():
        if not rows:
            raise InputError(str(folder), f"has no kernel tables of {name}")
    return [Calibration(fitted[gpu.name], errors[gpu.name]) for gpu in gpus], shared


def fit_group(
    measured: Sequence[Measured], fitted: Mapping[str, Gpu], catalogue: Mapping[str, Mapping[str, Constants]] | None
) -> JointFit:
    """The constants of one kernel kind and dtype, shared and of each GPU, without those its own rows say nothing of."""
    start: dict[str, float] = {}
    for one in measured:
        start |= one.kind.start
    held = {name for one in measured for name in one.kind.held}
    known = (catalogue or {}).get(measured[0].kind.kind, {}).get(measured[0].kind.dtype)
    start = {name: known.get(name, value) if known else value for name, value in start.items() if name not in held}
    found = fit([one.part(fitted[one.gpu]) for one in measured], start, TO_CATALOGUE if known else TO_START)
    own = {one.gpu: _only(found.own[one.gpu], {*one.kind.start, *one.kind.held}) for one in measured}
    return JointFit(own, found.shared)


def generations(measured: Sequence[Measured], gpus: Mapping[str, Gpu]) -> int:
    """Major compute capabilities among the GPUs of `measured`."""
    return len({gpus[one.gpu].sm_version // 10 for one in measured})


def shared_constants(found: JointFit, measured: Sequence[Measured], shared: Shared) -> Constants:
    """The shared constants of a fit, with those it holds from another dtype, without what only some test benches have."""
    kind = measured[0].kind
    held = {name: shared[kind.kind][dtype][name] for name, dtype in kind.held.items()}
    everywhere = set.intersection(*({*one.kind.start} for one in measured))
    return {**_only(found.shared, everywhere), **held}


def _only(constants: Constants, names: set[str]) -> Constants:
    return {name: value for name, value in constants.items() if name in names}


def _mean(fits: Iterable[Constants]) -> Constants:
    """The geometric mean of each constant."""
    listed = list(fits)
    return {name: float(np.exp(np.mean([np.log(one[name]) for one in listed]))) for name in listed[0]}


def read_tables(
    folder: str | Path, gpus: Sequence[Gpu], kinds: Sequence[KernelKind] = KERNEL_KINDS
) -> list[list[Measured]]:
    """What was measured, in the order of fitting: a group for each kernel kind, dtype and software, one entry a GPU."""
    found: dict[tuple[str, str, str], list[Measured]] = {}
    folders = {gpu.name: table_folder(Path(folder), gpu) for gpu in gpus}
    for kind in kinds:
        for gpu in gpus:
            name = gpu.name
            alike = [group for key, group in found.items() if key[:2] == (kind.kind, kind.dtype)]
            if any(one.gpu == name for group in alike for one in group):
                continue
            table = read_rows(kind, folders[name], gpu)
            if table is not None and kind.headline(table).any():  # else there is nothing to fit
                group = found.setdefault((kind.kind, kind.dtype, software(kind, table, gpu)), [])
                group.append(Measured(name, kind, table))
    return list(found.values())


def read_rows(kind: KernelKind, tables: Path, gpu: Gpu) -> Table | None:
    """The rows of one kernel kind in the folder of `gpu`'s tables, without spoilt ones; None where there are none."""
    if kind.kind == "moe":
        return expert_rows(kind, tables, gpu)
    table = read_table(tables, kind.file, kind.where, kind.shape)
    if table is None or not kind.along:
        return table
    sound = ~spoilt_rows(table, kind.along, [name for name in kind.shape if name != kind.along])
    return {column: values[sound] for column, values in table.items()}


def software(kind: KernelKind, table: Table, gpu: Gpu) -> str:
    """What distinguishes the implementations of one kind: the kernel of the commonest rows, for experts its library.

    The prefill of latent attention goes by one name everywhere (FLASH_ATTN), but is FlashAttention-3 on Hopper, FlashAttention-4
    on data-centre Blackwell and FlashAttention-2 elsewhere.
    """
    if kind.kind == "prefill_mla":
        return str(attention_software(gpu))
    if "kernel_source" not in table or (kind.dtype == "bf16" and kind.kind in ONE_SOFTWARE):
        return kind.file
    sources, counts = np.unique(table["kernel_source"], return_counts=True)
    commonest = str(sources[np.argmax(counts)])
    return library(commonest) if kind.kind == "moe" else commonest.lower().removeprefix("vllm_")


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
    """Names of the catalogue's GPUs that `folder` has tables of; of the folder of one GPU, the one that it is called after.

    Raises:
        InputError: the folder of one GPU does not say of which, or nothing is there.
    """
    if (Path(folder) / "gemm").is_dir():
        try:
            return [load_gpu(Path(folder).name).name]
        except InputError:
            raise InputError(str(folder), "holds the tables of one GPU and does not say which", "--gpu NAME") from None
    names = []
    for name in gpu_names():
        try:
            found = table_folder(Path(folder), load_gpu(name))
        except InputError:
            continue
        if any(found.rglob("*.parquet")):  # the package keeps empty folders for GPUs to come
            names.append(name)
    if not names:
        raise InputError(
            str(folder), "holds no kernel tables of a GPU of the catalogue", "<gpu>/gemm/gemm_perf.parquet"
        )
    return names


def _sample(headline: NDArray[np.bool_]) -> NDArray[np.int64]:
    rows = np.flatnonzero(headline)
    if len(rows) <= FIT_ROWS:
        return rows
    return np.sort(np.random.default_rng(np.random.SeedSequence(SEED)).choice(rows, FIT_ROWS, replace=False))


def error_rows(kind: KernelKind, gpu: Gpu, constants: Constants, table: Table) -> list[ErrorRow]:
    """The error of `constants` on the headline rows of a table, then on all of them, then on those the host did not hide."""
    predicted_s = kind.predict(constants, gpu, table)
    error = predicted_s / table["latency_s"] - 1
    headline = kind.headline(table)
    labelled = [("headline", headline), ("all", np.ones(len(error), dtype=bool))]
    if "host_s" in constants:
        kernels = {name: value for name, value in constants.items() if name not in HOST}
        labelled.append((BEYOND_HOST, headline & (predicted_s <= kind.predict(kernels, gpu, table))))
    return [_error_row(gpu.name, kind.kind, kind.dtype, label, error[rows]) for label, rows in labelled if rows.any()]


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


_SUFFIXES = {"headline": "", "all": "_all", BEYOND_HOST: "_beyond_host"}


def _with_fit(gpu: Gpu, kind: str, dtype: str, constants: Constants, *errors: ErrorRow) -> Gpu:
    error: dict[str, float] = {}
    for row in errors:
        suffix = _SUFFIXES[row.rows_of]
        error |= {f"mape{suffix}": row.mape, f"rows{suffix}": row.n}
    fit_ = KernelFit(dict(constants), gpu.name, error)
    kernels: Mapping[str, Mapping[str, KernelFit]] = {
        **gpu.kernels, kind: {**gpu.kernels.get(kind, {}), dtype: fit_},
    }  # fmt: skip
    return replace(gpu, kernels=kernels)


def run(folder: str | Path, gpu: str | None = None, write: bool = False) -> list[ErrorRow]:
    """Calibrate one GPU, or together all that `folder` has tables of, and return the error table.

    Args:
        folder: of measured tables.
        gpu: a catalogue name; None for all.
        write: put the fitted constants into the catalogue files; the shared ones too where all are fitted.
    """
    from sim.studies.write_fits import write_fits, write_shared

    if gpu is not None:
        found = [calibrate(folder, gpu)]
    else:
        found, shared = calibrate_together(folder, [load_gpu(name) for name in measured_gpus(folder)])
        if write:
            write_shared(shared)
    if write:
        for calibration in found:
            write_fits(calibration.gpu)
    return [row for calibration in found for row in calibration.errors]
