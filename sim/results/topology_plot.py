"""A drawing of a topology: GPUs and switches in tiers, links wider the more bandwidth they have."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sim import units
from sim.hardware.topology import Topology

_TIER = {"nvswitch": 0.0, "gpu": 1.0, "pcie_switch": 2.0, "cpu": 2.9, "nic": 3.6, "switch": 4.8}
_COLOUR = {"gpu": "#76b900", "nvswitch": "#3c6e00", "pcie_switch": "#b0b0b0", "cpu": "#d9a441", "nic": "#c6dbef",
           "switch": "#6baed6"}  # fmt: skip
_LINK_COLOUR = {"nvlink": "#4d9221", "infinity_fabric": "#c51b7d", "infiniband": "#2171b5", "ethernet": "#d94801"}
_WIDEST = 7.0
_MOST_NODES = 2


def draw_topology(topology: Topology, path: Path) -> None:
    """Write a drawing of `topology` to `path` (its suffix names the format).

    Of a larger cluster only the first `_MOST_NODES` nodes are drawn, and the drawing says so.
    """
    from matplotlib.figure import Figure

    nodes = list(dict.fromkeys(topology.node_of.values()))
    shown = set(nodes[:_MOST_NODES])
    graph = topology.graph
    near = {name for name, node in graph.nodes(data="node") if node in shown}
    fabric = {
        name for name in graph if graph.nodes[name]["node"] is None and any(n in near for n in graph.successors(name))
    }
    above = {n for name in fabric for n in graph.successors(name) if graph.nodes[n]["node"] is None} - fabric
    places = _places(topology, [n for n in nodes if n in shown], sorted(near), sorted(fabric), sorted(above))
    figure = Figure(figsize=(max(8.0, 1.1 * max(x for x, _ in places.values()) + 2), 7.5), layout="constrained")
    axes = figure.subplots()
    _links(axes, topology, places)
    for name, (x, y) in places.items():
        kind = graph.nodes[name]["type"]
        axes.scatter(
            [x], [y], s=420, marker="s" if kind == "gpu" else "o", color=_COLOUR[kind], zorder=3, edgecolors="white"
        )
        ink = "white" if kind == "nvswitch" else "black"
        axes.text(x, y, name.split(".")[-1], ha="center", va="center", fontsize=7, zorder=4, color=ink)
    rest = f", {len(shown)} of {len(nodes)} nodes drawn" if len(shown) < len(nodes) else ""
    axes.set_title(f"{topology.name}: {len(topology.gpus)} GPUs{rest}")
    axes.margins(0.03, 0.08)
    axes.set_axis_off()
    figure.savefig(path, dpi=130)


def _places(
    topology: Topology, nodes: list[str], near: list[str], fabric: list[str], above: list[str]
) -> dict[str, tuple[float, float]]:
    """(x, y) of everything drawn: a block for each node, the fabric over them."""
    data = topology.graph.nodes
    width = max(sum(data[name]["type"] == "gpu" and data[name]["node"] == node for name in near) for node in nodes)
    places: dict[str, tuple[float, float]] = {}
    for block, node in enumerate(nodes):
        members = [name for name in near if data[name]["node"] == node]
        for kind, tier, row in _rows(topology, members):
            for k, name in enumerate(row):
                left = block * (width + 1.2)
                if kind == "gpu" and _meshed(topology, row):
                    # GPUs wired to each other stand in an oval, so that no link hides behind another
                    across = (k + 0.5) / len(row)
                    side = 1 if k % 2 == 0 else -1
                    places[name] = (left + across * width, tier - 1.2 + side * (0.3 + 0.7 * math.sin(math.pi * across)))
                else:
                    places[name] = (left + (k + 0.5) * width / len(row), tier)
    span = len(nodes) * (width + 1.2) - 1.2
    rows = (
        ([name for name in fabric if data[name]["type"] == "nvswitch"], _TIER["nvswitch"] - 0.4),
        ([name for name in fabric if data[name]["type"] != "nvswitch"], _TIER["switch"]),
        (above, _TIER["switch"] + 1),
    )
    for row, height in rows:
        for k, name in enumerate(sorted(row, key=lambda n: data[n]["index"])):
            places[name] = ((k + 0.5) * span / len(row), height)
    return places


def _rows(topology: Topology, members: list[str]) -> list[tuple[str, float, list[str]]]:
    """(type, height, components by index) of one node; PCIe switches that no GPU hangs from stand above the others."""
    data = topology.graph.nodes
    rows: list[tuple[str, float, list[str]]] = []
    for kind, tier in _TIER.items():
        row = sorted((name for name in members if data[name]["type"] == kind), key=lambda name: data[name]["index"])
        low = [name for name in row if any(data[n]["type"] == "gpu" for n in topology.graph.successors(name))]
        if kind == "pcie_switch" and low:
            rows += [(kind, tier, low), (kind, tier + 0.5, [name for name in row if name not in low])]
        else:
            rows.append((kind, tier, row))
    return rows


def _meshed(topology: Topology, gpus: list[str]) -> bool:
    return any(topology.graph.has_edge(gpus[0], other) for other in gpus[1:])


def _links(axes: Any, topology: Topology, places: dict[str, tuple[float, float]]) -> None:
    edges = [(a, b, data) for a, b, data in topology.graph.edges(data=True) if a in places and b in places and a < b]
    widest = max(data["bandwidth_bytes_per_s"] for _, _, data in edges)
    labelled: dict[tuple[str, float], Any] = {}
    for a, b, data in edges:
        rate, kind = data["bandwidth_bytes_per_s"], data["kind"]
        colour = next((c for prefix, c in _LINK_COLOUR.items() if kind.startswith(prefix)), "#7f7f7f")
        # of the square root: beside a trunk of 1.6 TB/s, links of 50 and 144 GB/s would all be hairlines
        width = max(0.6, _WIDEST * math.sqrt(rate / widest))
        (xa, ya), (xb, yb) = places[a], places[b]
        curve = "arc3,rad=0.25" if kind == "socket" else "arc3"
        style = {"arrowstyle": "-", "linewidth": width, "color": colour, "alpha": 0.65, "connectionstyle": curve}
        axes.annotate("", (xb, yb), (xa, ya), arrowprops={**style, "shrinkA": 0, "shrinkB": 0}, zorder=1)
        if (kind, rate) not in labelled:
            label = f"{kind}, {units.format_rate(rate)} a direction"
            (labelled[kind, rate],) = axes.plot([], [], color=colour, linewidth=width, label=label)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, fontsize=8, frameon=False)
