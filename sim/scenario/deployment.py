"""The sections of a scenario about machines and engine: precision, cluster, deployment, engine, fusion, slo."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from sim.errors import nearest
from sim.scenario.experts import BalancedExperts, ExpertLoad
from sim.scenario.fields import Bytes, FilePath, NameOrPath, PositiveDuration, Section, name_or_object, refuse
from sim.scenario.fleet import Autoscale, ColdStart, FleetEvent
from sim.scenario.speculative import Speculative

WeightType = Literal["bf16", "fp16", "fp8", "fp8_block", "w8a8", "int8", "int4", "nvfp4", "mxfp4"]
CacheType = Literal["bf16", "fp16", "fp8", "int8", "int4", "nvfp4"]


SCHEDULERS = ("vllm", "chunked", "prefill_first", "orca", "static", "sjf", "priority", "fair_share")


class Precision(Section):
    """Number formats of what lives in GPU memory; null: what the model's config.json says."""

    weights: WeightType | None = None
    """Format of the weights of linear layers. fp8 has a scale a channel, fp8_block one per 128 x 128 weights (unless the
    checkpoint itself is in fp8: then its own). int8 and int4 are weight-only: they compute in bf16."""
    activation_scales: Literal["dynamic", "static"] | None = None
    """Scales of activations in fp8: found token by token, or known from the checkpoint; null: what its config.json says, else
    the engine's way."""
    kv_cache: CacheType | None = None
    """Format of keys and values in the cache."""


class Cluster(Section):
    """The machines: a topology and its parameters."""

    model_config = ConfigDict(extra="allow")

    topology: NameOrPath
    """A topology by name, such as dgx-h100, or the path of your own topology file."""
    nodes: Annotated[int, Field(ge=1)] | None = None
    """How many nodes of that topology; null: the topology's own default."""
    gpu: NameOrPath | None = None
    """Swaps every GPU of the topology for this kind."""

    @property
    def parameters(self) -> dict[str, Any]:
        """What the topology is asked for: `nodes` if given, and every further key of this section."""
        given = {} if self.nodes is None else {"nodes": self.nodes}
        return {**given, **(self.model_extra or {})}


def _placement(value: object) -> object:
    if isinstance(value, list):
        names = [name for name in value if isinstance(name, str)]
        if len(names) < len(value) or not names:
            raise refuse(f"got {value!r}", "a placement list holds the names of GPUs, at least one")
        if len(set(names)) < len(names):
            raise refuse(f"got {value!r}, which names a GPU twice", "every rank needs a GPU of its own")
        return value
    if value not in ("pack", "spread"):
        hint = nearest(str(value), ("pack", "spread")) + " (or a list of GPU names)"
        raise refuse(f"got {value!r}", hint)
    return value


