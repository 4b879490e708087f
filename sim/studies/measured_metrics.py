"""What a simulated run says about each metric that benchmark tables publish."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sim.errors import InputError

if TYPE_CHECKING:
    from sim.results.result import Result

UNITS = {
    "ms": 1e-3, "us": 1e-6, "s": 1.0, "GB/s": 1e9, "TFLOP/s": 1e12, "tok/s": 1.0, "out tok/s": 1.0, "out tok/s/GPU": 1.0,
    "req/s": 1.0, "tok/s/req": 1.0, "ms/tok": 1e-3, "s/tok": 1.0, "GiB": 2.0**30, "blocks of 16 tokens": 16.0,
    "blocks": 16.0, "tok/s/user": 1.0,
}  # fmt: skip
"""SI amount of one unit of a measured value; blocks count as their tokens."""

_PER_GPU = re.compile(r"\s*(?:/|per)\s*gpu$")

_LATENCIES = {
    "ttft": "ttft", "first_token_latency": "ttft", "time_to_first_token": "ttft", "tpot": "tpot", "itl": "itl",
    "inter_token_latency": "tpot", "per_token_latency": "itl", "e2e": "e2el", "e2el": "e2el", "request_latency": "e2el",
    "time_per_output_token": "tpot", "e2e_latency": "e2el", "end_to_end_latency": "e2el",
}  # fmt: skip
_STATISTIC = re.compile(r"_(mean|avg|average|median|p\d+(?:\.\d+)?)$")
_FAMILIES = (
    ("request_throughput", "request throughput"), ("throughput", "output throughput"), ("decode_speed", "tpot"),
    ("bandwidth", "tpot"), ("first_token", "ttft"), ("ttft", "ttft"), ("per_token", "itl"), ("itl", "itl"),
    ("inter_token", "tpot"), ("tpot", "tpot"), ("e2e", "e2e"), ("latency_mean", "e2e"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Numbers of one simulated run, small enough to cross processes."""

    latencies_s: Mapping[str, Mapping[str, float]]
    """Metric (ttft, tpot, itl, e2el) -> statistic (mean, median, p90 ...) -> seconds."""
    duration_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    requests_per_s: float
    gpus: int
    weights_bytes_per_gpu: float
    queue_s: float
    """Mean time in the engine's queue."""
    last_arrival_s: float
    preemptions: int
    peak_kv_share: float
    walls_ms: Mapping[str, float]
    status: str
    notes: tuple[str, ...] = ()


def facts_of(result: Result) -> RunFacts:
    """The facts of `result`."""
    summary = result.summary
    steps, requests = result.steps, result.requests
    assert result.ledger is not None
    duration_s = float(summary["duration"])
    return RunFacts(
        latencies_s={name: _statistics(summary, name) for name in ("ttft", "tpot", "itl", "e2el")},
        duration_s=duration_s,
        output_tokens_per_s=summary["output_throughput"] or 0.0,
        total_tokens_per_s=summary["total_token_throughput"] or 0.0,
        requests_per_s=summary["request_throughput"] or 0.0,
        gpus=result.num_gpus,
        weights_bytes_per_gpu=max(row.weights_bytes for row in result.ledger.per_gpu),
        queue_s=(summary["mean_queue_time_ms"] or 0.0) * 1e-3,
        last_arrival_s=float(requests["arrival_s"].max()),
        preemptions=result.preemptions,
        peak_kv_share=float(steps["used_blocks"].max()) / max(result.kv_blocks or 1, 1)
        if len(steps["start_s"])
        else 0.0,
        walls_ms=result.walls_ms_per_token,
        status=result.status,
        notes=tuple(result.notes),
    )


def _statistics(summary: Mapping[str, Any], name: str) -> dict[str, float]:
    keys = ("mean", "median", "p50", "p90", "p95", "p99")
    found = {key: summary[f"{key}_{name}_ms"] for key in keys}
    return {key: value * 1e-3 for key, value in found.items() if value is not None}


