"""Routes inside a node, searched once for all nodes that are wired alike: a fabric of thousands of nodes has few kinds."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Adjacency = Mapping[str, Mapping[str, Mapping[str, Any]]]

# a GPU passes traffic on only where no switch does: relaying costs a kernel, here far more latency than any wire
RELAY_S = 1e-3
# NCCL gives every GPU its own NIC and crosses a spine rather than load a neighbour's
OTHER_NIC_S = 1e-5
# breaks ties of latency: fewer hops first
TIE_S = 1e-12
_NEVER = float("inf")


class _Wiring(NamedTuple):
    """How a node is wired, without names: equal wirings have equal routes."""

    types: tuple[str, ...]
    links: tuple[tuple[tuple[int, float], ...], ...]
    """(position of the neighbour, latency) of every component, in the order of the graph."""
    exits: tuple[float, ...]
    """Lowest latency of a link out of the node; infinity where there is none."""
    entries: tuple[float, ...]


class LocalWays:
    """Routes between components of one node that stay inside it, where none through the fabric can be shorter."""

    def __init__(self, adjacency: Adjacency, types: Mapping[str, str], nodes: Mapping[str, str | None]) -> None:
        """
        Args:
            adjacency: from -> to -> attributes of the link.
            types: component -> gpu, nvswitch, ...
            nodes: component -> its node; None in the fabric.
        """
        self._adjacency = adjacency
        self._types = types
        self._node_of = nodes
        self._members: dict[str, list[str]] = {}
        for name, node in nodes.items():
            if node is not None:
                self._members.setdefault(node, []).append(name)
        self._position = {name: k for members in self._members.values() for k, name in enumerate(members)}
        self._entries: dict[str, float] | None = None
        self._wirings: dict[str, _Wiring] = {}
        self._alike: dict[_Wiring, _Wiring] = {}
        self._found: dict[tuple[int, int, int, tuple[int, ...]], list[int] | None] = {}

    def hops(self, a: str, b: str, own_nics: Sequence[str | None]) -> list[str] | None:
        """The components on the route from `a` to `b` of the same node; None where one through the fabric may be shorter."""
        node = self._node_of[a]
        if node is None:
            return None
        members = self._members[node]
        wiring = self._wiring(node)
        own = tuple([self._position[nic] for nic in own_nics if nic is not None])
        key = id(wiring), self._position[a], self._position[b], own
        if key not in self._found:
            self._found[key] = _inside(wiring, self._position[a], self._position[b], own)
        found = self._found[key]
        return None if found is None else [members[k] for k in found]

    def _wiring(self, node: str) -> _Wiring:
        found = self._wirings.get(node)
        if found is None:
            members, entries, position = self._members[node], self._entering(), self._position
            links, exits = [], []
            for name in members:
                inside, leaving = [], [_NEVER]
                for other, data in self._adjacency[name].items():
                    if self._node_of[other] == node:
                        inside.append((position[other], data["latency_s"]))
                    else:
                        leaving.append(data["latency_s"])
                links.append(tuple(inside))
                exits.append(min(leaving))
            entering = tuple([entries.get(name, _NEVER) for name in members])
            wiring = _Wiring(tuple([self._types[name] for name in members]), tuple(links), tuple(exits), entering)
            found = self._wirings[node] = self._alike.setdefault(wiring, wiring)
        return found

    def _entering(self) -> dict[str, float]:
        """Lowest latency of a link into every component from outside its node."""
        if self._entries is None:
            self._entries = {}
            for a, out in self._adjacency.items():
                for b, data in out.items():
                    if self._node_of[b] is not None and self._node_of[b] != self._node_of[a]:
                        self._entries[b] = min(self._entries.get(b, _NEVER), data["latency_s"])
        return self._entries


def _inside(wiring: _Wiring, a: int, b: int, own: tuple[int, ...]) -> list[int] | None:
    """The route of least latency from `a` to `b`; None where leaving the node and coming back may be shorter."""
    cost, before = _least(wiring, wiring.links, a, own)
    if b not in cost or cost[b] >= RELAY_S:
        return None
    back: list[list[tuple[int, float]]] = [[] for _ in wiring.types]
    for k, links in enumerate(wiring.links):
        for other, latency_s in links:
            back[other].append((k, latency_s))
    # a lower bound: without the cost of detours and relays the way back in looks shorter than it is
    left = min(cost[k] + wiring.exits[k] for k in cost)
    reach = _plain(back, b)
    entered = min(wiring.entries[k] + reach[k] for k in reach)
    if cost[b] > left + entered:
        return None
    way = [b]
    while way[-1] != a:
        way.append(before[way[-1]])
    return way[::-1]


def _least(
    wiring: _Wiring, links: Sequence[Sequence[tuple[int, float]]], a: int, own: tuple[int, ...]
) -> tuple[dict[int, float], dict[int, int]]:
    """(latency from `a`, component before it) of every component, by Dijkstra; relays and the NICs of other GPUs cost extra."""
    cost: dict[int, float] = {}
    before: dict[int, int] = {}
    order = itertools.count()
    heap: list[tuple[float, int, int, int]] = [(0.0, next(order), a, a)]
    while heap:
        spent, _, k, previous = heapq.heappop(heap)
        if k in cost:
            continue
        cost[k], before[k] = spent, previous
        relay = RELAY_S if k != a and wiring.types[k] == "gpu" else 0.0
        for other, latency_s in links[k]:
            if other not in cost:
                detour = OTHER_NIC_S if wiring.types[other] == "nic" and other not in own else 0.0
                heapq.heappush(heap, (spent + latency_s + TIE_S + relay + detour, next(order), other, k))
    return cost, before


def _plain(links: Sequence[Sequence[tuple[int, float]]], a: int) -> dict[int, float]:
    """Latency from `a` to every component, of the wires alone."""
    cost: dict[int, float] = {}
    heap = [(0.0, a)]
    while heap:
        spent, k = heapq.heappop(heap)
        if k not in cost:
            cost[k] = spent
            for other, latency_s in links[k]:
                heapq.heappush(heap, (spent + latency_s, other))
    return cost
