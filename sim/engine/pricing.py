"""The price of a batch: from what the scheduler decided to how long it takes."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from sim.cost.step import StepCost
from sim.engine.batching import Batch
from sim.engine.iteration import Pace, Phase

FOR_EVER = 1 << 60


class StagePricing:
    """Prices the iterations of a replica that is one pipeline stage (`IterationCost`)."""

    def __init__(self, cost: StepCost) -> None:
        self.cost = cost
        self.windows = cost.windows

    def pace(self, batch: Batch, window_tokens: tuple[int, ...], window_growth: tuple[int, ...]) -> Pace:
        """Duration of the iteration of `batch`: GPU and host one after the other, or the longer of both (asynchronous)."""
        cost = self.cost
        chunks = [(chunk.start, chunk.tokens) for chunk in batch.chunks] if batch.chunks else ()
        gpu_s = cost.gpu_s(batch.decodes, batch.context_tokens, window_tokens, batch.sampled, chunks)
        growth_s = 0.0 if chunks else cost.growth_s(batch.decodes, window_growth)
        host_s = cost.host_s(batch.decodes + len(chunks))
        if not cost.async_scheduling:
            return Pace(gpu_s + host_s, growth_s, FOR_EVER)
        if gpu_s >= host_s:
            return Pace(gpu_s, growth_s, FOR_EVER)
        if growth_s <= 0.0:
            return Pace(host_s, 0.0, FOR_EVER)
        # the GPU overtakes the host in iteration ceil((host - gpu) / growth)
        return Pace(host_s, 0.0, max(ceil((host_s - gpu_s) / growth_s), 1))

    def phases(self, batch: Batch, window_tokens: tuple[int, ...]) -> tuple[list[Phase], float]:
        """The iteration as a chain of kernel groups and collectives, layer by layer, and the host time beside it."""
        cost = self.cost
        host_s = cost.host_s(batch.decodes + len(batch.chunks))
        phases = list(self._kernels(batch, window_tokens))
        if not cost.async_scheduling:
            phases.append(Phase("host", host_s))
            host_s = 0.0
        return phases, host_s

    def _kernels(self, batch: Batch, window_tokens: tuple[int, ...]) -> Iterator[Phase]:
        """Equal shares of the iteration's kernels and collectives for every layer, then the head."""
        cost, layers = self.cost, self.cost.operators.layers
        chunks = [(chunk.start, chunk.tokens) for chunk in batch.chunks]
        tokens = batch.decodes + batch.chunk_tokens
        whole_s = cost.gpu_s(batch.decodes, batch.context_tokens, window_tokens, batch.sampled, chunks)
        head_s = float(cost.sampled_causes[:, batch.sampled].sum())
        reduces, latency_s, bandwidth_s = cost.all_reduces(tokens)
        kernels_s = whole_s - head_s - reduces * (latency_s + bandwidth_s)
        per_layer = reduces / layers
        groups = max(round(per_layer), 1)
        for _ in range(layers):
            for _ in range(groups):
                yield Phase("kernels", kernels_s / (layers * groups))
                if reduces:
                    share = per_layer / groups
                    yield Phase("all_reduce", share * bandwidth_s, latency_s=share * latency_s)
        yield Phase("head", head_s)

