"""Data-parallel ranks that share their experts and so run in lock-step (DP attention with expert parallelism).

Each rank schedules requests of its own, with a KV cache of its own. Their iterations start together, for the MoE layers see the
tokens of all, and last as long as that of the slowest; a rank without requests runs along on a dummy token, as in vLLM
(`execute_dummy_batch`). While every rank's batch is small enough for a CUDA graph, all are padded to the largest.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import NamedTuple

import numpy as np

from sim.cost.experts import LockStepCost
from sim.cost.preset import padded
from sim.engine.batch import Batch
from sim.engine.batching import VllmScheduler
from sim.engine.clock import Clock
from sim.engine.pricing import StagePricing
from sim.engine.recorder import Recorder
from sim.engine.replica import Replica
from sim.engine.sequence import Sequence


class GroupIteration(NamedTuple):
    """One iteration of a group."""

    duration_s: float
    rows: list[int]
    """Of each rank."""
    group_rows: int
    widest_rows: int
    overlapped: bool
    """It ran as two half batches."""


class LockStepPricing:
    """Prices the iterations of a group from the batches of its ranks.

    Args:
        ranks: pricing of each; its cost is a `LockStepCost`.
        two_batch_overlap: an iteration runs as two half batches where that is sooner.
    """

    def __init__(self, ranks: Items[StagePricing], two_batch_overlap: bool = False) -> None:
        self._ranks = list(ranks)
        self._costs = [_lock_step_cost(rank) for rank in ranks]
        cost = self._costs[0]
        self._experts, self._async = cost.experts, cost.async_scheduling
        self._overlaps = two_batch_overlap and cost.experts.layers > 0
        sizes = cost.preset.graph_sizes
        self._padded: list[int] = padded(np.arange((sizes[-1] if sizes else 0) + 1), sizes).tolist()

    def iteration(self, batches: Items[Batch | None]) -> GroupIteration:
        """Duration and rows of the iteration in which the ranks compute these batches (None: nothing)."""
        rows = [max(batch.decodes + batch.chunk_tokens, 1) if batch is not None else 1 for batch in batches]
        if max(rows) < len(self._padded):
            rows = [self._padded[max(rows)]] * len(rows)
        group, widest = sum(rows), max(rows)
        own_s = [self._own_s(i, batch, rows[i]) for i, batch in enumerate(batches)]
        shared_s = self._experts.experts_s(group) + self._experts.exchange_s(group, widest)
        gpu_s, overlapped = [own + shared_s for own in own_s], False
        if self._overlaps:
            halves_s = [self._halves_s(i, b, own_s[i], rows[i], group, widest) for i, b in enumerate(batches)]
            overlapped = max(halves_s) < max(gpu_s)
            gpu_s = halves_s if overlapped else gpu_s
        duration_s = max(self._with_host(i, batch, gpu_s[i], rows[i]) for i, batch in enumerate(batches))
        return GroupIteration(duration_s, rows, group, widest, overlapped)

    def _own_s(self, rank: int, batch: Batch | None, rows: int) -> float:
        """GPU seconds of one rank without the experts."""
        cost = self._costs[rank]
        if batch is None:
            return cost.token_s[rows]
        return self._ranks[rank].kernels_s(batch) + (
            cost.token_s[rows] - cost.token_s[batch.decodes + batch.chunk_tokens]
        )

    def _halves_s(self, rank: int, batch: Batch | None, own_s: float, rows: int, group: int, widest: int) -> float:
        cost = self._costs[rank]
        decodes, sampled = (0, 0) if batch is None else (batch.decodes, batch.sampled)
        return cost.overlapped_s(own_s, cost.sampled_s[sampled], rows, decodes, group, widest)

    def _with_host(self, rank: int, batch: Batch | None, gpu_s: float, rows: int) -> float:
        """Seconds of one rank's iteration, the scheduling and the launching by its host included."""
        cost, mixed = self._costs[rank], batch is not None and bool(batch.chunks)
        host_s = cost.host_s[0 if batch is None else batch.decodes + len(batch.chunks)]
        launch_s = cost.launch_lists_s[mixed][rows]
        return max(gpu_s, launch_s + host_s) if self._async else max(gpu_s, launch_s) + host_s


