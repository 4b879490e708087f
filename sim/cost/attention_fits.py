"""Formulas of attention kernels over their fitted constants; see `sim/cost/fits.py` for the conventions."""

from __future__ import annotations

import numpy as np

from sim.cost.attention_software import attention_software, softmax_s
from sim.cost.fits import ACTIVATION_BYTES, Constants, array, cycles_per_s, smooth_body, streaming_s
from sim.cost.formats import kv_bytes
from sim.cost.kernels import DecodeAttentionTime, Floats, KernelTime
from sim.hardware.gpu import Gpu

LONE_BYTES_PER_S = 26e9  # one thread block's loads from HBM, FlashAttention-2: A100 24, L40S 29, RTX PRO 6000 28 GB/s
KEY_ELEMENTS = 40.0  # elements that a key costs beyond its own where few blocks walk a context (four GPUs' tables)
WRITE_THREADS = 512.0  # a token's keys are written by so many threads at most (vLLM, reshape_and_cache_flash)
WARP = 32.0  # threads
BLOCK_HEADS = 16.0  # heads of a thread block of Triton's latent attention, the fewest rows of a product (vLLM, BLOCK_H)
SPLIT_KEYS = 512.0  # of a sequence that such a block walks (vLLM since 0.20, min_work_per_split)
PARTIAL_BYTES = 4.0  # of an fp32 partial sum
LATENT_RANK = 512.0  # of DeepSeek-V2 and V3, at which `key_s` of latent attention is quoted
WIDE_HEAD = 128.0  # elements of a head up to which its tiles fit the registers of an SM while they are transposed


def attended_pairs(new: Floats, context: Floats, window: int | None, fill: float = 0.0) -> Floats:
    """(query, key) pairs of `new` queries over `context` earlier tokens and themselves, causal, at most `window` each.

    `fill` more queries and keys are computed in vain because tiles are square: (new + fill) (context + (new + fill) / 2).
    """
    rows = new + fill
    if window is None:
        return rows * (context + (rows + 1) / 2)
    # the first queries still see everything before them; whole ones, so that no key more makes fewer pairs
    short = np.floor(np.clip(window + fill - context, 0, rows))
    return short * (context + (short + 1) / 2) + (rows - short) * (window + fill)


def _transposed(gpu: Gpu, kv_dtype: str) -> bool:
    return kv_dtype == "fp8" and attention_software(gpu).transposes_fp8


def _write_threads(gpu: Gpu, kv_heads: Floats, head_dim: Floats) -> Floats:
    """Threads that write one token's keys and values to the cache, one an element up to 512; a warp a head at least where the
    cache is laid out by heads."""
    threads = np.minimum(kv_heads * head_dim, WRITE_THREADS)
    return np.maximum(threads, WARP * kv_heads) if attention_software(gpu).writes_by_head else threads


def _wide(c: Constants, gpu: Gpu, head_dim: Floats, kv_dtype: str) -> Floats:
    """How much slower an element is in a head whose tiles spill."""
    if not _transposed(gpu, kv_dtype):
        return np.ones_like(head_dim)
    return np.asarray(np.maximum(head_dim / WIDE_HEAD, 1.0) ** c["wide"])


