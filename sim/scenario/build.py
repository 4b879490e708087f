"""From the workload section of a scenario to the requests of its run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.scenario.workload_spec import (
    Burst,
    ClosedLoop,
    Constant,
    Empirical,
    Fixed,
    Lengths,
    Lognormal,
    Poisson,
    TraceArrivals,
    Uniform,
    Weibull,
    WorkloadSpec,
)
from sim.workload import arrivals, lengths
from sim.workload.randomness import generator
from sim.workload.traces import Trace, read_trace, scale_rate
from sim.workload.workload import Workload, think_times

# as many as vLLM's `--num-prompts` sends unless told otherwise
DEFAULT_REQUESTS = 1000


def build_workload(spec: WorkloadSpec) -> Workload:
    """The requests that `spec` describes; the same spec gives the same requests.

    Raises:
        InputError: a trace file is missing or wrong.
    """
    if isinstance(spec.arrivals, TraceArrivals):
        return _from_trace(spec, spec.arrivals)
    count = spec.num_requests or DEFAULT_REQUESTS
    arrival_s = _arrival_times(spec.arrivals, count, spec.seed)
    if arrival_s is not None:
        count = len(arrival_s)
    assert spec.lengths is not None  # the spec's own check: only a trace may leave them out
    inputs, outputs = _token_counts(spec.lengths, count, spec.seed)
    if not isinstance(spec.arrivals, ClosedLoop):
        return Workload(inputs, outputs, arrival_s)
    loop = spec.arrivals
    thinking = think_times(count, loop.think_time_s, loop.think_time_cv, generator(spec.seed, "think_time"))
    return Workload(inputs, outputs, concurrency=loop.concurrency, think_time_s=thinking, ramp_s=loop.ramp_s)


def _arrival_times(
    spec: ClosedLoop | Poisson | Constant | Weibull | Burst, count: int, seed: int
) -> NDArray[np.float64] | None:
    random = generator(seed, "arrivals")
    if isinstance(spec, Poisson):
        return arrivals.gamma(count, spec.request_rate, spec.burstiness, random)
    if isinstance(spec, Constant):
        return arrivals.constant(count, spec.request_rate)
    if isinstance(spec, Weibull):
        return arrivals.weibull(count, spec.request_rate, spec.shape, random)
    if isinstance(spec, Burst):
        return arrivals.burst(count)
    return None


def _token_counts(spec: Lengths, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(input tokens, output tokens) of `count` requests."""
    random = generator(seed, "lengths")
    if isinstance(spec, Fixed):
        return lengths.fixed(count, spec.input_tokens), lengths.fixed(count, spec.output_tokens)
    if isinstance(spec, Uniform):
        (least, most), (out_least, out_most) = spec.input_tokens, spec.output_tokens
        return lengths.uniform(count, least, most, random), lengths.uniform(count, out_least, out_most, random)
    if isinstance(spec, Lognormal):
        inputs = lengths.lognormal(count, spec.input_mean, spec.input_cv, spec.max_tokens, random)
        return inputs, lengths.lognormal(count, spec.output_mean, spec.output_cv, spec.max_tokens, random)
    pairs = read_pairs(spec)
    return lengths.resample(count, pairs.input_tokens, pairs.output_tokens, random)


def read_pairs(spec: Empirical) -> Trace:
    """The requests whose lengths are drawn from."""
    return read_trace(spec.path)


def _from_trace(spec: WorkloadSpec, source: TraceArrivals) -> Workload:
    random = generator(spec.seed, "trace")
    enough = spec.num_requests if source.rate_scale == 1 else None
    trace = read_trace(
        source.path, source.format, start_s=source.start_s, end_s=source.end_s, max_requests=enough, random=random
    )
    if source.rate_scale != 1:
        trace = scale_rate(trace, source.rate_scale, random)
    if spec.num_requests is not None:
        trace = trace.take(np.arange(min(spec.num_requests, len(trace))))
    arrival_s = trace.arrival_s * source.time_scale
    if spec.lengths is None:
        tokens = trace.input_tokens, trace.output_tokens
        return Workload(*tokens, arrival_s, prompts=trace.prompts, dropped=trace.dropped)
    tokens = _token_counts(spec.lengths, len(trace), spec.seed)
    return Workload(*tokens, arrival_s, dropped=trace.dropped)
