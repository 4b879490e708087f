"""One big run over many cores: a fleet whose router looks at nothing is cut into shards, each with some of the replicas.

Every shard plays all arrivals through the same router and keeps what goes to its own replicas, so its clock and its random
numbers are those of the whole run to the last digit, and the records of all shards together are its records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.engine.cluster import Cluster, Outcome
from sim.engine.recorder import Columns, Recorder, Table
from sim.engine.time_order import OrderedTable
from sim.errors import InputError
from sim.scenario import Scenario
from sim.simulate import Run, prepare
from sim.studies.executor import Workers

if TYPE_CHECKING:
    from sim.engine.fleet import Fleet
    from sim.engine.router import Router
    from sim.engine.sequence import Sequence as Request
    from sim.engine.serving import ServingReplica
    from sim.results.result import Result

BLIND_ROUTERS = ("round_robin", "random", "session_hash")
"""Routers whose choice depends on nothing but the order of arrivals, or the number of a conversation."""


@dataclass(frozen=True, slots=True)
class ShardRecords:
    """What one shard brings back."""

    tables: dict[str, Columns]
    end_s: float
    events: int
    preemptions: int
    stuck: str


class _Elsewhere:
    """A replica of another shard: what is sent there, and all that follows from it, is over for this one."""

    outstanding = 0

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def submit(self, seq: Request) -> None:
        self._cluster.elsewhere(seq)

    def stop(self) -> None:
        return


class _ShardRouter:
    """The router of the whole fleet, whose choices outside the shard lead elsewhere."""

    def __init__(self, router: Router, own: frozenset[int], cluster: Cluster) -> None:
        self._router, self._own = router, own
        self._elsewhere: Any = _Elsewhere(cluster)

    def choose(self, replicas: list[ServingReplica], seq: Request) -> ServingReplica:
        chosen = self._router.choose(replicas, seq)
        return chosen if chosen.index in self._own else self._elsewhere

    def over(self, replica: ServingReplica) -> None:
        return

    def changed(self, replica: ServingReplica) -> None:
        self._router.changed(replica)


def simulate_in_shards(scenario: Scenario, workers: Workers, shards: int | None = None) -> Result:
    """The result of `sim.simulate.simulate(scenario)`, to the last digit, from `shards` processes.

    Args:
        scenario: of several replicas behind a router of `BLIND_ROUTERS`, in an open loop.
        workers: where the shards run.
        shards: None: one for each worker, at most one a replica.

    Raises:
        InputError: the replicas depend on each other, so there is nothing to cut.
        DoesNotFit: as `simulate`.
    """
    run = prepare(scenario)
    _refuse_dependent(scenario, run.fleet)
    replicas = len(run.fleet.members)
    count = max(1, min(shards or workers.size, replicas))
    owners = [frozenset(range(first, replicas, count)) for first in range(count)]
    futures = [workers.submit(run_shard, scenario.to_dict(), scenario.where, sorted(own)) for own in owners]
    # a shard without replicas: its events are the arrivals, which all shards have counted too
    idle = _play(run, frozenset())
    merged = prepare(scenario)
    merged.started_s = run.started_s
    records = [future.result() for future in futures]
    _fill(merged.recorder, idle, records)
    merged.recorder.preemptions = sum(record.preemptions for record in records)
    events = idle.events + sum(record.events - idle.events for record in records)
    stuck = next((record.stuck for record in records if record.stuck), "")
    outcome = Outcome(max(record.end_s for record in records), events, stuck=stuck)
    return merged.result(outcome)


def run_shard(scenario: dict[str, Any], where: str, own: Sequence[int]) -> ShardRecords:
    """Plays the whole workload and keeps the replicas `own`."""
    return _play(prepare(Scenario.from_dict(scenario, where)), frozenset(own))


def _play(run: Run, own: frozenset[int]) -> ShardRecords:
    cluster = run.cluster
    cluster.router = _ShardRouter(cluster.router, own, cluster)
    outcome = cluster.run()
    tables = {name: dict(table.to_columns()) for name, table in _tables(run.recorder).items()}
    return ShardRecords(tables, outcome.end_s, outcome.events, run.recorder.preemptions, outcome.stuck)


def _only(columns: Columns, rows: Any) -> Columns:
    return {name: column[rows] for name, column in columns.items()}


def _tables(recorder: Recorder) -> dict[str, Table]:
    return {name: table for name, table in vars(recorder).items() if isinstance(table, Table)}


def _fill(recorder: Recorder, idle: ShardRecords, records: Sequence[ShardRecords]) -> None:
    """Writes the records of all shards into `recorder`, one after another; a step is known by its number in them all."""
    parts: dict[str, list[Columns]] = {name: [] for name in _tables(recorder)}
    parts["requests"].append(idle.tables["requests"])
    steps = 0
    for record in records:
        # a request too long for every replica is recorded by each shard that heard of it, and once in `idle`
        requests = record.tables["requests"]
        own = _only(requests, ~np.isin(requests["id"], idle.tables["requests"]["id"]))
        for name, columns in (record.tables | {"requests": own}).items():
            moved = columns | {"step": columns["step"] + steps} if "step" in columns else columns
            parts[name].append(moved)
        steps += len(record.tables["steps"]["start_s"])
    for name, found in parts.items():
        if found:
            joined = {column: np.concatenate([part[column] for part in found]) for column in found[0]}
            setattr(recorder, name, OrderedTable(joined))


def _refuse_dependent(scenario: Scenario, fleet: Fleet) -> None:
    """Raises InputError where what one replica does changes what another does."""
    deployment, workload = scenario.deployment, scenario.workload
    where, hint = f"{scenario.where}: --shards", "run it without --shards"
    if len(fleet.members) < 2:
        raise InputError(where, "got a single replica, which cannot be cut", hint)
    if deployment.router not in BLIND_ROUTERS:
        problem = f"got the router {deployment.router}, which looks at the replicas"
        raise InputError(where, problem, f"use {' or '.join(BLIND_ROUTERS)}, or {hint}")
    if deployment.events or deployment.autoscale is not None:
        raise InputError(where, "got replicas that come and go, so that the router has others to choose from", hint)
    dependence = _dependence(scenario)
    if dependence:
        raise InputError(where, f"got {dependence}, so that arrivals depend on answers", hint)
    if workload.time_limit_s is not None or scenario.engine.on_kv_full == "oom":
        raise InputError(where, "got a run that may be cut short for all replicas at once", hint)
    if fleet.disaggregated or fleet.wires.sharing or any(pool.lock_step for pool in fleet.pools):
        raise InputError(where, "got replicas that wait for each other or share links", hint)


def _dependence(scenario: Scenario) -> str:
    """What of the workload makes arrivals at one replica depend on answers of another; empty if nothing does."""
    load = scenario.build_workload()
    if load.arrival_s is None:
        return "a closed loop"
    apart = scenario.deployment.router == "session_hash"
    return "conversations whose turns go to any replica" if load.next_turn is not None and not apart else ""
