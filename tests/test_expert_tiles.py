"""The tiles in which experts in bf16 are computed: tuned ones, by vLLM's rule of today, or the small ones of its old rule."""

from __future__ import annotations

import numpy as np
import pytest

from sim.cost.expert_tiles import SGLANG_TILES, SMALL, TUNED, VLLM_SMALL_TILES, VLLM_TILES, ExpertTiles, tiles_of
from sim.cost.preset import preset_for
from sim.cost.roofline import Roofline
from sim.hardware.gpu import Gpu, load_gpu

A100, H100, B200 = load_gpu("a100-sxm-80gb"), load_gpu("h100-sxm"), load_gpu("b200-sxm")


def flops_per_s(gpu: Gpu, columns: int, tiles: ExpertTiles, tuned_reads: bool = False) -> float:
    """What experts of Mixtral 8x7B reach over a prompt of 16,384 tokens, cut to `columns` of 14,336."""
    time = Roofline(gpu, tuned_reads=tuned_reads, tiles=tiles).moe(16384.0, 4096, columns, 8, 8, 2, "bf16")
    return 6 * 2 * 16384 * 4096 * columns / float(time.total_s)


def test_mixtral_on_several_a100s_has_tiles_of_its_own_and_on_one_has_not() -> None:
    """TP2, TP4 and TP8: 174, 170 and 169 TFLOP/s were measured with vLLM 0.14; by rule 80 to 110, as with all columns on one."""
    assert 80e12 < flops_per_s(A100, 14336, VLLM_SMALL_TILES) < 110e12
    for columns, measured in ((7168, 174e12), (3584, 170e12), (1792, 169e12)):
        assert flops_per_s(A100, columns, VLLM_SMALL_TILES) == pytest.approx(measured, rel=0.05)


def test_the_rule_of_later_releases_is_nearer_to_tuned_tiles() -> None:
    """On an H100 vLLM 0.24 reaches 512 TFLOP/s by rule, SGLang 200 by the old one; on half of the columns, tuned, vLLM 673."""
    assert flops_per_s(H100, 14336, VLLM_TILES) == pytest.approx(512e12, rel=0.15)
    assert flops_per_s(H100, 14336, SGLANG_TILES) == pytest.approx(200e12, rel=0.25)
    assert flops_per_s(H100, 7168, VLLM_TILES) == pytest.approx(673e12, rel=0.05)


def test_small_tiles_read_slowly_once_there_are_more_tokens_than_experts() -> None:
    """160 experts of 6,144 x 2,560 on an H100 with SGLang 0.5.14: 64 tokens took 5.12 ms, 256 took 7.30, nearly all of it to read
    the same weights; with vLLM 0.24 4.94 and 5.24 ms."""
    for tiles, measured_s in ((SGLANG_TILES, (5.12e-3, 7.30e-3)), (VLLM_TILES, (4.94e-3, 5.24e-3))):
        seen_s = Roofline(H100, tiles=tiles).moe(np.array([64.0, 256.0]), 6144, 2560, 160, 160, 8, "bf16").total_s
        assert seen_s == pytest.approx(measured_s, rel=0.1)
    few, more = (
        Roofline(H100, tiles=SGLANG_TILES).moe(np.array([160.0, 161.0]), 6144, 2560, 160, 160, 8, "bf16").total_s
    )
    assert 1.3 < more / few < 1.5


def test_engines_have_the_tiles_of_their_release() -> None:
    assert preset_for("vllm").expert_tiles is preset_for("vllm", "0.17.0").expert_tiles is VLLM_TILES
    assert preset_for("vllm", "0.16.0").expert_tiles is VLLM_SMALL_TILES
    assert preset_for("sglang", "0.5.6").expert_tiles is SGLANG_TILES
    assert tiles_of("vllm", "0.14.0") is VLLM_SMALL_TILES
    assert tiles_of("vllm", "0.24.0") is tiles_of("vllm", "") is tiles_of("trtllm", "1.3") is VLLM_TILES
    assert tiles_of("sglang", "0.5.10") is SGLANG_TILES


def test_sglang_computes_block_scaled_experts_in_triton() -> None:
    """128 experts of 4,096 x 1,536 and 4,096 tokens on an H100 took SGLang 0.5.14 2.21 ms, and vLLM 0.24 2.46. On the
    Blackwells of the data centre both run TensorRT-LLM's kernels."""
    sglang, vllm = (
        float(Roofline(H100, tiles=tiles).moe(4096.0, 4096, 1536, 128, 128, 8, "fp8_block").total_s)
        for tiles in (SGLANG_TILES, VLLM_TILES)
    )
    assert sglang < 0.92 * vllm
    b200 = Roofline(B200, tiles=SGLANG_TILES)
    assert b200.expert_constants("fp8_block", 128, 1536) == b200.constants("moe", "fp8_block")


def test_an_engine_that_tries_its_kernels_has_tuned_ones_for_every_shape() -> None:
    assert flops_per_s(A100, 14336, VLLM_TILES, tuned_reads=True) > 1.5 * flops_per_s(A100, 14336, VLLM_SMALL_TILES)


def test_other_formats_and_other_gpus_take_what_they_have() -> None:
    roofline = Roofline(A100, tiles=VLLM_SMALL_TILES)
    assert roofline.expert_constants("int4_wo", 8, 7168) == roofline.constants("moe", "int4_wo")
    l40s = Roofline(load_gpu("l40s"), tuned_reads=True)
    assert l40s.expert_constants("bf16", 8, 7168) == l40s.constants("moe", "bf16")


def test_shapes_are_looked_up_element_by_element() -> None:
    found = VLLM_SMALL_TILES.constants_of(A100, np.array([8.0, 8.0, 128.0]), np.array([7168.0, 14336.0, 192.0]))
    assert found.tolist() == [TUNED, SMALL, TUNED]
    # where TensorRT-LLM's kernels run, Triton's rule says nothing
    assert VLLM_SMALL_TILES.constants_of(B200, 8, 7168).tolist() == ["bf16"]


@pytest.mark.parametrize("gpu", [*VLLM_TILES.tuned, *SGLANG_TILES.tuned])
def test_every_gpu_with_tuned_tiles_has_constants_for_them(gpu: str) -> None:
    by_dtype = load_gpu(gpu).kernels["moe"]
    assert by_dtype[TUNED].constants["compute"] > by_dtype[SMALL].constants["compute"]
