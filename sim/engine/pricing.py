"""The price of a batch: from what the scheduler decided to how long it takes."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from sim.cost.step import StepCost
from sim.engine.batch import Batch
from sim.engine.iteration import Pace, Phase
from sim.engine.wires import Amounts

FOR_EVER = 1 << 60


class StagePricing:
    """Prices the iterations of one pipeline stage; for a replica of one stage, its `IterationCost`."""

    def __init__(self, cost: StepCost, amounts: Amounts | None = None) -> None:
        self.cost = cost
        self._amounts = amounts
        """What its all-reduces put on links that others use too; None where it shares none."""
        self.windows = cost.windows
        tables = zip(cost.token_s, cost.sampled_s, cost.decode_fixed_s, strict=False)
        self._decode_s = [sum(parts) for parts in tables]
        """All of a decode-only iteration that does not depend on contexts."""
        self._async = cost.async_scheduling
        self._decode_launch_s, self._mixed_launch_s = cost.launch_lists_s[False], cost.launch_lists_s[True]

    def pace(self, batch: Batch) -> Pace:
        """Duration of the iteration of `batch`: GPU and host one after the other, or the longer of both (asynchronous)."""
        cost, decodes, growth_s = self.cost, batch.decodes, 0.0
        requests = decodes
        if batch.chunks:
            gpu_s = self.kernels_s(batch)
            requests += len(batch.chunks)
            least_s = self._mixed_launch_s[decodes + batch.chunk_tokens]
        else:
            slope_s = cost.full_slope_s[decodes]
            gpu_s = self._decode_s[decodes] + slope_s * batch.context_tokens
            growth_s = slope_s * decodes
            if self.windows:
                for slopes, tokens, below in zip(
                    cost.window_slopes_s, batch.window_tokens, batch.window_growth, strict=True
                ):
                    gpu_s += slopes[decodes] * tokens
                    growth_s += slopes[decodes] * below
            least_s = self._decode_launch_s[decodes]
        host_s = cost.host_s[requests]
        if self._async:
            least_s, host_s = least_s + host_s, 0.0
        if gpu_s >= least_s:
            return gpu_s + host_s, growth_s, FOR_EVER
        if growth_s <= 0.0:
            return least_s + host_s, 0.0, FOR_EVER
        # the GPU overtakes the host in iteration ceil((least - gpu) / growth)
        return least_s + host_s, 0.0, max(ceil((least_s - gpu_s) / growth_s), 1)

    def gpu_s(self, batch: Batch) -> float:
        """GPU seconds of the iteration of `batch`, the GPU's waiting for launches included."""
        return max(self.kernels_s(batch), self.launch_s(batch))

    def launch_s(self, batch: Batch) -> float:
        """Host seconds to launch the kernels of `batch` one by one; 0 where a CUDA graph holds them."""
        return self.cost.launch_lists_s[bool(batch.chunks)][batch.decodes + batch.chunk_tokens]

    def kernels_s(self, batch: Batch) -> float:
        """Seconds of the kernels of `batch`."""
        cost, decodes = self.cost, batch.decodes
        total_s = cost.token_s[decodes + batch.chunk_tokens] + cost.sampled_s[batch.sampled]
        if batch.chunks:
            total_s += cost.chunks_s(batch.chunks)
        if decodes:
            total_s += cost.decode_fixed_s[decodes] + cost.full_slope_s[decodes] * batch.context_tokens
            if self.windows:
                for slopes, tokens in zip(cost.window_slopes_s, batch.window_tokens, strict=True):
                    total_s += slopes[decodes] * tokens
        return total_s

    def phases(self, batch: Batch) -> tuple[list[Phase], float]:
        """The iteration as a chain of kernel groups and collectives, layer by layer, and the host time beside it."""
        cost = self.cost
        host_s = cost.host_s[batch.decodes + len(batch.chunks)]
        phases = list(self.kernels(batch))
        if not cost.async_scheduling:
            phases.append(Phase("host", host_s))
            return phases, 0.0
        return phases, host_s + self.launch_s(batch)

    def kernels(self, batch: Batch) -> Iterator[Phase]:
        """Equal shares of the iteration's kernels and collectives for every layer, then the head."""
        cost, layers = self.cost, self.cost.operators.layers
        tokens = batch.decodes + batch.chunk_tokens
        whole_s = self.gpu_s(batch)
        head_s = float(cost.sampled_causes[:, batch.sampled].sum())
        reduces, latency_s, bandwidth_s = cost.all_reduces(tokens)
        kernels_s = whole_s - head_s - reduces * (latency_s + bandwidth_s)
        per_layer = reduces / layers
        groups = max(round(per_layer), 1)
        amounts = self._amounts(tokens) if reduces and self._amounts is not None else {}
        loads = {capacity: load * per_layer / groups for capacity, load in amounts.items()}
        for _ in range(layers):
            for _ in range(groups):
                yield Phase("kernels", kernels_s / (layers * groups))
                if reduces:
                    share = per_layer / groups
                    yield Phase("all_reduce", share * bandwidth_s, loads, share * latency_s)
        yield Phase("head", head_s)
