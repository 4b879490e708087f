"""What a topology amounts to: counts, bisection, diameter, bandwidth between GPUs, what they share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import networkx as nx

from sim import units
from sim.hardware.routing import Edge
from sim.hardware.topology import Topology
from sim.hardware.topology_language import DIRECT_KINDS

# beyond this many GPUs pairs are taken between a few nodes only, and the minimum cut is not searched for
_EXACT_GPUS = 128


@dataclass(frozen=True, slots=True)
class PairClass:
    """GPU pairs that see the same path."""

    relation: str
    """Inside a node, or between nodes."""
    kind: str
    """Link kind of the slowest edge on the way."""
    bandwidth_bytes_per_s: float
    latency_s: float
    hops: int
    pairs: int
    example: tuple[str, str]


@dataclass(frozen=True, slots=True)
class SharedEdge:
    """A directed edge that several GPUs of a node need at once."""

    edge: Edge
    kind: str
    purpose: str
    """Leaving the node, or reaching host memory."""
    gpus: int
    bandwidth_bytes_per_s: float

    @property
    def each_bytes_per_s(self) -> float:
        return self.bandwidth_bytes_per_s / self.gpus


@dataclass(frozen=True, slots=True)
class TopologySummary:
    """Facts about a topology; `sampled` says that pairs stand for the whole of a large cluster."""

    name: str
    gpus: int
    nodes: int
    components: dict[str, int]
    links: dict[str, int]
    """Links (both directions counted once) by kind."""
    bisection_bytes_per_s: float | None
    """Minimum cut from the first half of the GPUs to the second; None beyond 128 GPUs."""
    diameter_hops: int
    diameter_latency_s: float
    pairs: list[PairClass]
    shared: list[SharedEdge]
    oversubscribed: dict[str, float]
    """Network switches with less bandwidth up than down, and down over up."""
    gpu_speed: dict[str, float]
    """GPUs that an override makes slow or fast, and their speed relative to their kind."""
    sampled: bool
    lines: list[str] = field(default_factory=list)
    """The same in words."""


def summarise(topology: Topology) -> TopologySummary:
    """Facts about `topology`, as data and in words."""
    graph = topology.graph
    classes = _pair_classes(topology)
    exact = len(topology.gpus) <= _EXACT_GPUS
    links: Counter[str] = Counter(kind for a, b, kind in graph.edges(data="kind") if a < b)
    summary = TopologySummary(
        name=topology.name,
        gpus=len(topology.gpus),
        nodes=len(set(topology.node_of.values())),
        components=dict(Counter(kind for _, kind in graph.nodes(data="type"))),
        links=dict(links),
        bisection_bytes_per_s=_bisection(topology) if exact and len(topology.gpus) > 1 else None,
        diameter_hops=max((c.hops for c in classes), default=0),
        diameter_latency_s=max((c.latency_s for c in classes), default=0.0),
        pairs=classes,
        shared=_shared(topology),
        oversubscribed=_oversubscribed(topology),
        gpu_speed=dict(topology.gpu_speed),
        sampled=not exact,
    )
    summary.lines.extend(_words(summary))
    return summary


def _pair_classes(topology: Topology) -> list[PairClass]:
    gpus = topology.gpus
    if len(gpus) > _EXACT_GPUS:
        nodes = list(dict.fromkeys(topology.node_of.values()))
        some = {nodes[k] for k in (0, 1, len(nodes) // 2, -1)}
        gpus = [gpu for gpu in gpus if topology.node_of[gpu] in some]
    found: dict[tuple[str, str, float, float, int], list[tuple[str, str]]] = {}
    edges = topology.graph.edges
    for k, a in enumerate(gpus):
        for b in gpus[k + 1 :]:
            route = topology.route(a, b)
            slowest = min(route.edges, key=lambda edge: edges[edge]["bandwidth_bytes_per_s"])
            relation = "inside a node" if topology.node_of[a] == topology.node_of[b] else "between nodes"
            key = (
                relation,
                edges[slowest]["kind"],
                route.bandwidth_bytes_per_s,
                round(route.latency_s, 12),
                len(route.edges),
            )
            found.setdefault(key, []).append((a, b))
    classes = [PairClass(*key, pairs=len(pairs), example=pairs[0]) for key, pairs in found.items()]
    return sorted(classes, key=lambda c: (c.relation != "inside a node", -c.bandwidth_bytes_per_s))


def _bisection(topology: Topology) -> float:
    graph = nx.DiGraph()
    graph.add_edges_from(
        (a, b, {"capacity": rate}) for a, b, rate in topology.graph.edges(data="bandwidth_bytes_per_s")
    )
    half = len(topology.gpus) // 2
    graph.add_edges_from(("source", gpu) for gpu in topology.gpus[:half])
    graph.add_edges_from((gpu, "sink") for gpu in topology.gpus[half:])
    return float(nx.maximum_flow_value(graph, "source", "sink"))


def _shared(topology: Topology) -> list[SharedEdge]:
    """Edges that more than one GPU of the first node needs to leave it or to reach its host memory."""
    nodes = list(dict.fromkeys(topology.node_of.values()))
    members = [gpu for gpu in topology.gpus if topology.node_of[gpu] == nodes[0]]
    uses: dict[str, Counter[Edge]] = {"leaving the node": Counter(), "reaching host memory": Counter()}
    far = [gpu for gpu in topology.gpus if topology.node_of[gpu] == nodes[len(nodes) // 2]]
    if len(nodes) > 1:
        for gpu, other in zip(members, far, strict=False):
            path = topology.path(gpu, other)
            uses["leaving the node"].update(edge for edge in path if edge[0].startswith(f"{nodes[0]}."))
    if any(data["type"] == "cpu" for _, data in topology.graph.nodes(data=True)):
        for gpu in members:
            uses["reaching host memory"].update(topology.host_path(gpu))
    return [
        SharedEdge(edge, data["kind"], purpose, count, data["bandwidth_bytes_per_s"])
        for purpose, counts in uses.items()
        for edge, count in counts.items()
        if count > 1 and (data := topology.graph.edges[edge])["kind"] not in DIRECT_KINDS
    ]


def _oversubscribed(topology: Topology) -> dict[str, float]:
    graph = topology.graph
    types = graph.nodes(data="type")
    ratios = {}
    for name, kind in types:
        if kind != "switch":
            continue
        rates = [
            (types[other] == "switch", rate) for _, other, rate in graph.out_edges(name, data="bandwidth_bytes_per_s")
        ]
        up, down = (sum(rate for upward, rate in rates if upward == way) for way in (True, False))
        if up and down > up * (1 + 1e-9):
            ratios[name] = down / up
    return ratios


def _words(summary: TopologySummary) -> list[str]:
    parts = ", ".join(f"{count} {kind}" for kind, count in summary.components.items())
    nodes = "1 node" if summary.nodes == 1 else f"{summary.nodes} nodes"
    lines = [f"{summary.name}: {summary.gpus} GPUs in {nodes} ({parts})"]
    lines.append("links: " + ", ".join(f"{count} {kind}" for kind, count in summary.links.items()))
    if summary.bisection_bytes_per_s is not None:
        rate = units.format_rate(summary.bisection_bytes_per_s)
        lines.append(f"bisection: {rate} from the first half of the GPUs to the second")
    lines.append(f"diameter: {_hops(summary.diameter_hops)}, {units.format_time(summary.diameter_latency_s)} of wires")
    for c in summary.pairs:
        lines.append(
            f"{c.relation}: {units.format_rate(c.bandwidth_bytes_per_s)} a direction over {c.kind}, {_hops(c.hops)}, "
            f"{units.format_time(c.latency_s)} ({'1 pair' if c.pairs == 1 else f'{c.pairs} pairs'}, such as "
            f"{c.example[0]} and {c.example[1]})"
        )
    lines += _shared_words(summary.shared)
    worst = max(summary.oversubscribed.items(), key=lambda item: item[1], default=None)
    if worst:
        count = len(summary.oversubscribed)
        lines.append(f"oversubscribed: {count} switches, {worst[0]} by {worst[1]:.3g} to 1")
    lines += [f"overridden: {gpu} computes at {speed:.3g} of its speed" for gpu, speed in summary.gpu_speed.items()]
    if summary.sampled:
        lines.append("pairs are those among four nodes; the others are like them only if the cluster is regular")
    return lines


def _hops(count: int) -> str:
    return "1 hop" if count == 1 else f"{count} hops"


def _shared_words(shared: list[SharedEdge]) -> list[str]:
    """One line for edges that are alike."""
    alike: dict[tuple[str, str, int, float], list[SharedEdge]] = {}
    for s in shared:
        alike.setdefault((s.kind, s.purpose, s.gpus, s.bandwidth_bytes_per_s), []).append(s)
    lines = []
    for (kind, purpose, gpus, rate), edges in alike.items():
        more = f" and {len(edges) - 1} like it" if len(edges) > 1 else ""
        lines.append(
            f"shared: {gpus} GPUs of a node need {edges[0].edge[0]} to {edges[0].edge[1]}{more} ({kind}, "
            f"{units.format_rate(rate)}) for {purpose}: {units.format_rate(edges[0].each_bytes_per_s)} each"
        )
    return lines