class Pool(Section):
    """Replicas of one kind: how they are cut, on which GPUs, and what they do."""

    name: Annotated[str, Field(min_length=1)]
    """What results call it."""
    role: Literal["both", "prefill", "decode"] = "both"
    """prefill: computes prompts and sends their KV cache to a decode replica; both: serves requests to their end."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """Copies of the model in this pool."""
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """GPUs that share every layer of a replica."""
    pipeline_parallel_size: Annotated[int, Field(ge=1)] = 1
    """Stages of a replica."""
    gpu: NameOrPath | None = None
    """Kind of this pool's GPUs; null: the topology's."""


class Deployment(Section):
    """How the model is cut over GPUs."""

    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """GPUs that share every layer."""
    pipeline_parallel_size: Annotated[int, Field(ge=1)] = 1
    """Stages that the layers are divided into."""
    data_parallel_size: Annotated[int, Field(ge=1)] = 1
    """Replicas of the whole model."""
    enable_expert_parallel: bool = False
    """Spread whole experts of MoE layers over the GPUs instead of cutting every expert; with data_parallel_size above 1 over
    those of all replicas, which then run in lock-step (DP attention)."""
    expert_load: ExpertLoad = Field(default_factory=lambda: BalancedExperts(kind="balanced"))
    """How tokens spread over the experts; needs enable_expert_parallel unless balanced."""
    all2all_backend: Literal["allgather_reducescatter", "deepep"] = "allgather_reducescatter"
    """How tokens reach the experts of other replicas: all to every GPU (vLLM's default), or only where their experts are."""
    two_batch_overlap: bool = False
    """Replicas in lock-step cut a batch in two halves, one of which computes while the other is exchanged, where that is
    sooner."""
    placement: Annotated[
        Literal["pack", "spread"] | list[str],
        BeforeValidator(_placement),
        WithJsonSchema({"anyOf": [{"enum": ["pack", "spread"]}, {"type": "array", "items": {"type": "string"}}]}),
    ] = "pack"
    """pack: fewest nodes; spread: one GPU a node in turn; or the names of the GPUs in rank order."""
    router: Literal[
        "least_outstanding",
        "round_robin",
        "random",
        "least_kv",
        "power_of_two",
        "prefix_affinity",
        "session_affinity",
        "session_hash",
    ] = "least_outstanding"
    """Which replica takes a request; prefix_affinity: the one that got the longest beginning of its prompt before."""
    pools: list[Pool] | None = None
    """Several kinds of replicas behind one router, or prefill and decode apart; instead of the sizes above."""
    kv_transfer: Literal["after_prefill", "layerwise"] = "after_prefill"
    """When a prefill replica sends the KV cache: once the prompt is done, or each layer as it is computed."""

    events: list[FleetEvent] = Field(default_factory=list)
    """Replicas that fail, start cold or come back while the fleet serves."""
    cold_start: ColdStart = Field(default_factory=ColdStart)
    """How long a replica that starts takes until it serves."""
    autoscale: Autoscale | None = None
    """Replicas come and go with the load, within those deployed; null: all are always there."""

    @model_validator(mode="after")
    def _changes_make_sense(self) -> Self:
        pools = self.pools or []
        replicas = sum(pool.replicas for pool in pools) if pools else self.data_parallel_size
        if not self.events and self.autoscale is None:
            return self
        if self.events and self.autoscale is not None:
            raise refuse("events and autoscale are both given", "give one of the two")
        staged = self.pipeline_parallel_size > 1 or any(pool.pipeline_parallel_size > 1 for pool in pools)
        shared = self.enable_expert_parallel and replicas > 1
        if staged or shared or any(pool.role != "both" for pool in pools):
            problem = "events or autoscale with pipeline stages, replicas in lock-step, or prefill and decode apart"
            raise refuse(problem, "use plain replicas")
        unknown = [event.replica for event in self.events if event.replica >= replicas]
        if unknown:
            raise refuse(f"events name replica {unknown[0]} of {replicas}", f"allowed: 0 to {replicas - 1}")
        most = 0 if self.autoscale is None else max(self.autoscale.min, self.autoscale.max or 1)
        if most > replicas:
            raise refuse(f"autoscale asks for {most} replicas of {replicas} deployed", "raise data_parallel_size")
        return self

    @model_validator(mode="after")
    def _experts_make_sense(self) -> Self:
        if self.expert_load.skew and not self.enable_expert_parallel:
            raise refuse("a skewed expert_load without enable_expert_parallel, where every GPU has a slice of every expert",
                         "set enable_expert_parallel: true, or leave expert_load out")  # fmt: skip
        if self.two_batch_overlap and not self.enable_expert_parallel:
            raise refuse("two_batch_overlap without enable_expert_parallel: nothing is exchanged", "leave it out")
        return self

    @model_validator(mode="after")
    def _pools_make_sense(self) -> Self:
        if self.pools is None:
            return self
        sizes = (self.tensor_parallel_size, self.pipeline_parallel_size, self.data_parallel_size)
        if sizes != (1, 1, 1):
            raise refuse("pools are given beside tensor, pipeline or data_parallel_size", "give the sizes in each pool")
        roles = {pool.role for pool in self.pools}
        if roles not in ({"both"}, {"prefill", "decode"}):
            got = ", ".join(sorted(roles)) or "no pool"
            raise refuse(f"got the roles {got}", "allowed: all both, or prefill and decode with at least one pool each")
        return self


def _max_model_len(value: object) -> object:
    if value is None or value == "config" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise refuse(f"got {value!r}", "allowed: a number of tokens (1 or more), config, or null")


class Engine(Section):
    """The serving engine; names and defaults are vLLM's."""

    preset: Literal["ideal", "vllm", "trtllm", "trtllm-cpp", "sglang"] = "vllm"
    """Whose overheads and defaults: trtllm is TensorRT-LLM's PyTorch backend (1.0 on), trtllm-cpp its compiled engines before;
    ideal is the back of an envelope: printed peaks, no fixed costs, no host time."""
    scheduler: name_or_object(SCHEDULERS) = "vllm"  # type: ignore[valid-type]
    """Batching policy (sjf: shortest job first; fair_share: between tenants), or `module:object` for your own."""
    max_num_seqs: Annotated[int, Field(ge=1)] = 256
    """Requests that may run at the same time on one replica."""
    max_num_batched_tokens: Annotated[int, Field(ge=1)] = 8192
    """Tokens that one iteration may process."""
    enable_chunked_prefill: bool = True
    """Prompts may be cut to the token budget of an iteration."""
    enable_prefix_caching: bool = False
    """Keep KV blocks of finished requests for prompts that begin alike."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Share of a GPU's memory for weights, activations and KV cache."""
    max_model_len: Annotated[
        int | Literal["config"] | None,
        BeforeValidator(_max_model_len),
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "config"}, {"type": "null"}]}),
    ] = None
    """Longest prompt + output in tokens; null: the longest of the workload; config: what config.json says."""
    block_size: Annotated[int, Field(ge=1)] = 16
    """Tokens in a KV block."""
    num_gpu_blocks_override: Annotated[int, Field(ge=1)] | None = None
    """KV blocks of a replica, instead of what the memory ledger finds."""
    version: str | None = None
    """Version of the engine; null: the newest known. With the presets vllm and ideal it is the vLLM, up to 0.33, whose scheduling
    rules are mirrored; with trtllm and trtllm-cpp the TensorRT-LLM whose server or attention kernels run; sglang has one."""
    api_server: bool = True
    """Clients reach the engine over HTTP, and every token is streamed to them; false: they call it in their own process."""
    cuda_graphs: bool = True
    """Replay iterations from CUDA graphs where the engine captures them; false: the host launches every kernel."""
    async_scheduling: bool | None = None
    """Schedule the next iteration while the GPU runs this one; null: the preset's default."""
    scheduler_reserve_full_isl: bool = True
    """Admit a request only if its whole prompt fits into the free blocks."""
    watermark: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the KV blocks kept free when a request is admitted."""
    long_prefill_token_threshold: Annotated[int, Field(ge=0)] = 0
    """Most tokens of one prompt in an iteration when others are there; 0: no limit."""
    on_kv_full: Literal["preempt", "swap", "oom"] = "preempt"
    """preempt: recompute the latest; swap: move it to host memory; oom: no admission gate, the first failed allocation
    ends the run."""

    swap_space_bytes: Bytes = Field(default=4 * 2.0**30, alias="swap_space", json_schema_extra={"default": "4 GiB"})
    """Host memory for the KV blocks of each GPU, under on_kv_full: swap; beyond it, requests are recomputed."""
    kv_offloading_bytes: Bytes = Field(default=0.0, alias="kv_offloading_size")
    """Host memory of a replica (all its GPUs together) for blocks evicted from the prefix cache, from where they are fetched if
    that is sooner than computing them; 0: none."""
    calibration: FilePath | None = None
    """A calibration file of your own server, kernels or fabric, as `twowalls calibrate` writes it; relative paths start at the
    folder of the scenario file."""
    speculative: Speculative | None = None
    """Speculative decoding; null: one token an iteration."""

    @property
    def rules_version(self) -> str | None:
        """Version of vLLM whose scheduling rules are mirrored; None: the newest known."""
        return self.version if self.preset in ("vllm", "ideal") else None

    @model_validator(mode="after")
    def _speculation_is_possible(self) -> Self:
        if self.speculative is None:
            return self
        if self.scheduler not in ("vllm", "chunked") or self.on_kv_full != "preempt":
            raise refuse(
                "speculative with another scheduler than vllm, or another on_kv_full than preempt", "leave one out"
            )
        if self.async_scheduling:
            raise refuse(
                "speculative with async_scheduling: true", "what is accepted decides what comes next: leave it out"
            )
        needed = (1 + self.speculative.num_speculative_tokens) * self.max_num_seqs
        if needed > self.max_num_batched_tokens:
            problem = f"max_num_batched_tokens ({self.max_num_batched_tokens}) cannot hold {needed} tokens to verify"
            raise refuse(problem, "raise it, or lower max_num_seqs")
        return self

    @model_validator(mode="after")
    def _can_swap(self) -> Self:
        if self.on_kv_full == "swap" and self.scheduler not in ("vllm", "chunked"):
            raise refuse(f"on_kv_full swap with scheduler {self.scheduler}", "use vllm, or on_kv_full: preempt")
        return self

    @model_validator(mode="after")
    def _can_offload(self) -> Self:
        if not self.kv_offloading_bytes:
            return self
        if not self.enable_prefix_caching:
            raise refuse("kv_offloading_size without a prefix cache", "set enable_prefix_caching: true")
        if self.on_kv_full == "swap" or self.speculative is not None:
            raise refuse("kv_offloading_size with on_kv_full swap or speculative", "leave one of the two out")
        return self

    @model_validator(mode="after")
    def _budget_holds_a_batch(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            problem = f"max_num_batched_tokens ({self.max_num_batched_tokens}) is less than max_num_seqs"
            raise refuse(f"{problem} ({self.max_num_seqs})", "raise the first or lower the second, as vLLM demands")
        return self

    @model_validator(mode="after")
    def _policy_can_do_it(self) -> Self:
        whole = self.scheduler in ("prefill_first", "orca", "static")
        if self.scheduler == "chunked" and not self.enable_chunked_prefill:
            raise refuse("scheduler chunked with enable_chunked_prefill: false", "leave one of the two out")
        if whole and self.long_prefill_token_threshold:
            raise refuse(
                f"long_prefill_token_threshold with {self.scheduler}, which never cuts a prompt", "leave it out"
            )
        if self.scheduler in ("orca", "static") and self.enable_prefix_caching:
            problem = f"enable_prefix_caching with {self.scheduler}, whose reserved KV memory cannot be shared"
            raise refuse(problem, "leave it out")
        return self


class Fusion(Section):
    """Which kernels are fused; what is not fused writes and reads its intermediate through HBM."""

    attention: bool = True
    """false: the score matrix goes through HBM."""
    elementwise: bool = True
    """false: activations of elementwise operators go through HBM."""


class Slo(Section):
    """Limits that a request must keep to count as good."""

    ttft_s: PositiveDuration | None = Field(default=None, alias="ttft")
    """Time to first token."""
    tpot_s: PositiveDuration | None = Field(default=None, alias="tpot")
    """Mean time per output token after the first."""
    e2el_s: PositiveDuration | None = Field(default=None, alias="e2el")
    """End-to-end latency."""

    @property
    def limits_s(self) -> dict[str, float]:
        """Limit in seconds by metric (ttft, tpot, e2el), those given."""
        limits = {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2el": self.e2el_s}
        return {metric: limit for metric, limit in limits.items() if limit is not None}
