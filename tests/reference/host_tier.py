"""The plain reference with host memory below its prefix cache (H1-H6), and the production scheduler behind the same interface.

H1: After the hits on the GPUs of the head of the queue, the longest run of its blocks in host memory; its last token is left out.
H2: They are fetched if that ends before as many tokens could be computed.
H3: ... and if there is room, as for an admission that computes up to their end.
H4: Meanwhile the request has left the queue, with its blocks reserved; the next one is the head.
H5: The schedule that follows puts it in front; its blocks get their keys, and it goes on after them.
H6: Where nothing runs and the head finds no room, those behind it that hold blocks give them up, the last first.

A block goes to the host when the last block with its key is reused; there the least recently used is forgotten first, never one
that is being fetched. Both directions move one block after another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import simpy

from sim.engine.batch import SchedulerLimits
from sim.engine.batching import VllmScheduler
from sim.engine.host_cache import HostCache, TieredPool
from sim.engine.policies.host_tier import with_host_tier
from sim.engine.sequence import Sequence as Served
from sim.engine.versions import limits_for
from sim.workload.content import SegmentContent

from .block_pool import BlockPool, Key
from .scheduler import Iteration, ReferenceScheduler, Sequence
from .trace import Config, Request


@dataclass(frozen=True)
class Host:
    """Host memory of so many blocks; times in iterations."""

    blocks: int
    out_s: float
    back_s: float
    token_s: float


class HostBlocks:
    """What is in host memory, as a plain list, the least recently used first."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.now_s = 0.0
        self.rows: list[tuple[Key, float]] = []  # (key, when it is there)
        self.fetched: list[Key] = []  # once for each fetch under way
        self.out_free_s = self.back_free_s = 0.0

    def there_s(self, key: Key) -> float | None:
        return next((there_s for known, there_s in self.rows if known == key), None)

    def store(self, key: Key) -> None:
        there_s = self.there_s(key)
        if there_s is not None:
            self.rows = [row for row in self.rows if row[0] != key] + [(key, there_s)]
            return
        if len(self.rows) >= self.host.blocks:
            free = [row for row in self.rows if row[0] not in self.fetched]
            if not free:
                return
            self.rows.remove(free[0])
        self.out_free_s = max(self.now_s, self.out_free_s) + self.host.out_s
        self.rows.append((key, self.out_free_s))

    def done_s(self, keys: list[Key]) -> float:
        there_s = max(time_s for known, time_s in self.rows if known in keys)
        return max(self.now_s, self.back_free_s, there_s) + len(keys) * self.host.back_s

    def fetch(self, keys: list[Key]) -> float:
        self.back_free_s = self.done_s(keys)
        for key in reversed(keys):
            row = next(row for row in self.rows if row[0] == key)
            self.rows = [other for other in self.rows if other is not row] + [row]
        self.fetched += keys
        return self.back_free_s


class TieredBlockPool(BlockPool):
    """Tells the host of what is evicted."""

    host: HostBlocks

    def _evict(self, block: int) -> None:
        key = self.key_of.get(block)
        super()._evict(block)
        if key is not None and key not in self.copies:
            self.host.store(key)


