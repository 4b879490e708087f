"""The error of the calibrated constants, carried through a simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sim import Scenario, simulate
from sim.cost.factored import FactoredKernels
from sim.cost.kernels import KernelTime
from sim.cost.roofline import Roofline
from sim.engine.scaling import Scaling
from sim.hardware.gpu import load_gpu
from sim.results.export import to_json
from sim.results.provenance import HOST_LOG_STD, Origin
from sim.studies.uncertainty import _latin_hypercube, line, scaling, table, uncertainty

DATA = {
    "name": "small",
    "model": "llama-3.1-8b",
    "cluster": {"topology": "dgx-h100"},
    "deployment": {"tensor_parallel_size": 2},
    "workload": {
        "arrivals": {"kind": "closed_loop", "concurrency": 4},
        "lengths": {"kind": "fixed", "input_tokens": 512, "output_tokens": 32},
        "num_requests": 12,
    },
}
GPU = "h100-sxm"


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return Scenario.from_dict(DATA)


def test_the_factor_of_a_kernel_multiplies_its_time() -> None:
    gpu = load_gpu(GPU)
    plain = Roofline(gpu)
    twice = FactoredKernels(plain, gpu, {("gemm", "bf16"): 2.0, ("decode_attention", "bf16"): 3.0})
    rows = np.array([1.0, 64.0, 4096.0])

    def seconds(time: KernelTime) -> np.ndarray:
        return np.asarray(time.total_s)

    np.testing.assert_allclose(
        seconds(twice.gemm(rows, 4096, 4096, "bf16")), 2 * seconds(plain.gemm(rows, 4096, 4096, "bf16"))
    )
    np.testing.assert_array_equal(
        seconds(twice.gemm(rows, 4096, 4096, "fp8")), seconds(plain.gemm(rows, 4096, 4096, "fp8"))
    )
    for thrice, once in zip(
        twice.decode_attention(rows, 32, 8, 128, "bf16"), plain.decode_attention(rows, 32, 8, 128, "bf16"), strict=True
    ):
        np.testing.assert_allclose(thrice, 3 * once)


def test_no_factor_beats_the_printed_peaks() -> None:
    gpu = load_gpu(GPU)
    free = FactoredKernels(Roofline(gpu), gpu, {("gemm", "bf16"): 1e-3, ("decode_attention", "bf16"): 1e-3})
    rows = np.array([1.0, 64.0, 4096.0])
    ideal = Roofline(gpu, ideal=True)
    np.testing.assert_allclose(
        free.gemm(rows, 8192, 8192, "bf16").total_s, ideal.gemm(rows, 8192, 8192, "bf16").total_s
    )
    found, least = (kernels.decode_attention(rows, 32, 8, 128, "bf16") for kernels in (free, ideal))
    np.testing.assert_allclose(
        found.memory_s_per_token + found.compute_s_per_token, least.memory_s_per_token + least.compute_s_per_token
    )


def test_factors_of_one_change_nothing_and_slower_collectives_slow_a_token(scenario: Scenario) -> None:
    plain = simulate(scenario).summary
    ones = Scaling(kernel_times={(GPU, "gemm", "bf16"): 1.0}, collective_times={"nvlink4": 1.0})
    assert simulate(scenario, scaling=ones).summary == plain
    slow = simulate(scenario, scaling=Scaling(collective_times={"nvlink4": 2.0})).summary
    assert slow["mean_tpot_ms"] > plain["mean_tpot_ms"]
    wires = simulate(scenario, scaling=Scaling(collective_times={"infiniband": 2.0})).summary
    assert wires == plain


def test_every_constant_is_drawn_once_in_each_slice() -> None:
    drawn = _latin_hypercube(50, 3, seed=0)
    assert drawn.shape == (50, 3)
    assert abs(drawn.mean(axis=0)).max() < 0.05
    assert drawn.std(axis=0) == pytest.approx(np.ones(3), abs=0.05)
    np.testing.assert_array_equal(drawn, _latin_hypercube(50, 3, seed=0))


def test_a_draw_scales_what_it_names() -> None:
    rows = [
        Origin("a", "fitted", "", 0.1, None, ("kernel", GPU, "gemm", "bf16"), 0.1),
        Origin("b", "fitted", "", 0.1, None, ("collective", "nvlink4"), 0.2),
        Origin("c", "fitted", "", None, None, ("host",), HOST_LOG_STD),
    ]
    found = scaling(rows, [1.0, -1.0, 0.0])
    assert found.kernel_times == {(GPU, "gemm", "bf16"): pytest.approx(np.exp(0.1))}
    assert found.collective_times == {"nvlink4": pytest.approx(np.exp(-0.2))}
    assert found.host_overhead == 1.0


def test_the_answer_lies_in_its_interval_and_all_that_was_drawn_is_named(scenario: Scenario) -> None:
    found = uncertainty(scenario, draws=12, jobs=1)
    for key in ("mean_tpot_ms", "mean_ttft_ms", "output_throughput"):
        low, high = found.intervals[key]
        value = found.base[key]
        assert low is not None
        assert high is not None
        assert value is not None
        assert low < value < high
        assert 0.02 < (high - low) / value < 0.6
    names = [one.number for one in found.components]
    assert names == [
        "h100-sxm: gemm bf16",
        "h100-sxm: prefill_attention bf16",
        "h100-sxm: decode_attention bf16",
        "h100-sxm: elementwise bf16",
        "collectives over nvlink4",
        "engine: vllm",
    ]
    assert found.drivers["mean_tpot_ms"][0][1] > 0.3
    assert "Constants leave open (95% of 12 draws): TTFT mean ms" in line(found)
    assert "h100-sxm: gemm bf16" in table(found)
    again = uncertainty(scenario, draws=12, jobs=2)
    assert to_json(again.as_dict()) == to_json(found.as_dict())
    assert json.loads(to_json(found.as_dict()))["components"][5] == {"number": "engine: vllm", "log_std": HOST_LOG_STD}


def test_few_draws_do_not_say_what_moves_an_answer(scenario: Scenario) -> None:
    """Of four draws chance alone makes ranks agree: shares of 100 %, 64 % and 64 % would be read as a finding."""
    found = uncertainty(scenario, draws=4, jobs=1)
    assert all(found.drivers[key] for key in ("mean_ttft_ms", "mean_tpot_ms"))
    assert "too few draws to say" in table(found)
    assert "gemm bf16 " not in table(found).partition("drawn ")[0]


def test_a_borrowed_gpu_leaves_more_open_than_a_measured_one(scenario: Scenario) -> None:
    def share(gpu: str) -> float:
        found = uncertainty(scenario.with_overrides({"cluster.gpu": gpu}), draws=12, jobs=1)
        low, high = found.intervals["mean_tpot_ms"]
        assert low is not None
        assert high is not None
        return (high - low) / (found.base["mean_tpot_ms"] or 1.0)

    assert share("l40s") > 1.2 * share("h100-sxm")


def test_printed_peaks_leave_nothing_open(scenario: Scenario) -> None:
    found = uncertainty(scenario.with_overrides({"engine.preset": "ideal"}), draws=2, jobs=1)
    assert found.components == []
    low, high = found.intervals["mean_tpot_ms"]
    assert low == high == found.base["mean_tpot_ms"]
