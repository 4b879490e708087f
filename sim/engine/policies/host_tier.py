"""Waiting requests that send for their KV blocks in host memory, where that is sooner than to compute them again."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items

from sim.cost.step import StepCost
from sim.engine.batch import Batch, SchedulerLimits
from sim.engine.batching import VllmScheduler
from sim.engine.host_cache import TieredPool
from sim.engine.kv_cache import BlockPool
from sim.engine.policies import Policy
from sim.engine.sequence import Sequence
from sim.errors import InputError

Prefill = Callable[[int, int], float]
"""Seconds to compute the tokens from .. to of a prompt that is alone."""
Fetched = Callable[[Sequence, float, int], None]
"""Told of a request whose blocks are there, when it had sent for them, and how many tokens they hold."""


class HostTier(VllmScheduler):
    """Mixed into a policy, looks in host memory for what follows the cached blocks of the head of the queue.

    A fetch is chosen if it ends before the same tokens could be computed by a prompt that is alone. As with vLLM's
    asynchronous loading the request reserves its blocks and leaves the queue meanwhile, so it blocks nobody; when they are there
    it is the head again. Where nothing runs and the head finds no room, those behind it that hold blocks give them up, the last
    first.
    """

    prefill_s: Prefill
    on_fetched: Fetched

    def __init__(self, limits: SchedulerLimits, pool: BlockPool, windows: tuple[int, ...] = ()) -> None:
        super().__init__(limits, pool, windows)
        assert isinstance(pool, TieredPool)
        self._tiered, self.host = pool, pool.host
        self.begin_s: Callable[[int], float] | None = None
        """When the n-th iteration after the one scheduled last begins, for a scheduler that leaps."""
        self._sent_for: dict[Sequence, tuple[int, list[int]]] = {}
        """(tokens found on the GPUs, keys of the blocks after them) of who holds or awaits fetched blocks and is not in yet."""
        self._under_way = 0
        self._fetched: list[Sequence] = []

    @property
    def away(self) -> int:
        """Requests in no queue, because their blocks are being fetched."""
        return self._under_way + len(self._fetched)

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting or self.away)

    def schedule(self) -> Batch:
        for seq in self._fetched:
            start, keys = self._sent_for[seq]
            self.host.let_go(keys)
            seq.computed_tokens = start + len(keys) * self._block_size
            self._tiered.register(seq, seq.computed_tokens)
        for seq in reversed(self._fetched):
            self.waiting.appendleft(seq)
        self._fetched.clear()
        return super().schedule()

    def advance(self, iterations: int) -> None:
        for number in range(1, iterations + 1):
            self.host.now_s = None if self.begin_s is None else self.begin_s(number)
            super().advance(1)
        self.host.now_s = None

    def _awaits(self, seq: Sequence, hits: Items[int]) -> bool:
        size = self._block_size
        most = (seq.known_tokens - 1) // size
        if seq.content is None or len(hits) >= most:
            return False
        keys = seq.content.keys(len(hits), most, size)
        keys = keys[: self.host.lookup(keys)]
        start, end = len(hits) * size, (len(hits) + len(keys)) * size
        if not keys or self.host.fetch_s(keys) >= self._saved_s(start, end, seq.known_tokens):
            return False
        if self._blocks_short(seq, end, hits) > 0:
            return False
        self._send_for(seq, hits, keys)
        return True

    def _saved_s(self, start: int, end: int, known: int) -> float:
        return self.prefill_s(start, known) - self.prefill_s(end, known)

    def _send_for(self, seq: Sequence, hits: Items[int], keys: list[int]) -> None:
        """Reserves blocks for `keys`, which follow `hits`, and has them fetched."""
        sent_s, tokens = self.host.env.now, len(keys) * self._block_size
        self.waiting.popleft()

        def arrived() -> None:
            self._under_way -= 1
            self._fetched.append(seq)
            self.on_fetched(seq, sent_s, tokens)

        # before blocks are taken: what is evicted for it must not push it out of the host
        self.host.fetch(keys, arrived)
        self._under_way += 1
        self._tiered.touch(seq, hits)
        self._tiered.take(seq, len(keys))
        self._sent_for[seq] = len(hits) * self._block_size, keys

    def _start(self, batch: Batch, seq: Sequence, start: int, tokens: int, hits: Items[int]) -> None:
        super()._start(batch, seq, start, tokens, hits)
        found = self._sent_for.pop(seq, None)
        if found is not None:
            seq.cached_tokens = found[0]

    def _admit(self, batch: Batch, budget: int, lone: bool) -> None:
        super()._admit(batch, budget, lone)
        while self.waiting and not self.running and self._give_up():
            super()._admit(batch, budget, lone)

    def _give_up(self) -> bool:
        """The last in the queue that holds blocks leaves them to the cache; False if only the head has any."""
        head = self.waiting[0]
        holder = next((seq for seq in reversed([*self.waiting]) if seq in self._sent_for and seq is not head), None)
        if holder is None:
            return False
        self._tiered.release(holder)
        holder.computed_tokens = 0
        del self._sent_for[holder]
        return True


def with_host_tier(policy: Policy, prefill_s: Prefill, on_fetched: Fetched, where: str) -> Policy:
    """`policy` with a host tier below its prefix cache.

    Raises:
        InputError: it is not built on `VllmScheduler`.
    """
    if not (isinstance(policy, type) and issubclass(policy, VllmScheduler)):
        raise InputError(where, f"got a size with the scheduler {policy!r}", "use one that extends VllmScheduler")
    attributes = {"prefill_s": staticmethod(prefill_s), "on_fetched": staticmethod(on_fetched)}
    tiered: Policy = type(f"HostTier{policy.__name__}", (HostTier, policy), attributes)
    return tiered


def prefill_alone(cost: StepCost, budget: int) -> Prefill:
    """Seconds on the GPUs for the tokens start .. end of a prompt that is alone, cut to the token budget."""

    def seconds(start: int, end: int) -> float:
        total_s = 0.0
        while start < end:
            tokens = min(budget, end - start)
            total_s += cost.token_s[tokens] + cost.chunks_s([(start, tokens)])
            start += tokens
        return total_s

    return seconds
