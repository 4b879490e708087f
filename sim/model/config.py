"""Reads a Hugging Face `config.json`: one name for each dimension, whatever the model family calls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.errors import InputError
from sim.model.shapes import AttentionShape, MlpShape

_QUERY_KEY_NORM = ("qwen3", "qwen3_moe", "gemma3_text", "gemma3")
_QKV_BIAS_ONLY = ("qwen2", "qwen2_moe", "qwen2_5_vl", "qwen2_vl")
_SLIDES_EVERY_OTHER_LAYER = ("gemma2", "gpt_oss")
# keys of layers that are no attention: their state does not grow like a KV cache
_UNSUPPORTED = ("ssm_cfg", "mamba_d_state", "ssm_state_size", "linear_num_key_heads", "index_topk", "rwkv_version")


_MOST_LAYERS = 10_000
"""Many times the deepest model published (126 layers, Llama-3.1-405B): more is a slip of the pen."""


class ConfigReader:
    """Dimensions of a transformer out of the text part of a `config.json`.

    Raises:
        InputError: from any method, where a needed key is missing or of the wrong kind.
    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.where = where
        nested = config.get("text_config")
        self.config: Mapping[str, Any] = nested if isinstance(nested, Mapping) else config
        self.model_type = str(self.config.get("model_type", config.get("model_type", "")))
        for key in _UNSUPPORTED:
            if self.config.get(key) is not None:
                raise InputError(
                    where, f"has '{key}': state-space, linear and sparse attention layers are not modelled", ""
                )
        self.parallel_block = self.model_type == "gptj"
        self.layers = self.integer("num_hidden_layers", "n_layer", "n_layers")
        if self.layers > _MOST_LAYERS:
            raise InputError(where, f"'num_hidden_layers' is {self.layers:,}", f"allowed: 1 to {_MOST_LAYERS:,}")
        kinds = self.config.get("layer_types")
        if kinds is not None and (not isinstance(kinds, list) or len(kinds) < self.layers):
            got = f"{len(kinds)} entries" if isinstance(kinds, list) else repr(kinds)
            raise InputError(where, f"'layer_types' has {got}", f"one for each of the {self.layers} layers")
        self.hidden = self.integer("hidden_size", "n_embd", "d_model")
        self.vocab = self.integer("vocab_size")
        self.heads = self.integer("num_attention_heads", "n_head", "n_heads")
        self.kv_heads = self.optional("num_key_value_heads", "num_kv_heads") or self.heads
        if self.heads % self.kv_heads:
            problem = f"'num_attention_heads' is {self.heads}, no multiple of 'num_key_value_heads', {self.kv_heads}"
            raise InputError(where, problem, "every KV head serves as many heads as every other")
        self.experts = self.optional("n_routed_experts", "num_local_experts", "num_experts") or 0
        self.intermediate = self._intermediate()
        self.tied = bool(self.config.get("tie_word_embeddings", self.model_type.startswith("gemma")))
        self.max_position = self.integer("max_position_embeddings", "n_positions")

    def integer(self, *names: str) -> int:
        """The first of `names` that is set, as a positive integer."""
        value = self.optional(*names)
        if value is None:
            raise InputError(self.where, f"'{names[0]}' is missing", "is this the config.json of a language model?")
        return value

    def optional(self, *names: str) -> int | None:
        """The first of `names` that is set, or None."""
        for name in names:
            value = self.config.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(self.where, f"'{name}' is {value!r}", "allowed: a whole number >= 0")
            if value == 0 and name not in ("num_experts", "num_local_experts", "n_routed_experts", "q_lora_rank"):
                continue
            return value
        return None

    def flag(self, name: str) -> bool:
        """A boolean key; absent means false."""
        return bool(self.config.get(name, False))

    @property
    def norms_per_layer(self) -> int:
        """Norms over the hidden state in a layer: one before a parallel block, four in a sandwich (Gemma 2 and 3)."""
        if self.parallel_block:
            return 1
        return 4 if self.model_type.startswith(("gemma2", "gemma3")) else 2

    @property
    def norm_parameters(self) -> int:
        """Parameters of one norm: LayerNorm has a bias, RMSNorm has none."""
        return self.hidden * (2 if self.parallel_block else 1)

    @property
    def head_bias(self) -> bool:
        return self.parallel_block

    def attention(self, layer: int) -> AttentionShape:
        """Attention of the layer with this index."""
        window, chunk = self._reach(layer)
        if self.config.get("kv_lora_rank"):
            return self._latent_attention(window)
        head_dim = self.optional("head_dim") or self.hidden // self.heads
        bias = self.flag("attention_bias") or (self.model_type == "internlm" and self.flag("bias"))
        return AttentionShape(
            kind="gqa",
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=head_dim,
            rope_dim=self._rope_dim(layer, head_dim),
            window=window,
            chunk=chunk,
            qkv_bias=bias or self.model_type in _QKV_BIAS_ONLY,
            out_bias=bias,
            qk_norm=self.model_type in _QUERY_KEY_NORM,
            sinks=self.model_type == "gpt_oss",
        )

    def mlp(self, layer: int) -> MlpShape:
        """Feed-forward part of the layer with this index."""
        if not self._is_moe(layer):
            bias = self.flag("mlp_bias") or self.parallel_block
            columns = self.optional("intermediate_size_mlp") or self.intermediate
            return MlpShape("dense", gated=not self.parallel_block, bias=bias, intermediate=columns)
        columns = self.optional("moe_intermediate_size") or self.intermediate
        return MlpShape(
            "moe",
            experts=self.experts,
            local_experts=self.experts,
            top_k=self.integer("num_experts_per_tok", "experts_per_token", "moe_topk"),
            expert_intermediate=columns,
            shared_intermediate=self._shared_columns(columns),
            shared_gate=self.model_type == "qwen2_moe",
            router_bias=self.model_type == "gpt_oss",
            correction_bias=self.config.get("topk_method") == "noaux_tc",
            expert_bias=self.model_type == "gpt_oss",
        )

    def _intermediate(self) -> int:
        if self.parallel_block:
            return self.optional("n_inner") or 4 * self.hidden
        return self.integer("intermediate_size")

    def _shared_columns(self, columns: int) -> int:
        if self.model_type.startswith("llama4"):
            return self.intermediate
        return self.optional("shared_expert_intermediate_size") or (self.optional("n_shared_experts") or 0) * columns

    def _is_moe(self, layer: int) -> bool:
        if not self.experts:
            return False
        if self.model_type.startswith("llama4"):
            return (layer + 1) % (self.optional("interleave_moe_layer_step") or 1) == 0
        if layer < (self.optional("first_k_dense_replace") or 0) or layer in (self.config.get("mlp_only_layers") or ()):
            return False
        return (layer + 1) % (self.optional("decoder_sparse_step") or 1) == 0 and (
            layer % (self.optional("moe_layer_freq") or 1) == 0
        )

    def _latent_attention(self, window: int | None) -> AttentionShape:
        nope, rope = self.integer("qk_nope_head_dim"), self.integer("qk_rope_head_dim")
        return AttentionShape(
            kind="mla",
            heads=self.heads,
            kv_heads=1,
            head_dim=nope + rope,
            rope_dim=rope,
            window=window,
            q_lora_rank=self.optional("q_lora_rank") or 0,
            kv_lora_rank=self.integer("kv_lora_rank"),
            nope_dim=nope,
            v_dim=self.integer("v_head_dim"),
        )

    def _rope_dim(self, layer: int, head_dim: int) -> int:
        if self.model_type.startswith("llama4") and self._is_global(layer):
            return 0
        return self.optional("rotary_dim") or int(head_dim * float(self.config.get("partial_rotary_factor") or 1.0))

    def _is_global(self, layer: int) -> bool:
        """Whether a Llama 4 layer sees all tokens, without positions: the ones where `no_rope_layers` holds 0."""
        listed = self.config.get("no_rope_layers")
        return listed[layer] == 0 if listed else (layer + 1) % 4 == 0

    def _reach(self, layer: int) -> tuple[int | None, int | None]:
        """(sliding window, attention chunk) of a layer, each None where it sees all tokens."""
        window, chunk = self.optional("sliding_window"), self.optional("attention_chunk_size")
        kinds = self.config.get("layer_types")
        if kinds:
            return self._listed_reach(str(kinds[layer]), window, chunk)
        if self.model_type.startswith("llama4"):
            return None, None if self._is_global(layer) else chunk
        if window is None or self.config.get("use_sliding_window") is False:
            return None, None
        if self.config.get("use_sliding_window"):
            return (window if layer >= (self.optional("max_window_layers") or 0) else None), None
        every = self.optional("sliding_window_pattern", "_sliding_window_pattern")
        if every is None and self.model_type in _SLIDES_EVERY_OTHER_LAYER:
            every = 2
        return (None if every and (layer + 1) % every == 0 else window), None

    def _listed_reach(self, kind: str, window: int | None, chunk: int | None) -> tuple[int | None, int | None]:
        if kind == "full_attention":
            return None, None
        if kind == "sliding_attention" and window is not None:
            return window, None
        if kind == "chunked_attention" and chunk is not None:
            return None, chunk
        allowed = "allowed: full_attention, sliding_attention (with sliding_window), chunked_attention"
        raise InputError(self.where, f"'layer_types' has '{kind}'", allowed + " (with attention_chunk_size)")
