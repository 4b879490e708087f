"""The clock that a GPU's power leaves its tensor cores."""

from dataclasses import replace

import numpy as np
import pytest

from sim.cost.roofline import Roofline
from sim.hardware.gpu import load_gpu
from sim.hardware.power import loaded_clock


def test_half_the_power_leaves_the_cube_root_of_half_the_clock() -> None:
    full = loaded_clock(89, 350.0, 362e12)
    assert loaded_clock(89, 175.0, 362e12) == pytest.approx(full * 0.5 ** (1 / 3))
    assert loaded_clock(89, 10_000.0, 362e12) == 1.0


def test_what_nobody_measured_keeps_its_clock() -> None:
    assert loaded_clock(0, 1.0, 1e15) == 1.0
    assert load_gpu("mi300x").loaded_clock == 1.0


def test_an_l4_is_shorter_of_power_than_an_l40s_and_a_4090_has_enough() -> None:
    """72 W for a third of the L40S's peak; 450 W for half of it."""
    clocks = {name: load_gpu(name).loaded_clock for name in ("l4", "l40s", "rtx-pro-6000", "rtx-4090")}
    assert clocks["l4"] == pytest.approx(0.70, abs=0.01)
    assert clocks["l40s"] == pytest.approx(0.82, abs=0.01)
    assert clocks["rtx-pro-6000"] == pytest.approx(0.88, abs=0.01)
    assert clocks["rtx-4090"] == 1.0


def test_the_pcie_cards_of_two_generations_fall_behind_as_published() -> None:
    """An A100 of 250 W delivers 90 % of one of 400 W (NVIDIA's datasheet); an H100 PCIe, with 0.76 of the peak, two thirds."""
    assert load_gpu("a100-pcie-40gb").loaded_clock == pytest.approx(0.9, abs=0.005)
    pcie, sxm = load_gpu("h100-pcie"), load_gpu("h100-sxm")
    assert sxm.loaded_clock == 1.0
    share = pcie.loaded_clock * pcie.flops_per_s["bf16"] / sxm.flops_per_s["bf16"]
    assert share == pytest.approx(0.66, abs=0.01)


def test_only_what_computes_waits_for_the_clock() -> None:
    """A product of few tokens and a decode read memory; a product of many and a prompt's attention compute."""
    l4 = load_gpu("l4")
    cool = replace(l4, loaded_clock=1.0)

    def slower(ask: str, *shape: float) -> float:
        mine, its = (getattr(Roofline(gpu), ask)(*shape, "bf16") for gpu in (l4, cool))
        if ask == "decode_attention":
            return float(mine.memory_s_per_token / its.memory_s_per_token)
        return float((mine.memory_s + mine.compute_s) / (its.memory_s + its.compute_s))

    assert slower("gemm", 1.0, 8192, 8192) == pytest.approx(1.0, abs=0.01)
    assert slower("decode_attention", 32.0, 32, 8, 128) == 1.0
    assert slower("gemm", 8192.0, 8192, 8192) == pytest.approx(1 / l4.loaded_clock, rel=0.05)
    assert slower("prefill_attention", 16384.0, 0.0, 32, 8, 128) == pytest.approx(1 / l4.loaded_clock, rel=0.05)


def test_the_back_of_an_envelope_knows_no_power() -> None:
    l4 = load_gpu("l4")
    printed_s = 2 * 8192.0**3 / l4.flops_per_s["bf16"]
    assert np.isclose(Roofline(l4, ideal=True).gemm(8192.0, 8192, 8192, "bf16").total_s, printed_s)


def test_a_result_says_at_which_clock_a_borrowed_rate_is_taken() -> None:
    assert load_gpu("l4").origin.endswith(
        "those of l40s on its datasheet, whose 72 W leave what computes 0.70 of the boost clock"
    )
    assert load_gpu("rtx-4090").origin.endswith("those of l40s on its datasheet")
    assert load_gpu("v100-sxm-32gb").origin.endswith("; it multiplies no bf16, so 16 bits are taken to be fp16")
    assert load_gpu("l40s").origin == "kernel rates fitted to its own measured kernels"
