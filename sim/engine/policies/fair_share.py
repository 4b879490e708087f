"""Fair share between tenants: the virtual token counter."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from sim.engine.batch import SchedulerLimits
from sim.engine.batching import VllmScheduler
from sim.engine.kv_cache import BlockPool
from sim.engine.sequence import Sequence

PROMPT_WEIGHT, OUTPUT_WEIGHT = 1, 2
"""Service units a token (Sheng et al., section 5: an output token is charged twice what a prompt token is)."""


class TenantQueue:
    """One line a tenant; the head is the first of the tenant that was served least so far.

    Service is charged when a request is taken, for its whole prompt and output: the paper's variant with length prediction, the
    prediction being right. A tenant that comes back counts from the least served of those who stayed, so silence saves
    up nothing. What is put back at the left (preempted requests) stays in front of all, and is charged once.
    """

    def __init__(self) -> None:
        self.served: dict[int, int] = {}
        """Service units by tenant."""
        self._lines: dict[int, deque[Sequence]] = {}
        self._front: deque[Sequence] = deque()
        self._length = 0
        self._last_to_leave: int | None = None

    def __len__(self) -> int:
        return self._length + len(self._front)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._front
        for line in self._lines.values():
            yield from line

    def __getitem__(self, index: int) -> Sequence:
        if index:
            raise IndexError("only the head of a fair queue can be looked at")
        return self._front[0] if self._front else self._lines[self._next_tenant()][0]

    def append(self, seq: Sequence) -> None:
        tenant = seq.tenant
        if tenant not in self._lines:
            self.served[tenant] = max(self.served.get(tenant, 0), self._floor())
            self._lines[tenant] = deque()
        self._lines[tenant].append(seq)
        self._length += 1

    def appendleft(self, seq: Sequence) -> None:
        self._front.appendleft(seq)

    def extendleft(self, seqs: Iterable[Sequence]) -> None:
        """Puts back, uncharged, what was stepped over."""
        for seq in seqs:
            if seq.preemptions:
                self._front.appendleft(seq)
                continue
            self.append(seq)
            self._lines[seq.tenant].rotate(1)
            self.served[seq.tenant] -= _service(seq)

    def popleft(self) -> Sequence:
        if self._front:
            return self._front.popleft()
        tenant = self._next_tenant()
        line = self._lines[tenant]
        seq = line.popleft()
        self._length -= 1
        self.served[tenant] += _service(seq)
        if not line:
            del self._lines[tenant]
            self._last_to_leave = tenant
        return seq

    def remove(self, seq: Sequence) -> None:
        """Takes out a preempted request whose last token was in flight."""
        self._front.remove(seq)

    def goes_first(self, seq: Sequence) -> bool:
        """Whether a request that arrives now would be the head; does not modify the queue."""
        if self._front or seq.tenant in self._lines:
            return False
        return not self._lines or (self._level(seq.tenant), seq.tenant) < min((self.served[t], t) for t in self._lines)

    def _level(self, tenant: int) -> int:
        return max(self.served.get(tenant, 0), self._floor())

    def _floor(self) -> int:
        """Where a tenant that comes back starts."""
        if self._lines:
            return min(self.served[tenant] for tenant in self._lines)
        return 0 if self._last_to_leave is None else self.served[self._last_to_leave]

    def _next_tenant(self) -> int:
        return min(self._lines, key=lambda tenant: (self.served[tenant], tenant))


class FairShare(VllmScheduler):
    """vLLM's scheduler with a queue that shares service fairly between tenants.

    Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithm 2.
    """

    waiting: Any

    def __init__(self, limits: SchedulerLimits, pool: BlockPool, windows: tuple[int, ...] = ()) -> None:
        super().__init__(limits, pool, windows)
        self.waiting = TenantQueue()

    def may_admit(self, seq: Sequence) -> bool:
        return bool(self.waiting.goes_first(seq)) and self._may_enter(seq)


def _service(seq: Sequence) -> int:
    return PROMPT_WEIGHT * seq.prompt_tokens + OUTPUT_WEIGHT * seq.output_tokens
