"""What a kernel backend answers: how long one kernel takes, alone, and why.

Two backends implement `KernelBackend`: `roofline` (fitted constants, any GPU) and `measured` (interpolated tables).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.hardware.gpu import Gpu

Floats = NDArray[np.float64]
"""An array of float64; every argument called `Floats | float` is broadcast."""


class KernelTime(NamedTuple):
    """Seconds of one kernel by cause; the three parts sum to its duration."""

    fixed_s: Floats
    """Launch, prologue, tile and wave quantisation: what no faster memory or tensor core would shorten."""
    memory_s: Floats
    """The share of the body that waits for HBM: body x y^p / (x^p + y^p)."""
    compute_s: Floats
    """The share of the body that waits for the tensor cores: body x x^p / (x^p + y^p)."""

    @property
    def total_s(self) -> Floats:
        return self.fixed_s + self.memory_s + self.compute_s


class DecodeAttentionTime(NamedTuple):
    """Decode attention of one layer on one GPU: affine in the sum of contexts, for a given number of sequences.

    Duration = fixed_s + context_tokens x (memory_s_per_token + compute_s_per_token), all three arrays over `sequences`.
    """

    fixed_s: Floats
    memory_s_per_token: Floats
    compute_s_per_token: Floats


class KernelBackend(Protocol):
    """Durations of the kernels of a transformer on one GPU. All shapes are what ONE rank computes."""

    @property
    def gpu(self) -> Gpu:
        """Whose kernels they are."""
        ...

    def gemm(self, m: Floats | float, n: int, k: int, dtype: str) -> KernelTime:
        """out[m, n] = in[m, k] x weights[k, n]; dtype names the weights and the arithmetic: bf16, fp8, fp8_block, int8_wo,
        int4_wo, nvfp4, mxfp4. A quantised activation costs its quantisation kernel here."""
        ...

    def prefill_attention(
        self,
        new_tokens: Floats | float,
        context_tokens: Floats | float,
        heads: int,
        kv_heads: int,
        head_dim: int,
        kv_dtype: str,
        window: int | None = None,
    ) -> KernelTime:
        """Causal attention of one sequence: `new_tokens` queries over `context_tokens` earlier tokens and themselves."""
        ...

    def decode_attention(
        self,
        sequences: Floats | float,
        heads: int,
        kv_heads: int,
        head_dim: int,
        kv_dtype: str,
    ) -> DecodeAttentionTime:
        """One query token for each of `sequences`."""
        ...

    def prefill_mla(
        self, new_tokens: Floats | float, context_tokens: Floats | float, heads: int, kv_lora_rank: int, rope_dim: int,
        nope_dim: int, v_dim: int, kv_dtype: str,
    ) -> KernelTime:  # fmt: skip
        """Multi-head latent attention of one prompt chunk."""
        ...

    def decode_mla(
        self, sequences: Floats | float, heads: int, kv_lora_rank: int, rope_dim: int, kv_dtype: str
    ) -> DecodeAttentionTime:
        """Absorbed multi-head latent attention, one query token a sequence, the latent read once for all heads."""
        ...

    def moe(
        self,
        tokens: Floats | float,
        hidden: int,
        intermediate: int,
        experts: int,
        local_experts: int,
        top_k: int,
        dtype: str,
    ) -> KernelTime:
        """Grouped GEMMs (gate+up, down) of the routed experts of one layer on this rank.

        `tokens` is what the expert group routes in all; this rank holds `local_experts` of `experts`, each with
        `intermediate` columns on this rank, and balanced routing is assumed."""
        ...

    def elementwise(self, bytes_moved: Floats | float, kernels: int = 1) -> KernelTime:
        """Norms, rope, activation, residual: `kernels` memory-bound kernels that move `bytes_moved` in all."""
        ...
