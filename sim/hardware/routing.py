"""Paths through a topology: least latency, each GPU by its own NIC, through another GPU only if nothing else leads there."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import networkx as nx

from sim.hardware.routing_local import OTHER_NIC_S, RELAY_S, TIE_S, LocalWays
from sim.hardware.topology_language import DIRECT_KINDS, PCIE_KINDS

Edge = tuple[str, str]
"""A directed edge of the graph, from and to."""

# which link kind decides how software drives a route: a network before PCIe before NVLink, of two alike the slower technology,
# whatever bandwidth its links happen to have (else a faster link could change the software, and slow the route)
SOFTWARE_ORDER = {kind: k for k, kind in enumerate(("ethernet", "infiniband", *PCIE_KINDS, *DIRECT_KINDS))}


class Route(NamedTuple):
    """The way from one component to another."""

    edges: tuple[Edge, ...]
    kind: str
    """The link kind that decides how software drives it: a network before PCIe before NVLink, the older of two alike."""
    latency_s: float
    bandwidth_bytes_per_s: float
    """Of its slowest edge."""


def joined(first: Route, *others: Route) -> Route:
    """One piece after another."""
    edges, _, latency_s, rate = first
    for part in others:
        edges += part.edges
        latency_s += part.latency_s
        rate = min(rate, part.bandwidth_bytes_per_s)
    kind = min([part.kind for part in (first, *others) if part.edges], key=SOFTWARE_ORDER.__getitem__)
    return Route(edges, kind, latency_s, rate)


class Router:
    """Finds routes in a graph whose edges carry bandwidth_bytes_per_s, latency_s and kind; each is searched once."""

    def __init__(self, graph: nx.DiGraph, node_of: Mapping[str, str]) -> None:
        self._graph = graph
        self.node_of = node_of
        self._next: dict[str, Mapping[str, Mapping[str, Any]]] = dict(graph.adjacency())
        self._type = dict(graph.nodes(data="type"))
        self._place: dict[str, str | None] = dict(graph.nodes(data="node"))
        self._local = LocalWays(self._next, self._type, self._place)
        self._switches = self._between_switches()
        self._own_nics = self._nics_of_gpus()
        self._found: dict[Edge, Route | None] = {}
        self._in_fabric: dict[str, dict[str, list[str]]] = {}
        self._links: dict[Edge, Route] = {}
        self._out: dict[str, Route | None] = {}
        self._into: dict[str, Route | None] = {}
        self._middles: dict[Edge, Route | None] = {}

    def route(self, a: str, b: str) -> Route | None:
        """The way from `a` to `b`, or None where there is none."""
        key = a, b
        if key not in self._found:
            self._found[key] = self._over_nvlink(a, b) or self._over_own_nics(a, b) or self._over_anything(a, b)
        return self._found[key]

    def in_fabric(self, first: str, last: str) -> Route | None:
        """The way from switch to switch through switches alone; None where there is none."""
        key = first, last
        if key not in self._middles:
            if first == last:
                self._middles[key] = self._described([first])
                return self._middles[key]
            if first not in self._in_fabric:
                self._in_fabric[first] = nx.single_source_dijkstra_path(self._switches, first, weight="latency_s")
            hops = self._in_fabric[first].get(last)
            self._middles[key] = None if hops is None else self._described(hops)
        return self._middles[key]

    def _over_nvlink(self, a: str, b: str) -> Route | None:
        following = self._next[a]
        if b in following and following[b]["kind"] in DIRECT_KINDS:
            return self.link(a, b)
        if a in self.node_of and b in self.node_of:
            for hub in following:
                if self._type[hub] == "nvswitch" and b in self._next[hub]:
                    return joined(self.link(a, hub), self.link(hub, b))
        return None

    def hub(self, gpu: str) -> tuple[str | None, bool]:
        """The one NVSwitch that a GPU is at, and whether that and its node are all that it reaches over direct links."""
        beside = [name for name, link in self._next[gpu].items() if link["kind"] in DIRECT_KINDS]
        if len(beside) == 1 and self._type[beside[0]] == "nvswitch" and gpu in self._next[beside[0]]:
            return beside[0], True
        node = self.node_of[gpu]
        return None, all(self.node_of.get(name) == node for name in beside)

    def rate(self, edge: Edge) -> float:
        """Bytes a second of one edge."""
        return float(self._next[edge[0]][edge[1]]["bandwidth_bytes_per_s"])

    def link(self, a: str, b: str) -> Route:
        """The way over one edge."""
        key = a, b
        if key not in self._links:
            link = self._next[a][b]
            self._links[key] = Route((key,), link["kind"], link["latency_s"], link["bandwidth_bytes_per_s"])
        return self._links[key]

    def _over_own_nics(self, a: str, b: str) -> Route | None:
        """The usual way between nodes: by its own NIC into the fabric, through switches, out by the other's own NIC."""
        if a not in self.node_of or b not in self.node_of or self.node_of[a] == self.node_of[b]:
            return None
        out, into = self.to_fabric(a), self.from_fabric(b)
        if out is None or into is None:
            return None
        between = self.in_fabric(out.edges[-1][1], into.edges[0][0])
        return None if between is None else joined(out, between, into)

    def to_fabric(self, gpu: str) -> Route | None:
        """The way from a GPU by its own NIC into the one switch that the NIC has a port at; None where it is not so."""
        if gpu not in self._out:
            nic, port = self._port(gpu)
            hops = self._hops(gpu, nic) if nic and port else None
            self._out[gpu] = self._described([*hops, str(port)]) if hops else None
        return self._out[gpu]

    def from_fabric(self, gpu: str) -> Route | None:
        """The way from the switch of its NIC to a GPU; None as for `to_fabric`."""
        if gpu not in self._into:
            nic, port = self._port(gpu)
            hops = self._hops(nic, gpu) if nic and port and nic in self._next[port] else None
            self._into[gpu] = self._described([str(port), *hops]) if hops else None
        return self._into[gpu]

    def _port(self, gpu: str) -> tuple[str | None, str | None]:
        """The GPU's own NIC, and the switch it is at if it is at one only."""
        nic = self._own_nics.get(gpu)
        ports = [] if nic is None else [name for name in self._next[nic] if self._type[name] == "switch"]
        return nic, ports[0] if len(ports) == 1 else None

    def _over_anything(self, a: str, b: str) -> Route | None:
        hops = self._hops(a, b)
        return None if hops is None else self._described(hops)

    def _hops(self, a: str, b: str) -> list[str] | None:
        """A way found by search, inside the node alone where that is enough."""
        hops = None
        if self._place[a] == self._place[b] is not None:
            own = self._own_nics.get(a), self._own_nics.get(b)
            hops = self._local.hops(a, b, own)
        return hops or self._search(a, b)

    def _between_switches(self) -> nx.DiGraph:
        """The graph of the fabric's switches and the links among them."""
        names = [name for name, kind in self._type.items() if kind == "switch"]
        found = nx.DiGraph()
        found.add_nodes_from(names)
        for a in names:
            found.add_weighted_edges_from(
                ((a, b, data["latency_s"]) for b, data in self._next[a].items() if self._type[b] == "switch"),
                "latency_s",
            )
        return found

    def _search(self, a: str, b: str) -> list[str] | None:
        own = {self._own_nics.get(a), self._own_nics.get(b)}
        ends = {self.node_of.get(a), self.node_of.get(b)}

        def weight(u: str, v: str, data: Mapping[str, Any]) -> float:
            relay = RELAY_S if u != a and u in self.node_of else 0.0
            detour = OTHER_NIC_S if self._type[v] == "nic" and v not in own and self._place[v] in ends else 0.0
            return float(data["latency_s"]) + TIE_S + relay + detour

        try:
            _, hops = nx.bidirectional_dijkstra(self._graph, a, b, weight)
        except nx.NetworkXNoPath:
            return None
        return list(hops)

    def _described(self, hops: list[str]) -> Route:
        edges = tuple(itertools.pairwise(hops))
        if not edges:
            return Route((), "", 0.0, math.inf)
        links = [self._next[a][b] for a, b in edges]
        kinds = {link["kind"] for link in links}
        kind = kinds.pop() if len(kinds) == 1 else min(kinds, key=SOFTWARE_ORDER.__getitem__)
        latency_s = sum([link["latency_s"] for link in links])
        return Route(edges, kind, latency_s, min([link["bandwidth_bytes_per_s"] for link in links]))

    def _nics_of_gpus(self) -> dict[str, str]:
        """The NIC that stands beside each GPU by number: eight GPUs with four NICs share them two by two."""
        nics: dict[str, list[str]] = {}
        for name, data in self._graph.nodes(data=True):
            if data["type"] == "nic":
                nics.setdefault(data["node"], []).append(name)
        sizes = Counter(self.node_of.values())
        index = self._graph.nodes(data="index")
        return {
            gpu: nics[node][index[gpu] * len(nics[node]) // sizes[node]]
            for gpu, node in self.node_of.items()
            if node in nics
        }
