"""The links of the topology as capacities of the fluid engine: which of them several replicas share, and how they are loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from sim.cost.collectives import Communicator
from sim.engine.deployment import Deployment
from sim.engine.fluid import Capacity
from sim.hardware.routing import Edge

_PROBES_BYTES = (65536.0, 1048576.0, 67108864.0)
"""Message sizes whose algorithms show which edges a group uses: latency-bound, in between, bandwidth-bound."""

Amounts = Callable[[int], Mapping[Capacity, float]]
"""Bytes on each shared link of one all-reduce of an iteration of so many tokens."""


class Wires:
    """Knows from the placement which replicas cross the same directed edges.

    Only shared edges become capacities: an edge with one user cannot slow it beyond the collective's own formula.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._capacities: dict[Edge, Capacity] = {}
        self._groups: dict[tuple[int, int], Communicator] = {}
        users: Counter[Edge] = Counter()
        edges: dict[int, set[Edge]] = {}
        for replica, stages in enumerate(deployment.placement):
            if len(deployment.placement) == 1 or all(self._alone(ranks) for ranks in stages):
                continue
            edges[replica] = {edge for stage in range(len(stages)) for edge in self._edges(replica, stage)}
            users.update(edges[replica])
        shared = {edge for edge, count in users.items() if count > 1}
        self.sharing = {replica: used & shared for replica, used in edges.items() if used & shared}
        """Replica -> the directed edges it shares with others."""

    def _alone(self, ranks: list[str]) -> bool:
        """Whether a group stays inside one NVLink (or Infinity Fabric) domain, where every link belongs to one GPU."""
        topology = self._deployment.topology
        return len(ranks) == 1 or len({topology.domain(gpu) for gpu in ranks}) == 1

    def _communicator(self, replica: int, stage: int) -> Communicator:
        key = (replica, stage)
        if key not in self._groups:
            ranks = self._deployment.placement[replica][stage]
            self._groups[key] = Communicator(self._deployment.topology, ranks, self._deployment.preset.software)
        return self._groups[key]

    def _edges(self, replica: int, stage: int) -> set[Edge]:
        if len(self._deployment.placement[replica][stage]) == 1:
            return set()
        communicator = self._communicator(replica, stage)
        return {edge for size in _PROBES_BYTES for edge in communicator.time("all_reduce", size).edge_bytes}

    def amounts(self, replica: int, stage: int, bytes_per_token: float) -> Amounts:
        """What the all-reduces of one stage put on the edges that its replica shares."""
        shared, known = self.sharing.get(replica, set()), dict[int, dict[Capacity, float]]()

        def of_tokens(tokens: int) -> Mapping[Capacity, float]:
            found = known.get(tokens)
            if found is None:
                loads = self._communicator(replica, stage).time("all_reduce", tokens * bytes_per_token).edge_bytes
                found = known[tokens] = {self._capacity(edge): load for edge, load in loads.items() if edge in shared}
            return found

        return of_tokens

    def _capacity(self, edge: Edge) -> Capacity:
        found = self._capacities.get(edge)
        if found is None:
            rate = float(self._deployment.topology.graph.edges[edge]["bandwidth_bytes_per_s"])
            found = self._capacities[edge] = Capacity(f"{edge[0]} -> {edge[1]}", rate)
        return found
