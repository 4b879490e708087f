"""A collective compiled onto the edges of a topology, and its price for any size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sim.cost.collective_constants import LinkConstants, Method
from sim.cost.kernels import Floats
from sim.hardware.loads import Loads
from sim.hardware.routing import Edge
from sim.hardware.topology import Topology
from sim.hardware.topology_language import DIRECT_KINDS


class Hop(NamedTuple):
    """Serial steps of one sort."""

    kind: str
    """The kind of link that the software sees on their path."""
    steps: int
    wire_s: float
    """Sum of the edge latencies of one of them."""


@dataclass(slots=True)
class Phase:
    """Steps of a collective during which the same flows load the same edges."""

    family: str
    """Kernel family, which chooses the constants: ring, tree, peer, send, nvls, sharp, one_shot, two_shot, multimem."""
    hops: list[Hop] = field(default_factory=list)
    flows: dict[tuple[str, str], float] = field(default_factory=dict)
    """What one component sends to another, over the size of the collective."""
    connections: int = 1
    """Peers that a rank exchanges with at once."""
    given: Loads = field(default_factory=dict, compare=False, repr=False)
    """Loads that were counted without listing flows (a full exchange); they take the place of those of `flows`."""
    _loads: Loads | None = field(default=None, compare=False, repr=False)
    _rows: list[tuple[float, ...]] = field(default_factory=list, compare=False, repr=False)

    @property
    def steps(self) -> int:
        return sum(hop.steps for hop in self.hops)

    def add_flow(self, a: str, b: str, share: float) -> None:
        """Load the path from `a` to `b` with `share` of the size."""
        key = a, b
        self.flows[key] = self.flows.get(key, 0.0) + share

    def loads(self, topology: Topology) -> Loads:
        """Bytes on every edge of the topology's table over the size of the collective, by the kind of the paths they take."""
        if self._loads is None:
            self._loads = self.given or topology.loads(self.flows)
        return self._loads

    def rows(self, topology: Topology) -> list[tuple[float, ...]]:
        """Distinct loads of its edges: seconds a byte of the size at the full bandwidth, by path kind."""
        if not self._rows and (self.flows or self.given):
            loads = list(self.loads(topology).values())
            seconds = np.array(loads) / topology.table.rates()[: loads[0].size]
            used = seconds[:, seconds.any(axis=0)]
            self._rows = sorted(set(zip(*used.tolist(), strict=True)))
        return self._rows

    def shares(self, topology: Topology) -> dict[Edge, float]:
        """Bytes on every directed edge over the size of the collective."""
        edges, total = topology.table.edges, np.zeros(1)
        for amounts in self.loads(topology).values():
            total = total + amounts
        return {edges[k]: float(total[k]) for k in np.flatnonzero(total).tolist()}


@dataclass(slots=True)
class Plan:
    """An algorithm for one collective over one group of GPUs."""

    algorithm: str
    phases: list[Phase]
    launch: str
    """The launch cost it pays: nccl, peer, custom, or none beyond what its method takes to start."""
    protocols: tuple[str, ...]
    """LL, LL128, Simple; one empty string where the family has no choice."""
    copied: float = 1.0
    """Factor on the bandwidth part inside a node for the shard that a rank copies to itself."""
    limit_bytes: float = float("inf")
    """Largest message the software sends this way by its own choice; 0 where it never does."""

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)


# chunks that the pipelined phases of a hierarchical collective are cut into: ASTRA-sim's and SimCCL's default
CHUNKS = 4


class Price:
    """A plan under one protocol: a latency that never depends on bandwidth, and bandwidth seconds by size."""

    def __init__(
        self, topology: Topology, plan: Plan, protocol: str, constants: Mapping[str, LinkConstants], launch_s: float
    ) -> None:
        """Raise KeyError where a link of the plan's paths has no such protocol."""
        self.plan = plan
        self.protocol = protocol
        self.launch_s = launch_s
        self.latency_s = 0.0
        self._phases: list[list[tuple[float, float]]] = []
        starts: dict[str, float] = {}
        for phase in plan.phases:
            methods = {
                kind: method_of(constants[kind].methods, phase.family, protocol) for kind in phase.loads(topology)
            }
            for kind, method in methods.items():
                starts[kind] = max(starts.get(kind, 0.0), method.start_s + phase.connections * method.connection_s)
            self.latency_s += sum(hop.steps * (hop.wire_s + methods[hop.kind].step_s) for hop in phase.hops)
            self._phases.append(self._rows(topology, plan, phase, methods))
        # one kernel runs all phases: it sets up every kind of link once
        self.launch_s += sum(starts.values())

    def bandwidth_s(self, sizes: Floats) -> Floats:
        """Seconds of the bandwidth part for collectives of these sizes in bytes: T_max + (sum T - T_max) / chunks."""
        times = [self._phase_s(rows, sizes) for rows in self._phases]
        longest = np.max(times, axis=0)
        return np.asarray(longest + (np.sum(times, axis=0) - longest) / CHUNKS)

    @staticmethod
    def _phase_s(rows: list[tuple[float, float]], sizes: Floats) -> Floats:
        """Longest time of an edge; a row holds its seconds a byte and its seconds a root of a byte (the ramp)."""
        root = np.sqrt(sizes)
        slowest = np.zeros_like(sizes)
        for per_byte, per_root in rows:
            slowest = np.maximum(slowest, sizes * per_byte + root * per_root)
        return slowest

    @staticmethod
    def _rows(topology: Topology, plan: Plan, phase: Phase, methods: Mapping[str, Method]) -> list[tuple[float, float]]:
        """Distinct loads of the edges of a phase, each (seconds a byte, seconds a root of a byte)."""
        factors = []
        for kind, edges in phase.loads(topology).items():
            reach = _reach(methods[kind], phase.connections, plan.copied if kind in DIRECT_KINDS else 1.0)
            ramp_bytes = methods[kind].ramp_bytes
            factors.append(
                (1 / reach, math.sqrt(ramp_bytes / topology.table.most_sent(edges)) / reach if ramp_bytes else 0.0)
            )
        return [
            (
                sum(seconds * flat for seconds, (flat, _) in zip(row, factors, strict=True)),
                sum(seconds * root for seconds, (_, root) in zip(row, factors, strict=True)),
            )
            for row in phase.rows(topology)
        ]


def method_of(methods: Mapping[str, Method], family: str, protocol: str) -> Method:
    """The method of a family, which has one for every protocol or a single one; KeyError where it has neither."""
    return methods.get(f"{family}/{protocol}") or methods[family]


def _reach(method: Method, connections: int, copied: float) -> float:
    """Fraction of the link's bandwidth reached at large sizes."""
    return min(method.efficiency, method.connection_efficiency * connections) / copied
