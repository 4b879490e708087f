"""From the workload section of a scenario to the requests of its run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from sim.scenario import workload_spec as specs
from sim.workload import arrivals, lengths
from sim.workload.prompts import SharedPrefixPrompts
from sim.workload.randomness import generator
from sim.workload.sessions import SessionPrompts, draw_turns
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
    elif spec.sessions is None:
        arrival_s = _arrival_times(spec.arrivals, spec.num_requests, spec.seed)
        workload = Workload(*_token_counts(spec.lengths, len(arrival_s), spec.seed), arrival_s)
    else:
        workload = _conversations(spec, spec.sessions, None)
    if spec.shared_prefix is not None and spec.sessions is None:
        workload = _prefixed(workload, spec.shared_prefix, spec.seed)
    return workload if spec.tenants is None else _tenanted(workload, spec.tenants, spec.seed)


def _prefixed(workload: Workload, spec: specs.SharedPrefix, seed: int) -> Workload:
    """The workload with a shared prefix before every prompt."""
    if workload.prompts is not None:
        hint = "leave shared_prefix out, or give lengths, which replace those of the trace"
        raise InputError("workload.shared_prefix", "the trace says itself which prompts begin alike", hint)
    inputs = workload.input_tokens + spec.tokens
    prefix_of = generator(seed, "prefixes").integers(0, spec.prefixes, len(workload))
    return replace(workload, input_tokens=inputs, prompts=SharedPrefixPrompts(prefix_of, spec.tokens, inputs))


def _closed_loop(spec: specs.WorkloadSpec, loop: specs.ClosedLoop) -> Workload:
    if spec.sessions is not None:
        return _conversations(spec, spec.sessions, loop)
    count = spec.num_requests or DEFAULT_REQUESTS
    tokens = _token_counts(spec.lengths, count, spec.seed)
    thinking = think_times(count, loop.think_time_s, loop.think_time_cv, generator(spec.seed, "think_time"))
    return Workload(*tokens, concurrency=loop.concurrency, think_time_s=thinking, ramp_s=loop.ramp_s)


def _conversations(spec: specs.WorkloadSpec, sessions: specs.Sessions, loop: specs.ClosedLoop | None) -> Workload:
    """Turns that arrive after each other; conversations that arrive as `spec` says, or from the users of a closed loop."""
    least, most = sessions.turns
    random = generator(spec.seed, "sessions")
    bounded = isinstance(spec.arrivals, specs.Piecewise)  # no conversation begins after the last stage
    starts_s = _arrival_times(spec.arrivals, None, spec.seed) if bounded else None
    if starts_s is None:
        turns = draw_turns(spec.num_requests or DEFAULT_REQUESTS, None, least, most, random)
    else:
        turns = draw_turns(spec.num_requests, len(starts_s), least, most, random)
    count, first = len(turns.session), turns.first
    new, outputs = _token_counts(spec.lengths, count, spec.seed)
    system_of, system = None, spec.shared_prefix
    if system is not None:
        system_of = generator(spec.seed, "prefixes").integers(0, system.prefixes, int(first.sum()))
    system_tokens = 0 if system is None else system.tokens
    pauses = think_times(count, sessions.pause_s, sessions.pause_cv, random)
    before = (
        0.0
        if loop is None
        else think_times(count, loop.think_time_s, loop.think_time_cv, generator(spec.seed, "think_time"))
    )
    if loop is None and starts_s is None:
        starts_s = _arrival_times(spec.arrivals, int(first.sum()), spec.seed)
    return Workload(
        turns.grown(new, outputs, system_tokens),
        outputs,
        None if starts_s is None else starts_s[turns.session],
        None if loop is None else loop.concurrency,
        np.where(first, 0.0 if before is None else before, 0.0 if pauses is None else pauses),
        0.0 if loop is None else loop.ramp_s,
        prompts=SessionPrompts(turns.session, system_of, system_tokens),
        next_turn=turns.next_turn,
        session=turns.session,
    )


def _tenanted(workload: Workload, tenants: list[specs.Tenant], seed: int) -> Workload:
    """The workload with a tenant for each request, the same for all turns of a conversation."""
    shares = np.array([tenant.share for tenant in tenants])
    drawn = generator(seed, "tenants").choice(len(tenants), len(workload), p=shares / shares.sum())
    tenant = drawn if workload.session is None else drawn[workload.session]
    priorities = np.array([tenant.priority for tenant in tenants])
    return replace(workload, tenant=tenant, priority=priorities[tenant])


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
