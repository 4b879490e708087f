"""Where the time went: every iteration by cause, and every request's latency as a sum of parts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.cost.causes import CAUSES, INDEX, Causes, zeros
from sim.cost.preset import EnginePreset
from sim.cost.step import StepCost
from sim.engine.deployment import Deployment
from sim.engine.recorder import FINISHED, Columns
from sim.model.operators import StageOperators

PARTS = ("queue", "prefill", "interference", *CAUSES, "preemption")
"""What a request's end-to-end latency is made of: waiting to be scheduled, its own prefill, others' prefill chunks beside its
decoding, the causes of the decode iterations themselves, and the time lost to preemption and recompute."""

Floats = NDArray[np.float64]


class Walls:
    """Splits the steps and requests of one run by cause.

    Args:
        cost: what iterations cost (all replicas alike).
        requests, steps, chunks, gaps: columns of the recorder.
        preset: its entry and exit times are part of each request's engine overhead.
    """

    def __init__(
        self, cost: StepCost, requests: Columns, steps: Columns, chunks: Columns, gaps: Columns, preset: EnginePreset
    ) -> None:
        self._cost, self._requests, self._steps, self._chunks, self._gaps = cost, requests, steps, chunks, gaps
        self._preset = preset
        k = steps["iterations"]
        self.duration_s: Floats = k * steps["first_s"] + steps["growth_s"] * (k * (k - 1) / 2)
        decode_only = self._causes(steps["decodes"], steps["decodes"], None)
        mixed = steps["prefills"] > 0
        self.step_causes = decode_only.copy()
        """Seconds by cause of every step, all its iterations together."""
        if mixed.any():
            tokens = steps["decodes"] + steps["prefill_tokens"]
            self.step_causes[:, mixed] = self._causes(tokens, steps["sampled"], self._chunk_causes())[:, mixed]
        self.base_causes = np.where(steps["decodes"] > 0, decode_only, 0.0)
        """The same steps without their prompt chunks: what their decodes would have taken alone."""

    # --- steps ------------------------------------------------------------------------------------------------------------

    def _causes(self, tokens: NDArray[Any], sampled: NDArray[Any], chunk_causes: Causes | None) -> Causes:
        """Causes of every step, had it computed `tokens` tokens of which `sampled` are sampled."""
        cost, steps = self._cost, self._steps
        k, decodes = steps["iterations"].astype(float), steps["decodes"]
        total: Causes = (cost.token_causes[:, tokens] + cost.sampled_causes[:, sampled]) * k
        total[INDEX["kernel_fixed"]] += cost.decode_fixed[decodes] * k
        for slope in cost.decode_slopes:
            context = self._context_tokens(slope.window_tokens)
            total[INDEX["kv_read"]] += slope.memory_s[decodes] * context
            total[INDEX["compute"]] += slope.compute_s[decodes] * context
        if chunk_causes is not None:
            total += chunk_causes
        requests = decodes + (0 if chunk_causes is None else steps["prefills"])
        host_s = (self._preset.host_step_s + self._preset.host_request_s * requests) * k
        gpu_s = total.sum(axis=0)
        if cost.async_scheduling:
            host_s = np.maximum(host_s - gpu_s, 0.0)
        total[INDEX["engine_overhead"]] += host_s
        return total

    def _context_tokens(self, window: int | None) -> Floats:
        """Context tokens that decode attention reads over all iterations of each step, within `window`."""
        steps = self._steps
        k = steps["iterations"].astype(float)
        if window is None:
            first, growth = steps["context_tokens"], steps["decodes"]
        else:
            first, growth = steps[f"window{window}_tokens"], steps[f"window{window}_growth"]
        return np.asarray(first * k + growth * (k * (k - 1) / 2))

    def _chunk_causes(self) -> Causes:
        """Attention of the prompt chunks of each step; they run in one kernel, whose fixed cost is paid once."""
        chunks, count = self._chunks, len(self.duration_s)
        times = self._cost.chunk_times(chunks["start"].astype(float), chunks["tokens"].astype(float))
        total, step = zeros(count), chunks["step"]
        np.maximum.at(total[INDEX["kernel_fixed"]], step, times.fixed_s)
        np.add.at(total[INDEX["kv_read"]], step, times.memory_s)
        np.add.at(total[INDEX["compute"]], step, times.compute_s)
        return total

    # --- requests ---------------------------------------------------------------------------------------------------------

    def request_parts(self) -> dict[str, Floats]:
        """Seconds of each part for every finished request, in the order of their ids; they sum to its latency."""
        done = self._requests["status"] == FINISHED
        mine = {name: column[done] for name, column in self._requests.items()}
        entry_s, exit_s = self._preset.entry_s, self._preset.exit_s
        count = int(done.sum())
        parts = {name: np.zeros(count) for name in PARTS}
        first_s, finish_s = mine["first_token_s"] - exit_s, mine["finish_s"] - exit_s
        parts["queue"] = mine["scheduled_s"] - mine["arrival_s"] - entry_s
        own_s, lost_s = self._own_prefill(mine, first_s), np.zeros(count)
        parts["prefill"] = own_s
        preempted = mine["preemptions"] > 0
        late_s = first_s - mine["scheduled_s"] - own_s
        decode = self._between(mine["replica"], first_s, finish_s)
        for request, start_s, end_s in zip(
            *(self._gaps[c].tolist() for c in ("request", "start_s", "end_s")), strict=True
        ):
            place = int(np.searchsorted(mine["id"], request))
            if place < count and mine["id"][place] == request:
                lost_s[place] += end_s - start_s
                gap = self._between(mine["replica"][[place]], np.array([start_s]), np.array([end_s]))
                decode[:, place] -= gap[:, 0]
        parts["preemption"] = np.where(preempted, late_s + lost_s, 0.0)
        parts["interference"] = decode[-1] + np.where(preempted, 0.0, late_s + lost_s)
        for i, cause in enumerate(CAUSES):
            parts[cause] = decode[i]
        parts["engine_overhead"] = parts["engine_overhead"] + (entry_s + exit_s)
        return parts

    def _own_prefill(self, mine: Columns, first_s: Floats) -> Floats:
        """Duration of the steps before the first token in which a request had a chunk of its own."""
        own_s = np.zeros(len(first_s))
        step, request = self._chunks["step"], self._chunks["request"]
        place = np.minimum(np.searchsorted(mine["id"], request), max(len(first_s) - 1, 0))
        if not len(first_s):
            return own_s
        before = (mine["id"][place] == request) & (self._steps["start_s"][step] < first_s[place] - self._tick_s())
        np.add.at(own_s, place[before], self.duration_s[step[before]])
        return own_s

    def _between(self, replicas: NDArray[Any], start_s: Floats, end_s: Floats) -> Floats:
        """Seconds by cause, and last by interference, of the steps of each replica between two boundaries."""
        out = np.zeros((len(CAUSES) + 1, len(start_s)))
        for replica in np.unique(replicas):
            own = self._steps["replica"] == replica
            starts = self._steps["start_s"][own]
            base = self.base_causes[:, own]
            extra = self.duration_s[own] - base.sum(axis=0)
            cumulated = np.zeros((len(CAUSES) + 1, len(starts) + 1))
            np.cumsum(np.vstack([base, extra]), axis=1, out=cumulated[:, 1:])
            chosen = replicas == replica
            tick_s = self._tick_s()
            first, last = (np.searchsorted(starts, t[chosen] - tick_s) for t in (start_s, end_s))
            out[:, chosen] = cumulated[:, last] - cumulated[:, first]
        return out

    def _tick_s(self) -> float:
        """Less than any iteration lasts: tells the step that ends at a time from the one that begins there."""
        return float(self._steps["first_s"].min()) / 4 if len(self.duration_s) else 0.0

    def ms_per_token(self) -> dict[str, float]:
        """Milliseconds of each part for a mean output token; they sum to the latency of all requests over their tokens."""
        done = self._requests["status"] == FINISHED
        tokens = int(self._requests["generated_tokens"][done].sum())
        if not tokens:
            return {}
        return {name: float(seconds.sum()) / tokens * 1e3 for name, seconds in self.request_parts().items()}

    def check(self) -> dict[str, Any]:
        """Self-check: causes sum to the duration of every step, and parts to the latency of every finished request."""
        done = self._requests["status"] == FINISHED
        latency_s = (self._requests["finish_s"] - self._requests["arrival_s"])[done]
        total_s = np.sum(list(self.request_parts().values()), axis=0) if done.any() else latency_s
        scale_s = max(float(self._requests["finish_s"][done].max()), 1e-9) if done.any() else 1.0
        steps = _worst(np.abs(self.step_causes.sum(axis=0) - self.duration_s) / np.maximum(self.duration_s, 1e-12))
        requests = _worst(np.abs(total_s - latency_s) / np.maximum(latency_s, 1e-3 * scale_s))
        held = steps < 1e-9 and requests < 1e-9
        detail = f"largest relative error {steps:.1e} over steps, {requests:.1e} over requests"
        return {"name": "the ledger of time adds up", "held": bool(held), "detail": detail}


def _worst(values: Floats) -> float:
    return float(values.max()) if len(values) else 0.0


def shortest_iteration_s(deployment: Deployment, cost: StepCost) -> float:
    """No iteration can be shorter: the GEMM weights of a rank, and one expert of each routed layer, at the printed bandwidth."""
    bandwidth = max(gpu.hbm_bytes_per_s for gpu in deployment.gpus.values())
    return least_bytes(cost.operators, deployment) / bandwidth


def least_bytes(operators: StageOperators, deployment: Deployment) -> float:
    """Bytes of weights that every iteration reads on one rank; the head is left out, for a chunk may sample nothing."""
    size = deployment.precision.parameter_bytes
    return sum(
        gemm.n * gemm.k * gemm.count * min(size("mlp", gemm.k), size("attention", gemm.k), 2.0)
        for gemm in operators.gemms
        if gemm.per == "token"
    )
