"""A node template from the matrix that `nvidia-smi topo -m` prints."""

from __future__ import annotations

import re
from typing import Any

from sim.errors import InputError
from sim.hardware.gpu import load_gpu
from sim.units import parse

_WHERE = "nvidia-smi topo -m"
_LINK_RATE = {"nvlink2": "25 GB/s", "nvlink3": "25 GB/s", "nvlink4": "25 GB/s", "nvlink5": "50 GB/s"}
"""One NVLink, one direction: NVIDIA V100, A100, H100 and Blackwell whitepapers."""
_LINK_RATE_OF_SM = {86: "14.0625 GB/s"}
"""Where the same generation is slower: NVIDIA Ampere GA102 whitepaper (A40, RTX A6000, RTX 3090)."""
_MOST_LINKS = 18
"""No GPU has more NVLinks (H100, B200): more than that to all peers together means that a switch stands between."""
_PCIE_RATE = {"pcie3": "16 GB/s", "pcie4": "32 GB/s", "pcie5": "64 GB/s", "pcie6": "128 GB/s"}
_NVLINK_SINCE = {70: "nvlink2", 80: "nvlink3", 90: "nvlink4", 100: "nvlink5"}
"""From which compute capability on: V100, A100, H100 and Blackwell whitepapers."""
_BELOW_ONE_SWITCH = ("PIX", "PXB")
_ONE_SOCKET = (*_BELOW_ONE_SWITCH, "PHB", "NODE")


def read_topo_matrix(text: str, gpu: str) -> dict[str, Any]:
    """A topology of one node, ready for build_topology or a YAML file.

    Args:
        text: what `nvidia-smi topo -m` printed.
        gpu: catalogue name of the GPUs; it tells the generations of NVLink and PCIe, which the matrix does not.

    Raises:
        InputError: no matrix, or an unknown GPU or entry.
    """
    kind = load_gpu(gpu)
    nvlink = next((name for since, name in reversed(_NVLINK_SINCE.items()) if kind.sm_version >= since), "nvlink2")
    rates = {parse(rate, "bytes_per_s", name): name for name, rate in _PCIE_RATE.items()}
    pcie = rates.get(kind.pcie_bytes_per_s, "pcie5")  # a GPU on NVLink-C2C stands beside slots of PCIe 5
    matrix = _matrix(text)
    gpus = [name for name in matrix if name.startswith("GPU")]
    nics = [name for name in matrix if name not in gpus]
    switches = [group for group in _groups(matrix, _BELOW_ONE_SWITCH) if len(group) > 1]
    sockets = _groups(matrix, _ONE_SOCKET)
    components: dict[str, Any] = {
        "g": {"type": "gpu", "count": len(gpus)},
        "cpu": {"type": "cpu", "count": len(sockets)},
    }
    if nics:
        components["nic"] = {"type": "nic", "count": len(nics)}
    if switches:
        components["sw"] = {"type": "pcie_switch", "count": len(switches)}
    rate = _LINK_RATE_OF_SM.get(kind.sm_version, _LINK_RATE[nvlink])
    links = _nvlinks(matrix, gpus, nvlink, rate, components)
    links += _pcie_links(gpus, nics, switches, sockets, pcie)
    return {
        "name": "imported-node",
        "description": f"One node of {len(gpus)} {gpu}, imported from nvidia-smi topo -m.",
        "source": "nvidia-smi topo -m for what is wired to what; rates by generation; latencies as in dgx-h100.yaml",
        "gpu": gpu,
        "parameters": {"nodes": 1},
        "node": {"components": components, "links": links},
    }


def _matrix(text: str) -> dict[str, dict[str, str]]:
    """{row: {column: entry}} of the GPU and NIC part."""
    clean = re.sub(r"\x1b?\[[0-9;]*m", "", text)  # a paste into a web page loses the escape character alone
    lines = [line for line in clean.splitlines() if line.strip()]
    header = next(
        (n for n, line in enumerate(lines) if re.match(r"\s*GPU0\b", line) and " X " not in f" {line} "), None
    )
    if header is None:
        raise InputError(_WHERE, "holds no matrix", "paste all it prints, with the line of GPU0 GPU1 ...")
    # older drivers head a NIC's column with the name of its device, such as mlx5_0
    columns = re.split(r"CPU Affinity|NUMA Affinity|GPU NUMA ID", lines[header])[0].split()
    matrix: dict[str, dict[str, str]] = {}
    for line in lines[header + 1 :]:
        cells = line.split()
        if cells[0] not in columns:
            break
        entries = dict(zip(columns, cells[1:], strict=False))
        wrong = [e for e in entries.values() if e not in ("X", "SYS", *_ONE_SOCKET) and not re.fullmatch(r"NV\d+", e)]
        if wrong or len(entries) < len(columns):
            raise InputError(
                _WHERE, f"row {cells[0]} cannot be read: {wrong or line!r}", "X, NV#, PIX, PXB, PHB, NODE, SYS"
            )
        matrix[cells[0]] = entries
    _check_complete(matrix, columns)
    return matrix


