"""How long a collective takes on a group of GPUs, alone: the fastest algorithm and protocol that the software can use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim import units
from sim.collector import collector_paused
from sim.cost import collective_algorithms as algorithms
from sim.cost.collective_algorithms import Group
from sim.cost.collective_constants import (
    CONSTANTS,
    CUSTOM_LIMIT_BYTES,
    EAGER_COPY,
    LAMPORT_LIMIT_BYTES,
    SHOTS_LIMIT_BYTES,
    LinkConstants,
)
from sim.cost.collective_plan import Plan, Price
from sim.cost.kernels import Floats
from sim.errors import InputError, nearest
from sim.hardware.routing import Edge
from sim.hardware.topology import Topology
from sim.hardware.topology_language import DIRECT_KINDS, LINK_KINDS, PCIE_KINDS, CalibrationSpec

OPS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv")
SOFTWARE = ("custom", "shots", "trtllm", "nccl", "eager", "torch", "ideal")
"""custom: vLLM's kernels under CUDA graphs, NCCL where they do not apply; shots: the same without those that let the switch
reduce, as SGLang 0.5 (its tables of 0.5.9 and 0.5.10); trtllm: TensorRT-LLM's one-shot kernel or NCCL, whichever is faster,
as its own tables show (eight H100s take 26 to 80 us for 1 to 8 MB where vLLM takes 15 to 50); eager: as custom, without CUDA
graphs; nccl: NCCL, one call behind another as nccl-tests does; torch: NCCL through torch.distributed, launched one by one;
ideal: free."""
_WITH_ENGINES_KERNELS = ("custom", "shots", "trtllm", "eager")
# NCCL takes NVLS from five GPUs on (measured in Stas Bekman's ML Engineering book: ring at 4 GPUs, NVLS from 5)
_NVLS_FROM_GPUS = 5


@dataclass(frozen=True, slots=True)
class CollectiveTime:
    """Time of one collective alone, and why."""

    op: str
    size_bytes: float
    ranks: int
    algorithm: str
    protocol: str
    steps: int
    launch_s: float
    latency_s: float
    bandwidth_s: float
    error: float = 0.0
    """Fraction within which nine in ten measured times of these links and this software lie."""
    source: str = ""
    """Where the constants come from."""
    _topology: Topology | None = field(default=None, repr=False)
    _plan: Plan | None = field(default=None, repr=False)

    @property
    def time_s(self) -> float:
        return self.launch_s + self.latency_s + self.bandwidth_s

    @property
    def edge_bytes(self) -> dict[Edge, float]:
        """Bytes on every directed edge."""
        total: dict[Edge, float] = {}
        if self._plan is None or self._topology is None:
            return total
        for phase in self._plan.phases:
            for edge, share in phase.shares(self._topology).items():
                total[edge] = total.get(edge, 0.0) + share * self.size_bytes
        return total

    @property
    def edge_bytes_by_kind(self) -> dict[str, float]:
        """Bytes by link kind, summed over its directed edges."""
        total: dict[str, float] = {}
        for edge, amount in self.edge_bytes.items():
            kind = str(self._topology.graph.edges[edge]["kind"]) if self._topology else ""
            total[kind] = total.get(kind, 0.0) + amount
        return total

    @property
    def bus_bandwidth_bytes_per_s(self) -> float:
        """nccl-tests' busbw: size / time x 2(n-1)/n for all_reduce, (n-1)/n for gather, scatter and all-to-all."""
        factor = {"all_reduce": 2 * (self.ranks - 1) / self.ranks, "broadcast": 1.0, "send_recv": 1.0}
        wire = self.size_bytes * factor.get(self.op, (self.ranks - 1) / self.ranks)
        return wire / self.time_s if self.time_s else float("inf")


class CollectiveTimes(NamedTuple):
    """Seconds of collectives of many sizes; `latency_s` holds launch and steps and knows no bandwidth."""

    latency_s: Floats
    bandwidth_s: Floats


class Chosen(NamedTuple):
    """What a group runs for collectives of many sizes."""

    prices: list[Price]
    of: NDArray[np.intp]
    """For every size the number of its price."""
    latency_s: Floats
    bandwidth_s: Floats


