"""What a replica must be told about the cost of iterations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sim.engine.batching import Batch
from sim.engine.fair_share import Capacity


class Pace(NamedTuple):
    """Durations of iterations that are alike but for growing contexts: the i-th of them takes first_s + i x growth_s."""

    first_s: float
    growth_s: float
    alike: int
    """How many iterations the formula holds for (host time overtakes GPU time, say)."""

    def span_s(self, iterations: int) -> float:
        """Duration of the first `iterations` of them."""
        return iterations * self.first_s + self.growth_s * (iterations * (iterations - 1) / 2)

    def in_progress(self, elapsed_s: float, planned: int) -> int:
        """Which iteration (1 .. planned) is under way `elapsed_s` after the start; one that ends just then counts as it."""
        a, g = self.first_s - self.growth_s / 2, self.growth_s / 2
        root = (a * a + 4 * g * elapsed_s) ** 0.5
        guess = int(2 * elapsed_s / (a + root)) if a + root > 0 else 1
        number = min(max(guess, 1), planned)
        while number < planned and self.span_s(number) < elapsed_s:
            number += 1
        while number > 1 and self.span_s(number - 1) >= elapsed_s:
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

    def pace(self, batch: Batch, window_tokens: tuple[int, ...], window_growth: tuple[int, ...]) -> Pace:
        """Duration of the iteration of `batch`, and how it grows while the batch only decodes.

        window_tokens: for each window, the sum over decoding sequences of min(length, window).
        window_growth: for each window, how many sequences are still shorter.
        """
        ...

    def phases(self, batch: Batch, window_tokens: tuple[int, ...]) -> tuple[list[Phase], float]:
        """The same iteration as a chain of activities, and the host time that may overlap it."""
        ...