def _lock_step_cost(rank: StagePricing) -> LockStepCost:
    assert isinstance(rank.cost, LockStepCost)
    return rank.cost


class LockStepRank(Replica):
    """One data-parallel rank: a replica to the router, whose iterations the group starts and ends."""

    def __init__(
        self,
        group: LockStepGroup,
        env: Clock,
        index: int,
        scheduler: VllmScheduler,
        pricing: StagePricing,
        recorder: Recorder,
        on_finish: Callable[[Sequence, float], None],
        *,
        exit_s: float = 0.0,
    ) -> None:
        super().__init__(env, index, scheduler, pricing, recorder, on_finish, leaps=False, exit_s=exit_s)
        self.pricing = pricing
        self._group = group
        self._asked = False
        """A request came since its last schedule."""
        group.ranks.append(self)

    def submit(self, seq: Sequence) -> None:
        self._asked = True
        super().submit(seq)

    def _wait_until(self, at_s: float) -> None:
        """An idle rank that should look: with the others, if they are at work."""
        self._group.wake()

    def close(self, now_s: float, rows: tuple[int, int, int, bool]) -> None:
        """The group's iteration is over; `rows` are its own, the group's, the widest rank's, and whether it was halved."""
        self._at_boundary = True
        if self._batch is not None:
            self._asked = True
            self._recorder.lock_steps.append((self._recorder.num_steps, *rows))
            self._close_segment(self._batch, now_s)

    def decide(self, now_s: float) -> Batch | None:
        """The batch for the next iteration; None if there is nothing that it could compute."""
        if not (self._asked or self.scheduler.has_work):
            return None
        self._asked = False
        return self._decide(now_s)

    def look_again(self, batch: Batch | None, now_s: float) -> Batch | None:
        """As `decide`, once more if it found nothing and others' requests have come since."""
        return self.decide(now_s) if batch is None and self._asked else batch

    @property
    def missed(self) -> bool:
        """Whether requests came after it decided."""
        return self._asked

    def begin(self, batch: Batch | None, now_s: float, duration_s: float) -> None:
        """The group's next iteration starts, or the group rests."""
        if self.at_boundary is not None:
            self.at_boundary(self)
        self._at_boundary = False
        self._batch, self._start_s, self._planned = batch, now_s, 1
        self._first_s, self._growth_s = duration_s, 0.0


class LockStepGroup:
    """The ranks of one model whose iterations start and end together."""

    def __init__(self, env: Clock) -> None:
        self.env = env
        self.ranks: list[LockStepRank] = []
        self.pricing: LockStepPricing | None = None
        """Set once all ranks are known."""
        self._due = False
        self._under_way: GroupIteration | None = None

    def wake(self) -> None:
        """Somebody has work: a group at rest starts; one at work will see it after this iteration."""
        if not self._due and self._under_way is None:
            self._due = True
            self.env.call_at(self.env.now, self._boundary)

    def _boundary(self, _: int) -> None:
        now_s, over = self.env.now, self._under_way
        for i, rank in enumerate(self.ranks):
            own = (
                (0, 0, 0, False) if over is None else (over.rows[i], over.group_rows, over.widest_rows, over.overlapped)
            )
            rank.close(now_s, own)
        batches = [rank.decide(now_s) for rank in self.ranks]
        while any(batch is None and rank.missed for rank, batch in zip(self.ranks, batches, strict=True)):
            batches = [rank.look_again(batch, now_s) for rank, batch in zip(self.ranks, batches, strict=True)]
        assert self.pricing is not None
        busy = any(batch is not None for batch in batches)
        self._due, self._under_way = False, self.pricing.iteration(batches) if busy else None
        duration_s = self._under_way.duration_s if self._under_way is not None else 0.0
        for rank, batch in zip(self.ranks, batches, strict=True):
            rank.begin(batch, now_s, duration_s)
        if busy:
            self.env.call_at(now_s + duration_s, self._boundary)
