"""What differs between the vLLM versions that the scheduler mirrors.

Source: recorded decisions of vLLM 0.11.0, 0.14.1, 0.18.1, 0.24.0 and 0.33.0 on the same cases (see docs/scheduler.md).
"""

from __future__ import annotations

import re

from sim.engine.batch import SchedulerLimits
from sim.engine.host_cache import HostCache, TieredPool
from sim.engine.kv_cache import BlockPool, PrefixPool
from sim.errors import InputError

Version = tuple[int, int]
CHECKED: tuple[Version, ...] = ((0, 11), (0, 14), (0, 18), (0, 24), (0, 33))
"""(major, minor) of the versions whose recorded decisions are mirrored."""
LATEST = CHECKED[-1]
UNGATED = (0, 18)
"""The last version without admission gate, and with the old order of the free list."""
SPARES_LONE = (0, 33)
"""The first version in which a lone request is not held to the long-prefill threshold."""
STEPS_OVER = (0, 11)
"""The last version in which, without chunked prefill, a prompt over the budget is stepped over."""


def parse_version(version: str | None) -> Version:
    """(major, minor) of a vLLM version; the latest one mirrored if None.

    Raises:
        InputError: not written as a version, or newer than any whose rules are known.
    """
    if version is None:
        return LATEST
    found = _numbers(version)
    if found is None:
        raise InputError("engine.version", f"got '{version}'", "write it like 0.33.0")
    if found > LATEST:
        problem = f"got '{version}', newer than any vLLM whose rules are known here"
        raise InputError("engine.version", problem, f"known: {_names(CHECKED)}; leave it out for the newest")
    return found


def newer_than_known(version: str | None) -> bool:
    """Whether this vLLM came after all whose rules are known."""
    return version is not None and (_numbers(version) or LATEST) > LATEST


def _numbers(version: str) -> Version | None:
    match = re.match(r"v?(\d+)\.(\d+)", version)
    return None if match is None else (int(match[1]), int(match[2]))


def version_notes(version: str | None, watermark: float) -> list[str]:
    """What a reader must know about rules that were not recorded in this very version, or options that it does not have."""
    found = parse_version(version)
    note = _doubt(version, found)
    without = (
        [f"vLLM {version} has no watermark: {watermark:g} is not applied"] if watermark and found <= UNGATED else []
    )
    return without if note is None else [note, *without]


def _doubt(version: str | None, found: Version) -> str | None:
    if found < CHECKED[0]:
        return f"vLLM {version} is scheduled by the rules of {_names(CHECKED[:1])}, the oldest that was checked"
    older = max(known for known in CHECKED if known <= found)
    newer = min(known for known in CHECKED if known >= found)
    if _rules(older) == _rules(newer):
        return None
    like = older if _rules(older) == _rules(found) else newer
    beside = f"between {_names((older,))} and {_names((newer,))}, which differ"
    return f"vLLM {version} was not checked: it lies {beside}, and is scheduled by the rules of {_names((like,))}"


def _rules(release: Version) -> tuple[bool, bool, bool]:
    """All that differs between versions."""
    return release > UNGATED, release >= SPARES_LONE, release <= STEPS_OVER


def _names(releases: tuple[Version, ...]) -> str:
    return ", ".join(f"{major}.{minor}" for major, minor in releases)


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
    gated, spares_lone, steps_over = _rules(parse_version(version))
    return SchedulerLimits(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        enable_chunked_prefill=enable_chunked_prefill,
        long_prefill_token_threshold=long_prefill_token_threshold,
        scheduler_reserve_full_isl=gated and scheduler_reserve_full_isl is not False,
        watermark_blocks=int(watermark * num_gpu_blocks) if gated else 0,
        async_scheduling=async_scheduling,
        lone_request_uncapped=spares_lone,
        oversized_prompts_stepped_over=steps_over,
        preempts=preempts,
    )


def pool_for(
    *,
    version: str | None,
    num_gpu_blocks: int,
    block_size: int,
    enable_prefix_caching: bool,
    host: HostCache | None = None,
) -> BlockPool:
    """The block pool of one vLLM version: up to 0.18 all freed blocks go to the back of the free list.

    With a `host`, evicted blocks go there.
    """
    usable, to_back = num_gpu_blocks - 1, parse_version(version) <= UNGATED
    if not enable_prefix_caching:
        return BlockPool(usable, block_size)
    if host is not None:
        return TieredPool(usable, block_size, to_back, host)
    return PrefixPool(usable, block_size, keyed_to_back_only=to_back)
