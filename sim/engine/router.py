"""Which replica takes a request."""

from __future__ import annotations

from typing import Protocol

from sim.engine.replica import ServingReplica
from sim.engine.sequence import Sequence


class Router(Protocol):
    """Chooses a replica for each request as it arrives."""

    def choose(self, replicas: list[ServingReplica], seq: Sequence) -> ServingReplica: ...


class LeastOutstanding:
    """The replica with the fewest requests that are not over; the first of them if several have as few."""

    def choose(self, replicas: list[ServingReplica], seq: Sequence) -> ServingReplica:
        if len(replicas) == 1:
            return replicas[0]
        return min(replicas, key=_outstanding)


def _outstanding(replica: ServingReplica) -> int:
    return replica.outstanding
