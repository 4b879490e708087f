"""Paths through a topology: least latency, each GPU by its own NIC, through another GPU only if nothing else leads there."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import networkx as nx

from sim.hardware.topology_language import DIRECT_KINDS, NETWORK_KINDS, PCIE_KINDS

Edge = tuple[str, str]
"""A directed edge of the graph, from and to."""

# a GPU passes traffic on only where no switch does: relaying costs a kernel, here far more latency than any wire
_RELAY_S = 1e-3
# NCCL gives every GPU its own NIC and crosses a spine rather than load a neighbour's
_OTHER_NIC_S = 1e-5
# breaks ties of latency: fewer hops first
_TIE_S = 1e-12
_CLASSES = (NETWORK_KINDS, PCIE_KINDS, DIRECT_KINDS)


class Route(NamedTuple):
    """The way from one component to another."""

    edges: tuple[Edge, ...]
    kind: str
    """The link kind that decides how software drives it: a network before PCIe before NVLink, the slower of two alike."""
    latency_s: float
    bandwidth_bytes_per_s: float
    """Of its slowest edge."""


class Router:
    """Finds routes in a graph whose edges carry bandwidth_bytes_per_s, latency_s and kind; each is searched once."""

    def __init__(self, graph: nx.DiGraph, node_of: Mapping[str, str]) -> None:
        self._graph = graph
        self._node_of = node_of
        self._next: dict[str, Mapping[str, Mapping[str, Any]]] = dict(graph.adjacency())
        self._type = dict(graph.nodes(data="type"))
        self._switches = graph.subgraph([name for name, kind in self._type.items() if kind == "switch"])
        self._own_nics = self._nics_of_gpus()
        self._found: dict[Edge, Route | None] = {}
        self._in_fabric: dict[Edge, list[str] | None] = {}

    def route(self, a: str, b: str) -> Route | None:
        """The way from `a` to `b`, or None where there is none."""
        key = a, b
        if key not in self._found:
            hops = self._hops(a, b)
            self._found[key] = None if hops is None else self._described(hops)
        return self._found[key]

    def _hops(self, a: str, b: str) -> list[str] | None:
        if a in self._node_of and b in self._node_of:
            hops = self._over_nvlink(a, b) or self._over_own_nics(a, b)
            if hops:
                return hops
        return self._search(a, b)

    def _over_nvlink(self, a: str, b: str) -> list[str] | None:
        following = self._next[a]
        if b in following and following[b]["kind"] in DIRECT_KINDS:
            return [a, b]
        return next(([a, hub, b] for hub in following if self._type[hub] == "nvswitch" and b in self._next[hub]), None)

    def _over_own_nics(self, a: str, b: str) -> list[str] | None:
        """The usual way between nodes, put together from parts that many pairs share."""
        out, into = self._own_nics.get(a), self._own_nics.get(b)
        if out is None or into is None or self._node_of[a] == self._node_of[b]:
            return None
        first, last = self._ports(out), self._ports(into)
        if len(first) != 1 or len(last) != 1:
            return None
        key = first[0], last[0]
        if key not in self._in_fabric:
            try:
                self._in_fabric[key] = nx.dijkstra_path(self._switches, *key, weight="latency_s")
            except nx.NetworkXNoPath:
                self._in_fabric[key] = None
        between = self._in_fabric[key]
        head, tail = self.route(a, out), self.route(into, b)
        if between is None or head is None or tail is None:
            return None
        return [a, *(v for _, v in head.edges), *between, into, *(v for _, v in tail.edges)]

    def _ports(self, nic: str) -> list[str]:
        return [name for name in self._next[nic] if self._type[name] == "switch"]

    def _search(self, a: str, b: str) -> list[str] | None:
        own = {self._own_nics.get(a), self._own_nics.get(b)}
        ends = {self._node_of.get(a), self._node_of.get(b)}
        node = self._graph.nodes

        def weight(u: str, v: str, data: Mapping[str, Any]) -> float:
            relay = _RELAY_S if u != a and u in self._node_of else 0.0
            detour = _OTHER_NIC_S if self._type[v] == "nic" and v not in own and node[v]["node"] in ends else 0.0
            return float(data["latency_s"]) + _TIE_S + relay + detour

        try:
            _, hops = nx.bidirectional_dijkstra(self._graph, a, b, weight)
        except nx.NetworkXNoPath:
            return None
        return list(hops)

    def _described(self, hops: list[str]) -> Route:
        edges = tuple(itertools.pairwise(hops))
        links = [self._next[a][b] for a, b in edges]
        kind = min(
            (
                next(rank for rank, kinds in enumerate(_CLASSES) if link["kind"] in kinds),
                link["bandwidth_bytes_per_s"],
                link["kind"],
            )
            for link in links
        )[2]
        latency_s = sum(link["latency_s"] for link in links)
        return Route(edges, kind, latency_s, min(link["bandwidth_bytes_per_s"] for link in links))

    def _nics_of_gpus(self) -> dict[str, str]:
        """The NIC that stands beside each GPU by number: eight GPUs with four NICs share them two by two."""
        nics: dict[str, list[str]] = {}
        for name, data in self._graph.nodes(data=True):
            if data["type"] == "nic":
                nics.setdefault(data["node"], []).append(name)
        sizes = Counter(self._node_of.values())
        index = self._graph.nodes(data="index")
        return {
            gpu: nics[node][index[gpu] * len(nics[node]) // sizes[node]]
            for gpu, node in self._node_of.items()
            if node in nics
        }
