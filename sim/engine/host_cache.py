"""Host memory as a second tier of the prefix cache: blocks evicted from the GPUs are kept there, and fetched if that is sooner.

As vLLM's native KV offloading (`--kv-offloading-size`), but written when a block is evicted instead of when it is full.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from itertools import islice

import simpy

from sim.engine.kv_cache import PrefixPool
from sim.engine.sequence import Sequence


class HostCache:
    """The blocks of one replica that stand in host memory, the least recently used forgotten first.

    One transfer after another in each direction. Blocks that are being fetched are not forgotten before `let_go`. Its state
    changes by calls alone, never by time, so a leap leaves what its steps leave.

    Args:
        out_s_per_block, back_s_per_block: seconds to move a KV block (of all ranks at the same time) to the host, and back.
        blocks: how many it holds.
    """

    def __init__(self, env: simpy.Environment, out_s_per_block: float, back_s_per_block: float, blocks: int) -> None:
        self.env = env
        self.blocks = blocks
        self.now_s: float | None = None
        """When what is stored now was evicted, while a leap is caught up with; None: at this moment."""
        self._out_s_per_block = out_s_per_block
        self._back_s_per_block = back_s_per_block
        self._out_free_s = self._back_free_s = 0.0
        self._there_s: OrderedDict[int, float] = OrderedDict()
        """When each block has arrived, by key; the least recently used first."""
        self._fetches: Counter[int] = Counter()
        """Fetches under way, by key."""

    def __len__(self) -> int:
        return len(self._there_s)

    @property
    def keys(self) -> list[int]:
        """What is here or on its way here, the least recently used first."""
        return [*self._there_s]

    def store(self, keys: Iterable[int]) -> None:
        """Blocks with these keys are evicted from the GPUs, in this order.

        The copy is queued before the kernels that reuse them, so the GPUs need not wait; one that is here already is not copied.
        """
        now_s = self.env.now if self.now_s is None else self.now_s
        for key in keys:
            if key in self._there_s:
                self._there_s.move_to_end(key)
            elif self._make_room():
                self._out_free_s = max(now_s, self._out_free_s) + self._out_s_per_block
                self._there_s[key] = self._out_free_s

    def _make_room(self) -> bool:
        """Forgets the least recently used block if the host is full; False if every block there is being fetched."""
        if len(self._there_s) < self.blocks:
            return True
        oldest = next((key for key in self._there_s if key not in self._fetches), None)
        if oldest is None:
            return False
        del self._there_s[oldest]
        return True

    def lookup(self, keys: Items[int]) -> int:
        """How many of the first `keys` are here or on their way here; does not modify the cache."""
        return next((number for number, key in enumerate(keys) if key not in self._there_s), len(keys))

    def fetch_s(self, keys: Items[int]) -> float:
        """How long it would take from now until these blocks are on the GPUs; does not modify the cache."""
        return self._done_s(keys) - self.env.now

    def fetch(self, keys: Items[int], arrived: Callable[[], None]) -> None:
        """These blocks go to the GPUs; `arrived` is called when they are there."""
        self._back_free_s = done_s = self._done_s(keys)
        for key in reversed(keys):  # the beginning of a prompt is used last: nobody finds the rest without it
            self._there_s.move_to_end(key)
            self._fetches[key] += 1
        timer = self.env.timeout(done_s - self.env.now)
        assert timer.callbacks is not None
        timer.callbacks.append(lambda _: arrived())

    def let_go(self, keys: Items[int]) -> None:
        """A fetch of these blocks is over."""
        for key in keys:
            self._fetches[key] -= 1
            if not self._fetches[key]:
                del self._fetches[key]

    def _done_s(self, keys: Items[int]) -> float:
        """When a fetch that is ordered now is over."""
        there_s = max(self._there_s[key] for key in keys)
        return max(self.env.now, self._back_free_s, there_s) + len(keys) * self._back_s_per_block


class TieredPool(PrefixPool):
    """A pool of blocks that go to the host when they are evicted."""

    def __init__(self, usable_blocks: int, block_size: int, keyed_to_back_only: bool, host: HostCache) -> None:
        super().__init__(usable_blocks, block_size, keyed_to_back_only)
        self.host = host

    def take(self, seq: Sequence, blocks: int) -> None:
        key_of, block_of = self._key_of, self._block_of
        reused = [key for block in islice(self._queue, blocks) if (key := key_of[block]) is not None]
        super().take(seq, blocks)
        if reused:  # a key is evicted with the last block that has it
            self.host.store([key for key in reversed(dict.fromkeys(reversed(reused))) if key not in block_of])
