"""The ideal twin of a deployment: the same GPUs behind one NVLink switch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np

from sim.cost.collective_constants import LinkConstants
from sim.cost.collective_plan import Price, method_of
from sim.cost.collectives import Chosen, CollectiveTimes, Communicator, launch_s
from sim.cost.kernels import Floats
from sim.engine.deployment import Deployment
from sim.hardware.gpu import Gpu
from sim.hardware.topology import Topology, build_topology
from sim.hardware.topology_language import DIRECT_KINDS

_BY_ARCHITECTURE = {
    70: ("nvlink2", 150e9, False),
    80: ("nvlink3", 300e9, False),
    90: ("nvlink4", 450e9, True),
    100: ("nvlink5", 900e9, True),
}
"""CUDA compute capability x 10 -> NVLink generation, bytes a second of one GPU in one direction, and whether its switch adds
up what passes. Datasheets of V100, A100, H100 and B200 (300, 600, 900 and 1,800 GB/s both ways)."""
_EQUAL = 1 + 1e-12
_SWITCH_LATENCY = "0.2 us"
"""One NVLink into the switch; as in topologies/dgx-h100.yaml."""


def nvlink_twin(deployment: Deployment) -> Deployment:
    """`deployment` with its GPUs, in their order, behind one switch; none of them slow, none sharing a link.

    The links are those of the GPU's own NVLink (or Infinity Fabric) in its topology; for a GPU without any, those of the
    data-centre GPU of its architecture or the one before. Collectives are those of `TwinCommunicator`.
    """
    names = deployment.gpu_names
    gpu = deployment.gpus[names[0]]
    kind, rate_bytes_per_s, reduces = _own_links(deployment.topology, names[0]) or _usual_links(gpu)
    topology = build_topology(_single_switch(gpu.name, len(names), kind, rate_bytes_per_s, reduces), {}, "twin")
    renamed = dict(zip(names, topology.gpus, strict=True))
    placement = [[[renamed[name] for name in stage] for stage in stages] for stages in deployment.placement]
    own = {field.name: getattr(deployment, field.name) for field in fields(deployment)}
    own |= {"topology": topology, "placement": placement, "_costs": {}, "_backends": []}
    return _Twin(**own, original=deployment)


@dataclass
class _Twin(Deployment):
    """A deployment that never communicates worse than its original."""

    original: Deployment | None = None

    def communicator(self, gpus: list[str]) -> Communicator:
        there = cast(Deployment, self.original)
        renamed = dict(zip(self.gpu_names, there.gpu_names, strict=True))
        original = there.communicator([renamed[gpu] for gpu in gpus])
        return TwinCommunicator(self.topology, gpus, self.preset.software, self.link_constants, original)

    def _signature(self, stages: list[list[str]]) -> tuple[object, ...]:
        there = cast(Deployment, self.original)
        return there._signature(there.placement[self.placement.index(stages)])


class TwinCommunicator(Communicator):
    """Prices collectives behind one switch by the same software as on another fabric, and never worse than there.

    For each message it takes the fastest algorithm that has neither more latency nor more time in bandwidth than what runs
    on the original; where none has, the original's own algorithm with every step over NVLink, and with the bandwidth that it
    reaches there.
    """

    def __init__(
        self,
        topology: Topology,
        gpus: Sequence[str],
        software: str,
        constants: Mapping[str, LinkConstants],
        original: Communicator,
    ) -> None:
        super().__init__(topology, gpus, software, constants)
        self._original = original

    def times(self, op: str, sizes_bytes: Floats) -> CollectiveTimes:
        """Latency and bandwidth seconds; each at most the original's."""
        sizes = np.asarray(sizes_bytes, dtype=np.float64)
        there = self._original.chosen(op, sizes)
        ways = [self._on_nvlink(there), *self.ways(op, sizes)]
        latency, bandwidth = np.array([way.latency_s for way in ways]), np.array([way.bandwidth_s for way in ways])
        worse = (latency > there.latency_s * _EQUAL) | (bandwidth > there.bandwidth_s * _EQUAL)
        fastest = np.argmin(np.where(worse, np.inf, latency + bandwidth), axis=0), np.arange(sizes.size)
        return CollectiveTimes(latency[fastest], bandwidth[fastest])

    def _on_nvlink(self, there: Chosen) -> CollectiveTimes:
        """What ran on the original, step by step over NVLink."""
        latency = there.latency_s.copy()
        wire_s = sum(data["latency_s"] for data in self.topology.graph[self.group.gpus[0]].values()) * 2
        for number, price in enumerate(there.prices):
            latency[there.of == number] = np.minimum(latency[there.of == number], self._stepped_s(price, wire_s))
        return CollectiveTimes(latency, there.bandwidth_s)

    def _stepped_s(self, price: Price, wire_s: float) -> float:
        """Launch and steps of a plan with every hop over NVLink; infinity for a family that NVLink does not know."""
        constants = self.link_constants[self.kind]
        total_s, start_s = launch_s(constants, price.plan), 0.0
        for phase in price.plan.phases:
            try:
                method = method_of(constants.methods, phase.family, price.protocol)
            except KeyError:
                return float("inf")
            start_s = max(start_s, method.start_s + phase.connections * method.connection_s)
            total_s += phase.steps * (method.step_s + wire_s)
        return total_s + start_s


def _single_switch(gpu: str, count: int, kind: str, rate_bytes_per_s: float, reduces: bool) -> dict[str, Any]:
    """Content of a topology file."""
    link = {
        "from": "g",
        "to": "nvs",
        "kind": kind,
        "bandwidth": f"{rate_bytes_per_s!r} B/s",
        "latency": _SWITCH_LATENCY,
    }
    return {
        "name": "one-nvlink-domain",
        "description": f"{count} {gpu} behind one switch",
        "source": "an ideal, for comparison",
        "gpu": gpu,
        "parameters": {"nodes": 1},
        "node": {
            "components": {
                "g": {"type": "gpu", "count": count},
                "nvs": {"type": "nvswitch", "in_network_reduction": reduces},
            },
            "links": [link],
        },
    }


def _own_links(topology: Topology, gpu: str) -> tuple[str, float, bool] | None:
    """(kind, bytes a second out of the GPU, whether a switch adds up) of its direct links; None without any."""
    edges = [(b, data) for _, b, data in topology.graph.out_edges(gpu, data=True) if data["kind"] in DIRECT_KINDS]
    if not edges:
        return None
    reduces = any(topology.graph.nodes[b]["in_network_reduction"] for b, _ in edges)
    return edges[0][1]["kind"], sum(data["bandwidth_bytes_per_s"] for _, data in edges), reduces


def _usual_links(gpu: Gpu) -> tuple[str, float, bool]:
    known = [version for version in _BY_ARCHITECTURE if version <= gpu.sm_version]
    return _BY_ARCHITECTURE[max(known, default=min(_BY_ARCHITECTURE))]
