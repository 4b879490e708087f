"""The memory ledger of a deployment: does it fit, how many tokens can it hold, and what would make it fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from sim.model.balance import CONTEXT_IN_BUDGET, GpuCapacity, MemoryLedger, MemoryOptions, balance
from sim.model.precision import WEIGHT_WORDS, Precision, weight_bytes
from sim.model.sharding import Sharding, legal_tensor_sizes
from sim.model.transformer import Transformer
from sim.units import format_bytes

_SUGGESTED_WEIGHTS = ("fp8", "int8", "int4")
_HIGHEST_UTILIZATION = 0.95
"""Above it the CUDA graphs, which live outside the budget, no longer fit beside it on 80 GB cards."""


def ledger(
    model: Transformer,
    precision: Precision,
    sharding: Sharding,
    gpus: Sequence[GpuCapacity],
    gpu_names: Sequence[str],
    options: MemoryOptions,
) -> MemoryLedger:
    """Where the memory of every GPU goes, whether the deployment fits, and what else would.

    KV blocks are counted as vLLM counts them: floor((utilisation x visible memory - weights - activation peak -
    overhead) / (block_size x KV bytes a token)), the fewest over all ranks. `nominal` accounting sets parameters x
    bytes against the printed size of the card and leaves the rest to the KV cache.

    Args:
        gpus: one entry a rank, in the order replica, stage, tensor rank.
        gpu_names: what to call each of them.

    Raises:
        InputError: the sharding does not cut the model.
    """
    sharding.check(model)
    found = balance(model, precision, sharding, gpus, gpu_names, options)
    cautious = balance(model, precision, sharding, gpus, gpu_names, replace(options, overhead=CONTEXT_IN_BUDGET))
    found = replace(found, cautious_kv_tokens=cautious.kv_tokens_capacity)
    if _suffices(found, options):
        return found
    return replace(found, suggestions=tuple(_suggestions(found, model, precision, sharding, gpus, options)))


def ledger_dict(found: MemoryLedger) -> dict[str, Any]:
    """The ledger as one JSON object, with the stable keys of `twowalls memory --json`."""
    keys = (
        "accounting", "fits", "reason", "parameters", "weights_bytes", "kv_bytes_per_token", "kv_tokens_capacity",
        "cautious_kv_tokens", "num_blocks", "block_size", "max_sequences",
    )  # fmt: skip
    content: dict[str, Any] = {key: getattr(found, key) for key in keys}
    content["per_gpu"] = [asdict(row) for row in found.per_gpu]
    content["suggestions"] = list(found.suggestions)
    return content


def _suffices(found: MemoryLedger, options: MemoryOptions) -> bool:
    return found.fits and (options.concurrency is None or found.max_sequences >= options.concurrency)


def _suggestions(
    found: MemoryLedger,
    model: Transformer,
    precision: Precision,
    sharding: Sharding,
    gpus: Sequence[GpuCapacity],
    options: MemoryOptions,
) -> Iterator[str]:
    """What would hold the asked-for sequences: every line is a ledger that was computed and found to do so."""
    smallest = min(gpus, key=lambda gpu: gpu.visible_memory_bytes)

    def attempt(types: Precision, cut: Sharding, changed: MemoryOptions) -> MemoryLedger | None:
        ranks = cut.ranks * cut.data
        tried = balance(model, types, cut, [smallest] * ranks, [f"gpu{i}" for i in range(ranks)], changed)
        return tried if _suffices(tried, changed) else None

    legal = legal_tensor_sizes(model, sharding.expert_parallel)
    for word in _SUGGESTED_WEIGHTS:
        types = replace(precision, weights=WEIGHT_WORDS[word])
        if weight_bytes(types.weights, model.hidden) >= weight_bytes(precision.weights, model.hidden):
            continue
        cuts = (replace(sharding, tensor=tensor) for tensor in legal if tensor <= sharding.tensor)
        if tried := next((x for cut in cuts if (x := attempt(types, cut, options))), None):
            count = len(tried.per_gpu)
            size = format_bytes(tried.weights_bytes)
            yield f"{word} weights fit: {size} on {count} GPU{'s' if count > 1 else ''}, {_room(tried)}"
    wider = (tensor for tensor in legal if tensor > sharding.tensor)
    for tensor in wider:
        if tried := attempt(precision, replace(sharding, tensor=tensor), options):
            yield f"TP{tensor} fits: {format_bytes(tried.per_gpu[0].weights_bytes)} of weights a GPU, {_room(tried)}"
            break
    if precision.kv_cache in ("bf16", "fp16") and (
        tried := attempt(replace(precision, kv_cache="fp8"), sharding, options)
    ):
        yield f"an fp8 KV cache fits: {_room(tried)}"
    raised = replace(options, gpu_memory_utilization=_HIGHEST_UTILIZATION)
    if options.accounting == "engine" and options.gpu_memory_utilization < _HIGHEST_UTILIZATION:
        tried = attempt(precision, sharding, raised)
        if tried:
            yield f"gpu_memory_utilization {_HIGHEST_UTILIZATION} fits: {_room(tried)}"
    yield from _smaller_load(found, options)


def _smaller_load(found: MemoryLedger, options: MemoryOptions) -> Iterator[str]:
    """What the deployment as it stands can serve."""
    mean = math.ceil(options.mean_sequence_tokens or options.longest_sequence_tokens)
    if found.fits:
        yield f"at most {found.max_sequences:,} sequences of {mean:,} tokens at a time"
    elif found.usable_blocks and not any(row.shortfall_bytes for row in found.per_gpu):
        longest = _longest_tokens(found)
        yield f"sequences of at most {longest:,} tokens"


def _longest_tokens(found: MemoryLedger) -> int:
    """Tokens of the longest sequence that the pool holds alone, a whole number of blocks."""
    low, high = 0, found.usable_blocks * len(found.layout.groups)
    while low < high:
        middle = (low + high + 1) // 2
        if found.layout.blocks_of_sequence(middle * found.block_size) <= found.usable_blocks:
            low = middle
        else:
            high = middle - 1
    return low * found.block_size


def _room(found: MemoryLedger) -> str:
    return f"KV for {found.kv_tokens_capacity:,} tokens"
