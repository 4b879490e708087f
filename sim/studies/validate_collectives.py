"""Predicted collectives beside published measurements, row by row and by group."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim.cost.collectives import Communicator
from sim.cost.kernels import Floats
from sim.cost.measured_tables import GpuTables
from sim.errors import InputError
from sim.hardware.topology import Topology, load_topology
from sim.hardware.topology_language import CalibrationSpec
from sim.studies.calibrate_collectives import calibrate
from sim.studies.kernel_rows import software_of
from sim.studies.load_forms import message_bytes, parse_load

SYSTEMS: Mapping[str, str] = {
    "a100_sxm": "dgx-a100",
    "h100_sxm": "dgx-h100",
    "h200_sxm": "dgx-h200",
    "b200_sxm": "hgx-b200",
    "b300_sxm": "hgx-b300",
    "gb200": "gb200-nvl72",
    "gb300": "gb300-nvl72",
    "l40s": "pcie-box-l40s",
    "rtx_pro_6000_server": "pcie-box-rtx-pro-6000",
}
"""Folder of the aiconfigurator tables -> topology of the machine they were measured on."""
_ELEMENT_BYTES = {"half": 2, "bfloat16": 2, "int8": 1}
_HALF_BYTES = 2.0
"""Of an element of the published rows, which are all bf16 or fp16."""
_OPS = {"alltoall": "all_to_all"}
_BACKENDS = {"vllm_graph": "custom", "vllm_eager": "eager"}


@dataclass(frozen=True, slots=True)
class CollectiveRow:
    """One measurement and what is predicted for it."""

    source: str
    system: str
    op: str
    software: str
    gpus: int
    nodes: int
    size_bytes: float
    measured_s: float
    predicted_s: float
    algorithm: str

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_s / self.measured_s - 1


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Errors of rows that belong together; all but `n` are fractions."""

    group: str
    n: int
    median_abs_error: float
    mean_abs_error: float
    bias: float
    p90_abs_error: float
    within_25_percent: float


def table_rows(kernels: Path) -> list[CollectiveRow]:
    """Rows of the NCCL and vLLM all-reduce tables inside a node.

    Args:
        kernels: the folder that holds `<system>/nccl/nccl_perf.parquet` and `<system>/comm/custom_allreduce_perf.parquet`, or
            the same by library and version, as the package aiconfigurator-core installs them: then the newest version.

    Raises:
        InputError: none of the systems is there.
    """
    import pyarrow.parquet as pq

    rows = []
    for system, name in SYSTEMS.items():
        topology = load_topology(name, {})
        groups = _Communicators(topology)
        for path in _tables(kernels / system):
            for record in pq.read_table(path).to_pylist():
                dtype = record.get("nccl_dtype") or record["allreduce_dtype"]
                # `message_size` counts elements of the dtype and `latency` is in milliseconds
                size = float(record["message_size"] * _ELEMENT_BYTES[dtype])
                op = _OPS.get(record["op_name"], record["op_name"])
                software = _BACKENDS.get(record.get("backend", ""), "nccl")
                measured_s = record["latency"] * 1e-3
                rows.append(
                    groups.row(path.stem, system, op, software, topology.gpus[: record["num_gpus"]], size, measured_s)
                )
    if not rows:
        raise InputError(str(kernels), "holds no collective tables", f"expected folders {', '.join(SYSTEMS)}")
    return rows


def _tables(system: Path) -> Iterator[Path]:
    """NCCL's table and that of vLLM's all-reduce, where they are there."""
    for families, file, library in (
        (("nccl", "comm"), "nccl_perf.parquet", "nccl"),
        (("comm",), "custom_allreduce_perf.parquet", "vllm"),
    ):
        versions = [paths for family in families for paths in GpuTables(system, library).paths(family, file) if paths]
        if versions:
            yield versions[0][-1]


def published_rows(measured: Path) -> list[CollectiveRow]:
    """Rows of other software versions and of collectives across nodes, from a CSV of published measurements.

    They are printed beside the tables, not fitted: PyTorch on NCCL versions that are not stated (Vidur), NCCL-tests (APEX).
    The fabric of Vidur's two A100 nodes is not stated either and its times are not monotone in the number of GPUs: it is
    calibrated on its own send/recv rows, and its system carries the word `calibrated`.
    """
    with measured.open(encoding="utf-8", newline="") as file:
        records = [record for record in csv.DictReader(file) if _published(record)]
    machines: dict[tuple[str, int], _Communicators] = {}
    rows = []
    for record in records:
        name = next(t for key, t in _GPU_TOPOLOGIES.items() if record["gpu"].startswith(key))
        nodes = int(record["nodes"])
        calibrate_it = name == "dgx-a100" and nodes == 2
        if (name, nodes) not in machines:
            topology = load_topology(name, {"nodes": nodes})
            if calibrate_it:
                topology.calibration = _own_fabric(topology, records)
            machines[name, nodes] = _Communicators(topology)
        op, size, measured_s = _measurement(record)
        each = int(record["n_gpus"]) // nodes
        members = [f"n{node}.g{i}" for node in range(nodes) for i in range(each)]
        system = record["gpu"] + (" calibrated" if calibrate_it else "")
        source = "-".join(record["id"].split("-")[:2])
        software = software_of(record["engine+version"])
        rows.append(machines[name, nodes].row(source, system, op, software, members, size, measured_s))
    return [*rows, _gb200_row()]


