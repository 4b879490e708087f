"""Speculative decoding: a sequence advances by several tokens an iteration, as many as are accepted.

Sequences are worked out one by one, so a run always steps. It schedules synchronously: what is accepted decides what comes
next (vLLM does so with a draft model). The blocks of rejected tokens stay with the sequence, which will need them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence as Items
from itertools import accumulate
from random import Random

from sim.cost.speculation import SpeculativeCost
from sim.engine.batch import Batch, SchedulerLimits
from sim.engine.batching import VllmScheduler
from sim.engine.iteration import Pace
from sim.engine.kv_cache import BlockPool
from sim.engine.pricing import FOR_EVER, StagePricing
from sim.engine.replica import Replica
from sim.engine.sequence import DECODING, ENDING, OVER, PREFILLING, WAITING, Sequence


class Acceptance:
    """Draws by how many tokens a sequence advances.

    Args:
        lengths: probabilities of 1, 2, ... tokens.
        random: where the draws come from.
    """

    def __init__(self, lengths: Items[float], random: Random) -> None:
        self._random = random
        self._cumulated = list(accumulate(lengths))[:-1]

    def draw(self) -> int:
        """Tokens that the next verification yields: those accepted, and the one that the model adds itself."""
        return 1 + bisect_right(self._cumulated, self._random.random())


class HeldBlocks(BlockPool):
    """A pool that knows what each sequence holds: more than its computed tokens fill, after a rejection."""

    def __init__(self, usable_blocks: int, block_size: int) -> None:
        super().__init__(usable_blocks, block_size)
        self._held: dict[Sequence, int] = {}

    def held(self, seq: Sequence) -> int:
        return self._held.get(seq, 0)

    def take(self, seq: Sequence, blocks: int) -> None:
        self.free -= blocks
        self._held[seq] = self.held(seq) + blocks

    def release(self, seq: Sequence) -> None:
        self.free += self._held.pop(seq, 0)


class SpeculativeBatch(Batch):
    """A batch whose decodes verify several tokens each."""

    def __init__(self, iteration: int) -> None:
        super().__init__(iteration)
        self.steady = False
        self.extra_tokens = 0
        """Tokens that decoding sequences get beyond one each."""


class SpeculativeScheduler(VllmScheduler):
    """vLLM's rules for sequences that ask for `1 + drafts` tokens when they decode."""

    def __init__(
        self, limits: SchedulerLimits, pool: BlockPool, windows: tuple[int, ...], acceptance: Acceptance, drafts: int
    ) -> None:
        super().__init__(limits, pool, windows)
        self.advanced: dict[Sequence, int] = {}
        """Tokens that each sequence gets from the iteration in flight."""
        self._acceptance = acceptance
        self._verified = 1 + drafts
        self._over: list[Sequence] = []

    def schedule(self) -> SpeculativeBatch:
        self.iteration += 1
        batch = SpeculativeBatch(self.iteration)
        lone = self._spares_lone and len(self.running) + len(self.waiting) <= 1
        budget = self._serve_running(batch, lone)
        batch.starved = [seq for seq in self.running if seq.state == DECODING and seq not in self.advanced]
        if self.waiting and budget > 0 and not batch.preempted and batch.out_of_memory is None:
            self._admit(batch, budget, lone)
        for _, _, seq, last in batch.chunks:
            if last:
                seq.state = DECODING
                self._advance(seq, 1)
        return batch

    def _serve_running(self, batch: SpeculativeBatch, lone: bool) -> int:
        """Every running sequence in turn, preempting the latest where blocks lack; returns the budget left."""
        budget, size = self._budget, self.pool.block_size
        for seq in list(self.running):
            if seq not in self.running:  # preempted by one before it
                continue
            verifies = seq.state == DECODING
            tokens = self._verified if verifies else min(self._chunk_tokens(seq, lone), budget)
            if tokens > budget or tokens <= 0:
                continue
            end = min(seq.computed_tokens + tokens, self.limits.max_model_len)
            blocks = max(-(-end // size) - self.pool.held(seq), 0)
            if not self._make_room(batch, seq, blocks):
                break
            self.pool.take(seq, blocks)
            if verifies:
                self._verify(batch, seq)
            else:
                self._compute(batch, seq, seq.computed_tokens, tokens)
            budget -= tokens
        return budget

    def _verify(self, batch: SpeculativeBatch, seq: Sequence) -> None:
        tokens = min(self._acceptance.draw(), seq.limit_tokens - seq.known_tokens)
        batch.add_decode(seq, self.decodes.windows)
        batch.sampled += tokens
        batch.extra_tokens += tokens - 1
        seq.computed_tokens += tokens
        if self.prefix_pool is not None:
            self.prefix_pool.register(seq, seq.computed_tokens)
        if seq.gap_since_s == seq.gap_since_s:
            batch.late = [*batch.late, seq]
        self._advance(seq, tokens)

    def _advance(self, seq: Sequence, tokens: int) -> None:
        seq.known_tokens += tokens
        self.advanced[seq] = tokens
        if seq.known_tokens >= seq.limit_tokens:
            seq.state = ENDING
            self._over.append(seq)

    def update(self) -> Items[Sequence]:
        finished, self._over = sorted(self._over, key=lambda seq: seq.order), []
        self.advanced.clear()
        for seq in finished:
            self.pool.release(seq)
            del self.running[seq]
            seq.state = OVER
        return finished

    def horizon(self) -> int:
        return 1


class SpeculativePricing(StagePricing):
    """Prices iterations that verify, the draft's included."""

    def __init__(self, cost: SpeculativeCost) -> None:
        super().__init__(cost)
        self._speculative = cost

    def pace(self, batch: Batch) -> Pace:
        return self.gpu_s(batch) + self.cost.host_s[batch.decodes + len(batch.chunks)], 0.0, FOR_EVER

    def launch_s(self, batch: Batch) -> float:
        tokens = self._speculative.verified * batch.decodes + batch.chunk_tokens
        return self.cost.launch_lists_s[bool(batch.chunks)][tokens]

    def kernels_s(self, batch: Batch) -> float:
        assert isinstance(batch, SpeculativeBatch)
        cost, decodes, verified = self._speculative, batch.decodes, self._speculative.verified * batch.decodes
        ends = batch.sampled - decodes - batch.extra_tokens
        chunks = batch.chunks
        total_s = cost.token_s[verified + batch.chunk_tokens] + cost.sampled_s[verified + ends]
        if chunks:
            total_s += cost.chunks_s(chunks)
        if decodes:
            total_s += cost.decode_fixed_s[decodes] + cost.full_slope_s[decodes] * batch.context_tokens
            for slopes, tokens in zip(cost.window_slopes_s, batch.window_tokens, strict=True):
                total_s += slopes[decodes] * tokens
        contexts = [batch.context_tokens, *batch.window_tokens]
        return total_s + cost.draft_s(decodes, contexts, batch.chunk_tokens, chunks)


class SpeculativeReplica(Replica):
    """A replica that serves by verifying; it never leaps."""

    def write_back(self, seq: Sequence) -> None:
        scheduler = self.scheduler
        assert isinstance(scheduler, SpeculativeScheduler)
        if seq.state not in (WAITING, PREFILLING):
            seq.known_tokens -= scheduler.advanced.get(seq, 0)

    def _close_segment(self, batch: Batch, now_s: float) -> None:
        assert isinstance(batch, SpeculativeBatch)
        self._recorder.accepted.append((self._recorder.num_steps, batch.extra_tokens))
        super()._close_segment(batch, now_s)
