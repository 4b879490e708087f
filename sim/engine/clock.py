"""The clock of a run: SimPy's event queue, and beside it a stream of arrivals that is sorted already."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

import simpy
from simpy.core import Infinity
from simpy.events import URGENT, Event

CALL_PRIORITY = 2
"""Of calls in the queue: after the events of their instant (0 and 1 in SimPy) and after its arrivals."""


class Clock(simpy.Environment):
    """A SimPy environment that knows how many events it has seen, and takes arrivals from a sorted stream.

    Arrivals are sorted, so they need no place in the event queue: one costs a comparison with the head of the queue. The most
    frequent events, the ends of iterations, are in the queue as bare calls, not as SimPy events, for nothing waits for them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.due_s: float = Infinity
        """When the next arrival is due."""
        self.arrive: Callable[[], None] = _nobody
        """Handles the arrival that is due, and sets `due_s` to the one after; nothing else changes `due_s` during a run."""
        self.arrivals = 0
        self.stopped = False
        """Set by whoever has seen enough: `drain` returns."""

    @property
    def events(self) -> int:
        """Events so far, arrivals included (SimPy numbers its own to break ties)."""
        return next(self._eid) + self.arrivals

    def peek(self) -> float:
        """When something happens next; infinity: never."""
        return min(super().peek(), self.due_s)

    def call_at(self, at_s: float, call: Callable[[int], None]) -> int:
        """Calls `call(number)` at exactly `at_s`, after everything else of that instant; returns that number."""
        number = next(self._eid)
        queue: list[Any] = self._queue
        heappush(queue, (at_s, CALL_PRIORITY, number, call))
        return number

    def stop_at(self, time_s: float) -> None:
        """`drain` returns at `time_s`, before anything that happens just then."""
        end = Event(self)
        end._ok, end._value = True, None  # as Environment.run(until) does: succeed() would schedule it now
        end.callbacks = [self._stop]
        self.schedule(end, URGENT, time_s - self._now)

    def _stop(self, _: Event) -> None:
        self.stopped = True

    def drain(self) -> None:
        """Runs until it is stopped or nothing is left to happen; SimPy's own `run` knows of no arrivals and no calls."""
        queue: list[Any] = self._queue
        due_s = self.due_s
        while not self.stopped:
            if queue and ((first := queue[0])[0] < due_s or (first[0] == due_s and first[1] < CALL_PRIORITY)):
                self._now, priority, number, event = heappop(queue)
                if priority == CALL_PRIORITY:
                    event(number)
                    continue
                callbacks, event.callbacks = event.callbacks, None
                for callback in callbacks:
                    callback(event)
                if not event._ok and not hasattr(event, "_defused"):
                    raise event._value
            elif due_s < Infinity:
                self._now = due_s
                self.arrivals += 1
                self.arrive()
                due_s = self.due_s
            else:
                return


def _nobody() -> None:
    """Nobody arrives."""