def _score_s(c: Constants, gpu: Gpu, width: Floats, kv_dtype: str) -> Floats:
    """Seconds of one score on the whole GPU: two products of `width` elements, and its softmax.

    An fp8 cache is multiplied in fp8 where the GPU can, its values transposed at `transpose` bytes a cycle on every SM. All of it
    runs at the clock that the GPU's power leaves it.
    """
    arithmetic = kv_dtype if kv_dtype in gpu.flops_per_s else "bf16"
    software = attention_software(gpu)
    products_s = 4 * width / (c["compute"] * gpu.flops_per_s[arithmetic])
    if _transposed(gpu, kv_dtype):  # once for a tile of queries
        products_s = products_s + width / (software.query_tile * c["transpose"] * cycles_per_s(gpu))
    power = software.overlap
    score_s = (products_s**power + (softmax_s(gpu) / c["softmax"]) ** power) ** (1 / power)
    return np.asarray(score_s / gpu.loaded_clock)


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
    """Causal attention of `sequences` alike prompt chunks in one kernel; the body is proportional to their number.

    A score costs 4 x head_dim FLOPs on the tensor cores and a softmax, `softmax` times as fast as an exponential after its
    other instructions would be (both run at once where it is above 1); tiles add `tile` rows and columns. Queries, keys,
    values and outputs pass HBM; keys and values are gathered from their pages, and converted, at `kv` bytes a cycle on every
    SM. A token's are written by a thread block of up to 512 threads, which occupies its SM for `row_s` if it has them all, for
    less if it leaves room for others. A tile of queries costs `block_s` of its SM to begin and end. The
    kernel ends with its longest row of tiles, alone on its SM: `tail` of that row is paid on top. Every kernel of the chain
    costs `launch_s`. Nothing of this overlaps.
    """
    sequences, new, context = array(sequences), array(new_tokens), array(context_tokens)
    heads, kv_heads, head_dim = array(heads), array(kv_heads), array(head_dim)
    score_s = _score_s(c, gpu, head_dim, kv_dtype) * _wide(c, gpu, head_dim, kv_dtype)
    software = attention_software(gpu)
    compute_s = sequences * heads * attended_pairs(new, context, window, c["tile"]) * score_s
    keys = new + (context if window is None else np.minimum(context, window))
    # queries in one byte are written by one kernel and read by the next
    quantised = 1.0 if _transposed(gpu, kv_dtype) else 0.0
    queries_bytes = (2 * ACTIVATION_BYTES + 2 * quantised) * new * heads * head_dim
    keys_bytes = 2 * kv_bytes(kv_dtype) * keys * kv_heads * head_dim
    gather_s = keys_bytes / (c["kv"] * cycles_per_s(gpu))
    memory_s = sequences * ((queries_bytes + keys_bytes) / gpu.hbm_bytes_per_s + gather_s)
    row = keys if window is None else np.minimum(keys, window)
    tail_s = c["tail"] * software.query_tile * row * score_s * gpu.sm_count
    memory, compute = smooth_body(compute_s, memory_s, c.get("overlap", 1.0))
    # queries come and outputs go while a tile multiplies nothing
    blocks_s = c["block_s"] * heads * (new / software.query_tile + 0.5) / gpu.sm_count
    rows_s = c["row_s"] * _write_threads(gpu, kv_heads, head_dim) / WRITE_THREADS * new / gpu.sm_count
    launch_s = c["launch_s"] * (software.prefill_launches + quantised)
    return KernelTime(launch_s + tail_s + np.zeros_like(compute), memory + sequences * (blocks_s + rows_s), compute)


