"""Queues in another order than that of arrival, on top of vLLM's scheduler."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from itertools import count
from typing import Any

from sim.engine.batch import SchedulerLimits
from sim.engine.batching import VllmScheduler
from sim.engine.kv_cache import BlockPool
from sim.engine.sequence import Sequence


class OrderedQueue:
    """A waiting queue whose head is the request of the least rank; answers as a `deque` does where the scheduler asks.

    Equal ranks keep the order of arrival. What is put back at the left (preempted requests) stays in front of all.
    """

    def __init__(self, rank: Callable[[Sequence], Any]) -> None:
        self._rank = rank
        self._front: deque[Sequence] = deque()
        self._heap: list[tuple[Any, int, Sequence]] = []
        self._number = count()

    def __len__(self) -> int:
        return len(self._front) + len(self._heap)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._front
        for _, _, seq in sorted(self._heap):
            yield seq

    def __getitem__(self, index: int) -> Sequence:
        if index:
            raise IndexError("only the head of an ordered queue can be looked at")
        return self._front[0] if self._front else self._heap[0][2]

    def append(self, seq: Sequence) -> None:
        heappush(self._heap, (self._rank(seq), next(self._number), seq))

    def appendleft(self, seq: Sequence) -> None:
        self._front.appendleft(seq)

    def extendleft(self, seqs: Iterable[Sequence]) -> None:
        """Puts back what was stepped over: it never left its place in the order."""
        for seq in seqs:
            self.append(seq)

    def popleft(self) -> Sequence:
        return self._front.popleft() if self._front else heappop(self._heap)[2]

    def remove(self, seq: Sequence) -> None:
        if seq in self._front:
            self._front.remove(seq)
            return
        kept = [item for item in self._heap if item[2] is not seq]
        self._heap = sorted(kept)

    def goes_first(self, seq: Sequence) -> bool:
        """Whether a request that arrives now would be the head; does not modify the queue."""
        return not self._front and (not self._heap or self._rank(seq) < self._heap[0][0])


class OrderedScheduler(VllmScheduler):
    """vLLM's scheduler with a queue ordered by `rank`: the least goes first, equal ones in order of arrival."""

    waiting: Any

    def __init__(self, limits: SchedulerLimits, pool: BlockPool, windows: tuple[int, ...] = ()) -> None:
        super().__init__(limits, pool, windows)
        self.waiting = OrderedQueue(self.rank)

    @abstractmethod
    def rank(self, seq: Sequence) -> Any:
        """Where `seq` stands in the queue: anything that compares; must not change while it waits."""

    def may_admit(self, seq: Sequence) -> bool:
        return bool(self.waiting.goes_first(seq)) and self._may_enter(seq)


class ShortestJobFirst(OrderedScheduler):
    """The shortest output goes first, for an output token costs an iteration and a prompt token a small part of one.

    It knows the output lengths (an oracle), as Qiu et al. predict them ("Efficient Interactive LLM Serving with Proxy
    Model-based Sequence Length Prediction", 2024). A preempted request resumes before all others.
    """

    def rank(self, seq: Sequence) -> tuple[int, int]:
        return seq.output_tokens, seq.prompt_tokens
