"""A scenario made concrete: model, precision, GPUs, placement, and what an iteration costs on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sim.cost.collective_constants import CONSTANTS, LinkConstants
from sim.cost.collectives import Communicator
from sim.cost.experts import ExpertCost, LockStepCost, SkewedExperts
from sim.cost.factored import FactoredKernels
from sim.cost.formats import quantised
from sim.cost.kernels import KernelBackend
from sim.cost.measured import MeasuredKernels
from sim.cost.measured_tables import find_tables
from sim.cost.pipeline import HandOver, PipelineCost
from sim.cost.preset import EnginePreset
from sim.cost.roofline import Roofline
from sim.cost.speculation import SpeculativeCost
from sim.cost.step import StepCost, reaches
from sim.cost.vector_attention import VectorKernels
from sim.engine.calibrated import calibration_of, preset_of, topology_of
from sim.errors import InputError
from sim.hardware.gpu import Gpu, load_gpu
from sim.hardware.placement import Placement, place
from sim.hardware.topology import Topology
from sim.model.balance import CONTEXT_OUTSIDE_BUDGET, NO_OVERHEAD, Accounting, MemoryLedger, MemoryOptions
from sim.model.memory import ledger
from sim.model.operators import Fusion, StageOperators, operators
from sim.model.precision import Precision, resolve_precision
from sim.model.sharding import Sharding
from sim.model.transformer import Transformer, load_model
from sim.scenario import Scenario
from sim.scenario.calibration import Calibration
from sim.scenario.speculative import Speculative

if TYPE_CHECKING:
    from sim.workload.workload import Workload


def slowed(gpu: Gpu, speed: float) -> Gpu:
    """`gpu` at `speed` times its rates (a straggler has less than 1)."""
    if speed == 1.0:
        return gpu
    flops_per_s = {kind: rate * speed for kind, rate in gpu.flops_per_s.items()}
    return replace(gpu, hbm_bytes_per_s=gpu.hbm_bytes_per_s * speed, flops_per_s=flops_per_s)


def _refuse_incompatible(scenario: Scenario, sharding: Sharding, role: str) -> None:
    """Raises InputError for engine options that this cut of the model does not allow."""
    asked, where = scenario.deployment, scenario.where
    lock_step = sharding.expert_parallel and sharding.data > 1
    apart = sharding.pipeline > 1 or lock_step or role != "both"
    if scenario.engine.on_kv_full == "swap" and apart:
        raise InputError(
            f"{where}: engine.on_kv_full",
            "got swap with pipeline stages, replicas in lock-step, or prefill and decode apart",
            "use preempt, or plain replicas",
        )
    if scenario.engine.kv_offloading_bytes and (sharding.pipeline > 1 or lock_step):
        raise InputError(
            f"{where}: engine.kv_offloading_size",
            "got a size with pipeline stages or replicas in lock-step",
            "leave it out, or use plain replicas",
        )
    if scenario.engine.speculative is not None and apart:
        raise InputError(
            f"{where}: engine.speculative",
            "got speculation with pipeline stages, replicas in lock-step, or prefill and decode apart",
            "use tensor_parallel_size and plain replicas",
        )
    if asked.two_batch_overlap and sharding.data == 1:
        raise InputError(
            f"{where}: deployment.two_batch_overlap",
            "got true for one replica, which exchanges nothing",
            "raise data_parallel_size, or leave it out",
        )
    if lock_step and sharding.pipeline > 1:
        raise InputError(
            f"{where}: deployment.pipeline_parallel_size",
            f"got {sharding.pipeline} with experts shared by {sharding.data} replicas",
            "use one stage, or enable_expert_parallel: false",
        )


@dataclass
class Deployment:
    """What a scenario deploys."""

    scenario: Scenario
    model: Transformer
    precision: Precision
    sharding: Sharding
    topology: Topology
    placement: Placement
    """GPU names as [replica][pipeline stage][tensor-parallel rank]."""
    preset: EnginePreset
    role: str = "both"
    """What its replicas do: both, prefill or decode."""
    gpu: str | None = None
    """Kind of its GPUs, where it is not the topology's."""
    _backends: list[MeasuredKernels] = field(default_factory=list)  # every one made, for provenance
    link_constants: Mapping[str, LinkConstants] = field(default_factory=lambda: CONSTANTS)
    """What the collective libraries add to the wires."""
    kernel_times: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    """Factors on durations by (GPU, kernel kind, dtype): of a calibration, and to draw from the error of constants."""
    calibration: Calibration | None = None
    """The file that the scenario names."""
    _costs: dict[tuple[object, ...], StepCost | PipelineCost] = field(default_factory=dict)  # by `_signature`

    @classmethod
    def of(
        cls, scenario: Scenario, topology: Topology | None = None, role: str = "both", gpu: str | None = None
    ) -> Deployment:
        """Resolves every name in `scenario`.

        Args:
            topology: where to place it; None: the scenario's own cluster.
            role, gpu: of a pool.

        Raises:
            InputError: an unknown model, topology or GPU, a cut that does not divide, too few GPUs.
        """
        where = scenario.where
        asked = scenario.deployment
        model = load_model(scenario.model, f"{where}: model")
        types, path = scenario.precision, f"{where}: precision"
        precision = resolve_precision(model.quantization, types.weights, types.kv_cache, path, types.activation_scales)
        sharding = Sharding(
            asked.tensor_parallel_size,
            asked.pipeline_parallel_size,
            asked.data_parallel_size,
            asked.enable_expert_parallel,
        )
        sharding.check(model, f"{where}: deployment")
        _refuse_incompatible(scenario, sharding, role)
        calibration = calibration_of(scenario)
        if topology is None:
            topology = topology_of(scenario)
        placement = place(topology, sharding.tensor, sharding.pipeline, sharding.data, asked.placement)
        preset = preset_of(scenario, calibration)
        if not preset.sliding_windows:
            model = model.without_windows()
        times = calibration.kernel_times if calibration else {}
        return cls(
            scenario, model, precision, sharding, topology, placement, preset, role, gpu, calibration=calibration,
            kernel_times=times,
        )  # fmt: skip

    def changed(self, **changes: Any) -> Deployment:
        """A copy with these fields changed, which prices everything anew."""
        return replace(self, **changes, _costs={}, _backends=[])

    @property
    def gpu_names(self) -> list[str]:
        """Every GPU in use, in the order replica, stage, rank."""
        return [gpu for replica in self.placement for stage in replica for gpu in stage]

    @cached_property
    def gpus(self) -> dict[str, Gpu]:
        """The kind of every GPU in use, by its name."""
        return {name: load_gpu(self.gpu or self.topology.gpu_kind[name]) for name in self.gpu_names}

    @property
    def async_scheduling(self) -> bool:
        """Whether its replicas schedule an iteration while the one before runs.

        With stages, the batches in flight overlap host and GPU already, and vLLM schedules synchronously.
        """
        if self.scenario.engine.speculative is not None or self.sharding.pipeline > 1:
            return False
        asked = self.scenario.engine.async_scheduling
        return self.preset.async_scheduling if asked is None else asked

    @property
    def lock_step(self) -> bool:
        """Whether its replicas share their experts, and so iterate together."""
        return self.sharding.expert_parallel and self.sharding.data > 1

    def max_model_len(self, workload: Workload) -> int:
        """Longest prompt + output the engine admits."""
        asked = self.scenario.engine.max_model_len
        if asked == "config":
            return self.model.max_position
        return workload.longest_tokens if asked is None else int(asked)

    def memory(self, workload: Workload, accounting: Accounting = "engine") -> MemoryLedger:
        """The memory ledger under the scenario's engine options."""
        engine = self.scenario.engine
        longest = self.max_model_len(workload)
        mean = float((workload.input_tokens + workload.output_tokens).mean())
        options = MemoryOptions(
            gpu_memory_utilization=engine.gpu_memory_utilization,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            max_num_seqs=engine.max_num_seqs,
            block_size=engine.block_size,
            num_gpu_blocks_override=engine.num_gpu_blocks_override,
            accounting=accounting,
            overhead=NO_OVERHEAD if self.preset.ideal else CONTEXT_OUTSIDE_BUDGET,
            longest_sequence_tokens=longest,
            mean_sequence_tokens=min(mean, longest),
            concurrency=workload.concurrency,
        )
        gpus = [self.gpus[name] for name in self.gpu_names]
        if engine.speculative is not None and engine.speculative.draft_model is not None:
            options = self._room_for_draft(engine.speculative.draft_model, gpus, options)
        return ledger(self.model, self.precision, self.sharding, gpus, self.gpu_names, options)

    @property
    def kernel_tables(self) -> list[MeasuredKernels]:
        """The backends over measured tables in use; none where kernels are those of the roofline."""
        return self._backends

    def _room_for_draft(self, name: str, gpus: list[Gpu], options: MemoryOptions) -> MemoryOptions:
        """`options` with what a draft model leaves: its weights beside the model's, its KV beside that of every token."""
        where = f"{self.scenario.where}: engine.speculative.draft_model"
        draft = load_model(name, where)
        precision = resolve_precision(draft.quantization, None, self.scenario.precision.kv_cache, where)
        cut = replace(self.sharding, expert_parallel=False)
        beside = ledger(draft, precision, cut, gpus, self.gpu_names, replace(options, num_gpu_blocks_override=None))
        shares = [row.weights_bytes / gpu.visible_memory_bytes for row, gpu in zip(beside.per_gpu, gpus, strict=True)]
        left = replace(options, gpu_memory_utilization=options.gpu_memory_utilization - max(shares))
        if options.num_gpu_blocks_override is not None:
            return left
        alone = ledger(self.model, self.precision, self.sharding, gpus, self.gpu_names, left)
        share = alone.kv_bytes_per_token / (alone.kv_bytes_per_token + beside.kv_bytes_per_token)
        return replace(left, num_gpu_blocks_override=max(int(alone.num_blocks * share), 1)) if alone.fits else left

    def backend(self, gpu: Gpu) -> KernelBackend:
        """Kernel durations on one kind of GPU, from the backend that the scenario names."""
        found = self._backend(gpu)
        factors = {
            (kind, dtype): factor for (name, kind, dtype), factor in self.kernel_times.items() if name == gpu.name
        }
        if self.preset.vector_attention is not None:
            found = VectorKernels(found, gpu, self.preset.vector_attention)
        return FactoredKernels(found, gpu, factors) if factors else found

    def _backend(self, gpu: Gpu) -> KernelBackend:
        quantisation = quantised(self.preset.quantisation, self.precision.static_scales)
        preset, fp8_attention, tiles = self.preset, self.preset.fp8_attention, self.preset.expert_tiles
        if self.scenario.costs == "roofline":
            splits = preset.latent_splits
            return Roofline(gpu, preset.ideal, quantisation, fp8_attention, preset.tuned_reads, splits, tiles)
        where = f"{self.scenario.where}: costs"
        if preset.ideal:
            raise InputError(where, "got measured with the preset ideal, which is printed peaks", "use roofline")
        # of one engine's presets, trtllm and trtllm-cpp, the tables know the engine only
        framework = preset.name.partition("-")[0]
        tables = find_tables(gpu, framework, where)
        found = MeasuredKernels(gpu, tables, quantisation != "dynamic", fp8_attention, tiles)
        self._backends.append(found)
        return found

    def cost(self, replica: int) -> StepCost | PipelineCost:
        """Cost of the iterations of a replica: of its one stage, or of all stages of its pipeline.

        Replicas on equal GPUs with equal wires between them share one object.
        """
        signature = self._signature(self.placement[replica])
        found = self._costs.get(signature)
        if found is None:
            found = self._costs[signature] = self._cost(replica)
        return found

    def _signature(self, stages: list[list[str]]) -> tuple[object, ...]:
        """What the cost of a replica on these GPUs depends on, whichever nodes they are in."""
        topology, ranks = self.topology, [gpu for stage in stages for gpu in stage]
        if topology.overridden:
            return tuple(ranks)
        nodes = {node: place for place, node in enumerate(dict.fromkeys(topology.node_of[gpu] for gpu in ranks))}
        places = tuple((nodes[topology.node_of[gpu]], topology.gpu_kind[gpu]) for gpu in ranks)
        routes = [topology.route(a, b) for a, b in [*pairwise(ranks), *((ranks[0], gpu) for gpu in ranks[2:])]]
        return (*places, *((route.bandwidth_bytes_per_s, route.latency_s) for route in routes))

    def _cost(self, replica: int) -> StepCost | PipelineCost:
        fusion = Fusion(self.scenario.fusion.attention, self.scenario.fusion.elementwise)
        count = self.sharding.pipeline
        stages = [operators(self.model, self.precision, self.sharding, stage, fusion) for stage in range(count)]
        costs = [self._stage_cost(self.placement[replica][i], stages[i], reaches(stages)) for i in range(count)]
        if count == 1:
            return costs[0]
        return PipelineCost(costs, [self._hand_over(replica, stage, stages[stage]) for stage in range(count - 1)])

    def communicator(self, gpus: list[str]) -> Communicator:
        """Collectives of a group of GPUs, by the engine's software."""
        return Communicator(self.topology, gpus, self.preset.software, self.link_constants)

    def _stage_cost(self, ranks: list[str], stage: StageOperators, windows: tuple[int, ...]) -> StepCost:
        """Cost of one stage on these GPUs: the slowest sets the pace."""
        engine = self.scenario.engine
        options: dict[str, Any] = {
            "max_tokens": engine.max_num_batched_tokens,
            "max_seqs": engine.max_num_seqs,
            "async_scheduling": self.async_scheduling,
            "windows": windows,
        }
        backend, group = self._slowest(ranks), self.communicator(ranks) if len(ranks) > 1 else None
        if self.lock_step:
            return LockStepCost(stage, backend, group, self.preset, experts=self._expert_cost(stage), **options)
        skew = self.scenario.deployment.expert_load.skew
        plain = StepCost(stage, SkewedExperts(backend, skew) if skew else backend, group, self.preset, **options)
        return plain if engine.speculative is None else self._speculative_cost(plain, engine.speculative, options)

    def _speculative_cost(self, plain: StepCost, asked: Speculative, options: dict[str, Any]) -> SpeculativeCost:
        """`plain` with a draft beside it."""
        draft, share = plain, asked.draft_cost or 0.0
        if asked.draft_model is not None:
            draft, share = StepCost(self._draft_operators(asked.draft_model), *plain.parts, **options), 1.0
        drafts = asked.num_speculative_tokens
        return SpeculativeCost(plain.operators, *plain.parts, draft=draft, share=share, drafts=drafts, **options)

    def _draft_operators(self, name: str) -> StageOperators:
        """What one rank computes of the draft model, cut as the model is."""
        where = f"{self.scenario.where}: engine.speculative.draft_model"
        model = load_model(name, where)
        precision = resolve_precision(model.quantization, None, self.scenario.precision.kv_cache, where)
        sharding = Sharding(self.sharding.tensor)
        sharding.check(model, where)
        found = operators(model, precision, sharding)
        if not set(reaches([found])) <= set(reaches([operators(self.model, self.precision, self.sharding)])):
            raise InputError(where, f"got {model.name}, which has sliding windows of its own", "use a draft without")
        return found

    def _slowest(self, ranks: list[str]) -> KernelBackend:
        """Kernels on the slowest of these GPUs."""
        speeds = self.topology.gpu_speed
        gpus = [slowed(self.gpus[name], speeds.get(name, 1.0)) for name in ranks]
        return self.backend(min(gpus, key=lambda gpu: (gpu.hbm_bytes_per_s, gpu.name)))

    def _expert_cost(self, stage: StageOperators) -> ExpertCost:
        """Experts that all replicas share, and the exchange of tokens between them."""
        asked = self.scenario.deployment
        return ExpertCost(
            stage,
            self._slowest(self.gpu_names),
            self.communicator(self.gpu_names),
            tensor=self.sharding.tensor,
            data=self.sharding.data,
            nodes=len({self.topology.island(gpu) for gpu in self.gpu_names}),
            deepep=asked.all2all_backend == "deepep",
            exponent=asked.expert_load.skew,
            clock=self.preset.clock_on(self.gpus[self.gpu_names[0]]),
        )

    def _hand_over(self, replica: int, stage: int, sender: StageOperators) -> HandOver:
        ranks, receivers = self.placement[replica][stage], self.placement[replica][stage + 1]
        gather = self.communicator(receivers) if len(receivers) > 1 else None
        pairs = self.communicator([*ranks, *receivers])
        return HandOver(pairs, gather, len(ranks), sender.stage_send_bytes_per_token)

    def origins(self) -> list[str]:
        """Where the numbers of a result come from: which kernels were measured, fitted, or borrowed from a relative."""
        notes = []
        for gpu in sorted({gpu.name: gpu for gpu in self.gpus.values()}.values(), key=lambda gpu: gpu.name):
            if self.preset.ideal:
                notes.append(f"{gpu.name}: printed peaks (datasheet), no fixed cost")
            elif self.scenario.costs == "measured":
                continue
            else:
                notes.append(f"{gpu.name}: {gpu.origin}")
        if self.calibration is not None:
            notes.append(self.calibration.origin)
        for backend in self._backends:
            notes.extend(backend.provenance())
        return notes


def deployments(scenario: Scenario) -> list[Deployment]:
    """What a scenario deploys: one deployment, or one for each of its pools, on GPUs of their own.

    Raises:
        InputError: as `Deployment.of`.
    """
    pools = scenario.deployment.pools
    if pools is None:
        return [Deployment.of(scenario)]
    found: list[Deployment] = []
    topology = topology_of(scenario)
    free = list(topology.gpus)
    for pool in pools:
        shared = scenario.deployment.model_dump(
            mode="json", include={"enable_expert_parallel", "expert_load", "all2all_backend", "two_batch_overlap"}
        )
        sizes = shared | {
            "tensor_parallel_size": pool.tensor_parallel_size,
            "pipeline_parallel_size": pool.pipeline_parallel_size,
            "data_parallel_size": pool.replicas,
            "placement": scenario.deployment.placement,
        }
        alone = scenario.with_overrides({"deployment": sizes})
        deployment = Deployment.of(alone, replace(topology, gpus=list(free)), pool.role, pool.gpu)
        taken = set(deployment.gpu_names)
        free = [gpu for gpu in free if gpu not in taken]
        deployment.topology = topology
        found.append(deployment)
    return found
