"""How well the other GPUs' constants foretell one GPU's kernels: each is left out of the fit in turn.

What is foretold with is what an unmeasured GPU gets: the constants of the same silicon (compute capability) where some is
left, else those that the rest share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sim.cost.fits import Constants
from sim.hardware.gpu import Gpu, load_gpu
from sim.studies.calibrate_kernels import (
    BEYOND_HOST,
    ErrorRow,
    Measured,
    calibrate_together,
    error_rows,
    fit_group,
    generations,
    measured_gpus,
    read_tables,
    shared_constants,
)
from sim.studies.joint_fit import in_cycles, in_seconds
from sim.studies.kernel_kinds import HOST, KERNEL_KINDS, KernelKind

TILES = ("_small", "_tuned", "_triton")
"""What the names of constants end in that price one format of experts in other tiles (`sim/cost/expert_tiles.py`)."""
BENCH = (*HOST, "warm_l2", "warm_time")
"""Constants of a test bench, which no relative can foretell and no engine pays."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Mean absolute errors on the headline rows of one GPU's kernels, without those that the bench's host hid."""

    gpu: str
    kind: str
    dtype: str
    own: float
    """Of its own fit."""
    left_out: float
    """Of the constants that the other GPUs have without it."""
    bias: float
    """Mean of (predicted - measured) / measured, left out."""
    relatives: Sequence[str]
    same_software: bool
    """Some of the others ran the same kernels; False: other software served them, which says little of this one's."""

    @property
    def ratio(self) -> float:
        return self.left_out / self.own


@dataclass(frozen=True, slots=True)
class GpuLeftOut:
    """What leaving one GPU out costs: means over its kernels whose software ran on another GPU too."""

    gpu: str
    kernels: int
    own: float
    left_out: float
    other_software: int
    """Kernels that are not in the means, for nobody else ran theirs."""

    @property
    def ratio(self) -> float:
        return self.left_out / self.own


def by_gpu(rows: Sequence[LeftOut]) -> list[GpuLeftOut]:
    """One row a GPU that has any kernel in common with another, in the order of `rows`."""
    found = []
    for gpu in dict.fromkeys(row.gpu for row in rows):
        alike = [row for row in rows if row.gpu == gpu and row.same_software]
        others = sum(row.gpu == gpu for row in rows) - len(alike)
        if alike:
            own, left_out = (
                sum(errors) / len(alike) for errors in zip(*((r.own, r.left_out) for r in alike), strict=True)
            )
            found.append(GpuLeftOut(gpu, len(alike), own, left_out, others))
    return found


def leave_one_out(folder: str | Path, kinds: Sequence[KernelKind] = KERNEL_KINDS) -> list[LeftOut]:
    """A row for every GPU, kernel kind and dtype of which `folder` has headline rows and tables of another GPU too.

    Args:
        folder: of measured tables, one folder a GPU.
        kinds: of kernels; what a kind holds from another dtype must be among them.
    """
    gpus = [load_gpu(name) for name in measured_gpus(folder)]
    calibrations, shared = calibrate_together(folder, gpus, kinds=kinds)
    fitted = {calibration.gpu.name: calibration.gpu for calibration in calibrations}
    groups = read_tables(folder, gpus, kinds)
    rows = []
    for group in groups:
        others = [other for other in groups if other is not group and _computes(other) == _computes(group)]
        for one in group:
            rest = [other for other in group if other.gpu != one.gpu]
            foreign = [[other for other in group if other.gpu != one.gpu] for group in others]
            relatives = rest or max(foreign, key=lambda other: generations(other, fitted), default=[])
            same_software = any(_measured_in(other) == _measured_in(one) for other in rest)
            if relatives and one.kind.headline(one.table).any():
                rows.append(_left_out(one, relatives, fitted, shared, same_software))
    return rows


def _computes(group: Sequence[Measured]) -> tuple[str, str]:
    """Kind of kernel and format of a group; tiles of experts are other software for one format."""
    dtype = group[0].kind.dtype
    return group[0].kind.kind, next((dtype.removesuffix(tiles) for tiles in TILES if dtype.endswith(tiles)), dtype)


def _measured_in(one: Measured) -> str:
    """The format of the experts of its rows; Hopper's in fp8 are those of block-scaled kernels (`expert_rows`)."""
    return str(one.table["moe_dtype"][0]) if "moe_dtype" in one.table else ""


def _left_out(
    one: Measured,
    relatives: Sequence[Measured],
    fitted: Mapping[str, Gpu],
    shared: dict[str, dict[str, Constants]],
    same_software: bool,
) -> LeftOut:
    gpu = fitted[one.gpu]
    found = fit_group(relatives, fitted, None)
    kin = [fitted[other.gpu] for other in relatives if fitted[other.gpu].sm_version == gpu.sm_version]
    foreign = in_cycles(found.own[kin[0].name], kin[0]) if kin else shared_constants(found, relatives, shared)
    own = gpu.kernels[one.kind.kind][one.kind.dtype].constants
    bench = {name: own[name] for name in BENCH if name in own}
    predicted = _as_engines_see(error_rows(one.kind, gpu, {**in_seconds(foreign, gpu), **bench}, one.table))
    return LeftOut(
        one.gpu,
        one.kind.kind,
        one.kind.dtype,
        _as_engines_see(error_rows(one.kind, gpu, own, one.table)).mape,
        predicted.mape,
        predicted.bias,
        [gpu.name for gpu in kin[:1]] or [other.gpu for other in relatives],
        same_software,
    )


def _as_engines_see(rows: Sequence[ErrorRow]) -> ErrorRow:
    return next((row for row in rows if row.rows_of == BEYOND_HOST), rows[0])
