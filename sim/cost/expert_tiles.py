"""The tiles in which Triton's kernel computes experts in bf16: tuned for a shape and a GPU, or by the engine's rule.

An engine brings tiles that were tuned on a GPU for experts of some shapes (one file for a number of experts, their columns and a
device); all others take tiles by rule. The rule of vLLM before 0.17, and of SGLang, gives more tokens than experts small tiles:
64 rows, 64 columns, 32 deep, whose weights come 64 bytes of a row at a time (get_default_config of vLLM 0.14.0 and 0.16.0,
of SGLang 0.5.6 and 0.5.14). Since 0.17 vLLM's takes up to 128 x 128 of 64 deep. Of what an H100's HBM and tensor cores could
do, small ones reach 0.6 and 0.2, later ones 0.9 and 0.5. Block-scaled experts have tiles of their scales' size; SGLang computes
them in Triton where vLLM takes other libraries too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.cost.kernels import Floats
from sim.hardware.gpu import Gpu

TUNED = "bf16_tuned"
"""What the constants of experts with tuned tiles are called beside those of `bf16`, whose tiles are by vLLM's newest rule."""
SMALL = "bf16_small"
"""And those of small tiles."""
TRITON_BLOCKS = "fp8_block_triton"
"""The same of block-scaled experts in Triton, where they are computed by other libraries in vLLM."""
SMALL_BEFORE = (0, 17)
"""vLLM's rule gives small tiles before this version."""
OTHER_LIBRARY = range(100, 120)
"""Compute capabilities on which engines run experts in TensorRT-LLM's kernels (FlashInfer), whatever Triton's rule."""

Shapes = frozenset[tuple[int, int]]
"""(experts on a rank, columns of one on the rank)."""


def _shapes(text: str) -> Shapes:
    """(experts, columns) of "8x1792 8x3584"."""
    return frozenset((int(experts), int(columns)) for experts, columns in (word.split("x") for word in text.split()))


_VLLM_SHAPES: Mapping[str, Shapes] = {
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
"""By GPU, of vLLM 0.24 (fused_moe/configs): those whose experts run in Triton."""

_SGLANG_SHAPES: Mapping[str, Shapes] = {
    "a100-sxm-80gb": _shapes(
        "1x1792 1x3584 1x7168 1x14336 8x1792 8x2048 8x3584 8x4096 8x7168 16x1344 16x1792 16x2688 16x3584 16x7168 16x14336 "
        "64x640 64x1280 257x64"
    ),
    "a100-sxm-40gb": _shapes("8x1792 8x3584 16x1344"),
    "h100-sxm": _shapes(
        "1x3072 8x1792 8x2048 8x3584 8x4096 8x7168 16x1024 16x1344 16x1856 16x2048 16x2688 20x2048 24x1024 32x224 32x448 "
        "32x896 32x928 32x1792 32x1856 64x192 64x320 64x384 64x464 64x640 64x768 64x928 64x1280 64x1536 64x1856 64x2688 "
        "65x1536 128x192 128x232 128x352 128x384 128x464 128x512 128x704 128x768 128x928 128x1344 128x1856 128x2688 144x512 "
        "256x672 256x1344 256x2688 512x64 512x128 512x336 512x672 512x1344 512x2688"
    ),
    "h200-sxm": _shapes(
        "8x1792 8x2048 8x3584 8x4096 8x7168 8x14336 16x1024 20x1536 64x320 64x640 64x1280 64x2560 128x192 128x384 128x704 "
        "128x768 129x384 161x192 512x64 512x128 512x256"
    ),
    "h20": _shapes("128x96 128x192 128x384 128x768 192x192 256x512"),
    "l40s": _shapes("8x3584 128x928 128x1856"),
    "rtx-pro-6000": _shapes("256x512"),
}
"""The same of SGLang 0.5.14 (moe_runner/triton_utils/configs, of all versions of Triton)."""


@dataclass(frozen=True, slots=True)
class ExpertTiles:
    """What tiles an engine gives to which experts."""

    tuned: Mapping[str, Shapes]
    """Shapes that it brings tuned tiles for, by GPU."""
    small: bool
    """Its rule for the others gives small ones."""
    triton_blocks: bool = False
    """It computes block-scaled experts in Triton, too."""

    def priced_as(self, gpu: Gpu, dtype: str, experts: float, columns: float) -> str:
        """What the constants are called of `experts` in `dtype` on a rank with `columns` there."""
        if dtype == "bf16":
            return str(self.constants_of(gpu, experts, columns)[0])
        blocks = self.triton_blocks and dtype == "fp8_block" and gpu.sm_version not in OTHER_LIBRARY
        return TRITON_BLOCKS if blocks else dtype

    def constants_of(self, gpu: Gpu, experts: Floats | float, columns: Floats | float) -> NDArray[np.str_]:
        """The same for experts in bf16, element by element: `TUNED`, `SMALL` or "bf16"."""
        by_rule = SMALL if self.small and gpu.sm_version not in OTHER_LIBRARY else "bf16"
        shapes = self.tuned.get(gpu.name, frozenset())
        pairs = zip(np.atleast_1d(experts), np.atleast_1d(columns), strict=True)
        return np.array([TUNED if (int(count), int(width)) in shapes else by_rule for count, width in pairs])


VLLM_TILES = ExpertTiles(_VLLM_SHAPES, small=False)
VLLM_SMALL_TILES = ExpertTiles(_VLLM_SHAPES, small=True)
SGLANG_TILES = ExpertTiles(_SGLANG_SHAPES, small=True, triton_blocks=True)


def tiles_of(engine: str, version: str) -> ExpertTiles:
    """The tiles of an engine's tables: vllm or sglang; of others, and of a version without a number, vLLM's newest."""
    if engine == "sglang":
        return SGLANG_TILES
    numbers = tuple(int(text) for text in re.findall(r"\d+", version)[:2])
    return VLLM_SMALL_TILES if engine == "vllm" and numbers and numbers < SMALL_BEFORE else VLLM_TILES
