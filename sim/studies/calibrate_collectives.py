"""Fit a fabric's collective constants to measured times, such as the output of nccl-tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sim.cost.collective_constants import CONSTANTS, LinkConstants, Method
from sim.cost.collectives import OPS, CollectiveTime, Communicator, calibrated
from sim.cost.kernels import Floats
from sim.errors import InputError, nearest
from sim.hardware.topology import Topology
from sim.hardware.topology_language import LINK_KINDS, CalibrationSpec

_PROGRAMS = {
    "all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter", "alltoall": "all_to_all",
    "broadcast": "broadcast", "sendrecv": "send_recv",
}  # fmt: skip
_FAMILY = {"all_to_all": "peer", "send_recv": "send"}


@dataclass(frozen=True, slots=True)
class NcclTest:
    """Measured collectives of one run of nccl-tests."""

    op: str
    ranks: int
    sizes_bytes: Floats
    times_s: Floats
    """Out of place, the first time column."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Fitted behaviour of one link kind and how well it meets the measurements."""

    kind: str
    op: str
    start_s: float
    """Paid once, beyond the launch of the GPU's own NCCL kernel."""
    step_overhead_s: float
    """Of the Simple protocol at every serial step, beyond the wires."""
    efficiency: float
    """Of the Simple protocol, at large sizes."""
    sizes_bytes: Floats
    measured_s: Floats
    predicted_s: Floats
    source: str

    @property
    def median_abs_error(self) -> float:
        return float(np.median(np.abs(self.predicted_s / self.measured_s - 1)))

    @property
    def p90_abs_error(self) -> float:
        return float(np.quantile(np.abs(self.predicted_s / self.measured_s - 1), 0.9))

    def spec(self) -> CalibrationSpec:
        """The entry for a topology's `calibration` under this kind."""
        return CalibrationSpec(
            start=f"{round(self.start_s * 1e6, 2):g} us",
            step_overhead=f"{round(self.step_overhead_s * 1e6, 2):g} us",
            efficiency=float(f"{self.efficiency:.3g}"),
            error=round(self.p90_abs_error, 3),
            source=self.source,
        )

    def yaml(self) -> str:
        """Lines to put into the topology file."""
        import yaml

        return yaml.safe_dump({"calibration": {self.kind: self.spec().model_dump()}}, sort_keys=False)


def read_nccl_tests(text: str, where: str = "nccl-tests output") -> NcclTest:
    """The rows of an nccl-tests run (all_reduce_perf and its sisters).

    Raises:
        InputError: no table, no rows, or neither the program's name nor the ranks can be found.
    """
    program = re.search(r"(\w+?)_perf\b", text)
    op = _PROGRAMS.get(program.group(1).lower(), "") if program else _op_from_columns(text)
    if op not in OPS:
        raise InputError(where, "does not say which collective ran", "keep the line that names all_reduce_perf")
    header = re.search(r"^#\s+size\s+count\s+type.*\btime\b.*$", text, re.MULTILINE)
    if header is None:
        raise InputError(where, "holds no nccl-tests table", "the line '# size count type ... time algbw busbw'")
    column = header.group(0).lstrip("# ").split().index("time")
    rows = [line.split() for line in text.splitlines() if re.match(r"\s*\d", line)]
    try:
        values = np.array([(float(row[0]), float(row[column]) * 1e-6) for row in rows if float(row[column]) > 0])
    except (ValueError, IndexError):
        raise InputError(where, "a row of the table cannot be read", f"column {column + 1} is the time in us") from None
    values = values[values[:, 0] > 0] if len(values) else values
    if len(values) == 0:
        raise InputError(where, "its table has no rows with a size above 0", "run with -b 8 or more")
    return NcclTest(op, len(re.findall(r"^#\s+Rank\s+\d+", text, re.MULTILINE)), values[:, 0], values[:, 1])


