"""The end of an iteration as an event on the clock."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush

import simpy
from simpy.events import Event

BOUNDARY_PRIORITY = 2
"""After arrivals of the same instant: an arrival exactly at an iteration's end is seen by the next schedule."""


class Boundary:
    """The end of an iteration at `at_s`, to the last digit; it comes after everything else of its instant.

    The clock asks an event for its callbacks and whether it failed; nothing waits for this one, which makes it much lighter.
    """

    __slots__ = ("callbacks",)
    _ok = True

    def __init__(self, env: simpy.Environment, at_s: float, callback: Callable[[Event], None]) -> None:
        self.callbacks: tuple[Callable[[Event], None], ...] | None = (callback,)
        # as env.schedule() does, which takes a delay and so rounds
        heappush(env._queue, (at_s, BOUNDARY_PRIORITY, next(env._eid), self))  # type: ignore[misc]  # SimPy compares numbers
