"""What a run means, in plain words: does it fit, which wall, who waits, and what would move it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim import units
from sim.engine.recorder import FINISHED
from sim.results.metrics import in_system
from sim.results.occupancy import mean_over_time, peak
from sim.results.result import Result

CAUSES: dict[str, tuple[str, str]] = {
    "queue": ("queue", "waiting"),
    "prefill": ("prefill of its own", "prefill"),
    "host_fetch": ("cached blocks from the host", "prefill"),
    "interference": ("prefill of others", "prefill"),
    "weights_read": ("weights read", "memory"),
    "kv_read": ("KV read", "memory"),
    "compute": ("compute", "compute"),
    "activations": ("activations through HBM", "memory"),
    "collective_latency": ("all-reduce latency", "communication"),
    "collective_bandwidth": ("all-reduce bandwidth", "communication"),
    "shared_links": ("others on the same links", "communication"),
    "kv_transfer": ("KV cache on its way", "communication"),
    "pipeline_bubble": ("pipeline bubbles", "communication"),
    "lock_step": ("waiting for other ranks", "communication"),
    "draft": ("proposing of drafts", "overhead"),
    "kernel_fixed": ("kernel fixed cost", "overhead"),
    "engine_overhead": ("engine overhead", "overhead"),
    "preemption": ("preemption", "waiting"),
}
"""Cause of a millisecond -> how people call it, and the wall it belongs to."""

_WALLS = {
    "memory": "the memory wall (HBM bandwidth)",
    "communication": "the communication wall (all-reduces)",
    "compute": "compute (tensor cores)",
    "overhead": "fixed costs (kernel launches and the engine itself)",
}
"""The walls that decoding a token can hit; waiting and prefill are not a token's own time."""
_MOVES = {
    "weights_read": "weights in fewer bits, or a larger tensor_parallel_size, shorten the read of the weights",
    "kv_read": "an fp8 KV cache halves the read of the KV cache",
    "activations": "fused kernels keep activations out of HBM",
    "compute": "fp8 arithmetic, more GPUs or shorter prompts shorten the compute",
    "collective_latency": "fewer GPUs in the tensor-parallel group, or replicas instead, cut the all-reduce latency",
    "collective_bandwidth": "faster links, or fewer nodes a tensor-parallel group, cut the all-reduce bandwidth time",
    "kernel_fixed": "fused kernels, or more users a GPU to share them, cut the kernel fixed cost",
    "engine_overhead": "asynchronous scheduling or a leaner engine preset hides the engine overhead",
    "interference": "a smaller max_num_batched_tokens, or GPUs for prefill alone, shorten the wait for others' prompts",
    "shared_links": "links of its own for every group (rails instead of one port) end the sharing",
    "pipeline_bubble": "more users keep every stage busy; fewer stages have fewer bubbles",
    "lock_step": "smaller prompt chunks, or prefill apart, make the ranks that share experts more equal",
    "draft": "fewer num_speculative_tokens, or a smaller draft, shorten the proposing",
    "preemption": "fewer users at a time (max_num_seqs), or more room for KV, end the recomputing",
    "queue": "room for more KV (fewer bits, more gpu_memory_utilization, more GPUs) or a replica shortens the queue",
}


NOTHING = "No request finished."


def label(cause: str) -> str:
    return CAUSES[cause][0] if cause in CAUSES else cause.replace("_", " ")


def load_state(result: Result) -> str:
    """closed | stable | backlogged | overloaded.

    An open loop is overloaded if its queue has stood since the first half of the arrivals and grows by more than chance;
    backlogged if a queue stands that does not grow on (or everything came at once): most requests find others waiting, and
    waiting is a good part of their time. It is stable otherwise, however many wait now and then.
    """
    if result.concurrency is not None:
        return "closed"
    arrival = np.sort(result.requests["arrival_s"][in_system(result.requests, result.end_s)])
    scheduled = np.sort(result.requests["scheduled_s"])
    scheduled = scheduled[~np.isnan(scheduled)]
    count = len(arrival)
    found = np.arange(count) - np.searchsorted(scheduled, arrival, side="right")  # others that wait as one arrives
    if count < 4 or arrival[-1] == arrival[0]:
        return "backlogged" if count and (found > 0).any() else "stable"
    if _grows(found):
        return "overloaded"
    queue, whole = result.summary["mean_queue_time_ms"], result.summary["mean_e2el_ms"]
    waits = queue is not None and queue > 0.25 * whole
    return "backlogged" if waits and (found > 0).mean() > 0.75 else "stable"


