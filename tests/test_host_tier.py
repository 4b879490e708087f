"""Host memory below the prefix cache: what is evicted is fetched again where that is sooner, and never counted twice."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import simpy
from engine_runs import AffineCost, HostTierOf, Run, play, workload
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from reference.host_tier import Host, HostBlocks, Production, TieredReference
from reference.random_cases import random_case
from reference.replay import drive
from reference.trace import first_difference

from sim import Scenario, simulate
from sim.engine.host_cache import HostCache
from sim.errors import InputError
from sim.workload.content import SegmentContent


def random_host(seed: int) -> Host:
    """Times that never make a fetch end just when an iteration does."""
    random = Random(f"host {seed}")
    out_s, back_s = random.choice([0.0107137, 0.3107137]), random.choice([0.0207139, 0.2107139, 1.0107139])
    return Host(random.choice([0, 2, 5, 20, 100]), out_s, back_s, random.choice([0.05, 0.5, 10.0]))


def played(seed: int) -> tuple[TieredReference, str | None, str | None]:
    """(the reference after a case, the first difference to production, what is wrong with its host memory)."""
    case, host = random_case(seed, enable_prefix_caching=True), random_host(seed)
    plain, fast = TieredReference(case.config, host), Production(case.config, host)
    wanted, _ = drive(plain, case, plain.check)
    found, _ = drive(fast, case)
    difference = first_difference(wanted, found)
    # keys are numbered in the order of their first look-up, so only numbers of blocks can be compared
    mine, theirs = len(fast.pool.host), len(plain.host.rows)
    return plain, difference, None if mine == theirs else f"{mine} blocks in host memory, should be {theirs}"


@pytest.mark.parametrize("start", range(0, 600, 100))
def test_random_cases_are_fetched_for_as_by_the_plain_reference(start: int) -> None:
    wrong = {}
    for seed in range(start, start + 100):
        _, *differences = played(seed)
        if any(differences):
            wrong[seed] = differences
    assert wrong == {}


def test_random_cases_reach_the_corners_of_the_host() -> None:
    fetches = resumed = full = gave_up = 0
    for seed in range(300):
        plain, _, _ = played(seed)
        fetches += bool(plain.fetches)
        resumed += any(plain.sequences[request].preemptions for request, _ in plain.fetches)
        full += 0 < plain.host.host.blocks == len(plain.host.rows)
        gave_up += len(plain.fetches) > len({request for request, _ in plain.fetches})
    assert min(fetches, resumed, full, gave_up) >= 3, (fetches, resumed, full, gave_up)


class HostMachine(RuleBasedStateMachine):
    """Host memory against a plain list, under any order of evictions, fetches and their ends."""

    @initialize(blocks=st.integers(0, 6))
    def build(self, blocks: int) -> None:
        self.env = simpy.Environment()
        self.host = HostCache(self.env, 0.3107137, 0.2107139, blocks)
        self.plain = HostBlocks(Host(blocks, 0.3107137, 0.2107139, 1.0))
        self.under_way: list[list[int]] = []
        self.ended: list[tuple[int, float]] = []
        self.promised: list[float] = []

    @rule(keys=st.lists(st.integers(0, 9), max_size=4, unique=True))
    def evict(self, keys: list[int]) -> None:
        self.host.store(keys)
        for key in keys:
            self.plain.store(key)

    @precondition(lambda self: self.plain.rows)
    @rule(data=st.data())
    def fetch(self, data: st.DataObject) -> None:
        keys = data.draw(
            st.lists(st.sampled_from([key for key, _ in self.plain.rows]), min_size=1, max_size=3, unique=True)
        )
        assert self.host.lookup([*keys, 99]) == len(keys)
        assert self.host.fetch_s(keys) == pytest.approx(self.plain.done_s(keys) - self.env.now)
        self.promised.append(self.plain.fetch(keys))
        number = len(self.promised) - 1
        self.host.fetch(keys, lambda: self.ended.append((number, self.env.now)))
        self.under_way.append(keys)

    @precondition(lambda self: self.under_way)
    @rule()
    def end(self) -> None:
        """The fetch that was ordered first is over, and those who waited for it know."""
        number = len(self.promised) - len(self.under_way)
        keys = self.under_way.pop(0)
        self.env.run(until=max(self.promised[number], self.env.now) + 1e-3)
        self.plain.now_s = self.env.now
        assert (number, pytest.approx(self.promised[number])) in self.ended
        self.host.let_go(keys)
        for key in keys:
            self.plain.fetched.remove(key)

    @rule(delay_s=st.floats(1e-3, 1.0))
    def wait(self, delay_s: float) -> None:
        self.env.run(until=self.env.now + delay_s)
        self.plain.now_s = self.env.now

    @invariant()
    def holds_what_the_list_holds(self) -> None:
        assert self.host.keys == [key for key, _ in self.plain.rows]
        assert len(self.host) <= self.host.blocks
        assert {key for keys in self.under_way for key in keys} <= set(self.host.keys)


HostMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)
TestHostMachine = HostMachine.TestCase


# --- the engine with it -----------------------------------------------------------------------------------------------


def again(tier: HostTierOf | None, granularity: str = "leap") -> Run:
    """A prompt of 16 tokens, another one that takes its blocks, and the first one again: blocks of 4, a pool of 6."""
    interned: dict[tuple[object, ...], int] = {}

    def content(row: int) -> SegmentContent:
        return SegmentContent([("ab"[row % 2], 16)], ("answer", row), interned)

    load = workload([(0.0, 16, 2), (0.1, 16, 2), (0.2, 16, 2)])
    cost = AffineCost(0.01, 1e-3, 0.0, 0.0)
    limits = {"caching": True, "content": content, "blocks": 6, "cost": cost, "granularity": granularity}
    return play(load, tier=tier, **limits)


def test_what_was_evicted_comes_back_over_the_host_link() -> None:
    # A prompt fills 4 blocks and the token after it a fifth. The second one takes the two blocks without a key and three of the
    # four cached ones, tail first; they go to the host in 3 ms. At most 12 tokens of the third prompt may hit: its first block is
    # on the GPU, the two after it come back in 4 ms instead of the 8 ms in which they could be computed.
    run = again(HostTierOf(blocks=10, out_s=1e-3, back_s=2e-3, token_s=1e-3))
    assert run.requests["cached_tokens"].tolist() == [0, 0, 4]
    assert run.requests["fetched_tokens"].tolist() == [0, 0, 8]
    assert run.fetches["tokens"].tolist() == [8]
    assert run.fetches["start_s"].tolist() == [0.2]
    assert run.fetches["end_s"] == pytest.approx([0.204])
    assert run.requests["scheduled_s"] == pytest.approx([0.0, 0.1, 0.204])
    assert run.requests["first_token_s"] == pytest.approx([0.026, 0.126, 0.204 + 0.014])
    assert run.free_blocks == [6]


@pytest.mark.parametrize("tier", [None, HostTierOf(10, token_s=0.9e-3 / 2), HostTierOf(10, back_s=5e-3), HostTierOf(0)])
def test_where_computing_is_sooner_or_nothing_is_there_it_is_computed(tier: HostTierOf | None) -> None:
    run = again(tier)
    assert run.requests["cached_tokens"].tolist() == [0, 0, 4]
    assert "fetched_tokens" not in run.requests
    assert run.requests["first_token_s"] == pytest.approx([0.026, 0.126, 0.222])


def scenario(**engine: Any) -> Scenario:
    """Conversations whose caches do not fit on the GPU."""
    given = {"enable_prefix_caching": True, "num_gpu_blocks_override": 700, "kv_offloading_size": "16 GiB", **engine}
    return Scenario.from_dict(
        {
            "model": "llama-3.1-8b",
            "cluster": {"topology": "dgx-h100"},
            "engine": given,
            "workload": {
                "arrivals": {"kind": "closed_loop", "concurrency": 12},
                "lengths": {"kind": "uniform", "input_tokens": [300, 900], "output_tokens": [20, 120]},
                "sessions": {"turns": [2, 6]},
                "num_requests": 80,
            },
        }
    )


def test_hits_of_the_host_are_counted_apart_and_its_time_is_in_the_ledger() -> None:
    with_host, without = simulate(scenario()), simulate(scenario(kv_offloading_size=0))
    for result in (with_host, without):
        assert result.broken_laws == []
        assert result.status == "done"
    assert without.summary["host_cache_hit_rate"] is None
    assert with_host.summary["host_cache_hit_rate"] > 0.1
    assert with_host.walls_ms_per_token["host_fetch"] > 0 == without.walls_ms_per_token["host_fetch"]
    assert with_host.steps["prefill_tokens"].sum() < without.steps["prefill_tokens"].sum()
    assert with_host.summary["mean_ttft_ms"] < without.summary["mean_ttft_ms"]


@pytest.mark.parametrize("granularity", ["step", "layer"])
@pytest.mark.parametrize("engine", [{}, {"async_scheduling": False, "num_gpu_blocks_override": 300}])
def test_it_is_the_same_at_every_granularity(granularity: str, engine: dict[str, Any]) -> None:
    asked = scenario(**engine)
    leap = simulate(asked)
    other = simulate(asked.with_overrides({"granularity": granularity}))
    assert leap.requests["fetched_tokens"].sum() > 0
    for name, column in leap.requests.items():
        np.testing.assert_allclose(column, other.requests[name], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"engine.enable_prefix_caching": False}, "kv_offloading_size without a prefix cache"),
        ({"engine.on_kv_full": "swap"}, "kv_offloading_size with on_kv_full swap"),
        ({"deployment.pipeline_parallel_size": 2}, "with pipeline stages or replicas in lock-step"),
        ({"engine.kv_offloading_size": 16}, "kv_offloading_size"),
        ({"engine.scheduler": "textwrap:indent"}, "use one that extends VllmScheduler"),
    ],
)
def test_what_cannot_be_offloaded_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        simulate(scenario().with_overrides(changes))


def test_a_prefill_pool_can_have_it() -> None:
    pools = [
        {"name": "prefill", "role": "prefill", "replicas": 1, "tensor_parallel_size": 1},
        {"name": "decode", "role": "decode", "replicas": 1, "tensor_parallel_size": 1},
    ]
    result = simulate(scenario().with_overrides({"deployment.pools": pools}))
    assert result.broken_laws == []
    assert result.status == "done"
    assert result.requests["fetched_tokens"].sum() > 0
