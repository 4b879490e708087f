"""A replica behind a server process that streams its tokens, in a queue of its own.

The engine does not wait for it: tokens that are not sent yet pile up beside the engine. A new request reaches the server through
the same event loop, so it waits behind them before the engine hears of it. That the tokens themselves come later is not
modelled: the last ones of a request do so as well as its first.
"""

from __future__ import annotations

from typing import Any

from sim.engine.batch import Batch
from sim.engine.batching import VllmScheduler
from sim.engine.iteration import span_s
from sim.engine.replica import Replica
from sim.engine.sequence import Sequence


class StreamQueue:
    """Work that the server process has not done yet, in seconds.

    Args:
        token_s: its time for each token.
    """

    __slots__ = ("_at_s", "_token_s", "_work_s")

    def __init__(self, token_s: float) -> None:
        self._token_s = token_s
        self._work_s = 0.0
        self._at_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """How long somebody who comes now waits."""
        return max(self._work_s - (now_s - self._at_s), 0.0)

    def add(self, begin_s: float, first_s: float, growth_s: float, iterations: int, tokens: int) -> None:
        """Iterations with `tokens` each ended, of which number i took first_s + i x growth_s.

        Lindley's recursion in closed form: where each takes at least as long as the one before, the server was idle last either
        in the first of them or in the last.
        """
        work_s = tokens * self._token_s
        passed_s = span_s(first_s, growth_s, iterations)
        left_s = max(self.wait_s(begin_s), first_s) + iterations * work_s - passed_s
        self._work_s = max(left_s, work_s)
        self._at_s = begin_s + passed_s


class StreamingReplica(Replica):
    """A replica whose requests pass the server process first.

    Args:
        token_s: time of the server process for each token that it streams.
        more: as `Replica` takes them.
    """

    __slots__ = ("_passing", "_queue", "_streamed", "_token_s")

    def __init__(self, *more: Any, token_s: float, **named: Any) -> None:
        self._token_s = token_s
        super().__init__(*more, **named)

    def _begin(self) -> None:
        super()._begin()
        self._queue = StreamQueue(self._token_s)
        self._streamed = 0
        """Iterations of the segment under way whose tokens the queue knows."""
        self._passing: set[Sequence] = set()

    def submit(self, seq: Sequence) -> None:
        """A request reaches the server now, and the engine when what came before is sent."""
        if self._batch is not None and self._planned > 1:
            self._stream(self._batch, self._under_way() - 1)
        wait_s = self._queue.wait_s(self.env.now)
        if wait_s <= 0.0:
            super().submit(seq)
            return
        self.outstanding += 1
        passing = self._passing
        passing.add(seq)

        def passed(_: object) -> None:
            if seq in passing and passing is self._passing:  # the replica did not fail meanwhile
                passing.remove(seq)
                self.outstanding -= 1
                super(StreamingReplica, self).submit(seq)

        self.env.timeout(wait_s).callbacks.append(passed)

    def _stream(self, batch: Batch, iterations: int) -> None:
        """The first `iterations` of the segment under way are over: the queue hears of those that it does not know."""
        known = self._streamed
        if iterations > known:
            first_s = self._first_s + known * self._growth_s
            self._queue.add(self.begin_s(known), first_s, self._growth_s, iterations - known, batch.sampled)
            self._streamed = iterations

    def _close_segment(self, batch: Batch, now_s: float) -> None:
        self._stream(batch, self._planned)
        self._streamed = 0
        super()._close_segment(batch, now_s)

    def fail(self, fresh: VllmScheduler) -> list[Sequence]:
        passing = sorted(self._passing, key=lambda seq: seq.id)
        return [*super().fail(fresh), *passing]
