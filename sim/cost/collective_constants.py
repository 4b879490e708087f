"""What the collective libraries add to the wires: launch, step overhead, reachable fraction, by link kind.

The meaning of every number is the same on every link kind. Those of nvlink3, nvlink4 and nvlink5 are fitted to the NCCL
(2.27.3 on A100, 2.29.2 elsewhere) and vLLM custom all-reduce (0.14.0 on A100, 0.24.0 elsewhere) measurements published
with ai-dynamo/aiconfigurator 095f58a, on A100, H100 + H200 and B200 with 2, 4 and 8 GPUs; those of pcie4 and pcie5 to the
tables of aiconfigurator-core 0.12, on L40S (NCCL 2.27.3, vLLM 0.14.0) and RTX PRO 6000 (2.29.2, 0.24.0). Every `source` says
whether a number is fitted, taken from elsewhere, or borrowed from a relative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from types import MappingProxyType

MIB = 2.0**20


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
    connection_s: float = 0.0
    """Paid once for every peer a rank exchanges with at once: flags to raise and to wait for."""


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
    torch_floor_s: float
    """The same of NCCL called through torch.distributed: ranks start apart, and the kernel of one waits for the last."""
    methods: Mapping[str, Method]
    """By family and protocol: "ring/LL", "peer/Simple", "nvls", "one_shot", "two_shot", "multimem", ..."""
    source: str
    error: float
    """Fraction within which nine in ten measured times lie; an estimate where the source says so, assumed or borrowed."""


LOCAL_COPY = MappingProxyType({"all_reduce": 0.2, "all_gather": 0.5, "reduce_scatter": 0.5, "all_to_all": 0.2})
"""Of n shards a rank sends or receives n - 1 and copies its own; that copy costs this fraction of a link's time for one
shard. Fitted on all four GPUs."""
EAGER_COPY = 3.4
"""Without CUDA graphs vLLM's all-reduce is out of place; the copy runs this many times as fast as the GPU's link.
Fitted: 0.9, 1.57 and 3.2 TB/s on A100, H100 and B200, half of their HBM bandwidth each."""

_NET_SOURCE = (
    "step overheads: hwLat of NCCL's tuning.cc for the network (5.0, 8.5, 14 us for LL, LL128, Simple), less 2.4 us of wires; "
    "peer, send: H100 send/recv between two nodes in Vidur's tables; ring efficiency 0.92 of line rate: assumed; "
    "error: estimated from the send/recv rows, which lie within 17 %"
)


def _constants(
    launch: tuple[float, float, float, float, float],
    rows: Mapping[str, tuple[float, ...]],
    source: str,
    error: float,
    tree: float = 1.0,
) -> LinkConstants:
    """Constants from times in microseconds; `tree` is what a tree reaches of a ring's bandwidth with large messages."""
    methods = {
        name: Method(row[0] * 1e-6, row[1] * 1e-6, row[2], *row[3:5], *(t * 1e-6 for t in row[5:]))
        for name, row in rows.items()
    }
    for name, method in list(methods.items()):
        family, _, protocol = name.partition("/")
        if family == "ring":
            share = tree if protocol == "Simple" else 1.0
            methods[f"tree/{protocol}"] = replace(method, efficiency=method.efficiency * share)
    nccl, peer, custom, eager, torch = (value * 1e-6 for value in launch)
    return LinkConstants(nccl, peer, custom, eager, torch, MappingProxyType(methods), source, error)


