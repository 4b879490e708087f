"""Experts for which vLLM brings tiles that were tuned on a GPU; of others Triton's kernel takes tiles by rule.

The shapes of bf16 and fp16 experts are those of vLLM 0.24 (fused_moe/configs: one file for a number of experts, their columns
and a device), of GPUs whose experts run in Triton. The A100 was measured with 0.14: with the tiles of its rule, 64 x 64, experts
reach 80 to 100 TFLOP/s there, with tuned ones 170. Since 0.17 the rule takes tiles of 128 x 128 for many tokens, and on an
H100 the two are nearer (470 and 590).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sim.cost.kernels import Floats

TUNED = "bf16_tuned"
"""What the constants of such experts are called beside those of `bf16`."""


def _shapes(text: str) -> frozenset[tuple[int, int]]:
    """(experts, columns) of "8x1792 8x3584"."""
    return frozenset((int(experts), int(columns)) for experts, columns in (word.split("x") for word in text.split()))


TUNED_SHAPES: Mapping[str, frozenset[tuple[int, int]]] = {
    "a100-sxm-80gb": _shapes(
        "1x1792 1x3584 1x7168 1x14336 8x1792 8x2048 8x3584 8x4096 8x7168 16x1344 16x1792 16x2688 16x3584 16x7168 16x14336 "
        "64x640 64x1280 128x192 512x64 512x128"
    ),
    "a100-sxm-40gb": _shapes("8x1792 8x3584 16x1344"),
    "h100-sxm": _shapes(
        "1x3072 8x1792 8x2048 8x3584 8x4096 8x7168 16x1344 16x1792 16x2688 32x1792 62x256 62x512 64x320 64x640 64x1280 64x1536 "
        "64x8960 72x384 72x768 128x192 128x384 128x512 128x928 128x1856 128x2880 128x8960 256x512 512x128 512x256 512x512"
    ),
    "h200-sxm": _shapes(
        "8x1792 8x2048 8x3584 8x4096 8x7168 8x14336 16x1024 16x2048 64x320 64x640 64x1280 64x2560 128x96 128x192 128x384 128x512 "
        "128x768 128x1024 512x64 512x128 512x256 512x512"
    ),
    "h20": _shapes("64x384 64x768 64x896 64x3072 128x96 128x192 128x384 128x768"),
    "mi300x": _shapes(
        "8x1792 8x2048 8x3584 8x4096 8x7168 8x8192 8x14336 8x16384 16x1024 60x176 60x352 60x704 60x1408 62x128 62x256 62x512 "
        "72x192 72x384 72x768 128x1024 160x192"
    ),
    "mi325x": _shapes("8x1792 8x2048 8x3584 8x4096 8x7168 8x8192 8x14336 8x16384"),
}
"""By GPU: (experts on a rank, columns of one on the rank)."""


def are_tuned(gpu: str, experts: Floats | float, columns: Floats | float) -> NDArray[np.bool_]:
    """Whether vLLM brings tiles for so many experts of so many columns on `gpu`, element by element."""
    shapes = TUNED_SHAPES.get(gpu, frozenset())
    pairs = zip(np.atleast_1d(experts), np.atleast_1d(columns), strict=True)
    return np.array([(int(count), int(width)) in shapes for count, width in pairs])
