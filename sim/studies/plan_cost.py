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


def token_cost(candidate: Candidate, request_rate: float, mean_output_tokens: float, latency_s: float) -> TokenCost:
    """Cost and energy of `candidate` at `request_rate`.

    Args:
        latency_s: mean time of a request in the replica. Poisson arrivals find it empty with the probability exp(-rate x
            latency) (M/G/infinity, Little), which is the share of time in which its GPUs draw their idle power.
    """
    tokens_per_s = request_rate * mean_output_tokens
    offer = candidate.offer
    busy = 1.0 - math.exp(-request_rate * latency_s)
    joules = None
    if offer.idle_power_w is not None:
        joules = candidate.gpus * (busy * offer.power_w + (1 - busy) * offer.idle_power_w) / tokens_per_s
    usd = candidate.usd_per_h / 3600 / tokens_per_s * 1e6
    return TokenCost(request_rate, tokens_per_s, candidate.usd_per_h, usd, joules)


def metrics_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a ranking shows of a run."""
    names = ("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms", "mean_e2el_ms", "p99_e2el_ms",
             "output_throughput", "output_throughput_per_gpu", "output_tokens_per_s_per_user", "preemptions")  # fmt: skip
    return {name: record.get(name) for name in names} | {"walls_ms_per_token": record.get("walls_ms_per_token")}
