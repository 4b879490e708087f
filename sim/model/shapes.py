"""Attention and MLP of one layer as plain dimensions, with exact parameter counts; cut shapes describe one TP rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Attention of one layer: grouped-query (`gqa`, which includes MHA and MQA) or multi-head latent (`mla`)."""

    kind: Literal["gqa", "mla"]
    heads: int
    kv_heads: int
    """Heads whose keys and values are cached; under MLA the cache is one latent for all heads."""
    head_dim: int
    """Dimension of a key head; under MLA nope_dim + rope_dim."""
    rope_dim: int
    """Dimensions of a head that are rotated; 0 on layers without positions (Llama 4's global layers)."""
    window: int | None = None
    """Sliding window in tokens: a query sees at most this many tokens, itself included."""
    chunk: int | None = None
    """Attention chunk in tokens (Llama 4): a query sees its own chunk only."""
    q_lora_rank: int = 0
    """Rank of the query's down-projection (MLA); 0: the query is projected at once."""
    kv_lora_rank: int = 0
    nope_dim: int = 0
    v_dim: int = 0
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    qk_norm_by_head: bool = False
    """The norms of queries and keys have parameters for every head, not one head's that all share."""
    sinks: bool = False

    @property
    def reach(self) -> int | None:
        """Tokens that a query can see at most, or None for all: the window or the chunk."""
        return self.window if self.window is not None else self.chunk

    @property
    def kv_elements(self) -> int:
        """Elements that one token adds to the KV cache of this layer."""
        if self.kind == "mla":
            return self.kv_lora_rank + self.rope_dim
        return 2 * self.kv_heads * self.head_dim

    def input_parameters(self, hidden: int) -> int:
        """Parameters of every projection before the attention itself, with their biases, norms and sinks."""
        if self.kind == "mla":
            query_dim = self.heads * (self.nope_dim + self.rope_dim)
            rank = self.q_lora_rank
            query = hidden * rank + rank + rank * query_dim if rank else hidden * query_dim
            latent = hidden * (self.kv_lora_rank + self.rope_dim) + self.kv_lora_rank
            return query + latent + self.kv_lora_rank * self.heads * (self.nope_dim + self.v_dim)
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        normed_heads = self.heads + self.kv_heads if self.qk_norm_by_head else 2
        extra = (width if self.qkv_bias else 0) + (normed_heads * self.head_dim if self.qk_norm else 0)
        return hidden * width + extra + (self.heads if self.sinks else 0)

    def output_parameters(self, hidden: int) -> int:
        """Parameters of the output projection."""
        return self.heads * self.value_dim * hidden + (hidden if self.out_bias else 0)

    @property
    def value_dim(self) -> int:
        """Dimension of a value head."""
        return self.v_dim if self.kind == "mla" else self.head_dim

    def cut(self, tensor: int) -> AttentionShape:
        """What one of `tensor` ranks holds: its heads, and at least one KV head (replicated beyond the KV heads)."""
        return replace(self, heads=self.heads // tensor, kv_heads=max(1, self.kv_heads // tensor))


@dataclass(frozen=True, slots=True)
class MlpShape:
    """Feed-forward part of one layer: dense, or routed experts with optional shared ones."""

    kind: Literal["dense", "moe"]
    gated: bool = True
    """Gate and up projection (SwiGLU and relatives): three matrices instead of two."""
    bias: bool = False
    intermediate: int = 0
    """Columns of a dense MLP."""
    experts: int = 0
    local_experts: int = 0
    """Experts held here: all of them, or this rank's under expert parallelism."""
    top_k: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    """Columns of all shared experts together."""
    shared_gate: bool = False
    router_bias: bool = False
    correction_bias: bool = False
    """A bias per expert that only chooses among experts (DeepSeek-V3): stored, but no token passes through it."""
    expert_bias: bool = False

    def dense_parameters(self, hidden: int) -> int:
        """Parameters of the dense MLP."""
        up = 2 if self.gated else 1
        biases = up * self.intermediate + hidden if self.bias else 0
        return self._matrices(hidden, self.intermediate) + biases

    def expert_parameters(self, hidden: int) -> int:
        """Parameters of one routed expert, without biases."""
        return self._matrices(hidden, self.expert_intermediate)

    def expert_biases(self, hidden: int) -> int:
        """Biases of one routed expert, which quantised checkpoints keep in 16 bit (gpt-oss)."""
        return 2 * self.expert_intermediate + hidden if self.expert_bias else 0

    def shared_parameters(self, hidden: int) -> int:
        """Parameters of the shared experts together."""
        return self._matrices(hidden, self.shared_intermediate)

    def router_parameters(self, hidden: int) -> int:
        """Parameters of the router, its correction bias, and the gate of the shared experts."""
        if self.kind == "dense":
            return 0
        biases = self.router_bias + self.correction_bias
        return hidden * self.experts + biases * self.experts + (hidden if self.shared_gate else 0)

    def cut(self, tensor: int, expert_ranks: int) -> MlpShape:
        """What one rank holds: columns by `tensor`; whole experts where `expert_ranks` > 1 (the fullest rank's)."""
        by_expert = expert_ranks > 1
        return replace(
            self,
            intermediate=self.intermediate // tensor,
            shared_intermediate=self.shared_intermediate // tensor,
            local_experts=-(-self.experts // expert_ranks),
            expert_intermediate=self.expert_intermediate if by_expert else self.expert_intermediate // tensor,
        )

    def _matrices(self, hidden: int, columns: int) -> int:
        return (3 if self.gated else 2) * hidden * columns
