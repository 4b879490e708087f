"""From a topology description to a directed graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx

from sim import units
from sim.errors import InputError, nearest
from sim.hardware.topology_expression import Expression
from sim.hardware.topology_language import (
    ComponentSpec,
    LinkSpec,
    OverrideSpec,
    PartSpec,
    TopologySpec,
    split_reference,
)

MOST_PARTS = 2_000_000
"""Of a cluster: about 600,000 GPUs, several times the largest built; more would fill the memory of a workstation."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Components of a node or of the fabric, with their counts (None: one, without a number)."""

    components: Mapping[str, ComponentSpec]
    counts: Mapping[str, int | None]

    def names(self, component: str) -> list[str]:
        count = self.counts[component]
        return [component] if count is None else [f"{component}{index}" for index in range(count)]


class GraphBuilder:
    """Builds the nx.DiGraph of a topology description.

    Nodes carry `type`, `node` ("n0"; None in the fabric), `index` and `in_network_reduction`; edges carry
    `bandwidth_bytes_per_s` (of this direction), `latency_s` and `kind`.
    """

    def __init__(self, spec: TopologySpec, parameters: Mapping[str, Any], where: str) -> None:
        self.spec = spec
        self.where = where
        self.parameters = parameters
        self.numbers = {name: value for name, value in parameters.items() if not isinstance(value, str)}
        self.graph: nx.DiGraph = nx.DiGraph()
        self.node = self._part(spec.node, "node")
        self.nodes = self._count_nodes()
        self.fabric = self._part(spec.fabric, "fabric")
        self.speed: dict[str, float] = {}

    def build(self) -> nx.DiGraph:
        template = [
            edge for n, link in enumerate(self.spec.node.links) for edge in self._inside(link, f"node.links[{n}]")
        ]
        for number in range(self.nodes):
            prefix = f"n{number}."
            self._add_components(self.node, prefix, f"n{number}")
            self._add_edges((prefix + a, prefix + b, attributes) for a, b, attributes in template)
        self._add_components(self.fabric, "", None)
        for n, link in enumerate(self.spec.fabric.links):
            self._add_edges(self._across(link, self.nodes, f"fabric.links[{n}]"))
        for n, override in enumerate(self.spec.overrides):
            self._override(override, f"{self.where}: overrides[{n}]")
        return self.graph

    def _count_nodes(self) -> int:
        """How many nodes there are; raises InputError where that is no number, or one too large."""
        where = f"{self.where}: parameters.nodes"
        if "nodes" not in self.numbers:
            found = f"got {self.parameters['nodes']!r}" if "nodes" in self.parameters else "is missing"
            raise InputError(where, found, "write how many there are, such as nodes: 1")
        nodes = Expression("nodes", self.numbers, where).whole()
        if nodes < 1:
            raise InputError(where, f"got {nodes}", "at least 1")
        parts = sum(1 if count is None else count for count in self.node.counts.values())
        if nodes * parts > MOST_PARTS:
            problem = f"got {nodes:,}, a cluster of {nodes * parts:,} GPUs, switches and NICs"
            raise InputError("cluster.nodes", problem, f"at most {MOST_PARTS // parts:,} of these nodes")
        return nodes

    def _part(self, part: PartSpec, label: str) -> _Part:
        counts: dict[str, int | None] = {}
        for name, component in part.components.items():
            where = f"{self.where}: {label}.components.{name}.count"
            count = None if component.count is None else Expression(component.count, self.numbers, where).whole()
            least = 1 if component.type == "gpu" else 0
            if count is not None and not least <= count <= MOST_PARTS:
                raise InputError(where, f"got {count:,}", f"allowed: {least} to {MOST_PARTS:,}")
            counts[name] = count
        return _Part(part.components, counts)

    def _add_components(self, part: _Part, prefix: str, node: str | None) -> None:
        for name, component in part.components.items():
            for index, full in enumerate(part.names(name)):
                self.graph.add_node(
                    prefix + full,
                    type=component.type,
                    node=node,
                    index=index,
                    in_network_reduction=component.in_network_reduction,
                )

    def _add_edges(self, edges: Iterator[tuple[str, str, dict[str, Any]]]) -> None:
        for a, b, attributes in edges:
            if self.graph.has_edge(a, b):
                raise InputError(self.where, f"two links between {a} and {b}", "join them with `times: 2`")
            self.graph.add_edge(a, b, **attributes)
            self.graph.add_edge(b, a, **attributes)

    def _inside(self, link: LinkSpec, label: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Links of one node, names without the node's prefix."""
        where = f"{self.where}: {label}"
        attributes = self._attributes(link, where)
        for i, source, target, selected in self._ends(link, self.node, self.node, where):
            for j, other in enumerate(target):
                if source != other and (selected or link.from_ != link.to or i < j):
                    yield source, other, attributes

    def _across(self, link: LinkSpec, nodes: int, label: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Links of the fabric, from a component of every node or from a component of the fabric."""
        where = f"{self.where}: {label}"
        attributes = self._attributes(link, where)
        name, _ = split_reference(link.from_, where)
        if name in self.fabric.components:
            for _, source, target, _ in self._ends(link, self.fabric, self.fabric, where):
                yield from ((source, other, attributes) for other in target)
            return
        ends = self._ends_by_node(link, nodes, where)
        yield from ((source, other, attributes) for source, other in ends)

    def _ends(
        self, link: LinkSpec, sources: _Part, targets: _Part, where: str
    ) -> Iterator[tuple[int, str, list[str], bool]]:
        """(index, source, its targets, whether an index chose them) for every source of a link."""
        source_name, source_index = self._reference(link.from_, sources, f"{where}.from")
        target_name, target_index = self._reference(link.to, targets, f"{where}.to")
        names, all_targets = sources.names(source_name), targets.names(target_name)
        for i in self._chosen(source_index, len(names), {}, f"{where}.from"):
            chosen = self._chosen(target_index, len(all_targets), {"i": i}, f"{where}.to")
            if source_index is not None and target_index is not None and names[i] == all_targets[chosen[0]]:
                raise InputError(
                    f"{where}.to", f"got '{link.to}', which joins {names[i]} to itself", "name another end"
                )
            yield i, names[i], [all_targets[j] for j in chosen], target_index is not None

    def _ends_by_node(self, link: LinkSpec, nodes: int, where: str) -> Iterator[tuple[str, str]]:
        source_name, source_index = self._reference(link.from_, self.node, f"{where}.from")
        target_name, target_index = self._reference(link.to, self.fabric, f"{where}.to")
        names, targets = self.node.names(source_name), self.fabric.names(target_name)
        for node in range(nodes):
            for i in self._chosen(source_index, len(names), {"node": node}, f"{where}.from"):
                for j in self._chosen(target_index, len(targets), {"i": i, "node": node}, f"{where}.to"):
                    yield f"n{node}.{names[i]}", targets[j]

    def _reference(self, text: str, part: _Part, where: str) -> tuple[str, Expression | None]:
        name, index = split_reference(text, where)
        if name not in part.components:
            raise InputError(where, f"no component '{name}'", nearest(name, part.components))
        return name, None if index is None else Expression(index, {**self.numbers, "i": 0, "node": 0}, where)

    def _chosen(self, index: Expression | None, count: int, names: Mapping[str, float], where: str) -> list[int]:
        if index is None:
            return list(range(count))
        number = index.whole(**names)
        if number >= count:
            raise InputError(where, f"'{index.text}' is {number}", f"there are {count}, counted from 0")
        return [number]

    def _attributes(self, link: LinkSpec, where: str) -> dict[str, Any]:
        bandwidth = self._quantity(link.bandwidth, "bytes_per_s", f"{where}.bandwidth")
        times = Expression(link.times, self.numbers, f"{where}.times").positive()
        if bandwidth <= 0:
            raise InputError(
                f"{where}.bandwidth", f"got '{link.bandwidth}'", "more than 0; `missing` takes a link away"
            )
        latency = self._quantity(link.latency, "s", f"{where}.latency")
        if latency < 0:
            raise InputError(f"{where}.latency", f"got '{link.latency}'", "a time is zero or longer")
        return {"bandwidth_bytes_per_s": bandwidth * times, "latency_s": latency, "kind": link.kind}

    def _quantity(self, text: str | float, dimension: str, where: str) -> float:
        return units.parse(self.parameters.get(str(text), text), dimension, where)

    def _override(self, override: OverrideSpec, where: str) -> None:
        of_a_link = [k for k in ("bandwidth_fraction", "extra_latency", "missing") if k in override.model_fields_set]
        if override.gpu is not None:
            if override.link is not None or of_a_link:
                raise InputError(where, f"mixes `gpu` and {', '.join(of_a_link) or 'link'}", "one override for each")
            self._known(override.gpu, f"{where}.gpu")
            if override.speed is None:
                raise InputError(where, f"nothing is said about '{override.gpu}'", "give its `speed`, such as 0.8")
            self.speed[override.gpu] = override.speed
            return
        if override.link is None:
            raise InputError(where, "neither `link` nor `gpu` is named", "link: [n0.nic3, leaf3]")
        a, b = override.link
        if override.speed is not None or not of_a_link:
            problem = (
                f"nothing is said about {a} - {b}" if override.speed is None else "`speed` is of a gpu, not of a link"
            )
            raise InputError(where, problem, "give its bandwidth_fraction, extra_latency or missing: true")
        for end in (a, b):
            self._known(end, f"{where}.link")
        if not self.graph.has_edge(a, b):
            raise InputError(f"{where}.link", f"no link between {a} and {b}", nearest(b, self.graph.successors(a)))
        for edge in ((a, b), (b, a)):
            if override.missing:
                self.graph.remove_edge(*edge)
                continue
            attributes = self.graph.edges[edge]
            attributes["bandwidth_bytes_per_s"] *= override.bandwidth_fraction or 1.0
            attributes["latency_s"] += units.parse(override.extra_latency or 0, "s", f"{where}.extra_latency")

    def _known(self, name: str, where: str) -> None:
        if name not in self.graph:
            raise InputError(where, f"nothing is called '{name}'", nearest(name, self.graph.nodes))
