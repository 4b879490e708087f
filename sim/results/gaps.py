"""Inter-token gaps of a whole run, pooled without ever writing down a token.

The steps table says: a segment's iteration i of `iterations` lasts `first_s + i * growth_s`, and so did the gap of each
of its `itl_tokens` tokens. So the pool of all gaps is a weighted multiset with one value an iteration, from which mean
and deviation follow in closed form, and every percentile by counting: exactly what `numpy.percentile` (linear) gives on
the pool written out, with memory for one chunk of iterations only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CHUNK_ITERATIONS = 1 << 16  # half a MiB of float64 a temporary array
_BINS = 4096


def expand(iterations: Ints, chunk: int = CHUNK_ITERATIONS) -> Iterator[tuple[Ints, Floats]]:
    """Yield (segment, index of the iteration within its segment) of all iterations, some `chunk` at a time.

    A chunk ends with a segment, so a single segment longer than `chunk` comes whole.
    """
    ends = np.cumsum(iterations)
    first = 0
    while first < len(iterations):
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + chunk, side="right")))
        counts = iterations[first:last]
        segment = np.repeat(np.arange(first, last), counts)
        starts = np.repeat(ends[first:last] - counts - done, counts)
        yield segment, (np.arange(len(segment)) - starts).astype(np.float64)
        first = last


@dataclass(frozen=True)
class GapPool:
    """Gaps in seconds: `weight` gaps for each iteration of a segment, and the irregular ones one by one."""

    first_s: Floats
    growth_s: Floats
    iterations: Ints
    weight: Ints
    irregular_s: Floats
    chunk_iterations: int = CHUNK_ITERATIONS

    @property
    def count(self) -> int:
        return int((self.iterations * self.weight).sum()) + len(self.irregular_s)

    @property
    def total_s(self) -> float:
        """The sum of all gaps."""
        k = self.iterations.astype(np.float64)
        per_token = k * self.first_s + self.growth_s * k * (k - 1) / 2
        return float((per_token * self.weight).sum()) + float(self.irregular_s.sum())

    def mean_std(self) -> tuple[float, float]:
        """Mean and population standard deviation; NaN for an empty pool."""
        count = self.count
        if not count:
            return float("nan"), float("nan")
        mean = self.total_s / count
        k = self.iterations.astype(np.float64)
        # deviations from the mean are affine in i as well: sum (d + g i)^2 = k d^2 + d g k(k-1) + g^2 (k-1)k(2k-1)/6
        d, g = self.first_s - mean, self.growth_s
        squares = k * d * d + d * g * k * (k - 1) + g * g * (k - 1) * k * (2 * k - 1) / 6
        total = float((squares * self.weight).sum()) + float(((self.irregular_s - mean) ** 2).sum())
        return mean, float(np.sqrt(max(0.0, total) / count))

    def percentiles(self, percents: Sequence[float]) -> list[float]:
        """What `np.percentile(pool, percents)` gives on the pool written out; NaN for an empty pool."""
        count = self.count
        if not count:
            return [float("nan")] * len(percents)
        virtual = (count - 1) * (np.asarray(percents, dtype=np.float64) / 100)
        below = np.floor(virtual).astype(np.int64)
        above = np.minimum(below + 1, count - 1)
        ranks, where = np.unique(np.concatenate([below, above]), return_inverse=True)
        values = self._order_statistics(ranks)[where]
        low, high = values[: len(below)], values[len(below) :]
        t = virtual - below
        # the two-sided interpolation of NumPy, so that results are equal and not just close
        return [float(x) for x in np.where(t >= 0.5, high - (high - low) * (1 - t), low + (high - low) * t)]

    def _chunks(self) -> Iterator[tuple[Floats, Ints]]:
        """(values, weights) of the pool, piece by piece."""
        used = np.flatnonzero(self.weight > 0)
        first, growth, weight = self.first_s[used], self.growth_s[used], self.weight[used]
        for segment, index in expand(self.iterations[used], self.chunk_iterations):
            yield first[segment] + index * growth[segment], weight[segment]
        if len(self.irregular_s):
            yield self.irregular_s, np.ones(len(self.irregular_s), dtype=np.int64)

    def _order_statistics(self, ranks: Ints) -> Floats:
        """The values at the sorted, distinct 0-based `ranks`: count in bins, then sort the few bins that matter."""
        used = self.weight > 0
        ends = self.first_s[used] + (self.iterations[used] - 1) * self.growth_s[used]
        all_ends = np.concatenate([self.first_s[used], ends, self.irregular_s])
        low, high = float(all_ends.min()), float(all_ends.max())
        scale = (_BINS - 1) / (high - low) if high > low else 0.0

        def bins(values: Floats) -> Ints:
            return ((values - low) * scale).astype(np.int64).clip(0, _BINS - 1)

        counts = np.zeros(_BINS)
        for values, weights in self._chunks():
            counts += np.bincount(bins(values), weights=weights, minlength=_BINS)
        upto = np.cumsum(counts).astype(np.int64)
        wanted = np.searchsorted(upto, ranks, side="right")
        chosen = np.zeros(_BINS, dtype=bool)
        chosen[wanted] = True
        kept: list[tuple[Floats, Ints]] = []
        for values, weights in self._chunks():
            keep = chosen[bins(values)]
            kept.append((values[keep], weights[keep]))
        values = np.concatenate([value for value, _ in kept])
        order = np.argsort(values, kind="stable")
        values = values[order]
        cumulated = np.cumsum(np.concatenate([weight for _, weight in kept])[order])
        # ranks among the chosen bins only: take off what lies in the bins left out below each
        left_out = np.cumsum(np.where(chosen, 0, counts)).astype(np.int64)[wanted]
        return np.asarray(values[np.searchsorted(cumulated, ranks - left_out, side="right")], dtype=np.float64)
