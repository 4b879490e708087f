"""A trace or a workload in numbers: how many, how fast, how bursty, how long, how much alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.workload import servegen, trace_formats
from sim.workload.prompts import HashedPrompts
from sim.workload.traces import Trace, read_trace

_QUANTILES = (50, 90, 95, 99)


DRAWN_REQUESTS = 1_000_000
"""Requests of a ServeGen client that are drawn to describe it: a second's work, and its tails."""


def summary_of(path: Path, format: str | None = None) -> dict[str, Any]:
    """What `twowalls workload FILE` prints; see `summary`. A `format` of None is recognised.

    Of ServeGen clients with more than `DRAWN_REQUESTS` requests so many are drawn, and `expected_requests` says how many
    there are.

    Raises:
        InputError: as `read_trace`.
    """
    if path.exists() and (format or trace_formats.detect(path)) == "servegen":
        expected = servegen.expected_requests(path)
        if expected > DRAWN_REQUESTS:
            drawn = summary(read_trace(path, format, max_requests=DRAWN_REQUESTS))
            return {"format": drawn.pop("format"), "expected_requests": round(expected), **drawn}
    return summary(read_trace(path, format))


def summary(trace: Trace) -> dict[str, Any]:
    """What `twowalls workload FILE` prints.

    Returns:
        format, requests, dropped (failed rows left out), duration_s (first to last arrival), request_rate (a second;
        null if all arrive at once), gap_cv (standard deviation of the gaps over their mean: 1 is Poisson, more is
        bursty), distinct_times, input_tokens and output_tokens (mean, std, min, p50 ... p99, max, total), and, where
        the trace has prefix hashes, prefix_block_tokens and infinite_cache_hit_rate.
    """
    gaps_s = np.diff(trace.arrival_s)
    duration_s = float(trace.arrival_s[-1] - trace.arrival_s[0])
    found: dict[str, Any] = {
        "format": trace.format,
        "requests": len(trace),
        "dropped": trace.dropped,
        "duration_s": duration_s,
        "request_rate": len(gaps_s) / duration_s if duration_s > 0 else None,
        "gap_cv": float(gaps_s.std() / gaps_s.mean()) if duration_s > 0 else None,
        "distinct_times": len(np.unique(trace.arrival_s)),
        "input_tokens": _lengths(trace.input_tokens),
        "output_tokens": _lengths(trace.output_tokens),
    }
    if trace.prompts is not None:
        found["prefix_block_tokens"] = trace.prompts.hash_block_size
        found["infinite_cache_hit_rate"] = infinite_cache_hit_rate(trace.prompts)
    return found


def infinite_cache_hit_rate(prompts: HashedPrompts) -> float:
    """Share of all prompt tokens that a prefix cache of unlimited size would have, served in trace order.

    A prompt hits its leading blocks that any earlier prompt had, whole or partial as hashed; at least its last token is
    computed in any case, which this count ignores as the traces' authors do.
    """
    seen: set[int] = set()
    hit_tokens = 0
    for request, tokens in enumerate(prompts.input_tokens.tolist()):
        hits = 0
        ids = prompts.ids(request).tolist()
        for block in ids:
            if block not in seen:
                break
            hits += 1
        seen.update(ids[hits:])
        hit_tokens += min(hits * prompts.hash_block_size, tokens)
    return hit_tokens / float(prompts.input_tokens.sum())


def _lengths(tokens: NDArray[np.int64]) -> dict[str, float]:
    quantiles = {f"p{q}": float(value) for q, value in zip(_QUANTILES, np.percentile(tokens, _QUANTILES), strict=True)}
    return {
        "mean": float(tokens.mean()),
        "std": float(tokens.std()),
        "min": int(tokens.min()),
        **quantiles,
        "max": int(tokens.max()),
        "total": int(tokens.sum()),
    }
