"""The block pools against plain models of what they should hold."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from sim.engine.kv_cache import BlockPool, PrefixPool
from sim.engine.sequence import Sequence
from sim.workload.content import SegmentContent

INTERNED: dict[tuple[object, ...], int] = {}


def sequence(number: int, tokens: int, stream: str, own: int) -> Sequence:
    """A request whose prompt is `own` tokens of its own after the beginning of a shared stream."""
    content = SegmentContent([(stream, max(tokens - own, 0)), (("own", number), own)], ("answer", number), INTERNED)
    return Sequence(number, 0.0, tokens, 1 << 20, 1 << 30, content)


class CountingPool(RuleBasedStateMachine):
    """Without prefix caching a pool is a number."""

    running = Bundle("running")

    @initialize(blocks=st.integers(1, 40), block_size=st.integers(1, 8))
    def start(self, blocks: int, block_size: int) -> None:
        self.pool = BlockPool(blocks, block_size)
        self.model: dict[Sequence, int] = {}

    @rule(target=running, tokens=st.integers(1, 60))
    def admit(self, tokens: int) -> Sequence:
        seq = sequence(len(self.model), tokens, "s", 0)
        self.model[seq] = 0
        return seq

    @rule(seq=running, tokens=st.integers(1, 30))
    def compute(self, seq: Sequence, tokens: int) -> None:
        blocks = -(-(seq.computed_tokens + tokens) // self.pool.block_size) - self.pool.held(seq)
        if seq in self.model and blocks <= self.pool.free:
            self.pool.take(seq, blocks)
            seq.computed_tokens += tokens
            self.model[seq] += tokens

    @rule(seq=consumes(running))
    def release(self, seq: Sequence) -> None:
        self.pool.release(seq)
        del self.model[seq]

    @invariant()
    def free_is_what_nobody_holds(self) -> None:
        if hasattr(self, "pool"):
            held = sum(-(-tokens // self.pool.block_size) for tokens in self.model.values())
            assert self.pool.free == self.pool.usable_blocks - held >= 0


class CachingPool(RuleBasedStateMachine):
    """A pool with prefix caching against a dict: block -> key, holders; and the free queue as a plain list."""

    running = Bundle("running")

    @initialize(blocks=st.integers(2, 24), block_size=st.integers(1, 4), to_back=st.booleans())
    def start(self, blocks: int, block_size: int, to_back: bool) -> None:
        self.pool = PrefixPool(blocks, block_size, keyed_to_back_only=to_back)
        self.size, self.to_back = block_size, to_back
        self.queue = list(range(1, blocks + 1))
        self.keys: dict[int, int] = {}
        self.copies: dict[int, list[int]] = {}
        self.held: dict[Sequence, list[int]] = {}
        self.known = 0

    @rule(target=running, tokens=st.integers(1, 30), stream=st.sampled_from("ab"), own=st.integers(0, 6))
    def arrive(self, tokens: int, stream: str, own: int) -> Sequence:
        self.known += 1
        seq = sequence(self.known, tokens, stream, min(own, tokens))
        self.held[seq] = []
        return seq

    @rule(seq=running)
    def hit(self, seq: Sequence) -> None:
        """Admission: the longest run of cached blocks, one token left over, is shared."""
        if self.held[seq]:
            return
        expected = []
        assert seq.content is not None
        for index in range((seq.known_tokens - 1) // self.size):
            copies = self.copies.get(seq.content.keys(index, index + 1, self.size)[0])
            if not copies:
                break
            expected.append(copies[0])
        before = self.pool.free
        hits = self.pool.lookup(seq)
        assert hits == expected
        assert self.pool.dead(hits) == sum(block in self.queue for block in hits)
        self.pool.touch(seq, hits)
        self.queue = [block for block in self.queue if block not in hits]
        assert before - self.pool.free == sum(1 for block in hits if self.holders()[block] == 0)
        self.held[seq] = list(hits)
        seq.computed_tokens = len(hits) * self.size

    @rule(seq=running, tokens=st.integers(1, 12))
    def compute(self, seq: Sequence, tokens: int) -> None:
        """New blocks come from the head of the queue and forget what they held; full ones get a key."""
        blocks = -(-(seq.computed_tokens + tokens) // self.size) - self.pool.held(seq)
        if blocks > self.pool.free:
            return
        self.pool.take(seq, blocks)
        for _ in range(blocks):
            block = self.queue.pop(0)
            if block in self.keys:
                self.copies[self.keys.pop(block)].remove(block)
            self.held[seq].append(block)
        before = seq.computed_tokens // self.size
        seq.computed_tokens += tokens
        self.pool.register(seq, seq.computed_tokens)
        assert seq.content is not None
        for index in range(before, seq.computed_tokens // self.size):
            key, block = seq.content.keys(index, index + 1, self.size)[0], self.held[seq][index]
            self.keys[block] = key
            self.copies.setdefault(key, []).append(block)
        assert seq.blocks == self.held[seq]

    @rule(seq=consumes(running))
    def release(self, seq: Sequence) -> None:
        """Last block first to the back of the queue; those without a key to the front (after vLLM 0.18)."""
        self.pool.release(seq)
        blocks = self.held.pop(seq)
        holders = self.holders()
        free = [block for block in reversed(blocks) if not holders[block]]
        if self.to_back:
            self.queue += free
        else:
            self.queue = [b for b in free if b not in self.keys] + self.queue + [b for b in free if b in self.keys]

    def holders(self) -> Counter[int]:
        return Counter(block for blocks in self.held.values() for block in blocks)

    @precondition(lambda self: hasattr(self, "pool"))
    @invariant()
    def every_block_is_free_or_held(self) -> None:
        holders = self.holders()
        assert self.pool.free == len(self.queue) == self.pool.usable_blocks - len(holders)
        assert sorted([*self.queue, *holders]) == list(range(1, self.pool.usable_blocks + 1))
        assert list(self.pool._queue) == self.queue


CountingPool.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
CachingPool.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None, derandomize=True)
TestCountingPool = CountingPool.TestCase
TestCachingPool = CachingPool.TestCase
