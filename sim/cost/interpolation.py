"""Interpolation of measured kernels: how much longer (or shorter) they took than a reference formula says.

Every function works on log(measured / reference). The reference carries the shape between and beyond the measured
points, so what is interpolated is small and slow, and holding it beyond the last point preserves the utilisation
reached there: latency(q) = reference(q) / utilisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.cost.kernels import Floats

RIDGE = 0.05
"""Weight of a factor's distance from 1 beside the relative error of one measured row, in an affine fit."""
LEAST, MOST = 0.1, 10.0
"""Bounds of the factors of an affine fit: one beyond them is not determined by its rows."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A correction along one axis: linear in the logarithm of the coordinate, held beyond the ends."""

    log_grid: Floats
    values: Floats

    def at(self, coordinate: Floats) -> Floats:
        return np.interp(np.log(coordinate), self.log_grid, self.values)

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest measured coordinate."""
        return float(np.exp(self.log_grid[0])), float(np.exp(self.log_grid[-1]))

    def outside(self, coordinate: Floats) -> NDArray[np.bool_]:
        """Where the coordinate lies beyond the measured ends."""
        logs = np.log(coordinate)
        return np.asarray((logs < self.log_grid[0] - 1e-9) | (logs > self.log_grid[-1] + 1e-9))


@dataclass(frozen=True, slots=True)
class LogGrid:
    """log(measured / reference) on a full grid of three axes; `of` cuts out the curve along the first."""

    axes: tuple[Floats, Floats, Floats]
    """Measured coordinates, ascending."""
    values: Floats

    def of(self, second: float, third: float) -> tuple[Curve, bool]:
        """The curve at one point of the other two axes, bilinear in their logarithms, and whether that point is outside."""
        (i, j, u), (p, q, v) = _bracket(self.axes[1], second), _bracket(self.axes[2], third)
        cell = self.values
        low = (1 - v) * cell[:, i, p] + v * cell[:, i, q]
        high = (1 - v) * cell[:, j, p] + v * cell[:, j, q]
        outside = any(not axis[0] <= x <= axis[-1] for axis, x in zip(self.axes[1:], (second, third), strict=True))
        return Curve(np.log(self.axes[0]), (1 - u) * low + u * high), outside

    def around(self, second: float, third: float) -> tuple[list[float], list[float]]:
        """The measured coordinates, of each of the other two axes, that `of` takes its curve from."""
        found = []
        for axis, x in zip(self.axes[1:], (second, third), strict=True):
            lower, upper, weight = _bracket(axis, x)
            found.append([float(axis[i]) for i in ({upper} if weight == 1 else {lower, upper})])
        return sorted(found[0]), sorted(found[1])


def _bracket(axis: Floats, x: float) -> tuple[int, int, float]:
    """(lower index, upper index, weight of the upper) of `x`, linear in log x; both the same beyond the ends."""
    upper = int(np.searchsorted(axis, x))
    if upper == 0 or upper == len(axis):
        end = min(upper, len(axis) - 1)
        return end, end, 0.0
    lower = upper - 1
    return lower, upper, float(np.log(x / axis[lower]) / np.log(axis[upper] / axis[lower]))


def log_grid(columns: tuple[Floats, Floats, Floats], values: Floats) -> LogGrid:
    """The grid that scattered rows span; a hole takes the mean of its measured neighbours, over and over.

    Args:
        columns: coordinates of the rows.
        values: log(measured / reference) of each row.
    """
    axes = (np.unique(columns[0]), np.unique(columns[1]), np.unique(columns[2]))
    cells = np.full([len(axis) for axis in axes], np.nan)
    cells[tuple(np.searchsorted(axis, column) for axis, column in zip(axes, columns, strict=True))] = values
    while np.isnan(cells).any():
        around = np.pad(cells, 1, constant_values=np.nan)
        neighbours = np.stack([np.roll(around, step, axis)[1:-1, 1:-1, 1:-1] for axis in range(3) for step in (-1, 1)])
        known = ~np.isnan(neighbours)
        mean = np.where(known, neighbours, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        cells = np.where(np.isnan(cells) & known.any(axis=0), mean, cells)
    return LogGrid(axes, cells)


def affine_factors(fixed: Floats, body: Floats, measured: Floats, least_body: float = LEAST) -> tuple[float, float]:
    """Factors (a, b) that bring a x fixed + b x body nearest to `measured`, by relative error.

    Ridge regression towards 1: rows that all have the same mix of fixed cost and body cannot tell the two apart.

    Args:
        least_body: lower bound of b, where the body would reach the printed peaks.
    """
    rows = np.stack([fixed / measured, body / measured], axis=1)
    normal = rows.T @ rows + RIDGE**2 * np.eye(2)
    asked = rows.sum(axis=0) + RIDGE**2
    b = float(np.clip(np.linalg.solve(normal, asked)[1], least_body, max(MOST, least_body)))
    a = (asked[0] - normal[0, 1] * b) / normal[0, 0]
    return float(np.clip(a, LEAST, MOST)), b


def nearest_row(rows: Floats, asked: Floats) -> int:
    """Index of the row of coordinates nearest to `asked` in their logarithms."""
    return int(np.argmin(((np.log(rows) - np.log(asked)) ** 2).sum(axis=1)))


def kernel_share(host_s: Floats | float | None, reference_s: Floats) -> Floats:
    """How much of the deviation of a measurement without CUDA graphs is the kernel's own.

    Such a measurement sees the host's launch time or the kernel, whichever is longer: the sensitivity of
    (kernel^4 + host^4)^(1/4) to the kernel. 1 where kernels were measured alone (`host_s` None).
    """
    return np.ones_like(reference_s) if host_s is None else np.asarray(1 / (1 + (host_s / reference_s) ** 4))
