"""What can be said of a deployment without running it: whether it fits, and a closed form of its speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.cost.pipeline import PipelineCost
from sim.cost.step import StepCost
from sim.engine.warm import warm_deployment
from sim.scenario import Scenario
from sim.studies.objective import Objective
from sim.workload.workload import Workload


@dataclass(frozen=True, slots=True)
class Screened:
    """The closed form of one candidate."""

    reason: str
    """Why it is out; empty if it may run."""
    request_rate: float = 0.0
    """Estimate of the requests a second of one replica within the limit on TPOT; it knows no queues, so it flatters."""
    latency_alone_s: float = 0.0
    """Of a mean request that has the machine to itself."""


@dataclass(frozen=True, slots=True)
class _Mean:
    """The mean request."""

    input_tokens: float
    output_tokens: float

    @property
    def context_tokens(self) -> float:
        """On average over its decode."""
        return self.input_tokens + self.output_tokens / 2


def screen(scenario: Scenario, workload: Workload, slo: Sequence[Objective]) -> Screened:
    """Memory ledger and closed form of `scenario` under `workload`.

    Raises:
        InputError: the deployment cannot be made.
    """
    deployment = warm_deployment(scenario)
    memory = deployment.memory(workload)
    if not memory.fits:
        return Screened(f"does not fit: {memory.reason}")
    cost = deployment.cost(0)
    mean = _Mean(float(workload.input_tokens.mean()), float(workload.output_tokens.mean()))
    token_s, prompt_s = decode_s(cost, 1, mean.context_tokens), prefill_s(cost, mean.input_tokens)
    alone_s = prompt_s + mean.output_tokens * token_s
    limits = {objective.key.split("_")[1]: objective.limit / 1e3 for objective in slo if objective.key.endswith("_ms")}
    for metric, found_s in (("tpot", token_s), ("ttft", prompt_s), ("e2el", alone_s)):
        if found_s > limits.get(metric, float("inf")):
            told = f"{found_s * 1e3:,.1f} ms against {limits[metric] * 1e3:,.0f} ms"
            return Screened(f"too slow even alone: the {metric.upper()} of a mean request is {told}", 0.0, alone_s)
    most = max(1, min(memory.max_sequences, scenario.engine.max_num_seqs))
    return Screened("", _limited(cost, most, mean, limits.get("tpot", float("inf"))), alone_s)


def decode_s(cost: StepCost | PipelineCost, sequences: int, context_tokens: float) -> float:
    """Seconds of one iteration that decodes one token of each of `sequences`, over all stages."""
    stages = cost.stages if isinstance(cost, PipelineCost) else [cost]
    total_s = 0.0
    for stage in stages:
        gpu_s = stage.token_s[sequences] + stage.sampled_s[sequences] + stage.decode_fixed_s[sequences]
        gpu_s += stage.full_slope_s[sequences] * sequences * context_tokens
        for window, slope_s in zip(stage.windows, stage.window_slopes_s, strict=True):
            gpu_s += slope_s[sequences] * sequences * min(window, context_tokens)
        total_s += gpu_s
    if isinstance(cost, PipelineCost):
        return total_s + sum(hop[sequences] for hop in cost.hand_over_s)
    host_s = cost.host_s[sequences]
    return max(total_s, host_s) if cost.async_scheduling else total_s + host_s


def prefill_s(cost: StepCost | PipelineCost, prompt_tokens: float) -> float:
    """Seconds of the prompt of one request alone, in as few iterations as the token budget allows."""
    stages = cost.stages if isinstance(cost, PipelineCost) else [cost]
    budget = len(stages[0].token_s) - 1
    total_s, start = 0.0, 0
    while start < prompt_tokens:
        chunk = min(budget, round(prompt_tokens) - start) or 1
        total_s += sum(stage.token_s[chunk] + stage.sampled_s[1] + stage.chunks_s([(start, chunk)]) for stage in stages)
        start += chunk
    return total_s


def _batches(most: int) -> list[int]:
    """Batch sizes to try: every one up to 8, then a step of an eighth."""
    found, size = [], 1
    while size <= most:
        found.append(size)
        size += max(1, size // 8)
    return found


def _rate(cost: StepCost | PipelineCost, sequences: int, mean: _Mean) -> float:
    """Requests a second that keep `sequences` decoding: each takes its share of iterations, and its prompt a share of a full one.

    With stages, as many batches are under way as there are stages.
    """
    depth = len(cost.stages) if isinstance(cost, PipelineCost) else 1
    stages = cost.stages if isinstance(cost, PipelineCost) else [cost]
    budget = len(stages[0].token_s) - 1
    prompt_s = sum(stage.token_s[budget] for stage in stages) / budget * mean.input_tokens
    step_s = decode_s(cost, sequences, mean.context_tokens)
    return depth / (prompt_s + mean.output_tokens * step_s / sequences)


def _limited(cost: StepCost | PipelineCost, most: int, mean: _Mean, limit_s: float) -> float:
    """The most requests a second of any batch size whose tokens keep the limit, prompts in between included.

    With n sequences in flight and r requests a second, a request decodes for n / r seconds (Little), so its tokens are
    n / (r x output tokens) apart.
    """
    best = 0.0
    for sequences in _batches(most):
        rate = _rate(cost, sequences, mean)
        depth = len(cost.stages) if isinstance(cost, PipelineCost) else 1
        if sequences == 1 or depth * sequences / (rate * mean.output_tokens) <= limit_s:
            best = max(best, rate)
    return best
