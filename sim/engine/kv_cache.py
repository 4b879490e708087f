"""The block pool of one replica: how many KV blocks are free and, with prefix caching, which ones and what they hold.

The rules (free-list order, eviction at reuse, no deduplication) are those of vLLM's `block_pool.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Items

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
        self.free += -(-seq.computed_tokens // self.block_size)


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
        self._block_of: dict[int, int] = {}
        """The oldest block with a key."""
        self._copies: dict[int, list[int]] = {}
        """Further blocks with the same key, in order: rare, for nothing is deduplicated (C7)."""

    def held(self, seq: Sequence) -> int:
        return len(seq.blocks)

    def lookup(self, seq: Sequence) -> list[int]:
        """The longest run of leading cached blocks of `seq`, at least one token left over; does not modify the pool."""
        hits: list[int] = []
        if seq.content is None:
            return hits
        block_of = self._block_of
        for key in seq.content.keys(0, (seq.known_tokens - 1) // self.block_size, self.block_size):
            if key not in block_of:
                break
            hits.append(block_of[key])
        return hits

    def dead(self, hits: Items[int]) -> int:
        """How many of `hits` nobody holds: they stand in the free list and would leave it; does not modify the pool."""
        references = self._references
        return sum(1 for block in hits if not references[block])

    def touch(self, seq: Sequence, hits: Items[int]) -> None:
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
        pop, references, key_of, block_of = self._queue.popitem, self._references, self._key_of, self._block_of
        taken = [pop(False)[0] for _ in range(blocks)]
        for block in taken:
            references[block] = 1
            key = key_of[block]
            if key is not None:
                key_of[block] = None
                if key in self._copies:
                    self._forget_copy(block, key)
                else:
                    del block_of[key]
        seq.blocks += taken
        self.free -= blocks

    def register(self, seq: Sequence, full_tokens: int) -> None:
        """Names the blocks of `seq` that its first `full_tokens` tokens fill; modifies the pool."""
        full, keyed = full_tokens // self.block_size, seq.keyed_blocks
        if seq.content is None or full <= keyed:
            return
        key_of, block_of = self._key_of, self._block_of
        keys = seq.content.keys(keyed, full, self.block_size)
        for key, block in zip(keys, seq.blocks[keyed:full], strict=True):
            key_of[block] = key
            if block_of.setdefault(key, block) != block:
                self._copies.setdefault(key, []).append(block)
        seq.keyed_blocks = full

    def release(self, seq: Sequence) -> None:
        queue, references, key_of, freed, unkeyed = self._queue, self._references, self._key_of, 0, []
        for block in reversed(seq.blocks):
            references[block] = holders = references[block] - 1
            if holders:
                continue
            freed += 1
            queue[block] = None
            if key_of[block] is None and not self._keyed_to_back_only:
                unkeyed.append(block)
        self.free += freed
        for block in reversed(unkeyed):  # the last block of the sequence ends up foremost
            queue.move_to_end(block, last=False)
        seq.blocks = []
        seq.keyed_blocks = 0

    def _forget_copy(self, block: int, key: int) -> None:
        """Drops one of several blocks with the same content."""
        copies = self._copies[key]
        if self._block_of[key] == block:
            self._block_of[key] = copies.pop(0)
        else:
            copies.remove(block)
        if not copies:
            del self._copies[key]
