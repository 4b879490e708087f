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


def in_progress(first_s: float, growth_s: float, start_s: float, now_s: float, planned: int) -> int:
    """Which iteration (1 .. planned) since `start_s` is under way; one that ends just now counts as it."""
    a, elapsed_s = first_s - growth_s / 2, now_s - start_s
    divisor = a + sqrt(a * a + 2 * growth_s * elapsed_s)
    number = int(2 * elapsed_s / divisor) if divisor > 0 else 1
    if number < 1:
        number = 1
    elif number > planned:
        number = planned
    while number < planned and start_s + span_s(first_s, growth_s, number) < now_s:
        number += 1
    while number > 1 and start_s + span_s(first_s, growth_s, number - 1) >= now_s:
        number -= 1
    return number


class Stretch:
    """Segments of one pace in a row, whose iterations end by one formula however many of them were one event.

    So a leap and its steps end to the last digit at the same time, and an arrival at that time is seen by the same schedule.
    """

    __slots__ = ("_alike", "_first_s", "_growth_s", "_over", "_start_s")

    def __init__(self, start_s: float, pace: Pace) -> None:
        self._start_s = start_s
        self._first_s, self._growth_s, self._alike = pace
        self._over = 0
        """Iterations before the segment under way."""

    @property
    def pace(self) -> Pace:
        """Of the segment under way."""
        return self._first_s + self._growth_s * self._over, self._growth_s, self._alike - self._over

    def end_s(self, number: int) -> float:
        """When iteration `number` (1, 2, ...) of the segment under way ends."""
        return self._start_s + span_s(self._first_s, self._growth_s, self._over + number)

    def under_way(self, now_s: float, planned: int) -> int:
        """As `in_progress`, in the segment under way."""
        number = in_progress(self._first_s, self._growth_s, self._start_s, now_s, self._over + planned)
        return max(number - self._over, 1)

    def prolong(self, before: Batch, iterations: int, batch: Batch) -> bool:
        """Whether `batch` is what the decodes of `before` have come to after so many iterations; then its segment begins."""
        self._over += iterations
        grown = [t + iterations * g for t, g in zip(before.window_tokens, before.window_growth, strict=True)]
        return (
            self._over < self._alike
            and before.context_tokens + iterations * before.decodes == batch.context_tokens
            and before.decodes == batch.decodes
            and batch.steady
            and not batch.chunks
            and before.window_growth == batch.window_growth
            and grown == [*batch.window_tokens]
        )


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
