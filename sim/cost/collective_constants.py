"""What the collective libraries add to the wires: launch, step overhead, reachable fraction, by link kind.

The meaning of every number is the same on every link kind. Those of nvlink3, nvlink4 and nvlink5 are fitted to the NCCL
(2.27.3 on A100, 2.29.2 elsewhere) and vLLM custom all-reduce (0.14.0 on A100, 0.24.0 elsewhere) measurements published
with ai-dynamo/aiconfigurator 095f58a, on A100, H100 + H200 and B200 with 2, 4 and 8 GPUs; every `source` says whether a
number is fitted, taken from elsewhere, or borrowed from a relative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType

MIB = 2.0**20
KIB = 2.0**10


@dataclass(frozen=True, slots=True)
class Method:
    """How one kernel family with one protocol uses one kind of link."""

    start_s: float
    """Paid once: what this protocol needs beyond the launch (buffers, flags, fences)."""
    step_s: float
    """Paid at every serial step, beyond the latency of the wires."""
    efficiency: float
    """Fraction of the link's bandwidth that payload reaches at large sizes."""
    ramp_bytes: float = 0.0
    """The payload on the busiest edge at which twice the time is needed: chunks fill a pipeline, so the
    fraction reached with v bytes is efficiency / (1 + sqrt(ramp_bytes / v))."""
    connection_efficiency: float = inf
    """Fraction of the link that one peer-to-peer connection can fill; with k peers at once, k times as much."""


@dataclass(frozen=True, slots=True)
class LinkConstants:
    """All methods of one link kind, and the launch costs of the GPUs whose fastest link it is."""

    launch_s: float
    """From the start of the kernel to the first byte, and from the last byte to its end: NCCL rings, trees, NVLS."""
    peer_launch_s: float
    """The same of NCCL's grouped send/recv (all-to-all, send/recv)."""
    custom_launch_s: float
    """The same of a custom kernel inside a CUDA graph, entry and exit barrier included."""
    eager_floor_s: float
    """Host time between two collectives without CUDA graphs: no collective looks shorter from the engine."""
    methods: Mapping[str, Method]
    """By family and protocol: "ring/LL", "peer/Simple", "nvls", "one_shot", "two_shot", "multimem", ..."""
    source: str


LOCAL_COPY = MappingProxyType({"all_reduce": 0.2, "all_gather": 0.5, "reduce_scatter": 0.5, "all_to_all": 0.2})
"""Of n shards a rank sends or receives n - 1 and copies its own; that copy costs this fraction of a link's time for one
shard. Fitted on all four GPUs."""
EAGER_COPY = 3.4
"""Without CUDA graphs vLLM's all-reduce is out of place; the copy runs this many times as fast as the GPU's link.
Fitted: 0.9, 1.57 and 3.2 TB/s on A100, H100 and B200, half of their HBM bandwidth each."""

_NET_SOURCE = "step overheads: hwLat of NCCL's tuning.cc for the network (5.0, 8.5, 14 us), less the wires"


def _nvlink(
    launch: tuple[float, float, float, float], rows: Mapping[str, tuple[float, ...]], source: str
) -> LinkConstants:
    """Constants with times in microseconds."""
    methods = {name: Method(row[0] * 1e-6, row[1] * 1e-6, row[2], *row[3:]) for name, row in rows.items()}
    nccl, peer, custom, eager = (value * 1e-6 for value in launch)
    return LinkConstants(nccl, peer, custom, eager, MappingProxyType(methods), source)


