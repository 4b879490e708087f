"""Number formats: bytes an element, and the arithmetic that multiplies it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from sim.errors import InputError, nearest

WEIGHT_BYTES: Mapping[str, float] = {
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    # one fp32 scale a 128 x 128 block (DeepSeek-V3 technical report, section 3.3)
    "fp8_block": 1.0 + 4 / (128 * 128),
    "int8": 1.0,
    "int8_wo": 1.0,
    # one fp16 scale a group of 128 (GPTQ and AWQ checkpoints)
    "int4_wo": 0.5 + 2 / 128,
    # one fp8 scale a group of 16 (NVIDIA NVFP4); one 8-bit exponent a group of 32 (OCP microscaling formats)
    "nvfp4": 0.5 + 1 / 16,
    "mxfp4": 0.5 + 1 / 32,
}
"""Bytes of one weight with its scales; a quantised activation has the same, a weight-only format keeps bf16 ones."""

ARITHMETIC: Mapping[str, str] = {
    "fp8": "fp8",
    "fp8_block": "fp8",
    "int8": "int8",
    "nvfp4": "fp4",
    "mxfp4": "mxfp4",
}
"""Formats with a tensor-core rate of their own; the others multiply in bf16. 'fp4' is NVIDIA's tensor cores, 'mxfp4' is AMD's, of
CDNA 4: engines multiply mxfp4 there, and on NVIDIA's unpack it but in experts (sim/cost/fits.py)."""

Quantisation = Literal["dynamic", "static", "fused", "none"]
"""How an activation comes into its format. dynamic: a kernel looks for the largest element of each token, and partial sums are
scaled. static: scales are known in advance, and a kernel passes over the activations. fused: known, the kernel that writes them
quantises them, and the engine tried its kernels when it was built (TensorRT-LLM). none: they come quantised (a bare kernel)."""
STATIC_SCALES = frozenset({"fp8", "int8", "nvfp4"})
"""Formats whose scales may be known in advance; that of a block is of its own largest element."""

KV_BYTES: Mapping[str, float] = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0}


def quantised(engine: Quantisation, static_scales: bool | None) -> Quantisation:
    """How activations are quantised: the engine's way, unless checkpoint or user say what their scales are.

    Args:
        static_scales: known in advance or not; None: nobody says.
    """
    if static_scales is False:
        return "dynamic"
    return "static" if static_scales and engine == "dynamic" else engine


def weight_bytes(dtype: str) -> float:
    """Bytes of one weight stored as `dtype`, scales included."""
    if dtype not in WEIGHT_BYTES:
        raise InputError("precision.weights", f"got '{dtype}'", nearest(dtype, WEIGHT_BYTES))
    return WEIGHT_BYTES[dtype]


def kv_bytes(dtype: str) -> float:
    """Bytes of one element of the KV cache stored as `dtype`."""
    if dtype not in KV_BYTES:
        raise InputError("precision.kv_cache", f"got '{dtype}'", nearest(dtype, KV_BYTES))
    return KV_BYTES[dtype]
