"""Whatever the policy and the load: tokens, blocks and requests are conserved, nothing hangs, and a leap is its steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from engine_runs import HostTierOf, Run, play, workload
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine.batching import VllmScheduler
from sim.engine.policies import POLICIES
from sim.engine.recorder import CUT, FINISHED, REJECTED
from sim.results.checks import run_checks
from sim.workload.content import SegmentContent
from sim.workload.workload import Workload

TIERED = {f"{name} with host memory": name for name in ("vllm", "prefill_first", "sjf", "priority", "fair_share")}
WHOLE_PROMPTS = ("prefill_first", "orca", "static", "prefill_first with host memory")
RESERVED = ("orca", "static")


@dataclass(frozen=True)
class Case:
    """A small load on a small replica."""

    policy: str
    load: Workload
    limits: dict[str, Any]
    blocks: int
    block_size: int
    caching: bool
    time_limit_s: float | None
    replicas: int
    host_blocks: int | None
    tier: HostTierOf | None

    def run(self, granularity: str) -> Run:
        interned: dict[tuple[object, ...], int] = {}

        def content(row: int) -> SegmentContent:
            return SegmentContent([(("shared", row % 3), 9), (("own", row), 1 << 20)], ("answer", row), interned)

        policy = POLICIES.get(TIERED.get(self.policy, self.policy), VllmScheduler)
        return play(
            self.load,
            policy,
            granularity=granularity,
            blocks=self.blocks,
            block_size=self.block_size,
            caching=self.caching,
            content=content if self.caching else None,
            time_limit_s=self.time_limit_s,
            replicas=self.replicas,
            host_blocks=self.host_blocks,
            tier=self.tier,
            **self.limits,
        )


@st.composite
def cases(draw: st.DrawFn, policy: str) -> Case:
    block_size, blocks = draw(st.sampled_from([1, 2, 4, 8])), draw(st.integers(4, 60))
    longest = draw(st.integers(3, blocks * block_size))
    gap_s = st.one_of(
        st.just(0.0), st.integers(0, 300).map(lambda n: n * 0.00103717), st.integers(0, 30).map(lambda n: n * 0.01)
    )
    row = st.tuples(gap_s, st.integers(1, longest + 1), st.integers(1, 40))
    rows = draw(st.lists(row, min_size=1, max_size=14))
    arrivals = np.cumsum([row[0] for row in rows])
    concurrency = draw(st.sampled_from([None, None, 1, 4]))
    load = workload(
        [(float(t), row[1], row[2]) for t, row in zip(arrivals, rows, strict=True)], concurrency=concurrency
    )
    count = len(rows)
    if draw(st.booleans()):
        load = replace(load, tenant=np.arange(count) % 3, priority=np.arange(count) * 7 % 3)
    if draw(st.booleans()):  # every third request starts a conversation of up to three turns
        follows = np.where(np.arange(count) % 3 < 2, np.arange(count) + 1, -1)
        follows[-1] = -1
        load = replace(load, next_turn=follows, think_time_s=np.full(count, 0.0200713))
    budget = draw(st.integers(longest, longest + 20) if policy in WHOLE_PROMPTS else st.integers(8, 60))
    limits = {
        "max_num_seqs": draw(st.integers(1, min(budget, 8))),
        "max_num_batched_tokens": budget,
        "max_model_len": longest,
        "async_scheduling": draw(st.booleans()),
        "scheduler_reserve_full_isl": draw(st.booleans()),
        "long_prefill_token_threshold": 0 if policy in WHOLE_PROMPTS else draw(st.sampled_from([0, 0, 3, 10])),
    }
    caching = policy in TIERED or (policy not in RESERVED and draw(st.booleans()))
    tier = None
    if policy in TIERED:
        tier = HostTierOf(draw(st.integers(0, 40)), 0.00070313, draw(st.sampled_from([0.00050713, 0.00310713])))
    time_limit_s = draw(st.one_of(st.none(), st.none(), st.floats(0.01, 2.0)))
    host_blocks = draw(st.sampled_from([0, 5, 1000])) if policy == "swap" else None
    replicas = draw(st.sampled_from([1, 1, 2]))
    return Case(policy, load, limits, blocks, block_size, caching, time_limit_s, replicas, host_blocks, tier)


def assert_conserved(case: Case, run: Run) -> None:
    requests, outcome = run.requests, run.outcome
    status = requests["status"]
    assert not outcome.stuck
    assert outcome.out_of_memory is None
    assert len(set(requests["id"].tolist())) == len(status)
    if (case.load.arrival_s is not None and case.load.next_turn is None) or case.time_limit_s is None:
        assert len(status) == len(case.load)  # each request ends exactly once
    longest = case.limits["max_model_len"]
    asked = np.minimum(requests["output_tokens"], np.maximum(longest - requests["input_tokens"], 0))
    delivered = requests["generated_tokens"]
    assert (delivered[status == FINISHED] == asked[status == FINISHED]).all()
    assert (delivered[status == REJECTED] == 0).all()
    assert (delivered <= requests["output_tokens"]).all()
    assert (requests["input_tokens"][status == REJECTED] >= longest).all()
    if case.time_limit_s is None:
        assert not (status == CUT).any()
        assert run.free_blocks == [case.blocks] * case.replicas  # the pool is whole again
    assert (run.steps["used_blocks"] >= 0).all()
    assert (run.steps["used_blocks"] <= case.blocks).all()
    assert (run.steps["running"] <= case.limits["max_num_seqs"]).all()
    end_s = max([outcome.end_s, *requests["finish_s"][status == FINISHED]])
    laws = run_checks({**requests, "output_tokens": asked}, run.steps, run.gaps_s, end_s, 0.0, case.load.concurrency)
    broken = [law for law in laws if not law["held"] and law["name"] != "tokens conserved"]
    assert broken == []


@pytest.mark.parametrize("policy", [*POLICIES, "swap", *TIERED])
@given(data=st.data())
@settings(max_examples=120, deadline=None, derandomize=True)
def test_everything_is_conserved_and_a_leap_is_its_steps(policy: str, data: st.DataObject) -> None:
    case = data.draw(cases(policy))
    leap, step = case.run("leap"), case.run("step")
    assert_conserved(case, leap)
    assert_conserved(case, step)
    for name, column in leap.requests.items():
        np.testing.assert_allclose(column, step.requests[name], rtol=1e-9, atol=1e-12, err_msg=name)
    assert leap.outcome.end_s == pytest.approx(step.outcome.end_s, rel=1e-9)
