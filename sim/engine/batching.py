"""vLLM's V1 scheduler: which tokens the next iteration computes.

The rules carry the numbers of the semantics page they were checked against (R running, P preemption, W waiting, C cache, E end,
A asynchronous). Decoding sequences live in a `DecodeSet`, so an ordinary iteration costs nothing per sequence; an iteration that
runs out of blocks or of budget is worked out sequence by sequence in `_schedule_one_by_one`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items
from itertools import count

from sim.engine.batch import Batch, SchedulerLimits
from sim.engine.decode_set import DecodeSet
from sim.engine.kv_cache import BlockPool, PrefixPool
from sim.engine.sequence import DECODING, ENDING, OVER, PREFILLING, WAITING, Sequence

NO_HITS: Items[int] = ()


class VllmScheduler:
    """Decides, iteration by iteration, what a replica computes.

    A cycle is schedule(), [advance()], update(); asynchronously schedule() comes before update() of the last iteration (A1).
    """

    def __init__(self, limits: SchedulerLimits, pool: BlockPool, windows: tuple[int, ...] = ()) -> None:
        self.limits = limits
        self.pool = pool
        self.prefix_pool = pool if isinstance(pool, PrefixPool) else None
        self.iteration = -1
        self.waiting: deque[Sequence] = deque()
        self.running: dict[Sequence, None] = {}  # in admission order
        self.decodes = DecodeSet(pool.block_size, windows, track_members=pool.caching)
        self._prefilling: list[Sequence] = []  # whose prefill is not complete, in running order
        self._ending: Items[Sequence] = ()  # their last token is sampled; blocks and places come free in update()
        self._starved: Items[Sequence] = ()
        """Decoding sequences that the schedule() of iteration `_starved_at` had no budget or no memory for."""
        self._starved_at = -1
        self._admission_counter = count(1)
        self._last_decode_order = -1
        """No decoding sequence was admitted later than this (an upper bound)."""
        self._async = limits.async_scheduling
        self._spares_lone = limits.lone_request_uncapped and limits.long_prefill_token_threshold > 0
        self._budget = limits.max_num_batched_tokens
        self._block_size = pool.block_size
        self._gated = limits.scheduler_reserve_full_isl
        self._watermark = limits.watermark_blocks
        self._plain = self.prefix_pool is None and not windows
        """The decodes of an iteration are known by their number and their contexts."""

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, seq: Sequence) -> None:
        """A new request joins the queue."""
        self.waiting.append(seq)

    # --- one iteration ---

    def schedule(self) -> Batch:
        """Decides the next iteration, takes its blocks and counts its tokens as computed."""
        self.iteration = iteration = self.iteration + 1
        decodes, pool = self.decodes, self.pool
        if self._async and (ends := decodes.ends) and ends[0][0] < iteration:
            self._ending = decodes.ended(iteration - 1)
        lone = self._spares_lone and len(self.running) + len(self.waiting) <= 1
        needed = decodes.block_phase[iteration % self._block_size]
        number = decodes.count
        batch = Batch(iteration, number, number * iteration + decodes.offset_sum)
        budget = self._budget - number
        late = self._starved and self._starved_at == iteration - 1  # whose gap is longer than this iteration
        if self._prefilling or budget < 0 or needed > pool.free or late:
            budget = self._schedule_together(batch, budget, needed, lone)
        elif self._plain:
            pool.free -= needed
        else:
            self._decode_all(batch, needed)
        if self.waiting and budget > 0 and (batch.steady or not (batch.preempted or batch.out_of_memory)):  # P3
            self._admit(batch, budget, lone)
        if batch.chunks:
            self._settle_chunks(batch)
        return batch

    def _decode_all(self, batch: Batch, needed: int) -> None:
        """One token for every decoding sequence; they take `needed` blocks."""
        if self.decodes.windows:
            batch.window_tokens, batch.window_growth = self.decodes.window_sums(batch.iteration)
        if self.prefix_pool is None:
            self.pool.free -= needed
        else:
            self.decodes.take_blocks(self.prefix_pool, batch.iteration, self._async)

    def _schedule_together(self, batch: Batch, budget: int, needed: int, lone: bool) -> int:
        """Part 1 of the real schedule(), for all at once if nothing is short; returns the budget left.

        Decodes first is the real order where every unfinished prefill was admitted after them, or the budget is enough for all.
        """
        pool, prefilling = self.pool, self._prefilling
        out_of_order = bool(self.decodes.count and prefilling and prefilling[0].order < self._last_decode_order)
        planned: list[tuple[Sequence, int, int]] = []
        for seq in prefilling:
            wanted = self._chunk_tokens(seq, lone)
            tokens = min(wanted, budget)
            if tokens < wanted and out_of_order:
                return self._schedule_one_by_one(batch, lone)
            if tokens > 0:
                blocks = -(-(seq.computed_tokens + tokens) // pool.block_size) - pool.held(seq)
                needed += blocks
                planned.append((seq, tokens, blocks))
                budget -= tokens
        late = self._starved_at == batch.iteration - 1 and self._starved
        if budget < 0 or needed > pool.free or (out_of_order and pool.caching) or late:
            return self._schedule_one_by_one(batch, lone)
        self._decode_all(batch, needed - sum(blocks for _, _, blocks in planned))
        for seq, tokens, blocks in planned:
            pool.take(seq, blocks)
            self._compute(batch, seq, seq.computed_tokens, tokens)
        return budget

    def _chunk_tokens(self, seq: Sequence, lone: bool) -> int:
        """What `seq` wants to compute next (R2, R3), before the budget."""
        tokens = seq.known_tokens - seq.computed_tokens
        cap = self.limits.long_prefill_token_threshold
        if 0 < cap < tokens and not lone:
            tokens = cap
        return min(tokens, self.limits.max_model_len - 1 - seq.computed_tokens)

    def _compute(self, batch: Batch, seq: Sequence, start: int, tokens: int) -> None:
        """Counts a chunk as computed."""
        seq.computed_tokens = computed = start + tokens
        if self.prefix_pool is not None:
            self.prefix_pool.register(seq, computed)  # C4
        last = computed == seq.known_tokens
        if batch.chunks:
            batch.chunks.append((start, tokens, seq, last))
        else:
            batch.chunks = [(start, tokens, seq, last)]
        batch.chunk_tokens += tokens
        if last:
            batch.sampled += 1

    def _settle_chunks(self, batch: Batch) -> None:
        """Sequences whose prefill is complete sample a token and decode from the next iteration on."""
        iteration, decodes, all_last = batch.iteration + 1, self.decodes, True
        for _, _, seq, last in batch.chunks:
            if last:
                seq.known_tokens += 1
                seq.lane = self
                decodes.add(seq, iteration)
                if seq.order > self._last_decode_order:
                    self._last_decode_order = seq.order
            else:
                all_last = False
        if self._prefilling:
            self._prefilling[:] = [seq for seq in self._prefilling if seq.state == PREFILLING]
        if not all_last:
            self._prefilling += [seq for seq in batch.admitted if seq.state == PREFILLING]

    # --- short of blocks or budget ---

    def _schedule_one_by_one(self, batch: Batch, lone: bool) -> int:
        """Part 1 of the real schedule(): every running sequence in turn, preempting the latest where blocks lack."""
        self._write_back(batch.iteration)
        budget = self._budget
        batch.decoding, batch.steady = [], False
        batch.decodes = batch.sampled = batch.context_tokens = 0
        for seq in list(self.running):
            if budget <= 0:
                break
            if seq not in self.running:
                continue  # preempted by one before it
            elsewhere = seq.state == ENDING or (seq.state == DECODING and seq.lane is not self)
            tokens = 0 if elsewhere else min(self._chunk_tokens(seq, lone), budget)
            if tokens <= 0:
                continue
            blocks = -(-(seq.computed_tokens + tokens) // self.pool.block_size) - self.pool.held(seq)
            if not self._make_room(batch, seq, blocks):
                break
            self.pool.take(seq, blocks)
            self._serve(batch, seq, tokens)
            budget = self._budget - batch.decodes - batch.chunk_tokens
        self._gather(batch)
        return budget

    def _make_room(self, batch: Batch, seq: Sequence, blocks: int) -> bool:
        """Preempts one after another until `blocks` are free (R5); False if `seq` itself had to go."""
        while blocks > self.pool.free:
            if not self.limits.preempts:
                batch.out_of_memory = (seq, blocks - self.pool.free)
                return False
            self._preempt(batch, victim := self._victim())
            if victim is seq:
                return False
        return True

    def _victim(self) -> Sequence:
        """Who is preempted next: the latest admitted of those running."""
        return next(reversed(self.running))

    def _preempt(self, batch: Batch, victim: Sequence) -> None:
        """P1, P2: its blocks are freed, its outputs kept, and it waits at the front."""
        self.pool.release(victim)
        victim.computed_tokens = 0
        victim.preemptions += 1
        del self.running[victim]
        if victim.state != ENDING:  # A3: one whose last token is in flight still ends in update()
            victim.state = WAITING
        self.waiting.appendleft(victim)
        batch.preempted = [*batch.preempted, victim]

    def _serve(self, batch: Batch, seq: Sequence, tokens: int) -> None:
        if seq.state == DECODING:
            assert batch.decoding is not None
            batch.decoding.append(seq)
            batch.add_decode(seq, self.decodes.windows)
            batch.sampled += 1
            seq.computed_tokens += 1
            if self.prefix_pool is not None:
                self.prefix_pool.register(seq, seq.computed_tokens - int(self._async))  # what has returned (A4)
            if seq.gap_since_s == seq.gap_since_s:
                batch.late = [*batch.late, seq]
        else:
            self._compute(batch, seq, seq.computed_tokens, tokens)

    def _write_back(self, iteration: int) -> None:
        """Gives every decoding sequence its own length again."""
        for seq in self.running:
            if seq.state == DECODING and seq.lane is self:
                seq.known_tokens = iteration + seq.offset
                seq.computed_tokens = seq.known_tokens - 1
        self.decodes.clear()

    def _gather(self, batch: Batch) -> None:
        """Puts the decoding sequences that are left back into the set, for the next iteration."""
        served = set(batch.decoding or ())
        self._last_decode_order = -1
        for seq in self.running:
            if seq.state == DECODING and seq.lane is self:
                if seq in served:
                    seq.known_tokens += 1
                else:
                    batch.starved = [*batch.starved, seq]
                self.decodes.add(seq, batch.iteration + 1)
                self._last_decode_order = seq.order
        self._prefilling[:] = [seq for seq in self.running if seq.state == PREFILLING]
        self._starved, self._starved_at = batch.starved, batch.iteration

    # --- waiting ---

    def _admit(self, batch: Batch, budget: int, lone: bool) -> None:
        """Part 2 of the real schedule(): the head of the queue, as long as it fits (W1 to W6)."""
        limits, waiting, running, prefix_pool = self.limits, self.waiting, self.running, self.prefix_pool
        stepped_over: list[Sequence] = []
        cap = 0 if lone else limits.long_prefill_token_threshold
        while waiting and budget > 0 and len(running) < limits.max_num_seqs:
            seq = waiting[0]
            start = seq.computed_tokens  # KV that another replica computed and sent here
            hits = NO_HITS
            if prefix_pool is not None and not start:
                hits = prefix_pool.lookup(seq)
                if self._awaits(seq, hits):
                    continue
                start = len(hits) * self._block_size
            tokens = seq.known_tokens - start
            if 0 < cap < tokens:
                tokens = cap
            if tokens > budget:
                if not limits.enable_chunked_prefill:
                    if not limits.oversized_prompts_stepped_over:
                        break
                    stepped_over.append(waiting.popleft())
                    continue
                tokens = budget
            short = self._blocks_short(seq, start + tokens, hits)
            if short > 0:
                if not limits.preempts:
                    batch.out_of_memory, batch.steady = (seq, short), False
                break
            waiting.popleft()
            self._start(batch, seq, start, tokens, hits)
            budget -= tokens
        if stepped_over:
            waiting.extendleft(stepped_over)

    def _awaits(self, seq: Sequence, hits: Items[int]) -> bool:
        """Whether the head of the queue left it to wait for KV from a slower memory, which plain schedulers do not have."""
        return False

    def _blocks_short(self, seq: Sequence, tokens: int, hits: Items[int]) -> int:
        """How many blocks lack for admission: for the whole known sequence if the gate is on (W3), for the chunk (W4)."""
        if self._gated and tokens < seq.known_tokens:
            tokens = max(tokens, min(seq.known_tokens, self.limits.max_model_len))
        pool = self.pool
        short = -(-tokens // self._block_size) - pool.free
        if self._watermark and self.running:
            short += self._watermark
        if hits:
            assert self.prefix_pool is not None
            short += self.prefix_pool.dead(hits) - len(hits)
        if seq.computed_tokens:
            short -= pool.held(seq)
        return short

    def _start(self, batch: Batch, seq: Sequence, start: int, tokens: int, hits: Items[int]) -> None:
        """Admits `seq` to the end of the running list (W6) and computes its first chunk."""
        pool = self.pool
        held = pool.held(seq) if seq.computed_tokens else 0
        if self.prefix_pool is not None and not held:
            self.prefix_pool.touch(seq, hits)
        pool.take(seq, -(-(start + tokens) // self._block_size) - len(hits) - held)
        seq.order = next(self._admission_counter)
        seq.state = PREFILLING
        seq.cached_tokens = len(hits) * self._block_size
        self.running[seq] = None
        if batch.admitted:
            batch.admitted.append(seq)
        else:
            batch.admitted = [seq]
        self._compute(batch, seq, start, tokens)

    # --- afterwards ---

    def update(self) -> Items[Sequence]:
        """Applies the outputs of an iteration: returns the finished sequences in order, their blocks and places free (E2)."""
        if self._async:
            finished = self._ending
            if self.prefix_pool is not None:
                self._register_returned(finished)
            if not finished:
                return finished
            self._ending = ()
        else:
            finished = self.decodes.ended(self.iteration)
        running = self.running
        for seq in finished:
            if seq in running:
                self.pool.release(seq)
                del running[seq]
            else:  # preempted with its last token in flight (A3)
                self.waiting.remove(seq)
            seq.state = OVER
        return finished

    def known_before(self, seq: Sequence) -> int:
        """Tokens that a decoding `seq` knew before the iteration scheduled last."""
        starved = self._starved_at == self.iteration and seq in self._starved
        return self.iteration + seq.offset + starved

    def _register_returned(self, finished: Items[Sequence]) -> None:
        """Keys for blocks whose last token has returned while its request was not scheduled again (A4)."""
        assert self.prefix_pool is not None
        for seq in (*finished, *(self._starved if self._starved_at == self.iteration else ())):
            if seq in self.running:
                self.prefix_pool.register(seq, seq.computed_tokens)

    def horizon(self) -> int:
        """How many iterations, the one just scheduled included, stay alike if nothing arrives."""
        decodes, iteration = self.decodes, self.iteration
        if self._prefilling or not decodes.count or (self.waiting and self._may_enter(self.waiting[0])):
            return 1
        alike = decodes.next_end() - iteration + 1
        for window in decodes.windows:
            alike = min(alike, window.next_crossing() - iteration)
        free = self.pool.free
        most = decodes.count * ((alike - 1) // self._block_size + 1)  # no sequence takes more than that many blocks
        if most > free and alike > 1 and decodes.blocks_needed(iteration + 1, alike - 1) > free:
            alike = 1 + decodes.iterations_within(iteration + 1, free)
        return alike if alike > 1 else 1

    def may_admit(self, seq: Sequence) -> bool:
        """Whether a request that arrives now could enter at the next schedule(); may err towards yes."""
        return not self.waiting and self._may_enter(seq)

    def _may_enter(self, seq: Sequence) -> bool:
        """Whether the next schedule() might admit `seq` at the head of the queue; may err towards yes."""
        if len(self.running) >= self.limits.max_num_seqs:
            return False
        if self.prefix_pool is not None:
            return True
        budget = self._budget - self.decodes.count
        tokens, cap = seq.known_tokens, self.limits.long_prefill_token_threshold
        if 0 < cap < tokens:
            tokens = cap
        if budget <= 0 or (not self.limits.enable_chunked_prefill and tokens > budget):
            return self.limits.oversized_prompts_stepped_over
        return self._blocks_short(seq, tokens if tokens < budget else budget, NO_HITS) <= 0

    def advance(self, iterations: int) -> None:
        """Moves on by iterations that are like the one just scheduled."""
        decodes, start = self.decodes, self.iteration + 1
        if self.prefix_pool is not None:
            for iteration in range(start, start + iterations):
                decodes.take_blocks(self.prefix_pool, iteration, self._async)
        else:
            self.pool.free -= decodes.blocks_needed(start, iterations)
        self.iteration += iterations
