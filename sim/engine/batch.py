"""What one iteration computes, and the options that bound it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sim.engine.decode_set import WindowSum
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


Chunk = tuple[int, int, Sequence, bool]
"""(start, tokens, sequence, last): `tokens` of a prompt (or of a recompute), computed after `start` that stand in the cache
already; the last one reaches the end of what is known, so the iteration samples a token from it."""


class Batch:
    """What one iteration computes. Most are steady, so what belongs to the others is absent until it is needed."""

    window_tokens: tuple[int, ...] = ()
    """For each sliding window of the model, the sum over decoding sequences of min(length, window)."""
    window_growth: tuple[int, ...] = ()
    """How many of them are still shorter than that window."""
    preempted: list[Sequence] | tuple[()] = ()
    late: list[Sequence] | tuple[()] = ()
    """Decodes that skipped iterations before this one: their gap is longer than this iteration."""
    starved: list[Sequence] | tuple[()] = ()
    """Decoding sequences that get no token in this iteration, because the budget ran out."""
    decoding: list[Sequence] | None = None
    """The decodes in order, where the iteration was worked out one by one."""
    out_of_memory: tuple[Sequence, int] | None = None
    """(sequence, blocks it lacks) of the allocation that failed, if the engine does not preempt."""

    def __init__(self, iteration: int, decodes: int = 0, context_tokens: int = 0) -> None:
        self.iteration = iteration
        self.decodes = self.sampled = decodes
        self.context_tokens = context_tokens
        """Sum of the lengths of the decoding sequences, the token being computed included."""
        self.chunks: list[Chunk] | tuple[()] = ()
        self.chunk_tokens = 0
        self.admitted: list[Sequence] | tuple[()] = ()
        self.steady = True
        """Every decoding sequence takes part, and came from the iteration before."""

    def add_decode(self, seq: Sequence, windows: Iterable[WindowSum]) -> None:
        """Counts one decoding sequence, where the iteration is worked out one by one."""
        self.decodes += 1
        self.context_tokens += seq.known_tokens
        lengths = [min(seq.known_tokens, window.window_tokens) for window in windows]
        if lengths:
            before = self.window_tokens or (0,) * len(lengths)
            self.window_tokens = tuple(map(sum, zip(before, lengths, strict=True)))
            self.window_growth = (0,) * len(lengths)
