"""Commands about the wires: topology, collective."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.options import Json, Overrides, print_json, read_overrides

if TYPE_CHECKING:
    from sim.cost.collectives import CollectiveTime
    from sim.hardware.topology import Topology

Nodes = Annotated[int | None, typer.Option("--nodes", min=1, help="Nodes; the topology's own number if not given.")]
GpuKind = Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="Swaps every GPU for this kind.")]
_SWEEP_BYTES = [2.0**power for power in range(8, 31, 2)]


def register(app: typer.Typer) -> None:
    app.command()(topology)
    app.command()(collective)


def _load(name: str, nodes: int | None, gpu: str | None, settings: list[str] | None) -> Topology:
    from sim.hardware.topology import load_topology

    parameters = read_overrides(settings) | ({} if nodes is None else {"nodes": nodes})
    return load_topology(name, parameters, gpu)


def topology(
    file: Annotated[str, typer.Argument(metavar="TOPOLOGY", help="A shipped topology's name, or a YAML file.")],
    nodes: Nodes = None,
    gpu: GpuKind = None,
    json: Json = False,
    settings: Overrides = None,
) -> None:
    """A cluster: its GPUs, its links, and what any GPU reaches at which bandwidth and latency."""
    from sim.results.console import table
    from sim.units import format_rate, format_time

    found = describe(_load(file, nodes, gpu, settings))
    if json:
        print_json(found)
        return
    kinds = ", ".join(f"{count} x {kind}" for kind, count in found["gpu_kinds"].items())
    print(f"{found['name']}: {found['gpus']} GPUs ({kinds}) in {found['nodes']} nodes")
    if found["source"]:
        print(textwrap.fill(found["source"], 110))
    print("\nLinks (each direction)")
    print(
        table(
            ["kind", "links", "bandwidth", "latency"],
            [
                [
                    link["kind"],
                    f"{link['count']:,}",
                    format_rate(link["bandwidth_bytes_per_s"]),
                    format_time(link["latency_s"]),
                ]
                for link in found["links"]
            ],
        )
    )
    print(f"\nFrom {found['from']} to the other GPUs")
    print(
        table(
            ["over", "GPUs", "bandwidth", "latency", "for example"],
            [
                [pair["over"], f"{pair['gpus']:,}", format_rate(pair["bandwidth_bytes_per_s"]),
                 format_time(pair["latency_s"]), pair["example"]]
                for pair in found["reach"]
            ],
        )
    )  # fmt: skip


def describe(cluster: Topology) -> dict[str, Any]:
    """What `twowalls topology` prints, as plain data."""
    edges = cluster.graph.edges
    links = Counter(
        (data["kind"], data["bandwidth_bytes_per_s"], data["latency_s"])
        for _, _, data in cluster.graph.edges(data=True)
    )
    first = cluster.gpus[0]
    reach: dict[tuple[str, float, float], list[str]] = {}
    for other in cluster.gpus[1:]:
        over = " + ".join(dict.fromkeys(str(edges[edge]["kind"]) for edge in cluster.path(first, other)))
        key = (over, cluster.bandwidth_bytes_per_s(first, other), cluster.latency_s(first, other))
        reach.setdefault(key, []).append(other)
    return {
        "name": cluster.name,
        "source": cluster.source,
        "gpus": len(cluster.gpus),
        "nodes": len(set(cluster.node_of.values())),
        "gpu_kinds": dict(Counter(cluster.gpu_kind.values())),
        "parameters": cluster.parameters,
        "links": [
            {"kind": kind, "count": count, "bandwidth_bytes_per_s": bandwidth, "latency_s": latency}
            for (kind, bandwidth, latency), count in sorted(links.items(), key=lambda item: -item[0][1])
        ],
        "from": first,
        "reach": [
            {
                "over": over,
                "gpus": len(names),
                "bandwidth_bytes_per_s": bandwidth,
                "latency_s": latency,
                "example": names[0],
            }
            for (over, bandwidth, latency), names in reach.items()
        ],
    }


def collective(
    topology: Annotated[str, typer.Option("--topology", help="A shipped topology's name, or a YAML file.")],
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs in the group.")],
    op: Annotated[
        str, typer.Option("--op", help="all_reduce, all_gather, reduce_scatter, all_to_all, ...")
    ] = "all_reduce",
    size: Annotated[str, typer.Option("--size", help="Bytes, such as 1MiB.")] = "1MiB",
    nodes: Nodes = None,
    gpu: GpuKind = None,
    placement: Annotated[str, typer.Option("--placement", help="pack (fewest nodes) or spread.")] = "pack",
    software: Annotated[str, typer.Option("--software", help="custom, nccl, eager or ideal.")] = "custom",
    sweep: Annotated[bool, typer.Option("--sweep", help="Sizes from 256 B to 1 GiB instead of one.")] = False,
    json: Json = False,
    settings: Overrides = None,
) -> None:
    """How long a collective takes alone on a group of GPUs, by which algorithm, and what it puts on the wires."""
    from sim import units
    from sim.cost.collectives import Communicator
    from sim.errors import InputError, nearest
    from sim.hardware.placement import place

    if placement not in ("pack", "spread"):
        raise InputError("--placement", f"got '{placement}'", nearest(placement, ("pack", "spread")))
    cluster = _load(topology, nodes, gpu, settings)
    group = place(cluster, gpus, 1, 1, placement)[0][0]
    communicator = Communicator(cluster, group, software)
    sizes = _SWEEP_BYTES if sweep else [units.parse(size, "bytes", "--size")]
    times = [communicator.time(op, size_bytes) for size_bytes in sizes]
    if json:
        print_json([_plain(time) for time in times] if sweep else _plain(times[0]))
    else:
        _print_times(times, group)


def _plain(time: CollectiveTime) -> dict[str, Any]:
    bus = time.bus_bandwidth_bytes_per_s
    return {
        "op": time.op,
        "size_bytes": time.size_bytes,
        "gpus": time.ranks,
        "time_s": time.time_s,
        "algorithm": time.algorithm,
        "protocol": time.protocol,
        "steps": time.steps,
        "launch_s": time.launch_s,
        "latency_s": time.latency_s,
        "bandwidth_s": time.bandwidth_s,
        "bus_bandwidth_bytes_per_s": bus if math.isfinite(bus) else None,
        "edge_bytes": time.edge_bytes_by_kind,
        "error": time.error,
        "source": time.source,
    }


def _print_times(times: list[CollectiveTime], group: list[str]) -> None:
    from sim.results.console import table
    from sim.units import format_bytes, format_rate, format_time

    print(f"{times[0].op} among {len(group)} GPUs: {', '.join(group[:16])}{', ...' if len(group) > 16 else ''}")
    rows = [
        [
            format_bytes(time.size_bytes, binary=True),
            format_time(time.time_s),
            f"{time.algorithm} {time.protocol}".strip(),
            str(time.steps),
            *(format_time(part) for part in (time.launch_s, time.latency_s, time.bandwidth_s)),
            format_rate(time.bus_bandwidth_bytes_per_s) if time.time_s else "-",
            ", ".join(f"{kind} {format_bytes(amount)}" for kind, amount in time.edge_bytes_by_kind.items()),
        ]
        for time in times
    ]
    header = ["size", "time", "algorithm", "steps", "launch", "latency", "bandwidth", "bus", "bytes on the wires"]
    print(table(header, rows))
    if times[0].source:
        print(textwrap.fill(f"Nine in ten measured times lie within {times[0].error:.0%} ({times[0].source})", 110))
