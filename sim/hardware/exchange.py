"""What a full exchange puts on every edge: every GPU sends to every other, counted without naming the pairs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sim.hardware.loads import EdgeTable, Halves, Ints, Loads
from sim.hardware.routing import SOFTWARE_ORDER

# up to so many GPUs, listing every pair is quicker
_FEW = 24
_KINDS = tuple(SOFTWARE_ORDER)
_Ends = list[tuple[str, str]]


class Exchange(NamedTuple):
    """The routes from every GPU to every other."""

    loads: Loads
    """How many of them use each edge."""
    kind: str
    """Of the slowest route: the slowest software before the longest wires."""
    latency_s: float


def exchange(table: EdgeTable, gpus: Sequence[str]) -> Exchange:
    """The full exchange among `gpus`; errors as `EdgeTable.pairs`."""
    parts = None if len(gpus) <= _FEW else _counted(table, gpus)
    return _together(parts or [_listed(table, list(itertools.permutations(gpus, 2)))])


def _listed(table: EdgeTable, ends: _Ends) -> Exchange:
    pairs = table.pairs(ends)
    slowest = int(np.lexsort((-pairs.latency_s, pairs.order))[0])
    return Exchange(table.loads(dict.fromkeys(ends, 1.0)), pairs.kind(slowest), float(pairs.latency_s[slowest]))


def _together(parts: Sequence[Exchange]) -> Exchange:
    size = max(amounts.size for part in parts for amounts in part.loads.values())
    loads: Loads = {}
    for part in parts:
        for kind, amounts in part.loads.items():
            total = loads.setdefault(kind, np.zeros(size))
            total[: amounts.size] += amounts
    slowest = min(parts, key=lambda part: (SOFTWARE_ORDER[part.kind], -part.latency_s))
    return Exchange(loads, slowest.kind, slowest.latency_s)


def _counted(table: EdgeTable, gpus: Sequence[str]) -> list[Exchange] | None:
    """Three classes of routes: over one NVSwitch, else inside one node, else through the fabric. None where the GPUs of a class
    are not joined alike, so that they cannot be counted together."""
    at = table.halves(gpus)
    hubs = np.where(at.up.switch == at.down.switch, at.up.switch, -1)
    both = np.where(hubs >= 0, at.nodes * (hubs.max() + 1) + hubs, -1)
    beside, near = _others(hubs), _others(at.nodes)
    apart = len(gpus) - 1 - beside - near + _others(both)
    parts = []
    if beside.any():
        order = np.minimum(at.up.order, at.down.order)[hubs >= 0]
        latency_s = (at.up.latency_s + at.down.latency_s)[hubs >= 0]
        if np.ptp(order) or np.ptp(latency_s):
            return None
        loads = table.counted([(at.up.edges, beside), (at.down.edges, beside)])
        parts.append(Exchange({_KINDS[order[0]]: loads}, _KINDS[order[0]], float(latency_s[0])))
    if (near > _others(both)).any():
        ends = [(gpus[a], gpus[b]) for members in _groups(at.nodes) for a, b in itertools.permutations(members, 2)
                if hubs[a] < 0 or hubs[a] != hubs[b]]  # fmt: skip
        parts.append(_listed(table, ends))
    if not apart.any():
        return parts
    through = _through_fabric(table, at, apart, [(at.nodes, 1), (hubs, 1), (both, -1)])
    return None if through is None else [*parts, through]


def _through_fabric(table: EdgeTable, at: Halves, apart: Ints, near: list[tuple[Ints, int]]) -> Exchange | None:
    """The routes through the fabric, `apart` of them from each GPU; None as in `_counted`.

    Args:
        near: (labels, sign): pairs of equal label are joined in another way and taken off the count; with sign -1 they are
            put back, because two labels before have taken them off twice.
    """
    out, into = at.out, at.into
    if (out.switch < 0).any() or (into.switch < 0).any() or np.ptp(out.order) or np.ptp(into.order):
        return None
    (first, leaving), (last, entering) = (np.unique(half.switch, return_inverse=True) for half in (out, into))
    number = np.outer(np.bincount(leaving), np.bincount(entering)).astype(np.float64)
    for labels, sign in near:
        for members in _groups(labels):
            np.subtract.at(number, (leaving[members][:, None], entering[members][None, :]), sign)
    ports = np.argwhere(number > 0).tolist()
    middles = [table.middle(int(first[a]), int(last[b])) for a, b in ports]
    if None in middles:
        return None
    routes = [middle[0] for middle in middles if middle]
    orders = {min(SOFTWARE_ORDER.get(route.kind, len(_KINDS)), out.order[0], into.order[0]) for route in routes}
    farthest = _farthest_s(
        at, leaving, entering, [(a, b, route.latency_s) for (a, b), route in zip(ports, routes, strict=True)]
    )
    if len(orders) > 1 or farthest is None:
        return None
    edges = np.array([edge for middle in middles if middle for edge in middle[1]], dtype=np.int64).reshape(-1, 1)
    counts = np.array([number[a, b] for (a, b), route in zip(ports, routes, strict=True) for _ in route.edges])
    kind = _KINDS[orders.pop()]
    return Exchange({kind: table.counted([(out.edges, apart), (into.edges, apart), (edges, counts)])}, kind, farthest)


def _farthest_s(at: Halves, leaving: Ints, entering: Ints, middles: list[tuple[int, int, float]]) -> float | None:
    """Latency of the longest route through the fabric; None where only GPUs that are joined in another way may have it."""
    out_s, in_s = np.zeros(leaving.max() + 1), np.zeros(entering.max() + 1)
    np.maximum.at(out_s, leaving, at.out.latency_s)
    np.maximum.at(in_s, entering, at.into.latency_s)
    found, a, b = max((out_s[a] + middle_s + in_s[b], a, b) for a, b, middle_s in middles)
    senders = np.flatnonzero((leaving == a) & (at.out.latency_s == out_s[a]))
    receivers = np.flatnonzero((entering == b) & (at.into.latency_s == in_s[b]))
    ends = np.concatenate([senders, receivers])
    hubs = np.unique(at.up.switch[ends])
    beside = np.unique(at.nodes[ends]).size < 2 or (hubs.size < 2 and hubs[0] >= 0)
    return None if beside else float(found)


def _others(labels: Ints) -> Ints:
    """How many others have the same label; 0 where it is -1."""
    _, which, number = np.unique(labels, return_inverse=True, return_counts=True)
    return np.where(labels >= 0, number[which] - 1, 0)


def _groups(labels: Ints) -> Iterator[list[int]]:
    """Positions of equal labels, those of -1 left out."""
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        yield members.tolist()
