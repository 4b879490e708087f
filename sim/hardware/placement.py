"""Which GPU holds which rank: tensor-parallel groups, pipeline stages, replicas."""

from __future__ import annotations

from collections.abc import Sequence

from sim.errors import InputError, nearest
from sim.hardware.topology import Topology

Placement = list[list[list[str]]]
"""GPU names as [replica][pipeline stage][tensor-parallel rank]."""
_WHERE = "deployment.placement"


def place(
    topology: Topology, tensor: int, pipeline: int, data: int, placement: str | Sequence[str] = "pack"
) -> Placement:
    """GPU names as [replica][stage][rank].

    Args:
        tensor, pipeline, data: parallel sizes.
        placement: `pack` keeps every tensor-parallel group inside as few nodes as it can and fills nodes in order, so
            stages fall across nodes; `spread` deals ranks to the nodes in turn; or GPU names in the order replica, stage,
            rank.

    Raises:
        InputError: too few GPUs, an unknown policy, or a list with a wrong length, an unknown or a repeated name.
    """
    needed = tensor * pipeline * data
    if needed > len(topology.gpus):
        raise InputError(
            "deployment",
            f"tensor {tensor} x pipeline {pipeline} x data {data} needs {needed} GPUs, {topology.name} has {len(topology.gpus)}",
            "raise cluster.nodes or lower a parallel size",
        )
    if not isinstance(placement, str):
        groups = _listed(topology, list(placement), needed, tensor)
    elif placement == "pack":
        groups = _packed(topology, tensor, pipeline * data)
    elif placement == "spread":
        groups = _spread(topology, tensor, pipeline * data)
    else:
        raise InputError(
            _WHERE, f"got '{placement}'", f"{nearest(placement, ['pack', 'spread'])} or a list of GPU names"
        )
    return [groups[replica * pipeline : (replica + 1) * pipeline] for replica in range(data)]


def _packed(topology: Topology, size: int, count: int) -> list[list[str]]:
    """`count` groups of `size`: the first node with room, else whole nodes in order."""
    free: dict[str, list[str]] = {}
    for gpu in topology.gpus:
        free.setdefault(topology.node_of[gpu], []).append(gpu)
    full = {node: len(gpus) for node, gpus in free.items()}
    groups = []
    for _ in range(count):
        room = next((node for node, gpus in free.items() if len(gpus) >= size), None)
        if room is not None:
            groups.append(_take(free, [room], size))
            continue
        whole = [node for node, gpus in free.items() if len(gpus) == full[node]]
        enough = sum(full[node] for node in whole) >= size
        groups.append(_take(free, whole if enough else list(free), size))
    return groups


def _take(free: dict[str, list[str]], nodes: list[str], size: int) -> list[str]:
    group: list[str] = []
    for node in nodes:
        missing = size - len(group)
        group += free[node][:missing]
        free[node] = free[node][missing:]
        if not free[node]:
            del free[node]
        if len(group) == size:
            break
    return group


def _spread(topology: Topology, size: int, count: int) -> list[list[str]]:
    index = topology.graph.nodes(data="index")
    dealt = sorted(topology.gpus, key=lambda gpu: (index[gpu], int(topology.node_of[gpu][1:])))
    return [dealt[start * size : (start + 1) * size] for start in range(count)]


def _listed(topology: Topology, names: list[str], needed: int, size: int) -> list[list[str]]:
    if len(names) != needed:
        hint = f"name {needed}: one for every rank of every stage of every replica"
        raise InputError(_WHERE, f"got {len(names)} GPU names", hint)
    topology.check_gpus(names, _WHERE)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(_WHERE, f"'{twice}' is named twice", "a GPU holds one rank")
    return [names[start : start + size] for start in range(0, needed, size)]
