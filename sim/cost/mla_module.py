"""What a measured module of latent attention holds beside its attention, which engines run otherwise or price elsewhere.

The modules of aiconfigurator's tables have DeepSeek-V3's shape and bf16 weights. Around their attention run four or five
GEMMs and a few small kernels. vLLM's, but for two GPUs, were measured with PyTorch's own chain of norms and rotary embeddings,
some twenty kernels in the place of two, which no engine runs: the B200's were measured anew with fused kernels on 27 July 2026
(its collection_meta.yaml: "the previous rows ran the never-in-serving native chain", 34 % above a trace of the engine where the
new ones are 9 % below it), and so were the GB300's in August, with vLLM 0.27: 0.6 of what vLLM 0.24 took there, 0.97 of the
B200's. TensorRT-LLM's modules fuse them everywhere: one token and 16 heads take 34 us on a B300 and 37 on a B200, vLLM's 75
and 40.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.cost import attention_fits, fits
from sim.cost.attention_software import attention_software
from sim.cost.fits import ACTIVATION_BYTES, Constants, array, cycles_per_s
from sim.cost.formats import kv_bytes
from sim.cost.kernels import Floats
from sim.cost.measured_tables import DEFAULT_FRAMEWORK
from sim.cost.preset import VLLM_LATENT_SPLITS
from sim.cost.roofline import Roofline

Shape = tuple[Floats | float, Floats | float]

# DeepSeek-V3 (config.json), the only shape that MLA tables hold
HIDDEN, Q_RANK, RANK, NOPE, ROPE, V = 7168, 1536, 512, 128, 64, 128
MODEL = "deepseek-ai/DeepSeek-V3"
"""As the tables of modules name it; a later one holds others too."""
MLA_SHAPE = (RANK, ROPE, NOPE, V)
"""kv_lora_rank, rope, nope and value dimensions of the measured latent attention."""
ELEMENTWISE = 5
"""q_a norm, kv_a norm, rope, write to the cache, gather of queries (vLLM, MultiHeadLatentAttentionWrapper)."""
OPERATOR_SPLITS = VLLM_LATENT_SPLITS[1]
"""Operators were measured with vLLM 0.14."""

MEASURED_FUSED = frozenset({"b200-sxm", "gb300"})
"""GPUs on which vLLM's modules were measured as engines run them; the GB300's in the newest of its tables only."""
NATIVE_S, NATIVE_FILLED_S, NATIVE_HALF_TOKENS = 36e-6, 20e-6, 4.0
"""Of the chain for one token; what its kernels take more when they have many, and for how many half of that: vLLM 0.24's modules
on a GB300 less 0.27's, at 1 to 512 tokens."""
NATIVE_TOKEN_BYTES, NATIVE_TOKEN_CYCLES = 42e3, 3130.0
"""Of a token through HBM, and of an SM besides: the same differences with one head (11 ns a token up to 8,192 of them, 20 from
32,768 on), and the 25 and 21 ns a token of H100 and H200, which differ in HBM alone. A GB300 by itself would say 59e3 bytes, the
two Hoppers 40e3."""
NATIVE_BUFFER_BYTES = 12.5e3
"""Of a token, written by one kernel of the chain and read by the next: what of all tokens fits in L2 does not pass HBM (GB300:
below some 10,000 tokens). It is q_a and the latent in bf16 and in fp32."""
NATIVE_HEAD_CYCLES = 217.0
"""Of an SM for a token and head: 0.73 ns on a GB300."""
NATIVE_FP8_TOKEN_CYCLES, NATIVE_FP8_HEAD_CYCLES = 5000.0, -800.0
"""The same of a decode that multiplies its latents in fp8, beside those: the chain quantised the queries of many heads faster
than the fused kernels do, which engines run (GB300 less GB300, GB200 and B300 less B200: 5,200 to 6,500 and -710 to -820)."""


def beside_s(
    roofline: Roofline,
    tokens: Floats | float,
    heads: Floats | float,
    kv_dtype: str,
    *,
    prefill: bool,
    module: bool,
    engine: str = DEFAULT_FRAMEWORK,
    cache_bytes: Floats | float = 0.0,
) -> Floats:
    """Seconds of what was measured together with latent attention over `tokens` with `heads`, on the GPU of `roofline`.

    Args:
        module: the projections around the attention were; else an operator was measured. vLLM's multiplies between latents and
            heads itself (A100: without that its prefill would err by 17 instead of 8 % when others foretell it).
        engine: whose; an empty one is the default.
        cache_bytes: that the attention reads between two runs of the same projections.
    """
    tokens, heads = array(tokens), array(heads)
    own = engine in ("", DEFAULT_FRAMEWORK)
    shapes = _products(heads, prefill, module, own)
    moved = _moved_bytes(tokens, heads) if module else 0.0
    around = _gemms_s(roofline, tokens, shapes, cache_bytes + moved)
    if not module:
        return around
    around = around + roofline.elementwise(moved, ELEMENTWISE).total_s
    if not own or roofline.gpu.name in MEASURED_FUSED:
        return around
    in_fp8 = kv_dtype == "fp8" and not prefill and attention_software(roofline.gpu).multiplies_latents_in_fp8
    return around + _native_s(roofline, tokens, heads, in_fp8)


