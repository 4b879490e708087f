"""Calibration: nccl-tests output in, constants of the fabric out."""

from __future__ import annotations

import numpy as np
import pytest

from sim.cost.collective_constants import CONSTANTS
from sim.cost.collectives import Communicator
from sim.errors import InputError
from sim.hardware.topology import Topology, load_topology
from sim.hardware.topology_language import CalibrationSpec
from sim.studies.calibrate_collectives import calibrate, read_nccl_tests

OUTPUT = """\
# nThread 1 nGpus 1 minBytes 8 maxBytes 134217728 step: 16(factor) warmup iters: 5 iters: 20 agg iters: 1 validation: 1 graph: 0
#
# Using devices
#  Rank  0 Group  0 Pid  30120 on      node-a device  0 [0x18] NVIDIA H100 80GB HBM3
#  Rank  1 Group  0 Pid  30121 on      node-b device  0 [0x18] NVIDIA H100 80GB HBM3
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
           8             2     float     sum      -1    28.61    0.00    0.00      0    28.18    0.00    0.00      0
     1048576        262144     float     sum      -1    96.20   10.90   10.90      0    95.90   10.93   10.93      0
   134217728      33554432     float     sum      -1   3604.1   37.24   37.24      0   3602.2   37.26   37.26      0
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 16.0466
"""


def test_an_output_of_nccl_tests_is_read() -> None:
    test = read_nccl_tests(OUTPUT)
    assert (test.op, test.ranks) == ("all_reduce", 2)
    assert test.sizes_bytes.tolist() == [8, 1048576, 134217728]
    assert test.times_s == pytest.approx([28.61e-6, 96.2e-6, 3604.1e-6])


def test_the_programs_name_decides_where_no_reduction_shows() -> None:
    text = "# Collective test starting: all_gather_perf\n" + OUTPUT.replace(" sum ", " none")
    assert read_nccl_tests(text).op == "all_gather"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not say which collective"),
        ("all_reduce_perf\n", "holds no nccl-tests table"),
        ("all_reduce_perf\n# size count type redop root time algbw busbw\n", "no rows"),
        ("all_reduce_perf\n# size count type redop root time algbw busbw\n 8 2 float sum -1 fast\n", "cannot be read"),
    ],
)
def test_what_is_no_output_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_nccl_tests(text)


@pytest.fixture
def pair() -> Topology:
    return load_topology("dgx-h100", {"nodes": 2})


@pytest.mark.parametrize(("op", "ends"), [("send_recv", 1), ("all_reduce", 8)])
def test_constants_that_made_the_times_are_found_again(pair: Topology, op: str, ends: int) -> None:
    gpus = [f"n{node}.g{i}" for node in (0, 1) for i in range(ends)]
    true = CalibrationSpec(start="4 us", step_overhead="20 us", efficiency=0.3, source="made up")
    sizes = 2.0 ** np.arange(10, 31)
    pair.calibration = {"infiniband": true}
    times = Communicator(pair, gpus, "nccl").times(op, sizes)
    fit = calibrate(pair, gpus, op, sizes, times.latency_s + times.bandwidth_s, "infiniband", "nccl-tests")
    assert fit.median_abs_error < 0.01
    assert fit.efficiency == pytest.approx(0.3, rel=0.05)
    total = fit.start_s + fit.step_overhead_s if op == "send_recv" else fit.step_overhead_s + 4e-6
    assert total == pytest.approx(24e-6, rel=0.15)
    assert fit.p90_abs_error < 0.02


def test_the_entry_for_the_topology_file_prices_as_the_fit(pair: Topology) -> None:
    gpus = ["n0.g0", "n1.g0"]
    test = read_nccl_tests(OUTPUT)
    fit = calibrate(pair, gpus, test.op, test.sizes_bytes, test.times_s, "infiniband", "node-a and node-b")
    assert "calibration:\n  infiniband:" in fit.yaml()
    pair.calibration = {"infiniband": fit.spec()}
    again = Communicator(pair, gpus, "nccl").times("all_reduce", test.sizes_bytes)
    assert again.latency_s + again.bandwidth_s == pytest.approx(fit.predicted_s, rel=0.02)
    assert fit.p90_abs_error < 0.15
    fitted = Communicator(pair, gpus, "nccl").time("all_reduce", 1e6)
    assert fitted.error == pytest.approx(max(fit.p90_abs_error, CONSTANTS["nvlink4"].error), abs=0.001)


def test_a_fit_needs_sizes_and_a_kind_that_is_crossed(pair: Topology) -> None:
    sizes, times = np.array([1.0, 2.0]), np.array([1.0, 2.0])
    with pytest.raises(InputError, match="got 2 sizes"):
        calibrate(pair, ["n0.g0", "n1.g0"], "send_recv", sizes, times, "infiniband", "x")
    three = np.array([1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="crosses no infiniband"):
        calibrate(pair, ["n0.g0", "n0.g1"], "send_recv", three, three, "infiniband", "x")
    with pytest.raises(InputError, match="unknown link kind"):
        calibrate(pair, ["n0.g0", "n1.g0"], "send_recv", three, three, "wifi", "x")
