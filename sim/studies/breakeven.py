"""At which latency and which bandwidth between nodes one deployment overtakes another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sim.engine.deployment import Deployment
from sim.hardware.topology import Topology
from sim.hardware.topology_language import NETWORK_KINDS
from sim.studies.mean_iteration import Iterations, mean_causes
from sim.units import format_rate, format_time

Quantity = Literal["latency", "bandwidth"]
_DECADES = 3
"""How far links are made better and worse: a thousand times."""
_PRECISION = 1e-4
"""Of the factor found."""
_ATTRIBUTES = {"latency": "latency_s", "bandwidth": "bandwidth_bytes_per_s"}


@dataclass(frozen=True)
class Wire:
    """What the nodes of a deployment are joined by, on the worst way that its GPUs use."""

    kind: str
    latency_s: float
    """One way, over all network links of the way."""
    bandwidth_bytes_per_s: float
    """Of the slowest network link, one direction."""

    def value(self, quantity: Quantity) -> float:
        return self.latency_s if quantity == "latency" else self.bandwidth_bytes_per_s


@dataclass(frozen=True)
class Contender:
    """A deployment, and the mean iteration in which it is compared."""

    deployment: Deployment
    iterations: Iterations

    def iteration_s(self, quantity: Quantity = "latency", factor: float = 1.0) -> float:
        """Seconds of the iteration with every network link's latency or bandwidth times `factor`."""
        deployment = self.deployment
        if factor != 1.0:
            deployment = deployment.changed(topology=_rewired(deployment.topology, quantity, factor))
        return float(mean_causes(deployment, self.iterations).sum())


@dataclass(frozen=True)
class BreakEven:
    """Where the choice flips when the latency or the bandwidth between nodes changes and nothing else."""

    quantity: Quantity
    now: float | None
    """Seconds one way, or bytes a second, of the links that are changed; None if no network is crossed."""
    flips_at: float | None
    """None: never."""
    text: str


def crossing(deployment: Deployment) -> Wire | None:
    """What joins the nodes of a deployment; None if every replica stays inside one."""
    topology = deployment.topology
    found = []
    for stages in deployment.placement:
        ring = [gpu for ranks in stages for gpu in ranks]
        for a, b in dict.fromkeys(itertools.pairwise([*ring, ring[0]])):
            if a == b:
                continue
            links = [topology.graph.edges[edge] for edge in topology.path(a, b)]
            network = [link for link in links if link["kind"] in NETWORK_KINDS]
            if network:
                slowest = min(network, key=lambda link: float(link["bandwidth_bytes_per_s"]))
                latency_s = sum(float(link["latency_s"]) for link in network)
                found.append(Wire(slowest["kind"], latency_s, float(slowest["bandwidth_bytes_per_s"])))
    return max(found, key=lambda wire: (-wire.bandwidth_bytes_per_s, wire.latency_s), default=None)


def break_even(faster: Contender, slower: Contender, quantity: Quantity) -> BreakEven:
    """Where `slower` becomes as fast as `faster`, by closed-form iterations.

    The links change in both if they stand in the same fabric; else in the slower one, or in the faster if only that one
    crosses a network. Sharing with other replicas is left out.
    """
    wires = crossing(faster.deployment), crossing(slower.deployment)
    changed = _changed(faster, slower, wires)
    wire = wires[1] if changed[1] else wires[0]
    if wire is None:
        return BreakEven(quantity, None, None, "never: neither crosses a network")

    def lead_s(factor: float) -> float:
        """By how much the faster one is ahead."""
        mine, other = (factor if change else 1.0 for change in changed)
        return slower.iteration_s(quantity, other) - faster.iteration_s(quantity, mine)

    now = wire.value(quantity)
    if lead_s(1.0) <= _PRECISION * slower.iteration_s(quantity, 1.0):
        # what sets them apart in the run (a slow GPU, sharing, another batch) is not in these iterations
        return BreakEven(quantity, now, None, "never: alone on their links there is no lead to lose")
    factor = _flip(lead_s)
    flips_at = None if factor is None else factor * now
    return BreakEven(quantity, now, flips_at, _told(quantity, now, flips_at, changed))


def _changed(faster: Contender, slower: Contender, wires: tuple[Wire | None, Wire | None]) -> tuple[bool, bool]:
    if None in wires:
        return wires[0] is not None, wires[1] is not None
    clusters = [contender.deployment.scenario.cluster for contender in (faster, slower)]
    same = clusters[0].model_copy(update={"nodes": None}) == clusters[1].model_copy(update={"nodes": None})
    return same, True


def _told(quantity: Quantity, now: float, flips_at: float | None, changed: tuple[bool, bool]) -> str:
    show = format_time if quantity == "latency" else format_rate
    if flips_at is None:
        return f"never, from {show(now / 10**_DECADES)} to {show(now * 10**_DECADES)} ({show(now)} now)"
    whose = "both" if all(changed) else "the slower" if changed[1] else "the faster"
    return f"at {show(flips_at)} ({show(now)} now; the links of {whose} change)"


def _rewired(topology: Topology, quantity: Quantity, factor: float) -> Topology:
    """`topology` with every network link's latency or bandwidth times `factor`."""
    name = _ATTRIBUTES[quantity]

    def change(link: dict[str, Any]) -> None:
        if link["kind"] in NETWORK_KINDS:
            link[name] *= factor

    return topology.with_links(change)


def _flip(lead_s: Callable[[float], float]) -> float | None:
    """The factor nearest to 1 at which the lead is gone, looked for decade by decade; None if it never is."""
    for decade in range(_DECADES):
        for sign in (1, -1):
            near, far = 10.0 ** (sign * decade), 10.0 ** (sign * (decade + 1))
            if lead_s(far) <= 0.0:
                return _bisected(lead_s, near, far)
    return None


def _bisected(lead_s: Callable[[float], float], near: float, far: float) -> float:
    """The factor between `near`, where there is a lead, and `far`, where there is none."""
    while abs(math.log(far / near)) > _PRECISION:
        middle = math.sqrt(near * far)
        near, far = (middle, far) if lead_s(middle) > 0.0 else (near, middle)
    return far
