"""Where the time of every iteration went, by cause."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.cost.causes import CAUSES, INDEX, Causes, zeros
from sim.cost.experts import GroupRows, LockStepCost
from sim.cost.pipeline import PipelineCost
from sim.cost.preset import EnginePreset
from sim.cost.speculation import SpeculativeCost
from sim.cost.step import StepCost
from sim.engine.deployment import Deployment
from sim.engine.recorder import Columns
from sim.model.operators import StageOperators

BLOCK_STEPS = 8192
"""Steps that are split together: memory for so many, not for all of a long run."""
SHORTEST_S = 1e-12
"""A picosecond: no step is shorter, so an error relative to it is finite."""
Floats = NDArray[np.float64]
AnyCost = StepCost | PipelineCost


class Walls:
    """Splits the steps of one run by cause.

    Args:
        costs: what iterations cost on each replica; equal ones are one object.
        steps, chunks: columns of the recorder.
        preset: its host time is part of every iteration.
        sharing: replicas that cross links which others use too: what their iterations take beyond the sum is waiting for them.
    """

    def __init__(
        self, costs: Items[AnyCost], steps: Columns, chunks: Columns, preset: EnginePreset, sharing: Iterable[int] = ()
    ) -> None:
        self._steps, self._chunks = steps, chunks
        self._preset = preset
        k = steps["iterations"]
        self.duration_s: Floats = k * steps["first_s"] + steps["growth_s"] * (k * (k - 1) / 2)
        self.base_causes: dict[str, Floats] = {}
        """Seconds by cause that the decodes of every step would have taken alone, all its iterations together; a cause that
        nowhere occurs is absent."""
        self.worst_error = 0.0
        """Largest relative difference between a step's causes and its duration."""
        self.lanes = max(len(cost.stages) if isinstance(cost, PipelineCost) else 1 for cost in costs)
        """Batches in flight a replica, each a lane of its own in the steps table."""
        self._sharing = frozenset(sharing)
        self._costs = costs
        for rows, causes, base in self._blocks():
            for cause, seconds in zip(CAUSES, base, strict=True):
                if seconds.any():
                    self.base_causes.setdefault(cause, np.zeros(len(k)))[rows] = seconds
            durations = self.duration_s[rows]
            error = np.abs(causes.sum(axis=0) - durations) / np.maximum(durations, SHORTEST_S)
            self.worst_error = max(self.worst_error, float(error.max(initial=0.0)))

    @cached_property
    def step_causes(self) -> Causes:
        """Seconds by cause of every step, all its iterations together."""
        total = zeros(len(self.duration_s))
        for rows, causes, _ in self._blocks():
            total[:, rows] = causes
        return total

    # --- steps ------------------------------------------------------------------------------------------------------------

    def _blocks(self) -> Iterator[tuple[NDArray[np.int64], Causes, Causes]]:
        """(rows, their causes, those of their decodes alone) of all steps, some thousand rows of one cost at a time."""
        of_cost: dict[int, list[int]] = {}
        for replica, cost in enumerate(self._costs):
            of_cost.setdefault(id(cost), []).append(replica)
        replica_of = self._steps["replica"] // self.lanes
        for start in range(0, len(self.duration_s), BLOCK_STEPS):
            block = replica_of[start : start + BLOCK_STEPS]
            for replicas in of_cost.values():
                rows = start + np.flatnonzero(np.isin(block, replicas) if len(of_cost) > 1 else block >= 0)
                if len(rows):
                    yield rows, *self._split(self._costs[replicas[0]], rows)

    def _split(self, cost: AnyCost, rows: NDArray[np.int64]) -> tuple[Causes, Causes]:
        """(causes, causes of the decodes alone) of these steps, all of the same cost."""
        first, last = int(rows[0]), int(rows[-1]) + 1
        picked = slice(first, last) if last - first == len(rows) else rows  # a slice copies nothing
        steps = {name: column[picked] for name, column in self._steps.items()}
        durations = self.duration_s[picked]
        mixed = np.flatnonzero(steps["prefills"])
        if isinstance(cost, SpeculativeCost):
            return self._split_verified(cost, rows, steps)
        decode_only = self._causes(cost, steps, steps["decodes"], steps["decodes"], None)
        causes = decode_only.copy()
        if len(mixed):
            some = {name: column[mixed] for name, column in steps.items()}
            chunks = self._chunk_causes(cost, rows[mixed])
            with_chunks = self._causes(cost, some, some["decodes"] + some["prefill_tokens"], some["sampled"], chunks)
            for of_cause, seconds in zip(causes, with_chunks, strict=True):
                of_cause[mixed] = seconds
        if isinstance(cost, LockStepCost):
            causes[INDEX["lock_step"]] += durations - causes.sum(axis=0)
        if self._sharing and not isinstance(cost, PipelineCost):
            sharing = np.isin(steps["replica"] // self.lanes, list(self._sharing))
            causes[INDEX["shared_links"]] += np.where(sharing, durations - causes.sum(axis=0), 0.0)
        if isinstance(cost, PipelineCost):  # what is left of a passage is waiting for stages and for the host
            causes[INDEX["shared_links"]] += steps.get("shared_s", 0.0)
            causes[INDEX["pipeline_bubble"]] += durations - causes.sum(axis=0)
        base = causes.copy()
        for of_cause, seconds in zip(base, decode_only, strict=True):
            of_cause[mixed] = seconds[mixed]
        base *= steps["decodes"] > 0
        return causes, base

    def _split_verified(self, cost: SpeculativeCost, rows: NDArray[np.int64], steps: Columns) -> tuple[Causes, Causes]:
        """The same for steps in which decoding sequences have several tokens verified, after a draft proposed them."""
        decodes, verified = steps["decodes"], cost.verified * steps["decodes"]
        chunks, drafted = (self._chunk_causes(c, rows) for c in (cost, cost.draft))
        contexts = [_context_tokens(steps, window) for window in (None, *cost.windows)]
        none = np.zeros_like(decodes)
        draft_s = cost.drafts_s(decodes, contexts, none, none.astype(float))
        base = self._causes(cost, steps, verified, verified, None, draft_s)
        ends = steps["sampled"] - decodes - steps["extra_tokens"]
        draft_s = cost.drafts_s(decodes, contexts, steps["prefill_tokens"], drafted.sum(axis=0))
        whole = self._causes(cost, steps, verified + steps["prefill_tokens"], verified + ends, chunks, draft_s)
        return np.where(steps["prefills"] > 0, whole, base), np.where(decodes > 0, base, 0.0)

    def _causes(
        self,
        cost: AnyCost,
        steps: Columns,
        tokens: NDArray[Any],
        sampled: NDArray[Any],
        chunk_causes: Causes | None,
        draft_s: Floats | float = 0.0,
    ) -> Causes:
        """Causes of these steps, had each computed `tokens` tokens of which `sampled` are sampled, after a draft of `draft_s`."""
        k, decodes = steps["iterations"].astype(float), steps["decodes"]
        head = cost.sampled_causes.take(sampled, axis=1)
        rows = _group_rows(steps, tokens) if isinstance(cost, LockStepCost) else None
        total: Causes = cost.token_causes.take(tokens if rows is None else rows.own, axis=1)
        total += head
        total *= k
        total[INDEX["kernel_fixed"]] += cost.decode_fixed[decodes] * k
        for slope in cost.decode_slopes:
            context = _context_tokens(steps, slope.window_tokens)
            total[INDEX["kv_read"]] += slope.memory_s[decodes] * context
            total[INDEX["compute"]] += slope.compute_s[decodes] * context
        if chunk_causes is not None:
            total += chunk_causes
        if isinstance(cost, LockStepCost) and rows is not None:
            total = cost.complete(total, head, rows, decodes)
        total[INDEX["draft"]] += draft_s
        requests = decodes + (0 if chunk_causes is None else steps["prefills"])
        host_s = self._preset.host_s(requests) * k
        launch_s = cost.launch_s[chunk_causes is not None][tokens if rows is None else rows.own] * k
        gpu_s = total.sum(axis=0)
        if cost.async_scheduling:
            waiting_s = np.maximum(launch_s + host_s - gpu_s, 0.0)
        else:
            waiting_s = np.maximum(launch_s - gpu_s, 0.0) + host_s
        total[INDEX["engine_overhead"]] += waiting_s
        return total

    def _chunk_causes(self, cost: AnyCost, rows: NDArray[np.int64]) -> Causes:
        """Attention of the prompt chunks of these steps; they run in one kernel, whose fixed cost is paid once."""
        first, last = np.searchsorted(self._chunks["step"], [rows[0], rows[-1] + 1])
        chunks = {name: column[first:last] for name, column in self._chunks.items()}
        place = np.minimum(np.searchsorted(rows, chunks["step"]), len(rows) - 1)
        mine = rows[place] == chunks["step"]
        times = cost.chunk_times(chunks["start"][mine].astype(float), chunks["tokens"][mine].astype(float))
        total, step = zeros(len(rows)), place[mine]
        np.maximum.at(total[INDEX["kernel_fixed"]], step, times.fixed_s)
        np.add.at(total[INDEX["kv_read"]], step, times.memory_s)
        np.add.at(total[INDEX["compute"]], step, times.compute_s)
        return total


def _group_rows(steps: Columns, tokens: NDArray[Any]) -> GroupRows:
    """Rows of steps in lock-step; where they are asked about fewer tokens than they computed, their own are fewer."""
    whole = tokens == steps["decodes"] + steps["prefill_tokens"]
    own = np.where(whole, steps["rows"], np.maximum(tokens, 1))
    group = steps["group_rows"] - steps["rows"] + own
    return GroupRows(own, group, np.minimum(steps["widest_rows"], group), steps["overlapped"] > 0)


def _context_tokens(steps: Columns, window: int | None) -> Floats:
    """Context tokens that decode attention reads over all iterations of each step, within `window`."""
    k = steps["iterations"].astype(float)
    if window is None:
        first, growth = steps["context_tokens"], steps["decodes"]
    else:
        first, growth = steps[f"window{window}_tokens"], steps[f"window{window}_growth"]
    return np.asarray(first * k + growth * (k * (k - 1) / 2))


def shortest_iteration_s(deployment: Deployment) -> float:
    """No iteration can be shorter: the GEMM weights of all stages, each on its rank, at the printed bandwidth."""
    bandwidth = max(gpu.hbm_bytes_per_s for gpu in deployment.gpus.values())
    cost = deployment.cost(0)
    stages = cost.stages if isinstance(cost, PipelineCost) else [cost]
    return sum(least_bytes(stage.operators, deployment) for stage in stages) / bandwidth


def least_bytes(operators: StageOperators, deployment: Deployment) -> float:
    """Bytes of weights that every iteration reads on one rank; the head is left out, for a chunk may sample nothing."""
    size = deployment.precision.parameter_bytes
    return sum(
        gemm.n * gemm.k * gemm.count * min(size("mlp", gemm.k), size("attention", gemm.k), 2.0)
        for gemm in operators.gemms
        if gemm.per == "token"
    )