_TREE = 0.7
"""Share of a ring's bandwidth that a tree reaches over NVLink, where a GPU reduces and broadcasts at once. Assumed, after NCCL's
tuning.cc, whose model gives a tree less than a ring with large messages (0.46 of the bus against 0.53 on 16 GPUs)."""
_FITTED = "fitted to the aiconfigurator tables of "
# columns: start us, step us, efficiency, ramp bytes, efficiency of one connection, us a connection
# lamport: TensorRT-LLM's one-shot all-reduce, whose data are their own flags, so that it needs no barrier; its launch is in its
# start. Fitted to TensorRT-LLM 1.3.0rc20 on H100 and H200 (mean error 3.4 %), B200, GB200 and B300 (5 %), 1.0.0 on the A100
# (12 %), messages of up to 4.3 MB a rank receives
_NVLINK3 = {
    "ring/LL": (0.0, 0.45, 0.039),
    "ring/LL128": (0.0, 0.97, 0.255),
    "ring/Simple": (5.1, 0.26, 0.823, 4.0e6),
    "peer/LL": (0.0, 0.1, 0.40, 0.0, 0.031, 0.43),
    "peer/Simple": (0.5, 0.1, 0.727, 5.3e6, inf, 0.24),
    "send/LL": (0.0, 0.1, 0.40, 0.0, 0.031),
    "send/Simple": (4.0, 0.1, 0.81),
    "one_shot": (0.0, 0.0, 0.609, 0.0, inf, 0.14),
    "lamport": (3.7, 0.0, 0.470, 0.0, inf, 0.15),
    "two_shot": (4.7, 2.0, 0.808),
}
_NVLINK4 = {
    "ring/LL": (0.0, 0.39, 0.039),
    "ring/LL128": (0.0, 0.61, 0.371),
    "ring/Simple": (8.0, 0.37, 0.841, 0.75e6),
    "nvls": (48.0, 2.0, 0.581),
    "peer/LL": (0.0, 0.1, 0.40, 0.0, 0.0137, 0.33),
    "peer/Simple": (5.9, 0.1, 0.669, 0.27e6),
    "send/LL": (0.0, 0.1, 0.40, 0.0, 0.0137),
    "send/Simple": (2.0, 0.1, 0.80),
    "one_shot": (0.0, 0.0, 0.554, 0.0, inf, 0.06),
    "lamport": (2.3, 0.0, 0.669, 0.0, inf, 0.08),
    "two_shot": (2.3, 0.6, 0.646),
    "multimem": (3.1, 0.7, 0.519),
}
_NVLINK5 = {
    "ring/LL": (0.0, 0.80, 0.020),
    "ring/LL128": (0.0, 0.96, 0.304),
    "ring/Simple": (7.1, 5.1, 0.757),
    "nvls": (52.0, 2.0, 0.489),
    "peer/LL": (0.0, 0.1, 0.40, 0.0, 0.0069, 0.39),
    "peer/Simple": (6.4, 0.1, 0.640, 0.80e6, 0.40),
    "send/LL": (0.0, 0.1, 0.40, 0.0, 0.0069),
    "send/Simple": (3.0, 0.1, 0.80),
    "one_shot": (0.0, 0.0, 0.300, 0.0, 0.175, 0.11),
    "lamport": (4.1, 0.0, 0.726, 0.0, inf, 0.12),
    "two_shot": (9.0, 0.6, 0.254),
    "multimem": (7.1, 0.7, 0.431),
}
# one set for both generations, fitted to peers that read each other's memory. A host passes less between two switches than a link
# carries; how much differs from host to host and is in the topology. No LL128: NCCL leaves it out where a ring crosses PCIe
_PCIE4 = {
    "ring/LL": (0.0, 0.26, 0.33),
    "ring/Simple": (9.4, 3.2, 0.59),
    "peer/LL": (0.0, 0.26, 0.58, 0.0, 0.37, 0.36),
    "peer/Simple": (9.1, 0.26, 0.78, 0.0, inf, 7.1),
    "send/LL": (0.0, 0.26, 0.58, 0.0, 0.37),
    "send/Simple": (16.0, 0.26, 0.70),
    "one_shot": (0.0, 0.0, 0.61),
}
_PCIE5 = {
    **_PCIE4,
    # an all-to-all of two moves 26 GB/s on PCIe 5.0 and 22 on 4.0: one connection does not fill the faster link
    "peer/Simple": (9.1, 0.26, 0.78, 0.0, 0.42, 7.1),
    "send/Simple": (16.0, 0.26, 0.70, 0.0, 0.42),
}
_INFINIBAND = {
    "ring/LL": (0.0, 2.6, 0.25),
    "ring/LL128": (0.0, 6.1, 0.65),
    "ring/Simple": (0.0, 11.6, 0.92, 0.05e6),
    "peer/Simple": (0.0, 8.5, 0.71),
    "send/Simple": (0.0, 8.5, 0.71),
    "sharp": (10.0, 4.0, 0.90, 0.05e6),
}
_ETHERNET = {
    "ring/LL": (0.0, 15.0, 0.25),
    "ring/Simple": (0.0, 25.0, 0.85, 0.05e6),
    "peer/Simple": (0.0, 25.0, 0.85, 0.05e6),
    "send/Simple": (0.0, 25.0, 0.85, 0.05e6),
}
# the last number of a launch (torch.distributed): median of those of Vidur's all-reduces on 2, 4 and 8 GPUs of one node that end
# sooner than their host has launched them. On the H100 34 to 47 us from 2 KiB to 4 MiB whatever the ranks, on the A100 27 to 64,
# beside 44 of vLLM's custom kernel without graphs
_A100_LAUNCH = (8.7, 10.3, 4.5, 44.0, 47.0)
_PCIE_SOURCE = (
    ", its host's root complexes beside (see its topology); send: of the all-to-all; torch.distributed: as NVLink's"
)
# the last but one (no graphs): between vLLM's kernel of 2 GPUs and NCCL of 4 and 8, 43 and 57 us with vLLM 0.14.0, 20.5 and 30
# with 0.24.0
_PCIE4_LAUNCH = (4.9, 6.5, 4.1, 50.0, 47.0)
_PCIE5_LAUNCH = (4.9, 6.5, 4.1, 25.0, 40.0)