def measured_decode_s(
    c: Constants,
    roofline: Roofline,
    sequences: Floats | float,
    heads: Floats | float,
    context_tokens: Floats,
    kv_dtype: str,
    *,
    module: bool,
    engine: str = DEFAULT_FRAMEWORK,
) -> Floats:
    """Seconds of a measured decode over contexts that sum to `context_tokens`, with what was measured beside its attention.

    The attention has the constants `c`, and finds its cache in L2 where there is room for all that was measured. Operators are
    those of vLLM 0.14, whose Triton kernel split every sequence in `OPERATOR_SPLITS` (other arguments as of `beside_s`).
    """
    sequences, heads = array(sequences), array(heads)
    cache_bytes = context_tokens * (RANK + ROPE) * kv_bytes(kv_dtype)
    products = _products(heads, False, module, engine in ("", DEFAULT_FRAMEWORK))
    moved = _moved_bytes(sequences, heads) if module else 0.0
    bench = roofline.constants("decode_attention", "bf16")
    cold = fits.from_l2(bench, roofline.gpu, cache_bytes + moved + _weight_bytes(products))
    splits = None if module else OPERATOR_SPLITS
    time = attention_fits.decode_mla(c, roofline.gpu, sequences, heads, RANK, ROPE, kv_dtype, cold, splits)
    own_s = time.fixed_s + context_tokens * (time.memory_s_per_token + time.compute_s_per_token)
    return own_s + beside_s(
        roofline, sequences, heads, kv_dtype, prefill=False, module=module, engine=engine, cache_bytes=cache_bytes
    )


def _products(heads: Floats, prefill: bool, module: bool, own: bool) -> list[Shape]:
    """n and k of the products that were measured with the attention; `own`: by vLLM."""
    latents: list[Shape] = [(heads * (NOPE + V), RANK)] if prefill else [(heads * RANK, NOPE), (heads * V, RANK)]
    if not module:
        return latents if own else []
    return [*latents, (Q_RANK + RANK + ROPE, HIDDEN), (heads * (NOPE + ROPE), Q_RANK), (HIDDEN, heads * V)]


def _moved_bytes(tokens: Floats, heads: Floats) -> Floats:
    """Of queries and latents that the small kernels read and write."""
    return 2 * ACTIVATION_BYTES * tokens * (Q_RANK + RANK + heads * (NOPE + ROPE))


def _weight_bytes(shapes: Sequence[Shape]) -> Floats | float:
    return sum(ACTIVATION_BYTES * array(n) * k for n, k in shapes)


def _gemms_s(roofline: Roofline, tokens: Floats, shapes: Sequence[Shape], beside_bytes: Floats | float) -> Floats:
    """Seconds of bf16 products with weights of n x k.

    A bench that repeats a module finds their weights in L2 where there is room for all of it, as for the keys of a decode
    attention (a bench of one product goes through several copies of its weights).
    """
    c, gpu = roofline.constants("gemm", "bf16"), roofline.gpu
    room = {"warm_l2": roofline.constants("decode_attention", "bf16")["warm_l2"], "warm_time": c["warm_time"]}
    cold = fits.from_l2(room, gpu, beside_bytes + _weight_bytes(shapes))
    return sum((fits.gemm(c, gpu, tokens, n, k, "bf16", cold).total_s for n, k in shapes), np.zeros_like(tokens))


def _native_s(roofline: Roofline, tokens: Floats, heads: Floats, in_fp8: bool) -> Floats:
    """Seconds of PyTorch's own chain beyond the fused kernels that stand for it."""
    cycles = tokens * (NATIVE_TOKEN_CYCLES + NATIVE_HEAD_CYCLES * heads)
    if in_fp8:
        cycles = cycles + tokens * (NATIVE_FP8_TOKEN_CYCLES + NATIVE_FP8_HEAD_CYCLES * heads)
    launched_s = NATIVE_S + NATIVE_FILLED_S * tokens / (tokens + NATIVE_HALF_TOKENS)
    cold = 1 / (1 + (roofline.gpu.l2_bytes / (NATIVE_BUFFER_BYTES * tokens)) ** 2)
    moved_s = roofline.elementwise(cold * tokens * NATIVE_TOKEN_BYTES, 0).total_s
    return launched_s + moved_s + cycles / cycles_per_s(roofline.gpu)
