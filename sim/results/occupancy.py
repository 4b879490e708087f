"""What replicas hold over time: requests that run and that wait, KV blocks in use, as step functions of time."""

from __future__ import annotations

import numpy as np

from sim.results.gaps import Floats
from sim.results.metrics import in_system, segment_s
from sim.results.result import Result

_INSTANT = 9
"""Decimals of a second: what lies closer together is one instant told in two ways (a stamp, and a sum of iterations)."""


def over_time(result: Result, column: str) -> tuple[Floats, Floats]:
    """(times, values) of a column of the steps table, summed over replicas, 0 where a replica idles.

    `waiting` is not read there, for a row knows its replica's queue at one moment only and may stand for a thousand iterations:
    whoever is in the system and does not run waits.
    """
    return _waiting(result) if column == "waiting" else _held(result, column)


def mean_over_time(result: Result, column: str) -> float:
    """Time average of what `over_time` tells."""
    times, values = over_time(result, column)
    until = np.minimum(np.append(times[1:], result.end_s), result.end_s)
    return float((values * np.maximum(until - times, 0.0)).sum()) / result.end_s if result.end_s > 0 else 0.0


def peak(result: Result, column: str) -> int:
    """The most at any one time."""
    return int(over_time(result, column)[1].max(initial=0.0))


def _held(result: Result, column: str) -> tuple[Floats, Floats]:
    steps = result.steps
    replica = steps["replica"] // result.lanes
    order = np.lexsort((steps["start_s"], replica))
    replica, start, value = replica[order], steps["start_s"][order], steps[column][order].astype(np.float64)
    same, next_start = np.append(replica[1:] == replica[:-1], False), np.append(start[1:], np.inf)
    # batches in the lanes of a pipeline overlap, and each row tells of the whole replica: it counts until the next one starts
    end = np.minimum(start + segment_s(steps)[order], np.where(same, next_start, np.inf))
    # a replica that idles until its next segment holds nothing; the pause is real only beyond rounding
    idle = ~same | (next_start > end * (1 + 1e-12) + 1e-12)
    before = np.concatenate([[0.0], value[:-1]])
    before[1:][idle[:-1]] = 0.0
    return _summed(np.concatenate([start, end[idle]]), np.concatenate([value - before, -value[idle]]))


def _waiting(result: Result) -> tuple[Floats, Floats]:
    requests = {name: column[in_system(result.requests, result.end_s)] for name, column in result.requests.items()}
    gone = np.where(np.isnan(requests["finish_s"]), result.end_s, requests["finish_s"] - result.exit_s)
    times, running = _held(result, "running")
    one = np.ones(len(gone))
    times = np.concatenate([times, requests["arrival_s"], gone]).round(_INSTANT)
    times, values = _summed(times, np.concatenate([-np.diff(running, prepend=0.0), one, -one]))
    return times, np.maximum(values, 0.0)


def _summed(times: Floats, changes: Floats) -> tuple[Floats, Floats]:
    """The step function that changes so much at these times."""
    order = np.argsort(times, kind="stable")
    times, values = times[order], np.cumsum(changes[order])
    last = np.append(times[1:] != times[:-1], True)[: len(times)]
    return times[last], values[last]
