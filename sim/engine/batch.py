"""What one iteration computes, and the options that bound it."""

from __future__ import annotations

from dataclasses import dataclass

from sim.engine.sequence import Sequence


@dataclass(slots=True)
class SchedulerLimits:
    """What the engine's options say, in vLLM's words."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 1 << 30
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    scheduler_reserve_full_isl: bool = True
    watermark_blocks: int = 0
    async_scheduling: bool = False
    lone_request_uncapped: bool = True
    """From vLLM 0.33 on, a lone request is not held to the long-prefill threshold (R3)."""
    oversized_prompts_stepped_over: bool = False
    """vLLM 0.11 with chunked prefill off: a prompt over the budget does not block those behind it."""
    preempts: bool = True
    """False: the first failed allocation is an out-of-memory error (`on_kv_full: oom`)."""


class Chunk:
    """`tokens` of a prompt (or of a recompute), computed after `start` that stand in the cache already."""

    __slots__ = ("last", "seq", "start", "tokens")

    def __init__(self, seq: Sequence, start: int, tokens: int, last: bool) -> None:
        self.seq = seq
        self.start = start
        self.tokens = tokens
        self.last = last
        """It reaches the end of what is known, so the iteration samples a token from it."""


class Batch:
    """What one iteration computes. Most iterations only decode, so everything else is absent until it is needed."""

    decodes = 0
    context_tokens = 0
    """Sum of the lengths of the decoding sequences, the token being computed included."""
    window_tokens: tuple[int, ...] = ()
    """For each sliding window of the model, the sum over decoding sequences of min(length, window)."""
    window_growth: tuple[int, ...] = ()
    """How many of them are still shorter than that window."""
    chunks: list[Chunk] | tuple[()] = ()
    chunk_tokens = 0
    sampled = 0
    steady = True
    """Every decoding sequence takes part, and came from the iteration before."""
    admitted: list[Sequence] | tuple[()] = ()
    preempted: list[Sequence] | tuple[()] = ()
    late: list[Sequence] | tuple[()] = ()
    """Decodes that skipped iterations before this one: their gap is longer than this iteration."""
    starved: list[Sequence] | tuple[()] = ()
    """Decoding sequences that get no token in this iteration, because the budget ran out."""
    decoding: list[Sequence] | None = None
    """The decodes in order, where the iteration was worked out one by one."""
    out_of_memory: tuple[Sequence, int] | None = None
    """(sequence, blocks it lacks) of the allocation that failed, if the engine does not preempt."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration
