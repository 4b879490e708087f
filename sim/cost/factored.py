"""A kernel backend whose kernels take longer or shorter by a factor a kind and dtype: to draw from the error of its constants."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim.cost.fits import array
from sim.cost.kernels import DecodeAttentionTime, Floats, KernelBackend, KernelTime
from sim.cost.roofline import Roofline
from sim.hardware.gpu import Gpu


class FactoredKernels:
    """`backend` with the duration of every kernel multiplied; implements `sim.cost.kernels.KernelBackend`.

    No factor makes a kernel faster than the printed peaks allow, unless it was already (nothing is faster than its bytes).

    Args:
        backend: of `gpu`.
        factors: by (kernel kind, dtype); 1 where there is none.
    """

    def __init__(self, backend: KernelBackend, gpu: Gpu, factors: Mapping[tuple[str, str], float]) -> None:
        self.gpu = gpu
        self._backend, self._factors = backend, factors
        self._ideal = Roofline(gpu, ideal=True)

    def _time(self, kind: str, dtype: str, asked: KernelTime, least: KernelTime) -> KernelTime:
        factor = _bounded(self._factors.get((kind, dtype), 1.0), asked.total_s, least.total_s)
        return KernelTime(factor * asked.fixed_s, factor * asked.memory_s, factor * asked.compute_s)

    def _decode(
        self, kind: str, dtype: str, asked: DecodeAttentionTime, least: DecodeAttentionTime
    ) -> DecodeAttentionTime:
        factor = self._factors.get((kind, dtype), 1.0)
        slope = _bounded(
            factor,
            asked.memory_s_per_token + asked.compute_s_per_token,
            least.memory_s_per_token + least.compute_s_per_token,
        )
        return DecodeAttentionTime(
            factor * asked.fixed_s, slope * asked.memory_s_per_token, slope * asked.compute_s_per_token
        )

    def gemm(self, m: Floats | float, n: int, k: int, dtype: str) -> KernelTime:
        """As the backend's, times the factor of gemm and `dtype`."""
        return self._time("gemm", dtype, self._backend.gemm(m, n, k, dtype), self._ideal.gemm(m, n, k, dtype))

    def prefill_attention(
        self, new_tokens: Floats | float, context_tokens: Floats | float, heads: int, kv_heads: int, head_dim: int,
        kv_dtype: str, window: int | None = None,
    ) -> KernelTime:  # fmt: skip
        """As the backend's, times the factor of prefill_attention and `kv_dtype`."""
        shape = (new_tokens, context_tokens, heads, kv_heads, head_dim, kv_dtype, window)
        asked, least = self._backend.prefill_attention(*shape), self._ideal.prefill_attention(*shape)
        return self._time("prefill_attention", kv_dtype, asked, least)

    def decode_attention(
        self, sequences: Floats | float, heads: int, kv_heads: int, head_dim: int, kv_dtype: str
    ) -> DecodeAttentionTime:
        """As the backend's, times the factor of decode_attention and `kv_dtype`."""
        shape = (sequences, heads, kv_heads, head_dim, kv_dtype)
        asked, least = self._backend.decode_attention(*shape), self._ideal.decode_attention(*shape)
        return self._decode("decode_attention", kv_dtype, asked, least)

    def prefill_mla(
        self, new_tokens: Floats | float, context_tokens: Floats | float, heads: int, kv_lora_rank: int, rope_dim: int,
        nope_dim: int, v_dim: int, kv_dtype: str,
    ) -> KernelTime:  # fmt: skip
        """As the backend's, times the factor of prefill_mla and `kv_dtype`."""
        shape = (new_tokens, context_tokens, heads, kv_lora_rank, rope_dim, nope_dim, v_dim, kv_dtype)
        return self._time("prefill_mla", kv_dtype, self._backend.prefill_mla(*shape), self._ideal.prefill_mla(*shape))

    def decode_mla(
        self, sequences: Floats | float, heads: int, kv_lora_rank: int, rope_dim: int, kv_dtype: str
    ) -> DecodeAttentionTime:
        """As the backend's, times the factor of decode_mla and `kv_dtype`."""
        shape = (sequences, heads, kv_lora_rank, rope_dim, kv_dtype)
        return self._decode("decode_mla", kv_dtype, self._backend.decode_mla(*shape), self._ideal.decode_mla(*shape))

    def moe(
        self, tokens: Floats | float, hidden: int, intermediate: int, experts: int, local_experts: int, top_k: int, dtype: str
    ) -> KernelTime:  # fmt: skip
        """As the backend's, times the factor of moe and `dtype`."""
        shape = (tokens, hidden, intermediate, experts, local_experts, top_k, dtype)
        return self._time("moe", dtype, self._backend.moe(*shape), self._ideal.moe(*shape))

    def elementwise(self, bytes_moved: Floats | float, kernels: int = 1) -> KernelTime:
        """As the backend's, times the factor of elementwise and bf16."""
        asked, least = self._backend.elementwise(bytes_moved, kernels), self._ideal.elementwise(bytes_moved, kernels)
        return self._time("elementwise", "bf16", asked, least)


def _bounded(factor: float, asked_s: Floats, least_s: Floats) -> Floats:
    """`factor`, or as much of it as leaves `asked_s` no shorter than `least_s`."""
    asked_s = array(asked_s)
    floor = np.divide(least_s, asked_s, out=np.zeros_like(asked_s), where=asked_s > 0)
    return np.asarray(np.maximum(factor, np.minimum(floor, 1.0)))
