"""The activation peak: what an engine's profiling pass finds on top of the weights."""

from __future__ import annotations

from sim.model.operators import ACTIVATION_BYTES
from sim.model.shapes import AttentionShape, MlpShape
from sim.model.sharding import Sharding
from sim.model.transformer import Transformer

SAMPLER_BYTES_PER_LOGIT = 39
"""Bytes a logit takes at the sampler's peak: bf16 logit 2, its float32 copy 4, a sort whose radix passes hold values
(4) and indices (8) twice, softmax 4, cumulative sum 4, mask 1 (vLLM's top-p / top-k sampler, which the profiling pass
runs). With it Llama-3-8B at 8192 tokens and 256 sequences peaks at 1.26 GiB, at TP1 and TP2 alike because every rank
samples from the whole vocabulary: what vLLM pull request 10511 publishes for both."""


def activation_peak_bytes(
    model: Transformer, sharding: Sharding, stage: int, max_num_batched_tokens: int, max_num_seqs: int
) -> float:
    """Bytes of activations alive at the peak of a full pass on one rank of a pipeline stage.

    The larger of two moments: the widest layer, beside the hidden state and the residual of every token; and, on the
    last stage, the sampler, beside the hidden state only.

    Args:
        max_num_batched_tokens: tokens of the largest pass.
        max_num_seqs: sequences that are sampled at most (no more than tokens).
    """
    hidden_bytes = float(max_num_batched_tokens * model.hidden * ACTIVATION_BYTES)
    groups = sharding.stage_groups(model, stage)
    widest = max(max(_attention_elements(x.attention), _mlp_elements(x.mlp, model.hidden)) for x in groups)
    layer_bytes = 2 * hidden_bytes + max_num_batched_tokens * widest * ACTIVATION_BYTES
    if not sharding.is_last(stage):
        return layer_bytes
    sampled = min(max_num_seqs, max_num_batched_tokens)
    return max(layer_bytes, hidden_bytes + sampled * model.vocab * SAMPLER_BYTES_PER_LOGIT)


def _attention_elements(shape: AttentionShape) -> int:
    """Elements a token has alive in an attention: queries, keys, values and the output."""
    keys = shape.heads if shape.kind == "mla" else shape.kv_heads  # MLA's prefill expands the latent to every head
    return shape.heads * (shape.head_dim + shape.value_dim) + keys * (shape.head_dim + shape.value_dim)


def _mlp_elements(shape: MlpShape, hidden: int) -> int:
    """Elements a token has alive in an MLP: gate and up with their product; an expert's output reuses gate and up."""
    up = 2 if shape.gated else 1
    if shape.kind == "dense":
        return (up + 1) * shape.intermediate
    routed = shape.top_k * (max(up * shape.expert_intermediate, hidden) + shape.expert_intermediate)
    return routed + (up + 1) * shape.shared_intermediate
