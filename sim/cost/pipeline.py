"""The cost of a pass through the stages of a pipeline, stage by stage, and the hand-over between them."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sim.cost.causes import INDEX, Causes
from sim.cost.kernels import Floats, KernelTime
from sim.cost.preset import padded
from sim.cost.step import DecodeSlopes, GroupCollectives, StepCost


@dataclass(frozen=True)
class HandOver:
    """Sends the hidden state from the ranks of a stage to those of the next.

    With tensor parallelism every rank sends its slice to its peer, and the receiving group gathers the slices (vLLM).
    """

    pairs: GroupCollectives
    """Both stages' ranks: the first half sends to the second."""
    receivers: GroupCollectives | None
    ranks: int
    bytes_per_token: float

    def times(self, tokens: Floats) -> tuple[Floats, Floats]:
        """(latency seconds, bandwidth seconds) for each number of tokens."""
        size = self.bytes_per_token * tokens
        latency_s, bandwidth_s = self.pairs.times("send_recv", size / self.ranks)
        if self.receivers is not None:
            more = self.receivers.times("all_gather", size)
            latency_s, bandwidth_s = latency_s + more[0], bandwidth_s + more[1]
        return latency_s, bandwidth_s


class PipelineCost:
    """Durations of passes through several stages, each a `StepCost`; the sums have the shape of a `StepCost`'s tables."""

    def __init__(self, stages: Items[StepCost], hand_overs: Items[HandOver]) -> None:
        self.stages = list(stages)
        self.windows = tuple(sorted({window for stage in stages for window in stage.windows}))
        self.preset = stages[0].preset
        self.async_scheduling = False
        """Batches in flight hide the host instead."""
        self.host_s = stages[0].host_s
        tokens = np.arange(len(stages[0].token_s))
        rows = padded(tokens, self.preset.graph_sizes).astype(float)
        self._between = [hand_over.times(rows) for hand_over in hand_overs]
        self.hand_over_s: list[list[float]] = [(latency + bandwidth).tolist() for latency, bandwidth in self._between]
        """For each boundary between stages, seconds by number of tokens."""

    @cached_property
    def launch_s(self) -> dict[bool, Floats]:
        """Least seconds of a passage by number of tokens, with prompt tokens or without: hosts launch its kernels."""
        return {mixed: np.sum([stage.launch_s[mixed] for stage in self.stages], axis=0) for mixed in (False, True)}

    @cached_property
    def token_causes(self) -> Causes:
        """Causes by number of tokens, over all stages and hand-overs."""
        total = np.sum([stage.token_causes for stage in self.stages], axis=0)
        for latency_s, bandwidth_s in self._between:
            total[INDEX["collective_latency"]] += latency_s
            total[INDEX["collective_bandwidth"]] += bandwidth_s
        return np.asarray(total)

    @cached_property
    def sampled_causes(self) -> Causes:
        return np.asarray(np.sum([stage.sampled_causes for stage in self.stages], axis=0))

    @cached_property
    def decode_fixed(self) -> Floats:
        return np.asarray(np.sum([stage.decode_fixed for stage in self.stages], axis=0))

    @cached_property
    def decode_slopes(self) -> list[DecodeSlopes]:
        return [slope for stage in self.stages for slope in stage.decode_slopes]

    def chunk_times(self, start: Floats, tokens: Floats) -> KernelTime:
        """Attention of prompt chunks over the layers of all stages."""
        times = [stage.chunk_times(start, tokens) for stage in self.stages]
        return KernelTime(
            np.asarray(sum(time.fixed_s for time in times)),
            np.asarray(sum(time.memory_s for time in times)),
            np.asarray(sum(time.compute_s for time in times)),
        )
