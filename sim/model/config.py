"""Reads a Hugging Face `config.json`: one name for each dimension, whatever the model family calls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.errors import InputError
from sim.model.families import family_of
from sim.model.shapes import AttentionShape, MlpShape

# keys of state-space, linear and sparse attention layers, whose state does not grow, or is not read, like a KV cache
_UNSUPPORTED = (
    *("ssm_cfg", "mamba_d_state", "ssm_state_size", "linear_num_key_heads", "linear_attn_config", "rwkv_version"),
    *("index_topk", "sparse_attention_config"),
)
_NESTED = ("attn_config", "ffn_config")
"""Sections of MosaicML's configs (MPT, DBRX), whose keys are read as if they stood outside."""

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
        text: Mapping[str, Any] = nested if isinstance(nested, Mapping) else config
        sections = [text[key] for key in _NESTED if isinstance(text.get(key), Mapping)]
        self.config: Mapping[str, Any] = {key: value for part in (*sections, text) for key, value in part.items()}
        self.model_type = str(self.config.get("model_type", config.get("model_type", "")))
        for key in _UNSUPPORTED:
            if self.config.get(key) is not None:
                raise InputError(
                    where, f"has '{key}': state-space, linear and sparse attention layers are not modelled", ""
                )
        self.family = family_of(self.model_type, self.config)
        self.layers = self.integer("num_hidden_layers", "n_layer", "n_layers", "num_layers")
        if self.layers > _MOST_LAYERS:
            raise InputError(where, f"'num_hidden_layers' is {self.layers:,}", f"allowed: 1 to {_MOST_LAYERS:,}")
        kinds = self.config.get("layer_types")
        if kinds is not None and (not isinstance(kinds, list) or len(kinds) < self.layers):
            got = f"{len(kinds)} entries" if isinstance(kinds, list) else repr(kinds)
            raise InputError(where, f"'layer_types' has {got}", f"one for each of the {self.layers} layers")
        self.hidden = self.integer("hidden_size", "n_embd", "n_embed", "d_model")
        self.vocab = self.integer("vocab_size", "padded_vocab_size")
        self.heads = self.integer("num_attention_heads", "n_head", "n_heads")
        self.kv_heads = self._kv_heads()
        if self.heads % self.kv_heads:
            problem = f"'num_attention_heads' is {self.heads}, no multiple of 'num_key_value_heads', {self.kv_heads}"
            raise InputError(where, problem, "every KV head serves as many heads as every other")
        self.experts = self.optional("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts") or 0
        self.intermediate = self._intermediate()
        self.tied = bool(self.config.get("tie_word_embeddings", self.family.tied))
        longest = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "model_max_length")
        self.max_position = self.optional(*longest) or self.family.max_position or self.integer(*longest)

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
    def norm_parameters(self) -> int:
        """Parameters of one norm over the hidden state."""
        return self.hidden * (2 if self.family.norm_bias else 1)

    @property
    def learned_positions(self) -> int:
        """Positions whose vectors are stored."""
        extra = self.family.learned_positions
        return 0 if extra is None else self.max_position + extra

    def attention(self, layer: int) -> AttentionShape:
        """Attention of the layer with this index."""
        window, chunk = self._reach(layer)
        if window is not None and window >= self.max_position:
            window = None  # it hides nothing (Phi-3 128k)
        if self.config.get("kv_lora_rank"):
            return self._latent_attention(window)
        head_dim = self.optional("head_dim", "kv_channels") or self.hidden // self.heads
        family = self.family
        bias = any(map(self.flag, ("attention_bias", "add_qkv_bias", "bias")))
        out_bias = bias if family.out_bias is None else family.out_bias
        return AttentionShape(
            kind="gqa",
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=head_dim,
            rope_dim=self._rope_dim(layer, head_dim),
            window=window,
            chunk=chunk,
            qkv_bias=bias or family.qkv_bias,
            out_bias=out_bias or self.flag("attention_out_bias"),
            qk_norm=family.qk_norm == "always" or (family.qk_norm == "asked" and self.flag("use_qk_norm")),
            qk_norm_by_head=family.qk_norm_by_head,
            sinks=family.sinks,
        )

    def mlp(self, layer: int) -> MlpShape:
        """Feed-forward part of the layer with this index."""
        if not self._is_moe(layer):
            bias = self.flag("mlp_bias") or self.family.mlp_bias
            columns = self.optional("intermediate_size_mlp") or self.intermediate
            return MlpShape("dense", gated=self.family.gated, bias=bias, intermediate=columns)
        columns = self.optional("moe_intermediate_size") or self.intermediate
        return MlpShape(
            "moe",
            experts=self.experts,
            local_experts=self.experts,
            top_k=self.integer("num_experts_per_tok", "experts_per_token", "moe_topk", "moe_top_k"),
            expert_intermediate=columns,
            shared_intermediate=self._shared_columns(columns),
            shared_gate=self.family.shared_gate,
            router_bias=self.family.expert_bias,
            correction_bias=self.family.correction_bias or self.config.get("topk_method") == "noaux_tc",
            expert_bias=self.family.expert_bias,
        )

    def _kv_heads(self) -> int:
        # Falcon's newer models say `multi_query` too, but mean their groups
        if self.flag("multi_query") and not self.flag("new_decoder_architecture"):
            return 1
        names = ("num_key_value_heads", "num_kv_heads", "kv_n_heads", "multi_query_group_num")
        return self.optional(*names) or self.heads

    def _intermediate(self) -> int:
        names = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
        if self.family.gated:
            return self.integer(*names)
        return self.optional(*names) or (self.optional("expansion_ratio") or 4) * self.hidden

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
        if self.flag("alibi"):
            return 0
        named = self.config.get("partial_rotary_factor") or self.config.get("rotary_pct")
        return self.optional("rotary_dim") or int(head_dim * float(named or self.family.rotated))

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
        every = every or self.family.full_attention_every
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
