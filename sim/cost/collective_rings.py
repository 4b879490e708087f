"""Ring orders over a group: one a rail across nodes, edge-disjoint cycles where GPUs are wired point to point."""

from __future__ import annotations

from typing import NamedTuple

from sim.hardware.topology import Topology
from sim.hardware.topology_language import DIRECT_KINDS

# point-to-point machines hold at most eight GPUs; beyond that the search would not end
_LARGEST_SEARCH = 8


class Ring(NamedTuple):
    """A cyclic order of ranks and the share of the message that goes round it."""

    order: list[str]
    share: float


def find_rings(topology: Topology, nodes: list[list[str]]) -> list[Ring]:
    """Rings over the GPUs of `nodes`, whose shares sum to 1."""
    if len(nodes) == 1:
        members = nodes[0]
        wired = any(topology.graph.has_edge(members[0], other) for other in members[1:])
        if wired and 2 < len(members) <= _LARGEST_SEARCH:
            cycles = _disjoint_cycles(topology, members)
            if cycles:
                return cycles
        return [Ring(members, 1.0)]
    channels = min(len(members) for members in nodes)
    return [Ring(_rail_order(nodes, channel), 1 / channels) for channel in range(channels)]


def _rail_order(nodes: list[list[str]], channel: int) -> list[str]:
    """Into a node at one rail, through all its GPUs, out at the neighbouring rail, which the next node enters by."""
    order: list[str] = []
    for number, members in enumerate(nodes):
        start = channel % len(members)
        turned = members[start:] + members[:start]
        order += turned if number % 2 == 0 else turned[::-1]
    return order


def _disjoint_cycles(topology: Topology, members: list[str]) -> list[Ring]:
    """Hamiltonian cycles over direct links, the widest first, each taking its bandwidth away; [] if there is none."""
    edges = topology.graph.edges
    left = {
        (a, b): float(edges[a, b]["bandwidth_bytes_per_s"])
        for a in members
        for b in members
        if topology.graph.has_edge(a, b) and edges[a, b]["kind"] in DIRECT_KINDS
    }
    found: list[tuple[list[str], float]] = []
    while True:
        order = _widest_cycle(members, left)
        if not order:
            break
        hops = list(zip(order, order[1:] + order[:1], strict=True))
        width = min(left[hop] for hop in hops)
        for hop in hops:
            left[hop] -= width
        found.append((order, width))
    total = sum(width for _, width in found)
    return [Ring(order, width / total) for order, width in found]


def _widest_cycle(members: list[str], left: dict[tuple[str, str], float]) -> list[str]:
    """The Hamiltonian cycle whose narrowest link is widest, or [] if there is none."""
    for width in sorted({rate for rate in left.values() if rate > 0}, reverse=True):
        links = {a: [b for b in members if left.get((a, b), 0.0) >= width] for a in members}
        order = _cycle([members[0]], links, set(members[1:]))
        if order:
            return order
    return []


def _cycle(order: list[str], links: dict[str, list[str]], missing: set[str]) -> list[str]:
    if not missing:
        return order if order[0] in links[order[-1]] else []
    for following in links[order[-1]]:
        if following in missing:
            found = _cycle([*order, following], links, missing - {following})
            if found:
                return found
    return []
