"""The mean iteration of a run by cause, on the deployment that ran it or on another."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.cost.causes import INDEX, Causes
from sim.cost.pipeline import PipelineCost
from sim.cost.step import StepCost
from sim.engine.deployment import Deployment
from sim.engine.recorder import Columns
from sim.engine.wires import Wires
from sim.results.walls import Floats, Walls

_NO_CHUNKS: Columns = {name: np.zeros(0, np.int64) for name in ("step", "request", "start", "tokens")}


@dataclass(frozen=True)
class Iterations:
    """Some iterations: rows of a run's steps, and the prompt chunks in them."""

    steps: Columns
    chunks: Columns
    weights: Floats
    """How much each row counts in the mean, an iteration of it."""

    @property
    def tokens(self) -> int:
        """Most tokens of any of them."""
        return int((self.steps["decodes"] + self.steps["prefill_tokens"]).max())

    def mean(self, of_rows: Floats) -> Floats:
        """Mean over iterations of what all iterations of each row have together (the last axis)."""
        return np.asarray((of_rows * self.weights).sum(axis=-1) / (self.steps["iterations"] * self.weights).sum())


def decode_iterations(steps: Mapping[str, NDArray[Any]]) -> Iterations | None:
    """The iterations of a run that only decode, weighted by their tokens; None if there are none."""
    chosen = (steps["decodes"] > 0) & (steps["prefills"] == 0)
    if not chosen.any():
        return None
    rows = {name: column[chosen] for name, column in steps.items()}
    return Iterations(rows, _NO_CHUNKS, rows["decodes"].astype(float))


def prefill_iteration(tokens: int, windows: tuple[int, ...]) -> Iterations:
    """One iteration with nothing but the first `tokens` tokens of one prompt."""
    one, nothing = np.ones(1, np.int64), np.zeros(1, np.int64)
    rows = {name: nothing for w in windows for name in (f"window{w}_tokens", f"window{w}_growth")}
    rows |= {"replica": nothing, "decodes": nothing, "context_tokens": nothing}
    rows |= {"iterations": one, "prefills": one, "sampled": one, "prefill_tokens": one * tokens}
    chunks = {"step": nothing, "request": nothing, "start": nothing, "tokens": one * tokens}
    return Iterations(
        rows | {"start_s": np.zeros(1), "first_s": np.zeros(1), "growth_s": np.zeros(1)}, chunks, np.ones(1)
    )


def batches_in_flight(deployment: Deployment, iterations: Iterations) -> float:
    """Batches of a replica that decoded side by side: 1, or as many lanes of a pipeline as were in use."""
    stages, replica = deployment.sharding.pipeline, iterations.steps["replica"]
    return len(np.unique(replica)) / len(np.unique(replica // stages))


def mean_causes(deployment: Deployment, iterations: Iterations) -> Causes:
    """Seconds by cause of the mean iteration on `deployment`, as if no other replica used its links.

    A pipeline's bubble is that of equal batches following each other, as many as were in flight: a batch is back after
    max(host + passage, batches x slowest stage, batches x host), the period of a cyclic flow shop.
    """
    costs = [deployment.cost(replica) for replica in range(deployment.sharding.data)]
    timeless = {name: column for name, column in iterations.steps.items() if name != "shared_s"} | {
        "first_s": np.zeros(len(iterations.weights)),
        "growth_s": np.zeros(len(iterations.weights)),
    }
    causes = Walls(costs, timeless, iterations.chunks, deployment.preset).step_causes
    pipelines = [cost for cost in costs if isinstance(cost, PipelineCost)]
    if pipelines:
        causes[INDEX["pipeline_bubble"]] = 0.0
        causes[INDEX["pipeline_bubble"]] = _bubbles_s(deployment, pipelines, iterations, timeless, causes.sum(axis=0))
    return iterations.mean(causes)


def _bubbles_s(
    deployment: Deployment, costs: Items[PipelineCost], iterations: Iterations, steps: Columns, passage_s: Floats
) -> Floats:
    """What each row waits for stages and host that other batches occupy."""
    lanes, preset = len(costs[0].stages), deployment.preset
    host_s = preset.host_s(steps["decodes"] + steps["prefills"]) * steps["iterations"]
    by_replica = steps | {"replica": steps["replica"] // lanes}
    longest_s = host_s
    for number in range(lanes):
        stages: list[StepCost | PipelineCost] = [cost.stages[number] for cost in costs]
        alone_s = Walls(stages, by_replica, iterations.chunks, preset).step_causes.sum(axis=0) - host_s
        longest_s = np.maximum(longest_s, alone_s)
    return np.maximum(batches_in_flight(deployment, iterations) * longest_s - passage_s, 0.0)


def mean_sharing_s(deployment: Deployment, iterations: Iterations) -> float:
    """What the mean iteration waited in the run for others on the same links; 0 where nothing is shared."""
    members = [(deployment, replica) for replica in range(deployment.sharding.data)]
    sharing = Wires(members).sharing
    if not sharing:
        return 0.0
    if deployment.sharding.pipeline > 1:
        return float(iterations.mean(iterations.steps.get("shared_s", np.zeros(len(iterations.weights)))))
    costs = [deployment.cost(replica) for replica in range(deployment.sharding.data)]
    walls = Walls(costs, iterations.steps, iterations.chunks, deployment.preset, sharing)
    return float(iterations.mean(walls.step_causes[INDEX["shared_links"]]))
