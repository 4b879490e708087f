"""Replicas that fail, come back, start cold, or come and go with the load.

A replica that fails loses its KV cache and the iteration under way; its requests go back to the router with the tokens that
their clients have, and are computed again elsewhere. One that starts first loads its weights; one that the load does not need
takes no more requests and is gone once it has answered those it has.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from math import ceil
from typing import Protocol

import simpy
from simpy.events import Event, Timeout

from sim.engine.batching import VllmScheduler
from sim.engine.deployment import Deployment
from sim.engine.replica import Replica
from sim.engine.sequence import Sequence
from sim.errors import InputError
from sim.hardware.routing import Edge
from sim.model.balance import MemoryLedger
from sim.scenario.fleet import Autoscale, FleetEvent

UP, DOWN, STARTING, DRAINING = "up", "down", "starting", "draining"


class Entrance(Protocol):
    """Where requests are handed to replicas."""

    @property
    def homeless(self) -> int:
        """Requests that no replica is there for."""
        ...

    def open(self, replica: Replica) -> None:
        """`replica` takes requests from now on."""
        ...

    def close(self, replica: Replica) -> None:
        """`replica` takes no more requests."""
        ...

    def send_again(self, seqs: Items[Sequence]) -> None:
        """Requests whose replica is gone."""
        ...


class FleetEvents:
    """Who is there, and since when.

    Args:
        entrance: to the replicas that are there.
        replicas: all that are deployed.
        start_s: time that each takes from nothing until it serves.
        fresh: makes an empty scheduler for a replica.
    """

    def __init__(
        self,
        env: simpy.Environment,
        entrance: Entrance,
        replicas: Items[Replica],
        start_s: Items[float],
        fresh: Callable[[int], VllmScheduler],
    ) -> None:
        self._env = env
        self._entrance = entrance
        self._replicas = list(replicas)
        self._start_s = list(start_s)
        self._fresh = fresh
        self.state = [UP] * len(self._replicas)
        self._starts = [0] * len(self._replicas)
        """How often each has begun to start: a start that a failure cuts short is not the latest any more."""
        self._changes: list[tuple[float, int]] = []
        """(time, change) of the number of replicas that hold their GPUs."""

    # --- what happens to one -------------------------------------------------------------------------------------------------

    def absent(self, index: int) -> None:
        """A replica that is not there when the run begins."""
        self._entrance.close(self._replicas[index])
        self._become(index, DOWN)

    def fail(self, index: int) -> None:
        """A replica is gone now, with all it holds."""
        if self.state[index] == UP:
            self._entrance.close(self._replicas[index])
        served = self.state[index] in (UP, DRAINING)
        self._become(index, DOWN)
        self._starts[index] += 1
        if served:
            self._entrance.send_again(self._replicas[index].fail(self._fresh(index)))

    def start(self, index: int) -> None:
        """A replica begins to start; it serves when it has its weights."""
        if self.state[index] != DOWN:
            return
        self._become(index, STARTING)
        self._starts[index] = number = self._starts[index] + 1

        def ready(_: Event) -> None:
            if self._starts[index] == number and self.state[index] == STARTING:
                self._become(index, UP)
                self._entrance.open(self._replicas[index])

        _at(self._env, self._start_s[index], ready)

    def drain(self, index: int) -> None:
        """A replica takes no more requests; `release` lets it go once it has none."""
        self._entrance.close(self._replicas[index])
        self._become(index, DRAINING)
        self.release()

    def keep(self, index: int) -> None:
        """A replica that was to go stays."""
        self._become(index, UP)
        self._entrance.open(self._replicas[index])

    def release(self) -> None:
        """Lets those go that have nothing left to do; they come back cold."""
        for index, replica in enumerate(self._replicas):
            if self.state[index] == DRAINING and not replica.outstanding:
                self._become(index, DOWN)
                replica.fail(self._fresh(index))

    def _become(self, index: int, state: str) -> None:
        change = (state != DOWN) - (self.state[index] != DOWN)
        if change:
            self._changes.append((self._env.now, change))
        self.state[index] = state

    # --- by plan, or by load -------------------------------------------------------------------------------------------------

    def play(self, events: Items[FleetEvent]) -> None:
        """Each event at its time."""
        first: dict[int, FleetEvent] = {}
        for event in sorted(events, key=lambda event: event.at_s):
            first.setdefault(event.replica, event)
            self._plan(event)
        for index, event in first.items():
            if event.event == "start":
                self.absent(index)

    def _plan(self, event: FleetEvent) -> None:
        act = self.fail if event.event == "fail" else self.start
        _at(self._env, event.at_s, lambda _: act(event.replica))

    def follow(self, rule: Autoscale) -> None:
        """As many replicas as the load needs, looked at every interval: ceil(outstanding / target), between min and max.

        The formula is that of Kubernetes' horizontal pod autoscaler for a target a replica; it has no delay before scaling
        down here.
        """
        most = len(self._replicas) if rule.max is None else rule.max
        for index in range(rule.min, len(self._replicas)):
            self.absent(index)

        def look(_: Event) -> None:
            before = list(self.state)
            self.release()
            outstanding = self._entrance.homeless + sum(replica.outstanding for replica in self._replicas)
            self._scale(min(max(ceil(outstanding / rule.target_outstanding), rule.min), most))
            if self.state != before or self._env.peek() != float("inf"):  # else nothing can happen any more
                _at(self._env, rule.interval_s, look)

        _at(self._env, rule.interval_s, look)

    def _scale(self, wanted: int) -> None:
        """Starts the first that are not there, or drains those with the fewest requests."""
        more = wanted - sum(state in (UP, STARTING) for state in self.state)
        for state, act in ((DRAINING, self.keep), (DOWN, self.start)):
            for index in [i for i, s in enumerate(self.state) if s == state][: max(more, 0)]:
                act(index)
                more -= 1
        up = [i for i, s in enumerate(self.state) if s == UP]
        for index in sorted(up, key=lambda i: (self._replicas[i].outstanding, -i))[: max(-more, 0)]:
            self.drain(index)

    def note(self, end_s: float) -> str:
        """What a result says of it."""
        return f"fleet: {self.mean_replicas(end_s):.2f} of {len(self._replicas)} replicas held their GPUs in the mean"

    def mean_replicas(self, end_s: float) -> float:
        """Replicas that held their GPUs, in the mean over the run."""
        held = len(self._replicas) * end_s + sum(change * (end_s - at_s) for at_s, change in self._changes)
        return held / end_s if end_s else float(len(self._replicas))


def _at(env: simpy.Environment, delay_s: float, act: Callable[[Event], None]) -> None:
    timer = Timeout(env, delay_s)
    assert timer.callbacks is not None
    timer.callbacks.append(act)


def weights_s(deployment: Deployment, memory: MemoryLedger, replica: int, source: str) -> float:
    """Seconds to load a replica's weights: the bytes of all its GPUs over the busiest link on their ways.

    Args:
        memory: ledger of the deployment.
        source: host (the memory of the nearest socket) or network (the switch that a node's port leads to).
    """
    weights = {row.gpu: row.weights_bytes for row in memory.per_gpu}
    edges = deployment.topology.graph.edges
    loads: dict[Edge, float] = {}
    for stage in deployment.placement[replica]:
        for gpu in stage:
            for edge in _way_in(deployment, gpu, source):
                loads[edge] = loads.get(edge, 0.0) + weights[gpu]
    return max(load / float(edges[edge]["bandwidth_bytes_per_s"]) for edge, load in loads.items())


def _way_in(deployment: Deployment, gpu: str, source: str) -> tuple[Edge, ...]:
    """The directed edges from a source of weights to a GPU."""
    topology = deployment.topology
    kind, node = ("cpu", topology.node_of[gpu]) if source == "host" else ("switch", None)
    found = [name for name, data in topology.graph.nodes(data=True) if data["type"] == kind and data["node"] == node]
    if not found:
        where = f"{deployment.scenario.where}: deployment.cold_start.weights_from"
        raise InputError(where, f"got {source}, but {topology.name} has no {kind} for {gpu}", "use the other one")
    return min((topology.path(name, gpu) for name in found), key=len)
