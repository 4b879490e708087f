"""Dollars and joules of an output token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.studies.plan_candidates import Candidate


@dataclass(frozen=True, slots=True)
class TokenCost:
    """What an output token costs at a load."""

    request_rate: float
    output_tokens_per_s: float
    """Of one replica, in the long run: requests a second x mean output tokens."""
    usd_per_h: float
    usd_per_million_output_tokens: float
    joules_per_output_token: float | None
    """At most: a busy GPU is taken to draw its printed limit, which decoding does not reach. None where the idle draw is
    unknown."""


def token_cost(
    candidate: Candidate, request_rate: float, mean_output_tokens: float, first_s: float, latency_s: float
) -> TokenCost:
    """Cost and energy of `candidate` at `request_rate`.

    Args:
        first_s: mean time to the first token.
        latency_s: mean time of a request from its arrival to its end.
    """
    tokens_per_s = request_rate * mean_output_tokens
    offer = candidate.offer
    joules = None
    if offer.idle_power_w is not None:
        busy = _busy(candidate, request_rate, first_s, latency_s)
        joules = candidate.gpus * (busy * offer.power_w + (1 - busy) * offer.idle_power_w) / tokens_per_s
    usd = candidate.usd_per_h / 3600 / tokens_per_s * 1e6
    return TokenCost(request_rate, tokens_per_s, candidate.usd_per_h, usd, joules)


def _busy(candidate: Candidate, request_rate: float, first_s: float, latency_s: float) -> float:
    """Share of its GPUs' time in which their replica holds a request, the rest being idle.

    Poisson arrivals find a replica empty with the probability exp(-rate x stay) (M/G/infinity, Little), if each replica gets
    an equal part of them. Replicas in lock-step work whenever one of them does.
    """
    parts = [(1 if candidate.lock_step else candidate.data, latency_s)]
    if candidate.prefill:
        parts = [(candidate.prefill, first_s), (candidate.decode, latency_s - first_s)]
    working = [count * -math.expm1(-request_rate / count * stay_s) for count, stay_s in parts]
    return sum(working) / sum(count for count, _ in parts)


def metrics_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a ranking shows of a run."""
    names = ("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms", "mean_e2el_ms", "p99_e2el_ms",
             "output_throughput", "output_throughput_per_gpu", "output_tokens_per_s_per_user", "preemptions")  # fmt: skip
    return {name: record.get(name) for name in names} | {"walls_ms_per_token": record.get("walls_ms_per_token")}