def decode_attention(
    c: Constants,
    gpu: Gpu,
    sequences: Floats | float,
    heads: Floats | float,
    kv_heads: Floats | float,
    head_dim: Floats | float,
    kv_dtype: str,
    cold: Floats | float = 1.0,
) -> DecodeAttentionTime:
    """One query token a sequence, all query heads of a KV head together; affine in the contexts' sum.

    Every (sequence, KV head) is a tile that costs `tile_s` on its SM, beside others there. Its keys are split over a limited
    number of thread blocks, which walk along them at the pace of their loads and products, not of HBM: a key of 128 elements
    takes `key_s` where a sequence is alone, in any format, and sequences run side by side. A tile that is not split draws
    `LONE_BYTES_PER_S`, whatever HBM could give; kernels that were `tuned` split where it helps. Reading takes `cold` of its time
    from HBM: 1 but for a test bench.
    """
    software = attention_software(gpu)
    sequences, heads, kv_heads, head_dim = array(sequences), array(heads), array(kv_heads), array(head_dim)
    token_bytes = 2 * kv_heads * head_dim * kv_bytes(kv_dtype) * _wide(c, gpu, head_dim, kv_dtype)
    reads = c["memory"] * c.get("reads", software.reads)
    memory_s = cold * token_bytes / (reads * gpu.hbm_bytes_per_s) + 0 * sequences
    if _transposed(gpu, kv_dtype):
        transpose_s = token_bytes / 2 / (c["transpose"] * cycles_per_s(gpu))
        memory_s = (memory_s**4 + transpose_s**4) ** 0.25
    splits = software.splits_ungrouped or kv_dtype == "fp8" or "tuned" in c
    whole = (heads == kv_heads) & (not splits)
    busy = np.clip(sequences * kv_heads / gpu.sm_count, 1e-9, 1.0)
    walked = (head_dim + KEY_ELEMENTS) / (WIDE_HEAD + KEY_ELEMENTS) * _wide(c, gpu, head_dim, kv_dtype)
    split_s = c["key_s"] * walked / np.maximum(sequences, 1.0)
    whole_s = token_bytes / (LONE_BYTES_PER_S * busy * gpu.sm_count)
    memory_s = np.cbrt(memory_s**3 + np.where(whole, whole_s, split_s) ** 3)
    compute_s = 4 * heads * head_dim / (c["compute"] * gpu.flops_per_s["bf16"]) + 0 * sequences
    memory, compute = smooth_body(compute_s, memory_s, c["overlap"])
    launches = software.decode_launches - np.where(whole, 1.0, 0.0)  # no splits to sum
    fixed_s = c["launch_s"] * launches + c["tile_s"] * sequences * kv_heads / (gpu.sm_count * software.decode_tiles)
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

    The up-projection of latents is a GEMM of the caller's, not counted here. What is put together for every head passes HBM
    and the SMs, `kv` bytes a cycle on each; a token costs `row_s` of an SM whatever the heads.
    """
    sequences, new, context = array(sequences), array(new_tokens), array(context_tokens)
    heads, query_dim, v_dim = array(heads), array(query_dim), array(v_dim)
    score_s = _score_s(c, gpu, (query_dim + v_dim) / 2, "bf16")
    compute_s = sequences * heads * attended_pairs(new, context, None, c["tile"]) * score_s
    tail_s = c["tail"] * attention_software(gpu).query_tile * (new + context) * score_s * gpu.sm_count
    moved = ACTIVATION_BYTES * heads * (query_dim + v_dim) * (2 * new + context)
    memory_s = sequences * moved * (1 / gpu.hbm_bytes_per_s + 1 / (c["kv"] * cycles_per_s(gpu)))
    memory, compute = smooth_body(compute_s, memory_s, c["overlap"])
    rows_s = c["row_s"] * sequences * new / gpu.sm_count
    return KernelTime(c["launch_s"] + tail_s + np.zeros_like(compute), memory + rows_s, compute)


def decode_mla(
    c: Constants,
    gpu: Gpu,
    sequences: Floats | float,
    heads: Floats | float,
    kv_lora_rank: Floats | float,
    rope_dim: Floats | float,
    kv_dtype: str,
    cold: Floats | float = 1.0,
    splits: float | None = None,
) -> DecodeAttentionTime:
    """Absorbed multi-head latent attention: the latent is read once for all heads, and multiplied by each.

    A sequence costs `tile_s` of an SM, and `head_s` for every head, whose queries and outputs are as wide as the latent. Reading
    takes `cold` of its time from HBM (1 but for a test bench). Constants without `split` are of Triton's kernel, which works
    otherwise and had `splits` of a sequence once (`_decode_mla_in_blocks`).
    """
    if "split" not in c:
        return _decode_mla_in_blocks(c, gpu, sequences, heads, kv_lora_rank, rope_dim, kv_dtype, cold, splits)
    sequences, heads = array(sequences), array(heads)
    rank, rope = array(kv_lora_rank), array(rope_dim)
    token_bytes = (rank + rope) * kv_bytes(kv_dtype)
    busy = np.clip(sequences / gpu.sm_count, 1e-9, 1.0)
    alone_s = token_bytes / (c["split"] * busy * gpu.hbm_bytes_per_s)
    memory_s = np.hypot(cold * streaming_s(c, gpu, token_bytes), alone_s)
    software = attention_software(gpu)
    arithmetic = "fp8" if kv_dtype == "fp8" and software.multiplies_latents_in_fp8 else "bf16"
    tile = software.latent_tile_fp8 if kv_dtype == "fp8" else 1.0
    multiplied = tile * np.ceil(heads / tile)
    compute_s = 2 * multiplied * (2 * rank + rope) / (c["compute"] * gpu.flops_per_s[arithmetic]) + 0 * sequences
    memory, compute = smooth_body(compute_s, memory_s, c["overlap"])
    fixed_s = c["launch_s"] + (c["tile_s"] + c["head_s"] * heads) * sequences / gpu.sm_count
    return DecodeAttentionTime(fixed_s + 0 * memory, memory, compute)


def _decode_mla_in_blocks(
    c: Constants,
    gpu: Gpu,
    sequences: Floats | float,
    heads: Floats | float,
    kv_lora_rank: Floats | float,
    rope_dim: Floats | float,
    kv_dtype: str,
    cold: Floats | float,
    splits: float | None,
) -> DecodeAttentionTime:
    """Absorbed latent attention in Triton (vLLM, triton_decode_attention): a thread block takes 16 heads of a sequence, and
    some of its keys, one after the other.

    A key costs its SM `key_s`, and two products, at the clock that the GPU's power leaves it. Since vLLM 0.20 a block walks
    512 keys, and the last wave of blocks is half empty in the mean; before, every sequence had `splits` (4) of them. The
    latents are read once for every 16 heads, but from L2 where it holds what the blocks of all sequences walk meanwhile. Each
    split writes partial sums, which a second kernel reads.
    """
    sequences, heads = array(sequences), array(heads)
    rank, rope = array(kv_lora_rank), array(rope_dim)
    token_bytes = (rank + rope) * kv_bytes(kv_dtype)
    blocks = np.ceil(heads / BLOCK_HEADS)
    products_s = 2 * BLOCK_HEADS * (2 * rank + rope) * gpu.sm_count / gpu.flops_per_s["bf16"]
    key_s = (c["key_s"] * rank / LATENT_RANK + products_s) / gpu.loaded_clock
    walked = SPLIT_KEYS * sequences * token_bytes
    missed = 1 / (1 + (gpu.l2_bytes / walked) ** 4)
    read_bytes = token_bytes * (1 + (blocks - 1) * missed)
    partial_bytes = 2 * PARTIAL_BYTES * heads * rank
    compute_s, walk_s = blocks * key_s / gpu.sm_count + 0 * sequences, array(0.0)
    if splits is None:
        read_bytes = read_bytes + partial_bytes / SPLIT_KEYS
        walk_s = 0.5 * SPLIT_KEYS * key_s
    else:
        compute_s = np.hypot(compute_s, key_s / (splits * sequences))
    memory, compute = smooth_body(compute_s, cold * read_bytes / (c["memory"] * gpu.hbm_bytes_per_s), c["overlap"])
    fixed_s = c["launch_s"] + walk_s + (c["tile_s"] + c["head_s"] * heads) * sequences / gpu.sm_count
    return DecodeAttentionTime(fixed_s + 0 * memory, memory, compute)


def own_fp8(time: DecodeAttentionTime, share: float, least_slope_s: float, kv_dtype: str) -> DecodeAttentionTime:
    """Decode attention by an engine whose own kernel over an fp8 cache takes `share` of the measured one's time; whatever it
    does better, it reads the cache from HBM, `least_slope_s` a token."""
    if kv_dtype != "fp8" or share == 1.0:
        return time
    slope = np.clip(least_slope_s / (time.memory_s_per_token + time.compute_s_per_token), share, 1.0)
    return DecodeAttentionTime(share * time.fixed_s, slope * time.memory_s_per_token, slope * time.compute_s_per_token)