class TieredReference(ReferenceScheduler):
    """The reference scheduler with a host tier; a schedule() is an iteration of one second."""

    def __init__(self, config: Config, host: Host) -> None:
        super().__init__(config)
        self.host = HostBlocks(host)
        self.pool = TieredBlockPool(config.usable_blocks, self.rules.unkeyed_freed_first)
        self.pool.host = self.host
        self.iteration = -1
        self.under_way: list[tuple[float, Sequence, int, list[Key]]] = []  # (done, request, tokens hit, keys)
        self.holders: dict[int, tuple[int, int]] = {}  # (tokens hit, tokens there) of who waits with its blocks
        self.fetches: list[tuple[int, int]] = []  # (request, tokens)

    @property
    def unfinished(self) -> int:
        return super().unfinished + len(self.under_way)

    def _chunk_cap(self) -> int | None:
        lone = super().unfinished <= 1 and self.rules.lone_request_uncapped  # who is being fetched for is in no queue
        threshold = self.config.long_prefill_token_threshold
        return threshold if threshold > 0 and not lone else None

    def schedule(self) -> Iteration:
        self.iteration += 1
        self.host.now_s = float(self.iteration)
        there = [fetch for fetch in self.under_way if fetch[0] <= self.iteration]
        self.under_way = [fetch for fetch in self.under_way if fetch[0] > self.iteration]
        for _, s, hit_tokens, keys in there:
            for key in keys:
                self.host.fetched.remove(key)
            s.computed = hit_tokens + len(keys) * self.config.block_size
            self.holders[s.id] = hit_tokens, s.computed
            self._register(s, s.computed)
        self.waiting = [fetch[1] for fetch in there] + self.waiting
        return super().schedule()

    def _schedule_waiting(self, it: Iteration, budget: int, cap: int | None) -> None:
        while True:
            budget = self._admit_heads(it, budget, cap)
            behind = [s for s in self.waiting[1:] if s.id in self.holders]
            if self.running or not behind:
                return
            self._release(behind[-1])  # H6
            behind[-1].computed = 0
            del self.holders[behind[-1].id]

    def _admit_heads(self, it: Iteration, budget: int, cap: int | None) -> int:
        stepped_over: list[Sequence] = []
        while self.waiting and budget > 0 and len(self.running) < self.config.max_num_seqs:
            s = self.waiting[0]
            hits = [] if s.id in self.holders else self._cached_blocks(s)
            if s.id not in self.holders and self._fetches(s, hits):  # H4
                continue
            start = s.computed or len(hits) * self.config.block_size
            n = s.known - start if cap is None else min(s.known - start, cap)
            if not self.config.enable_chunked_prefill and n > budget:
                if not self.rules.steps_over_long_prompts:
                    break
                stepped_over.insert(0, self.waiting.pop(0))
                continue
            n = min(n, budget)
            if not self._room(s, start + n, hits):
                break
            self.waiting.pop(0)
            self._go_on(s, n, it) if s.id in self.holders else self._admit(s, hits, n, it)
            budget -= n
        self.waiting = stepped_over + self.waiting
        return budget

    def _room(self, s: Sequence, tokens: int, hits: list[int]) -> bool:
        """As `_fits`; blocks that are reserved already are not asked for again."""
        self.pool.free += (reserved := [-1] * len(s.blocks))  # stand for blocks that need not be free
        fits = self._fits(s, tokens, hits)
        del self.pool.free[len(self.pool.free) - len(reserved) :]
        return fits

    def _fetches(self, s: Sequence, hits: list[int]) -> bool:
        keys = s.keys[len(hits) : (s.known - 1) // self.config.block_size]
        missing = next((n for n, key in enumerate(keys) if self.host.there_s(key) is None), len(keys))
        keys = keys[:missing]  # H1
        size = self.config.block_size
        if not keys or self.host.done_s(keys) - self.host.now_s >= len(keys) * size * self.host.host.token_s:  # H2
            return False
        if not self._fits(s, (len(hits) + len(keys)) * size, hits):  # H3
            return False
        self.waiting.pop(0)
        self.under_way.append((self.host.fetch(keys), s, len(hits) * size, keys))
        self.fetches.append((s.id, len(keys) * size))
        self.pool.touch(hits)
        s.blocks = hits + self.pool.take(len(keys))
        s.registered = len(hits)
        return True

    def _go_on(self, s: Sequence, n: int, it: Iteration) -> None:
        """Admits a request whose KV is there up to `computed` (H5)."""
        hit_tokens, _ = self.holders.pop(s.id)
        s.blocks += self.pool.take(self._blocks_for(s.computed + n) - len(s.blocks))
        s.prefill_target = s.known
        self.running.append(s)
        it.admitted.append((s.id, hit_tokens, "res" if s.status == "PREEMPTED" else "new"))
        s.status = "RUNNING"
        self._compute(s, n, it)

    def check(self) -> None:
        self.pool.check([s.blocks for s in self.sequences.values()])
        assert len(self.host.rows) <= self.host.host.blocks
        assert len({key for key, _ in self.host.rows}) == len(self.host.rows)
        assert set(self.host.fetched) <= {key for key, _ in self.host.rows}


class Production:
    """The production scheduler with a host tier, as `drive` asks for it."""

    def __init__(self, config: Config, host: Host, policy: Callable[..., VllmScheduler] = VllmScheduler) -> None:
        self.config = config
        self.env = simpy.Environment()
        self.iteration = -1
        self.fetches: list[tuple[int, int]] = []
        self.pool = TieredPool(
            config.usable_blocks,
            config.block_size,
            config.version in ("0.11.0", "0.14.1", "0.18.1"),
            HostCache(self.env, host.out_s, host.back_s, host.blocks),
        )
        tiered = with_host_tier(policy, lambda start, end: (end - start) * host.token_s, self._fetched, "host")
        self.scheduler: Any = tiered(self._limits(), self.pool, ())
        self.held: dict[int, Served] = {}
        self._interned: dict[tuple[object, ...], int] = {}

    def _limits(self) -> SchedulerLimits:
        config = self.config
        return limits_for(
            version=config.version,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=config.max_model_len,
            num_gpu_blocks=config.num_gpu_blocks,
            enable_chunked_prefill=config.enable_chunked_prefill,
            long_prefill_token_threshold=config.long_prefill_token_threshold,
            scheduler_reserve_full_isl=config.scheduler_reserve_full_isl,
            watermark=config.watermark,
            async_scheduling=config.async_scheduling,
        )

    def _fetched(self, seq: Served, sent_s: float, tokens: int) -> None:
        assert self.env.now > sent_s

    @property
    def unfinished(self) -> int:
        return len(self.scheduler.running) + len(self.scheduler.waiting) + self.scheduler.away

    @property
    def free_blocks(self) -> int:
        return self.pool.free

    def add(self, request: Request) -> None:
        segments = [((kind, name), tokens) for kind, name, tokens in request.prompt]
        content = SegmentContent(segments, ("o", request.id), self._interned)
        longest = self.config.max_model_len
        seq = Served(request.id, 0.0, request.prompt_len, request.max_tokens, longest, content)
        self.held[request.id] = seq
        self.scheduler.add(seq)

    def schedule(self) -> Iteration:
        self.iteration += 1
        if self.iteration:
            self.env.run(until=self.iteration)
        batch = self.scheduler.schedule()
        chunked = {seq for _, _, seq, _ in batch.chunks}
        decoding = batch.decoding
        if decoding is None:
            decoding = [seq for seq in self.scheduler.running if seq.state == 2 and seq not in chunked]
        it = Iteration(
            admitted=[(s.id, s.cached_tokens, "res" if s.preemptions else "new") for s in batch.admitted],
            chunks=[(seq.id, start, tokens) for start, tokens, seq, _ in batch.chunks],
            decodes=[seq.id for seq in decoding],
            preempted=[seq.id for seq in batch.preempted],
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            free=self.pool.free,
        )
        it.order = [request for request, _, _ in it.chunks] + it.decodes
        return it

    def update(self, it: Iteration) -> list[int]:
        return [seq.id for seq in self.scheduler.update()]