def _gb200_row() -> CollectiveRow:
    """16 GPUs of a GB200 rack, 1 MiB: 48 to 50 us (aiconfigurator PR #1593)."""
    rack = _Communicators(load_topology("gb200-nvl72", {}))
    return rack.row("aic-pr1593", "GB200 NVL72", "all_reduce", "nccl", rack.topology.gpus[:16], 2.0**20, 49e-6, nodes=1)


def _published(record: Mapping[str, str]) -> bool:
    known = any(record["gpu"].startswith(key) for key in _GPU_TOPOLOGIES)
    return record["kind"] == "collective" and known and record["id"].startswith(("coll-vidur-", "coll-apex-"))


def _measurement(record: Mapping[str, str]) -> tuple[str, float, float]:
    """(op, bytes, seconds) of a row."""
    seconds = float(record["value"]) * {"ms": 1e-3, "us": 1e-6}[record["unit"]]
    load = record["batch_or_concurrency_or_rate"]
    message = parse_load(load).message
    if message is None:
        raise InputError("batch_or_concurrency_or_rate", f"got '{load}'", "the size of the message is not stated")
    return record["metric"].split("_latency")[0], message_bytes(*message, _HALF_BYTES), seconds


def _own_fabric(topology: Topology, records: Iterable[Mapping[str, str]]) -> dict[str, CalibrationSpec]:
    """The InfiniBand of the two A100 nodes as their own send/recv rows show it."""
    rows = [
        _measurement(record)
        for record in records
        if record["gpu"].startswith("A100-SXM") and record["nodes"] == "2" and record["metric"].startswith("send_recv")
    ]
    sizes, times = np.array([size for _, size, _ in rows]), np.array([seconds for _, _, seconds in rows])
    ends = ["n0.g0", "n1.g0"]
    fit = calibrate(topology, ends, "send_recv", sizes, times, "infiniband", "send/recv rows of Vidur's two A100 nodes")
    return {"infiniband": fit.spec()}


_GPU_TOPOLOGIES = {"A100-SXM": "dgx-a100", "H100-SXM": "dgx-h100", "H200-SXM": "dgx-h200"}


def grouped_errors(
    rows: Iterable[CollectiveRow], key: Callable[[CollectiveRow], str] | None = None
) -> list[ErrorGroup]:
    """Errors by group; without `key` by system, software and op."""
    by: dict[str, list[float]] = {}
    for row in rows:
        nodes = f", {row.nodes} nodes" if row.nodes > 1 else ""
        name = key(row) if key else f"{row.system} {row.software} {row.op}{nodes}"
        by.setdefault(name, []).append(row.error)
    return [_summary(name, np.array(errors)) for name, errors in by.items()]


def _summary(name: str, errors: Floats) -> ErrorGroup:
    size = np.abs(errors)
    return ErrorGroup(
        group=name,
        n=errors.size,
        median_abs_error=float(np.median(size)),
        mean_abs_error=float(size.mean()),
        bias=float(errors.mean()),
        p90_abs_error=float(np.quantile(size, 0.9)),
        within_25_percent=float((size <= 0.25).mean()),
    )


class _Communicators:
    """Communicators of one machine, each built once."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._known: dict[tuple[str, tuple[str, ...]], Communicator] = {}

    def row(
        self,
        source: str,
        system: str,
        op: str,
        software: str,
        gpus: list[str],
        size_bytes: float,
        measured_s: float,
        nodes: int | None = None,
    ) -> CollectiveRow:
        """What is predicted for a measurement; `nodes` where a node of the topology is not a machine of its own."""
        key = software, tuple(gpus)
        if key not in self._known:
            self._known[key] = Communicator(self.topology, gpus, software)
        time = self._known[key].time(op, size_bytes)
        nodes = nodes or len({self.topology.node_of[gpu] for gpu in gpus})
        return CollectiveRow(
            source, system, op, software, len(gpus), nodes, size_bytes, measured_s, time.time_s, time.algorithm
        )
