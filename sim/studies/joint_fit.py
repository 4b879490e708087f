"""Constants of one kernel kind on several GPUs at once: shared ones, and what each GPU deviates from them.

Least squares on log(predicted / measured) with two ridges: every GPU's constants are drawn to the shared ones, which are
drawn weakly to where they started. A constant that the rows of a GPU say nothing of is then the shared one; a GPU without
rows takes all of them. Fixed costs are compared in cycles of the boost clock, everything else has no dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim.cost.fits import Constants
from sim.cost.kernels import Floats
from sim.hardware.gpu import Gpu
from sim.studies.kernel_kinds import KernelKind
from sim.studies.kernel_tables import Table

TO_SHARED = 0.03
"""Weight of a constant's log distance from the shared one beside the root mean square log error of a GPU's rows."""
TO_START = 0.01
"""The same for the shared constants and their start, where several GPUs are fitted together."""
OUTLIER = 0.1
"""Log error beyond which a row counts linearly and no more by its square (soft L1)."""
_STEP = 1e-4
_MOST_EVALUATIONS = 60

_BOUNDS: Mapping[str, tuple[float, float]] = {
    "whole": (1e-3, 1.0),
    "overlap": (0.7, 16.0),
    "depth_power": (0.1, 1.2),
    "serial": (1e-3, 3.0),
    "softmax": (0.05, 10.0),
    "gather": (0.1, 100.0),
    "combine": (0.1, 100.0),
    "passes": (1e-3, 2.0),
    "kv": (0.1, 100.0),
    "stream": (0.1, 100.0),
    "transpose": (0.1, 100.0),
    "quantise": (0.1, 100.0),
    "split": (0.1, 1e3),
    "warm_l2": (0.01, 2.0),
    "key_s": (1e-3, 1e3),
    "tile": (1e-3, 1e3),
    "tail": (1e-3, 1e3),
    "wide": (1e-3, 10.0),
}


@dataclass(frozen=True, slots=True)
class Part:
    """What one GPU contributes: the rows that are fitted, and the constants that are not."""

    gpu: Gpu
    kind: KernelKind
    rows: Table
    held: Constants = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JointFit:
    """Constants by GPU, and the shared ones with fixed costs (`_s`) in cycles."""

    own: Mapping[str, Constants]
    shared: Constants


def in_seconds(cycles: Constants, gpu: Gpu) -> Constants:
    """Shared constants on `gpu`: fixed costs become seconds at its boost clock."""
    return {name: value / gpu.boost_hz if name.endswith("_s") else value for name, value in cycles.items()}


def in_cycles(constants: Constants, gpu: Gpu) -> Constants:
    """The reverse of `in_seconds`."""
    return {name: value * gpu.boost_hz if name.endswith("_s") else value for name, value in constants.items()}


def fit(parts: Sequence[Part], start: Constants, to_start: float = TO_START) -> JointFit:
    """The constants named in `start` on every GPU of `parts`.

    Args:
        parts: GPUs of one compute capability count as one beside the others where the shared constants are sought.
        start: of the shared constants, fixed costs in cycles.
        to_start: weight of the shared constants' distance from `start`.
    """
    from scipy.optimize import leastsq

    problem = _Problem(parts, start, to_start)
    first = np.tile(problem.start, len(parts) + 1)
    found, _ = leastsq(problem.residuals, first, Dfun=problem.jacobian, maxfev=_MOST_EVALUATIONS, ftol=1e-5, xtol=1e-4)
    shared, *own = np.split(found, len(parts) + 1)
    return JointFit(
        {part.gpu.name: problem.constants(logs, part) for part, logs in zip(parts, own, strict=True)},
        dict(zip(problem.names, np.exp(np.clip(shared, *problem.bounds)).tolist(), strict=True)),
    )


class _Problem:
    """Residuals and their derivatives over the logarithms of shared constants, then those of each part."""

    def __init__(self, parts: Sequence[Part], start: Constants, to_start: float) -> None:
        self.parts = parts
        self.names = list(start)
        self.start = np.log([start[name] for name in self.names])
        self.bounds = np.log(np.array([_bounds(name) for name in self.names])).T
        self.to_start = to_start
        versions = [part.gpu.sm_version for part in parts]
        self.to_shared = [TO_SHARED / np.sqrt(versions.count(version)) for version in versions]

    def constants(self, logs: NDArray[np.float64], part: Part) -> Constants:
        """What `part` is predicted with: within bounds, in seconds on its GPU, with those that are held."""
        values = np.exp(np.clip(logs, *self.bounds)).tolist()
        return {**in_seconds(dict(zip(self.names, values, strict=True)), part.gpu), **part.held}

    def _errors(self, logs: NDArray[np.float64], part: Part) -> Floats:
        predicted_s = part.kind.predict(self.constants(logs, part), part.gpu, part.rows)
        error = np.log(predicted_s / part.rows["latency_s"])
        size = OUTLIER * np.sqrt(2 * (np.sqrt(1 + (error / OUTLIER) ** 2) - 1))
        return np.asarray(np.sign(error) * size / np.sqrt(len(error)))

    def residuals(self, logs: NDArray[np.float64]) -> Floats:
        shared, *own = np.split(logs, len(self.parts) + 1)
        blocks = [self.to_start * (shared - self.start)]
        for part, mine, weight in zip(self.parts, own, self.to_shared, strict=True):
            blocks += [self._errors(mine, part), weight * (mine - shared)]
        return np.concatenate(blocks)

    def jacobian(self, logs: NDArray[np.float64]) -> Floats:
        size, own = len(self.names), np.split(logs, len(self.parts) + 1)[1:]
        unit = np.eye(size)
        blocks = [np.hstack([self.to_start * unit, np.zeros((size, size * len(own)))])]
        for i, (part, mine, weight) in enumerate(zip(self.parts, own, self.to_shared, strict=True)):
            here = self._errors(mine, part)
            block = np.zeros((len(here) + size, len(logs)))
            columns = slice(size * (i + 1), size * (i + 2))
            slopes = [(self._errors(mine + _STEP * axis, part) - here) / _STEP for axis in unit]
            block[: len(here), columns] = np.stack(slopes, axis=1)
            block[len(here) :, columns] = weight * unit
            block[len(here) :, :size] = -weight * unit
            blocks.append(block)
        return np.concatenate(blocks)


def _bounds(name: str) -> tuple[float, float]:
    """What a constant may be; a fixed cost is up to 10 million cycles, a fraction of a peak stays below it."""
    return _BOUNDS.get(name, (1.0, 1e7) if name.endswith("_s") else (1e-2, 1.0))
