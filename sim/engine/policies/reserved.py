"""KV memory taken whole at admission, as engines before paged attention did."""

from __future__ import annotations

from collections.abc import Callable

from sim.engine.decode_set import DecodeSet
from sim.engine.kv_cache import BlockPool, PrefixPool
from sim.engine.sequence import Sequence
from sim.errors import InputError


class ReservingPool(BlockPool):
    """A pool of which a sequence takes all it can ever need at once, and gives nothing back before its end.

    Args:
        pool: what there is.
        tokens: the tokens for which a sequence reserves room.
    """

    def __init__(self, pool: BlockPool, tokens: Callable[[Sequence], int]) -> None:
        if isinstance(pool, PrefixPool):
            hint = "set it to false, or choose another scheduler"
            raise InputError("engine.enable_prefix_caching", "reserved KV memory cannot be shared", hint)
        super().__init__(pool.usable_blocks, pool.block_size)
        self._tokens = tokens
        self._holders: set[Sequence] = set()

    def reservation(self, seq: Sequence) -> int:
        """Blocks that `seq` reserves; this operation does not modify the pool."""
        return -(-self._tokens(seq) // self.block_size)

    def held(self, seq: Sequence) -> int:
        return self.reservation(seq) if seq in self._holders else 0

    def take(self, seq: Sequence, blocks: int) -> None:
        """Gives `seq` its whole reservation, however few blocks the caller asks for."""
        if seq not in self._holders:
            self._holders.add(seq)
            self.free -= self.reservation(seq)

    def release(self, seq: Sequence) -> None:
        self.free += self.held(seq)
        self._holders.discard(seq)


class ReservedDecodes(DecodeSet):
    """Decoding sequences that never start a new block."""

    def add(self, seq: Sequence, iteration: int) -> None:
        super().add(seq, iteration)
        self.block_phase[(1 - seq.offset) % self.block_size] = 0

    def remove(self, seq: Sequence, iteration: int) -> None:
        super().remove(seq, iteration)
        self.block_phase[(1 - seq.offset) % self.block_size] = 0

    def blocks_needed(self, start: int, iterations: int) -> int:
        return 0
