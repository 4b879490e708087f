"""The sequences that decode one token an iteration, known by sums so that no iteration loops over them.

While a sequence decodes without a break its length is `iteration + offset`. Everything an iteration needs then follows from a
few sums: how many sequences, the sum of offsets (contexts), how many start a new KV block (a histogram of length modulo block
size), how many are shorter than a sliding window, and a heap of the iterations in which they end.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from heapq import heappop, heappush

from sim.engine.kv_cache import PrefixPool
from sim.engine.sequence import DECODING, ENDING, Sequence


class WindowSum:
    """Sum over the sequences of min(length, window): the KV that a sliding-window layer reads."""

    __slots__ = ("_crossings", "below", "offset_sum", "window_tokens")

    def __init__(self, window_tokens: int) -> None:
        self.window_tokens = window_tokens
        self.below = 0
        """Sequences shorter than the window: their share still grows by one an iteration."""
        self.offset_sum = 0
        self._crossings: list[tuple[int, int, Sequence]] = []

    def add(self, seq: Sequence, iteration: int) -> None:
        if iteration + seq.offset < self.window_tokens:
            self.below += 1
            self.offset_sum += seq.offset
            heappush(self._crossings, (self.window_tokens - seq.offset, seq.order, seq))

    def remove(self, seq: Sequence, iteration: int) -> None:
        if iteration + seq.offset < self.window_tokens:
            self.below -= 1
            self.offset_sum -= seq.offset

    def advance(self, iteration: int) -> None:
        """Moves over the window the sequences that reach it up to `iteration`."""
        heap = self._crossings
        while heap and heap[0][0] <= iteration:
            crossing, order, seq = heappop(heap)
            if seq.order == order and self._counted(seq, crossing):
                self.below -= 1
                self.offset_sum -= seq.offset

    def _counted(self, seq: Sequence, crossing: int) -> bool:
        return seq.state == DECODING and seq.offset == self.window_tokens - crossing

    def next_crossing(self) -> int:
        """The first iteration in which a sequence reaches the window, or a very late one."""
        heap = self._crossings
        while heap and not (heap[0][2].order == heap[0][1] and self._counted(heap[0][2], heap[0][0])):
            heappop(heap)
        return heap[0][0] if heap else 1 << 60

    def tokens(self, iteration: int, count: int) -> int:
        return self.below * iteration + self.offset_sum + (count - self.below) * self.window_tokens


class DecodeSet:
    """Sequences in steady decode, as sums."""

    __slots__ = ("block_phase", "block_size", "count", "ends", "members", "offset_sum", "windows")

    def __init__(self, block_size: int, windows: tuple[int, ...] = (), track_members: bool = False) -> None:
        self.block_size = block_size
        self.count = 0
        self.offset_sum = 0
        self.block_phase = [0] * block_size
        """block_phase[i % block_size]: how many sequences start a new block in iteration i."""
        self.members: list[set[Sequence]] | None = [set() for _ in range(block_size)] if track_members else None
        """The same as sets, where the identity of blocks matters (prefix caching)."""
        self.windows = [WindowSum(window) for window in windows]
        self.ends: list[tuple[int, int, Sequence]] = []
        """Heap of (iteration of the last token, order, sequence); an entry of a sequence that left meanwhile is stale."""

    def add(self, seq: Sequence, iteration: int) -> None:
        """`seq` decodes from `iteration` on, where it will know `seq.known_tokens` tokens before sampling."""
        offset = seq.known_tokens - iteration
        seq.offset = offset
        seq.state = DECODING
        seq.last_iteration = last = seq.limit_tokens - 1 - offset
        self.count += 1
        self.offset_sum += offset
        phase = (1 - offset) % self.block_size
        self.block_phase[phase] += 1
        if self.members is not None:
            self.members[phase].add(seq)
        for window in self.windows:
            window.add(seq, iteration)
        heappush(self.ends, (last, seq.order, seq))

    def remove(self, seq: Sequence, iteration: int) -> None:
        """Takes `seq` out before `iteration` and writes its length back."""
        self.count -= 1
        self.offset_sum -= seq.offset
        phase = (1 - seq.offset) % self.block_size
        self.block_phase[phase] -= 1
        if self.members is not None:
            self.members[phase].discard(seq)
        for window in self.windows:
            window.remove(seq, iteration)
        seq.known_tokens = iteration + seq.offset
        seq.computed_tokens = seq.known_tokens - 1

    def ended(self, iteration: int) -> Items[Sequence]:
        """Removes and returns, in running order, the sequences whose last token was sampled up to `iteration`."""
        for window in self.windows:
            window.advance(iteration + 1)
        heap = self.ends
        if not heap or heap[0][0] > iteration:
            return ()
        done: list[Sequence] = []
        while heap and heap[0][0] <= iteration:
            last, order, seq = heappop(heap)
            if seq.last_iteration == last and seq.order == order and seq.state == DECODING:
                self.remove(seq, iteration + 1)
                seq.state = ENDING
                done.append(seq)
        if len(done) > 1:
            done.sort(key=_running_order)
        return done

    def next_end(self) -> int:
        """The iteration that samples the next last token."""
        heap = self.ends
        while True:
            last, order, seq = heap[0]
            if seq.last_iteration == last and seq.order == order and seq.state == DECODING:
                return last
            heappop(heap)

    def take_blocks(self, pool: PrefixPool, iteration: int, asynchronous: bool) -> None:
        """New blocks for those that start one, and keys for those that fill one, in running order.

        A4: asynchronously a block filled by a sampled token is known one iteration later, just when the next one is taken.
        """
        members, size, late = self.members, self.block_size, int(asynchronous)
        assert members is not None
        starting, filling = members[iteration % size], members[(iteration + 1 - late) % size]
        if not starting and not filling:
            return
        for seq in sorted(starting | filling, key=_running_order):
            if seq in starting:
                pool.take(seq, 1)
            if seq in filling:
                pool.register(seq, iteration + seq.offset - late)

    def blocks_needed(self, start: int, iterations: int) -> int:
        """New blocks that iterations start .. start + iterations - 1 take."""
        cycles, rest = divmod(iterations, self.block_size)
        phase, size = self.block_phase, self.block_size
        first = start % size
        stop = first + rest
        part = sum(phase[first:stop]) if stop <= size else sum(phase[first:]) + sum(phase[: stop - size])
        return cycles * self.count + part

    def iterations_within(self, start: int, free_blocks: int) -> int:
        """How many iterations from `start` on find all their new blocks among `free_blocks`."""
        if not self.count:
            return 1 << 60
        cycles, rest = divmod(free_blocks, self.count)
        iterations, phase, size = cycles * self.block_size, self.block_phase, self.block_size
        position = start % size
        while rest >= phase[position]:
            rest -= phase[position]
            position = position + 1 if position + 1 < size else 0
            iterations += 1
        return iterations

    def window_sums(self, iteration: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(sum of min(length, window), sequences still shorter) for each window in `iteration`."""
        windows, count = self.windows, self.count
        for window in windows:
            window.advance(iteration)
        return tuple([w.tokens(iteration, count) for w in windows]), tuple([w.below for w in windows])

    def clear(self) -> None:
        """Empties the set; the sequences keep what was written back to them."""
        self.count = self.offset_sum = 0
        self.block_phase = [0] * self.block_size
        if self.members is not None:
            self.members = [set() for _ in range(self.block_size)]
        self.windows = [WindowSum(window.window_tokens) for window in self.windows]
        self.ends = []


def _running_order(seq: Sequence) -> int:
    """Key to sort by: the place in the running list."""
    return seq.order
