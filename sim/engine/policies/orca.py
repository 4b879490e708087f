"""Orca: iteration-level scheduling with KV memory reserved at admission."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace

from sim.engine.batch import SchedulerLimits
from sim.engine.batching import VllmScheduler
from sim.engine.kv_cache import BlockPool
from sim.engine.policies.prefill_first import whole_prompts
from sim.engine.policies.reserved import ReservedDecodes, ReservingPool
from sim.engine.sequence import Sequence


class Orca(VllmScheduler):
    """Requests join and leave at every iteration; whole prompts are computed beside the decodes.

    A request reserves room for its prompt and all the output it asks for, so nothing is ever preempted. Source: Yu et al.,
    "Orca: A Distributed Serving System for Transformer-Based Generative Models", OSDI 2022, algorithm 1. Orca bounds
    an iteration by the number of requests alone; here `max_num_batched_tokens` bounds it too.
    """

    def __init__(self, limits: SchedulerLimits, pool: BlockPool, windows: tuple[int, ...] = ()) -> None:
        reserving = ReservingPool(pool, _asked_tokens)
        super().__init__(replace(whole_prompts(limits), preempts=True), reserving, windows)
        self.decodes = ReservedDecodes(pool.block_size, windows)
        self._reserving = reserving

    def _blocks_short(self, seq: Sequence, tokens: int, hits: Items[int]) -> int:
        return self._reserving.reservation(seq) - self._reserving.free


def _asked_tokens(seq: Sequence) -> int:
    return seq.limit_tokens
