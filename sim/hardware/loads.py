"""What many flows together put on every directed edge: routes as arrays of edge numbers, so that thousands add up at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.hardware.routing import SOFTWARE_ORDER, Edge, Route, Router

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Loads = dict[str, Floats]
"""Kind of route -> what routes of this kind put on each directed edge, indexed by the number of the edge in the table."""
_KINDS = tuple(SOFTWARE_ORDER)
_NONE = -1


class Columns(NamedTuple):
    """Half routes, one entry a GPU: the way to a switch that many of its routes have in common, or from that switch."""

    switch: Ints
    """Number of the switch; -1 where the GPU has no such half route."""
    order: Ints
    """Place of its kind in SOFTWARE_ORDER."""
    latency_s: Floats
    edges: Ints
    """Edge numbers, a row for each GPU, padded with -1."""

    def of(self, rows: Ints) -> Columns:
        return Columns(self.switch[rows], self.order[rows], self.latency_s[rows], self.edges[rows])


class Halves(NamedTuple):
    """Of each GPU its node, and its half routes: up to its NVSwitch and down from it, out to the fabric and in from it."""

    nodes: Ints
    up: Columns
    down: Columns
    out: Columns
    into: Columns


class _Half:
    """`Columns` under construction, one GPU after another."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, float]] = []
        self._edges: list[list[int]] = []
        self._columns: Columns | None = None

    def append(self, switch: int, route: Route | None, edges: list[int]) -> None:
        self._rows.append((switch, SOFTWARE_ORDER[route.kind], route.latency_s) if route else (_NONE, 0, 0.0))
        self._edges.append(edges)
        self._columns = None

    def columns(self) -> Columns:
        if self._columns is None:
            switch, order, latency_s = zip(*self._rows, strict=True)
            self._columns = Columns(np.array(switch), np.array(order), np.array(latency_s), _padded(self._edges))
        return self._columns


class Pairs(NamedTuple):
    """Routes between many pairs of components."""

    order: Ints
    """Place of each route's kind in SOFTWARE_ORDER."""
    latency_s: Floats
    parts: list[tuple[Ints, Ints]]
    """Pieces of the routes: (indices of the pairs that have one, its edge numbers in a row for each, padded with -1)."""

    def kind(self, k: int) -> str:
        return _KINDS[int(self.order[k])]


