"""How much longer measured kernels took than the catalogue's constants say: one factor a kernel kind and number format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim.errors import InputError
from sim.hardware.gpu import load_gpu
from sim.studies.calibrate_kernels import measured_gpus, read_tables

NORMAL_95 = 1.96


@dataclass(frozen=True, slots=True)
class KernelFactor:
    """Of one kernel kind and number format on one GPU."""

    gpu: str
    kind: str
    dtype: str
    n: int
    """Rows."""
    factor: float
    """Mean of log(measured / predicted), as a ratio."""
    interval: tuple[float, float]
    """95 %, by the spread of the rows, each shape taken as one."""
    before: float
    """Mean absolute error without the factor."""
    after: float


def kernel_factors(folder: str | Path, gpu: str | None = None) -> list[KernelFactor]:
    """The factor of every kernel kind that `folder` has a table of.

    Args:
        folder: tables of one GPU, or of several in folders that name them.
        gpu: a catalogue name; None: all that were measured.

    Raises:
        InputError: no table of this GPU, or of any, is there.
    """
    names = [gpu] if gpu is not None else measured_gpus(folder)
    gpus = {load_gpu(name).name: load_gpu(name) for name in names}
    found = []
    for group in read_tables(folder, list(gpus.values())):
        for one in group:
            owner, kind = gpus[one.gpu], one.kind
            fit = owner.kernels.get(kind.kind, {}).get(kind.dtype)
            if fit is None:
                continue
            rows = kind.headline(one.table)
            logs = np.log(one.table["latency_s"] / kind.predict(fit.constants, owner, one.table))[rows]
            mean, half = float(logs.mean()), NORMAL_95 * float(logs.std()) / len(logs) ** 0.5
            before, after = (float(np.abs(np.expm1(shift - logs)).mean()) for shift in (0.0, mean))
            interval = float(np.exp(mean - half)), float(np.exp(mean + half))
            found.append(
                KernelFactor(owner.name, kind.kind, kind.dtype, len(logs), float(np.exp(mean)), interval, before, after)
            )
    if not found:
        raise InputError(str(folder), "holds no kernel tables of a GPU of the catalogue", "as data/kernels is laid out")
    return found
