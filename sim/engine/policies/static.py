"""Static batching: a batch is filled when the replica is empty and runs until its longest request is done."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace

from sim.engine.batch import Batch, SchedulerLimits
from sim.engine.kv_cache import BlockPool
from sim.engine.policies.prefill_first import PrefillFirst
from sim.engine.policies.reserved import ReservedDecodes, ReservingPool
from sim.engine.sequence import OVER, Sequence


class Static(PrefillFirst):
    """Request-level scheduling, as FasterTransformer did.

    An empty replica takes as many waiting requests as it has places and memory for `max_model_len` tokens each. Their prompts are
    computed first, whole ones, in as many iterations as the token budget asks for; then all decode. A request that is done is
    not computed any more, but its place and its memory come free with the whole batch.
    """

    def __init__(self, limits: SchedulerLimits, pool: BlockPool, windows: tuple[int, ...] = ()) -> None:
        longest_tokens = limits.max_model_len
        reserving = ReservingPool(pool, lambda seq: longest_tokens)
        super().__init__(replace(limits, preempts=True), reserving, windows)
        self.decodes = ReservedDecodes(pool.block_size, windows)
        self._places = reserving.usable_blocks // -(-longest_tokens // pool.block_size)
        """Requests that memory holds."""
        self._open = 0
        """Places of the batch being filled that the head of the queue will take."""
        self._done: list[Sequence] = []

    def _admit(self, batch: Batch, budget: int, lone: bool) -> None:
        if not self.running and not self._done:
            self._open = min(len(self.waiting), self.limits.max_num_seqs, self._places)
        while self._open and self.waiting[0].known_tokens <= budget:
            seq = self.waiting.popleft()
            self._open -= 1
            budget -= seq.known_tokens
            self._start(batch, seq, 0, seq.known_tokens, [])

    def update(self) -> Items[Sequence]:
        finished = self._ending if self._async else self.decodes.ended(self.iteration)
        self._ending = ()
        for seq in finished:
            del self.running[seq]
            seq.state = OVER
            self._done.append(seq)
        if not self.running and not self._open:
            for seq in self._done:
                self.pool.release(seq)
            self._done.clear()
        return finished

    def _may_enter(self, seq: Sequence) -> bool:
        return not self.running
