"""Small whole runs of the engine, with made-up iteration times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from sim.engine.batch import Batch, SchedulerLimits
from sim.engine.batching import VllmScheduler
from sim.engine.clock import Clock
from sim.engine.cluster import Cluster, Outcome
from sim.engine.host_cache import HostCache, TieredPool
from sim.engine.iteration import Pace, Phase
from sim.engine.kv_cache import BlockPool, PrefixPool
from sim.engine.policies.host_tier import HostTier, with_host_tier
from sim.engine.policies.swap import HostLink, SwapScheduler
from sim.engine.recorder import Columns, Recorder
from sim.engine.replica import Replica
from sim.engine.router import LeastOutstanding
from sim.engine.sequence import Sequence
from sim.engine.streaming import StreamingReplica
from sim.workload.content import Content
from sim.workload.workload import Workload


class AffineCost:
    """An iteration takes fixed_s + token_s a prompt token + seq_s a decode + context_s a token of context."""

    def __init__(
        self, fixed_s: float = 0.01, token_s: float = 1e-4, seq_s: float = 1e-3, context_s: float = 1e-5
    ) -> None:
        self.windows: tuple[int, ...] = ()
        self.fixed_s, self.token_s, self.seq_s, self.context_s = fixed_s, token_s, seq_s, context_s

    def pace(self, batch: Batch) -> Pace:
        duration_s = self.fixed_s + self.token_s * batch.chunk_tokens + self.seq_s * batch.decodes
        growth_s = 0.0 if batch.chunks else self.context_s * batch.decodes
        return duration_s + self.context_s * batch.context_tokens, growth_s, 1 << 60

    def phases(self, batch: Batch) -> tuple[list[Phase], float]:
        raise NotImplementedError


@dataclass
class Run:
    """What a finished run left behind."""

    requests: Columns
    steps: Columns
    outcome: Outcome
    schedulers: list[Any]
    gaps_s: Any = field(default_factory=lambda: np.zeros(0))
    fetches: Columns = field(default_factory=dict)

    @property
    def free_blocks(self) -> list[int]:
        return [scheduler.pool.free for scheduler in self.schedulers]


@dataclass(frozen=True)
class HostTierOf:
    """Host memory of so many blocks below the prefix cache; a prompt token that need not be computed saves `token_s`."""

    blocks: int
    out_s: float = 1e-3
    back_s: float = 2e-3
    token_s: float = 1e-3

    def policy(self, policy: Any, env: Any, cluster: Cluster, recorder: Recorder) -> Any:
        index = len(cluster.replicas)

        def fetched(seq: Sequence, sent_s: float, tokens: int) -> None:
            recorder.fetches.append((seq.id, index, sent_s, env.now, tokens))
            cluster.replicas[index].nudge()

        return with_host_tier(policy, lambda start, end: (end - start) * self.token_s, fetched, "kv_offloading_size")


def workload(
    rows: list[tuple[float, int, int]] | None = None, *, concurrency: int | None = None, **more: Any
) -> Workload:
    """Requests given as (arrival, prompt tokens, output tokens)."""
    rows = rows or []
    arrivals = None if concurrency else np.array([row[0] for row in rows], dtype=float)
    tokens = [np.array([row[i] for row in rows], dtype=np.int64) for i in (1, 2)]
    return Workload(tokens[0], tokens[1], arrivals, concurrency, **more)


def play(
    load: Workload,
    policy: Callable[..., VllmScheduler] = VllmScheduler,
    *,
    granularity: str = "leap",
    blocks: int = 64,
    block_size: int = 4,
    cost: Any = None,
    content: Callable[[int], Content | None] | None = None,
    caching: bool = False,
    replicas: int = 1,
    router: Any = None,
    time_limit_s: float | None = None,
    observer: Callable[[VllmScheduler, Batch, int], None] | None = None,
    host_blocks: int | None = None,
    tier: HostTierOf | None = None,
    server_token_s: float = 0.0,
    **limits: Any,
) -> Run:
    """Plays `load` on replicas under `policy`; `limits` are fields of `SchedulerLimits`.

    With `host_blocks` they preempt by swap, 2 ms a block out and 3 ms a block back, instead of `policy`.
    With a `tier` blocks evicted from the prefix cache go to the host; a server that streams takes `server_token_s` for a token.
    """
    env = Clock()
    cost = cost or AffineCost()
    recorder = Recorder(cost.windows)
    options = SchedulerLimits(**{"max_model_len": 1 << 20, "max_num_batched_tokens": 1 << 20, **limits})
    longest = options.max_model_len
    cluster = Cluster(env, load, recorder, router or LeastOutstanding(), max_model_len=longest, content=content)
    schedulers = []
    for index in range(replicas):
        pool = PrefixPool(blocks, block_size) if caching else BlockPool(blocks, block_size)
        if tier is not None:
            pool = TieredPool(blocks, block_size, False, HostCache(env, tier.out_s, tier.back_s, tier.blocks))
            scheduler = tier.policy(policy, env, cluster, recorder)(options, pool, cost.windows)
        elif host_blocks is None:
            scheduler = policy(options, pool, cost.windows)
        else:
            scheduler = SwapScheduler(options, pool, cost.windows, link=HostLink(env, 2e-3, 3e-3, host_blocks))
        schedulers.append(scheduler)
        build = partial(StreamingReplica, token_s=server_token_s) if server_token_s else Replica
        replica = build(
            env, index, scheduler, cost, recorder, cluster.over, leaps=granularity == "leap", observer=observer
        )
        cluster.replicas.append(replica)
        if isinstance(scheduler, HostTier):
            scheduler.begin_s = replica.begin_s
        if isinstance(scheduler, SwapScheduler):
            scheduler.link.on_return = replica.nudge
    outcome = cluster.run(time_limit_s)
    gaps = recorder.gaps.to_columns()
    return Run(
        recorder.request_columns(),
        recorder.step_columns(),
        outcome,
        schedulers,
        gaps["end_s"] - gaps["start_s"],
        recorder.fetches.to_columns(),
    )
