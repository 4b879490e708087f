"""What can be said of a deployment without running it: whether it fits, and a closed form of its speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.cost.experts import LockStepCost
from sim.cost.pipeline import PipelineCost
from sim.cost.step import StepCost
from sim.engine.deployment import Deployment, deployments
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
    """Estimate of the requests a second of the deployment within the limit on TPOT; it knows no queues, so it flatters."""
    latency_alone_s: float = 0.0
    """Of a mean request that has the machine to itself."""


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean request."""

    input_tokens: float
    output_tokens: float

    @property
    def context_tokens(self) -> float:
        """On average over its decode."""
        return self.input_tokens + self.output_tokens / 2


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica, and what of its group its iterations depend on."""

    cost: StepCost | PipelineCost
    ranks: int = 1
    """Replicas that share their experts in lock-step, taken to hold the same batch."""

    @classmethod
    def of(cls, deployment: Deployment) -> Replica:
        return cls(deployment.cost(0), deployment.sharding.data if deployment.lock_step else 1)

    @property
    def stages(self) -> list[StepCost]:
        return self.cost.stages if isinstance(self.cost, PipelineCost) else [self.cost]

    @property
    def budget(self) -> int:
        """Tokens of an iteration at most."""
        return len(self.stages[0].token_s) - 1

    def experts_s(self, tokens: int) -> float:
        """What every rank's `tokens` take in the experts of the group, and on the way to them and back."""
        stage = self.stages[0]
        if not isinstance(stage, LockStepCost):
            return 0.0
        return stage.experts.experts_s(tokens * self.ranks) + stage.experts.exchange_s(tokens * self.ranks, tokens)

    def decode_s(self, sequences: int, context_tokens: float) -> float:
        """Seconds of one iteration that decodes one token of each of `sequences`, over all stages."""
        total_s = self.experts_s(sequences)
        for stage in self.stages:
            total_s += stage.token_s[sequences] + stage.sampled_s[sequences] + stage.decode_fixed_s[sequences]
            total_s += stage.full_slope_s[sequences] * sequences * context_tokens
            for window, slope_s in zip(stage.windows, stage.window_slopes_s, strict=True):
                total_s += slope_s[sequences] * sequences * min(window, context_tokens)
        if isinstance(self.cost, PipelineCost):
            return total_s + sum(hop[sequences] for hop in self.cost.hand_over_s)
        host_s = self.cost.host_s[sequences]
        return max(total_s, host_s) if self.cost.async_scheduling else total_s + host_s

    def prefill_s(self, prompt_tokens: float) -> float:
        """Seconds of the prompt of one request alone, in as few iterations as the token budget allows."""
        total_s, start = 0.0, 0
        while start < prompt_tokens:
            chunk = min(self.budget, round(prompt_tokens) - start) or 1
            total_s += self.experts_s(chunk)
            total_s += sum(s.token_s[chunk] + s.sampled_s[1] + s.chunks_s([(start, chunk)]) for s in self.stages)
            start += chunk
        return total_s

    def prompt_share_s(self, mean: Mean) -> float:
        """What the mean prompt takes of iterations that are full of prompts."""
        full_s = sum(stage.token_s[self.budget] for stage in self.stages) + self.experts_s(self.budget)
        return full_s / self.budget * mean.input_tokens


def screen(scenario: Scenario, workload: Workload, slo: Sequence[Objective]) -> Screened:
    """Memory ledger and closed form of `scenario` under `workload`.

    Raises:
        InputError: the deployment cannot be made.
    """
    pools = [warm_deployment(scenario)] if scenario.deployment.pools is None else deployments(scenario)
    ledgers = [pool.memory(workload) for pool in pools]
    refused = next((memory.reason for memory in ledgers if not memory.fits), None)
    if refused is not None:
        return Screened(f"does not fit: {refused}")
    prompts, tokens = Replica.of(pools[0]), Replica.of(pools[-1])
    mean = Mean(float(workload.input_tokens.mean()), float(workload.output_tokens.mean()))
    token_s, prompt_s = tokens.decode_s(1, mean.context_tokens), prompts.prefill_s(mean.input_tokens)
    alone_s = prompt_s + mean.output_tokens * token_s
    limits = {objective.key.split("_")[1]: objective.limit / 1e3 for objective in slo if objective.key.endswith("_ms")}
    for metric, found_s in (("tpot", token_s), ("ttft", prompt_s), ("e2el", alone_s)):
        if found_s > limits.get(metric, float("inf")):
            told = f"{found_s * 1e3:,.1f} ms against {limits[metric] * 1e3:,.0f} ms"
            return Screened(f"too slow even alone: the {metric.upper()} of a mean request is {told}", 0.0, alone_s)
    most = max(1, min(ledgers[-1].max_sequences, scenario.engine.max_num_seqs))
    limit_s = limits.get("tpot", float("inf"))
    apart = len(pools) > 1
    rate = pools[-1].sharding.data * max(_rate(tokens, n, mean, limit_s, apart=apart) for n in _batches(most))
    if apart:
        rate = min(rate, pools[0].sharding.data / prompts.prompt_share_s(mean))
    return Screened("", rate, alone_s)


def _batches(most: int) -> list[int]:
    """Batch sizes to try: every one up to 8, then a step of an eighth."""
    found, size = [], 1
    while size <= most:
        found.append(size)
        size += max(1, size // 8)
    return found


def _rate(replica: Replica, sequences: int, mean: Mean, limit_s: float, *, apart: bool) -> float:
    """Requests a second that keep `sequences` decoding in every batch under way; 0 where their tokens miss the limit.

    Each request takes its share of iterations, and its prompt a share of a full one unless prompts are computed apart.
    As many batches are under way as there are stages. A request decodes for sequences / rate seconds (Little), so its
    tokens are sequences / (rate x output tokens) apart.
    """
    depth = len(replica.stages)
    step_s = replica.decode_s(sequences, mean.context_tokens)
    prompt_s = 0.0 if apart else replica.prompt_share_s(mean)
    rate = depth / (prompt_s + mean.output_tokens * step_s / sequences)
    gap_s = depth * sequences / (rate * mean.output_tokens)
    return rate if sequences == 1 or gap_s <= limit_s else 0.0
