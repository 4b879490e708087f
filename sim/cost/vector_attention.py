"""Decode attention on the vector units of a GPU instead of its tensor cores, as compiled engines ran it.

Without tensor cores every query head works through the keys and values by itself, whether other heads share them or not
(TensorRT-LLM's masked multi-head attention, which it has from FasterTransformer; its XQA kernels put the heads of a group
through the tensor cores together). The cache is read once all the same, the other heads find it in the L2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sim.cost.fits import cycles_per_s
from sim.cost.kernels import DecodeAttentionTime, Floats, KernelBackend
from sim.hardware.gpu import Gpu


class VectorAttention(NamedTuple):
    """Which attention runs on vector units, and how fast."""

    elements_a_cycle: float
    """Elements of keys and values that one SM gets through in a cycle, for one query head: multiplication, reduction over the
    threads of the head, softmax. The same whatever the cache's format is."""
    grouped: tuple[int, ...] | None
    """Query heads a KV head for which a kernel on tensor cores exists; None: for every number above one."""

    def takes(self, heads: int, kv_heads: int) -> bool:
        """Whether heads grouped like this run on vector units."""
        group = heads // kv_heads
        return group == 1 or (self.grouped is not None and group not in self.grouped)


class VectorKernels:
    """A kernel backend whose decode attention never beats the vector units where it runs there."""

    def __init__(self, backend: KernelBackend, gpu: Gpu, vector: VectorAttention) -> None:
        self._backend = backend
        self._vector = vector
        self._elements_per_s = vector.elements_a_cycle * cycles_per_s(gpu)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def decode_attention(
        self, sequences: Floats | float, heads: int, kv_heads: int, head_dim: int, kv_dtype: str
    ) -> DecodeAttentionTime:
        """As the backend's; where the vector units take longer, their time is compute beside the same memory time."""
        time = self._backend.decode_attention(sequences, heads, kv_heads, head_dim, kv_dtype)
        if not self._vector.takes(heads, kv_heads):
            return time
        vector_s = 2 * heads * head_dim / self._elements_per_s
        compute_s = np.maximum(time.compute_s_per_token, vector_s - time.memory_s_per_token)
        return DecodeAttentionTime(time.fixed_s, time.memory_s_per_token, compute_s)