class EdgeTable:
    """Numbers the edges that routes use, and keeps the half routes of every GPU to its NVSwitch and by its own NIC.

    The route between two GPUs is two halves over the NVSwitch that both are at; else, between nodes, a half out by the sender's
    NIC, a middle through the fabric and a half in by the receiver's NIC; else whatever the router finds for the pair.
    """

    def __init__(self, router: Router) -> None:
        self.edges: list[Edge] = []
        self._router = router
        self._edge: dict[Edge, int] = {}
        self._rates: list[float] = []
        self._sources: list[int] = []
        self._senders: dict[str, int] = {}
        self._gpu: dict[str, int] = {}
        self._switch: dict[str, int] = {}
        self._node: dict[str, int] = {}
        self._nodes: list[int] = []
        self._nodes_now: Ints = np.zeros(0, dtype=np.int64)
        self._up, self._down, self._out, self._into = _Half(), _Half(), _Half(), _Half()
        self._direct: dict[Edge, Route] = {}
        self._middles: dict[tuple[int, int], tuple[Route, list[int]] | None] = {}

    def rates(self) -> Floats:
        """Bytes a second of every edge."""
        return np.array(self._rates)

    def most_sent(self, loads: Floats) -> float:
        """The largest amount that leaves any one GPU, over all its links together."""
        sources = np.array(self._sources[: loads.size])
        return float(np.bincount(sources[sources >= 0], loads[sources >= 0]).max())

    def loads(self, flows: Mapping[tuple[str, str], float]) -> Loads:
        """What flows of these amounts, by (from, to), put on every edge; errors as `pairs`."""
        pairs = self.pairs(list(flows))
        amounts = np.fromiter(flows.values(), np.float64, len(flows))
        found = {}
        for order in np.unique(pairs.order):
            of_kind = [(numbers, pairs.order[numbers] == order, edges) for numbers, edges in pairs.parts]
            found[_KINDS[int(order)]] = self.counted(
                [(edges[chosen], amounts[numbers[chosen]]) for numbers, chosen, edges in of_kind]
            )
        return found

    def counted(self, parts: Sequence[tuple[Ints, Floats | Ints]]) -> Floats:
        """Amount on every edge; a part is (edge numbers, a row for each route, padded with -1; the amount of each row)."""
        total = np.zeros(len(self.edges) + 1)  # the last takes the padding
        for rows, amounts in parts:
            total += np.bincount(rows.ravel() % total.size, np.repeat(amounts, rows.shape[1]), total.size)
        return total[:-1]

    def halves(self, gpus: Sequence[str]) -> Halves:
        """The nodes and half routes of these GPUs."""
        rows = np.array([self._row(gpu) for gpu in gpus])
        columns = [half.columns().of(rows) for half in (self._up, self._down, self._out, self._into)]
        return Halves(self._places()[rows], *columns)

    def pairs(self, ends: Sequence[tuple[str, str]]) -> Pairs:
        """The routes from the first to the second of every pair.

        Raises:
            LookupError: no route joins a pair; its argument is the pair.
        """
        gpus = np.array([(self._row(a), self._row(b)) for a, b in ends], dtype=np.int64).reshape(-1, 2)
        found = Pairs(np.full(len(ends), _NONE), np.zeros(len(ends)), [])
        if (gpus >= 0).all(axis=1).any():
            self._over_switch(gpus, found)
            self._over_fabric(gpus, found)
        self._searched(ends, found)
        return found

    def _places(self) -> Ints:
        """The number of every GPU's node."""
        if self._nodes_now.size < len(self._nodes):
            self._nodes_now = np.array(self._nodes)
        return self._nodes_now

    def _over_switch(self, gpus: Ints, found: Pairs) -> None:
        """Fills in the pairs whose GPUs are at one NVSwitch."""
        (at, up_order, up_s, up), (to, down_order, down_s, down) = self._up.columns(), self._down.columns()
        chosen = np.flatnonzero((gpus >= 0).all(axis=1) & (at[gpus[:, 0]] == to[gpus[:, 1]]) & (at[gpus[:, 0]] >= 0))
        a, b = gpus[chosen].T
        found.order[chosen] = np.minimum(up_order[a], down_order[b])
        found.latency_s[chosen] = up_s[a] + down_s[b]
        found.parts.extend([(chosen, up[a]), (chosen, down[b])])

    def _over_fabric(self, gpus: Ints, found: Pairs) -> None:
        """Fills in the pairs in two nodes, each GPU by its own NIC."""
        (left, out_order, out_s, out), (entered, in_order, in_s, into) = self._out.columns(), self._into.columns()
        nodes, (a, b), switches = self._places(), gpus.T, len(self._switch)
        usual = (gpus >= 0).all(axis=1) & (found.order == _NONE) & (nodes[a] != nodes[b])
        chosen = np.flatnonzero(usual & (left[a] >= 0) & (entered[b] >= 0))
        ports, of = np.unique(left[a[chosen]] * switches + entered[b[chosen]], return_inverse=True)
        middles = [self.middle(*divmod(port, switches)) for port in ports.tolist()]
        there = np.array([middle is not None for middle in middles], dtype=bool)[of]
        chosen, of = chosen[there], of[there]
        if not chosen.size:
            return
        routes = [middle or (_NOWHERE, []) for middle in middles]
        order = np.array([SOFTWARE_ORDER[route.kind] if route.edges else len(_KINDS) for route, _ in routes])
        a, b = gpus[chosen].T
        found.order[chosen] = np.minimum(np.minimum(out_order[a], in_order[b]), order[of])
        found.latency_s[chosen] = out_s[a] + np.array([route.latency_s for route, _ in routes])[of] + in_s[b]
        found.parts.extend([(chosen, out[a]), (chosen, into[b]), (chosen, _padded([edges for _, edges in routes])[of])])

    def _searched(self, ends: Sequence[tuple[str, str]], found: Pairs) -> None:
        """Fills in the rest, each searched for: relays, PCIe, a switch at one end; or no route at all."""
        missing = np.flatnonzero(found.order == _NONE)
        edges = []
        for k in missing.tolist():
            route = self._direct.get(ends[k]) or self._router.route(*ends[k])
            if route is None:
                raise LookupError(ends[k])
            found.order[k], found.latency_s[k] = SOFTWARE_ORDER[route.kind], route.latency_s
            edges.append(self._numbers(route))
        if edges:
            found.parts.append((missing, _padded(edges)))

    def middle(self, first: int, last: int) -> tuple[Route, list[int]] | None:
        """(route, its edge numbers) through the fabric between two switches, given by number; None where there is none."""
        key = first, last
        if key not in self._middles:
            names = list(self._switch)
            route = self._router.in_fabric(names[first], names[last])
            self._middles[key] = None if route is None else (route, self._numbers(route))
        return self._middles[key]

    def _row(self, name: str) -> int:
        """The number of a GPU, from the first time it is named; -1 for another component."""
        found = self._gpu.get(name)
        if found is not None:
            return found
        router = self._router
        if name not in router.node_of:
            return _NONE
        self._nodes.append(self._node.setdefault(router.node_of[name], len(self._node)))
        hub, alone = router.hub(name)
        if hub is not None:
            for pair in ((name, hub), (hub, name)):
                self._direct[pair] = router.link(*pair)
        ways = (
            (self._up, None if hub is None else self._direct[name, hub]),
            (self._down, None if hub is None else self._direct[hub, name]),
            (self._out, router.to_fabric(name) if alone else None),
            (self._into, router.from_fabric(name) if alone else None),
        )
        for halves, route in ways:
            outward = halves is self._up or halves is self._out
            switch = _NONE
            if route is not None:
                end = route.edges[-1][1] if outward else route.edges[0][0]
                switch = self._switch.setdefault(end, len(self._switch))
            halves.append(switch, route, [] if route is None else self._numbers(route))
        return self._gpu.setdefault(name, len(self._gpu))

    def _numbers(self, route: Route) -> list[int]:
        """The numbers of the edges of a route; new edges are entered into the table."""
        numbers = []
        for edge in route.edges:
            found = self._edge.get(edge)
            if found is None:
                found = self._edge[edge] = len(self.edges)
                self.edges.append(edge)
                self._rates.append(self._router.rate(edge))
                sender = edge[0] in self._router.node_of
                self._sources.append(self._senders.setdefault(edge[0], len(self._senders)) if sender else _NONE)
            numbers.append(found)
        return numbers


_NOWHERE = Route((), "", 0.0, 0.0)


def _padded(rows: Sequence[list[int]]) -> Ints:
    longest = max(map(len, rows), default=0)
    return np.array([row + [_NONE] * (longest - len(row)) for row in rows], dtype=np.int64).reshape(len(rows), longest)
