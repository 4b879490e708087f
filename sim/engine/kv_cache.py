"""The block pool of one replica: how many KV blocks are free and, with prefix caching, which ones and what they hold.

The rules (free-list order, eviction at reuse, no deduplication) are those of vLLM's `block_pool.py`.
"""

from __future__ import annotations

from collections import OrderedDict

from sim.engine.sequence import Sequence


class BlockPool:
    """Counts blocks. Without prefix caching their identity does not matter, so taking and freeing is arithmetic."""

    caching = False

    def __init__(self, usable_blocks: int, block_size: int) -> None:
        self.usable_blocks = usable_blocks
        self.block_size = block_size
        self.free = usable_blocks

    def held(self, seq: Sequence) -> int:
        """Blocks that `seq` holds; this operation does not modify the pool."""
        return -(-seq.computed_tokens // self.block_size)

    def take(self, seq: Sequence, blocks: int) -> None:
        """Gives `seq` that many new blocks; this operation modifies the pool."""
        self.free -= blocks

    def release(self, seq: Sequence) -> None:
        """Frees all blocks of `seq`; this operation modifies the pool."""
        self.free += self.held(seq)


class PrefixPool(BlockPool):
    """A pool whose full blocks keep their content until they are reused, and can be shared meanwhile."""

    caching = True

    def __init__(self, usable_blocks: int, block_size: int, keyed_to_back_only: bool = False) -> None:
        super().__init__(usable_blocks, block_size)
        self._keyed_to_back_only = keyed_to_back_only
        """Up to vLLM 0.18 every freed block goes to the back of the queue; later, one without a key goes to the front."""
        self._queue: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, usable_blocks + 1))
        self._references = [0] * (usable_blocks + 1)
        self._key_of: list[int | None] = [None] * (usable_blocks + 1)
        self._blocks_by_key: dict[int, list[int]] = {}

    def held(self, seq: Sequence) -> int:
        return len(seq.blocks)

    def lookup(self, seq: Sequence) -> list[int]:
        """The longest run of leading cached blocks of `seq`, at least one token left over; does not modify the pool."""
        hits: list[int] = []
        content, by_key, size = seq.content, self._blocks_by_key, self.block_size
        if content is None:
            return hits
        for block in range((seq.known_tokens - 1) // size):
            copies = by_key.get(content.key(block, size))
            if copies is None:
                break
            hits.append(copies[0])
        return hits

    def dead(self, hits: list[int]) -> int:
        """How many of `hits` nobody holds: they stand in the free list and would leave it; does not modify the pool."""
        references = self._references
        return sum(1 for block in hits if not references[block])

    def touch(self, seq: Sequence, hits: list[int]) -> None:
        """Gives `seq` the cached blocks `hits`; modifies the pool."""
        references, queue = self._references, self._queue
        for block in hits:
            if not references[block]:
                del queue[block]
                self.free -= 1
            references[block] += 1
        seq.blocks = list(hits)
        seq.keyed_blocks = len(hits)

    def take(self, seq: Sequence, blocks: int) -> None:
        queue, references, key_of = self._queue, self._references, self._key_of
        for _ in range(blocks):
            block = queue.popitem(last=False)[0]
            if key_of[block] is not None:
                self._forget(block)
            references[block] = 1
            seq.blocks.append(block)
        self.free -= blocks

    def register(self, seq: Sequence, full_tokens: int) -> None:
        """Names the blocks of `seq` that its first `full_tokens` tokens fill; modifies the pool."""
        full = full_tokens // self.block_size
        if seq.content is None:
            return
        for index in range(seq.keyed_blocks, full):
            key, block = seq.content.key(index, self.block_size), seq.blocks[index]
            self._key_of[block] = key
            self._blocks_by_key.setdefault(key, []).append(block)
        seq.keyed_blocks = max(full, seq.keyed_blocks)

    def release(self, seq: Sequence) -> None:
        queue, references, key_of = self._queue, self._references, self._key_of
        unkeyed = []
        for block in reversed(seq.blocks):
            references[block] -= 1
            if references[block]:
                continue
            self.free += 1
            queue[block] = None
            if key_of[block] is None and not self._keyed_to_back_only:
                unkeyed.append(block)
        for block in reversed(unkeyed):  # the last block of the sequence ends up foremost
            queue.move_to_end(block, last=False)
        seq.blocks = []
        seq.keyed_blocks = 0

    def _forget(self, block: int) -> None:
        """Drops the content of a block that is about to be reused."""
        key = self._key_of[block]
        assert key is not None
        copies = self._blocks_by_key[key]
        copies.remove(block)
        if not copies:
            del self._blocks_by_key[key]
        self._key_of[block] = None
