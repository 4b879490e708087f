"""What vLLM and SGLang do where nobody tells them otherwise, by version, GPU and cut.

All of it was read in the Python files of their wheels on PyPI: vLLM 0.2.6 to 0.33.0, SGLang 0.1.6 to 0.5.23. A release is all its
numbers, such as (0, 8, 4); where a constant names one alone, it is the first whose source has it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from sim.hardware.gpu import Gpu

Release = tuple[int, ...]
T = TypeVar("T")

# --- vLLM -------------------------------------------------------------------------------------------------------------

VLLM_UNSTATED: Release = (0, 19)
"""A row that names no release is taken to be from before 0.20: most were published in its time."""
V1_SINCE: Release = (0, 8)
"""The V1 engine is the default (vllm/envs.py, VLLM_USE_V1)."""
V1_EVERYWHERE: tuple[Release, Release] = (0, 10, 2), (0, 9)
"""The same on GPUs before Ampere, and on AMD's (vllm/engine/arg_utils.py, _is_v1_supported_oracle)."""


@dataclass(frozen=True, slots=True)
class VllmLimits:
    """What an iteration holds at most."""

    sequences: int
    server_tokens: int
    """As an API server."""
    in_process_tokens: int
    """As the class LLM, which offline benchmarks use."""
    prompts_first: bool = False
    """Prompts go before decodes, whole."""
    by_length: bool = False
    """These limits follow from the tokens that a sequence may have (V0)."""


SMALL, LARGE, LARGEST = VllmLimits(256, 2048, 8192), VllmLimits(1024, 8192, 16384), VllmLimits(1024, 16384, 16384)
"""Of V1 (vllm/engine/arg_utils.py, get_batch_defaults; _set_default_args_v1 before 0.11)."""
LARGE_GIB, LARGEST_GIB = 70, 160
"""Memory from which they hold."""
BY_MEMORY: Release = (0, 8, 4)
"""Before, the name of an H100 or H200 decided about tokens, and everywhere 1,024 sequences ran."""
A100_SMALL: Release = (0, 9)
"""An A100 has the small limits, whatever its memory."""
LARGEST_SINCE: Release = (0, 28)
V0_SEQUENCES, V0_LEAST_TOKENS = 256, 2048
"""Of V0 (vllm/engine/arg_utils.py, vllm/config.py SchedulerConfig): as many tokens as a sequence may have, 2,048 at least."""
V0_CHUNKS: Release = (0, 5, 3)
V0_LONG_TOKENS = 32768
"""From that release V0 cuts prompts, and lets decodes go first, if a sequence may be longer than so many tokens, on NVIDIA's GPUs
and without sliding windows (vllm/engine/arg_utils.py, create_engine_config)."""
V0_CHUNK_TOKENS: tuple[tuple[Release, int], ...] = (((0, 6, 5), 512), (V1_SINCE, 2048))
"""(release before which, tokens of an iteration) that holds such chunks (vllm/config.py, SchedulerConfig)."""
MEMORY_SHARES: tuple[tuple[Release, float], ...] = (((0, 20), 0.9), ((99,), 0.92))
"""(release before which, gpu_memory_utilization) (vllm/config/cache.py)."""
EVEN_RANGES: Release = (0, 8, 5)
"""`--random-range-ratio r` of vLLM's benchmarks means lengths of 1 - r to 1 + r (vllm/benchmarks/datasets.py); before, and in
those of SGLang, r to 1 (vllm/benchmarks/serve.py, sglang/bench_serving.py)."""
SGLANG_RANGE_RATIO = 0.0
"""`--random-range-ratio` of SGLang's bench_serving: lengths of 1 token to the nominal one, unless it is given."""


def vllm_limits(release: Release | None, gpu: Gpu, max_model_len: int, windows: bool) -> VllmLimits:
    """What one iteration of a vLLM release on `gpu` holds at most.

    Args:
        release: None: not stated.
        gpu: that it runs on.
        max_model_len: tokens that a sequence may have.
        windows: the model has sliding windows.
    """
    release = release or VLLM_UNSTATED
    if not _runs_v1(release, gpu):
        chunks = release >= V0_CHUNKS and max_model_len > V0_LONG_TOKENS and gpu.vendor == "NVIDIA" and not windows
        most = _in_force(V0_CHUNK_TOKENS, release, 2048) if chunks else max(max_model_len, V0_LEAST_TOKENS)
        return VllmLimits(V0_SEQUENCES, most, most, prompts_first=not chunks, by_length=True)
    if release < BY_MEMORY:
        return LARGE if "h100" in gpu.name or "h200" in gpu.name else replace(SMALL, sequences=LARGE.sequences)
    gib = gpu.visible_memory_bytes / 2**30
    if release >= LARGEST_SINCE and gib >= LARGEST_GIB:
        return LARGEST
    spared = release >= A100_SMALL and gpu.name.startswith("a100")
    return LARGE if gib >= LARGE_GIB and not spared else SMALL


def vllm_memory_share(release: Release | None) -> float:
    """gpu_memory_utilization of a vLLM release."""
    return _in_force(MEMORY_SHARES, release or VLLM_UNSTATED, MEMORY_SHARES[-1][1])


def random_range(ratio: float, of_vllm: bool, release: Release | None) -> tuple[float, float]:
    """The shares of the nominal length between which `--random-range-ratio` draws uniformly, in the tool of vLLM or of SGLang."""
    even = of_vllm and (release or VLLM_UNSTATED) >= EVEN_RANGES
    return (1 - ratio, 1 + ratio) if even else (ratio, 1.0)


