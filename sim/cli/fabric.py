"""Commands about the wires: topology, collective."""

from __future__ import annotations

import math
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.options import Json, Overrides, picture, print_json, read_overrides

if TYPE_CHECKING:
    from sim.cost.collectives import CollectiveTime
    from sim.hardware.topology import Topology

Nodes = Annotated[int | None, typer.Option("--nodes", min=1, help="Nodes; the topology's own number if not given.")]
GpuKind = Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="Swaps every GPU for this kind.")]
Software = Annotated[str, typer.Option("--software", help="custom, shots, trtllm, nccl, eager, torch or ideal.")]
_SWEEP_BYTES = [2.0**power for power in range(8, 31, 2)]


def register(app: typer.Typer) -> None:
    app.command()(topology)
    app.command()(collective)


def _load(name: str, nodes: int | None, gpu: str | None, settings: list[str] | None) -> Topology:
    from sim.hardware.gpu import gpu_name
    from sim.hardware.topology import load_topology

    parameters = read_overrides(settings) | ({} if nodes is None else {"nodes": nodes})
    return load_topology(name, parameters, None if gpu is None else gpu_name(gpu, "--gpu"))


def topology(
    file: Annotated[str, typer.Argument(metavar="TOPOLOGY", help="A shipped topology's name, or a YAML file.")],
    nodes: Nodes = None,
    gpu: GpuKind = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="Draw it into this file.")] = None,
    nvidia_smi: Annotated[
        bool,
        typer.Option(
            "--nvidia-smi", help="TOPOLOGY is the output of `nvidia-smi topo -m`: print it as a topology file."
        ),
    ] = False,
    json: Json = False,
    settings: Overrides = None,
) -> None:
    """A cluster: counts, bisection, diameter, bandwidth between any two GPUs, and what they share."""
    if nvidia_smi:
        _import_matrix(Path(file), gpu)
        return
    from sim.hardware.topology_summary import summarise

    drawing = None if plot is None else picture(plot, "--plot")
    cluster = _load(file, nodes, gpu, settings)
    found = summarise(cluster)
    if json:
        print_json(asdict(found))
    else:
        print("\n".join(found.lines))
    if drawing is not None:
        from sim.results.topology_plot import draw_topology

        draw_topology(cluster, drawing)


def _import_matrix(file: Path, gpu: str | None) -> None:
    import yaml

    from sim.errors import InputError
    from sim.hardware.gpu import gpu_name
    from sim.hardware.nvidia_smi import read_topo_matrix

    if gpu is None:
        raise InputError("--gpu", "is missing", "the matrix does not tell which GPUs stand there: --gpu h100-sxm")
    found = read_topo_matrix(file.read_text(encoding="utf-8", errors="replace"), gpu_name(gpu, "--gpu"))
    print(yaml.safe_dump(found, sort_keys=False), end="")


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
    software: Software = "custom",
    sweep: Annotated[bool, typer.Option("--sweep", help="Sizes from 256 B to 1 GiB instead of one.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="PNG", help="Draw the sweep into this file: time and bus bandwidth."),
    ] = None,
    json: Json = False,
    settings: Overrides = None,
) -> None:
    """How long a collective takes alone on a group of GPUs, by which algorithm, and what it puts on the wires."""
    from sim import units
    from sim.cost.collectives import Communicator
    from sim.errors import InputError
    from sim.hardware.placement import place

    _check_names(op, software, placement)
    if plot is not None and not sweep:
        raise InputError("--plot", "draws sizes, and there is one", "add --sweep")
    drawing = None if plot is None else picture(plot, "--plot")
    sizes = _SWEEP_BYTES if sweep else [units.parse(size, "bytes", "--size")]
    if sizes[0] < 1:
        raise InputError("--size", f"got '{size}'", "write one byte or more, such as 1MiB")
    cluster = _load(topology, nodes, gpu, settings)
    if gpus > len(cluster.gpus):
        raise InputError(
            "--gpus", f"got {gpus}, {cluster.name} has {len(cluster.gpus)}", "raise --nodes or lower --gpus"
        )
    group = place(cluster, gpus, 1, 1, placement)[0][0]
    communicator = Communicator(cluster, group, software)
    times = [communicator.time(op, size_bytes) for size_bytes in sizes]
    if json:
        print_json([_plain(time) for time in times] if sweep else _plain(times[0]))
    else:
        _print_times(times, group)
    if drawing is not None:
        from sim.results.collective_plot import draw_collectives

        draw_collectives(times, f"{op} among {gpus} GPUs of {cluster.name}", drawing)


def _check_names(op: str, software: str, placement: str) -> None:
    """Raises InputError with the option whose name is not known."""
    from sim.cost.collectives import OPS, SOFTWARE
    from sim.errors import InputError, nearest

    named = (("--op", op, OPS), ("--software", software, SOFTWARE), ("--placement", placement, ("pack", "spread")))
    for option, value, allowed in named:
        if value not in allowed:
            raise InputError(option, f"got '{value}'", nearest(value, allowed))


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
