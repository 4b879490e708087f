"""Absorbed latent attention in Triton: thread blocks of 16 heads that walk 512 keys each."""

from __future__ import annotations

from math import ceil, inf

import numpy as np
import pytest

from sim.cost import attention_fits
from sim.cost.attention_fits import BLOCK_HEADS, SPLIT_KEYS
from sim.cost.kernels import DecodeAttentionTime
from sim.cost.mla_module import OPERATOR_SPLITS, beside_s
from sim.cost.preset import preset_for
from sim.cost.roofline import Roofline
from sim.hardware.gpu import load_gpu

L40S, A100 = load_gpu("l40s"), load_gpu("a100-sxm-80gb")
KEY_S = 65e-9
WALK: dict[str, float] = {
    "launch_s": 0.0, "tile_s": 0.0, "head_s": 0.0, "key_s": KEY_S, "memory": 1e9, "overlap": inf,
}  # fmt: skip
"""Constants of a GPU that reads for nothing: only the walk along the keys is left."""


def decode(sequences: float, heads: float, splits: float | None = None, **constants: float) -> DecodeAttentionTime:
    return attention_fits.decode_mla({**WALK, **constants}, L40S, sequences, heads, 512, 64, "bf16", 1.0, splits)


def key_and_products_s() -> float:
    """Of a key and 16 heads: 576 elements multiplied to a score, 512 to the output."""
    return (KEY_S + 2 * 16 * (576 + 512) * L40S.sm_count / L40S.flops_per_s["bf16"]) / L40S.loaded_clock


@pytest.mark.parametrize(("sequences", "heads"), [(24, 128), (64, 16), (96, 128)])
def test_thread_blocks_run_in_waves_of_which_the_last_is_half_empty(sequences: int, heads: int) -> None:
    """Against the waves themselves, one after the other, in the mean over contexts of 512 to 32,768 tokens."""
    time = decode(sequences, heads)
    foretold, counted = 0.0, 0.0
    for splits in range(1, 65):
        context = sequences * splits * SPLIT_KEYS
        foretold += float(time.fixed_s + context * time.compute_s_per_token)
        blocks = sequences * splits * ceil(heads / BLOCK_HEADS)
        counted += ceil(blocks / L40S.sm_count) * SPLIT_KEYS * key_and_products_s()
    assert foretold == pytest.approx(counted, rel=0.02)


def test_four_splits_leave_a_lone_sequence_to_four_thread_blocks() -> None:
    """vLLM 0.14: 32,768 keys are 8,192 in a row, however many SMs stand idle."""
    time = decode(1, 16, OPERATOR_SPLITS)
    assert float(32768 * time.compute_s_per_token) == pytest.approx(8192 * key_and_products_s(), rel=0.001)
    assert float(time.fixed_s) == 0.0
    many = decode(1, 16)
    assert float(many.fixed_s + 32768 * many.compute_s_per_token) < 0.1 * 8192 * key_and_products_s()


def test_vllm_before_0_20_splits_a_sequence_in_four() -> None:
    """A lone user with 32,768 tokens waits 0.98 ms a layer on an A100, and 0.09 since."""
    before, since = (preset_for("vllm", version).latent_splits for version in ("0.19.1", "0.20.0"))
    assert (before, since, preset_for("vllm").latent_splits) == (OPERATOR_SPLITS, None, None)
    layer_s = []
    for splits in (before, since):
        time = Roofline(A100, latent_splits=splits).decode_mla(1.0, 16, 512, 64, "bf16")
        layer_s.append(float(time.fixed_s + 32768 * (time.memory_s_per_token + time.compute_s_per_token)))
    assert layer_s == [pytest.approx(0.98e-3, rel=0.05), pytest.approx(0.09e-3, rel=0.2)]


def test_many_sequences_read_their_latents_for_every_sixteen_heads_anew() -> None:
    """While the blocks of 1,024 sequences walk 512 keys each, 604 MB pass an L2 of 101 MB; of 8 sequences it keeps all."""
    reads = {"memory": 1.0, "key_s": 0.0}
    latents_s = 576 * 2 / L40S.hbm_bytes_per_s
    partial_s = 2 * 4 * 128 * 512 / SPLIT_KEYS / L40S.hbm_bytes_per_s
    few, many = (decode(sequences, 128, **reads) for sequences in (8, 1024))
    assert float(few.memory_s_per_token) == pytest.approx(latents_s + partial_s, rel=0.01)
    assert float(many.memory_s_per_token) == pytest.approx(8 * latents_s + partial_s, rel=0.01)


def test_a_cache_in_fp8_is_half_the_bytes_of_the_same_kernel() -> None:
    in_bf16, in_fp8 = (Roofline(L40S).decode_mla(8.0, 16, 512, 64, kv_dtype) for kv_dtype in ("bf16", "fp8"))
    assert float(in_fp8.fixed_s) == float(in_bf16.fixed_s)
    body = [float(one.memory_s_per_token + one.compute_s_per_token) for one in (in_bf16, in_fp8)]
    assert 0.5 * body[0] < body[1] < body[0]


def test_a_bench_finds_the_weights_of_a_module_in_l2_where_they_fit() -> None:
    """Those of two heads are 36 MB and of 128 are 374 MB, beside an L2 of 101 MB. A long cache evicts them."""
    heads = np.array([2.0, 128.0])
    alone, evicted = (
        beside_s(Roofline(L40S), 1.0, heads, "bf16", prefill=False, module=True, cache_bytes=cache_bytes)
        for cache_bytes in (0.0, 1e12)
    )
    weights_s = 36e6 / L40S.hbm_bytes_per_s
    assert 0.5 * weights_s < float(evicted[0] - alone[0]) < weights_s
    assert float(alone[1]) == pytest.approx(float(evicted[1]), rel=0.001)
