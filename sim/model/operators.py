"""What one rank of a pipeline stage computes in a forward pass: kernels with their true shapes, and its collectives."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from sim.model.precision import Precision
from sim.model.shapes import AttentionShape, MlpShape
from sim.model.sharding import Sharding
from sim.model.transformer import LayerGroup, Transformer

ACTIVATION_BYTES = 2
"""Bytes of an activation element between kernels: bf16 or fp16."""

LOGIT_BYTES = 4
"""Engines sample from float32 logits (vLLM V1 sampler, `logits.to(torch.float32)`)."""

_SCORE_PASSES = 4
"""Passes over the scores in standard attention: S written, read, P written, read (Dao et al. 2022, algorithm 0)."""

Per = Literal["token", "sampled"]
"""Rows of a kernel: every token of the pass, or only the tokens whose logits are sampled."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """Which neighbouring operations run as one kernel."""

    attention: bool = True
    """Scores stay on chip (FlashAttention); otherwise the score matrix goes through HBM."""
    elementwise: bool = True
    """Engine kernels: residual add with norm, gate with product, one rope; otherwise one kernel an operation."""


@dataclass(frozen=True, slots=True)
class Gemm:
    """`count` products [rows, k] x [k, n] a pass; `dtype` names the weights as a kernel backend knows them."""

    name: str
    n: int
    k: int
    dtype: str
    count: int
    per: Per = "token"


@dataclass(frozen=True, slots=True)
class Attention:
    """`count` attentions a pass, with the heads of one rank."""

    kind: Literal["gqa", "mla"]
    heads: int
    kv_heads: int
    head_dim: int
    reach: int | None
    """Tokens that a query can see at most (sliding window or attention chunk), or None for all."""
    count: int
    kv_dtype: str
    kv_bytes_per_token: float
    """Bytes that one cached token of one layer takes on this rank, and that its reader reads."""
    score_bytes_per_pair: float
    """HBM traffic for each (query, visible key) pair of one layer, over all heads: 0 where attention is fused."""
    kernels: int
    """Kernels an attention: 1 fused; 3 unfused (scores, softmax, product with the values)."""
    kv_lora_rank: int = 0
    rope_dim: int = 0
    nope_dim: int = 0
    v_dim: int = 0


@dataclass(frozen=True, slots=True)
class Moe:
    """`count` layers of routed experts, as one rank computes them; alignment, activation and sum are part of it."""

    hidden: int
    intermediate: int
    experts: int
    local_experts: int
    top_k: int
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class Elementwise:
    """`count` times `kernels` memory-bound kernels that together read and write `bytes_per_token` in HBM."""

    name: str
    bytes_per_token: float
    kernels: int
    count: int
    per: Per = "token"


@dataclass(frozen=True)
class StageOperators:
    """All that ONE rank of a stage does in a pass; equal kernels of different layers are merged."""

    gemms: list[Gemm] = field(default_factory=list)
    attentions: list[Attention] = field(default_factory=list)
    moes: list[Moe] = field(default_factory=list)
    elementwise: list[Elementwise] = field(default_factory=list)
    layers: int = 0
    all_reduces: int = 0
    """All-reduces over the TP group a pass, each of `all_reduce_bytes_per_token` for every token of the pass."""
    all_reduce_bytes_per_token: float = 0.0
    logits_gather_bytes_per_sampled: float = 0.0
    """What this rank gives to the all-gather of logits, a sampled token; 0 where there is none."""
    expert_exchanges: int = 0
    """MoE layers whose tokens go to the experts of other replicas and back: an all-gather and a reduce-scatter each
    over TP x DP ranks (vLLM's default all2all backend); 0 without expert parallelism over replicas."""
    expert_exchange_bytes_per_token: float = 0.0
    stage_send_bytes_per_token: float = 0.0
    """Hidden state and residual sent to the next pipeline stage; 0 on the last."""


def operators(
    model: Transformer, precision: Precision, sharding: Sharding, stage: int = 0, fusion: Fusion | None = None
) -> StageOperators:
    """What one rank of pipeline stage `stage` computes in a pass.

    The quantisation of activations for fp8 and nvfp4 GEMMs is part of those GEMMs (`KernelBackend.gemm`), not an
    elementwise kernel here. Biases are added in the GEMMs' epilogue.

    Args:
        precision: resolved types of weights and KV cache.
        sharding: a cut that `Sharding.check` accepts.
        fusion: what runs as one kernel; None: everything that engines fuse.
    """
    build = _Builder(model, precision, sharding, fusion or Fusion())
    if sharding.is_first(stage):
        build.embedding()
    groups = sharding.stage_groups(model, stage)
    for group in groups:
        build.attention(group.attention, group.count)
        build.mlp(group.mlp, group.count)
    build.norms(sum(group.count for group in groups), final=sharding.is_last(stage))
    if sharding.is_last(stage):
        build.head()
    return build.result(groups, stage)


class _Builder:
    """Collects kernels, merging those of equal shape."""

    def __init__(self, model: Transformer, precision: Precision, sharding: Sharding, fusion: Fusion) -> None:
        self.model, self.precision, self.sharding, self.fusion = model, precision, sharding, fusion
        self.gemms: Counter[tuple[str, int, int, str, Per]] = Counter()
        self.moes: Counter[tuple[int, int, int, int, int, str]] = Counter()
        self.small: Counter[tuple[str, float, int, Per]] = Counter()
        self.attentions: Counter[AttentionShape] = Counter()

    def gemm(self, name: str, n: int, k: int, part: str, count: int, per: Per = "token") -> None:
        self._gemm(name, n, k, self.precision.arithmetic(part), count, per)

    def pointwise(self, name: str, elements: float, kernels: int, count: int, per: Per = "token") -> None:
        """`elements`: activations read and written a token."""
        self.small[(name, elements * ACTIVATION_BYTES, kernels, per)] += count

    def embedding(self) -> None:
        # with TP, ids outside a rank's slice are masked before and after the look-up
        self.pointwise("embedding", 2 * self.model.hidden, 3 if self.sharding.tensor > 1 else 1, 1)
        if self.model.learned_positions:
            self.pointwise("positions", 3 * self.model.hidden, 1, 1)  # a vector looked up and added
        if self.model.embedding_norm:
            self._norm("norm", self.model.hidden, 1, 1)

    def attention(self, shape: AttentionShape, count: int) -> None:
        h = self.model.hidden
        if shape.kind == "mla":
            self._latent_projections(shape, count)
        else:
            self.gemm("qkv", (shape.heads + 2 * shape.kv_heads) * shape.head_dim, h, "attention", count)
        self.gemm("attention_output", h, shape.heads * shape.value_dim, "attention_output", count)
        self._rope_and_cache(shape, count)
        self.attentions[shape] += count

    def mlp(self, shape: MlpShape, count: int) -> None:
        h, up = self.model.hidden, 2 if shape.gated else 1
        if shape.kind == "dense":
            self._dense("gate_up", "down", shape.intermediate, up, "mlp", count)
            return
        self.gemm("router", shape.experts, h, "router", count)
        # router logits read; top-k weights (float32) and ids (int32) written: two activation elements each
        self.pointwise("routing", shape.experts + 4 * shape.top_k, 1, count)
        dtype = self.precision.arithmetic("experts")
        key = (h, shape.expert_intermediate, shape.experts, shape.local_experts, shape.top_k, dtype)
        self.moes[key] += count
        if shape.shared_intermediate:
            self._dense("shared_gate_up", "shared_down", shape.shared_intermediate, up, "shared_experts", count)
            self.pointwise("shared_add", 3 * h, 1, count)

    def norms(self, layers: int, final: bool) -> None:
        """Norms of `layers` layers, and the `final` one; an engine adds the residual in the norm that follows."""
        h = self.model.hidden
        norms, additions = layers * self.model.norms_per_layer + (1 if final else 0), 2 * layers
        together = min(norms, additions) if self.fusion.elementwise else 0
        # hidden state and residual, both read and written
        self._count("add_norm", 4 * h, 1, together)
        self._norm("norm", h, 1, norms - together)
        self._count("add", 3 * h, 1, additions - together)

    def head(self) -> None:
        vocab = self.model.vocab
        self.gemm("head", self.sharding.vocab_rows(vocab), self.model.hidden, "head", 1, "sampled")
        # float32 copy of the logits (16 bit read), softmax (read, written), choice (read)
        sampling_bytes = vocab * (ACTIVATION_BYTES + 4 * LOGIT_BYTES)
        self.pointwise("sampling", sampling_bytes / ACTIVATION_BYTES, 3, 1, "sampled")

    def result(self, groups: list[LayerGroup], stage: int) -> StageOperators:
        tensor, hidden_bytes = self.sharding.tensor, self.model.hidden * ACTIVATION_BYTES
        layers = sum(group.count for group in groups)
        moe_layers = sum(group.count for group in groups if group.mlp.kind == "moe")
        crosses_replicas = self.sharding.expert_parallel and self.sharding.data > 1
        exchanges = moe_layers if crosses_replicas else 0
        reduces = layers * (1 if self.model.parallel_block else 2) + (1 if self.sharding.is_first(stage) else 0)
        last = self.sharding.is_last(stage)
        return StageOperators(
            gemms=[Gemm(name, n, k, dtype, count, per) for (name, n, k, dtype, per), count in self.gemms.items()],
            attentions=[self._attention(shape, count) for shape, count in self.attentions.items()],
            moes=[Moe(*key, count) for key, count in self.moes.items()],
            elementwise=[Elementwise(name, b, n, count, per) for (name, b, n, per), count in self.small.items()],
            layers=layers,
            # the exchange's reduce-scatter already sums the experts' outputs
            all_reduces=reduces - exchanges if tensor > 1 else 0,
            all_reduce_bytes_per_token=float(hidden_bytes) if tensor > 1 else 0.0,
            logits_gather_bytes_per_sampled=(
                float(self.sharding.vocab_rows(self.model.vocab) * ACTIVATION_BYTES) if last and tensor > 1 else 0.0
            ),
            expert_exchanges=exchanges,
            expert_exchange_bytes_per_token=float(hidden_bytes) if exchanges else 0.0,
            stage_send_bytes_per_token=0.0 if last else 2.0 * hidden_bytes,
        )

    def _gemm(self, name: str, n: int, k: int, dtype: str, count: int, per: Per = "token") -> None:
        self.gemms[(name, n, k, dtype, per)] += count

    def _dense(self, first: str, second: str, columns: int, up: int, part: str, count: int) -> None:
        self.gemm(first, up * columns, self.model.hidden, part, count)
        self.gemm(second, self.model.hidden, columns, part, count)
        fused = self.fusion.elementwise or up == 1
        # fused: gate and up read, product written; unfused: activation (read, written), product (two read, one written)
        self.pointwise("activation", (up + 1) * columns if fused else 5 * columns, 1 if fused else 2, count)

    def _latent_projections(self, shape: AttentionShape, count: int) -> None:
        h, query = self.model.hidden, shape.heads * (shape.nope_dim + shape.rope_dim)
        latent = shape.kv_lora_rank + shape.rope_dim
        if shape.q_lora_rank:
            self.gemm("q_a_and_kv_a", shape.q_lora_rank + latent, h, "attention", count)
            self.gemm("q_b", query, shape.q_lora_rank, "attention", count)
        else:
            self.gemm("q", query, h, "attention", count)
            self.gemm("kv_a", latent, h, "attention", count)
        # Absorbed into query and output (a batched product a head, in 16 bit as vLLM's W_UK and W_UV), or applied to
        # the latent in prefill: the same weights and the same FLOPs a token.
        self._gemm("kv_b", shape.heads * (shape.nope_dim + shape.v_dim), shape.kv_lora_rank, "bf16", count)
        self._norm("latent_norm", shape.q_lora_rank + shape.kv_lora_rank, 2 if shape.q_lora_rank else 1, count)

    def _rope_and_cache(self, shape: AttentionShape, count: int) -> None:
        keys = 1 if shape.kind == "mla" else shape.kv_heads
        rotated = (shape.heads + keys) * shape.rope_dim
        if rotated:
            # unfused: x cos, rotate half (negate, concatenate), x sin, sum, for queries and for keys
            # (apply_rotary_pos_emb of transformers): 10 passes of an element in 5 kernels each
            fused = self.fusion.elementwise
            self.pointwise("rope", (2 if fused else 10) * rotated, 1 if fused else 10, count)
        if shape.qk_norm:
            self._norm("qk_norm", (shape.heads + shape.kv_heads) * shape.head_dim, 2, count)
        read = shape.kv_elements * ACTIVATION_BYTES
        written = shape.kv_elements * self.precision.kv_bytes(shape.head_dim)
        self.pointwise("kv_cache_write", (read + written) / ACTIVATION_BYTES, 1, count)

    def _attention(self, shape: AttentionShape, count: int) -> Attention:
        fused = self.fusion.attention
        return Attention(
            kind=shape.kind,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            reach=shape.reach,
            count=count,
            kv_dtype="bf16" if self.precision.kv_cache == "fp16" else self.precision.kv_cache,
            kv_bytes_per_token=shape.kv_elements * self.precision.kv_bytes(shape.head_dim),
            score_bytes_per_pair=0.0 if fused else float(_SCORE_PASSES * ACTIVATION_BYTES * shape.heads),
            kernels=1 if fused else 3,
            kv_lora_rank=shape.kv_lora_rank,
            rope_dim=shape.rope_dim,
            nope_dim=shape.nope_dim,
            v_dim=shape.v_dim,
        )

    def _norm(self, name: str, elements: int, norms: int, count: int) -> None:
        """`count` times `norms` norms over `elements` in all, not joined with an addition.

        Unfused as transformers' RMSNorm runs: to float32, square, mean, rsqrt, product, back to 16 bit, product with
        the weight: 18 passes of a 16-bit element (float32 counts twice) in 7 kernels.
        """
        if self.fusion.elementwise:
            self._count(name, 2 * elements, norms, count)
        else:
            self._count(name, 18 * elements, 7 * norms, count)

    def _count(self, name: str, elements: float, kernels: int, count: int) -> None:
        if count:
            self.pointwise(name, elements, kernels, count)
