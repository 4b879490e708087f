"""Scheduling for a pipeline: as many batches in flight as there are stages, over one queue and one KV cache.

A sequence that has sampled a token joins the lane of that batch, and decodes in it from then on: while the lane's batch is in
flight nobody can schedule it, and when the batch returns it is scheduled again at once. That is what vLLM's batch queue does.
"""

from __future__ import annotations

from sim.engine.batch import Batch, SchedulerLimits
from sim.engine.batching import VllmScheduler
from sim.engine.kv_cache import BlockPool
from sim.engine.sequence import DECODING, Sequence


class LaneScheduler(VllmScheduler):
    """The batches of one lane; queue, running list, prefills and pool are shared with the lanes beside it."""

    def __init__(
        self, limits: SchedulerLimits, pool: BlockPool, windows: tuple[int, ...], beside: LaneScheduler | None
    ) -> None:
        super().__init__(limits, pool, windows)
        self.in_flight = False
        self.returning: set[Sequence] = set()
        """Preempted while their token is in flight: they wait for it before they can be admitted again."""
        if beside is not None:
            self.waiting, self.running, self._prefilling = beside.waiting, beside.running, beside._prefilling
            self.returning, self._admission_counter = beside.returning, beside._admission_counter

    def _preempt(self, batch: Batch, victim: Sequence) -> None:
        lane = victim.lane
        if victim.state != DECODING or not isinstance(lane, LaneScheduler) or lane is self:
            super()._preempt(batch, victim)
            return
        ends = victim.last_iteration == lane.iteration
        if ends:  # its last token is in flight: the lane's update() will find it
            victim.known_tokens = lane.iteration + 1 + victim.offset
            victim.computed_tokens = victim.known_tokens - 1
        else:
            lane.decodes.remove(victim, lane.iteration + 1)
        super()._preempt(batch, victim)
        if ends:
            victim.state = DECODING
        if lane.in_flight:
            self.returning.add(victim)

    def _admit(self, batch: Batch, budget: int, lone: bool) -> None:
        if self.waiting[0] not in self.returning:
            super()._admit(batch, budget, lone)

    def returned(self) -> list[Sequence]:
        """The lane's batch is back: returns the sequences that were preempted meanwhile, and now hold its token."""
        self.in_flight = False
        back = sorted((seq for seq in self.returning if seq.lane is self), key=lambda seq: seq.id)
        self.returning.difference_update(back)
        return back


def lanes(limits: SchedulerLimits, pool: BlockPool, windows: tuple[int, ...], count: int) -> list[LaneScheduler]:
    """`count` lanes over one pool."""
    first = LaneScheduler(limits, pool, windows, None)
    return [first, *(LaneScheduler(limits, pool, windows, first) for _ in range(count - 1))]