class Communicator:
    """Prices the collectives of one group of GPUs; every (op, size) is worked out once."""

    def __init__(
        self,
        topology: Topology,
        gpus: Sequence[str],
        software: str = "custom",
        constants: Mapping[str, LinkConstants] = CONSTANTS,
    ) -> None:
        """
        Args:
            gpus: GPU names in rank order.
            software: one of SOFTWARE.
            constants: what software adds to the wires; WIRES of collective_constants adds nothing.

        Raises:
            InputError: an unknown GPU or software, a GPU named twice, or one that the others cannot reach.
        """
        if software not in SOFTWARE:
            raise InputError("collectives", f"unknown software '{software}'", nearest(software, SOFTWARE))
        topology.check_gpus(list(gpus), "collectives")
        if len(set(gpus)) < len(gpus) or not gpus:
            raise InputError("collectives", f"got {list(gpus)!r}", "at least one GPU, none twice")
        # from each to the next and from the last to the first: then every one reaches every other
        topology.pairs([pair for pair in zip(gpus, [*gpus[1:], gpus[0]], strict=True) if pair[0] != pair[1]])
        self.topology = topology
        self.group = Group(topology, gpus)
        self.software = software
        self.kind = _fastest_kind(topology, gpus[0])
        self.link_constants = calibrated(constants, topology.calibration)
        self._prices: dict[str, list[Price]] = {}
        self._memo: dict[tuple[str, float], CollectiveTime] = {}

    def time(
        self, op: str, size_bytes: float, algorithm: str | None = None, protocol: str | None = None
    ) -> CollectiveTime:
        """Time of one collective of `size_bytes` alone.

        Args:
            op: one of OPS. In send_recv the first half of the ranks sends to the second half, pair by pair.
            size_bytes: as nccl-tests counts it (see collective_algorithms).
            algorithm, protocol: these instead of the fastest.

        Raises:
            InputError: an unknown op, or an algorithm or protocol that this group cannot use.
        """
        if algorithm is None and protocol is None:
            found = self._memo.get((op, size_bytes))
            if found is None:
                found = self._memo[op, size_bytes] = self._time(op, size_bytes, self._candidates(op))
            return found
        prices = self._candidates(op)
        chosen = [
            price
            for price in prices
            if (algorithm or price.plan.algorithm, protocol or price.protocol) == (price.plan.algorithm, price.protocol)
        ]
        if prices and not chosen:
            names = sorted({f"{price.plan.algorithm} {price.protocol}".strip() for price in prices})
            asked = " ".join(word for word in (algorithm, protocol) if word)
            raise InputError("collectives", f"no '{asked}' for {op} here", f"allowed: {', '.join(names)}")
        return self._time(op, size_bytes, chosen, limited=False)

    def times(self, op: str, sizes_bytes: Floats) -> CollectiveTimes:
        """Latency and bandwidth seconds of collectives of many sizes, as `time` gives them one by one."""
        sizes = np.asarray(sizes_bytes, dtype=np.float64)
        found = self.chosen(op, sizes)
        return CollectiveTimes(found.latency_s, found.bandwidth_s)

    def chosen(self, op: str, sizes_bytes: Floats) -> Chosen:
        """What runs for each of many sizes, and its seconds."""
        sizes = np.asarray(sizes_bytes, dtype=np.float64)
        prices = self._candidates(op)
        if not prices:
            return Chosen([], np.zeros(sizes.size, dtype=np.intp), np.zeros_like(sizes), np.zeros_like(sizes))
        return Chosen(prices, *self._cheapest(op, prices, sizes))

    def ways(self, op: str, sizes_bytes: Floats) -> list[CollectiveTimes]:
        """Seconds by every algorithm and protocol; infinite for messages larger than the software sends that way."""
        sizes = np.asarray(sizes_bytes, dtype=np.float64)
        found = []
        for price in self._candidates(op):
            _, latency, bandwidth = self._cheapest(op, [price], sizes)
            found.append(CollectiveTimes(np.where(sizes > price.plan.limit_bytes, np.inf, latency), bandwidth))
        return found

    def algorithms(self, op: str) -> list[str]:
        """The algorithms that this group and software can use for `op`."""
        return sorted({price.plan.algorithm for price in self._candidates(op)})

    def _time(self, op: str, size_bytes: float, prices: list[Price], limited: bool = True) -> CollectiveTime:
        ranks = len(self.group)
        if not prices or size_bytes == 0:
            return CollectiveTime(op, size_bytes, ranks, "none", "", 0, 0.0, 0.0, 0.0)
        chosen, latency, bandwidth = self._cheapest(op, prices, np.array([size_bytes], dtype=np.float64), limited)
        price = prices[int(chosen[0])]
        kinds = sorted({self.kind, *(kind for phase in price.plan.phases for kind in phase.loads(self.topology))})
        return CollectiveTime(
            op=op,
            size_bytes=size_bytes,
            ranks=ranks,
            algorithm=price.plan.algorithm,
            protocol=price.protocol,
            steps=price.plan.steps,
            launch_s=float(latency[0]) - price.latency_s,
            latency_s=price.latency_s,
            bandwidth_s=float(bandwidth[0]),
            error=max(self.link_constants[kind].error for kind in kinds),
            source="; ".join(f"{kind}: {self.link_constants[kind].source}" for kind in kinds),
            _topology=self.topology,
            _plan=price.plan,
        )

    def _cheapest(
        self, op: str, prices: list[Price], sizes: Floats, limited: bool = True
    ) -> tuple[NDArray[np.intp], Floats, Floats]:
        """(index of the fastest price, its launch and latency, its bandwidth seconds) for every size."""
        bandwidths = np.array([price.bandwidth_s(sizes) for price in prices])
        latencies = np.array([np.full_like(sizes, price.launch_s + price.latency_s) for price in prices])
        totals = bandwidths + latencies
        for row, price in enumerate(prices):
            if limited:
                totals[row, sizes > price.plan.limit_bytes] = np.inf
        chosen = np.argmin(totals, axis=0)
        columns = np.arange(sizes.size)
        latency, bandwidth = latencies[chosen, columns], bandwidths[chosen, columns]
        if self.software == "eager":
            if op == "all_reduce":
                bandwidth = bandwidth + sizes / (EAGER_COPY * self._own_bandwidth())
            latency = np.maximum(latency, self.link_constants[self.kind].eager_floor_s - bandwidth)
        # a send has no such floor: the sender's kernel leaves the message in the buffer and ends
        if self.software == "torch" and op != "send_recv":
            latency = np.maximum(latency, self.link_constants[self.kind].torch_floor_s - bandwidth)
        latency = np.where(sizes > 0, latency, 0.0)
        return chosen, latency, bandwidth

    def _own_bandwidth(self) -> float:
        edges = self.topology.graph.out_edges(self.group.gpus[0], data=True)
        return float(sum(data["bandwidth_bytes_per_s"] for _, _, data in edges if data["kind"] == self.kind))

    def _candidates(self, op: str) -> list[Price]:
        found = self._prices.get(op)
        if found is None:
            with collector_paused():
                found = self._prices[op] = self._compile(op)
        return found

    def _compile(self, op: str) -> list[Price]:
        if op not in OPS:
            raise InputError("collectives", f"unknown collective '{op}'", nearest(op, OPS))
        if op == "send_recv" and len(self.group) % 2:
            raise InputError(
                "collectives", f"send_recv among {len(self.group)} GPUs", "an even number: senders, receivers"
            )
        if len(self.group) == 1 or self.software == "ideal":
            return []
        return [price for build in self._builders(op) for price in self._priced(build())]

    def _priced(self, plan: Plan | None) -> list[Price]:
        if plan is None:
            return []
        launch, prices = launch_s(self.link_constants[self.kind], plan), []
        for protocol in plan.protocols:
            try:
                prices.append(Price(self.topology, plan, protocol, self.link_constants, launch))
            except KeyError:  # a link on the way does not speak this protocol
                continue
        return prices

    def _builders(self, op: str) -> list[Callable[[], Plan | None]]:
        """The algorithms of NCCL for `op` and, where the software has them and they apply, the custom kernels."""
        group = self.group
        if op == "all_to_all":
            return [lambda: algorithms.exchange(group, 1 / len(group), 1, "peer", "peer", ("LL", "Simple"))]
        if op == "send_recv":
            return [lambda: algorithms.point_to_point(group)]
        builders: list[Callable[[], Plan | None]] = [lambda: algorithms.ring(group, op)]
        if op in ("all_reduce", "broadcast") and len(group.nodes) > 1:
            builders.append(lambda: algorithms.tree(group, op))
        if op == "all_reduce":
            builders += self._reducing()
            if self.software in _WITH_ENGINES_KERNELS:
                builders += self._custom()
        return builders

    def _reducing(self) -> list[Callable[[], Plan | None]]:
        """All-reduce with the help of switches, and by hierarchy."""
        group = self.group
        switch = group.reducing_switch()
        if switch is not None:
            if len(group) < _NVLS_FROM_GPUS:
                return []
            return [lambda: algorithms.in_switch(group, switch, "nvls", "nccl")]
        if len(group.nodes) == 1 or len({len(members) for members in group.nodes}) > 1:
            return []
        inside = all(Group(self.topology, members).reducing_switch() is not None for members in group.nodes)

        def chosen(plan: Plan | None) -> Plan | None:
            # NCCL reduces by node and rail with NVLS only; elsewhere the algorithm runs only where it is named
            return plan if plan is None or inside else replace(plan, limit_bytes=0.0)

        return [
            lambda: chosen(algorithms.hierarchical(group, inside)),
            lambda: chosen(algorithms.sharp(group, inside)),
        ]

    def _custom(self) -> list[Callable[[], Plan | None]]:
        """An engine's own kernels: peers that read each other's memory, a bounded message; past one node the switch alone."""
        group, n = self.group, len(self.group)
        limit = CUSTOM_LIMIT_BYTES.get(self.kind, {}).get(n, 0.0)
        if not limit or not group.reads_peers():
            return []
        one_node = len({self.topology.node_of[gpu] for gpu in group.gpus}) == 1
        if self.software == "trtllm":
            lamport = algorithms.exchange(group, 1.0, 1, "lamport", "none", ("",))
            # over PCIe its tables equal NCCL's
            return [lambda: replace(lamport, limit_bytes=LAMPORT_LIMIT_BYTES)] if one_node and group.direct() else []
        switch, plans = group.reducing_switch(), []
        if self.software == "shots":
            switch, limit = None, min(limit, SHOTS_LIMIT_BYTES)
        if one_node:
            plans.append(algorithms.exchange(group, 1.0, 1, "one_shot", "custom", ("",)))
            if n > 2:
                plans.append(algorithms.exchange(group, 2 / n, 2, "two_shot", "custom", ("",)))
        if switch is not None:
            plans.append(algorithms.in_switch(group, switch, "multimem", "custom"))
        bounded = [replace(plan, limit_bytes=limit) for plan in plans]
        return [lambda plan=plan: plan for plan in bounded]  # type: ignore[misc]


