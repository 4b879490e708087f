"""The memory balance of a deployment, GPU by GPU: weights + activations + overhead + KV pool = usable memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from sim.model.activation import activation_peak_bytes
from sim.model.kv_layout import KvLayout, kv_bytes_per_token, kv_layout
from sim.model.operators import ACTIVATION_BYTES
from sim.model.precision import Precision
from sim.model.sharding import Sharding
from sim.model.transformer import ParameterCounts, Transformer
from sim.units import format_bytes

MIB, GIB = 2.0**20, 2.0**30

Accounting = Literal["engine", "nominal"]


class GpuCapacity(Protocol):
    """What the balance needs to know of a GPU (`sim.hardware.gpu.Gpu` has it)."""

    @property
    def memory_bytes(self) -> float: ...
    @property
    def visible_memory_bytes(self) -> float: ...


@dataclass(frozen=True, slots=True)
class RuntimeOverhead:
    """What an engine charges to its memory budget beside weights, activations and KV cache, on each GPU."""

    runtime_bytes: float
    """Driver context (where the engine counts it), loaded kernels, library workspaces."""
    communicator_bytes: tuple[tuple[int, float], ...]
    """(GPUs of a replica, bytes of NCCL and custom all-reduce buffers), ascending; each holds up to the next."""
    source: str

    def bytes_for(self, ranks: int) -> float:
        """Bytes on a GPU of a replica of `ranks` GPUs."""
        buffers = [size for smallest, size in self.communicator_bytes if ranks >= smallest]
        return self.runtime_bytes + (buffers[-1] if buffers else 0.0)


CONTEXT_OUTSIDE_BUDGET = RuntimeOverhead(
    0.45 * GIB,
    ((2, 342 * MIB), (4, 392 * MIB)),
    "runtime: mean over the KV blocks that vLLM 0.15.1 reports on an H100 for Llama-2-7B (0.26 GiB), Mistral-Nemo-12B "
    "(0.60) and Qwen2.5-7B (0.49); communicators: nccl_mem of aiconfigurator's h100_sxm.yaml",
)
"""Engines that take their baseline after the driver context exists, which then lives in the share of memory that
gpu_memory_utilization leaves (vLLM V1). The default."""

CONTEXT_IN_BUDGET = RuntimeOverhead(
    1.79 * GIB,
    ((2, 1.79 * GIB),),
    "vLLM pull request 10511 (December 2024): non-torch memory of Llama-3-8B, 1.79 GiB at TP1, 3.58 GiB at TP2",
)
"""Engines that charge the driver context and every communicator to the budget (vLLM before V1): the cautious case."""

NO_OVERHEAD = RuntimeOverhead(0.0, (), "the back of an envelope")


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """Engine options and lengths that decide how memory is shared out."""

    gpu_memory_utilization: float = 0.9
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    block_size: int = 16
    num_gpu_blocks_override: int | None = None
    accounting: Accounting = "engine"
    overhead: RuntimeOverhead = CONTEXT_OUTSIDE_BUDGET
    longest_sequence_tokens: int = 1
    """Prompt + output of the longest request, or max_model_len: it must fit into the pool."""
    mean_sequence_tokens: float | None = None
    """Prompt + output of the mean request, for `max_sequences`; None: the longest."""
    concurrency: int | None = None
    """Sequences that the user wants at a time, for the suggestions; None: not said."""


@dataclass(frozen=True, slots=True)
class GpuLedger:
    """The balance of one GPU, in bytes."""

    gpu: str
    stage: int
    capacity_bytes: float
    """What the GPU shows to the engine (`engine`) or its printed size (`nominal`)."""
    usable_bytes: float
    weights_bytes: float
    weights_by_class: dict[str, float]
    activation_bytes: float
    overhead_bytes: float
    kv_pool_bytes: float
    """What is left for the KV cache (0 where nothing is), or what `num_gpu_blocks_override` asks for."""
    shortfall_bytes: float
    """By how much weights, activations and overhead exceed the usable memory; 0 where they do not."""
    kv_bytes_per_token: float

    @property
    def needed_bytes(self) -> float:
        """Everything but the KV cache."""
        return self.weights_bytes + self.activation_bytes + self.overhead_bytes

    def sum_text(self) -> str:
        """The sum, for people."""
        parts = [f"{format_bytes(self.weights_bytes)} weights"]
        if self.activation_bytes:
            parts.append(f"{format_bytes(self.activation_bytes)} activations")
        if self.overhead_bytes:
            parts.append(f"{format_bytes(self.overhead_bytes)} overhead")
        return f"{' + '.join(parts)} = {format_bytes(self.needed_bytes)} of {format_bytes(self.usable_bytes)} usable"


@dataclass(frozen=True)
class MemoryLedger:
    """Where the memory of a deployment goes, and how many tokens its KV cache holds."""

    accounting: Accounting
    parameters: int
    weights_bytes: float
    """One whole copy of the model."""
    kv_bytes_per_token: float
    """Of the whole model, unsharded."""
    per_gpu: tuple[GpuLedger, ...]
    block_size: int
    num_blocks: int
    """KV blocks of a replica: the fewest that any of its GPUs holds (vLLM's num_gpu_blocks)."""
    usable_blocks: int
    """Blocks that sequences can take: vLLM keeps one as the null block."""
    layout: KvLayout
    """Block layout of the GPU with the fewest blocks."""
    kv_tokens_capacity: int
    """Tokens that the KV cache of one replica holds; for hybrid models at the longest sequence's length."""
    cautious_kv_tokens: int
    """The capacity if the engine charged context and communicators to the budget (`CONTEXT_IN_BUDGET`): where it is far
    below `kv_tokens_capacity`, or 0, the deployment stands on a knife's edge."""
    max_sequences: int
    """Sequences of the mean length that one replica holds at a time."""
    fits: bool
    reason: str
    """Why it does not fit, with the sum; or the sum of the fullest GPU where it does."""
    suggestions: tuple[str, ...] = field(default=())


def balance(
    model: Transformer,
    precision: Precision,
    sharding: Sharding,
    gpus: Sequence[GpuCapacity],
    gpu_names: Sequence[str],
    options: MemoryOptions,
) -> MemoryLedger:
    """The ledger without suggestions; see `sim.model.memory.ledger`."""
    layouts = [kv_layout(model, precision, sharding, s, options.block_size) for s in range(sharding.pipeline)]
    stages = [(index // sharding.tensor) % sharding.pipeline for index in range(len(gpus))]
    alike: dict[tuple[int, int], GpuLedger] = {}  # thousands of GPUs are of a few kinds
    for gpu, stage in zip(gpus, stages, strict=True):
        if (id(gpu), stage) not in alike:
            alike[id(gpu), stage] = _row(model, precision, sharding, layouts[stage], stage, gpu, options)
    ranks = zip(gpus, gpu_names, stages, strict=True)
    rows = tuple(replace(alike[id(gpu), stage], gpu=name) for gpu, name, stage in ranks)
    blocks = [math.floor(row.kv_pool_bytes / layouts[row.stage].block_bytes) for row in rows]
    fewest = min(range(len(rows)), key=blocks.__getitem__)
    layout, num_blocks = layouts[rows[fewest].stage], blocks[fewest]
    usable_blocks = max(0, num_blocks - (1 if options.accounting == "engine" else 0))
    mean = options.mean_sequence_tokens or options.longest_sequence_tokens
    problem = _problem(rows, layout, usable_blocks, options)
    nominal = options.accounting == "nominal"
    whole = Sharding().rank_parameters(model, 0)
    return MemoryLedger(
        accounting=options.accounting,
        parameters=whole.total,
        weights_bytes=sum(_weights(model, precision, whole, nominal).values()),
        kv_bytes_per_token=kv_bytes_per_token(model, precision),
        per_gpu=rows,
        block_size=options.block_size,
        num_blocks=num_blocks,
        usable_blocks=usable_blocks,
        layout=layout,
        kv_tokens_capacity=_capacity_tokens(layout, num_blocks, options.longest_sequence_tokens),
        cautious_kv_tokens=_capacity_tokens(layout, num_blocks, options.longest_sequence_tokens),
        max_sequences=usable_blocks // layout.blocks_of_sequence(math.ceil(mean)),
        fits=not problem,
        reason=problem or f"{rows[fewest].gpu}: {rows[fewest].sum_text()}",
    )


def _row(
    model: Transformer,
    precision: Precision,
    sharding: Sharding,
    layout: KvLayout,
    stage: int,
    gpu: GpuCapacity,
    options: MemoryOptions,
) -> GpuLedger:
    """The ledger of a GPU of a stage, which still lacks its name."""
    if options.accounting == "nominal":
        by_class = _weights(model, precision, Sharding().rank_parameters(model, 0), nominal=True)
        by_class = {part: size / sharding.ranks for part, size in by_class.items()}
        capacity_bytes = usable_bytes = gpu.memory_bytes
        activation_bytes = overhead_bytes = 0.0
    else:
        by_class = _weights(model, precision, sharding.rank_parameters(model, stage), nominal=False)
        capacity_bytes = gpu.visible_memory_bytes
        usable_bytes = options.gpu_memory_utilization * capacity_bytes
        tokens, sequences = options.max_num_batched_tokens, options.max_num_seqs
        activation_bytes = activation_peak_bytes(model, sharding, stage, tokens, sequences)
        overhead_bytes = options.overhead.bytes_for(sharding.ranks) + _derived_bytes(model, sharding, stage)
    weights_bytes = sum(by_class.values())
    rest_bytes = usable_bytes - weights_bytes - activation_bytes - overhead_bytes
    pool_bytes = max(0.0, rest_bytes)
    if options.num_gpu_blocks_override is not None:
        # the engine takes the user's word and only fails where the memory is really not there
        pool_bytes = options.num_gpu_blocks_override * layout.block_bytes
        rest_bytes = capacity_bytes - weights_bytes - activation_bytes - overhead_bytes - pool_bytes
    return GpuLedger(
        gpu="",
        stage=stage,
        capacity_bytes=capacity_bytes,
        usable_bytes=usable_bytes,
        weights_bytes=weights_bytes,
        weights_by_class=by_class,
        activation_bytes=activation_bytes,
        overhead_bytes=overhead_bytes,
        kv_pool_bytes=pool_bytes,
        shortfall_bytes=max(0.0, -rest_bytes),
        kv_bytes_per_token=layout.bytes_per_token,
    )


_NOMINAL_BYTES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "int8": 1.0, "int8_wo": 1.0}
"""Bytes of a weight on the back of an envelope, scales forgotten; the 4-bit types take 0.5."""


def _weights(model: Transformer, precision: Precision, counts: ParameterCounts, nominal: bool) -> dict[str, float]:
    """Bytes by class of parameters."""
    if nominal:
        size = _NOMINAL_BYTES.get(precision.weights, 0.5)
        return {part: count * size for part, count in counts.by_class().items()}
    return {part: count * precision.parameter_bytes(part, model.hidden) for part, count in counts.by_class().items()}


def _derived_bytes(model: Transformer, sharding: Sharding, stage: int) -> float:
    """Tables that the engine computes from the weights after loading.

    The cosines and sines of every position (vLLM keeps max_position_embeddings x rotated dimensions: 0.24 GiB for
    Mistral-Nemo), and under MLA 16-bit copies of kv_b cut for absorption (vLLM's W_UK and W_UV).
    """
    groups = sharding.stage_groups(model, stage)
    rope = max(group.attention.rope_dim for group in groups) * model.max_position
    absorbed = sum(
        group.count * group.attention.kv_lora_rank * group.attention.heads * (x.nope_dim + x.v_dim)
        for group in groups
        if (x := group.attention).kind == "mla"
    )
    return float((rope + absorbed) * ACTIVATION_BYTES)


def _capacity_tokens(layout: KvLayout, num_blocks: int, longest_tokens: int) -> int:
    if len(layout.groups) == 1 and layout.groups[0].reach is None:
        return num_blocks * layout.block_size
    return math.floor(num_blocks / layout.blocks_of_sequence(longest_tokens) * longest_tokens)


def _problem(rows: Sequence[GpuLedger], layout: KvLayout, usable_blocks: int, options: MemoryOptions) -> str:
    """Why the deployment does not fit, with the sum shown; empty where it fits."""
    worst = max(rows, key=lambda row: row.shortfall_bytes)
    if worst.shortfall_bytes > 0:
        pool = f" + {format_bytes(worst.kv_pool_bytes)} KV blocks asked for" if worst.kv_pool_bytes else ""
        return f"{worst.gpu}: {worst.sum_text()}{pool}; {format_bytes(worst.shortfall_bytes)} too much"
    tokens = options.longest_sequence_tokens
    if layout.blocks_of_sequence(tokens) > usable_blocks:
        fullest = min(rows, key=lambda row: row.kv_pool_bytes)
        needed_bytes = layout.blocks_of_sequence(tokens) * layout.block_bytes
        left = format_bytes(usable_blocks * layout.block_bytes)
        needed = f"one sequence of {tokens:,} tokens needs {format_bytes(needed_bytes)} of KV, {left} are left"
        return f"{fullest.gpu}: {fullest.sum_text()}; {needed}"
    return ""
