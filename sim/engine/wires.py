"""The links of the topology as capacities of the fluid engine: which of them several replicas share, and how they are loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Items
from typing import Protocol

from sim.cost.collectives import Communicator
from sim.engine.deployment import Deployment
from sim.engine.fluid import Capacity
from sim.hardware.routing import Edge

_PROBES_BYTES = (65536.0, 1048576.0, 67108864.0)
"""Message sizes whose algorithms show which edges a group uses: latency-bound, in between, bandwidth-bound."""

Amounts = Callable[[int], Mapping[Capacity, float]]
"""Bytes on each shared link of one all-reduce of an iteration of so many tokens."""


class Disturbed(Protocol):
    """A replica that goes from leaps to layers while others are on its links."""

    def disturb(self, change: int) -> None: ...


class Wires:
    """Knows from the placement which replicas cross the same directed edges.

    Only shared edges become capacities: an edge with one user cannot slow it beyond the collective's own formula.
    """

    def __init__(self, fleet: Items[tuple[Deployment, int]], transfers: bool = False) -> None:
        """
        Args:
            fleet: (deployment, number of the replica in it) of every replica.
            transfers: KV caches travel between replicas, so any edge may be shared.
        """
        self._fleet = fleet
        self._capacities: dict[Edge, Capacity] = {}
        self._groups: dict[tuple[int, int], Communicator] = {}
        self._listeners: dict[Capacity, list[Disturbed]] = {}
        users: Counter[Edge] = Counter()
        edges: dict[int, set[Edge]] = {}
        for index, (deployment, replica) in enumerate(fleet):
            stages = deployment.placement[replica]
            lonely = len(stages) == 1 and self._alone(deployment, stages[0])
            if not transfers and (len(fleet) == 1 or lonely):
                continue
            edges[index] = {edge for stage in range(len(stages)) for edge in self._edges(index, stage)}
            users.update(edges[index])
        shared = {edge for edge, count in users.items() if count > 1}
        self.sharing = {index: used & shared for index, used in edges.items() if used & shared}
        """Replica -> the directed edges that its collectives share with others' collectives, all the time."""
        self._loaded = edges if transfers else self.sharing
        """Replica -> the edges on which its collectives may meet other traffic."""

    @staticmethod
    def _alone(deployment: Deployment, ranks: list[str]) -> bool:
        """Whether a group stays inside one NVLink (or Infinity Fabric) domain, where every link belongs to one GPU."""
        topology = deployment.topology
        return len(ranks) == 1 or len({topology.domain(gpu) for gpu in ranks}) == 1

    def _communicator(self, index: int, stage: int) -> Communicator:
        key = (index, stage)
        if key not in self._groups:
            deployment, replica = self._fleet[index]
            self._groups[key] = deployment.communicator(deployment.placement[replica][stage])
        return self._groups[key]

    def _hand_over(self, index: int, stage: int) -> Communicator:
        """The GPUs of a stage and of the next: the first half sends to the second."""
        key = (index, -1 - stage)
        if key not in self._groups:
            deployment, replica = self._fleet[index]
            stages = deployment.placement[replica]
            self._groups[key] = deployment.communicator([*stages[stage], *stages[stage + 1]])
        return self._groups[key]

    def _edges(self, index: int, stage: int) -> set[Edge]:
        """The edges that a stage's all-reduces and its hand-over to the next use."""
        deployment, replica = self._fleet[index]
        stages, used = deployment.placement[replica], set[Edge]()
        for size in _PROBES_BYTES:
            if len(stages[stage]) > 1:
                used.update(self._communicator(index, stage).time("all_reduce", size).edge_bytes)
            if stage + 1 < len(stages):
                used.update(self._hand_over(index, stage).time("send_recv", size).edge_bytes)
        return used

    def hand_over_amounts(self, index: int, stage: int, bytes_per_token: float) -> Amounts | None:
        """What the hand-over from one stage to the next puts on edges where it may meet others; None if there are none."""
        if index not in self._loaded:
            return None
        return self._amounts(index, self._hand_over(index, stage), "send_recv", bytes_per_token)

    def amounts(self, index: int, stage: int, bytes_per_token: float) -> Amounts | None:
        """What the all-reduces of one stage of a replica put on edges where they may meet others; None if there are none."""
        if index not in self._loaded or not bytes_per_token:
            return None
        return self._amounts(index, self._communicator(index, stage), "all_reduce", bytes_per_token)

    def _amounts(self, index: int, communicator: Communicator, op: str, bytes_per_token: float) -> Amounts:
        loaded, known = self._loaded[index], dict[int, dict[Capacity, float]]()

        def of_tokens(tokens: int) -> Mapping[Capacity, float]:
            found = known.get(tokens)
            if found is None:
                loads = communicator.time(op, tokens * bytes_per_token).edge_bytes
                found = known[tokens] = {self.capacity(edge): load for edge, load in loads.items() if edge in loaded}
            return found

        return of_tokens

    def capacity(self, edge: Edge) -> Capacity:
        """The capacity that stands for a directed edge."""
        found = self._capacities.get(edge)
        if found is None:
            rate = float(self._fleet[0][0].topology.graph.edges[edge]["bandwidth_bytes_per_s"])
            found = self._capacities[edge] = Capacity(f"{edge[0]} -> {edge[1]}", rate)
        return found

    def listen(self, index: int, replica: Disturbed) -> None:
        """`replica` wants to know of transfers on the edges of its collectives."""
        for edge in sorted(self._loaded.get(index, ())):
            self._listeners.setdefault(self.capacity(edge), []).append(replica)

    def listeners(self, capacities: Iterable[Capacity]) -> list[Disturbed]:
        """The replicas whose collectives use any of these edges."""
        return list(dict.fromkeys(replica for c in capacities for replica in self._listeners.get(c, ())))
