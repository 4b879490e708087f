"""One scenario in, one `Result` out: the only door into the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sim.cost.pipeline import PipelineCost
from sim.cost.step import StepCost
from sim.engine.batch import SchedulerLimits
from sim.engine.cluster import Cluster, CountingEnvironment, Outcome
from sim.engine.deployment import Deployment
from sim.engine.fluid import Fluid
from sim.engine.kv_cache import BlockPool
from sim.engine.lanes import lanes
from sim.engine.pipeline import PipelineReplica
from sim.engine.policies import find_policy
from sim.engine.pricing import StagePricing
from sim.engine.recorder import Recorder
from sim.engine.replica import Replica
from sim.engine.router import LeastOutstanding
from sim.engine.versions import limits_for, pool_for
from sim.engine.wires import Amounts, Wires
from sim.errors import DoesNotFit, InputError
from sim.results.checks import run_checks
from sim.results.latency import Latency
from sim.results.result import Result
from sim.results.walls import Walls, shortest_iteration_s
from sim.scenario import Scenario
from sim.workload.content import Content
from sim.workload.workload import Workload

if TYPE_CHECKING:
    from sim.model.balance import Accounting, MemoryLedger

Progress = Callable[[float, int], None]
"""Called now and then with the simulated time and the number of requests that are over."""


def plan_memory(scenario: Scenario, accounting: Accounting = "engine") -> MemoryLedger:
    """The memory ledger of a scenario, without running it.

    Raises:
        InputError: something in the scenario is wrong.
    """
    return Deployment.of(scenario).memory(scenario.build_workload(), accounting)


def simulate(scenario: Scenario, progress: Progress | None = None) -> Result:
    """Plays a scenario and returns what it told.

    Args:
        scenario: a validated scenario.
        progress: told of simulated time and finished requests while it runs.

    Raises:
        InputError: something in the scenario is wrong.
        DoesNotFit: the deployment cannot hold its weights or its longest request; the ledger is in the message.
    """
    started_s = time.perf_counter()
    deployment = Deployment.of(scenario)
    workload = scenario.build_workload()
    memory = deployment.memory(workload)
    if not memory.fits:
        raise DoesNotFit("\n  ".join([f"{scenario.where}: {memory.reason}", *memory.suggestions]))
    run = _Run(deployment, workload, memory, progress)
    outcome = run.cluster.run(scenario.workload.time_limit_s)
    return run.result(outcome, started_s)


class _Run:
    """One replica after another built for a deployment, and their records turned into a result."""

    def __init__(
        self, deployment: Deployment, workload: Workload, memory: MemoryLedger, progress: Progress | None
    ) -> None:
        scenario, preset = deployment.scenario, deployment.preset
        self.deployment, self.workload, self.memory = deployment, workload, memory
        self.env = CountingEnvironment()
        self.costs = [deployment.cost(replica) for replica in range(deployment.sharding.data)]
        self.recorder = Recorder(self.costs[0].windows)
        self.max_model_len = deployment.max_model_len(workload)
        self.cluster = Cluster(
            self.env,
            workload,
            self.recorder,
            LeastOutstanding(),
            max_model_len=self.max_model_len,
            entry_s=preset.entry_s,
            exit_s=preset.exit_s,
            content=self._content(),
            progress=progress,
        )
        self.wires = Wires(deployment)
        fluid = Fluid(self.env)
        for index, cost in enumerate(self.costs):
            layered = scenario.granularity == "layer" or index in self.wires.sharing
            self.cluster.replicas.append(self._replica(index, cost, fluid if layered else None))

    def _content(self) -> Callable[[int], Content | None] | None:
        """What a prefix cache can see of each request; None where nothing is shared or nobody looks."""
        engine, prompts = self.deployment.scenario.engine, self.workload.prompts
        if prompts is None or not engine.enable_prefix_caching:
            return None
        return lambda request: prompts.content(request, engine.block_size)

    def _replica(self, index: int, cost: StepCost | PipelineCost, fluid: Fluid | None) -> Replica | PipelineReplica:
        exit_s, done = self.deployment.preset.exit_s, self.cluster.over
        limits, pool, scenario = self._limits(), self._pool(), self.deployment.scenario
        engine = scenario.engine
        if isinstance(cost, PipelineCost):
            _refuse_pipelined(scenario)
            schedulers = lanes(limits, pool, cost.windows, len(cost.stages))
            stages = [StagePricing(stage, self._amounts(index, i, stage)) for i, stage in enumerate(cost.stages)]
            return PipelineReplica(
                self.env, index, schedulers, cost, stages, self.recorder, done, exit_s=exit_s, fluid=fluid
            )
        return Replica(
            self.env,
            index,
            find_policy(engine.scheduler, f"{scenario.where}: engine.scheduler")(limits, pool, cost.windows),
            StagePricing(cost, self._amounts(index, 0, cost)),
            self.recorder,
            done,
            leaps=scenario.granularity == "leap",
            exit_s=exit_s,
            fluid=fluid,
        )

    def _amounts(self, replica: int, stage: int, cost: StepCost) -> Amounts | None:
        if replica not in self.wires.sharing:
            return None
        return self.wires.amounts(replica, stage, cost.operators.all_reduce_bytes_per_token)

    def _limits(self) -> SchedulerLimits:
        engine, deployment = self.deployment.scenario.engine, self.deployment
        naive = engine.on_kv_full == "oom"
        return limits_for(
            version=engine.version,
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            num_gpu_blocks=self.memory.usable_blocks + 1,
            enable_chunked_prefill=engine.enable_chunked_prefill,
            long_prefill_token_threshold=engine.long_prefill_token_threshold,
            scheduler_reserve_full_isl=engine.scheduler_reserve_full_isl and not naive,
            watermark=engine.watermark,
            # with stages, the batches in flight overlap host and GPU already, and vLLM schedules synchronously
            async_scheduling=deployment.async_scheduling and deployment.sharding.pipeline == 1,
            preempts=not naive,
        )

    def _pool(self) -> BlockPool:
        engine = self.deployment.scenario.engine
        return pool_for(
            version=engine.version,
            num_gpu_blocks=self.memory.usable_blocks + 1,
            block_size=engine.block_size,
            enable_prefix_caching=engine.enable_prefix_caching,
        )

    def result(self, outcome: Outcome, started_s: float) -> Result:
        """Columns, walls and self-checks of the finished run."""
        deployment, recorder = self.deployment, self.recorder
        requests, steps = recorder.request_columns(), recorder.step_columns()
        gaps = recorder.gaps.to_columns()
        chunks, preset = recorder.chunks.to_columns(), deployment.preset
        latency = Latency(
            Walls(self.costs, steps, chunks, preset, self.wires.sharing), requests, steps, chunks, gaps, preset
        )
        scenario = deployment.scenario
        result = Result(
            scenario=scenario.to_dict(),
            requests=requests,
            steps=steps,
            irregular_gaps_s=gaps["end_s"] - gaps["start_s"],
            ledger=self.memory,
            walls_ms_per_token=latency.ms_per_token(),
            self_checks=[],
            status=_status(outcome),
            events=outcome.events,
            preemptions=recorder.preemptions,
            simulated_seconds=outcome.end_s,
            wall_seconds=0.0,
            num_gpus=len(deployment.gpu_names),
            exit_s=deployment.preset.exit_s,
            oom=self._oom(outcome),
            notes=[*deployment.notes, *([outcome.stuck] if outcome.stuck else [])],
            scenario_object=scenario,
        )
        result.self_checks = run_checks(
            requests,
            steps,
            result.irregular_gaps_s,
            result.end_s,
            shortest_iteration_s(deployment),
            self.workload.concurrency,
        )
        result.self_checks.append(latency.check())
        result.wall_seconds = time.perf_counter() - started_s
        return result

    def _oom(self, outcome: Outcome) -> dict[str, Any] | None:
        """Where, when, by whom and by how much memory ran out."""
        failure = outcome.out_of_memory
        if failure is None:
            return None
        names = [gpu for stage in self.deployment.placement[failure.replica] for gpu in stage]
        row = max((r for r in self.memory.per_gpu if r.gpu in names), key=lambda r: r.kv_bytes_per_token)
        pool = self.cluster.replicas[failure.replica].scheduler.pool
        block_bytes = row.kv_bytes_per_token * pool.block_size
        return {
            "time_s": failure.time_s,
            "gpu": row.gpu,
            "request": failure.seq.id,
            "kv_tokens": (pool.usable_blocks - pool.free) * pool.block_size,
            "needed_bytes": (failure.blocks_short + pool.free) * block_bytes,
            "free_bytes": pool.free * block_bytes,
        }


def _refuse_pipelined(scenario: Scenario) -> None:
    """Batches in flight side by side are scheduled by vLLM's rules only."""
    if scenario.engine.scheduler not in ("vllm", "chunked"):
        where = f"{scenario.where}: engine.scheduler"
        raise InputError(where, f"got {scenario.engine.scheduler} with pipeline stages", "use vllm, or one stage")


def _status(outcome: Outcome) -> str:
    if outcome.out_of_memory is not None:
        return "oom"
    if outcome.stuck:
        return "stuck"
    return "timed_out" if outcome.timed_out else "done"
