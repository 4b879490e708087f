"""From the workload section of a scenario to the requests of its run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from sim.scenario import workload_spec as specs
from sim.workload import arrivals, lengths
from sim.workload.randomness import generator
from sim.workload.request import SharedPrefixPrompts
from sim.workload.traces import read_trace, scale_rate
from sim.workload.workload import Workload, think_times

# as many as vLLM's `--num-prompts` sends unless told otherwise
DEFAULT_REQUESTS = 1000


def build_workload(spec: specs.WorkloadSpec) -> Workload:
    """The requests that `spec` describes; the same spec gives the same requests.

    Raises:
        InputError: a trace file is missing or wrong; no request arrives.
    """
    if isinstance(spec.arrivals, specs.TraceArrivals):
        workload = _from_trace(spec, spec.arrivals)
    elif isinstance(spec.arrivals, specs.ClosedLoop):
        workload = _closed_loop(spec, spec.arrivals)
    else:
        arrival_s = _arrival_times(spec.arrivals, spec.num_requests, spec.seed)
        workload = Workload(*_token_counts(spec.lengths, len(arrival_s), spec.seed), arrival_s)
    return workload if spec.shared_prefix is None else _prefixed(workload, spec.shared_prefix, spec.seed)


def _prefixed(workload: Workload, spec: specs.SharedPrefix, seed: int) -> Workload:
    """The workload with a shared prefix before every prompt."""
    if workload.prompts is not None:
        hint = "leave shared_prefix out, or give lengths, which replace those of the trace"
        raise InputError("workload.shared_prefix", "the trace says itself which prompts begin alike", hint)
    inputs = workload.input_tokens + spec.tokens
    prefix_of = generator(seed, "prefixes").integers(0, spec.prefixes, len(workload))
    return replace(workload, input_tokens=inputs, prompts=SharedPrefixPrompts(prefix_of, spec.tokens, inputs))


def _closed_loop(spec: specs.WorkloadSpec, loop: specs.ClosedLoop) -> Workload:
    count = spec.num_requests or DEFAULT_REQUESTS
    tokens = _token_counts(spec.lengths, count, spec.seed)
    thinking = think_times(count, loop.think_time_s, loop.think_time_cv, generator(spec.seed, "think_time"))
    return Workload(*tokens, concurrency=loop.concurrency, think_time_s=thinking, ramp_s=loop.ramp_s)


def _arrival_times(spec: specs.Arrivals, asked: int | None, seed: int) -> NDArray[np.float64]:
    """Arrival times of an open loop; `asked` requests, or as many as the kind gives by default."""
    random = generator(seed, "arrivals")
    count = asked or DEFAULT_REQUESTS
    match spec:
        case specs.Poisson():
            return arrivals.gamma(count, spec.request_rate, spec.burstiness, random)
        case specs.Constant():
            return arrivals.constant(count, spec.request_rate)
        case specs.Weibull():
            return arrivals.weibull(count, spec.request_rate, spec.shape, random)
        case specs.OnOff():
            return arrivals.on_off(count, spec.request_rate, spec.on_s, spec.off_s, random)
        case specs.Piecewise():
            stages = [(stage.duration_s, stage.request_rate) for stage in spec.stages]
            times = arrivals.piecewise(asked, stages, random)
            if not len(times):
                hint = "give the stages more time, a higher rate or another seed"
                raise InputError("workload.arrivals.stages", "no request arrives in them", hint)
            return times
        case specs.Diurnal():
            return arrivals.diurnal(count, spec.request_rate, spec.amplitude, spec.period_s, random)
        case specs.Burst():
            return arrivals.burst(count)
        case _:
            raise AssertionError(f"{spec.kind} has no arrival times of its own")


def _token_counts(spec: specs.Lengths | None, count: int, seed: int) -> tuple[lengths.Tokens, lengths.Tokens]:
    """(input tokens, output tokens) of `count` requests."""
    random = generator(seed, "lengths")
    match spec:
        case specs.Fixed():
            return lengths.fixed(count, spec.input_tokens), lengths.fixed(count, spec.output_tokens)
        case specs.Uniform():
            (least, most), (output_least, output_most) = spec.input_tokens, spec.output_tokens
            inputs = lengths.uniform(count, least, most, random)
            return inputs, lengths.uniform(count, output_least, output_most, random)
        case specs.Lognormal():
            inputs = lengths.lognormal(count, spec.input_mean, spec.input_cv, spec.max_tokens, random)
            return inputs, lengths.lognormal(count, spec.output_mean, spec.output_cv, spec.max_tokens, random)
        case specs.Empirical():
            pairs = read_trace(spec.path, random=random)
            return lengths.resample(count, pairs.input_tokens, pairs.output_tokens, random)
        case None:
            raise AssertionError("only a trace may leave the lengths out")


def _from_trace(spec: specs.WorkloadSpec, source: specs.TraceArrivals) -> Workload:
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
    if source.jitter_s:
        arrival_s = np.sort(arrival_s + random.uniform(0, source.jitter_s, len(trace)))
    if spec.lengths is None:
        prompts = trace.prompts
        return Workload(trace.input_tokens, trace.output_tokens, arrival_s, prompts=prompts, dropped=trace.dropped)
    return Workload(*_token_counts(spec.lengths, len(trace), spec.seed), arrival_s, dropped=trace.dropped)
