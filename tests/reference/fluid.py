"""The fluid model written plainly: at every event all rates are found anew, activity by activity, and work moves on.

Slow on purpose, and it shares nothing with the engine: no bundles, no components, no timers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

# what rounding may leave of a full capacity or of finished work, relative
EPSILON = 1e-12


@dataclass(frozen=True)
class Job:
    """One activity: when it starts and what `Fluid.start` is told."""

    start_s: float
    amounts: Mapping[str, float]
    alone_s: float
    latency_s: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True)
class Change:
    """A capacity gets another rate."""

    time_s: float
    capacity: str
    rate_per_s: float


def finish_times(capacities: Mapping[str, float], jobs: Sequence[Job], changes: Sequence[Change] = ()) -> list[float]:
    """When each job is done; inf for one that stalls for ever."""
    rates_per_s = dict(capacities)
    finish_s = [inf] * len(jobs)
    begin_s = [job.start_s + job.latency_s for job in jobs]
    rest = [1.0] * len(jobs)
    now_s = 0.0
    while True:
        for change in changes:
            if change.time_s == now_s:
                rates_per_s[change.capacity] = change.rate_per_s
        active = [i for i in range(len(jobs)) if begin_s[i] <= now_s and finish_s[i] == inf]
        for i in list(active):
            if rest[i] <= EPSILON or (jobs[i].alone_s == 0.0 and not any(jobs[i].amounts.values())):
                finish_s[i] = now_s
                active.remove(i)
        speed = fill(rates_per_s, {i: jobs[i] for i in active})
        moments = [t for t in begin_s if t > now_s] + [change.time_s for change in changes if change.time_s > now_s]
        moments += [max(now_s + rest[i] / speed[i], now_s) for i in active if speed[i] > 0.0]
        if not moments:
            return finish_s
        next_s = min(moments)
        for i in active:
            rest[i] -= speed[i] * (next_s - now_s)
            if speed[i] > 0.0 and rest[i] / speed[i] <= EPSILON * next_s:
                rest[i] = 0.0
        now_s = next_s


def fill(rates_per_s: Mapping[str, float], jobs: Mapping[int, Job]) -> dict[int, float]:
    """Progressive filling: the rate of each job, in units of work a second."""
    speed = dict.fromkeys(jobs, 0.0)
    share = {i: _dominant_share_s(rates_per_s, job) for i, job in jobs.items()}  # of a unit of work a second
    for i, job in jobs.items():
        if share[i] == 0.0:
            speed[i] = 1.0 / job.alone_s
    rising = {i for i in jobs if 0.0 < share[i] < inf}
    level = 0.0
    while rising:
        steps = [_level_of_cap(jobs[i], share[i]) - level for i in sorted(rising)]
        for name, rate_per_s in rates_per_s.items():
            used = sum(job.amounts.get(name, 0.0) * speed[i] for i, job in jobs.items())
            slope = sum(jobs[i].amounts.get(name, 0.0) * jobs[i].weight / share[i] for i in sorted(rising))
            if slope > 0.0:
                steps.append((rate_per_s - used) / slope)
        level += max(0.0, min(steps))
        for i in rising:
            speed[i] = level * jobs[i].weight / share[i]
        rising = {i for i in rising if not _stopped(rates_per_s, jobs, speed, i, share[i], level)}
    return speed


def _dominant_share_s(rates_per_s: Mapping[str, float], job: Job) -> float:
    needs = [(amount, rates_per_s[name]) for name, amount in job.amounts.items() if amount > 0.0]
    return max((amount / rate if rate > 0.0 else inf for amount, rate in needs), default=0.0)


def _level_of_cap(job: Job, share_s: float) -> float:
    return share_s / (job.alone_s * job.weight) if job.alone_s > 0.0 else inf


def _stopped(
    rates_per_s: Mapping[str, float],
    jobs: Mapping[int, Job],
    speed: Mapping[int, float],
    i: int,
    share_s: float,
    level: float,
) -> bool:
    """Whether job i is at its cap or on a capacity that is full."""
    if level >= _level_of_cap(jobs[i], share_s) * (1 - EPSILON):
        return True
    for name, amount in jobs[i].amounts.items():
        used = sum(job.amounts.get(name, 0.0) * speed[k] for k, job in jobs.items())
        if amount > 0.0 and used >= rates_per_s[name] * (1 - EPSILON):
            return True
    return False