def _op_from_columns(text: str) -> str:
    """Only reductions have a redop: without a program name the output of all_reduce_perf can be told, others cannot."""
    return "all_reduce" if re.search(r"^\s*\d+\s+\d+\s+\w+\s+(sum|avg|prod|min|max)\b", text, re.MULTILINE) else ""


def calibrate(
    topology: Topology, gpus: Sequence[str], op: str, sizes_bytes: Floats, times_s: Floats, kind: str, source: str
) -> Calibration:
    """Fit start, step overhead and efficiency of the links of `kind` to times measured among `gpus`.

    The three numbers minimise the robust squared log ratio of predicted to measured time; the other link kinds, the wires'
    latencies and the choice of algorithm and protocol stay as they are.

    Args:
        gpus: the GPUs of this topology that stand for the measured ranks, in rank order.
        kind: the link kind whose constants are sought; the collective must cross it.

    Raises:
        InputError: fewer than three sizes, or a kind that the collective does not cross.
    """
    probe = _probe(topology, gpus, op, sizes_bytes, kind)
    # of a single step only the sum of start and overhead shows: all of it is then the step's
    most_start_us = 1e5 if probe.steps > 1 else 1e-6

    def predicted(values: Floats) -> Floats:
        spec = CalibrationSpec(
            start=f"{values[0]} us", step_overhead=f"{values[1]} us", efficiency=float(values[2]), source=source
        )
        constants = calibrated(CONSTANTS, {kind: spec})
        bare = replace(topology, calibration={})
        latency, bandwidth = Communicator(bare, gpus, "nccl", constants).times(op, sizes_bytes)
        return latency + bandwidth

    found = _fitted(lambda values: np.log(predicted(values) / times_s), _simple(CONSTANTS[kind], op), most_start_us)
    start, step, efficiency = found.tolist()
    return Calibration(kind, op, start * 1e-6, step * 1e-6, efficiency, sizes_bytes, times_s, predicted(found), source)


def _probe(topology: Topology, gpus: Sequence[str], op: str, sizes_bytes: Floats, kind: str) -> CollectiveTime:
    """The largest of the measured collectives, by the constants that are to be replaced; errors as `calibrate`."""
    where = "calibrate collectives"
    if len(sizes_bytes) < 3:
        raise InputError(where, f"got {len(sizes_bytes)} sizes", "three numbers need three sizes at least")
    if kind not in LINK_KINDS:
        raise InputError(where, f"unknown link kind '{kind}'", nearest(kind, LINK_KINDS))
    probe = Communicator(topology, gpus, "nccl").time(op, float(np.max(sizes_bytes)))
    if kind not in probe.edge_bytes_by_kind:
        crossed = ", ".join(sorted(probe.edge_bytes_by_kind))
        raise InputError(
            where, f"{op} among {len(gpus)} GPUs of {topology.name} crosses no {kind}", f"it crosses {crossed}"
        )
    return probe


def _fitted(errors: Callable[[Floats], Floats], simple: Method, most_start_us: float) -> Floats:
    """Start and step in us, and efficiency, with the least robust squared errors."""
    from scipy.optimize import least_squares

    # which algorithm is the fastest changes with the constants, so that the error has several valleys: start in each
    fits = [
        least_squares(
            errors,
            x0=[min(1.0, most_start_us / 2), step_us, efficiency],
            bounds=([0.0, 0.01, 1e-3], [most_start_us, 1e5, 1.0]),
            x_scale=[10.0, 10.0, 0.5],
            loss="soft_l1",
            f_scale=0.1,
            diff_step=1e-3,
        )
        for step_us in (simple.step_s * 1e6, 4 * simple.step_s * 1e6)
        for efficiency in (0.9 * simple.efficiency, 0.3 * simple.efficiency)
    ]
    return np.asarray(min(fits, key=lambda found: float(found.cost)).x, dtype=np.float64)


def _simple(constants: LinkConstants, op: str) -> Method:
    return constants.methods[f"{_FAMILY.get(op, 'ring')}/Simple"]
