"""Result files of serving benchmarks, read into one form: latencies by vLLM's names, and what was asked.

vLLM's `bench serve --save-result`, AIPerf's profile_export_aiperf.json, GuideLLM's benchmarks.json and inference-perf's
summary_lifecycle_metrics.json. The mean gap after the first token of a request is TPOT here, whatever its file calls it
(AIPerf and GuideLLM: inter-token latency); GuideLLM's time per output token counts the first one and is not read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.errors import InputError

STATISTICS = ("mean", "median", "p90", "p95", "p99")
"""Looked for in every file."""
_WORDS = {"mean": ("mean", "avg"), "median": ("median", "p50")}
KNOWN = "known: JSON of vllm bench serve, AIPerf, GuideLLM, inference-perf"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One measured run of a server."""

    tool: str
    latencies_s: Mapping[tuple[str, str], float]
    """By (ttft, tpot or itl; statistic)."""
    requests: float | None
    """Completed ones; None: not said, here and below."""
    input_tokens: float | None
    """Mean of a request."""
    output_tokens: float | None
    concurrency: float | None = None
    request_rate: float | None = None


def read_benchmark(path: Path) -> Benchmark:
    """The run in a result file of a benchmark tool.

    Raises:
        InputError: it cannot be read, is no result of a known tool, or holds no latencies or several runs.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", KNOWN) from None
    except ValueError:
        raise InputError(str(path), "is no JSON", KNOWN) from None
    if not isinstance(data, dict):
        raise InputError(str(path), "is no JSON object", KNOWN)
    for mark, read in (
        ("mean_ttft_ms", _vllm), ("time_to_first_token", _aiperf), ("benchmarks", _guidellm), ("successes", _inference_perf),
    ):  # fmt: skip
        if mark in data:
            try:
                found = read(data, str(path))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise InputError(str(path), f"lacks what its tool writes ({error})", KNOWN) from None
            if not found.latencies_s:
                raise InputError(str(path), "holds no latencies", "stream the answers when measuring")
            _check_numbers(found, str(path))
            return found
    raise InputError(str(path), "is the result of no tool known here", KNOWN)


def _check_numbers(found: Benchmark, where: str) -> None:
    """Raises InputError for the first that is no finite number above zero."""
    numbers: dict[str, Any] = {
        f"{statistic} {latency}": value for (latency, statistic), value in found.latencies_s.items()
    }
    numbers |= {"number of requests": found.requests, "mean prompt tokens": found.input_tokens}
    numbers |= {"mean output tokens": found.output_tokens, "concurrency": found.concurrency}
    numbers |= {"request rate": found.request_rate}
    for name, value in numbers.items():
        if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
            raise InputError(where, f"got {value!r} as its {name}", "expected a number above zero")


def _vllm(data: Mapping[str, Any], where: str) -> Benchmark:
    found = {
        (latency, statistic): data[f"{statistic}_{latency}_ms"] * 1e-3
        for latency in ("ttft", "tpot", "itl")
        for statistic in STATISTICS
        if data.get(f"{statistic}_{latency}_ms")
    }
    requests, rate = data["completed"], data.get("request_rate")
    limit = data.get("max_concurrency")
    if not requests:
        raise InputError(where, "holds no answered request", "look into its `errors`, and measure again")
    return Benchmark(
        "vllm bench serve", found, requests, data["total_input_tokens"] / requests, data["total_output_tokens"] / requests,
        limit, None if rate in (None, "inf", math.inf) else float(rate),
    )  # fmt: skip


def _statistics(latency: str, found: Mapping[str, Any] | None, unit_s: float) -> dict[tuple[str, str], float]:
    """The statistics that a metric's object holds, by any of their names."""
    flat = dict((found or {}).get("percentiles") or {}) | dict(found or {})
    values = {}
    for statistic in STATISTICS:
        named = [flat[word] for word in _WORDS.get(statistic, (statistic,)) if flat.get(word)]
        if named:
            values[latency, statistic] = float(named[0]) * unit_s
    return values


_UNITS_S = {"ms": 1e-3, "milliseconds": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0, "ns": 1e-9, "us": 1e-6}


def _aiperf(data: Mapping[str, Any], where: str) -> Benchmark:
    found: dict[tuple[str, str], float] = {}
    for latency, tag in (("ttft", "time_to_first_token"), ("tpot", "inter_token_latency")):
        metric = data.get(tag)
        if metric:
            found |= _statistics(latency, metric, _UNITS_S[metric.get("unit", "ms")])
    mean = {
        tag: (data.get(tag) or {}).get("avg")
        for tag in ("request_count", "input_sequence_length", "output_sequence_length")
    }
    return Benchmark("AIPerf", found, *mean.values())


def _guidellm(data: Mapping[str, Any], where: str) -> Benchmark:
    runs = data["benchmarks"]
    if len(runs) != 1:
        raise InputError(where, f"holds {len(runs)} runs", "keep one, and name the scenario that repeats it")
    metrics = {name: (value or {}).get("successful") or {} for name, value in runs[0]["metrics"].items()}
    found = _statistics("ttft", metrics.get("time_to_first_token_ms"), 1e-3)
    found |= _statistics("tpot", metrics.get("inter_token_latency_ms"), 1e-3)
    prompts, outputs = metrics.get("prompt_token_count", {}), metrics.get("output_token_count", {})
    return Benchmark("GuideLLM", found, outputs.get("count"), prompts.get("mean"), outputs.get("mean"))


def _inference_perf(data: Mapping[str, Any], where: str) -> Benchmark:
    done = data["successes"]
    found: dict[tuple[str, str], float] = {}
    names = {"ttft": "time_to_first_token", "tpot": "time_per_output_token", "itl": "inter_token_latency"}
    for latency, name in names.items():
        found |= _statistics(latency, done["latency"].get(name), 1.0)
    mean = {name: (done.get(name) or {}).get("mean") for name in ("prompt_len", "output_len")}
    rate = (data.get("load_summary") or {}).get("requested_rate")
    return Benchmark("inference-perf", found, done["count"], mean["prompt_len"], mean["output_len"], None, rate)