CONSTANTS: Mapping[str, LinkConstants] = MappingProxyType(
    {
        "nvlink2": _constants(_A100_LAUNCH, _NVLINK3, "borrowed from nvlink3", 0.5, _TREE),
        "nvlink3": _constants(_A100_LAUNCH, _NVLINK3, _FITTED + "the A100; send: Vidur's A100 rows", 0.13, _TREE),
        "nvlink4": _constants(
            (4.8, 5.5, 3.9, 20.5, 40.0),
            _NVLINK4,
            _FITTED + "the H100 and the H200; send: Vidur's H100 rows",
            0.13,
            _TREE,
        ),
        "nvlink5": _constants(
            (8.0, 8.2, 6.2, 20.5, 40.0),
            _NVLINK5,
            _FITTED + "the B200, which hold on B300, GB200 and GB300 too; send: between those of nvlink3 and nvlink4; "
            "torch.distributed: as nvlink4",
            0.13,
            _TREE,
        ),
        "infinity_fabric": _constants(_A100_LAUNCH, _NVLINK3, "borrowed from nvlink3", 0.5, _TREE),
        "pcie4": _constants(_PCIE4_LAUNCH, _PCIE4, _FITTED + "the L40S" + _PCIE_SOURCE, 0.3),
        "pcie5": _constants(_PCIE5_LAUNCH, _PCIE5, _FITTED + "the RTX PRO 6000" + _PCIE_SOURCE, 0.2),
        "pcie6": _constants(_PCIE5_LAUNCH, _PCIE5, "borrowed from pcie5", 0.5),
        **{kind: _constants(_PCIE4_LAUNCH, _PCIE4, "borrowed from pcie4", 0.5) for kind in ("pcie3", "c2c", "socket")},
        "infiniband": _constants(_A100_LAUNCH, _INFINIBAND, _NET_SOURCE, 0.25),
        "ethernet": _constants(_A100_LAUNCH, _ETHERNET, "assumed: NCCL over TCP sockets, no RDMA", 0.5),
    }
)

_FREE = Method(0.0, 0.0, 1.0)
WIRES: Mapping[str, LinkConstants] = MappingProxyType(
    {
        kind: LinkConstants(
            0.0, 0.0, 0.0, 0.0, 0.0, dict.fromkeys(constants.methods, _FREE), "software that costs nothing", 0.0
        )
        for kind, constants in CONSTANTS.items()
    }
)
"""Constants of a perfect library: the wires alone, for bounds and for the theory's formulas."""

CUSTOM_LIMIT_BYTES: Mapping[str, Mapping[int, float]] = MappingProxyType(
    {
        "nvlink3": {2: 8 * MIB - 1, 4: 8 * MIB - 1, 6: 8 * MIB - 1, 8: 8 * MIB - 1},
        "infinity_fabric": {2: 8 * MIB - 1, 4: 8 * MIB - 1, 6: 8 * MIB - 1, 8: 8 * MIB - 1},
        "nvlink4": {2: 64 * MIB, 4: 32 * MIB, 6: 64 * MIB, 8: 64 * MIB},
        "nvlink5": {2: 8 * MIB, 4: 32 * MIB, 6: 128 * MIB, 8: 128 * MIB},
        **{kind: {2: 8 * MIB - 1} for kind in ("pcie3", "pcie4", "pcie5", "pcie6")},
    }
)
"""Largest message of vLLM's custom and symmetric-memory all-reduce by the number of GPUs, as seen in the tables (above it
they equal NCCL's); infinity_fabric: vLLM's default. vLLM serves 2, 4, 6 and 8 GPUs and leaves the rest to NCCL, as more than two
on PCIe (vllm/distributed/device_communicators/custom_all_reduce.py)."""

SHOTS_LIMIT_BYTES = 8 * MIB - 1
"""Largest message of one and two shots where nothing else takes over (vLLM 0.14, custom_all_reduce.py; its table on H100)."""
LAMPORT_LIMIT_BYTES = 8 * MIB
"""Largest message of TensorRT-LLM's one-shot kernel: from 16 MB on two GPUs its tables equal NCCL's, whatever the GPU."""
