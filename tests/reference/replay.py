"""Drive a scheduler through a case, and compare what it decided with what vLLM did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .scheduler import Iteration, ReferenceScheduler
from .trace import Case, Record, Request, first_difference


class Scheduler(Protocol):
    """What drive() needs of a scheduler; one in sim/ is compared through a small adapter."""

    @property
    def unfinished(self) -> int: ...
    @property
    def free_blocks(self) -> int: ...
    def add(self, request: Request) -> None: ...
    def schedule(self) -> Iteration: ...
    def update(self, it: Iteration) -> list[int]: ...


def drive(scheduler: Scheduler, case: Case, after_step: Callable[[], None] = lambda: None) -> tuple[list[Record], str]:
    """Run a case to its end: the records in the trace format and the status (complete, stuck, max_iters).

    `after_step` is called after every iteration.
    """
    arrivals = sorted(case.requests, key=lambda r: (r.arrival, r.id))
    records: list[Record] = []
    last = Iteration()  # what an asynchronous engine has in flight: nothing yet
    i = idle = 0
    while True:
        if not scheduler.unfinished:
            if not arrivals:
                return records, "complete"
            i = max(i, arrivals[0].arrival)
        if len(records) == case.config.max_iters:
            return records, "max_iters"
        if idle == case.config.stop_after_idle:
            return records, "stuck"
        added = [r for r in arrivals if r.arrival <= i]
        arrivals = arrivals[len(added) :]
        for request in added:
            scheduler.add(request)
        it = scheduler.schedule()
        finished = scheduler.update(last if case.config.async_scheduling else it)
        records.append(_record(i, added, it, finished, scheduler.free_blocks))
        after_step()
        idle = 0 if it.order else idle + 1
        last = it
        i += 1


def replay(case: Case, check_every: int = 1) -> str | None:
    """The first difference between vLLM's recording and the reference scheduler, or None.

    Compared are every field of every iteration, how the recording ended and what became of every request.
    The invariants of the reference are asserted after every `check_every`-th iteration.
    """
    scheduler = ReferenceScheduler(case.config)
    steps = 0

    def check() -> None:
        nonlocal steps
        steps += 1
        if steps % check_every == 0:
            scheduler.check()

    records, status = drive(scheduler, case, check)
    difference = first_difference(case.records, records)
    if difference is not None:
        return difference
    if status != case.status:
        return f"the recording ended {case.status}, the replay {status}"
    for request, result in scheduler.results().items():
        if result != case.results[request]:
            return f"request {request}: should have become {case.results[request]}, is {result}"
    return None


def _record(i: int, added: list[Request], it: Iteration, finished: list[int], free_end: int) -> Record:
    """One iteration in the trace format."""
    return Record(
        i=i,
        add=[request.id for request in added],
        adm=list(it.admitted),
        p=list(it.chunks),
        d=list(it.decodes),
        pre=list(it.preempted),
        run=it.running,
        wait=it.waiting,
        free=it.free,
        fin=list(finished),
        free_end=free_end,
    )
