"""Ring orders over a group: one a rail across nodes, cycles over the links where GPUs are wired point to point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

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
            cycles = _best_cycles(topology, members)
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


def _best_cycles(topology: Topology, members: list[str]) -> list[Ring]:
    """Hamiltonian cycles over direct links with the shares that bring most bandwidth in all; [] if there is none.

    A linear programme over every cycle: maximise the sum of their rates while no link carries more than its bandwidth. Its
    optimum grows with every bandwidth, so a faster link never makes a ring slower, as a greedy choice would.
    """
    from scipy.optimize import linprog

    edges = topology.graph.edges
    links = {
        a: [b for b in members if topology.graph.has_edge(a, b) and edges[a, b]["kind"] in DIRECT_KINDS]
        for a in members
    }
    cycles = list(_cycles([members[0]], links, set(members[1:])))
    if not cycles:
        return []
    used = sorted({(a, b) for a, followers in links.items() for b in followers})
    rates = np.array([edges[edge]["bandwidth_bytes_per_s"] for edge in used])
    row = {edge: k for k, edge in enumerate(used)}
    load = np.zeros((len(used), len(cycles)))
    for column, order in enumerate(cycles):
        load[[row[hop] for hop in zip(order, order[1:] + order[:1], strict=True)], column] = 1.0
    widest = rates.max()
    found = linprog(-np.ones(len(cycles)), A_ub=load, b_ub=rates / widest, method="highs")
    total = found.x.sum()
    return [
        Ring(order, float(share / total)) for order, share in zip(cycles, found.x, strict=True) if share > 1e-9 * total
    ]


def _cycles(order: list[str], links: dict[str, list[str]], missing: set[str]) -> Iterator[list[str]]:
    if not missing:
        if order[0] in links[order[-1]]:
            yield order
        return
    for following in links[order[-1]]:
        if following in missing:
            yield from _cycles([*order, following], links, missing - {following})
