"""The ideal twin of a deployment: the same GPUs behind one NVLink switch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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
_SWITCH_LATENCY = "0.2 us"
"""One NVLink into the switch; as in topologies/dgx-h100.yaml."""


def nvlink_twin(deployment: Deployment) -> Deployment:
    """`deployment` with its GPUs, in their order, behind one switch; none of them slow, none sharing a link.

    The links are those of the GPU's own NVLink (or Infinity Fabric) in its topology; for a GPU without any, those of the
    data-centre GPU of its architecture or the one before.
    """
    names = deployment.gpu_names
    gpu = deployment.gpus[names[0]]
    kind, rate_bytes_per_s, reduces = _own_links(deployment.topology, names[0]) or _usual_links(gpu)
    twin = build_topology(_single_switch(gpu.name, len(names), kind, rate_bytes_per_s, reduces), {}, "twin")
    renamed = dict(zip(names, twin.gpus, strict=True))
    placement = [[[renamed[name] for name in stage] for stage in stages] for stages in deployment.placement]
    return replace(deployment, topology=twin, placement=placement, _costs={}, _backends=[])


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
