"""Priority classes: vLLM's `--scheduling-policy priority`."""

from __future__ import annotations

from sim.engine.batch import Batch, SchedulerLimits
from sim.engine.kv_cache import BlockPool
from sim.engine.policies.ordered import OrderedQueue, OrderedScheduler
from sim.engine.sequence import DECODING, Sequence

Rank = tuple[int, float, int]


class PriorityQueue(OrderedQueue):
    """A preempted request takes its place in the order again, as any other."""

    def appendleft(self, seq: Sequence) -> None:
        self.append(seq)


class Priority(OrderedScheduler):
    """Lower `priority` first, then by arrival; where blocks lack, the last in that order of those running is preempted.

    A waiting request never preempts a running one to get in. Source: `Scheduler.schedule` of vLLM V1 under
    SchedulingPolicy.PRIORITY.
    """

    def __init__(self, limits: SchedulerLimits, pool: BlockPool, windows: tuple[int, ...] = ()) -> None:
        super().__init__(limits, pool, windows)
        self.waiting = PriorityQueue(self.rank)

    def rank(self, seq: Sequence) -> Rank:
        return seq.priority, seq.arrival_s, seq.id

    def _victim(self) -> Sequence:
        return max(self.running, key=self.rank)

    def _preempt(self, batch: Batch, victim: Sequence) -> None:
        self._withdraw(batch, victim)
        super()._preempt(batch, victim)

    def _withdraw(self, batch: Batch, victim: Sequence) -> None:
        """Takes back what the batch gave to `victim` already; the budget counts what is left in the batch."""
        if victim.state == DECODING and batch.decoding and victim in batch.decoding:
            batch.decoding.remove(victim)
            batch.decodes -= 1
            batch.sampled -= 1
            batch.context_tokens -= victim.known_tokens
            lengths = [min(victim.known_tokens, window.window_tokens) for window in self.decodes.windows]
            batch.window_tokens = tuple(a - b for a, b in zip(batch.window_tokens, lengths, strict=True))
            batch.late = [seq for seq in batch.late if seq is not victim]
        withdrawn = [(tokens, last) for _, tokens, seq, last in batch.chunks if seq is victim]
        if withdrawn:
            batch.chunks = [chunk for chunk in batch.chunks if chunk[2] is not victim]
        for tokens, last in withdrawn:
            batch.chunk_tokens -= tokens
            batch.sampled -= last
