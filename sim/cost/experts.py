"""What routed experts cost a group of data-parallel ranks: the hottest rank's share, the exchange of tokens, the overlap.

The ranks attend to their own batches; the MoE layers see the tokens of all. So a rank's cost falls in two: what depends on its
own rows (`LockStepCost`), and what depends on the rows of the group (`ExpertCost`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.cost.causes import INDEX, Causes, add_kernel, zeros
from sim.cost.kernels import Floats, KernelBackend, KernelTime
from sim.cost.preset import EnginePreset
from sim.cost.step import GroupCollectives, Ints, StepCost
from sim.model.operators import Moe, StageOperators

_PLACEMENTS = 256
"""Random placements of experts on ranks that the expected load of the hottest is a mean of: every layer has its own."""
FP8_DISPATCH_BYTES = 1 + 4 / 128
"""Bytes an element on its way to an fp8 expert: the value, and a float32 scale for 128 of them (DeepSeek-V3 report)."""

LOW_LATENCY_ROWS = 256
"""Rows a rank that the low-latency kernels take at once (vLLM: VLLM_MOE_DP_CHUNK_SIZE)."""


@cache
def hottest_share(experts: int, local_experts: int, top_k: int, exponent: float) -> float:
    """Load of the hottest rank over that of a rank under balanced routing, where popularity falls as rank ** -exponent.

    A token picks `top_k` different experts one after another, with probabilities p in proportion to popularity; expert i is
    among them with probability 1 - exp(-t p_i), t such that these sum to `top_k` (Rosen, "Asymptotic theory for successive
    sampling with varying probabilities without replacement", 1972). Experts stand on ranks in random order; the answer is
    the mean over placements of the largest sum on a rank.

    Args:
        experts, top_k: of the model's MoE layers.
        local_experts: experts a rank; the last rank may have fewer.
        exponent: of Zipf's law; 0: all alike, and the answer is 1.
    """
    if exponent == 0.0 or local_experts >= experts:
        return 1.0
    weight = np.arange(1, experts + 1, dtype=float) ** -exponent
    chosen = _inclusion(weight / weight.sum(), top_k)
    random, size = np.random.default_rng(0), -(-experts // local_experts) * local_experts
    loads = np.zeros(size)
    most = 0.0
    for _ in range(_PLACEMENTS):
        loads[:experts] = random.permutation(chosen)
        most += float(loads.reshape(-1, local_experts).sum(axis=1).max())
    return max(most / _PLACEMENTS / (top_k * local_experts / experts), 1.0)


def _inclusion(probability: Floats, top_k: int) -> Floats:
    """Probability that an expert is among the `top_k` of a token."""
    if top_k >= len(probability):
        return np.ones_like(probability)
    low, high = 0.0, 1.0
    while (1 - np.exp(-high * probability)).sum() < top_k:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if (1 - np.exp(-middle * probability)).sum() < top_k:
            low = middle
        else:
            high = middle
    return np.asarray(1 - np.exp(-high * probability))


class SkewedExperts:
    """A kernel backend whose MoE layers wait for the hottest rank: it has `hot` times the tokens of a balanced one."""

    def __init__(self, backend: KernelBackend, exponent: float) -> None:
        self._backend = backend
        self._exponent = exponent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def moe(
        self, tokens: Floats | float, hidden: int, intermediate: int, experts: int, local_experts: int, top_k: int, dtype: str
    ) -> KernelTime:  # fmt: skip
        """As the backend's, for the hottest rank; its tokens spread evenly over its experts."""
        hot = hottest_share(experts, local_experts, top_k, self._exponent)
        rows = np.asarray(tokens) * hot
        return self._backend.moe(rows, hidden, intermediate, experts, local_experts, top_k, dtype)


class ExpertCost:
    """Routed experts of a pass over the tokens of all data-parallel ranks, and the way of the tokens there and back.

    Args:
        operators: what one rank computes.
        backend: durations of its kernels, evenly loaded.
        collectives: of all tensor x data ranks.
        tensor, data, nodes: how many those are, and over how many nodes.
        deepep: a token goes only where its experts are, instead of an all-gather and a reduce-scatter (vLLM's default). Up to
            `LOW_LATENCY_ROWS` a rank it goes to each expert by itself (DeepEP's low-latency kernels), beyond that once to each
            node and on from there over NVLink, in one node once to each rank (its high-throughput kernels).
        exponent: of the experts' popularity: the hottest rank receives more.
        clock: that the GPU keeps, over the one its kernels were measured at (`EnginePreset.sustained_clock`).
    """

    def __init__(
        self,
        operators: StageOperators,
        backend: KernelBackend,
        collectives: GroupCollectives | None,
        *,
        tensor: int,
        data: int,
        nodes: int = 1,
        deepep: bool = False,
        exponent: float = 0.0,
        clock: float = 1.0,
    ) -> None:
        self.layers = operators.expert_exchanges
        self._operators, self._backend, self._collectives = operators, backend, collectives
        self._tensor, self._ranks, self._nodes, self._exponent = tensor, tensor * data, nodes, exponent
        self._deepep, self._clock = deepep, clock
        self._expert_s: dict[int, float] = {}
        self._exchange_s: dict[tuple[int, int], float] = {}

    def experts_s(self, group_rows: int) -> float:
        """Seconds of the experts of all layers for so many rows of the whole group."""
        found = self._expert_s.get(group_rows)
        if found is None:
            found = self._expert_s[group_rows] = float(self.expert_causes(np.array([group_rows])).sum())
        return found

    def exchange_s(self, group_rows: int, widest_rows: int) -> float:
        """Seconds of the exchanges of all layers, where the busiest data-parallel rank has `widest_rows`."""
        key = (group_rows, widest_rows)
        found = self._exchange_s.get(key)
        if found is None:
            causes = self.exchange_causes(np.array([group_rows]), np.array([widest_rows]))
            found = self._exchange_s[key] = float(causes.sum())
        return found

    def expert_causes(self, group_rows: Ints) -> Causes:
        """The experts of all layers by cause, on the hottest rank.

        After an all-gather a rank sorts and sums the pairs of all tokens; with DeepEP it has only those of its own experts.
        """
        total = zeros(len(group_rows))
        for moe in self._operators.moes:
            rows, shape = np.maximum(group_rows, 1) * self._hot(moe), (moe.experts, moe.local_experts, moe.top_k)
            if self._deepep:
                rows, shape = (
                    rows * moe.top_k * moe.local_experts / moe.experts,
                    (moe.local_experts, moe.local_experts, 1),
                )
            time = self._backend.moe(rows, moe.hidden, moe.intermediate, *shape, moe.dtype)
            add_kernel(total, time, moe.count, "weights_read")
        total[INDEX["compute"]] /= self._clock
        return total

    def exchange_causes(self, group_rows: Ints, widest_rows: Ints) -> Causes:
        """Dispatch and combine of all layers by cause."""
        total = zeros(len(group_rows))
        if self._collectives is None or not self.layers:
            return total
        for op, sizes_bytes in self.exchange_bytes(group_rows, widest_rows):
            latency_s, bandwidth_s = self._collectives.times(op, sizes_bytes)
            total[INDEX["collective_latency"]] += self.layers * latency_s
            total[INDEX["collective_bandwidth"]] += self.layers * bandwidth_s
        return total

    def exchange_bytes(self, group_rows: Ints, widest_rows: Ints) -> list[tuple[str, Floats]]:
        """(collective, bytes as nccl-tests counts them) of the dispatch and the combine of one layer."""
        row_bytes = self._operators.expert_exchange_bytes_per_token
        if not self._deepep:
            size = np.asarray(group_rows * row_bytes, dtype=np.float64)
            return [("all_gather", size), ("reduce_scatter", size)]
        moe = self._operators.moes[0]
        islands = self._nodes if self._nodes > 1 else self._ranks
        copies = np.where(widest_rows <= LOW_LATENCY_ROWS, moe.top_k, destinations(moe, islands))
        # the busiest rank sends its rows, cut over its tensor-parallel ranks; the hottest receives more than others
        combine = widest_rows / self._tensor * copies * self._hot(moe) * row_bytes
        dispatch = combine * (FP8_DISPATCH_BYTES / 2 if moe.dtype.startswith("fp8") else 1.0)
        return [("all_to_all", dispatch), ("all_to_all", combine)]

    def _hot(self, moe: Moe) -> float:
        return hottest_share(moe.experts, moe.local_experts, moe.top_k, self._exponent)


def destinations(moe: Moe, islands: int) -> float:
    """Of `islands` with as many experts each, those that hold one of the `top_k` of a token, expected when it picks uniformly."""
    elsewhere = moe.experts - -(-moe.experts // islands)
    return islands * (1 - comb(elsewhere, moe.top_k) / comb(moe.experts, moe.top_k))


@dataclass(frozen=True, slots=True)
class GroupRows:
    """Rows of an iteration in lock-step, one entry a step of one rank."""

    own: Ints
    group: Ints
    """Of all data-parallel ranks."""
    widest: Ints
    """Of the rank with most."""
    overlapped: NDArray[np.bool_]
    """Whether it ran as two half batches."""


class LockStepCost(StepCost):
    """Cost of the iterations of one rank of a lock-step group; its tables leave the experts out, `complete` adds them.

    Args:
        operators: what one rank computes, experts included.
        experts: of the group.
        more: as `StepCost`.
    """

    def __init__(
        self,
        operators: StageOperators,
        backend: KernelBackend,
        collectives: GroupCollectives | None,
        preset: EnginePreset,
        *,
        experts: ExpertCost,
        **more: Any,
    ) -> None:
        self.experts = experts
        super().__init__(replace(operators, moes=[]), backend, collectives, preset, **more)

    def _token_causes(self, tokens: Ints) -> Causes:
        """As of any stage; the tensor-parallel ranks, each back with its share of the rows, gather the others'."""
        total = super()._token_causes(tokens)
        gathered = self.operators.expert_exchange_bytes_per_token * np.maximum(tokens, 1)
        self._add_collective(total, "all_gather", gathered, self.operators.expert_exchanges)
        return total

    def overlapped_s(self, own_s: float, head_s: float, rows: int, decodes: int, group_rows: int, widest: int) -> float:
        """GPU seconds of an iteration cut into two half batches, one of which computes while the other is exchanged.

        With compute c and exchange x of both halves over L layers: max(c, x) + min(c, x) / 2L. Either is busy all the time
        but for the first and the last half layer. Compute is more than that of the whole batch, for both halves read the
        weights; the exchange is taken to need no SM, and the host to launch twice the kernels in time.

        Args:
            own_s: the whole batch, without experts and exchange; head_s: the part of it that is not cut.
        """
        experts, half, half_group = self.experts, (rows + 1) // 2, (group_rows + 1) // 2
        compute_s = own_s - head_s - self.token_s[rows] + 2 * self.token_s[half] - self.preset.step_s
        compute_s += self.decode_fixed_s[decodes] + 2 * experts.experts_s(half_group)
        exchange_s = 2 * experts.exchange_s(half_group, (widest + 1) // 2)
        return head_s + max(compute_s, exchange_s) + min(compute_s, exchange_s) / (2 * experts.layers)

    def complete(self, own: Causes, head: Causes, rows: GroupRows, decodes: Ints) -> Causes:
        """`own` causes of some iterations, with those of the experts and of what is seen of the exchange."""
        experts = self.experts
        whole = own + _unique(experts.expert_causes, rows.group)
        whole += _unique(experts.exchange_causes, rows.group, rows.widest)
        if not rows.overlapped.any():
            return whole
        half, group = (rows.own + 1) // 2, (rows.group + 1) // 2
        compute = own - head - self.token_causes[:, rows.own] + 2 * self.token_causes[:, half]
        compute += 2 * _unique(experts.expert_causes, group)
        compute[INDEX["kernel_fixed"]] += self.decode_fixed[decodes]
        compute[INDEX["engine_overhead"]] -= self.preset.step_s
        exchange = 2 * _unique(experts.exchange_causes, group, (rows.widest + 1) // 2)
        compute_s, exchange_s = compute.sum(axis=0), exchange.sum(axis=0)
        seen_s = np.maximum(exchange_s - compute_s, 0.0) + np.minimum(compute_s, exchange_s) / (2 * experts.layers)
        halves = compute + head + exchange * (seen_s / np.maximum(exchange_s, 1e-300))
        return np.where(rows.overlapped, halves, whole)


def _unique(causes: Any, *rows: Ints) -> Causes:
    """`causes` of rows that repeat, each distinct one worked out once."""
    distinct, place = np.unique(np.stack(rows), axis=1, return_inverse=True)
    return np.asarray(causes(*distinct)[:, place.reshape(-1)])