_FITTED = "fitted to the aiconfigurator tables of "
_NVLINK3 = {
    "ring/LL": (0.0, 0.43, 0.038),
    "ring/LL128": (0.0, 0.87, 0.228),
    "ring/Simple": (9.6, 0.3, 0.769, 3.3e6),
    "peer/LL": (0.0, 0.1, 0.774, 0.0, 0.037),
    "peer/Simple": (0.4, 0.1, 0.774, 4.3e6),
    "one_shot": (0.0, 0.0, 0.614),
    "two_shot": (4.0, 2.0, 0.791),
}
_NVLINK4 = {
    "ring/LL": (0.0, 0.39, 0.040),
    "ring/LL128": (0.0, 0.61, 0.369),
    "ring/Simple": (8.0, 0.35, 0.844, 0.8e6),
    "nvls": (36.0, 2.0, 0.608, 0.8e6),
    "peer/LL": (0.0, 0.1, 0.693, 0.0, 0.0139),
    "peer/Simple": (5.3, 0.1, 0.693, 0.137e6),
    "one_shot": (0.0, 0.0, 0.535),
    "two_shot": (2.0, 0.6, 0.639),
    "multimem": (3.0, 0.7, 0.519),
}
_NVLINK5 = {
    "ring/LL": (0.0, 0.83, 0.0228),
    "ring/LL128": (0.0, 0.98, 0.333),
    "ring/Simple": (3.9, 6.5, 0.871),
    "nvls": (26.0, 2.0, 0.318),
    "peer/LL": (0.0, 0.1, 0.684, 0.0, 0.00675),
    "peer/Simple": (5.8, 0.1, 0.684, 0.4e6),
    "one_shot": (0.0, 0.0, 0.317, 0.0, 0.166),
    "two_shot": (9.0, 0.6, 0.254),
    "multimem": (6.0, 0.7, 0.416),
}
_PCIE = {
    "ring/LL": (0.0, 1.0, 0.10),
    "ring/LL128": (0.0, 2.0, 0.4),
    "ring/Simple": (8.0, 4.0, 0.8, 0.1e6),
    "peer/LL": (0.0, 1.0, 0.7, 0.0, 0.1),
    "peer/Simple": (5.0, 1.0, 0.7, 0.1e6),
    "one_shot": (0.0, 1.0, 0.6),
}
_INFINIBAND = {
    "ring/LL": (0.0, 2.6, 0.25),
    "ring/LL128": (0.0, 6.1, 0.65),
    "ring/Simple": (0.0, 11.6, 0.92, 0.05e6),
    "peer/Simple": (0.0, 8.5, 0.71),
    "sharp": (10.0, 4.0, 0.90, 0.05e6),
}
_ETHERNET = {
    "ring/LL": (0.0, 15.0, 0.25),
    "ring/Simple": (0.0, 25.0, 0.85, 0.05e6),
    "peer/Simple": (0.0, 25.0, 0.85, 0.05e6),
}
_PCIE_SOURCE = "assumed: step overheads of NCCL's tuning.cc for PCI, launch of the A100, 0.8 of the link for Simple"
_A100_LAUNCH = (8.9, 10.7, 4.9, 44.0)

CONSTANTS: Mapping[str, LinkConstants] = MappingProxyType(
    {
        "nvlink2": _nvlink(_A100_LAUNCH, _NVLINK3, "borrowed from nvlink3"),
        "nvlink3": _nvlink(_A100_LAUNCH, _NVLINK3, _FITTED + "the A100"),
        "nvlink4": _nvlink((4.8, 6.2, 4.2, 20.5), _NVLINK4, _FITTED + "the H100 and the H200"),
        "nvlink5": _nvlink((7.9, 8.7, 6.6, 20.5), _NVLINK5, _FITTED + "the B200"),
        "infinity_fabric": _nvlink(_A100_LAUNCH, _NVLINK3, "borrowed from nvlink3"),
        **{f"pcie{n}": _nvlink(_A100_LAUNCH, _PCIE, _PCIE_SOURCE) for n in (3, 4, 5, 6)},
        "socket": _nvlink(_A100_LAUNCH, _PCIE, _PCIE_SOURCE),
        "infiniband": _nvlink(
            _A100_LAUNCH, _INFINIBAND, f"{_NET_SOURCE}; peer: H100 send/recv between nodes of Vidur's tables"
        ),
        "ethernet": _nvlink(_A100_LAUNCH, _ETHERNET, "assumed: NCCL over TCP sockets, no RDMA"),
    }
)

CUSTOM_LIMIT_BYTES: Mapping[str, Mapping[int, float]] = MappingProxyType(
    {
        "nvlink3": {2: 8 * MIB - 1, 4: 8 * MIB - 1, 6: 8 * MIB - 1, 8: 8 * MIB - 1},
        "nvlink4": {2: 64 * MIB, 4: 32 * MIB, 6: 64 * MIB, 8: 64 * MIB},
        "nvlink5": {2: 8 * MIB, 4: 32 * MIB, 6: 128 * MIB, 8: 128 * MIB},
    }
)
"""Largest message of vLLM's custom and symmetric-memory all-reduce by the number of GPUs, as seen in the tables (above it
they equal NCCL's); vLLM serves 2, 4, 6 and 8 GPUs of one node and leaves the rest to NCCL."""
