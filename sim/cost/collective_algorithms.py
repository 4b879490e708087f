"""Collective algorithms as phases on the graph: who sends how much of the message to whom, in how many serial steps.

Sizes follow nccl-tests: the whole buffer of a rank for all_reduce, all_to_all, broadcast and send_recv; the gathered buffer
for all_gather; the buffer before the reduction for reduce_scatter.

References: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations" (2009), the ring;
Sanders, Speck and Traeff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan" (2009), the double
binary tree; Klenk et al., "An in-network architecture for accelerating shared-memory multiprocessor collectives" (2020),
NVLS; Graham et al., "SHARP" (2016).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

from sim.cost.collective_constants import LOCAL_COPY
from sim.cost.collective_plan import Hop, Phase, Plan
from sim.cost.collective_rings import Ring, find_rings
from sim.hardware.exchange import Exchange
from sim.hardware.routing import SOFTWARE_ORDER
from sim.hardware.topology import Topology
from sim.hardware.topology_language import DIRECT_KINDS, NETWORK_KINDS, PCIE_KINDS

NCCL_PROTOCOLS = ("LL", "LL128", "Simple")


class Group:
    """The GPUs of a collective, in rank order, by island: a node, or what one NVLink switch joins beyond it."""

    def __init__(self, topology: Topology, gpus: Sequence[str]) -> None:
        self.topology = topology
        self.gpus = list(gpus)
        nodes: dict[int, list[str]] = {}
        for gpu in gpus:
            nodes.setdefault(topology.island(gpu), []).append(gpu)
        self.nodes = list(nodes.values())
        self.channels = min(len(members) for members in self.nodes)
        """Rings or trees that run side by side, each through another GPU (and NIC) of every node."""

    def __len__(self) -> int:
        return len(self.gpus)

    @cached_property
    def rings(self) -> list[Ring]:
        """Ring orders over the group, with the share of the message on each."""
        return find_rings(self.topology, self.nodes)

    @cached_property
    def exchange(self) -> Exchange:
        """The ways from every GPU to every other."""
        return self.topology.exchange(self.gpus)

    def hop(self, a: str, b: str, steps: int = 1) -> Hop:
        route = self.topology.route(a, b)
        return Hop(route.kind, steps, route.latency_s)

    def hops(self, pairs: Sequence[tuple[str, str]], steps: int = 1) -> list[Hop]:
        """`steps` steps over every pair."""
        ways = self.topology.pairs(pairs)
        return [Hop(ways.kind(k), steps, wire_s) for k, wire_s in enumerate(ways.latency_s.tolist())]

    def slowest_hop(self, pairs: Sequence[tuple[str, str]], count: int) -> Hop:
        """`count` steps over the slowest pair: the slowest software before the longest wires."""
        return min(self.hops(pairs, count), key=lambda hop: (SOFTWARE_ORDER[hop.kind], -hop.wire_s))

    def reducing_switch(self) -> str | None:
        """The NVSwitch that reduces in hardware and joins all GPUs directly."""
        graph = self.topology.graph
        common = set(graph.successors(self.gpus[0])).intersection(*(graph.successors(gpu) for gpu in self.gpus[1:]))
        return next((s for s in sorted(common) if graph.nodes[s]["in_network_reduction"]), None)

    def direct(self) -> bool:
        """Whether every pair reaches the other over NVLink or Infinity Fabric without a third GPU between."""
        relays = self.topology.node_of
        paths = (self.topology.path(a, b) for a in self.gpus for b in self.gpus if a != b)
        edges = self.topology.graph.edges
        return all(
            edges[edge]["kind"] in DIRECT_KINDS and (edge[0] == path[0][0] or edge[0] not in relays)
            for path in paths
            for edge in path
        )

    def reads_peers(self) -> bool:
        """Whether an engine's kernels read every peer's memory: over direct links, or two GPUs over PCIe past the CPUs."""
        if len(self) != 2 or self.direct():
            return self.direct()
        graph = self.topology.graph
        route = self.topology.route(*self.gpus)
        # a route through a CPU goes through its memory: what software falls back to where a peer cannot be read
        return route.kind in PCIE_KINDS and all(graph.nodes[end]["type"] != "cpu" for _, end in route.edges)


def ring(group: Group, op: str) -> Plan:
    """Rings through all ranks; across nodes one for each rail. Each edge carries 2(n-1)/n of the size (all-reduce)."""
    n = len(group)
    phase = Phase("ring")
    share = {"all_reduce": 2 * (n - 1) / n, "broadcast": 1.0}.get(op, (n - 1) / n)
    steps = 2 * (n - 1) if op == "all_reduce" else n - 1
    for loop in group.rings:
        pairs = list(zip(loop.order, loop.order[1:] + loop.order[:1], strict=True))
        for a, b in pairs[: n - 1] if op == "broadcast" else pairs:
            phase.add_flow(a, b, share * loop.share)
    phase.hops = _ring_hops(group, group.rings[0], steps)
    copy = LOCAL_COPY.get(op, 0.0)
    return Plan("ring", [phase], "nccl", NCCL_PROTOCOLS, copied=(n - 1 + copy) / (n - 1))


def _ring_hops(group: Group, loop: Ring, steps: int) -> list[Hop]:
    """The longest chain of `steps` consecutive hops round the ring."""
    hops = group.hops(list(zip(loop.order, loop.order[1:] + loop.order[:1], strict=True)))
    rounds, rest = divmod(steps, len(hops))
    # the kind of a hop costs more than its wires: rank windows by network hops first
    weights = [hop.wire_s + (1.0 if hop.kind in NETWORK_KINDS else 0.0) for hop in hops]
    window = sum(weights[:rest])
    best, start = window, 0
    for k in range(1, len(hops)):
        window += weights[(k + rest - 1) % len(hops)] - weights[k - 1]
        if window > best + 1e-15:
            best, start = window, k
    counts: dict[tuple[str, float], int] = {}
    for k, hop in enumerate(hops):
        times = rounds + (1 if (k - start) % len(hops) < rest else 0)
        counts[hop.kind, hop.wire_s] = counts.get((hop.kind, hop.wire_s), 0) + times
    return [Hop(kind, count, wire_s) for (kind, wire_s), count in counts.items()]


def tree(group: Group, op: str) -> Plan:
    """Chains inside the nodes, a double binary tree across them, reduction up and broadcast down at the same time."""
    phase = Phase("tree")
    both_ways = op == "all_reduce"
    share = 1 / group.channels
    for members in group.nodes:
        # the chain of each channel begins at another GPU, and has no edge into the GPU that it begins at
        heads = Counter(channel % len(members) for channel in range(group.channels))
        for k, child in enumerate(members):
            if heads[k] < group.channels:
                _tree_flow(phase, members[k - 1], child, share * (group.channels - heads[k]), both_ways)
    branches = _double_tree(len(group.nodes))
    for channel in range(group.channels):
        turned = [members[channel % len(members)] for members in group.nodes]
        for upper, lower in branches:
            _tree_flow(phase, turned[upper], turned[lower], share / 2, both_ways)
    ways = 2 if both_ways else 1
    longest = max(group.nodes, key=len)
    if len(longest) > 1:
        pairs = list(itertools.pairwise(longest))
        phase.hops.append(group.slowest_hop(pairs, ways * (len(longest) - 1)))
    if len(group.nodes) > 1:
        phase.hops.append(_across(group, ways * depth(len(group.nodes))))
    return Plan("tree", [phase], "nccl", NCCL_PROTOCOLS)


def _tree_flow(phase: Phase, parent: str, child: str, share: float, both_ways: bool) -> None:
    phase.add_flow(parent, child, share)
    if both_ways:
        phase.add_flow(child, parent, share)


def depth(nodes: int) -> int:
    """Levels below the root of a binary tree over `nodes`."""
    return nodes.bit_length() - 1


def _double_tree(nodes: int) -> list[tuple[int, int]]:
    """(parent, child) of two binary trees over the nodes; what is inside one is a leaf of the other."""
    one = [((child - 1) // 2, child) for child in range(1, nodes)]
    return one + [(nodes - 1 - parent, nodes - 1 - child) for parent, child in one]


def _across(group: Group, count: int) -> Hop:
    firsts = [members[0] for members in group.nodes]
    return group.slowest_hop(list(itertools.pairwise(firsts)), count)


def in_switch(group: Group, switch: str, family: str, launch: str) -> Plan:
    """The NVSwitch reduces what all ranks hold and sends the sum to all (NVLS in NCCL, multimem in custom kernels)."""
    phase = Phase(family)
    n = len(group)
    for gpu in group.gpus:
        # it reads its own shard reduced (1/n in) and writes the sum (1/n out); the switch pulls all n shards and sends them back
        phase.add_flow(gpu, switch, 1 + 1 / n)
        phase.add_flow(switch, gpu, 1 + 1 / n)
    phase.hops = [group.slowest_hop([(group.gpus[0], gpu) for gpu in group.gpus[1:]], 2)]
    return Plan(family, [phase], launch, ("",))


def hierarchical(group: Group, switch_inside: bool) -> Plan:
    """Reduce-scatter inside every node, all-reduce across the nodes by rail, all-gather inside (NCCL: NVLSTree)."""
    across = Phase("tree")
    share = 1 / group.channels
    pairs = _double_tree(len(group.nodes))
    for rail in range(group.channels):
        for parent, child in pairs:
            ends = group.nodes[parent][rail], group.nodes[child][rail]
            _tree_flow(across, *ends, share / 2, both_ways=True)
    across.hops = [_across(group, 2 * depth(len(group.nodes)))]
    scatter, gather = _inside(group, switch_inside)
    return Plan("hierarchical", [scatter, across, gather], "nccl", ("Simple",))


def sharp(group: Group, switch_inside: bool) -> Plan | None:
    """As hierarchical, with a network switch reducing each rail; None where no such switch joins a rail."""
    topology, across = group.topology, Phase("sharp")
    hop = None
    for rail in range(group.channels):
        members = [node[rail] for node in group.nodes]
        crossed = [{edge[1] for edge in topology.path(members[0], other)} for other in members[1:]]
        data = topology.graph.nodes
        common = [
            s for s in set.intersection(*crossed) if data[s]["type"] == "switch" and data[s]["in_network_reduction"]
        ]
        if not common:
            return None
        switch = min(common)
        for gpu in members:
            across.add_flow(gpu, switch, 1 / group.channels)
            across.add_flow(switch, gpu, 1 / group.channels)
        hop = group.hop(members[0], switch, 2)
    across.hops = [hop] if hop else []
    scatter, gather = _inside(group, switch_inside)
    return Plan("sharp", [scatter, across, gather], "nccl", ("Simple",))


def _inside(group: Group, switch_inside: bool) -> tuple[Phase, Phase]:
    """Reduce-scatter before and all-gather after, inside every node of a group of equal nodes."""
    scatter, gather = (Phase("nvls" if switch_inside else "ring") for _ in range(2))
    m = group.channels
    if m == 1:
        return scatter, gather
    for members in group.nodes:
        switch = Group(group.topology, members).reducing_switch() if switch_inside else None
        for k, gpu in enumerate(members):
            if switch is None:
                for phase in (scatter, gather):
                    phase.add_flow(gpu, members[(k + 1) % m], (m - 1) / m)
                continue
            for phase, out, back in ((scatter, 1.0, 1 / m), (gather, 1 / m, 1.0)):
                phase.add_flow(gpu, switch, out)
                phase.add_flow(switch, gpu, back)
    neighbours = [pair for members in group.nodes for pair in itertools.pairwise(members)]
    slowest = group.slowest_hop(neighbours, 1 if switch_inside else m - 1)
    scatter.hops, gather.hops = [slowest], [slowest]
    return scatter, gather


def exchange(group: Group, share: float, steps: int, family: str, launch: str, protocols: tuple[str, ...]) -> Plan:
    """Every rank sends `share` of the size to every other at once (one-shot, two-shot, all-to-all)."""
    ways = group.exchange
    loads = {kind: share * number for kind, number in ways.loads.items()}
    phase = Phase(family, [Hop(ways.kind, steps, ways.latency_s)], connections=len(group) - 1, given=loads)
    return Plan(family if family != "peer" else "direct", [phase], launch, protocols)


def point_to_point(group: Group) -> Plan:
    """The first half of the ranks sends the size to the second half, pair by pair, at once."""
    half = len(group) // 2
    phase = Phase("send")
    pairs = list(zip(group.gpus[:half], group.gpus[half:], strict=True))
    for a, b in pairs:
        phase.add_flow(a, b, 1.0)
    phase.hops = [group.slowest_hop(pairs, 1)]
    return Plan("direct", [phase], "peer", ("LL", "Simple"))
