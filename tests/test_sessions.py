"""Conversations that grow, turn by turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_runs import AffineCost, play
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import Scenario, simulate
from sim.errors import InputError
from sim.workload.sessions import SessionPrompts, Turns, draw_turns
from sim.workload.workload import Workload


def test_a_prompt_is_all_that_was_said_before_and_something_new() -> None:
    turns = Turns(np.array([0, 0, 0, 1, 2, 2]))
    new, answers = np.array([10, 20, 30, 5, 6, 7]), np.array([1, 2, 3, 4, 5, 6])
    assert turns.first.tolist() == [True, False, False, True, True, False]
    assert turns.next_turn.tolist() == [1, 2, -1, -1, 5, -1]
    assert turns.grown(new, answers).tolist() == [10, 31, 63, 5, 6, 18]
    assert turns.grown(new, answers, system_tokens=100).tolist() == [110, 131, 163, 105, 106, 118]


@given(st.integers(1, 300), st.integers(1, 5), st.integers(0, 6), st.integers(0, 1000))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_as_many_turns_as_asked_in_conversations_of_the_asked_length(
    requests: int, least: int, more: int, seed: int
) -> None:
    turns = draw_turns(requests, None, least, least + more, np.random.default_rng(seed))
    lengths = np.bincount(turns.session)
    assert lengths.sum() == requests
    assert (lengths[:-1] >= least).all()
    assert (lengths <= least + more).all()


def conversation(pause_s: float, blocks: int = 400) -> tuple[Workload, Any]:
    """One conversation of three turns on a replica with a prefix cache; an iteration takes a second."""
    turns = Turns(np.array([0, 0, 0]))
    new, answers = np.array([16, 7, 9]), np.array([5, 4, 3])
    prompts = SessionPrompts(turns.session)
    load = Workload(
        turns.grown(new, answers), answers, np.zeros(3), think_time_s=np.array([0, pause_s, pause_s]),
        prompts=prompts, next_turn=turns.next_turn, session=turns.session,
    )  # fmt: skip
    cost = AffineCost(1.0, 0.0, 0.0, 0.0)
    run = play(load, cost=cost, caching=True, content=lambda row: prompts.content(row, 4), blocks=blocks)
    return load, run


def test_a_turn_comes_a_pause_after_the_answer_before_it() -> None:
    _, run = conversation(pause_s=2.5)
    assert run.requests["arrival_s"].tolist() == [0, 7.5, 14.0]  # answers take 5, 4 and 3 iterations
    assert run.requests["finish_s"].tolist() == [5, 11.5, 17.0]


def test_a_turn_finds_all_full_blocks_of_the_turns_before_in_the_cache() -> None:
    # prompts are 16, 28 and 41 tokens; of 21 tokens said 20 are computed (the last one never is), and 5 blocks are full
    load, run = conversation(pause_s=1.0)
    assert load.input_tokens.tolist() == [16, 28, 41]
    assert run.requests["cached_tokens"].tolist() == [0, 20, 28]


def scenario(**workload: Any) -> Scenario:
    return Scenario.from_dict(
        {
            "model": "llama-3.1-8b",
            "cluster": {"topology": "dgx-h100"},
            "engine": {"enable_prefix_caching": True},
            "workload": {
                "arrivals": {"kind": "poisson", "request_rate": 2},
                "sessions": {"turns": [2, 5], "pause": "1 s", "pause_cv": 1.0},
                "lengths": {"kind": "uniform", "input_tokens": [20, 200], "output_tokens": [10, 80]},
                "num_requests": 100,
                **workload,
            },
        }
    )


def test_hits_shorten_the_time_to_the_first_token() -> None:
    chat = scenario(shared_prefix={"tokens": 4000})
    cold = simulate(chat.with_overrides({"engine.enable_prefix_caching": False}))
    warm = simulate(chat)
    assert len(warm.requests["id"]) == 100
    assert warm.broken_laws == []
    ttft = {
        name: float(np.mean(result.requests["first_token_s"] - result.requests["arrival_s"]))
        for name, result in (("cold", cold), ("warm", warm))
    }
    assert ttft["warm"] < 0.8 * ttft["cold"]
    assert warm.requests["cached_tokens"].sum() > 0.8 * warm.requests["input_tokens"].sum()


def test_a_closed_loop_user_begins_another_conversation_after_the_last_turn() -> None:
    users = 4
    chat = scenario(arrivals={"kind": "closed_loop", "concurrency": users, "think_time": "3 s"})
    result, load = simulate(chat), chat.build_workload()
    assert result.status == "done"
    assert len(result.requests["id"]) == 100
    assert load.session is not None
    begun = result.requests["arrival_s"][np.flatnonzero(np.diff(load.session, prepend=-1))]
    ended = np.array([result.requests["finish_s"][load.session == s].max() for s in range(load.session.max() + 1)])
    for session, start_s in enumerate(begun):
        assert ((begun <= start_s) & (ended > start_s)).sum() <= users
        if session >= users:
            assert min(abs(ended + 3 - start_s)) < 0.01


def test_an_agent_loop_is_a_conversation_whose_pause_is_a_tool() -> None:
    agents = scenario(arrivals={"kind": "burst"}, sessions={"turns": 10, "pause": "0.4 s"}, num_requests=20)
    load = agents.build_workload()
    assert load.session is not None
    assert np.bincount(load.session).tolist() == [10, 10]
    assert simulate(agents).status == "done"


def test_tenants_share_the_requests_by_weight_and_keep_their_conversations() -> None:
    load = scenario(tenants=[{"share": 3}, {"share": 1, "priority": -1}], num_requests=4000).build_workload()
    assert load.tenant is not None
    assert load.priority is not None
    assert load.session is not None
    assert np.mean(load.tenant == 1) == pytest.approx(0.25, abs=0.03)
    assert set(zip(load.tenant.tolist(), load.priority.tolist(), strict=True)) == {(0, 0), (1, -1)}
    assert all(len(set(load.tenant[load.session == s])) == 1 for s in range(50))


def test_a_trace_cannot_be_cut_into_conversations() -> None:
    with pytest.raises(InputError, match="sessions with trace arrivals"):
        scenario(arrivals={"kind": "trace", "path": "t.csv"})


@pytest.mark.parametrize("asked", [None, 500, 20])
def test_stages_bound_the_conversations_and_so_the_requests(asked: int | None) -> None:
    """No conversation begins after the last stage: its turns are all there are, however many requests were asked for."""
    stages = [{"duration": "10 s", "request_rate": 2.0}, {"duration": "10 s", "request_rate": 0.0}]
    stages_only = scenario(arrivals={"kind": "piecewise", "stages": stages}, num_requests=asked)
    load = stages_only.build_workload()
    assert load.arrival_s is not None
    assert load.arrival_s.max() < 10
    assert len(load) == 20 if asked == 20 else 20 < len(load) < 200
