"""What differs between the vLLM versions that the scheduler mirrors.

Source: recorded decisions of vLLM 0.11.0, 0.14.1, 0.18.1, 0.24.0 and 0.33.0 on the same cases (see docs/scheduler.md).
"""

from __future__ import annotations

import re

from sim.engine.batch import SchedulerLimits
from sim.engine.kv_cache import BlockPool, PrefixPool
from sim.errors import InputError

LATEST = (0, 33)
UNGATED = (0, 18)
"""The last version without admission gate, and with the old order of the free list."""


def parse_version(version: str | None, where: str = "engine.version") -> tuple[int, int]:
    """(major, minor) of a vLLM version; the latest one mirrored if None."""
    if version is None:
        return LATEST
    match = re.match(r"v?(\d+)\.(\d+)", version)
    if match is None:
        raise InputError(where, f"got '{version}'", "write it like 0.33.0")
    return int(match[1]), int(match[2])


def limits_for(
    *,
    version: str | None,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    max_model_len: int,
    num_gpu_blocks: int,
    enable_chunked_prefill: bool = True,
    long_prefill_token_threshold: int = 0,
    scheduler_reserve_full_isl: bool | None = None,
    watermark: float = 0.0,
    async_scheduling: bool = False,
    preempts: bool = True,
) -> SchedulerLimits:
    """The engine options as one vLLM version applies them.

    `num_gpu_blocks` includes the null block, as vLLM counts it. The admission gate and the watermark came after 0.18;
    `scheduler_reserve_full_isl` None means the version's own habit.
    """
    release = parse_version(version)
    gated = release > UNGATED
    return SchedulerLimits(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        enable_chunked_prefill=enable_chunked_prefill,
        long_prefill_token_threshold=long_prefill_token_threshold,
        scheduler_reserve_full_isl=gated and scheduler_reserve_full_isl is not False,
        watermark_blocks=int(watermark * num_gpu_blocks) if gated else 0,
        async_scheduling=async_scheduling,
        lone_request_uncapped=release >= (0, 33),
        oversized_prompts_stepped_over=release <= (0, 11),
        preempts=preempts,
    )


def pool_for(*, version: str | None, num_gpu_blocks: int, block_size: int, enable_prefix_caching: bool) -> BlockPool:
    """The block pool of one vLLM version: up to 0.18 all freed blocks go to the back of the free list."""
    if not enable_prefix_caching:
        return BlockPool(num_gpu_blocks - 1, block_size)
    return PrefixPool(num_gpu_blocks - 1, block_size, keyed_to_back_only=parse_version(version) <= UNGATED)
