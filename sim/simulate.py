"""One scenario in, one `Result` out: the only door into the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from sim.cost.preset import PRESETS
from sim.engine.clock import Clock
from sim.engine.cluster import Cluster, Outcome
from sim.engine.deployment import Deployment
from sim.engine.fleet import Fleet
from sim.engine.recorder import REJECTED, Recorder
from sim.engine.router import make_router
from sim.engine.scaling import Scaling
from sim.engine.time_order import order_in_time
from sim.engine.versions import version_notes
from sim.errors import DoesNotFit, InputError, located
from sim.model.transformer import load_model
from sim.results.checks import over_length, run_checks
from sim.results.latency import Latency
from sim.results.provenance import Origin, Regime, extrapolations, provenance
from sim.results.result import Columns, Result
from sim.results.speculation import speculation_notes
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
    with located(scenario.where):
        return Deployment.of(scenario).memory(scenario.build_workload(), accounting)


def simulate(scenario: Scenario, progress: Progress | None = None, scaling: Scaling | None = None) -> Result:
    """Plays a scenario and returns what it told.

    Args:
        scenario: a validated scenario.
        progress: told of simulated time and finished requests while it runs.
        scaling: more or less of the deployment's resources than the scenario says.

    Raises:
        InputError: something in the scenario is wrong.
        DoesNotFit: the deployment cannot hold its weights or its longest request; the ledger is in the message.
    """
    run = prepare(scenario, progress, scaling)
    return run.result(run.cluster.run(scenario.workload.time_limit_s))


def prepare(scenario: Scenario, progress: Progress | None = None, scaling: Scaling | None = None) -> Run:
    """The run of a scenario before its clock starts; arguments and errors as `simulate`."""
    started_s = time.perf_counter()
    with located(scenario.where):
        workload = scenario.build_workload()
        fleet = Fleet(scenario, workload, scaling)
        _check_budget(scenario, fleet.max_model_len)
        if not fleet.memory.fits:
            raise DoesNotFit("\n  ".join([f"{scenario.where}: {fleet.memory.reason}", *fleet.memory.suggestions]))
        run = Run(fleet, workload, progress)
    run.started_s = started_s
    return run


def _check_budget(scenario: Scenario, max_model_len: int) -> None:
    """Refuses, as vLLM does at start-up, a token budget that whole prompts (recomputed ones too) may not fit into."""
    engine = scenario.engine
    if engine.enable_chunked_prefill or engine.max_num_batched_tokens >= max_model_len:
        return
    problem = (
        f"got {engine.max_num_batched_tokens} without chunked prefill, less than max_model_len ({max_model_len:,})"
    )
    raise InputError("engine.max_num_batched_tokens", problem, "raise it, or set enable_chunked_prefill: true")


class Run:
    """A fleet and its workload on one clock, and their records turned into a result."""

    def __init__(self, fleet: Fleet, workload: Workload, progress: Progress | None) -> None:
        preset = fleet.pools[0].preset
        self.fleet, self.workload, self.memory = fleet, workload, fleet.memory
        self.started_s = time.perf_counter()
        """Reading of the host's clock from which the result's wall time counts."""
        scenario, env = fleet.scenario, Clock()
        random, where = Random(f"router {scenario.workload.seed}"), f"{scenario.where}: deployment.router"
        last_turns = workload.last_turns(fleet.max_model_len)
        self.recorder = fleet.build(env, Recorder)
        self.cluster = Cluster(
            env,
            workload,
            self.recorder,
            make_router(scenario.deployment.router, random, scenario.engine.block_size, where, last_turns),
            max_model_len=fleet.max_model_len,
            entry_s=preset.entry_s,
            exit_s=preset.exit_s,
            content=self._content(),
            progress=progress,
        )
        fleet.start(self.cluster.over, self.cluster.moved)
        self.cluster.replicas.extend(fleet.entrance)
        self.changes = fleet.changes(self.cluster)

    def _content(self) -> Callable[[int], Content | None] | None:
        """What a prefix cache can see of each request; None where nothing is shared or nobody looks."""
        engine, prompts = self.fleet.scenario.engine, self.workload.prompts
        if prompts is None or not engine.enable_prefix_caching:
            return None
        return lambda request: prompts.content(request, engine.block_size)

    def result(self, outcome: Outcome) -> Result:
        """Columns, walls and self-checks of the finished run."""
        fleet, recorder, preset, scenario = self.fleet, self.recorder, self.fleet.pools[0].preset, self.fleet.scenario
        order_in_time(recorder)
        requests, steps = recorder.request_columns(), recorder.step_columns()
        gaps, chunks = recorder.gaps.to_columns(), recorder.chunks.to_columns()
        walls = Walls(fleet.costs, steps, chunks, preset, fleet.contended)
        fetches = recorder.fetches.to_columns()
        latency = Latency(walls, requests, steps, chunks, gaps, preset, transfers=fleet.disaggregated, fetches=fetches)
        regime, from_trace = Regime.of(requests, steps), scenario.workload.arrivals.kind == "trace"
        origins = provenance(fleet.pools, fleet.costs, regime, from_trace)
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
            num_gpus=sum(len(pool.gpu_names) for pool in fleet.pools),
            lanes=walls.lanes,
            exit_s=preset.exit_s,
            oom=self._oom(outcome),
            notes=self._notes(origins, requests, steps, outcome),
            provenance=origins,
        )
        result.self_checks = run_checks(
            requests,
            steps,
            result.irregular_gaps_s,
            result.end_s,
            min(shortest_iteration_s(pool) for pool in fleet.pools),
            self.workload.concurrency,
            fleet.max_model_len,
        )
        result.self_checks.append(latency.check())
        result.wall_seconds = time.perf_counter() - self.started_s
        return result

    def _notes(self, origins: list[Origin], requests: Columns, steps: dict[str, Any], outcome: Outcome) -> list[str]:
        """What the reader of an answer should know beside its numbers."""
        fleet = self.fleet
        notes = [note for pool in fleet.pools for note in pool.origins()] + extrapolations(origins)
        notes += speculation_notes(fleet.costs, steps) + _asked_notes(fleet.scenario, self.workload)
        if self.changes is not None:
            notes.append(self.changes.note(outcome.end_s))
        cut = _too_long(requests, fleet.max_model_len) + _cut_short(requests, fleet.max_model_len)
        return [*dict.fromkeys(notes), *cut, *([outcome.stuck] if outcome.stuck else [])]

    def _oom(self, outcome: Outcome) -> dict[str, Any] | None:
        """Where, when, by whom and by how much memory ran out."""
        failure = outcome.out_of_memory
        if failure is None:
            return None
        pool_of_gpus, index = self.fleet.members[failure.replica]
        names = [gpu for stage in pool_of_gpus.placement[index] for gpu in stage]
        row = max((r for r in self.memory.per_gpu if r.gpu in names), key=lambda r: r.kv_bytes_per_token)
        pool = self.fleet.replicas[failure.replica].scheduler.pool
        block_bytes = row.kv_bytes_per_token * pool.block_size
        return {
            "time_s": failure.time_s,
            "gpu": row.gpu,
            "request": failure.seq.id,
            "kv_tokens": (pool.usable_blocks - pool.free) * pool.block_size,
            "needed_bytes": (failure.blocks_short + pool.free) * block_bytes,
            "free_bytes": pool.free * block_bytes,
        }


def _asked_notes(scenario: Scenario, workload: Workload) -> list[str]:
    """Where what is played is not quite what was asked for."""
    engine, spec, count = scenario.engine, scenario.workload, len(workload)
    preset = PRESETS[engine.preset]
    notes = version_notes(engine.rules_version, engine.watermark)
    if spec.num_requests is not None and count < spec.num_requests:
        source = "trace holds" if spec.arrivals.kind == "trace" else "stages of the arrivals give"
        notes.append(f"the {source} {count:,} requests, fewer than the {spec.num_requests:,} of num_requests")
    if engine.on_kv_full != "swap" and engine.swap_space_bytes != type(engine).model_fields["swap_space_bytes"].default:
        notes.append("engine.swap_space has no effect: it is used under on_kv_full: swap only")
    if not engine.cuda_graphs and preset.eager == preset:
        notes.append(f"engine.cuda_graphs has no effect: the preset {engine.preset} captures none")
    if not preset.sliding_windows and load_model(scenario.model).has_windows:
        notes.append(f"the model's sliding windows are ignored, as the runtime of {engine.preset} does")
    if workload.dropped:
        notes.append(f"{workload.dropped:,} rows of the trace ask for nothing (failed requests) and are left out")
    return notes


def _too_long(requests: Columns, max_model_len: int) -> list[str]:
    """A note if prompts left no room for a single token."""
    refused, count = int((requests["status"] == REJECTED).sum()), len(requests["status"])
    if not refused:
        return []
    room = f"their prompts leave no room for a token within max_model_len ({max_model_len:,})"
    return [f"{refused:,} of {count:,} requests were turned away: {room}"]


def _cut_short(requests: Columns, max_model_len: int) -> list[str]:
    """A note if the engine ended requests at `max_model_len`, before they had all their tokens."""
    short = int((over_length(requests, max_model_len) > 0).sum())
    return (
        [f"{short:,} requests reached max_model_len ({max_model_len:,}) before they had all their tokens"]
        if short
        else []
    )


def _status(outcome: Outcome) -> str:
    if outcome.out_of_memory is not None:
        return "oom"
    if outcome.stuck:
        return "stuck"
    return "timed_out" if outcome.timed_out else "done"