def _runs_v1(release: Release, gpu: Gpu) -> bool:
    before_ampere, amd = V1_EVERYWHERE
    if gpu.vendor != "NVIDIA":
        return release >= amd
    return release >= (V1_SINCE if gpu.sm_version >= 80 else before_ampere)


# --- SGLang -----------------------------------------------------------------------------------------------------------

SGLANG_UNSTATED: Release = (0, 5, 19)
"""As `VLLM_UNSTATED`."""
SGLANG_SEQUENCES: tuple[tuple[float, int], ...] = ((60, 256), (1e9, 1024))
"""(GiB below which, sequences) that run at most. SGLang's own limit is 2,048 to 4,096 (init_memory_pool): set by hand to what
leaves room for the sampler, for which the ledger would count 10 GB of 2,048 sequences."""
CHUNKS: tuple[tuple[Release, tuple[tuple[float, int], ...]], ...] = (
    ((0, 4, 8), ((25_000 / 1024, 2048), (1e9, 8192))),
    ((0, 5, 3), ((35, 2048), (160, 8192), (1e9, 16384))),
    ((0, 5, 20), ((35, 2048), (60, 4096), (160, 8192), (1e9, 16384))),
    ((99,), ((20, 2048), (60, 4096), (160, 8192), (1e9, 16384))),
)
"""(release before which, (GiB below which, tokens)) of a chunk of prompts (chunked_prefill_size in sglang/srt/server_args.py,
from 0.5.20 on arg_groups/memory_hook.py)."""
SHARES: tuple[tuple[Release, tuple[float, ...]], ...] = (
    ((0, 1, 20), (0.90, 0.85, 0.82, 0.80, 0.80)),
    ((0, 2), (0.88, 0.85, 0.80, 0.78, 0.78)),
    ((0, 3), (0.88, 0.87, 0.85, 0.83, 0.79)),
    ((0, 4), (0.88, 0.87, 0.85, 0.82, 0.79)),
    ((0, 4, 8), (0.88, 0.87, 0.85, 0.81, 0.79)),
)
"""(release before which, mem_fraction_static on 1, 2, 4, 8 and 16 GPUs). 0.4.6 and 0.4.7 reserve bytes on more than 80 GiB,
which is left out."""
RESERVES: tuple[tuple[float, float, float], ...] = (
    (35, 2.8, 0.1), (90, 9.5, 0.5), (160, 12, 0.5), (1e9, 32, 0.0),
)  # fmt: skip
"""(GiB below which, GiB that stay free, the same for each GPU of a replica) of 0.4.8 to 0.5.2."""
LARGEST_GRAPHS: tuple[tuple[float, int, int], ...] = (
    (20, 8, 8), (35, 24, 80), (60, 32, 160), (160, 256, 512), (1e9, 512, 512),
)  # fmt: skip
"""(GiB below which, sequences of the largest CUDA graph on up to three GPUs, on more) from 0.5.3 on."""
FIXED_MIB, CHUNK_MIB, GRAPH_MIB, GPU_MIB = 512, 1.5, 2, 128
"""What stays free from 0.5.3 on: this, for each token of a chunk, each sequence of the largest graph, each GPU of a replica."""
LEAST_MIB, LEAST_ABOVE_GIB = 10 * 1024, 60
"""And no less than that, on GPUs with more than so much memory."""


def sglang_chunk(release: Release | None, gpu: Gpu) -> int:
    """Tokens of a chunk of prompts that an SGLang release computes at once on `gpu`."""
    chunks = _in_force(CHUNKS, release or SGLANG_UNSTATED, CHUNKS[-1][1])
    return next(tokens for below, tokens in chunks if _gib(gpu) < below)


def sglang_sequences(gpu: Gpu) -> int:
    """Sequences that SGLang runs at most on `gpu`."""
    return next(sequences for below, sequences in SGLANG_SEQUENCES if _gib(gpu) < below)


def sglang_memory_share(release: Release | None, gpu: Gpu, gpus: int) -> float:
    """mem_fraction_static of an SGLang release: weights and KV cache over the memory of each of a replica's `gpus`."""
    release, gib = release or SGLANG_UNSTATED, _gib(gpu)
    if release < SHARES[-1][0]:
        return _in_force(SHARES, release, ())[min(gpus.bit_length() - 1, 4)]
    if release < CHUNKS[1][0]:
        fixed, each = next((fixed, each) for below, fixed, each in RESERVES if gib < below)
        return 1 - (fixed + each * gpus) / gib
    graphs = next(many if gpus >= 4 else few for below, few, many in LARGEST_GRAPHS if gib < below)
    free_mib = FIXED_MIB + CHUNK_MIB * sglang_chunk(release, gpu) + GRAPH_MIB * graphs + GPU_MIB * gpus
    return 1 - max(free_mib, LEAST_MIB if gib > LEAST_ABOVE_GIB else 0) / 1024 / gib


def _gib(gpu: Gpu) -> float:
    return gpu.visible_memory_bytes / 2**30


def _in_force(table: tuple[tuple[Release, T], ...], release: Release, newest: T) -> T:
    """The entry of the first release in `table` that came after `release`."""
    return next((entry for before, entry in table if release < before), newest)
