"""The latency of every request as a sum of parts: where its milliseconds went."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.cost.causes import CAUSES
from sim.cost.preset import EnginePreset
from sim.engine.recorder import FINISHED, Columns
from sim.results.walls import Walls

PARTS = ("queue", "host_fetch", "prefill", "kv_transfer", "interference", *CAUSES, "preemption")
"""What a request's end-to-end latency is made of: waiting to be scheduled, cached blocks on their way from host memory, its own
prefill, its KV cache's way from a prefill to a decode replica (up to its next token), others' prefill chunks beside its decoding,
the causes of the decode iterations themselves, and the time lost to preemption and recompute."""

Floats = NDArray[np.float64]
ADDS_UP = 1e-9
"""Relative error up to which sums of the same times are equal."""


class Spans(NamedTuple):
    """Stretches of decoding on a replica."""

    replica: NDArray[np.int64]
    start_s: Floats
    end_s: Floats


class Ranges(NamedTuple):
    """Steps of each stretch: places `first` to `last` of `order`."""

    order: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]


class Latency:
    """Splits the end-to-end latency of every finished request.

    Args:
        walls: the steps by cause.
        requests, steps, chunks, gaps, fetches: columns of the recorder.
        preset: its entry and exit times are part of each request's engine overhead.
        transfers: prefill and decode are apart, so a gap after the first token is the KV cache's way.
    """

    def __init__(
        self,
        walls: Walls,
        requests: Columns,
        steps: Columns,
        chunks: Columns,
        gaps: Columns,
        preset: EnginePreset,
        transfers: bool = False,
        fetches: Columns | None = None,
    ) -> None:
        self._transfers, self._fetches = transfers, fetches
        self._walls, self._requests, self._steps, self._chunks, self._gaps = walls, requests, steps, chunks, gaps
        self._entry_s, self._exit_s = preset.entry_s, preset.exit_s
        done = requests["status"] == FINISHED
        self._mine = requests if done.all() else {name: column[done] for name, column in requests.items()}
        self._first_s = self._mine["first_token_s"] - self._exit_s
        self._finish_s = self._mine["finish_s"] - self._exit_s

    def _parts(self) -> Iterator[tuple[str, Floats]]:
        """(part, its seconds for every finished request in the order of ids) of all `PARTS`; they sum to its latency."""
        mine, count = self._mine, len(self._finish_s)
        first_fetch_s, later_fetch_s = self._fetch_s()
        yield "queue", mine["scheduled_s"] - mine["arrival_s"] - self._entry_s - first_fetch_s
        yield "host_fetch", first_fetch_s + later_fetch_s
        prefill_s, lane = self._own_prefill()
        yield "prefill", prefill_s
        place, spans_of, spans = self._decode_spans(lane)
        lost_s = self._finish_s - self._first_s
        np.add.at(lost_s, spans_of, spans.start_s - spans.end_s)
        lost_s = np.where(np.isin(np.arange(count), place), lost_s, 0.0)
        lost_s += self._first_s - mine["scheduled_s"] - prefill_s
        transfer_s = self._transfer_s() if self._transfers else np.zeros(count)
        yield "kv_transfer", transfer_s
        lost_s -= transfer_s + later_fetch_s
        preempted = mine["preemptions"] > 0
        ranges = self._ranges(spans)
        base, others_s = self._walls.base_causes, self._walls.duration_s.copy()
        for seconds in base.values():
            others_s -= seconds
        yield "interference", self._between(ranges, spans_of, others_s) + np.where(preempted, 0.0, lost_s)
        for cause in CAUSES:
            own_s = self._between(ranges, spans_of, base[cause]) if cause in base else np.zeros(count)
            if cause == "engine_overhead":
                own_s += self._entry_s + self._exit_s
            yield cause, own_s
        yield "preemption", np.where(preempted, lost_s, 0.0)

    def _places(self, requests: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(place among the finished requests, whether it is one) of each request id."""
        ids = self._mine["id"]
        if not len(ids):
            return np.zeros(len(requests), np.int64), np.zeros(len(requests), bool)
        place = np.minimum(np.searchsorted(ids, requests), len(ids) - 1)
        return place, np.asarray(ids[place] == requests)

    def _own_prefill(self) -> tuple[Floats, NDArray[np.int64]]:
        """(duration of the steps before its first token in which a request had a chunk of its own, replica of the last)."""
        own_s, lane = np.zeros(len(self._first_s)), self._mine["replica"].copy()
        step = self._chunks["step"]
        place, known = self._places(self._chunks["request"])
        if len(own_s):
            known = known & (self._steps["start_s"][step] < self._first_s[place] - self._tick_s)
            place, step = place[known], step[known]
            np.add.at(own_s, place, self._walls.duration_s[step])
            if self._walls.lanes > 1:
                self._count_once(own_s, place, step)
            lane[place] = self._steps["replica"][step]
        return own_s, lane

    def _count_once(self, own_s: Floats, place: NDArray[np.int64], step: NDArray[np.int64]) -> None:
        """Takes from `own_s` the time in which the chunk before was in flight too, in another stage of the pipeline."""
        start_s = self._steps["start_s"][step]
        order = np.lexsort((start_s, place))
        place, start_s, end_s = place[order], start_s[order], (start_s + self._walls.duration_s[step])[order]
        twice_s = np.where(place[1:] == place[:-1], np.maximum(end_s[:-1] - start_s[1:], 0.0), 0.0)
        np.subtract.at(own_s, place[1:], twice_s)

    def _fetch_s(self) -> tuple[Floats, Floats]:
        """Seconds in which blocks of each request came from host memory, (before, after) it was first scheduled."""
        first_s, later_s = np.zeros(len(self._first_s)), np.zeros(len(self._first_s))
        if self._fetches is None or not len(self._fetches["request"]):
            return first_s, later_s
        place, known = self._places(self._fetches["request"])
        if len(first_s):
            seconds = self._fetches["end_s"] - self._fetches["start_s"]
            first = self._fetches["end_s"] <= self._mine["scheduled_s"][place]
            np.add.at(first_s, place[known & first], seconds[known & first])
            np.add.at(later_s, place[known & ~first], seconds[known & ~first])
        return first_s, later_s

    def _transfer_s(self) -> Floats:
        """Duration of the gap that begins with the first token of each request."""
        total_s = np.zeros(len(self._first_s))
        place, known = self._places(self._gaps["request"])
        if len(total_s):
            known = known & (np.abs(self._gaps["start_s"] - self._first_s[place]) < self._tick_s)
            gap_s = self._gaps["end_s"] - self._gaps["start_s"]
            np.add.at(total_s, place[known], gap_s[known])
        return total_s

    def _decode_spans(self, lane: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any], Spans]:
        """The stretches of decoding without a gap: (requests with gaps, the request of each stretch, the stretches)."""
        place, known = self._places(self._gaps["request"])
        gaps = {name: column[known] for name, column in self._gaps.items()}
        place = place[known]
        every = np.arange(len(self._first_s))
        owner = np.concatenate([every, place])
        starts = np.concatenate([self._first_s, gaps["end_s"]])
        replicas = np.concatenate([lane, gaps["replica"]])
        ends = np.concatenate([gaps["start_s"], self._finish_s])
        end_owner = np.concatenate([place, every])
        by_start, by_end = np.lexsort((starts, owner)), np.lexsort((ends, end_owner))
        return place, owner[by_start], Spans(replicas[by_start], starts[by_start], ends[by_end])

    def _ranges(self, spans: Spans) -> Ranges:
        """Which steps, in order of replica, lie in each stretch."""
        steps = self._steps
        order = np.argsort(steps["replica"], kind="stable")
        replica_of = steps["replica"][order]
        first, last = np.zeros(len(spans.replica), np.int64), np.zeros(len(spans.replica), np.int64)
        asked = np.argsort(spans.replica, kind="stable")
        asked_of = spans.replica[asked]
        for replica in np.unique(spans.replica):
            low, high = np.searchsorted(replica_of, [replica, replica + 1])
            starts = steps["start_s"][order[low:high]]
            chosen = asked[slice(*np.searchsorted(asked_of, [replica, replica + 1]))]
            first[chosen] = low + np.searchsorted(starts, spans.start_s[chosen] - self._tick_s)
            last[chosen] = low + np.searchsorted(starts, spans.end_s[chosen] - self._tick_s)
        return Ranges(order, first, last)

    def _between(self, ranges: Ranges, spans_of: NDArray[Any], seconds: Floats) -> Floats:
        """For every request, the sum of `seconds` (one value a step) over its stretches."""
        cumulated = np.concatenate([[0.0], np.cumsum(seconds[ranges.order])])
        total_s = np.zeros(len(self._first_s))
        np.add.at(total_s, spans_of, cumulated[ranges.last] - cumulated[ranges.first])
        return total_s

    @cached_property
    def _tick_s(self) -> float:
        """Less than any iteration lasts: tells the step that ends at a time from the one that begins there."""
        return float(self._steps["first_s"].min()) / 4 if len(self._steps["first_s"]) else 0.0

    def ms_per_token(self) -> dict[str, float]:
        """Milliseconds of each part for a mean output token; they sum to the latency of all requests over their tokens."""
        tokens = int(self._mine["generated_tokens"].sum())
        if not tokens:
            return {}
        return {name: total_s / tokens * 1e3 for name, total_s in self._totals[0].items()}

    @cached_property
    def _totals(self) -> tuple[dict[str, float], Floats]:
        """(seconds of each part over all finished requests, seconds of all parts for each of them)."""
        by_part: dict[str, float] = {}
        by_request = np.zeros(len(self._finish_s))
        for name, seconds in self._parts():
            by_part[name] = float(seconds.sum())
            by_request += seconds
        return {name: by_part[name] for name in PARTS}, by_request

    def check(self) -> dict[str, Any]:
        """Self-check: causes sum to the duration of every step, and parts to the latency of every finished request."""
        latency_s = self._mine["finish_s"] - self._mine["arrival_s"]
        # times are differences of clock readings, so they are exact to the clock's resolution at most
        scale_s = max(float(self._mine["finish_s"].max()), 1e-9) if len(latency_s) else 1.0
        error = np.abs(self._totals[1] - latency_s) / np.maximum(latency_s, 1e-3 * scale_s)
        requests, steps = float(error.max(initial=0.0)), self._walls.worst_error
        detail = f"largest relative error {steps:.1e} over steps, {requests:.1e} over requests"
        held = steps < ADDS_UP and requests < ADDS_UP
        return {"name": "the ledger of time adds up", "held": held, "detail": detail}
