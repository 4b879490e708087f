"""A cluster as a directed graph: GPUs, switches and NICs joined by links."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import networkx as nx

from sim.collector import collector_paused
from sim.errors import InputError, nearest
from sim.hardware.exchange import Exchange, exchange
from sim.hardware.gpu import gpu_name
from sim.hardware.loads import EdgeTable, Loads, Pairs
from sim.hardware.routing import Edge, Route, Router
from sim.hardware.topology_build import GraphBuilder
from sim.hardware.topology_language import DIRECT_KINDS, PCIE_KINDS, CalibrationSpec, TopologySpec, read_spec
from sim.yaml_text import load_yaml_file


@dataclass(slots=True)
class Topology:
    """A cluster. `graph` is an nx.DiGraph whose edges carry bandwidth_bytes_per_s, latency_s and kind."""

    name: str
    graph: nx.DiGraph
    gpus: list[str]
    """GPU names in order of node and index: n0.g0, n0.g1, ..."""
    node_of: dict[str, str]
    gpu_kind: dict[str, str]
    """The catalogue name of each GPU."""
    gpu_speed: dict[str, float] = field(default_factory=dict)
    """Relative speed of the GPUs that an override makes slow (or fast); the others have 1."""
    parameters: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, CalibrationSpec] = field(default_factory=dict)
    source: str = ""
    overridden: bool = False
    """Some link or GPU differs from its like, so equal places need not be equally fast."""
    _domains: dict[str, int] = field(default_factory=dict)
    _islands: dict[str, int] = field(default_factory=dict)
    _router: Router | None = None
    _table: EdgeTable | None = None

    def route(self, a: str, b: str) -> Route:
        """The way from `a` to `b` with the least latency: each GPU by its own NIC, through another GPU only if it must.

        Raises:
            InputError: `b` cannot be reached from `a`; names it.
        """
        found = self._routing.route(a, b)
        if found is None:
            raise self._unreachable(a, b)
        return found

    def pairs(self, ends: Sequence[tuple[str, str]]) -> Pairs:
        """The routes from the first to the second of every pair at once; errors as route."""
        with self._in_bulk():
            return self.table.pairs(ends)

    def loads(self, flows: Mapping[tuple[str, str], float]) -> Loads:
        """What flows of these amounts, by (from, to), put on every directed edge of `table`; errors as route."""
        with self._in_bulk():
            return self.table.loads(flows)

    def exchange(self, gpus: Sequence[str]) -> Exchange:
        """The ways from every one of `gpus` to every other; errors as route."""
        with self._in_bulk():
            return exchange(self.table, gpus)

    @contextmanager
    def _in_bulk(self) -> Iterator[None]:
        """Work on thousands of ways at once; a pair that no way joins is named."""
        try:
            with collector_paused():
                yield
        except LookupError as error:
            raise self._unreachable(*error.args[0]) from None

    @property
    def table(self) -> EdgeTable:
        """The edges by number, as `loads` counts them."""
        if self._table is None:
            self._table = EdgeTable(self._routing)
        return self._table

    @property
    def _routing(self) -> Router:
        if self._router is None:
            self._router = Router(self.graph, self.node_of)
        return self._router

    def _unreachable(self, a: str, b: str) -> InputError:
        return InputError(self.name, f"{b} cannot be reached from {a}", "no chain of links joins them")

    def path(self, a: str, b: str) -> tuple[Edge, ...]:
        """The directed edges of the route from `a` to `b`; errors as route."""
        return self.route(a, b).edges

    def host_path(self, gpu: str) -> tuple[Edge, ...]:
        """The directed edges from `gpu` to the memory of its nearest socket (the way of a KV block swapped out).

        Raises:
            InputError: the node has no component of type cpu.
        """
        self.check_gpus([gpu], self.name)
        sockets = [name for name, data in self.graph.nodes(data=True)
                   if data["type"] == "cpu" and data["node"] == self.node_of[gpu]]  # fmt: skip
        if not sockets:
            raise InputError(self.name, f"{gpu} has no host to swap to", "give the node a component of type cpu")
        return min((self.path(gpu, cpu) for cpu in sockets), key=len)

    def domain(self, gpu: str) -> int:
        """Number of the group of GPUs that reach each other over NVLink or Infinity Fabric alone."""
        if not self._domains:
            self._domains = self._components(DIRECT_KINDS)
        return self._domains[gpu]

    def island(self, gpu: str) -> int:
        """Number of the group of GPUs that reach each other without a network: a node, or the racks of one NVLink switch."""
        if not self._islands:
            self._islands = self._components((*DIRECT_KINDS, *PCIE_KINDS))
        return self._islands[gpu]

    def _components(self, kinds: tuple[str, ...]) -> dict[str, int]:
        """Connected component of every GPU over links of these kinds, numbered in order of the GPUs."""
        beside: dict[str, list[str]] = {}
        for a, out in self.graph.adjacency():
            for b, data in out.items():
                if data["kind"] in kinds:  # a link in one direction is enough
                    beside.setdefault(a, []).append(b)
                    beside.setdefault(b, []).append(a)
        found: dict[str, int] = {}
        for number, gpu in enumerate(self.gpus):
            reached = [gpu] if gpu not in found else []
            while reached:
                name = reached.pop()
                if name not in found:
                    found[name] = number
                    reached += beside.get(name, [])
        return {gpu: found[gpu] for gpu in self.gpus}

    def with_links(self, change: Callable[[dict[str, Any]], None]) -> Topology:
        """A copy whose ways are searched anew; `change` edits the attributes of each of its links in place, not the kind."""
        graph = nx.DiGraph(self.graph)
        for _, _, link in graph.edges(data=True):
            change(link)
        return replace(self, graph=graph, _router=None, _table=None)

    def check_gpus(self, names: list[str], where: str) -> None:
        """Raise InputError naming the first of `names` that is no GPU of this cluster."""
        for name in names:
            if name not in self.node_of:
                raise InputError(where, f"no GPU is called '{name}' in {self.name}", nearest(name, self.gpus))


def load_topology(name_or_path: str | Path, parameters: Mapping[str, Any], gpu: str | None = None) -> Topology:
    """The cluster that a topology file describes.

    Args:
        name_or_path: a catalogue name ("dgx-h100") or the path of a YAML file.
        parameters: values for the file's parameters (`nodes`, ...), and `overrides`, a list of degraded or missing links
            and slow GPUs beside those in the file.
        gpu: catalogue name of the GPU that stands in for the file's own.

    Raises:
        InputError: the file is missing or wrong, or a parameter is unknown.
    """
    from sim import catalogue

    path = catalogue.resolve("topologies", str(name_or_path), "cluster.topology")
    data = _with_base(path)
    given = dict(parameters)
    overrides = given.pop("overrides", [])
    if not isinstance(overrides, list):
        raise InputError("cluster.overrides", f"got {overrides!r}", "a list, such as [{gpu: n0.g3, speed: 0.8}]")
    data["overrides"] = [*data.get("overrides", []), *overrides]
    return build_topology(data, given, path.name, None if gpu is None else gpu_name(gpu, "cluster.gpu"))


def build_topology(
    data: Mapping[str, Any], parameters: Mapping[str, Any], where: str, gpu: str | None = None
) -> Topology:
    """The cluster that `data`, the content of a topology file, describes; arguments and errors as load_topology."""
    spec = read_spec(data, where)
    values = _parameters(spec, parameters, where)
    builder = GraphBuilder(spec, values, where)
    graph = builder.build()
    gpus = [name for name, kind in graph.nodes(data="type") if kind == "gpu"]
    return Topology(
        name=spec.name,
        graph=graph,
        gpus=gpus,
        node_of={name: graph.nodes[name]["node"] for name in gpus},
        gpu_kind=dict.fromkeys(gpus, gpu or gpu_name(spec.gpu, f"{where}: gpu")),
        gpu_speed=builder.speed,
        parameters=values,
        calibration=dict(spec.calibration),
        source=spec.source,
        overridden=bool(spec.overrides),
    )


def _parameters(spec: TopologySpec, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    for name, value in given.items():
        key = f"cluster.{name}"
        if name not in spec.parameters:
            raise InputError(key, f"is an unknown key, and no parameter of {where}",
                             nearest(name, [*spec.parameters, "topology", "gpu", "overrides"]))  # fmt: skip
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not (isinstance(value, str) if isinstance(spec.parameters[name], str) else number):
            raise InputError(key, f"got {value!r}", f"{where} has {spec.parameters[name]!r}")
    return {**spec.parameters, **given}


def _with_base(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a topology file; what it says stands over the file that `base` names, beside it.

    `above` are the files whose base it is.
    """
    chain = (*above, path.resolve())
    if path.resolve() in above:
        way = " -> ".join(file.name for file in chain[above.index(path.resolve()) :])
        raise InputError(f"{above[-1].name}: base", f"leads back to itself ({way})", "name another file, or none")
    data = load_yaml_file(path, "give a topology file, or a name: `twowalls list topologies`")
    if not isinstance(data, dict):
        raise InputError(str(path), "holds no topology", "name:, gpu:, parameters:, node: ...")
    for key, kind, words in (("parameters", dict, "names and values"), ("overrides", list, "a list")):
        if not isinstance(data.get(key, kind()), kind):
            raise InputError(f"{path.name}: {key}", f"got {data[key]!r}", f"write {words}")
    base = data.pop("base", None)
    if base is None:
        return data
    from sim import catalogue

    beside = path.parent / f"{base}.yaml"
    if not beside.exists():
        beside = catalogue.resolve("topologies", str(base), f"{path.name}: base")
    under = _with_base(beside, chain)
    parameters = {**under.get("parameters", {}), **data.get("parameters", {})}
    return {**under, **data, "parameters": parameters}
