"""What a serving engine adds to the kernels: host time, gaps, graph padding, API time.

Fixed costs of kernels themselves are in the kernel fits; these are the engine's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class EnginePreset:
    """Overheads and defaults of one serving engine."""

    name: str
    layer_s: float
    """GPU idle time a layer between its kernels beyond their own fixed cost: dependent launches inside a CUDA graph."""
    step_s: float
    """GPU time an iteration outside the model: input copies, metadata kernels, sampling set-up."""
    host_step_s: float
    """Host time an iteration: scheduling, input preparation, output handling."""
    host_request_s: float
    """Host time for each scheduled request."""
    entry_s: float
    """From the client's send until the engine's queue: HTTP, tokenisation, inter-process hop."""
    exit_s: float
    """From a sampled token until the client holds it: detokenisation, streaming."""
    async_scheduling: bool
    """The next iteration is scheduled while the GPU runs this one."""
    software: str
    """Which all-reduce implementation: custom (engine's kernel under CUDA graphs), nccl, eager, ideal (free)."""
    graph_sizes: tuple[int, ...]
    """Token counts that CUDA graphs are captured for; smaller batches are padded up. Empty: no padding."""
    ideal: bool = False
    """Printed peaks, no fixed cost: the back of an envelope."""
    source: str = ""


def vllm_graph_sizes(limit: int = 512) -> tuple[int, ...]:
    """vLLM's default capture sizes: 1, 2, 4, then every 8 up to 256, every 16 beyond (vllm/config, cudagraph_capture_sizes)."""
    return (1, 2, 4, *range(8, min(256, limit + 1), 8), *range(256, limit + 1, 16))


PRESETS: dict[str, EnginePreset] = {
    "ideal": EnginePreset("ideal", 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, False, "ideal", (), True, "the back of an envelope"),
    "vllm": EnginePreset(
        name="vllm",
        layer_s=6e-6,
        step_s=120e-6,
        host_step_s=1.0e-3,
        host_request_s=4.4e-6,
        entry_s=4e-3,
        exit_s=1e-3,
        async_scheduling=True,
        software="custom",
        graph_sizes=vllm_graph_sizes(),
        source="host time a step and a request: agreed by peer simulators (126 us a step, 4.42 us a request: BLIS)",
    ),
    "trtllm": EnginePreset(
        name="trtllm",
        layer_s=3e-6,
        step_s=100e-6,
        host_step_s=0.5e-3,
        host_request_s=3e-6,
        entry_s=4e-3,
        exit_s=1e-3,
        async_scheduling=True,
        software="custom",
        graph_sizes=vllm_graph_sizes(),
        source="C++ batch manager with overlap scheduler; not yet fitted",
    ),
    "sglang": EnginePreset(
        name="sglang",
        layer_s=5e-6,
        step_s=120e-6,
        host_step_s=0.8e-3,
        host_request_s=4e-6,
        entry_s=4e-3,
        exit_s=1e-3,
        async_scheduling=True,
        software="custom",
        graph_sizes=vllm_graph_sizes(),
        source="overlap scheduler (sglang 0.4 and later); not yet fitted",
    ),
}


def padded(tokens: NDArray[np.int64], sizes: tuple[int, ...]) -> NDArray[np.int64]:
    """Token counts as CUDA graphs run them: up to the next captured size, unchanged beyond the largest."""
    if not sizes:
        return tokens
    table = np.asarray(sizes)
    place = np.searchsorted(table, tokens)
    return np.where(place < len(table), table[np.minimum(place, len(table) - 1)], tokens)
