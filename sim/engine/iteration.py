"""What a replica must be told about the cost of iterations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Protocol

from sim.engine.batch import Batch
from sim.engine.fair_share import Capacity

Pace = tuple[float, float, int]
"""(first_s, growth_s, alike): of the next `alike` iterations, the i-th takes first_s + i x growth_s seconds."""


def span_s(first_s: float, growth_s: float, iterations: int) -> float:
    """Duration of the first `iterations` of a pace."""
    return iterations * first_s + growth_s * (iterations * (iterations - 1) / 2)


def in_progress(first_s: float, growth_s: float, elapsed_s: float, planned: int) -> int:
    """Which iteration (1 .. planned) is under way `elapsed_s` after the start; one that ends just then counts as it."""
    a = first_s - growth_s / 2
    divisor = a + sqrt(a * a + 2 * growth_s * elapsed_s)
    number = int(2 * elapsed_s / divisor) if divisor > 0 else 1
    if number < 1:
        number = 1
    elif number > planned:
        number = planned
    while number < planned and span_s(first_s, growth_s, number) < elapsed_s:
        number += 1
    while number > 1 and span_s(first_s, growth_s, number - 1) >= elapsed_s:
        number -= 1
    return number


@dataclass(slots=True)
class Phase:
    """One kernel group or collective of an iteration, an activity on the fluid engine."""

    name: str
    alone_s: float
    amounts: Mapping[Capacity, float] = field(default_factory=dict)
    """Bytes on each capacity (edge, HBM) it uses."""
    latency_s: float = 0.0


class IterationCost(Protocol):
    """Durations of iterations on one replica."""

    windows: tuple[int, ...]
    """Sliding windows of the model: the scheduler keeps a sum of min(context, window) for each."""

    def pace(self, batch: Batch) -> Pace:
        """Duration of the iteration of `batch`, and how it grows while the batch only decodes."""
        ...

    def phases(self, batch: Batch) -> tuple[list[Phase], float]:
        """The same iteration as a chain of activities, and the host time that may overlap it."""
        ...
