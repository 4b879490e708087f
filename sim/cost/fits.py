"""Formulas of matrix multiplications and elementwise kernels over their fitted constants.

Each takes the constants of one fit (`c`), the GPU, and a shape, all numpy-vectorised, and returns a `KernelTime`.
Calibration fits the constants through the same functions, so a fit and its use cannot drift apart. Constants are
dimensionless fractions of printed peaks, or seconds (`_s`), and mean the same on every GPU.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim.cost.formats import ARITHMETIC, weight_bytes
from sim.cost.kernels import Floats, KernelTime
from sim.hardware.gpu import Gpu

Constants = Mapping[str, float]
ACTIVATION_BYTES = 2.0  # activations between kernels are bf16
DEPTH_REFERENCE = 4096.0  # elements of k at which `depth_s` is quoted


def array(value: Floats | float) -> Floats:
    """`value` as an array of float64."""
    return np.asarray(value, dtype=np.float64)


def smooth_body(compute_s: Floats, memory_s: Floats, overlap: float) -> tuple[Floats, Floats]:
    """(memory share, compute share) of the body (x^p + y^p)^(1/p), x compute, y memory, p `overlap`.

    The shares are body x y^p / (x^p + y^p) and body x x^p / (x^p + y^p). p = 1 adds the two, p = infinity takes the larger.
    """
    high = np.maximum(compute_s, memory_s)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(high > 0, np.minimum(compute_s, memory_s) / high, 0.0)
    power = np.zeros_like(ratio) if np.isinf(overlap) else ratio**overlap
    body = high if np.isinf(overlap) else high * (1 + power) ** (1 / overlap)
    major = body / (1 + power)
    minor = body - major
    compute_leads = compute_s >= memory_s
    return np.where(compute_leads, minor, major), np.where(compute_leads, major, minor)


def peak_flops_per_s(gpu: Gpu, dtype: str) -> float:
    """Tensor peak of the arithmetic that multiplies `dtype`; a format the GPU cannot multiply is unpacked to bf16."""
    return gpu.flops_per_s[arithmetic(gpu, dtype)]


def arithmetic(gpu: Gpu, dtype: str) -> str:
    """The arithmetic `dtype` runs in on `gpu`: its own where the GPU has it, else bf16 (weight-only kernels, Marlin)."""
    own = ARITHMETIC.get(dtype, "bf16")
    return own if own in gpu.flops_per_s else "bf16"


def gemm(c: Constants, gpu: Gpu, m: Floats | float, n: Floats | float, k: Floats | float, dtype: str) -> KernelTime:
    """out[m, n] = in[m, k] x weights[k, n].

    body = p-norm of FLOPs over the tensor peak and bytes over HBM. The reduction over k is serial inside a tile;
    splitting it s ways costs k/s steps and s partial sums, at best proportional to sqrt(k): `depth_s` at k = 4096.
    A quantised activation is first read in bf16 and written in its own format by a kernel of its own (`quantise_launch_s`).
    """
    m, n, k = array(m), array(n), array(k)
    weight = weight_bytes(dtype)
    quantised = arithmetic(gpu, dtype) != "bf16"
    activation = weight if quantised else ACTIVATION_BYTES
    hbm = gpu.hbm_bytes_per_s
    compute_s = 2 * m * n * k / (c["compute"] * peak_flops_per_s(gpu, dtype))
    moved_s = (m * k * activation + m * n * ACTIVATION_BYTES) / (c["activation"] * hbm)
    memory_s = n * k * weight / (c["memory"] * hbm) + moved_s
    fixed_s = c["launch_s"] + c["depth_s"] * np.sqrt(k / DEPTH_REFERENCE) + np.zeros_like(compute_s)
    memory, compute = smooth_body(compute_s, memory_s, c["overlap"])
    if quantised:
        fixed_s = fixed_s + c["quantise_launch_s"]
        memory = memory + m * k * (ACTIVATION_BYTES + activation) / (c["quantise"] * hbm)
    return KernelTime(fixed_s, memory, compute)


def experts_touched(tokens: Floats | float, experts: int, local_experts: int, top_k: int) -> Floats:
    """Experts of this rank that at least one of `tokens` picks, expected when every token picks uniformly.

    local x (1 - (1 - k/E)^T); the weights of the others are not read.
    """
    missed = np.exp(array(tokens) * np.log1p(-min(top_k / experts, 1 - 1e-12)))
    return array(local_experts * (1 - missed))


def moe(
    c: Constants,
    gpu: Gpu,
    tokens: Floats | float,
    hidden: Floats | float,
    intermediate: Floats | float,
    touched: Floats | float,
    routed: Floats | float,
    dtype: str,
) -> KernelTime:
    """Grouped gate+up and down GEMMs of the `touched` experts of a rank, over `routed` (token, expert) pairs.

    Three matrices of hidden x intermediate an expert; activations in, between and out. `expert_s` is the cost of
    scheduling the tiles of one expert, `tile` the rows by which the row tile of an expert is filled in vain.
    """
    tokens, hidden, intermediate = array(tokens), array(hidden), array(intermediate)
    touched, routed = array(touched), array(routed)
    quantised = arithmetic(gpu, dtype) != "bf16"
    activation = weight_bytes(dtype) if quantised else ACTIVATION_BYTES
    rows = routed + c["tile"] * touched
    compute_s = 6 * rows * hidden * intermediate / (c["compute"] * peak_flops_per_s(gpu, dtype))
    weights = 3 * touched * hidden * intermediate * weight_bytes(dtype)
    moved = routed * (hidden * (activation + ACTIVATION_BYTES) + intermediate * (2 * ACTIVATION_BYTES + 2 * activation))
    memory_s = (weights / c["memory"] + moved / c["activation"]) / gpu.hbm_bytes_per_s
    fixed_s = c["launch_s"] + c["expert_s"] * touched / gpu.sm_count + np.zeros_like(tokens)
    memory, compute = smooth_body(compute_s, memory_s, c["overlap"])
    return KernelTime(fixed_s, memory, compute)


def elementwise(c: Constants, gpu: Gpu, bytes_moved: Floats | float, kernels: int) -> KernelTime:
    """Memory-bound kernels: a fixed cost each, and their bytes through HBM."""
    moved = array(bytes_moved)
    memory_s = moved / (c["memory"] * gpu.hbm_bytes_per_s)
    return KernelTime(np.full_like(memory_s, kernels * c["launch_s"]), memory_s, np.zeros_like(memory_s))
