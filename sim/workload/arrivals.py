"""When requests arrive: open-loop arrival times in seconds, sorted, the clock starting at zero.

As in vLLM's benchmark the first request arrives after the first gap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def gamma(count: int, request_rate: float, burstiness: float, random: Generator) -> Floats:
    """Gaps that are gamma distributed with shape `burstiness` and mean 1 / `request_rate` (requests a second).

    Their coefficient of variation is 1 / sqrt(burstiness); burstiness 1 is the Poisson process (vLLM's `--burstiness`).
    """
    return np.cumsum(random.gamma(burstiness, 1.0 / (request_rate * burstiness), count))


def constant(count: int, request_rate: float) -> Floats:
    """One request every 1 / `request_rate` seconds."""
    return np.arange(1, count + 1) / request_rate


def weibull(count: int, request_rate: float, shape: float, random: Generator) -> Floats:
    """Gaps that are Weibull distributed with mean 1 / `request_rate`: scale = mean / Gamma(1 + 1/shape)."""
    scale = 1.0 / (request_rate * math.gamma(1.0 + 1.0 / shape))
    return np.cumsum(scale * random.weibull(shape, count))


def burst(count: int) -> Floats:
    """All at time zero."""
    return np.zeros(count)


def on_off(count: int, request_rate: float, on_s: float, off_s: float, random: Generator) -> Floats:
    """Poisson at `request_rate` while on, silent while off; both last exponential times with means `on_s`, `off_s`.

    The interrupted Poisson process; it starts on. Its mean rate is request_rate x on_s / (on_s + off_s).
    """
    on_time = np.cumsum(random.exponential(1.0 / request_rate, count))
    ends: list[float] = []
    while not ends or ends[-1] < on_time[-1]:
        ends.append((ends[-1] if ends else 0.0) + random.exponential(on_s))
    pauses = np.concatenate([[0.0], np.cumsum(random.exponential(off_s, len(ends) - 1))])
    result: Floats = on_time + pauses[np.searchsorted(ends, on_time)]
    return result


def piecewise(count: int | None, stages: Sequence[tuple[float, float]], random: Generator) -> Floats:
    """Poisson with a rate that changes in steps, until the last stage ends or `count` have arrived.

    Args:
        count: most requests; None: all that arrive.
        stages: (duration in seconds, requests a second) one after another; a rate may be zero.
    """
    durations, rates = np.array(stages, dtype=float).T
    expected = np.concatenate([[0.0], np.cumsum(durations * rates)])
    times = np.concatenate([[0.0], np.cumsum(durations)])
    unit = _unit_poisson_until(float(expected[-1]), random)[:count]
    # the stage in whose time the expected count reaches `unit`; a silent stage never is
    stage = np.searchsorted(expected, unit, side="left") - 1
    result: Floats = times[stage] + (unit - expected[stage]) / rates[stage]
    return result


def diurnal(count: int, request_rate: float, amplitude: float, period_s: float, random: Generator) -> Floats:
    """Poisson with rate `request_rate` x (1 + amplitude x sin(2 pi t / period)): a day that begins at its mean, rising.

    `amplitude` is between 0 and 1. The expected count is inverted by bisection (Newton would fail where the rate is 0).
    """
    unit = np.cumsum(random.exponential(1.0, count))
    swing_s = amplitude * period_s / (2 * math.pi)
    low = unit / request_rate - 2 * swing_s
    high = unit / request_rate
    for _ in range(60):
        middle = 0.5 * (low + high)
        early = request_rate * (middle + swing_s * (1 - np.cos(2 * math.pi * middle / period_s))) < unit
        low, high = np.where(early, middle, low), np.where(early, high, middle)
    return np.maximum(0.5 * (low + high), 0.0)


def _unit_poisson_until(limit: float, random: Generator) -> Floats:
    """Arrival times of a Poisson process of rate 1 that are not after `limit`."""
    chunk = max(16, int(limit + 6 * math.sqrt(limit)))
    times = np.cumsum(random.exponential(1.0, chunk))
    while times[-1] <= limit:
        times = np.concatenate([times, times[-1] + np.cumsum(random.exponential(1.0, chunk))])
    return times[times <= limit]
