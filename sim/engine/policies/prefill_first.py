"""vLLM's V0 scheduler: prompts go before decodes, and never share an iteration with them."""

from __future__ import annotations

from dataclasses import replace

from sim.engine.batch import Batch, SchedulerLimits
from sim.engine.batching import VllmScheduler
from sim.engine.kv_cache import BlockPool
from sim.engine.sequence import DECODING, Sequence
from sim.errors import InputError


def whole_prompts(limits: SchedulerLimits) -> SchedulerLimits:
    """`limits` without chunked prefill: a prompt is computed in one iteration.

    Raises:
        InputError: the longest prompt may not fit into an iteration; vLLM V0 refused to start then, too.
    """
    if limits.max_num_batched_tokens < limits.max_model_len:
        problem = f"got {limits.max_num_batched_tokens}, less than the longest prompt + output ({limits.max_model_len})"
        hint = "this scheduler computes a prompt in one iteration: raise it, or lower max_model_len"
        raise InputError("engine.max_num_batched_tokens", problem, hint)
    return replace(
        limits,
        enable_chunked_prefill=False,
        long_prefill_token_threshold=0,
        oversized_prompts_stepped_over=False,
        lone_request_uncapped=False,
    )


class PrefillFirst(VllmScheduler):
    """An iteration computes the whole prompts that can be admitted, within the token budget; if there are none, it decodes.

    `iteration` counts decode iterations only, so a prompt that goes before costs the decoding sequences nothing but time.
    Source: `Scheduler._schedule_default` of vLLM 0.6 (V0), preemption of the latest by recompute.
    """

    def __init__(self, limits: SchedulerLimits, pool: BlockPool, windows: tuple[int, ...] = ()) -> None:
        super().__init__(whole_prompts(limits), pool, windows)
        self._stalled: list[Sequence] = []
        """Decoding sequences that got no token in the last iteration."""

    def schedule(self) -> Batch:
        decodes = self.decodes
        if self._async and decodes.ends and decodes.ends[0][0] <= self.iteration:
            self._ending = decodes.ended(self.iteration)
        batch = Batch(self.iteration)
        if self.waiting:
            self._admit(batch, self._budget, lone=False)
        if batch.chunks:
            self._stall(batch)
            self._settle_chunks(batch)
        elif batch.out_of_memory is None:
            batch = self._decode()
        return batch

    def _stall(self, batch: Batch) -> None:
        """Decoding sequences wait while prompts are computed."""
        batch.steady = False
        self._stalled = [seq for seq in self.running if seq.state == DECODING]
        for seq in self._stalled:
            seq.known_tokens = self.iteration + 1 + seq.offset
        batch.starved = self._stalled

    def _decode(self) -> Batch:
        """An iteration with one token for every decoding sequence."""
        self.iteration = iteration = self.iteration + 1
        decodes = self.decodes
        batch = Batch(iteration, decodes.count, decodes.count * iteration + decodes.offset_sum)
        needed = decodes.block_phase[iteration % self._block_size]
        self._schedule_together(batch, self._budget - decodes.count, needed, lone=False)
        if self._stalled and batch.steady:
            batch.late, batch.steady = self._stalled, False
        self._stalled = []
        return batch

    def _may_enter(self, seq: Sequence) -> bool:
        if len(self.running) >= self.limits.max_num_seqs:
            return False
        return self.prefix_pool is not None or self._blocks_short(seq, seq.known_tokens, []) <= 0
