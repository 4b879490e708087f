"""The KV blocks of the reference scheduler, one by one: free list, reference counts, prefix keys (C1-C9)."""

from __future__ import annotations

from collections.abc import Sequence

Key = int
"""A block's identity: one number for each distinct chain of tokens from the start of a sequence to the block's end."""


class BlockPool:
    """All usable blocks, as vLLM's BlockPool and KVCacheManager keep them."""

    def __init__(self, usable_blocks: int, unkeyed_freed_first: bool) -> None:
        self.free: list[int] = list(range(1, usable_blocks + 1))
        self.references: dict[int, int] = dict.fromkeys(self.free, 0)
        self.key_of: dict[int, Key] = {}
        self.copies: dict[Key, list[int]] = {}  # blocks with this key, the oldest first
        self.unkeyed_freed_first = unkeyed_freed_first
        self.usable_blocks = usable_blocks

    def lookup(self, keys: Sequence[Key]) -> list[int]:
        """The longest run of leading cached blocks (C1, C3, C7). This operation does not modify the cache."""
        hits = []
        for key in keys:
            if key not in self.copies:
                break
            hits.append(self.copies[key][0])
        return hits

    def dead(self, blocks: Sequence[int]) -> int:
        """How many of these blocks nobody holds: they are in the free list and would leave it."""
        return sum(1 for block in blocks if self.references[block] == 0)

    def touch(self, blocks: Sequence[int]) -> None:
        """Hold cached blocks once more."""
        for block in blocks:
            if self.references[block] == 0:
                self.free.remove(block)
            self.references[block] += 1

    def take(self, count: int) -> list[int]:
        """Take blocks from the front of the free list; a cached one is evicted only now (C6)."""
        taken, self.free = self.free[:count], self.free[count:]
        assert len(taken) == count, "more blocks taken than are free"
        for block in taken:
            self.references[block] += 1
            self._evict(block)
        return taken

    def register(self, block: int, key: Key) -> None:
        """Make a full block findable; several blocks may have the same key (C7)."""
        assert block not in self.key_of
        self.key_of[block] = key
        self.copies.setdefault(key, []).append(block)

    def release(self, blocks: Sequence[int]) -> None:
        """Give back a request's blocks, the last one first (C5)."""
        dead = []
        for block in reversed(blocks):
            self.references[block] -= 1
            if self.references[block] == 0:
                dead.append(block)
        if self.unkeyed_freed_first:
            unkeyed = [block for block in dead if block not in self.key_of]
            keyed = [block for block in dead if block in self.key_of]
            self.free = unkeyed + self.free + keyed
        else:
            self.free = self.free + dead

    def check(self, holders: Sequence[Sequence[int]]) -> None:
        """Assert that blocks are conserved, counted once per holder, and that keys lead both ways."""
        held: dict[int, int] = {}
        for blocks in holders:
            assert len(set(blocks)) == len(blocks), "a request holds a block twice"
            for block in blocks:
                held[block] = held.get(block, 0) + 1
        assert len(set(self.free)) == len(self.free), "a block is twice in the free list"
        assert not held.keys() & set(self.free), "a held block is in the free list"
        assert len(self.free) + len(held) == self.usable_blocks, "a block is lost"
        assert {block: n for block, n in self.references.items() if n} == held, "reference counts are wrong"
        findable = {block: key for key, blocks in self.copies.items() for block in blocks}
        assert findable == self.key_of, "keys and blocks disagree"
        assert sum(len(blocks) for blocks in self.copies.values()) == len(self.key_of), "a block is registered twice"

    def _evict(self, block: int) -> None:
        """Forget the key of a block that is reused."""
        key = self.key_of.pop(block, None)
        if key is None:
            return
        self.copies[key].remove(block)
        if not self.copies[key]:
            del self.copies[key]