def family(metric: str) -> str:
    """The short name under which errors of a metric are grouped."""
    return next((name for word, name in _FAMILIES if word in metric), metric)


def is_latency(metric: str) -> bool:
    """Whether the metric is a time of requests (first token, gaps, end to end)."""
    return _STATISTIC.sub("", metric) in _LATENCIES


def predicted(metric: str, facts: RunFacts, client_s: float = 0.0) -> float:
    """The run's value of a metric, in SI units; a latency without a statistic is a mean.

    Args:
        client_s: the load generator's own time, which its TTFT and end-to-end times hold.

    Raises:
        InputError: a metric that no run tells.
    """
    latency = _LATENCIES.get(_STATISTIC.sub("", metric))
    if latency is not None:
        statistic = _STATISTIC.search(metric)
        name = {"avg": "mean", "average": "mean"}.get(statistic[1], statistic[1]) if statistic else "mean"
        samples = facts.latencies_s[latency]
        if name not in samples:
            raise InputError("metric", f"got '{metric}'", "this run has no such number: " + ", ".join(samples))
        return samples[name] + (client_s if latency in ("ttft", "e2el") else 0.0)
    whole = _WHOLE_RUN.get(metric)
    if whole is None:
        raise InputError("metric", f"got '{metric}'", "no prediction of this metric")
    return whole(facts)


def _tpot_s(facts: RunFacts) -> float:
    return facts.latencies_s["tpot"]["mean"]


_WHOLE_RUN: dict[str, Callable[[RunFacts], float]] = {
    "output_throughput": lambda f: f.output_tokens_per_s,
    "output_throughput_per_gpu": lambda f: f.output_tokens_per_s / f.gpus,
    "total_token_throughput": lambda f: f.total_tokens_per_s,
    "total_token_throughput_per_gpu": lambda f: f.total_tokens_per_s / f.gpus,
    "output_token_throughput": lambda f: f.output_tokens_per_s,
    "input_throughput": lambda f: f.total_tokens_per_s - f.output_tokens_per_s,
    "input_throughput_per_gpu": lambda f: (f.total_tokens_per_s - f.output_tokens_per_s) / f.gpus,
    "request_throughput": lambda f: f.requests_per_s,
    "request_throughput_per_gpu": lambda f: f.requests_per_s / f.gpus,
    "decode_speed": lambda f: 1 / _tpot_s(f),
    "output_throughput_per_user": lambda f: 1 / _tpot_s(f),
    "achieved_weight_bandwidth_per_gpu": lambda f: f.weights_bytes_per_gpu / _tpot_s(f),
    # a static batch is over when its last sequence is
    "batch_latency_mean": lambda f: f.duration_s,
    "batch_latency": lambda f: f.duration_s,
}


def unit_of(text: str) -> float:
    """SI amount of one unit as tables write it.

    Raises:
        InputError: an unknown unit.
    """
    bare = re.sub(r"\s*\((?:RDMA|NVLink)\)", "", text)
    if bare in UNITS:
        return UNITS[bare]
    short = re.sub(r"\b(?:output|out|generated|total)\s+", "", _PER_GPU.sub("", bare.lower()))
    short = re.sub(r"\btokens?\b", "tok", re.sub(r"\b(?:requests?|samples?|queries|reqs)\b", "req", short))
    short = re.sub(r"/sec(?:onds?)?\b", "/s", re.sub(r"\s*(?:/|per)\s*", "/", short))
    short = {"tps": "tok/s", "rps": "req/s", "qps": "req/s", "seconds": "s", "sec": "s", "milliseconds": "ms"}.get(
        short, short
    )
    if short not in UNITS:
        raise InputError("unit", f"got '{text}'", "known: " + ", ".join(UNITS))
    return UNITS[short]


def metric_in(metric: str, unit: str) -> str:
    """The metric that a value is of whose unit may say that it is of each GPU."""
    shared = _PER_GPU.search(unit.lower()) is not None and metric.endswith("_throughput")
    return f"{metric}_per_gpu" if shared else metric
