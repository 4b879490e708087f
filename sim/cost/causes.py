"""The causes that a duration is split into."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.cost.kernels import KernelTime

CAUSES = (
    "weights_read",
    "kv_read",
    "compute",
    "activations",
    "collective_latency",
    "collective_bandwidth",
    "shared_links",
    "kernel_fixed",
    "pipeline_bubble",
    "lock_step",
    "draft",
    "engine_overhead",
)
"""Weights, KV cache and activations stream through HBM; compute waits for the tensor cores; collectives for latency and
bandwidth of the links, and shared_links for others on the same wires; kernel_fixed is launches, tiles and waves;
pipeline_bubble is a batch waiting for a stage that another batch occupies; lock_step is a data-parallel rank waiting for the
slowest one with which it shares its experts; draft is the proposing of speculative decoding; engine_overhead is host time and
gaps."""
INDEX = {cause: i for i, cause in enumerate(CAUSES)}

Causes = NDArray[np.float64]
"""Seconds by cause: shape (len(CAUSES), ...)."""


def zeros(*shape: int) -> Causes:
    """No time at all, for an array of this shape."""
    return np.zeros((len(CAUSES), *shape))


def add_kernel(total: Causes, time: KernelTime, count: float, memory_cause: str) -> None:
    """Adds `count` times a kernel; its wait for HBM counts as `memory_cause`."""
    total[INDEX["kernel_fixed"]] += count * np.asarray(time.fixed_s)
    total[INDEX[memory_cause]] += count * np.asarray(time.memory_s)
    total[INDEX["compute"]] += count * np.asarray(time.compute_s)
