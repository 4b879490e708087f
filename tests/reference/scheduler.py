"""A plain, slow transcription of vLLM's V1 scheduler (fcfs), rule by rule; the letters name the recorded rules.

R: running requests, P: preemption, W: waiting requests, C: prefix cache, E: the end, A: asynchronous scheduling.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

from .block_pool import BlockPool, Key
from .trace import Chunk, Config, Request, Result, Token


@dataclass(frozen=True)
class VersionRules:
    """What differs between the engine versions whose decisions were recorded."""

    lone_request_uncapped: bool  # R3: a lone request ignores long_prefill_token_threshold
    admission_gate: bool  # W3
    watermark: bool  # W5
    unkeyed_freed_first: bool  # C5
    steps_over_long_prompts: bool  # chunked prefill off: a prompt over the budget does not end the loop
    knows_async: bool


VERSIONS = {
    "0.33.0": VersionRules(True, True, True, True, False, True),
    "0.24.0": VersionRules(False, True, True, True, False, True),
    "0.18.1": VersionRules(False, False, False, False, False, True),
    "0.14.1": VersionRules(False, False, False, False, False, True),
    "0.11.0": VersionRules(False, False, False, False, True, False),
}


@dataclass
class Iteration:
    """What one schedule() decided; running, waiting and free are the state after it."""

    admitted: list[tuple[int, int, str]] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    decodes: list[int] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)
    order: list[int] = field(default_factory=list)  # every scheduled request, in scheduling order
    sampled: list[int] = field(default_factory=list)  # those that sample a token, in scheduling order
    tokens: int = 0
    running: int = 0
    waiting: int = 0
    free: int = 0


@dataclass(eq=False)
class Sequence:
    """A request inside the scheduler."""

    request: Request
    tokens: list[Token]  # known tokens: prompt and returned outputs
    keys: list[Key] = field(default_factory=list)  # of the full blocks of known tokens
    blocks: list[int] = field(default_factory=list)
    registered: int = 0  # leading blocks that have been given their key
    computed: int = 0
    in_flight: int = 0  # tokens sampled whose output has not been returned (A1)
    prefill_target: int = 0  # known tokens when it was admitted: up to there it prefills or recomputes
    preemptions: int = 0
    status: str = "WAITING"

    @property
    def id(self) -> int:
        return self.request.id

    @property
    def known(self) -> int:
        return len(self.tokens)

    @property
    def outputs(self) -> int:
        return self.known - self.request.prompt_len


class ReferenceScheduler:
    """vLLM's scheduler: add() requests, schedule() an iteration, update() with its output.

    Synchronous: update(i) before schedule(i + 1). Asynchronous (config.async_scheduling): schedule(i + 1) before
    update(i), exactly one iteration ahead.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.rules = VERSIONS[config.version]
        if config.async_scheduling and not self.rules.knows_async:
            raise ValueError(f"asynchronous scheduling was never checked in {config.version}")
        self.pool = BlockPool(config.usable_blocks, self.rules.unkeyed_freed_first)
        self.sequences: dict[int, Sequence] = {}
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self._key_numbers: dict[tuple[Key | None, tuple[Token, ...]], Key] = {}

    @property
    def unfinished(self) -> int:
        return len(self.running) + len(self.waiting)

    @property
    def free_blocks(self) -> int:
        return len(self.pool.free)

    def add(self, request: Request) -> None:
        """Append a request to the waiting queue; one that the API would reject (E3) is an error."""
        if not 0 < request.prompt_len < self.config.max_model_len or request.max_tokens < 1:
            raise ValueError(f"request {request.id} would be rejected before the scheduler")
        sequence = Sequence(request, request.prompt_tokens())
        self._extend_keys(sequence)
        self.sequences[request.id] = sequence
        self.waiting.append(sequence)

    def results(self) -> dict[int, Result]:
        """What has become of every request added so far."""
        return {s.id: Result(s.outputs, s.preemptions, s.status) for s in self.sequences.values()}

    def check(self) -> None:
        """Assert what must hold between two calls."""
        self.pool.check([s.blocks for s in self.sequences.values()])
        assert len(self.running) <= self.config.max_num_seqs
        for s in self.sequences.values():
            assert s.computed <= s.known + s.in_flight
            assert s.in_flight <= 1 + self.config.async_scheduling
            assert len(s.blocks) == self._blocks_for(s.computed) if s in self.running else not s.blocks

    # ---- schedule()

    def schedule(self) -> Iteration:
        """Decide one iteration: running requests first, then waiting ones (R, W)."""
        it = Iteration()
        cap = self._chunk_cap()
        budget = self._schedule_running(it, self.config.max_num_batched_tokens, cap)
        if not it.preempted:  # P3
            self._schedule_waiting(it, budget, cap)
        # Only after the last decision: a request that samples has one more token in flight.
        for request in it.order:
            s = self.sequences[request]
            if s.computed == s.known + s.in_flight:
                s.in_flight += 1
                it.sampled.append(request)
        it.running, it.waiting, it.free = len(self.running), len(self.waiting), self.free_blocks
        return it

    def _chunk_cap(self) -> int | None:
        """The cap on the tokens of one chunk in this iteration, if any (R3)."""
        lone = self.unfinished <= 1 and self.rules.lone_request_uncapped
        threshold = self.config.long_prefill_token_threshold
        return threshold if threshold > 0 and not lone else None

    def _schedule_running(self, it: Iteration, budget: int, cap: int | None) -> int:
        """Go through the running requests from the front; return the budget left (R1-R6)."""
        position = 0
        while position < len(self.running) and budget > 0:
            s = self.running[position]
            position += 1
            if self._certain_to_end(s):
                continue
            n = s.known + s.in_flight - s.computed
            if cap is not None:
                n = min(n, cap)
            n = min(n, budget, self.config.max_model_len - 1 - s.computed)
            if n == 0:
                continue
            needed = self._blocks_for(s.computed + n) - len(s.blocks)
            while needed > self.free_blocks and s in self.running:  # R5
                self._preempt(self.running[-1], it)
            if s not in self.running:
                break
            s.blocks += self.pool.take(needed)
            self._compute(s, n, it)
            budget -= n
        return budget

    def _certain_to_end(self, s: Sequence) -> bool:
        """Whether the token in flight is the last one max_tokens allows (A1); never true of a synchronous engine."""
        return s.in_flight > 0 and s.computed + 2 - s.in_flight >= s.request.prompt_len + s.request.max_tokens

    def _preempt(self, victim: Sequence, it: Iteration) -> None:
        """Free everything the victim holds and put it first in the waiting queue (P1, P2)."""
        assert victim.id not in it.order  # P4
        self.running.remove(victim)
        self._release(victim)
        victim.computed = 0
        victim.preemptions += 1
        victim.status = "PREEMPTED"
        self.waiting.insert(0, victim)
        it.preempted.append(victim.id)

    def _schedule_waiting(self, it: Iteration, budget: int, cap: int | None) -> None:
        """Admit from the head of the waiting queue until one does not fit (W1-W6)."""
        stepped_over: list[Sequence] = []
        while self.waiting and budget > 0 and len(self.running) < self.config.max_num_seqs:
            s = self.waiting[0]
            # A3 steps over a victim whose output is in flight. Never met here: P3 ends the iteration of the preemption
            # without admissions, and the output has been returned by the next one.
            assert s.in_flight == 0
            hits = self._cached_blocks(s)
            start = len(hits) * self.config.block_size
            n = s.known - start
            if cap is not None:
                n = min(n, cap)
            if not self.config.enable_chunked_prefill and n > budget:
                if not self.rules.steps_over_long_prompts:
                    break
                stepped_over.insert(0, self.waiting.pop(0))
                continue
            n = min(n, budget)
            if not self._fits(s, start + n, hits):
                break
            self.waiting.pop(0)
            self._admit(s, hits, n, it)
            budget -= n
        # 0.11.0 collects those stepped over in reverse order and puts them back in front like that.
        self.waiting = stepped_over + self.waiting

    def _fits(self, s: Sequence, tokens: int, hits: list[int]) -> bool:
        """Whether a waiting request may be admitted to compute up to `tokens` (W3-W5)."""
        watermark = 0
        if self.rules.watermark and self.running:
            watermark = int(self.config.watermark * self.config.num_gpu_blocks)
        beside = self.pool.dead(hits) - len(hits) + watermark
        if self.rules.admission_gate and self.config.scheduler_reserve_full_isl:
            whole = self._blocks_for(min(s.known, self.config.max_model_len))
            if whole + beside > self.free_blocks:
                return False
        return self._blocks_for(tokens) + beside <= self.free_blocks

    def _admit(self, s: Sequence, hits: list[int], n: int, it: Iteration) -> None:
        """Move a request to the end of the running list, with its cached blocks, then new ones (C6, W6)."""
        assert s.computed == 0
        assert not s.blocks
        start = len(hits) * self.config.block_size
        self.pool.touch(hits)
        s.blocks = hits + self.pool.take(self._blocks_for(start + n) - len(hits))
        s.registered = len(hits)
        s.computed = start
        s.prefill_target = s.known
        self.running.append(s)
        it.admitted.append((s.id, start, "res" if s.status == "PREEMPTED" else "new"))
        s.status = "RUNNING"
        self._compute(s, n, it)

    def _compute(self, s: Sequence, n: int, it: Iteration) -> None:
        """Schedule the next n tokens of a running request whose blocks are there."""
        if s.computed < s.prefill_target:
            it.chunks.append((s.id, s.computed, n))
        else:
            assert n == 1
            it.decodes.append(s.id)
        it.order.append(s.id)
        it.tokens += n
        s.computed += n
        # A block filled by a token in flight has no identity yet (A4); all others are found from now on (C4).
        self._register(s, min(s.computed, s.known))

    # ---- update()

    def update(self, it: Iteration) -> list[int]:
        """Apply the output of an iteration, in scheduling order; return the requests that ended (E1, E2)."""
        finished = []
        for request in it.sampled:
            s = self.sequences[request]
            s.in_flight -= 1
            s.tokens.append(("o", s.id, s.outputs))
            self._extend_keys(s)
            running = s in self.running
            if running and self.config.async_scheduling:
                # The tokens whose computation has been scheduled, without the ones in flight, are known now (A4).
                self._register(s, s.computed - s.in_flight)
            if s.outputs >= s.request.max_tokens or s.known >= self.config.max_model_len:
                self._release(s)
                # Asynchronously it may have been preempted with its last token in flight: it ends in the queue (A3).
                (self.running if running else self.waiting).remove(s)
                s.status = "FINISHED_LENGTH_CAPPED"
                finished.append(request)
        return finished

    # ---- blocks and keys

    def _blocks_for(self, tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return ceil(tokens / self.config.block_size)

    def _cached_blocks(self, s: Sequence) -> list[int]:
        """The cached blocks a waiting request would start with; the last token is always recomputed (C1, C2)."""
        if not self.config.enable_prefix_caching:
            return []
        return self.pool.lookup(s.keys[: (s.known - 1) // self.config.block_size])

    def _register(self, s: Sequence, tokens: int) -> None:
        """Give the full blocks of the first `tokens` tokens their keys."""
        if not self.config.enable_prefix_caching:
            return
        while (s.registered + 1) * self.config.block_size <= tokens:
            self.pool.register(s.blocks[s.registered], s.keys[s.registered])
            s.registered += 1

    def _release(self, s: Sequence) -> None:
        """Give back all blocks of a request."""
        self.pool.release(s.blocks)
        s.blocks = []
        s.registered = 0

    def _extend_keys(self, s: Sequence) -> None:
        """Number the full blocks of known tokens: equal numbers iff all tokens up to the block's end are equal."""
        size = self.config.block_size
        while (len(s.keys) + 1) * size <= s.known:
            block = tuple(s.tokens[len(s.keys) * size : (len(s.keys) + 1) * size])
            chain = (s.keys[-1] if s.keys else None, block)
            s.keys.append(self._key_numbers.setdefault(chain, len(self._key_numbers)))
