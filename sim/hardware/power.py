"""The clock that a GPU's power leaves it while its tensor cores are busy.

Power is frequency times voltage squared, and near the top of its range the voltage rises with the frequency, so that a GPU which
may draw half of what its boost clock would take runs at the cube root of a half.
"""

from __future__ import annotations

BOOST_J_PER_FLOP = {
    70: 1.75e-12, 75: 1.75e-12, 80: 1.10e-12, 86: 1.75e-12, 89: 1.75e-12, 120: 1.75e-12,
    90: 0.707e-12, 100: 0.444e-12, 103: 0.489e-12,
}  # fmt: skip
"""Energy of a dense bf16 FLOP with all tensor cores busy at the boost clock, the rest of the card included, by compute
capability.

8.9 and 12.0: GEMMs and prefill attention of an L40S (350 W are 0.97 pJ a printed FLOP) and an RTX PRO 6000 (1.19), which reach
0.82 and 0.88 of what an A100 makes of its peak; 7.x and 8.6 are taken to be alike. 8.0: an A100 of 250 W delivers 90 % of one of
400 W (NVIDIA's A100 datasheet). 9.0, 10.0 and 10.3: power over peak of H100 SXM, B200 and B300, whose kernels and engines were
measured; where it is less, as on an H100 PCIe, the clock is lower than theirs. MLPerf's ratio of the two H100 (inference 3.0 and
3.1, from memory) is 0.63 to 0.67; with the cube root it comes out at 0.66."""


def loaded_clock(sm_version: int, power_w: float, flops_per_s: float) -> float:
    """Share of the boost clock that tensor cores run at, all busy; 1 where nobody measured the like.

    Args:
        sm_version: CUDA compute capability x 10.
        power_w: what the card may draw.
        flops_per_s: printed, bf16, dense.
    """
    if sm_version not in BOOST_J_PER_FLOP:
        return 1.0
    return float(min(1.0, (power_w / (BOOST_J_PER_FLOP[sm_version] * flops_per_s)) ** (1 / 3)))
