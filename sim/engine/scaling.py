"""A deployment with more or less of one resource, for what-if questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import networkx as nx

from sim.cost.collective_constants import CONSTANTS, LinkConstants
from sim.engine.deployment import Deployment
from sim.hardware.gpu import Gpu
from sim.hardware.topology import Topology
from sim.hardware.topology_language import NETWORK_KINDS
from sim.model.balance import MemoryLedger


@dataclass(frozen=True, slots=True)
class Scaling:
    """Factors on what a deployment has; 1 leaves it as it is."""

    hbm_bandwidth: float = 1.0
    flops: float = 1.0
    link_bandwidth: float = 1.0
    """NVLink, Infinity Fabric and PCIe: every link inside a node or rack."""
    network_bandwidth: float = 1.0
    network_latency: float = 1.0
    kv_memory: float = 1.0
    """KV blocks of a replica."""
    host_overhead: float = 1.0
    """The engine's own time: host, gaps, entry and exit."""

    def deployment(self, pool: Deployment) -> Deployment:
        """A copy of `pool` with these factors; its KV memory is scaled by `memory`."""
        preset = pool.preset
        times = [field.name for field in fields(preset) if field.name.endswith("_s")]
        slower: dict[str, Any] = {name: getattr(preset, name) * self.host_overhead for name in times}
        scaled = replace(
            pool,
            topology=self._topology(pool.topology),
            preset=replace(preset, **slower),
            link_constants=self._constants(),
            _costs={},
            _backends=[],
        )
        scaled.gpus = {name: self._gpu(gpu) for name, gpu in pool.gpus.items()}
        return scaled

    def memory(self, ledger: MemoryLedger) -> MemoryLedger:
        """`ledger` with its KV blocks scaled."""
        if self.kv_memory == 1.0:
            return ledger
        share = self.kv_memory
        return replace(
            ledger,
            num_blocks=int(ledger.num_blocks * share),
            usable_blocks=int(ledger.usable_blocks * share),
            kv_tokens_capacity=int(ledger.kv_tokens_capacity * share),
            max_sequences=int(ledger.max_sequences * share),
        )

    def _gpu(self, gpu: Gpu) -> Gpu:
        rates = {kind: rate * self.flops for kind, rate in gpu.flops_per_s.items()}
        return replace(gpu, hbm_bytes_per_s=gpu.hbm_bytes_per_s * self.hbm_bandwidth, flops_per_s=rates)

    def _topology(self, topology: Topology) -> Topology:
        if (self.link_bandwidth, self.network_bandwidth, self.network_latency) == (1.0, 1.0, 1.0):
            return topology
        graph = nx.DiGraph(topology.graph)
        for _, _, edge in graph.edges(data=True):
            if edge["kind"] in NETWORK_KINDS:
                edge["bandwidth_bytes_per_s"] *= self.network_bandwidth
                edge["latency_s"] *= self.network_latency
            else:
                edge["bandwidth_bytes_per_s"] *= self.link_bandwidth
        return replace(topology, graph=graph, _router=None)

    def _constants(self) -> Mapping[str, LinkConstants]:
        """What software adds at every step over a network is latency like that of the wires."""
        if self.network_latency == 1.0:
            return CONSTANTS
        constants = dict(CONSTANTS)
        for kind in NETWORK_KINDS:
            old = constants[kind]
            methods = {
                name: replace(method, step_s=method.step_s * self.network_latency)
                for name, method in old.methods.items()
            }
            constants[kind] = replace(old, methods=methods)
        return constants
