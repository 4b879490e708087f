"""What a model family is built of that its `config.json` leaves unsaid: its code has it, not its dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Family:
    """Traits that the models of a family share; those of Llama where a family is unknown or says nothing."""

    parallel_block: bool = False
    """Attention and MLP read the same input and are summed."""
    gated: bool = True
    """The MLP has a gate beside its up projection (SwiGLU, GeGLU)."""
    norms_per_layer: int = 2
    """Norms over the hidden state in a layer: one where it feeds attention and MLP alike, four in a sandwich."""
    norm_bias: bool = False
    """LayerNorm has a bias, RMSNorm has none."""
    embedding_norm: bool = False
    """A norm stands between the embedding and the first layer."""
    qkv_bias: bool = False
    """Biases of queries, keys and values even where the config names none."""
    out_bias: bool | None = None
    """A bias of the attention's output; None: as for queries, keys and values where the config asks for those."""
    mlp_bias: bool = False
    head_bias: bool = False
    expert_bias: bool = False
    """The router and the experts have biases."""
    correction_bias: bool = False
    """A bias per expert that only chooses among experts, whatever `topk_method` says."""
    shared_gate: bool = False
    """The shared expert's output is weighed by a gate."""
    sinks: bool = False
    """Every head has a learned sink."""
    qk_norm: Literal["never", "asked", "always"] = "never"
    """Norms of queries and keys; asked: where `use_qk_norm` is true."""
    qk_norm_by_head: bool = False
    """Each head has a query or key norm of its own, or one norm goes over all of them: as many parameters."""
    tied: bool = False
    """The head shares the embedding's matrix, where the config does not say."""
    learned_positions: int | None = None
    """Positions are learned vectors, this many more than the longest sequence; None: they are not stored."""
    rotated: float = 1.0
    """Share of a head's dimensions that is rotated, where the config does not say."""
    full_attention_every: int | None = None
    """Of this many layers the last sees all tokens and the others a window, where the config does not say."""
    max_position: int | None = None
    """Longest sequence, tokens, where the config does not say."""


_GPT = Family(gated=False, norm_bias=True, qkv_bias=True, out_bias=True, mlp_bias=True)
"""The block of GPT-2 and GPT-3: LayerNorm, two matrices in the MLP, a bias everywhere."""
_QWEN2 = Family(qkv_bias=True)
_GEMMA3 = Family(norms_per_layer=4, tied=True, qk_norm="always", full_attention_every=6)

_FAMILIES = {
    "bloom": replace(_GPT, tied=True, embedding_norm=True, rotated=0.0),
    "chatglm": Family(out_bias=False, rotated=0.5),
    "cohere": Family(parallel_block=True, norms_per_layer=1, tied=True, qk_norm="asked", qk_norm_by_head=True),
    "falcon": Family(parallel_block=True, gated=False, norm_bias=True, tied=True, max_position=2048),
    "gemma": Family(tied=True),
    "gemma2": Family(norms_per_layer=4, tied=True, full_attention_every=2),
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "glm4_moe": Family(out_bias=False, qk_norm="asked", correction_bias=True),
    "gpt_bigcode": replace(_GPT, tied=True, learned_positions=0, rotated=0.0),
    "gpt_neox": replace(_GPT, parallel_block=True),
    "gpt_oss": Family(expert_bias=True, sinks=True, full_attention_every=2),
    "gptj": Family(parallel_block=True, gated=False, norms_per_layer=1, norm_bias=True, mlp_bias=True, head_bias=True),
    "grok-1": Family(norms_per_layer=4, tied=True),
    "minimax_m2": Family(qk_norm="asked", qk_norm_by_head=True, correction_bias=True),
    "mpt": Family(gated=False, tied=True, rotated=0.0),
    "nemotron": Family(gated=False, norm_bias=True),
    "olmoe": Family(qk_norm="always", qk_norm_by_head=True),
    "opt": replace(_GPT, tied=True, learned_positions=2, rotated=0.0),
    "phi": replace(_GPT, parallel_block=True, norms_per_layer=1, head_bias=True),
    "phimoe": Family(norm_bias=True, head_bias=True),
    "qwen2": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen2_5_vl_text": _QWEN2,
    "qwen2_moe": replace(_QWEN2, shared_gate=True),
    "qwen2_vl": _QWEN2,
    "qwen3": Family(qk_norm="always"),
    "qwen3_moe": Family(qk_norm="always"),
    "seed_oss": Family(out_bias=False),
    "starcoder2": replace(_GPT, tied=True),
}
"""By `model_type`, as the models' code in transformers (or beside the weights) builds them."""


def family_of(model_type: str, config: Mapping[str, Any]) -> Family:
    """The traits of a model, some of which two families choose by keys that nobody else has."""
    found = _FAMILIES.get(model_type, Family())
    if model_type == "gpt_neox":
        return replace(found, parallel_block=bool(config.get("use_parallel_residual", True)))
    if model_type == "falcon":
        parallel = bool(config.get("new_decoder_architecture") or config.get("parallel_attn", True))
        shared_norm = parallel and not config.get("new_decoder_architecture")
        return replace(
            found,
            parallel_block=parallel,
            norms_per_layer=config.get("num_ln_in_parallel_attn") or (1 if shared_norm else 2),
            mlp_bias=bool(config.get("bias")),
        )
    return found
