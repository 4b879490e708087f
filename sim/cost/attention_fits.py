"""Formulas of attention kernels over their fitted constants; see `sim/cost/fits.py` for the conventions."""

from __future__ import annotations

import numpy as np

from sim.cost.fits import ACTIVATION_BYTES, Constants, array, smooth_body
from sim.cost.formats import kv_bytes
from sim.cost.kernels import DecodeAttentionTime, Floats, KernelTime
from sim.hardware.gpu import Gpu

QUERY_TILE = 128.0  # rows of queries a thread block works on (FlashAttention-2 and -3, forward)


def attended_pairs(new: Floats, context: Floats, window: int | None) -> Floats:
    """(query, key) pairs of `new` queries over `context` earlier tokens and themselves, causal, at most `window` keys each."""
    if window is None:
        return new * context + new * (new + 1) / 2
    # the first `short` queries still see everything before them
    short = np.clip(window - context, 0, new)
    return short * context + short * (short + 1) / 2 + (new - short) * window


def prefill_attention(
    c: Constants,
    gpu: Gpu,
    sequences: Floats | float,
    new_tokens: Floats | float,
    context_tokens: Floats | float,
    heads: Floats | float,
    kv_heads: Floats | float,
    head_dim: Floats | float,
    kv_dtype: str,
    window: int | None = None,
) -> KernelTime:
    """Causal attention of `sequences` alike prompts chunks in one kernel; the body is proportional to their number.

    A score costs 4 x head_dim FLOPs on the tensor cores and an exponential elsewhere, worth `exponential` more elements of
    head_dim. The kernel ends with its longest row of tiles, alone on its SM: `tail` of that row is paid on top.
    """
    sequences, new, context = array(sequences), array(new_tokens), array(context_tokens)
    heads, kv_heads, head_dim = array(heads), array(kv_heads), array(head_dim)
    flops_per_s = c["compute"] * gpu.flops_per_s["bf16"]
    hbm = c["memory"] * gpu.hbm_bytes_per_s
    width = head_dim + c["exponential"]
    compute_s = 4 * sequences * heads * width * attended_pairs(new, context, window) / flops_per_s
    keys = new + (context if window is None else np.minimum(context, window))
    queries_bytes = 2 * ACTIVATION_BYTES * new * heads * head_dim
    memory_s = sequences * (queries_bytes + 2 * kv_bytes(kv_dtype) * keys * kv_heads * head_dim) / hbm
    row = keys if window is None else np.minimum(keys, window)
    tail_s = c["tail"] * 4 * np.minimum(new, QUERY_TILE) * width * row / (flops_per_s / gpu.sm_count)
    memory, compute = smooth_body(compute_s, memory_s, c["overlap"])
    return KernelTime(c["launch_s"] + tail_s + np.zeros_like(compute), memory, compute)


def decode_attention(
    c: Constants,
    gpu: Gpu,
    sequences: Floats | float,
    heads: Floats | float,
    kv_heads: Floats | float,
    head_dim: Floats | float,
    kv_dtype: str,
) -> DecodeAttentionTime:
    """One query token a sequence, all query heads of a KV head together; affine in the contexts' sum.

    Every (sequence, KV head) is a tile that costs `tile_s` on its SM.
    """
    sequences, heads, kv_heads, head_dim = array(sequences), array(heads), array(kv_heads), array(head_dim)
    token_bytes = 2 * kv_heads * head_dim * kv_bytes(kv_dtype)
    memory_s = token_bytes / (c["memory"] * gpu.hbm_bytes_per_s) + 0 * sequences
    compute_s = 4 * heads * head_dim / (c["compute"] * gpu.flops_per_s["bf16"]) + 0 * sequences
    memory, compute = smooth_body(compute_s, memory_s, c["overlap"])
    fixed_s = c["launch_s"] + c["tile_s"] * sequences * kv_heads / gpu.sm_count
    return DecodeAttentionTime(fixed_s + 0 * memory, memory, compute)


def prefill_mla(
    c: Constants,
    gpu: Gpu,
    sequences: Floats | float,
    new_tokens: Floats | float,
    context_tokens: Floats | float,
    heads: Floats | float,
    query_dim: Floats | float,
    v_dim: Floats | float,
) -> KernelTime:
    """Multi-head latent attention of prompt chunks, keys and values expanded per head (queries and keys of `query_dim`).

    The up-projection of latents is a GEMM of the caller's, not counted here.
    """
    sequences, new, context = array(sequences), array(new_tokens), array(context_tokens)
    heads, query_dim, v_dim = array(heads), array(query_dim), array(v_dim)
    flops_per_s = c["compute"] * gpu.flops_per_s["bf16"]
    width = (query_dim + v_dim) / 2 + c["exponential"]
    compute_s = 4 * sequences * heads * width * attended_pairs(new, context, None) / flops_per_s
    moved = ACTIVATION_BYTES * heads * (query_dim + v_dim) * (2 * new + context)
    memory_s = sequences * moved / (c["memory"] * gpu.hbm_bytes_per_s)
    memory, compute = smooth_body(compute_s, memory_s, c["overlap"])
    return KernelTime(c["launch_s"] + np.zeros_like(compute), memory, compute)


def decode_mla(
    c: Constants,
    gpu: Gpu,
    sequences: Floats | float,
    heads: Floats | float,
    kv_lora_rank: Floats | float,
    rope_dim: Floats | float,
    kv_dtype: str,
) -> DecodeAttentionTime:
    """Absorbed multi-head latent attention: the latent is read once for all heads, and multiplied by each."""
    sequences, heads = array(sequences), array(heads)
    rank, rope = array(kv_lora_rank), array(rope_dim)
    memory_s = (rank + rope) * kv_bytes(kv_dtype) / (c["memory"] * gpu.hbm_bytes_per_s) + 0 * sequences
    compute_s = 2 * heads * (2 * rank + rope) / (c["compute"] * gpu.flops_per_s["bf16"]) + 0 * sequences
    memory, compute = smooth_body(compute_s, memory_s, c["overlap"])
    fixed_s = c["launch_s"] + c["tile_s"] * sequences / gpu.sm_count
    return DecodeAttentionTime(fixed_s + 0 * memory, memory, compute)
