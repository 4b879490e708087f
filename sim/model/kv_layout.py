"""How the KV cache of one GPU is laid out in blocks, with sliding-window layers apart from full ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sim.model.precision import Precision
from sim.model.sharding import Sharding
from sim.model.transformer import Transformer


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers of one GPU that cache alike."""

    reach: int | None
    """Tokens that are kept at most (sliding window or attention chunk), or None for all."""
    layers: int
    bytes_per_token: float
    """Bytes a cached token takes in all these layers together, on this GPU."""

    def kept_tokens(self, tokens: int) -> int:
        """Tokens of a sequence of `tokens` that these layers still hold."""
        return tokens if self.reach is None else min(tokens, self.reach)


@dataclass(frozen=True, slots=True)
class KvLayout:
    """Blocks of the KV cache of one GPU.

    With one kind of layer a block holds `block_size` tokens of all layers. A hybrid model's layers are split into
    groups of as many layers as its rarest kind has; every group takes blocks of its own from one pool (vLLM's hybrid
    KV cache manager), so that the windowed groups stop growing.
    """

    groups: tuple[KvGroup, ...]
    block_size: int

    @property
    def bytes_per_token(self) -> float:
        """Bytes a token takes while it is inside every window."""
        return sum(group.bytes_per_token for group in self.groups)

    @property
    def layers_per_block(self) -> int:
        return min(group.layers for group in self.groups)

    @property
    def block_bytes(self) -> float:
        """Bytes of one block."""
        layer_bytes = max(group.bytes_per_token / group.layers for group in self.groups)
        return self.block_size * self.layers_per_block * layer_bytes

    def blocks_of_sequence(self, tokens: int) -> int:
        """Blocks that a sequence of `tokens` holds; a window that has moved on straddles one block more."""
        blocks = 0
        for group in self.groups:
            held = math.ceil(group.kept_tokens(tokens) / self.block_size)
            moved = group.reach is not None and tokens > group.reach
            blocks += math.ceil(group.layers / self.layers_per_block) * (held + (1 if moved else 0))
        return blocks


def kv_layout(model: Transformer, precision: Precision, sharding: Sharding, stage: int, block_size: int) -> KvLayout:
    """The layout on one GPU of a pipeline stage; block_size in tokens."""
    layers: dict[int | None, int] = {}
    size_bytes: dict[int | None, float] = {}
    for group in sharding.stage_groups(model, stage):
        attention = group.attention
        token_bytes = attention.kv_elements * precision.kv_bytes(attention.head_dim) * group.count
        layers[attention.reach] = layers.get(attention.reach, 0) + group.count
        size_bytes[attention.reach] = size_bytes.get(attention.reach, 0.0) + token_bytes
    return KvLayout(tuple(KvGroup(reach, layers[reach], size_bytes[reach]) for reach in layers), block_size)


def kv_bytes_per_token(model: Transformer, precision: Precision) -> float:
    """Bytes that one token takes in the KV cache of the whole, unsharded model.

    2 x layers x kv_heads x head_dim x bytes for grouped-query attention, layers x (kv_lora_rank + rope_dim) x bytes for
    MLA.
    """
    return kv_layout(model, precision, Sharding(), 0, 1).bytes_per_token
