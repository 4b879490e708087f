"""The latency of every request as a sum of parts: where its milliseconds went."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.cost.causes import CAUSES
from sim.cost.preset import EnginePreset
from sim.engine.recorder import FINISHED, Columns
from sim.results.walls import Walls

PARTS = ("queue", "prefill", "kv_transfer", "interference", *CAUSES, "preemption")
"""What a request's end-to-end latency is made of: waiting to be scheduled, its own prefill, its KV cache's way from a prefill
to a decode replica (up to its next token), others' prefill chunks beside its decoding, the causes of the decode iterations
themselves, and the time lost to preemption and recompute."""

Floats = NDArray[np.float64]
ADDS_UP = 1e-9
"""Relative error up to which sums of the same times are equal."""


class Latency:
    """Splits the end-to-end latency of every finished request.

    Args:
        walls: the steps by cause.
        requests, steps, chunks, gaps: columns of the recorder.
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
    ) -> None:
        self._transfers = transfers
        self._walls, self._requests, self._steps, self._chunks, self._gaps = walls, requests, steps, chunks, gaps
        self._entry_s, self._exit_s = preset.entry_s, preset.exit_s
        done = requests["status"] == FINISHED
        self._mine = {name: column[done] for name, column in requests.items()}
        self._first_s = self._mine["first_token_s"] - self._exit_s
        self._finish_s = self._mine["finish_s"] - self._exit_s

    @cached_property
    def parts_s(self) -> dict[str, Floats]:
        """Seconds of each of `PARTS` for every finished request, in the order of their ids; they sum to its latency."""
        mine, count = self._mine, len(self._finish_s)
        parts = {name: np.zeros(count) for name in PARTS}
        parts["queue"] = mine["scheduled_s"] - mine["arrival_s"] - self._entry_s
        parts["prefill"], lane = self._own_prefill()
        late_s = self._first_s - mine["scheduled_s"] - parts["prefill"]
        place, spans_of, replicas, start_s, end_s = self._decode_spans(lane)
        decode, lost_s = np.zeros((len(CAUSES) + 1, count)), self._finish_s - self._first_s
        np.add.at(decode.T, spans_of, self._between(replicas, start_s, end_s).T)
        np.add.at(lost_s, spans_of, start_s - end_s)
        lost_s = np.where(np.isin(np.arange(count), place), lost_s, 0.0) + late_s
        if self._transfers:
            parts["kv_transfer"] = self._transfer_s()
            lost_s = lost_s - parts["kv_transfer"]
        preempted = mine["preemptions"] > 0
        parts["preemption"] = np.where(preempted, lost_s, 0.0)
        parts["interference"] = decode[-1] + np.where(preempted, 0.0, lost_s)
        for i, cause in enumerate(CAUSES):
            parts[cause] = decode[i]
        parts["engine_overhead"] = parts["engine_overhead"] + (self._entry_s + self._exit_s)
        return parts

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
            np.add.at(own_s, place[known], self._walls.duration_s[step[known]])
            lane[place[known]] = self._steps["replica"][step[known]]
        return own_s, lane

    def _transfer_s(self) -> Floats:
        """Duration of the gap that begins with the first token of each request."""
        total_s = np.zeros(len(self._first_s))
        place, known = self._places(self._gaps["request"])
        if len(total_s):
            known = known & (np.abs(self._gaps["start_s"] - self._first_s[place]) < self._tick_s)
            gap_s = self._gaps["end_s"] - self._gaps["start_s"]
            np.add.at(total_s, place[known], gap_s[known])
        return total_s

    def _decode_spans(self, lane: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """The stretches of decoding without a gap: (requests with gaps, request, replica, start and end of each stretch)."""
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
        return place, owner[by_start], replicas[by_start], starts[by_start], ends[by_end]

    def _between(self, replicas: NDArray[Any], start_s: Floats, end_s: Floats) -> Floats:
        """Seconds by cause, and last by interference, of the steps of each replica between two boundaries."""
        out = np.zeros((len(CAUSES) + 1, len(start_s)))
        order = np.argsort(self._steps["replica"], kind="stable")
        sorted_replicas = self._steps["replica"][order]
        asked = np.argsort(replicas, kind="stable")
        for replica in np.unique(replicas):
            own = order[slice(*np.searchsorted(sorted_replicas, [replica, replica + 1]))]
            chosen = asked[slice(*np.searchsorted(replicas[asked], [replica, replica + 1]))]
            base = self._walls.base_causes[:, own]
            cumulated = np.zeros((len(CAUSES) + 1, len(own) + 1))
            np.cumsum(base, axis=1, out=cumulated[:-1, 1:])
            np.cumsum(self._walls.duration_s[own] - base.sum(axis=0), out=cumulated[-1, 1:])
            starts = self._steps["start_s"][own]
            first, last = (np.searchsorted(starts, t[chosen] - self._tick_s) for t in (start_s, end_s))
            out[:, chosen] = cumulated[:, last] - cumulated[:, first]
        return out

    @cached_property
    def _tick_s(self) -> float:
        """Less than any iteration lasts: tells the step that ends at a time from the one that begins there."""
        return float(self._steps["first_s"].min()) / 4 if len(self._steps["first_s"]) else 0.0

    def ms_per_token(self) -> dict[str, float]:
        """Milliseconds of each part for a mean output token; they sum to the latency of all requests over their tokens."""
        tokens = int(self._mine["generated_tokens"].sum())
        if not tokens:
            return {}
        return {name: float(seconds.sum()) / tokens * 1e3 for name, seconds in self.parts_s.items()}

    def check(self) -> dict[str, Any]:
        """Self-check: causes sum to the duration of every step, and parts to the latency of every finished request."""
        latency_s = self._mine["finish_s"] - self._mine["arrival_s"]
        total_s = np.sum(list(self.parts_s.values()), axis=0)
        # times are differences of clock readings, so they are exact to the clock's resolution at most
        scale_s = max(float(self._mine["finish_s"].max()), 1e-9) if len(latency_s) else 1.0
        durations = self._walls.duration_s
        steps = _worst(np.abs(self._walls.step_causes.sum(axis=0) - durations) / np.maximum(durations, 1e-12))
        requests = _worst(np.abs(total_s - latency_s) / np.maximum(latency_s, 1e-3 * scale_s))
        detail = f"largest relative error {steps:.1e} over steps, {requests:.1e} over requests"
        held = steps < ADDS_UP and requests < ADDS_UP
        return {"name": "the ledger of time adds up", "held": held, "detail": detail}


def _worst(values: Floats) -> float:
    return float(values.max()) if len(values) else 0.0
