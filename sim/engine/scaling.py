"""A deployment with more or less of one resource, for what-if questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from sim.cost.collective_constants import LinkConstants
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
    kernel_times: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    """Durations of kernels by (GPU, kernel kind, dtype)."""
    collective_times: Mapping[str, float] = field(default_factory=dict)
    """What collective libraries add to the wires, by link kind: launches, steps, and the bandwidth they do not reach."""

    def deployment(self, pool: Deployment) -> Deployment:
        """A copy of `pool` with these factors; its KV memory is scaled by `memory`."""
        preset = pool.preset
        times = [field.name for field in fields(preset) if field.name.endswith("_s")]
        slower: dict[str, Any] = {name: getattr(preset, name) * self.host_overhead for name in times}
        scaled = pool.changed(
            topology=self._topology(pool.topology),
            preset=replace(preset, **slower),
            link_constants=self._constants(pool.link_constants),
            kernel_times=_product(pool.kernel_times, self.kernel_times),
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

        def scale(link: dict[str, Any]) -> None:
            if link["kind"] in NETWORK_KINDS:
                link["bandwidth_bytes_per_s"] *= self.network_bandwidth
                link["latency_s"] *= self.network_latency
            else:
                link["bandwidth_bytes_per_s"] *= self.link_bandwidth

        return topology.with_links(scale)

    def _constants(self, before: Mapping[str, LinkConstants]) -> Mapping[str, LinkConstants]:
        """What software adds at every step over a network is latency like that of the wires."""
        constants = dict(before)
        if self.network_latency != 1.0:
            for kind in NETWORK_KINDS:
                old = constants[kind]
                methods = {
                    name: replace(method, step_s=method.step_s * self.network_latency)
                    for name, method in old.methods.items()
                }
                constants[kind] = replace(old, methods=methods)
        for kind, factor in self.collective_times.items():
            constants[kind] = _slower(constants[kind], factor)
        return constants


def _product(
    first: Mapping[tuple[str, str, str], float], second: Mapping[tuple[str, str, str], float]
) -> dict[tuple[str, str, str], float]:
    """Factors that two mappings give together."""
    return {key: first.get(key, 1.0) * second.get(key, 1.0) for key in {**first, **second}}


def _slower(constants: LinkConstants, factor: float) -> LinkConstants:
    """Constants of software that takes `factor` as long on one kind of link; payload never outruns the link."""
    methods = {
        name: replace(
            method,
            start_s=method.start_s * factor,
            step_s=method.step_s * factor,
            connection_s=method.connection_s * factor,
            efficiency=min(1.0, method.efficiency / factor),
            connection_efficiency=method.connection_efficiency / factor,
        )
        for name, method in constants.methods.items()
    }
    return replace(
        constants,
        launch_s=constants.launch_s * factor,
        peer_launch_s=constants.peer_launch_s * factor,
        custom_launch_s=constants.custom_launch_s * factor,
        eager_floor_s=constants.eager_floor_s * factor,
        torch_floor_s=constants.torch_floor_s * factor,
        methods=methods,
    )