def _check_complete(matrix: dict[str, dict[str, str]], columns: list[str]) -> None:
    if not matrix:
        raise InputError(_WHERE, "holds a head line but no rows", "paste all it prints")
    missing = [name for name in columns if name not in matrix]
    if missing:
        raise InputError(_WHERE, f"has a column but no row of {', '.join(missing)}", "paste all it prints")
    for a in columns:
        for b in columns:
            if matrix[a][b] != matrix[b][a]:
                problem = f"says {matrix[a][b]} from {a} to {b} and {matrix[b][a]} back"
                raise InputError(_WHERE, problem, "nvidia-smi prints the same both ways: paste it unchanged")


def _groups(matrix: dict[str, dict[str, str]], near: tuple[str, ...]) -> list[list[str]]:
    """Devices joined by entries of `near`; a device alone is a group. NVLink hides the PCIe entry of a GPU pair, so that
    GPUs are also joined by the NICs that stand near both."""
    left = list(matrix)
    groups = []
    while left:
        group, queue = [], [left.pop(0)]
        while queue:
            device = queue.pop()
            group.append(device)
            close = [other for other in left if matrix[device][other] in near or matrix[other][device] in near]
            left = [other for other in left if other not in close]
            queue += close
        groups.append(sorted(group, key=list(matrix).index))
    return groups


def _nvlinks(
    matrix: dict[str, dict[str, str]], gpus: list[str], nvlink: str, rate: str, components: dict[str, Any]
) -> list[dict[str, Any]]:
    counts = {
        (i, j): int(matrix[a][b][2:])
        for i, a in enumerate(gpus)
        for j, b in enumerate(gpus)
        if i < j and matrix[a][b].startswith("NV")
    }
    common = {"kind": nvlink, "bandwidth": rate}
    everywhere = len(counts) == len(gpus) * (len(gpus) - 1) // 2 and len(set(counts.values())) == 1
    if everywhere and counts[0, 1] * (len(gpus) - 1) > _MOST_LINKS:
        components["nvs"] = {"type": "nvswitch", "in_network_reduction": nvlink in ("nvlink4", "nvlink5")}
        return [{"from": "g", "to": "nvs", **common, "times": counts[0, 1], "latency": "0.2 us"}]
    return [
        {"from": f"g[{i}]", "to": f"g[{j}]", **common, "times": count, "latency": "0.4 us"}
        for (i, j), count in counts.items()
    ]


def _pcie_links(
    gpus: list[str], nics: list[str], switches: list[list[str]], sockets: list[list[str]], pcie: str
) -> list[dict[str, Any]]:
    common = {"kind": pcie, "bandwidth": _PCIE_RATE[pcie]}
    links: list[dict[str, Any]] = []
    for device in (*gpus, *nics):
        name = f"g[{gpus.index(device)}]" if device in gpus else f"nic[{nics.index(device)}]"
        switch = next((n for n, group in enumerate(switches) if device in group), None)
        socket = next(n for n, group in enumerate(sockets) if device in group)
        above = f"cpu[{socket}]" if switch is None else f"sw[{switch}]"
        links.append({"from": name, "to": above, **common, "latency": "0.2 us"})
    for n, group in enumerate(switches):
        socket = next(k for k, members in enumerate(sockets) if group[0] in members)
        links.append({"from": f"sw[{n}]", "to": f"cpu[{socket}]", **common, "latency": "0.3 us"})
    for n in range(1, len(sockets)):
        # 48 GB/s a direction and three links: Intel UPI 2.0 of the sockets in HGX H100 nodes
        links.append({"from": "cpu[0]", "to": f"cpu[{n}]", "kind": "socket", "bandwidth": "48 GB/s", "times": 3,
                      "latency": "0.3 us"})  # fmt: skip
    return links