def _grows(waiting: NDArray[np.int64]) -> bool:
    """Whether a queue, seen at every arrival, grows on.

    A load just below what the engine can serve wanders too, so growth since the queue was last empty is held against its own
    noise: the changes over stretches of equally many arrivals, whose mean must be twice its standard error.
    """
    empty = np.flatnonzero(waiting <= 0)
    since = waiting[empty[-1] if len(empty) else 0 :]
    stretches = min(20, len(since) // 5)
    if len(since) < len(waiting) / 2 or stretches < 2 or since[-1] - since[0] < 4:
        return False
    changes = np.diff(since[np.linspace(0, len(since) - 1, stretches + 1).astype(np.int64)])
    return bool(changes.mean() > 2 * changes.std(ddof=1) / np.sqrt(stretches))


def verdict(result: Result) -> list[str]:
    """The answer of a run as a few sentences."""
    sentences = [_fits(result)]
    if len(result.steps["start_s"]):
        return [*sentences, _occupancy(result), *_speed(result), *_wall(result), *_objectives(result)]
    return sentences if result.oom is not None else [*sentences, NOTHING]


def _fits(result: Result) -> str:
    if result.oom is not None:
        oom = result.oom
        return (
            f"Out of memory at {units.format_time(oom['time_s'])} on {oom['gpu']}: request {oom['request']} needed"
            f" {units.format_bytes(oom['needed_bytes'])} more of KV cache with"
            f" {units.format_bytes(oom['free_bytes'])} free ({oom['kv_tokens']:,} tokens held)."
        )
    gpus = "1 GPU" if result.num_gpus == 1 else f"{result.num_gpus} GPUs"
    text = f"The model fits on {gpus}"
    if result.ledger is not None:
        text += (
            f": {units.format_bytes(result.ledger.weights_bytes)} of weights, and room for"
            f" {result.ledger.kv_tokens_capacity:,} tokens of KV cache"
            f" ({result.ledger.max_sequences:,} sequences of full length)"
        )
    ends = {"timed_out": ". The run was cut at its time limit", "stuck": ". The clock was stuck"}
    return text + ends.get(result.status, "") + "."


def _occupancy(result: Result) -> str:
    running, waiting = mean_over_time(result, "running"), mean_over_time(result, "waiting")
    most = peak(result, "running")
    if result.concurrency is not None:
        text = f"Of {result.concurrency:,} users {running:.1f} run at a time on average, {most:,} at most"
        text += f"; {waiting:.1f} wait." if waiting >= 0.05 else "; nobody waits for a place."
    else:
        state = load_state(result)
        text = f"{running:.1f} requests run at a time on average, {most:,} at most; {waiting:.1f} wait. "
        text += {
            "stable": "The load is stable.",
            "backlogged": "A backlog stands in front of the engine, but it does not grow.",
            "overloaded": "OVERLOADED: the queue grows as long as requests arrive, so latencies depend on the length of"
            " the run and not on the deployment.",
        }[state]
    if result.preemptions:
        hit = int((result.requests["preemptions"] > 0).sum())
        share = hit / max(1, len(result.requests["id"]))
        text += (
            f" The KV cache runs full: {result.preemptions:,} preemptions hit {hit:,} requests ({share:.0%}),"
            " whose tokens are computed again."
        )
    return text


def _speed(result: Result) -> list[str]:
    summary = result.summary
    if summary["median_e2el_ms"] is None:
        return [NOTHING]
    text = ""
    if summary["output_tokens_per_s_per_user"]:
        text = (
            f"A user reads {summary['output_tokens_per_s_per_user']:.1f} tokens/s"
            f" (median TPOT {summary['median_tpot_ms']:.1f} ms). "
        )
    text += (
        f"First token after {units.format_time(summary['median_ttft_ms'] / 1e3)} in the median,"
        f" {units.format_time(summary['p99_ttft_ms'] / 1e3)} at P99"
    )
    queued, whole = summary["mean_queue_time_ms"], summary["mean_e2el_ms"]
    text += f"; {queued / whole:.0%} of a request's time is waiting to be scheduled." if queued > 0.01 * whole else "."
    total = f"All together: {summary['output_throughput']:,.0f} output tokens/s"
    if result.num_gpus > 1:
        total += f", {summary['output_throughput_per_gpu']:,.0f} a GPU"
    return [text, total + "."]


def _wall(result: Result) -> list[str]:
    walls: dict[str, float] = {}
    spent: dict[str, float] = {}
    for cause, ms in result.walls_ms_per_token.items():
        wall = CAUSES[cause][1] if cause in CAUSES else "overhead"
        if wall in _WALLS:
            walls[wall] = walls.get(wall, 0.0) + ms
            spent[cause] = ms
    total = sum(spent.values())
    if total <= 0:
        return []
    first = max(walls, key=lambda name: walls[name])
    cause = max(spent, key=lambda name: spent[name])
    text = (
        f"Decoding hits {_WALLS[first]} first: {walls[first]:.2f} of {total:.2f} ms a token ({walls[first] / total:.0%});"
        f" the largest single cause is {label(cause)} with {spent[cause]:.2f} ms."
    )
    causes = [cause]
    beside = {name: result.walls_ms_per_token.get(name, 0.0) for name in ("queue", "preemption", "interference")}
    # worth a word where it costs a user a quarter of what decoding does
    causes += [name for name, ms in beside.items() if ms > 0.25 * total]
    moves = [_MOVES[name] for name in causes if name in _MOVES]
    return [text, "What would move it: " + "; ".join(moves) + "."] if moves else [text]


def _objectives(result: Result) -> list[str]:
    share = result.summary["slo_attainment"]
    if share is None:
        return []
    limits = ", ".join(f"{name.upper()} {units.format_time(limit)}" for name, limit in result.slo_s.items())
    finished = int((result.requests["status"] == FINISHED).sum())
    return [f"{share:.1%} of {finished:,} finished requests meet the objectives ({limits})."]
