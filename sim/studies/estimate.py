"""What several seeds say together: a mean with Student's interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sim.results.intervals import mean_interval

METHOD = "Student's t over seeds, 95 %"
"""How every interval of a study is made, as tables and files say it."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    half_width: float | None
    """Half of the interval; None of a single seed, which says nothing about noise."""
    count: int

    @property
    def low(self) -> float | None:
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        return None if self.half_width is None else self.mean + self.half_width

    def to_dict(self) -> dict[str, float | int | None]:
        return {"mean": self.mean, "low": self.low, "high": self.high, "seeds": self.count}


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean of `values`, one a seed, and the half-width of its 95 % interval; None of no values.

    The t interval holds for means of a few independent runs; percentiles of runs are close enough to normal for it.
    """
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    low, high = mean_interval(values)
    return Estimate(mean, None if low is None or high is None else (high - low) / 2, len(values))
