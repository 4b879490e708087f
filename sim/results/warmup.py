"""How many of a run's first requests are warm-up: MSER-5.

A run starts empty (or, in a closed loop, with all users at once), so its first requests are not like the later ones. MSER
cuts off so many that the standard error of the mean of the rest is smallest (White, "An effective truncation heuristic for
bias reduction in simulation output", 1997), over means of five so that noise does not decide (White, Cobb and Spratt,
"A comparison of five steady-state truncation heuristics for simulation", 2000).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.results.metrics import latencies
from sim.results.result import Result

GROUP = 5
LEAST_GROUPS = 10
"""Groups below which nothing is looked for: the smallest standard error is then an accident."""
METHOD = "MSER-5 on TTFT and TPOT in order of arrival"

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What a run says of its own start."""

    requests: int | None
    """First requests to leave out, those that the scenario leaves out included; None: no steady state was found, which asks
    for a longer run (or for less load)."""
    method: str = METHOD


def mser5(samples: Floats) -> int | None:
    """Samples to cut off at the start of a series, a multiple of five.

    Returns:
        None where the best cut is in the second half, or the series too short: no steady state is in sight.
    """
    groups = len(samples) // GROUP
    if groups < LEAST_GROUPS:
        return None
    means = samples[: groups * GROUP].reshape(groups, GROUP).mean(axis=1)
    means = means - means.mean()  # the squares below keep their digits where a large mean varies little
    left = np.arange(groups, 0, -1)
    sums, squares = np.cumsum(means[::-1])[::-1], np.cumsum((means**2)[::-1])[::-1]
    # of the last few groups the error is small by accident
    error = (np.maximum(squares - sums**2 / left, 0.0) / left**2)[:-GROUP]
    # of equal errors, but for rounding, the earliest
    cut = int(np.argmax(error <= error.min() * (1 + 1e-9) + 1e-18 * squares[0]))
    return None if cut > groups // 2 else GROUP * cut


def warm_up(result: Result) -> WarmUp:
    """The warm-up of a run: the longer of those that TTFT and TPOT of its requests show."""
    samples = latencies(result)
    found = [mser5(samples[name]) for name in ("ttft", "tpot") if len(samples[name])]
    cuts = [cut for cut in found if cut is not None]
    if not cuts or len(cuts) < len(found):
        return WarmUp(None)
    return WarmUp(int(result.workload.get("warmup_requests") or 0) + max(cuts))
