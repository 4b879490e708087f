"""The replicas of a scenario: of one deployment or of several pools, built on one clock and one set of wires."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random

from sim.cost.pipeline import PipelineCost
from sim.cost.speculation import SpeculativeCost
from sim.cost.step import StepCost
from sim.engine.batch import SchedulerLimits
from sim.engine.batching import VllmScheduler
from sim.engine.clock import Clock
from sim.engine.deployment import Deployment, deployments
from sim.engine.fleet_events import Entrance, FleetEvents, weights_s
from sim.engine.fluid import Fluid
from sim.engine.host_cache import HostCache
from sim.engine.kv_cache import BlockPool
from sim.engine.lanes import lanes
from sim.engine.lock_step import LockStepGroup, LockStepPricing, LockStepRank
from sim.engine.pipeline import PipelineReplica
from sim.engine.policies import Policy, find_policy
from sim.engine.policies.host_tier import HostTier, prefill_alone, with_host_tier
from sim.engine.policies.reserved import ReservingPool
from sim.engine.policies.swap import SwapScheduler, host_link, host_times
from sim.engine.pricing import StagePricing
from sim.engine.recorder import Recorder
from sim.engine.replica import Replica
from sim.engine.scaling import Scaling
from sim.engine.sequence import Sequence
from sim.engine.speculation import (
    Acceptance,
    HeldBlocks,
    SpeculativePricing,
    SpeculativeReplica,
    SpeculativeScheduler,
)
from sim.engine.streaming import StreamingReplica
from sim.engine.transfer import KvTransfer
from sim.engine.versions import limits_for, pool_for
from sim.engine.warm import warm_deployment
from sim.engine.wires import Amounts, Wires
from sim.errors import InputError
from sim.model.balance import MemoryLedger
from sim.scenario import Scenario
from sim.workload.workload import Workload

AnyReplica = Replica | PipelineReplica


class Fleet:
    """What serves a scenario.

    Replicas are numbered over all pools. `memories` has one ledger a pool.
    """

    def __init__(self, scenario: Scenario, workload: Workload, scaling: Scaling | None = None) -> None:
        """
        Args:
            scaling: more or less of the deployment's resources, for what-if questions.

        Raises:
            InputError: as `Deployment.of`.
        """
        self.scenario = scenario
        self.pools = [warm_deployment(scenario)] if scenario.deployment.pools is None else deployments(scenario)
        self.memories = [pool.memory(workload) for pool in self.pools]
        if scaling is not None:
            self.pools = [scaling.deployment(pool) for pool in self.pools]
            self.memories = [scaling.memory(memory) for memory in self.memories]
        self.members = [(pool, index) for pool in self.pools for index in range(pool.sharding.data)]
        self.max_model_len = self.pools[0].max_model_len(workload)
        self.disaggregated = {pool.role for pool in self.pools} == {"prefill", "decode"}
        self.replicas: list[AnyReplica] = []

    @property
    def entrance(self) -> list[AnyReplica]:
        """The replicas that take requests from the router."""
        return [r for r, (pool, _) in zip(self.replicas, self.members, strict=True) if pool.role != "decode"]

    @property
    def contended(self) -> set[int]:
        """Replicas whose iterations can take longer than alone, because others use their links."""
        return set(range(len(self.members))) if self.disaggregated else set(self.wires.sharing)

    @property
    def memory(self) -> MemoryLedger:
        """The ledger of the pool that holds the KV cache while a request decodes, with the GPUs of all pools."""
        kept = self.memories[-1] if self.disaggregated else self.memories[0]
        problem = next((memory for memory in self.memories if not memory.fits), None)
        if problem is not None:
            return problem
        return replace(kept, per_gpu=tuple(row for memory in self.memories for row in memory.per_gpu))

    def build(self, env: Clock, recorder_of: Callable[[tuple[int, ...]], Recorder]) -> Recorder:
        """Prices every replica; returns the recorder they will write to, made for the model's windows."""
        self.costs = [pool.cost(index) for pool, index in self.members]
        self.wires = Wires(self.members, transfers=self.disaggregated)
        self.env, self.fluid = env, Fluid(env)
        self.recorder = recorder_of(self.costs[0].windows)
        return self.recorder

    def start(self, done: Callable[[Sequence, float], None], moved: Callable[[Sequence, Replica], None]) -> None:
        """Builds the replicas; `done` is told of every request that is over, `moved` of one that goes to another replica."""
        self._done = done
        self._groups = groups = {id(pool): LockStepGroup(self.env) for pool in self.pools if pool.lock_step}
        lanes_each = max(pool.sharding.pipeline for pool in self.pools)  # replicas of fewer stages leave numbers out
        for index, cost in enumerate(self.costs):
            replica = self._replica(index, cost)
            replica.lane = index * lanes_each
            self.replicas.append(replica)
            if isinstance(replica, Replica):
                self.wires.listen(index, replica)
        overlap = self.scenario.deployment.two_batch_overlap
        for group in groups.values():
            group.pricing = LockStepPricing([rank.pricing for rank in group.ranks], overlap)
        if self.disaggregated:
            self._connect(moved)

    def _replica(self, index: int, cost: StepCost | PipelineCost) -> AnyReplica:
        if isinstance(cost, PipelineCost):
            return self._pipelined(index, cost)
        if isinstance(cost, SpeculativeCost):
            return self._speculative(index, cost)
        if self.scenario.engine.on_kv_full == "swap":
            return self._swapping(index, cost)
        pool, host = self.members[index][0], self._host_cache(index)
        policy = self._policy() if host is None else self._tiered(self._policy(), index, cost)
        scheduler = policy(self._limits(pool), self._blocks(pool, host), cost.windows)
        if pool.lock_step:
            return LockStepRank(
                self._groups[id(pool)], self.env, index, scheduler, StagePricing(cost), self.recorder, self._done,
                exit_s=pool.preset.exit_s,
            )  # fmt: skip
        replica = self._plain(index, scheduler, cost)
        if isinstance(scheduler, HostTier):
            scheduler.begin_s = replica.begin_s
        return replica

    def _policy(self) -> Policy:
        return find_policy(self.scenario.engine.scheduler, f"{self.scenario.where}: engine.scheduler")

    def _pipelined(self, index: int, cost: PipelineCost) -> PipelineReplica:
        """A replica whose layers are cut into stages, one batch in flight for each of them."""
        self._refuse_in_pipeline()
        pool = self.members[index][0]
        stages = [StagePricing(stage, self._loads(index, i, stage)) for i, stage in enumerate(cost.stages)]
        schedulers = lanes(self._limits(pool), self._blocks(pool), cost.windows, len(stages))
        sends = [stage.operators.stage_send_bytes_per_token / pool.sharding.tensor for stage in cost.stages[:-1]]
        hand_overs = [self.wires.hand_over_amounts(index, i, size) for i, size in enumerate(sends)]
        fluid = self.fluid if self._layered(index) else None
        return PipelineReplica(
            self.env, index, schedulers, cost, stages, self.recorder, self._done,
            hand_overs=hand_overs, exit_s=pool.preset.exit_s, fluid=fluid,
        )  # fmt: skip

    def _plain(self, index: int, scheduler: VllmScheduler, cost: StepCost) -> Replica:
        """A replica of one stage, by itself."""
        pricing, leaps = StagePricing(cost, self._loads(index, 0, cost)), self.scenario.granularity == "leap"
        layered, preset = self._layered(index), self.members[index][0].preset
        served = preset.server_token_s > 0 and not self.disaggregated
        build = partial(StreamingReplica, token_s=preset.server_token_s) if served else Replica
        return build(
            self.env, index, scheduler, pricing, self.recorder, self._done,
            leaps=leaps, layered=layered, exit_s=preset.exit_s, fluid=self.fluid,
        )  # fmt: skip

    def _layered(self, index: int) -> bool:
        """Whether a replica runs kernel group by kernel group all the time: as asked, or for others on its links."""
        return self.scenario.granularity == "layer" or index in self.wires.sharing

    def _swapping(self, index: int, cost: StepCost) -> Replica:
        """A replica that preempts by swap."""
        (pool, _), scenario = self.members[index], self.scenario
        link = host_link(self.env, pool.topology, self._block_bytes(index), scenario.engine.swap_space_bytes)
        scheduler = SwapScheduler(self._limits(pool), self._blocks(pool), cost.windows, link=link)
        replica = self._plain(index, scheduler, cost)
        link.on_return = replica.nudge
        return replica

    def _block_bytes(self, index: int) -> dict[str, float]:
        """Bytes of a KV block on each GPU of a replica."""
        pool, place = self.members[index]
        ranks = {gpu for stage in pool.placement[place] for gpu in stage}
        rows = [row for row in self.memories[self.pools.index(pool)].per_gpu if row.gpu in ranks]
        return {row.gpu: row.kv_bytes_per_token * self.scenario.engine.block_size for row in rows}

    def _host_cache(self, index: int) -> HostCache | None:
        """Host memory below the prefix cache of a replica; a decode replica gets all its KV from others."""
        (pool, _), size_bytes = self.members[index], self.scenario.engine.kv_offloading_bytes
        if not size_bytes or pool.role == "decode":
            return None
        block_bytes = self._block_bytes(index)
        blocks = int(size_bytes // sum(block_bytes.values()))
        return HostCache(self.env, *host_times(pool.topology, block_bytes), blocks)

    def _tiered(self, policy: Policy, index: int, cost: StepCost) -> Policy:
        """`policy` with the host cache of the replica's pool, whose fetches are recorded."""

        def fetched(seq: Sequence, sent_s: float, tokens: int) -> None:
            self.recorder.fetches.append((seq.id, self.replicas[index].lane, sent_s, self.env.now, tokens))
            replica = self.replicas[index]
            assert isinstance(replica, Replica)
            replica.nudge()

        prefill_s = prefill_alone(cost, self.scenario.engine.max_num_batched_tokens)
        return with_host_tier(policy, prefill_s, fetched, f"{self.scenario.where}: engine.kv_offloading_size")

    def _speculative(self, index: int, cost: SpeculativeCost) -> Replica:
        """A replica that verifies what a draft proposes."""
        scheduler, pricing = self._speculative_scheduler(index, cost), SpeculativePricing(cost)
        return SpeculativeReplica(
            self.env, index, scheduler, pricing, self.recorder, self._done,
            leaps=False, exit_s=self.members[index][0].preset.exit_s,
        )  # fmt: skip

    def _speculative_scheduler(self, index: int, cost: SpeculativeCost) -> SpeculativeScheduler:
        scenario, (pool, _) = self.scenario, self.members[index]
        assert scenario.engine.speculative is not None
        random = Random(f"speculation {scenario.workload.seed} {index}")
        acceptance = Acceptance(scenario.engine.speculative.lengths, random)
        counted = self._blocks(pool)
        blocks = counted if counted.caching else HeldBlocks(counted.usable_blocks, counted.block_size)
        return SpeculativeScheduler(self._limits(pool), blocks, cost.windows, acceptance, cost.drafts)

    def changes(self, entrance: Entrance) -> FleetEvents | None:
        """What happens to the replicas while they serve; None where nothing does."""
        asked, engine = self.scenario.deployment, self.scenario.engine
        if not asked.events and asked.autoscale is None:
            return None
        if engine.on_kv_full == "swap":
            where = f"{self.scenario.where}: engine.on_kv_full"
            raise InputError(where, "got swap with deployment.events or autoscale", "use preempt")
        if engine.kv_offloading_bytes:
            where = f"{self.scenario.where}: engine.kv_offloading_size"
            raise InputError(where, "got a size with deployment.events or autoscale", "leave it out")
        replicas = [replica for replica in self.replicas if isinstance(replica, Replica)]
        cold = asked.cold_start
        ledger_of = {id(pool): memory for pool, memory in zip(self.pools, self.memories, strict=True)}
        start_s = [
            cold.startup_s + weights_s(pool, ledger_of[id(pool)], index, cold.weights_from)
            for pool, index in self.members
        ]
        found = FleetEvents(self.env, entrance, replicas, start_s, self._fresh_scheduler)
        if asked.autoscale is not None:
            found.follow(asked.autoscale)
        else:
            found.play(asked.events)
        return found

    def _fresh_scheduler(self, index: int) -> VllmScheduler:
        """An empty scheduler for a replica that starts anew."""
        (pool, _), cost = self.members[index], self.costs[index]
        if isinstance(cost, SpeculativeCost):
            return self._speculative_scheduler(index, cost)
        return self._policy()(self._limits(pool), self._blocks(pool), cost.windows)

    def _loads(self, index: int, stage: int, cost: StepCost) -> Amounts | None:
        return self.wires.amounts(index, stage, cost.operators.all_reduce_bytes_per_token)

    def _connect(self, moved: Callable[[Sequence, Replica], None]) -> None:
        """Joins prefill to decode replicas."""
        names = [[gpu for stage in pool.placement[index] for gpu in stage] for pool, index in self.members]
        receivers, senders = [], {}
        for replica, (pool, _), ranks in zip(self.replicas, self.members, names, strict=True):
            assert isinstance(replica, Replica)
            if isinstance(replica.scheduler.pool, ReservingPool):
                where, asked = f"{self.scenario.where}: engine.scheduler", self.scenario.engine.scheduler
                problem = f"got {asked} with prefill and decode apart: KV memory reserved whole cannot be handed over"
                raise InputError(where, problem, "use vllm, or replicas that do both")
            if pool.role == "decode":
                receivers.append((replica, ranks))
            else:
                senders[replica.index] = ranks
        transfer = KvTransfer(
            self.env,
            self.fluid,
            self.pools[0],
            self.wires,
            senders,
            receivers,
            bytes_per_token=self.memories[0].kv_bytes_per_token,
            max_model_len=self.max_model_len,
            layerwise=self.scenario.deployment.kv_transfer == "layerwise",
            moved=moved,
        )
        for index in senders:
            sender = self.replicas[index]
            assert isinstance(sender, Replica)
            sender.hand_over = transfer.hand_over

    def _limits(self, pool: Deployment) -> SchedulerLimits:
        engine = self.scenario.engine
        naive = engine.on_kv_full == "oom"
        return limits_for(
            version=engine.rules_version,
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            num_gpu_blocks=self._usable_blocks(pool) + 1,
            enable_chunked_prefill=engine.enable_chunked_prefill,
            long_prefill_token_threshold=engine.long_prefill_token_threshold,
            scheduler_reserve_full_isl=engine.scheduler_reserve_full_isl and not naive,
            watermark=engine.watermark,
            async_scheduling=pool.async_scheduling,
            preempts=not naive,
        )

    def _blocks(self, pool: Deployment, host: HostCache | None = None) -> BlockPool:
        engine = self.scenario.engine
        return pool_for(
            version=engine.rules_version,
            num_gpu_blocks=self._usable_blocks(pool) + 1,
            block_size=engine.block_size,
            enable_prefix_caching=engine.enable_prefix_caching,
            host=host,
        )

    def _usable_blocks(self, pool: Deployment) -> int:
        return self.memories[self.pools.index(pool)].usable_blocks

    def _refuse_in_pipeline(self) -> None:
        """Batches in flight side by side are scheduled by vLLM's rules only, and keep their KV cache."""
        scheduler = self.scenario.engine.scheduler
        if scheduler not in ("vllm", "chunked"):
            where = f"{self.scenario.where}: engine.scheduler"
            raise InputError(where, f"got {scheduler} with pipeline stages", "use vllm, or one stage")
        if self.disaggregated:
            where = f"{self.scenario.where}: deployment.pools"
            raise InputError(where, "got pipeline stages in a prefill or decode pool", "use tensor_parallel_size there")