def launch_s(constants: LinkConstants, plan: Plan) -> float:
    """What starting the kernel of a plan takes."""
    launches = {
        "nccl": constants.launch_s,
        "peer": constants.peer_launch_s,
        "custom": constants.custom_launch_s,
        "none": 0.0,
    }
    return launches[plan.launch]


ENGINES_KERNELS = ("one_shot", "two_shot", "multimem", "lamport")
"""Families of all-reduce kernels that engines bring along."""


def calibrated(
    constants: Mapping[str, LinkConstants], calibration: Mapping[str, CalibrationSpec]
) -> Mapping[str, LinkConstants]:
    """`constants` with the measured behaviour of a topology's own links in place.

    The step overhead and efficiency given are those of the Simple protocol; the others keep their ratio to it. An engine's
    own kernels stay as they are: what is measured of a fabric (nccl-tests) does not run them.
    """
    if not calibration:
        return constants
    merged = dict(constants)
    for kind, spec in calibration.items():
        where = f"calibration.{kind}"
        methods = {}
        for name, method in constants[kind].methods.items():
            if name in ENGINES_KERNELS:
                methods[name] = method
                continue
            simple = constants[kind].methods.get(f"{name.split('/')[0]}/Simple", method)
            step_s, efficiency, start_s = method.step_s, method.efficiency, method.start_s
            if spec.step_overhead is not None:
                step_s = units.parse(spec.step_overhead, "s", where) * (method.step_s / simple.step_s)
            if spec.efficiency is not None:
                efficiency = min(1.0, spec.efficiency * method.efficiency / simple.efficiency)
            if spec.start is not None:
                start_s = units.parse(spec.start, "s", where)
            methods[name] = replace(method, step_s=step_s, efficiency=efficiency, start_s=start_s)
        error = constants[kind].error if spec.error is None else spec.error
        merged[kind] = replace(constants[kind], methods=methods, source=spec.source, error=error)
    return merged


def _fastest_kind(topology: Topology, gpu: str) -> str:
    """Kind of the best link of a GPU: it names the generation whose launch costs apply."""
    edges = [data for _, _, data in topology.graph.out_edges(gpu, data=True)]
    if not edges:
        raise InputError(topology.name, f"{gpu} cannot be reached: it has no link")

    # LINK_KINDS stands in the order direct, PCIe, network, and oldest first within each
    def preference(kind: str) -> tuple[bool, bool, int]:
        return kind in DIRECT_KINDS, kind in PCIE_KINDS, LINK_KINDS.index(kind)

    return str(max((data["kind"] for data in edges), key=preference))
