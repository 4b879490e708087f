"""Preemption by swap: KV blocks move to host memory over the host link, and back before the request goes on.

vLLM's V0 had it (`--swap-space`, `PreemptionMode.SWAP`); V1 only recomputes.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Mapping

import simpy
from simpy.events import Event

from sim.engine.batch import Batch, SchedulerLimits
from sim.engine.batching import VllmScheduler
from sim.engine.kv_cache import BlockPool
from sim.engine.sequence import DECODING, WAITING, Sequence
from sim.hardware.topology import Topology


class HostLink:
    """The way between the GPUs of one replica and host memory: one transfer after another in each direction.

    Args:
        out_s_per_block, back_s_per_block: seconds to move a KV block (of all ranks at the same time) to the host, and back.
        host_blocks: blocks that host memory holds for the replica.
    """

    def __init__(
        self, env: simpy.Environment, out_s_per_block: float, back_s_per_block: float, host_blocks: int
    ) -> None:
        self.env = env
        self.free_blocks = host_blocks
        self.on_return: Callable[[], None] = _nobody
        """Called when a sequence is back, after the scheduler was told."""
        self._out_s_per_block = out_s_per_block
        self._back_s_per_block = back_s_per_block
        self._out_free_s = self._back_free_s = 0.0
        self._held: dict[Sequence, tuple[int, float]] = {}
        """(blocks, when they have arrived) of what is in host memory."""

    def out(self, seq: Sequence, blocks: int) -> None:
        """`blocks` of `seq` leave for the host; the copy is queued before the kernels that reuse them: they are free at once."""
        self._out_free_s = max(self.env.now, self._out_free_s) + blocks * self._out_s_per_block
        self.free_blocks -= blocks
        self._held[seq] = blocks, self._out_free_s

    def back(self, seq: Sequence, arrived: Callable[[Sequence], None]) -> None:
        """The blocks of `seq` come back; `arrived` is called when they are there."""
        blocks, ready_s = self._held.pop(seq)
        self._back_free_s = max(self.env.now, self._back_free_s, ready_s) + blocks * self._back_s_per_block

        def end(_: Event) -> None:
            self.free_blocks += blocks
            arrived(seq)
            self.on_return()

        timer = self.env.timeout(self._back_free_s - self.env.now)
        timer.callbacks.append(end)


class SwapScheduler(VllmScheduler):
    """vLLM's scheduler, preempting by swap.

    A decoding victim goes to the host if there is room; one in its prefill, or beyond that room, is recomputed. Those that were
    swapped out come back in the order of their admission, as soon as their blocks are free, and before anybody new is admitted;
    the others go on decoding meanwhile.
    """

    def __init__(
        self, limits: SchedulerLimits, pool: BlockPool, windows: tuple[int, ...] = (), *, link: HostLink
    ) -> None:
        super().__init__(limits, pool, windows)
        self.link = link
        self._swapped: list[tuple[int, Sequence]] = []
        """(order, sequence) in host memory, or on the way there."""
        self._returning: set[Sequence] = set()
        self._returned: list[Sequence] = []
        self._resumed: list[Sequence] = []
        """Back in the batch, but without a token since."""

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting or self._swapped or self._returning or self._returned)

    def schedule(self) -> Batch:
        for seq in self._returned:
            self._resume(seq)
        self._returned.clear()
        batch = super().schedule()
        if self._resumed:
            self._note_resumed(batch)
        if self._swapped and not batch.preempted:
            self._bring_back()
        return batch

    def _resume(self, seq: Sequence) -> None:
        """`seq` decodes from the next iteration on."""
        self._returning.discard(seq)
        seq.order = self._last_decode_order = next(self._admission_counter)
        self.running[seq] = None
        if self.prefix_pool is not None:
            self.prefix_pool.register(seq, seq.computed_tokens)
        self.decodes.add(seq, self.iteration + 1)
        seq.lane = self
        self._resumed.append(seq)

    def _note_resumed(self, batch: Batch) -> None:
        """The first token after a swap comes late."""
        if batch.decoding is None:
            batch.late, batch.steady = self._resumed, False
            self._resumed = []
        else:
            self._resumed = [seq for seq in self._resumed if seq in self.running and seq not in batch.decoding]

    def _bring_back(self) -> None:
        """Starts the way back of those whose blocks, and one for the next token, are free."""
        while self._swapped:
            seq = self._swapped[0][1]
            if not self._fits(seq):
                return
            del self._swapped[0]
            self.pool.take(seq, -(-seq.computed_tokens // self._block_size))
            self._returning.add(seq)
            self.link.back(seq, self._returned.append)

    def _fits(self, seq: Sequence) -> bool:
        kept = self.limits.watermark_blocks if self.running else 0
        return -(-seq.known_tokens // self._block_size) + kept <= self.pool.free

    def horizon(self) -> int:
        return 1 if self._swapped and self._fits(self._swapped[0][1]) else super().horizon()

    def _preempt(self, batch: Batch, victim: Sequence) -> None:
        blocks = self.pool.held(victim)
        if victim.state != DECODING or blocks > self.link.free_blocks:
            super()._preempt(batch, victim)
            return
        self.pool.release(victim)
        self.link.out(victim, blocks)
        victim.preemptions += 1
        del self.running[victim]
        victim.state = WAITING
        insort(self._swapped, (victim.order, victim))
        batch.preempted = [*batch.preempted, victim]

    def _admit(self, batch: Batch, budget: int, lone: bool) -> None:
        if not self._swapped and not self._returning:
            super()._admit(batch, budget, lone)

    def _may_enter(self, seq: Sequence) -> bool:
        return not self._swapped and not self._returning and super()._may_enter(seq)


def host_times(topology: Topology, block_bytes: Mapping[str, float]) -> tuple[float, float]:
    """Seconds to move a KV block of a replica to host memory, and back; `block_bytes` is what each rank holds, by GPU name.

    All ranks copy at the same time; those behind one PCIe switch share its way up. Links of other replicas are not loaded.

    Raises:
        InputError: a GPU's node has no host memory.
    """
    out: dict[tuple[str, str], float] = {}
    for gpu, size_bytes in block_bytes.items():
        for a, b in topology.host_path(gpu):
            out[a, b] = out.get((a, b), 0.0) + size_bytes
    edges = topology.graph.edges
    out_s = max(load / edges[a, b]["bandwidth_bytes_per_s"] for (a, b), load in out.items())
    back_s = max(load / edges[b, a]["bandwidth_bytes_per_s"] for (a, b), load in out.items())
    return out_s, back_s


def host_link(
    env: simpy.Environment, topology: Topology, block_bytes: Mapping[str, float], swap_space_bytes: float
) -> HostLink:
    """The host link of the replica whose ranks hold `block_bytes` of a KV block each, with `swap_space_bytes` for each GPU.

    Raises:
        InputError: as `host_times`.
    """
    blocks = int(swap_space_bytes // max(block_bytes.values()))
    return HostLink(env, *host_times(topology, block_bytes), blocks)


def _nobody() -> None:
    """Nobody is to be told."""
