"""TTFT, TPOT, ITL, E2EL, goodput and throughput, as vLLM's serving benchmark defines them.

TTFT: first token - arrival. TPOT: (E2EL - TTFT) / (tokens - 1), for requests of more than one token. ITL: single gaps
between tokens, pooled over all requests. E2EL: last token - arrival. Percentiles interpolate linearly
(`np.percentile`), std is the population's.

Warm-up requests (the first `workload.warmup_requests` to arrive) are left out of every latency metric and of goodput,
ITL included: their gaps are taken out of the pool iteration by iteration, save for a warm-up request that was
preempted, whose gaps stay. They count in throughput, since the run's duration holds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.engine.recorder import CUT, FINISHED, REJECTED
from sim.results.gaps import Floats, GapPool, Ints, expand
from sim.results.result import Columns, Result

_MOST_SECONDS = 10_000_000
"""Of a run whose tokens are counted in an array of seconds; a longer one (116 days) has mostly empty ones."""
PERCENTS = (50.0, 90.0, 95.0, 99.0, 99.9)
LATENCIES = ("ttft", "tpot", "itl", "e2el")


def summarise(result: Result) -> dict[str, Any]:
    """The summary of a run: vLLM's keys in vLLM's order, then ours; None where there is nothing to measure."""
    requests, duration = result.requests, result.end_s
    finished = requests["status"] == FINISHED
    generated, total_input = int(requests["generated_tokens"].sum()), int(requests["input_tokens"][finished].sum())
    total_output = int(requests["generated_tokens"][finished].sum())
    samples = latencies(result)
    good = _good_requests(samples, result.slo_s) if result.slo_s else None

    def rate(count: float) -> float | None:
        return count / duration if duration > 0 else None

    summary: dict[str, Any] = {
        **_setup(result),
        "duration": duration,
        "completed": int(finished.sum()),
        "failed": int((~finished & (requests["arrival_s"] <= duration)).sum()),
        "total_input_tokens": total_input,
        "total_output_tokens": total_output,
        "request_throughput": rate(int(finished.sum())),
        "request_goodput": None if good is None else rate(int(good.sum())),
        "output_throughput": rate(total_output),
        "total_token_throughput": rate(total_input + total_output),
        "max_output_tokens_per_s": peak_tokens_per_s(result),
        "max_concurrent_requests": peak_concurrency(requests, duration),
        "rtfx": 0.0,
    }
    for name in LATENCIES:
        statistics = gap_statistics(gap_pool(result)) if name == "itl" else statistics_of(samples[name])
        summary |= _named(name, statistics)
    summary |= {f"{key}_queue_time_ms": value for key, value in statistics_of(samples["queue_time"]).items()}
    measured = len(samples["e2el"])
    tpot_s = (summary["median_tpot_ms"] or 0.0) / 1e3
    summary |= {
        "slo_attainment": None if good is None or not measured else int(good.sum()) / measured,
        "output_tokens_per_s_per_user": 1 / tpot_s if tpot_s else None,
        "output_throughput_per_gpu": None if not duration else total_output / duration / result.num_gpus,
        "generated_tokens": generated,
        "rejected": int((requests["status"] == REJECTED).sum()),
        "cut": int((requests["status"] == CUT).sum()),
        "prefix_cache_hit_rate": _hit_rate(requests, "cached_tokens"),
        "host_cache_hit_rate": _hit_rate(requests, "fetched_tokens"),
        "preemptions": result.preemptions,
        "warmup_requests": int(result.workload.get("warmup_requests") or 0),
    }
    return summary


def _hit_rate(requests: Columns, found: str) -> float | None:
    """Prompt tokens in the column `found` over the prompt tokens of all requests that were scheduled."""
    scheduled = ~np.isnan(requests["scheduled_s"])
    asked = int(requests["input_tokens"][scheduled].sum())
    return int(requests[found][scheduled].sum()) / asked if asked and found in requests else None


def _setup(result: Result) -> dict[str, Any]:
    """What vLLM writes first: who was asked, and how the load came."""
    rate = result.arrivals.get("request_rate")
    model = result.scenario.get("model")
    return {
        "endpoint_type": "simulated",
        "backend": "twowalls",
        "label": result.name,
        "model_id": model,
        "tokenizer_id": model,
        "num_prompts": len(result.requests["id"]),
        "request_rate": "inf" if rate is None else rate,
        "burstiness": result.arrivals.get("burstiness", 1.0),
        "max_concurrency": result.concurrency,
    }


def _measured(result: Result) -> NDArray[np.bool_]:
    """Which requests count in latency metrics: those that finished, without the warm-up."""
    measured = np.asarray(result.requests["status"] == FINISHED)
    return measured & ~_warmup(result)


def _warmup(result: Result) -> NDArray[np.bool_]:
    mask = np.zeros(len(result.requests["id"]), dtype=bool)
    mask[_arrival_order(result.requests["arrival_s"])[: int(result.workload.get("warmup_requests") or 0)]] = True
    return mask


def _arrival_order(arrival_s: Floats) -> Ints:
    """Rows by arrival; a request that a closed loop never sent (NaN) comes last."""
    return np.argsort(arrival_s, kind="stable")


def latencies(result: Result) -> dict[str, Floats]:
    """Seconds of each measured request: ttft, e2el, queue_time, and tpot_or_0, which is 0 for a single token.

    `tpot` has an entry only for each request of more than one token.
    """
    requests, measured = result.requests, _measured(result)
    arrival, first = requests["arrival_s"][measured], requests["first_token_s"][measured]
    finish, tokens = requests["finish_s"][measured], requests["generated_tokens"][measured]
    several = tokens > 1
    decode_s = np.where(several, finish - first, 0.0)
    return {
        "ttft": first - arrival,
        "tpot": decode_s[several] / (tokens[several] - 1),
        "tpot_or_0": decode_s / np.maximum(tokens - 1, 1),
        "e2el": finish - arrival,
        "queue_time": requests["scheduled_s"][measured] - arrival,
    }


def _good_requests(samples: Mapping[str, Floats], slo_s: Mapping[str, float]) -> NDArray[np.bool_]:
    """Which measured requests meet every objective; TPOT counts as 0 for a request of one token (as in vLLM)."""
    good = np.ones(len(samples["e2el"]), dtype=bool)
    for name, limit in slo_s.items():
        good &= samples["tpot_or_0" if name == "tpot" else name] <= limit
    return good


def statistics_of(seconds: Floats) -> dict[str, float | None]:
    """Mean, median, population std and `PERCENTS` of the samples, in milliseconds; None of no samples."""
    if not len(seconds):
        return _statistics(None, None, [None] * len(PERCENTS))
    quantiles = [float(x) for x in np.percentile(seconds, PERCENTS)]
    return _statistics(float(seconds.mean()), float(seconds.std()), quantiles)


def gap_statistics(pool: GapPool) -> dict[str, float | None]:
    """The same statistics of a pool of gaps."""
    if not pool.count:
        return _statistics(None, None, [None] * len(PERCENTS))
    mean, std = pool.mean_std()
    return _statistics(mean, std, pool.percentiles(PERCENTS))


def _statistics(mean: float | None, std: float | None, quantiles: list[Any]) -> dict[str, float | None]:
    names = ["mean", "median", "std", *(f"p{percent:g}" for percent in PERCENTS)]
    values = [mean, quantiles[PERCENTS.index(50.0)], std, *quantiles]
    return {name: None if value is None else value * 1e3 for name, value in zip(names, values, strict=True)}


def _named(metric: str, statistics: Mapping[str, float | None]) -> dict[str, float | None]:
    return {f"{key}_{metric}_ms": value for key, value in statistics.items()}


def gap_pool(result: Result) -> GapPool:
    """All inter-token gaps of the measured requests."""
    steps = result.steps
    weight = np.asarray(steps["itl_tokens"], dtype=np.int64)
    warmup = _warmup(result)
    if warmup.any():
        weight = np.maximum(weight - _decoding(result, warmup), 0)
    return GapPool(
        first_s=np.asarray(steps["first_s"], dtype=np.float64),
        growth_s=np.asarray(steps["growth_s"], dtype=np.float64),
        iterations=np.asarray(steps["iterations"], dtype=np.int64),
        weight=weight,
        irregular_s=np.asarray(result.irregular_gaps_s, dtype=np.float64),
    )


def segment_s(steps: Columns) -> Floats:
    """How long each segment lasts: the sum of its iterations."""
    k = np.asarray(steps["iterations"], dtype=np.float64)
    return np.asarray(k * steps["first_s"] + steps["growth_s"] * k * (k - 1) / 2, dtype=np.float64)


def _decoding(result: Result, chosen: NDArray[np.bool_]) -> Ints:
    """How many of the `chosen`, never preempted requests decode in each segment.

    A batch does not change within a segment, so the middle of the segment decides."""
    steps, requests = result.steps, result.requests
    chosen = chosen & (requests["preemptions"] == 0) & ~np.isnan(requests["finish_s"])
    middle = _middle_s(result)
    found = np.zeros(len(middle), dtype=np.int64)
    for replica in np.unique(requests["replica"][chosen]):
        here, mine = steps["replica"] == replica, chosen & (requests["replica"] == replica)
        begun = np.searchsorted(np.sort(requests["first_token_s"][mine]), middle[here])
        ended = np.searchsorted(np.sort(requests["finish_s"][mine]), middle[here])
        found[here] = begun - ended
    return found


def _middle_s(result: Result) -> Floats:
    """The middle of each segment on the clock of the request stamps."""
    return np.asarray(result.steps["start_s"] + segment_s(result.steps) / 2 + result.exit_s, dtype=np.float64)


def peak_tokens_per_s(result: Result) -> float | None:
    """The most output tokens in one whole second since the first arrival (vLLM's `max_output_tokens_per_s`)."""
    steps = result.steps
    if not len(steps["start_s"]):
        return None
    origin = float(np.nanmin(result.requests["arrival_s"])) - result.exit_s
    end = float((steps["start_s"] + segment_s(steps)).max())
    dense = end - origin < _MOST_SECONDS
    seconds = np.zeros(int(end - origin) + 2 if dense else 0)
    by_second: dict[float, float] = {}
    start, first, growth = steps["start_s"] - origin, steps["first_s"], steps["growth_s"]
    sampled = steps["sampled"]
    for segment, index in expand(np.asarray(steps["iterations"], dtype=np.int64)):
        token_s = start[segment] + (index + 1) * (first[segment] + growth[segment] * (index / 2))
        if dense:
            seconds += np.bincount(token_s.astype(np.int64), weights=sampled[segment], minlength=len(seconds))
            continue
        second, place = np.unique(np.floor(token_s), return_inverse=True)
        for one, tokens in zip(second, np.bincount(place, weights=sampled[segment]), strict=True):
            by_second[one] = by_second.get(one, 0.0) + float(tokens)
    return float(seconds.max()) if dense else max(by_second.values())


def peak_concurrency(requests: Columns, end_s: float) -> int:
    """The most requests in the system at one instant.

    A request that leaves at the instant another arrives makes room for it. (vLLM counts every request that touches one
    and the same second, so its number can exceed the users of a closed loop; this one cannot.)
    """
    inside = in_system(requests, end_s)
    arrivals = np.sort(requests["arrival_s"][inside])
    finishes = np.sort(requests["finish_s"][inside])  # NaN (never) sorts last and is never counted
    if not len(arrivals):
        return 0
    gone = np.searchsorted(finishes[~np.isnan(finishes)], arrivals, side="right")
    return int((np.arange(1, len(arrivals) + 1) - gone).max())


def in_system(requests: Columns, end_s: float) -> NDArray[np.bool_]:
    """Which requests were ever in the system: arrived before the run ended, and not turned away."""
    return np.asarray((requests["status"] != REJECTED) & (requests["arrival_s"] <= end_s))
