"""How long one iteration of a batch takes on a deployment, and why.

Every GEMM, all-reduce and small kernel of a deployment depends on the number of tokens only (the head on the number of sampled
sequences), and decode attention is affine in the sum of contexts, so all of that is tabulated once; in a run an iteration costs
a few list look-ups. The tables keep the causes, and a finished run is split into them in one vectorised pass.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.cost.causes import INDEX, Causes, add_kernel, zeros
from sim.cost.kernels import DecodeAttentionTime, Floats, KernelBackend, KernelTime
from sim.cost.preset import EnginePreset, launches, padded
from sim.model.operators import Attention, StageOperators

Ints = NDArray[np.int64]
ChunkShape = tuple[int, int, *tuple[Any, ...]]
"""(cached tokens before it, tokens, whatever else) of a prompt chunk."""


class GroupCollectives(Protocol):
    """Collectives of one tensor-parallel group."""

    def times(self, op: str, sizes_bytes: Floats) -> tuple[Floats, Floats]:
        """(latency seconds, bandwidth seconds) of `op` for each message size."""
        ...


@dataclass(frozen=True, slots=True)
class DecodeSlopes:
    """Seconds a context token of decode attention, over all layers that see the same stretch of context."""

    window_tokens: int | None
    memory_s: Floats
    """By number of decoding sequences."""
    compute_s: Floats

    @property
    def total_s(self) -> Floats:
        return self.memory_s + self.compute_s


class StepCost:
    """Durations of iterations of one pipeline stage on one group of GPUs.

    Args:
        operators: what one rank computes.
        backend: durations of its kernels.
        collectives: of the tensor-parallel group; None for a single GPU.
        preset: the engine's own overheads.
        max_tokens: most tokens of an iteration.
        max_seqs: most sequences of an iteration.
        async_scheduling: host time overlaps GPU time.
        windows: sliding windows of the whole model, sorted; None: those of this stage.
    """

    def __init__(
        self,
        operators: StageOperators,
        backend: KernelBackend,
        collectives: GroupCollectives | None,
        preset: EnginePreset,
        *,
        max_tokens: int,
        max_seqs: int,
        async_scheduling: bool,
        windows: tuple[int, ...] | None = None,
    ) -> None:
        self.operators = operators
        self.backend = backend
        self.parts = (backend, collectives, preset)
        """What prices its kernels, its collectives and the engine."""
        self.preset = preset
        self._clock = preset.clock_on(backend.gpu)
        self.async_scheduling = async_scheduling
        self._collectives = collectives
        self.windows = reaches([operators]) if windows is None else windows
        self.token_causes = self._token_causes(np.arange(max_tokens + 1))
        """Causes by number of tokens: all that does not depend on contexts, the head left out."""
        self.sampled_causes = self._sampled_causes(np.arange(max_seqs + 1))
        self.decode_fixed, self.decode_slopes = self._decode_tables(np.arange(max_seqs + 1))
        self.token_s: list[float] = self.token_causes.sum(axis=0).tolist()
        self.sampled_s: list[float] = self.sampled_causes.sum(axis=0).tolist()
        self.decode_fixed_s: list[float] = self.decode_fixed.tolist()
        slopes = {s.window_tokens: s.total_s.tolist() for s in self.decode_slopes}
        self.full_slope_s: list[float] = slopes.get(None, [0.0] * (max_seqs + 1))
        """Seconds a context token of layers that see all of it, by number of decoding sequences."""
        self.window_slopes_s: list[list[float]] = [slopes.get(w, [0.0] * (max_seqs + 1)) for w in self.windows]
        self.host_s: list[float] = preset.host_s(np.arange(max_seqs + 1)).tolist()
        """Host seconds of an iteration, by number of requests."""
        self.launch_s = {mixed: self._launch_s(np.arange(max_tokens + 1), mixed) for mixed in (False, True)}
        """With prompt tokens or without -> least seconds of an iteration by number of tokens: the host launches its kernels."""
        self.launch_lists_s: dict[bool, list[float]] = {mixed: table.tolist() for mixed, table in self.launch_s.items()}
        """The same for one look-up at a time."""
        self._chunk_cache: dict[tuple[int, int], tuple[float, float]] = {}

    # --- tables -----------------------------------------------------------------------------------------------------------

    def _token_causes(self, tokens: Ints) -> Causes:
        """GEMMs, experts, small kernels, all-reduces and gaps of an iteration of each number of tokens."""
        rows = np.maximum(padded(tokens, self.preset.graph_sizes), 1).astype(float)
        total = zeros(len(tokens))
        for gemm in self.operators.gemms:
            if gemm.per == "token":
                add_kernel(total, self.backend.gemm(rows, gemm.n, gemm.k, gemm.dtype), gemm.count, "weights_read")
        for moe in self.operators.moes:
            time = self.backend.moe(
                rows, moe.hidden, moe.intermediate, moe.experts, moe.local_experts, moe.top_k, moe.dtype
            )
            add_kernel(total, time, moe.count, "weights_read")
        for small in self.operators.elementwise:
            if small.per == "token":
                time = self.backend.elementwise(small.bytes_per_token * rows, small.kernels)
                add_kernel(total, time, small.count, "activations")
        self._add_collective(
            total, "all_reduce", self.operators.all_reduce_bytes_per_token * rows, self.operators.all_reduces
        )
        total[INDEX["engine_overhead"]] += self.operators.layers * self.preset.layer_s + self.preset.step_s
        total[INDEX["compute"]] /= self._clock
        return total

    def _launch_s(self, tokens: Ints, mixed: bool) -> Floats:
        all_reduces = 0 if self._collectives is None else self.operators.all_reduces
        one_by_one_s = (
            self.operators.layers * self.preset.launch_layer_s + all_reduces * self.preset.launch_all_reduce_s
        )
        return np.where(launches(tokens, mixed, self.preset), one_by_one_s, 0.0)

    def _sampled_causes(self, sampled: Ints) -> Causes:
        """The head and sampling, for each number of sampled sequences; nothing for none."""
        total, rows = zeros(len(sampled)), np.maximum(sampled, 1).astype(float)
        for gemm in self.operators.gemms:
            if gemm.per == "sampled":
                add_kernel(total, self.backend.gemm(rows, gemm.n, gemm.k, gemm.dtype), gemm.count, "weights_read")
        for small in self.operators.elementwise:
            if small.per == "sampled":
                time = self.backend.elementwise(small.bytes_per_token * rows, small.kernels)
                add_kernel(total, time, small.count, "activations")
        gathered = self.operators.logits_gather_bytes_per_sampled
        if gathered:
            self._add_collective(total, "all_gather", gathered * rows, 1)
        total[:, 0] = 0.0
        return total

    def _add_collective(self, total: Causes, op: str, sizes_bytes: Floats, count: int) -> None:
        if self._collectives is None or not count:
            return
        latency_s, bandwidth_s = self._collectives.times(op, sizes_bytes)
        total[INDEX["collective_latency"]] += count * latency_s
        total[INDEX["collective_bandwidth"]] += count * bandwidth_s

    def _decode_tables(self, sequences: Ints) -> tuple[Floats, list[DecodeSlopes]]:
        """(fixed seconds, slopes by reach) of decode attention over all layers, by number of sequences."""
        rows = np.maximum(sequences, 1).astype(float)
        fixed = np.zeros(len(rows))
        slopes: dict[int | None, DecodeSlopes] = {}
        for attention in self.operators.attentions:
            time = self._decode(attention, rows)
            fixed += attention.count * attention.kernels * time.fixed_s
            before = slopes.get(
                attention.reach, DecodeSlopes(attention.reach, np.zeros(len(rows)), np.zeros(len(rows)))
            )
            scores_s = self.backend.elementwise(attention.score_bytes_per_pair, 0).memory_s
            slopes[attention.reach] = DecodeSlopes(
                attention.reach,
                before.memory_s + attention.count * (time.memory_s_per_token + scores_s),
                before.compute_s + attention.count * time.compute_s_per_token,
            )
        fixed[0] = 0.0
        return fixed, list(slopes.values())

    def _decode(self, attention: Attention, rows: Floats) -> DecodeAttentionTime:
        if attention.kind == "mla":
            return self.backend.decode_mla(
                rows, attention.heads, attention.kv_lora_rank, attention.rope_dim, attention.kv_dtype
            )
        return self.backend.decode_attention(
            rows, attention.heads, attention.kv_heads, attention.head_dim, attention.kv_dtype
        )

    # --- prompt chunks ----------------------------------------------------------------------------------------------------

    def chunk_times(self, start: Floats, tokens: Floats) -> KernelTime:
        """Attention of prompt chunks over all layers: `tokens` queries after `start` cached tokens each."""
        fixed, memory, compute = np.zeros(np.shape(start)), np.zeros(np.shape(start)), np.zeros(np.shape(start))
        for attention in self.operators.attentions:
            if attention.kind == "mla":
                time = self.backend.prefill_mla(
                    tokens, start, attention.heads, attention.kv_lora_rank, attention.rope_dim, attention.nope_dim,
                    attention.v_dim, attention.kv_dtype,
                )  # fmt: skip
            else:
                time = self.backend.prefill_attention(
                    tokens, start, attention.heads, attention.kv_heads, attention.head_dim, attention.kv_dtype,
                    attention.reach,
                )  # fmt: skip
            pairs = tokens * start + tokens * (tokens + 1) / 2
            scores_s = self.backend.elementwise(attention.score_bytes_per_pair * pairs, 0).memory_s
            fixed = fixed + attention.count * attention.kernels * time.fixed_s
            memory = memory + attention.count * (time.memory_s + scores_s)
            compute = compute + attention.count * time.compute_s
        return KernelTime(fixed, memory, compute / self._clock)

    def chunks_s(self, chunks: Items[ChunkShape]) -> float:
        """Attention of the prompt chunks of one iteration.

        All run in one kernel: its fixed cost is paid once.
        """
        total_s = launch_s = 0.0
        for chunk in chunks:
            key = chunk[:2]
            found = self._chunk_cache.get(key)
            if found is None:
                time = self.chunk_times(np.float64(key[0]), np.float64(key[1]))  # type: ignore[arg-type]
                found = self._chunk_cache[key] = (float(time.fixed_s), float(time.memory_s + time.compute_s))
            if found[0] > launch_s:
                launch_s = found[0]
            total_s += found[1]
        return total_s + launch_s

    def all_reduces(self, tokens: int) -> tuple[int, float, float]:
        """(number, latency seconds, bandwidth seconds of one) of the all-reduces of an iteration of so many tokens."""
        count = self.operators.all_reduces
        if self._collectives is None or not count:
            return 0, 0.0, 0.0
        rows = padded(np.array([tokens]), self.preset.graph_sizes).astype(np.float64)
        latency_s, bandwidth_s = self._collectives.times("all_reduce", self.operators.all_reduce_bytes_per_token * rows)
        return count, float(latency_s[0]), float(bandwidth_s[0])


def reaches(stages: Items[StageOperators]) -> tuple[int, ...]:
    """The distinct sliding windows (or attention chunks) of some stages, sorted."""
    return tuple(sorted({w for stage in stages for a in stage.attentions if (w := a.reach) is not None}))
