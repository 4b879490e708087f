"""Recorded requests: read from the formats of the field, cut, scaled, and described.

`read_trace` is the door; `FORMATS` says what it knows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sim.errors import InputError, nearest
from sim.workload import servegen, trace_formats
from sim.workload.prompts import HashedPrompts


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests as recorded, one entry of every array a request.

    Attributes:
        arrival_s: seconds since the beginning of the trace, sorted (rows at equal times keep their order).
        input_tokens, output_tokens: at least 1.
        prompts: prefix hashes, where the format has them.
        format: one of `FORMATS`.
        dropped: rows left out because nothing was generated (failed requests).
    """

    arrival_s: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    prompts: HashedPrompts | None
    format: str
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.arrival_s)

    def take(self, rows: NDArray[np.int64]) -> Trace:
        """The requests of `rows`, in that order."""
        prompts = self.prompts.take(rows) if self.prompts else None
        arrays = self.arrival_s[rows], self.input_tokens[rows], self.output_tokens[rows]
        return Trace(*arrays, prompts, self.format, self.dropped)


FORMATS = ("azure", "burstgpt", "mooncake", "servegen", "timed_trace", "csv", "parquet")


def read_trace(
    path: str | Path,
    format: str | None = None,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
    max_requests: int | None = None,
    random: Generator | None = None,
) -> Trace:
    """The requests recorded in `path` between `start_s` and `end_s`, their times counted from `start_s`.

    Args:
        path: a file; for ServeGen a client's file or a folder of clients.
        format: one of `FORMATS`; None: recognised by header or extension.
        start_s, end_s: seconds since the beginning of the trace; None: to its end.
        max_requests: no more than this many, the first ones.
        random: needed by ServeGen only, whose files hold rates and not requests.

    Raises:
        InputError: no such file, an unknown format, a bad row (with its line), or no request left.
    """
    path = Path(path)
    if not path.exists():
        hint = "some traces are downloads of their own: --set workload.arrivals.path=FILE takes a copy from anywhere"
        raise InputError(str(path), "does not exist", hint)
    if format is not None and format not in FORMATS:
        raise InputError(str(path), f"got the unknown trace format '{format}'", nearest(format, FORMATS))
    found = format or trace_formats.detect(path)
    if found == "servegen":
        random = random or np.random.default_rng(0)
        rows = servegen.generate(path, start_s, end_s, max_requests, random)
    else:
        rows = trace_formats.READERS[found](path)
    trace = _trace(rows, found)
    if len(trace) == 0:
        raise InputError(str(path), _why_empty(trace), "give a trace with at least one request")
    if found != "servegen":
        trace = _slice(trace, start_s, end_s, path)
    return trace if max_requests is None else trace.take(np.arange(min(max_requests, len(trace))))


def _why_empty(trace: Trace) -> str:
    return "holds no request" + (f" that succeeded ({trace.dropped} failed)" if trace.dropped else "")


def _trace(rows: trace_formats.Rows, found: str) -> Trace:
    """Rows in time order from zero, without those that generated nothing."""
    prompts = None
    if rows.hash_ids is not None:
        counts = np.fromiter((len(ids) for ids in rows.hash_ids), np.int64, len(rows.hash_ids))
        flat = np.fromiter((block for ids in rows.hash_ids for block in ids), np.int64, int(counts.sum()))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        prompts = HashedPrompts(flat, offsets, rows.input_tokens, rows.hash_block_size)
    served = (rows.output_tokens > 0) & (rows.input_tokens > 0)
    dropped = len(served) - int(served.sum())
    # ServeGen's times are drawn and already counted from where the user began
    first_s = float(rows.arrival_s.min()) if len(served) and found != "servegen" else 0.0
    trace = Trace(rows.arrival_s - first_s, rows.input_tokens, rows.output_tokens, prompts, found, dropped)
    in_order = bool(np.all(np.diff(rows.arrival_s) >= 0))
    if in_order and not dropped:
        return trace
    order = np.argsort(rows.arrival_s, kind="stable")
    return trace.take(order[served[order]])


def _slice(trace: Trace, start_s: float, end_s: float | None, path: Path) -> Trace:
    if start_s == 0 and end_s is None:
        return trace
    inside = trace.arrival_s >= start_s
    if end_s is not None:
        inside &= trace.arrival_s < end_s
    if not inside.any():
        length = f"the trace lasts {trace.arrival_s[-1]:.6g} s"
        raise InputError(
            str(path),
            f"holds no request from {start_s:g} s to {'its end' if end_s is None else f'{end_s:g} s'}",
            length,
        )
    chosen = trace.take(np.flatnonzero(inside))
    return replace(chosen, arrival_s=chosen.arrival_s - start_s)


def scale_rate(trace: Trace, factor: float, random: Generator) -> Trace:
    """`factor` times as many requests over the same time, with the same pattern.

    Below 1 each request is kept with probability `factor`. Above 1 the trace is laid over itself, every copy shifted
    round the clock by a random time so that copies do not coincide; prefixes are shared between copies.

    Raises:
        InputError: nothing is left.
    """
    copies, part = divmod(factor, 1.0)
    rows, times = [], []
    length_s = float(trace.arrival_s[-1])
    for copy in range(int(copies) + (part > 0)):
        share = 1.0 if copy < int(copies) else part
        chosen = np.flatnonzero(random.random(len(trace)) < share)
        shift_s = random.uniform(0, length_s) if copy else 0.0
        moved = trace.arrival_s[chosen] + shift_s
        rows.append(chosen)
        times.append(np.where(moved > length_s, moved - length_s, moved))
    arrival_s = np.concatenate(times)
    if not len(arrival_s):
        raise InputError(
            "rate_scale", f"got {factor:g}, which leaves none of {len(trace)} requests", "choose a larger one"
        )
    order = np.argsort(arrival_s, kind="stable")
    return replace(trace.take(np.concatenate(rows)[order]), arrival_s=arrival_s[order])
