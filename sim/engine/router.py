"""Which replica takes a request."""

from __future__ import annotations

from typing import Protocol

from sim.engine.replica import Replica
from sim.engine.sequence import Sequence


class Router(Protocol):
    """Chooses a replica for each request as it arrives."""

    def choose(self, replicas: list[Replica], seq: Sequence) -> Replica: ...


class LeastOutstanding:
    """The replica with the fewest requests that are not over; the first of them if several have as few."""

    def choose(self, replicas: list[Replica], seq: Sequence) -> Replica:
        if len(replicas) == 1:
            return replicas[0]
        return min(replicas, key=_outstanding)


def _outstanding(replica: Replica) -> int:
    return replica.outstanding
