"""What router and cluster know of a replica, whatever kind it is."""

from __future__ import annotations

from typing import Protocol

from sim.engine.batching import VllmScheduler
from sim.engine.sequence import Sequence


class KvOutOfMemory(Exception):  # noqa: N818 (an outcome of the run, not an error of the program)
    """A KV allocation failed and the engine does not preempt."""

    def __init__(self, time_s: float, replica: int, seq: Sequence, blocks_short: int) -> None:
        super().__init__(f"request {seq.id} lacks {blocks_short} KV blocks at {time_s} s")
        self.time_s = time_s
        self.replica = replica
        self.seq = seq
        self.blocks_short = blocks_short


class ServingReplica(Protocol):
    """What router and cluster need of a replica."""

    index: int
    lane: int
    """The number under which it is recorded: that of its first batch in flight among those of all replicas."""
    outstanding: int

    @property
    def scheduler(self) -> VllmScheduler: ...

    @property
    def kv_usage(self) -> float: ...

    def submit(self, seq: Sequence) -> None: ...

    def write_back(self, seq: Sequence) -> None: ...

    def stop(self) -> None: ...
