"""Which replica gets a request."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from engine_runs import Run, play, workload
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import Scenario, simulate
from sim.engine.router import IMBALANCE_REQUESTS, ROUTERS, LeastOutstanding, make_router
from sim.engine.sequence import Sequence
from sim.engine.serving import ServingReplica
from sim.errors import InputError
from sim.workload.content import SegmentContent
from sim.workload.workload import Workload


class FakeReplica:
    """A replica of which only the load is known."""

    def __init__(self, index: int, outstanding: int = 0, kv_usage: float = 0.0) -> None:
        self.index, self.outstanding, self.kv_usage = index, outstanding, kv_usage


def fakes(*outstanding: int) -> Any:
    return [FakeReplica(index, count) for index, count in enumerate(outstanding)]


def request(id: int = 0, stream: str = "", session: int = -1, tokens: int = 400) -> Sequence:
    content = SegmentContent([(stream, tokens)], ("answer", id), INTERNED) if stream else None
    return Sequence(id, 0.0, tokens, 10, 1 << 30, content, session)


INTERNED: dict[tuple[object, ...], int] = {}


def chosen(name: str, replicas: list[ServingReplica], requests: list[Sequence]) -> list[int]:
    """Where a router sends each request, none of which ends."""
    router, places = make_router(name, Random(1), block_size=16), []
    for seq in requests:
        replica = router.choose(replicas, seq)
        replica.outstanding += 1
        places.append(replicas.index(replica))
    return places


def test_round_robin_takes_turns() -> None:
    assert chosen("round_robin", fakes(9, 0, 0), [request()] * 5) == [0, 1, 2, 0, 1]


def test_least_outstanding_fills_the_emptiest_first() -> None:
    assert chosen("least_outstanding", fakes(2, 0, 1), [request()] * 6) == [1, 1, 2, 0, 1, 2]


@given(st.lists(st.integers(-3, 6), max_size=200), st.integers(2, 7))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_least_outstanding_agrees_with_looking_at_all_of_them(events: list[int], count: int) -> None:
    replicas, router = fakes(*[0] * count), LeastOutstanding()
    for event in events:
        busy = [replica for replica in replicas if replica.outstanding]
        if event < 0 and busy:  # a request ends somewhere
            replica = busy[event % len(busy)]
            replica.outstanding -= 1
            router.over(replica)
        else:
            replica = router.choose(replicas, request())
            assert replica is min(replicas, key=lambda r: (r.outstanding, r.index))
            replica.outstanding += 1


def test_least_kv_looks_at_blocks_not_at_requests() -> None:
    replicas = fakes(1, 9, 1)
    for replica, usage in zip(replicas, (0.6, 0.2, 0.2), strict=True):
        replica.kv_usage = usage
    assert chosen("least_kv", replicas, [request()]) == [2]


def test_the_power_of_two_choices_flattens_the_peak() -> None:
    peaks = {}
    for name in ("random", "power_of_two"):
        places = chosen(name, fakes(*[0] * 100), [request()] * 1000)
        peaks[name] = max(np.bincount(places))
    # ln n / ln ln n against ln ln n / ln 2 above the mean of 10 (Mitzenmacher): about 20 against about 12
    assert peaks["random"] >= 17
    assert peaks["power_of_two"] <= 13


def test_prefixes_go_where_they_went_before_until_that_replica_is_too_busy() -> None:
    requests = [request(0, "a"), request(1, "b"), request(2, "a"), request(3, "a"), request(4, "b")]
    assert chosen("prefix_affinity", fakes(0, 0), requests) == [0, 1, 0, 0, 1]
    flood = [request(number, "a") for number in range(IMBALANCE_REQUESTS + 3)]
    places = chosen("prefix_affinity", fakes(0, 0), flood)
    assert places[: IMBALANCE_REQUESTS + 1] == [0] * (IMBALANCE_REQUESTS + 1)
    assert 1 in places


def test_the_router_of_prefixes_forgets_the_least_recently_used(monkeypatch: pytest.MonkeyPatch) -> None:
    # room for three prefixes of 128 tokens on each of two replicas; a prompt of 400 tokens has three, its first one kept longest
    monkeypatch.setattr("sim.engine.router.REMEMBERED_TOKENS", 3 * 128)
    router: Any = make_router("prefix_affinity", Random(1), block_size=16)
    replicas = fakes(0, 0)
    for number, stream in enumerate("abcabdde"):
        router.choose(replicas, request(number, f"{stream} of few", tokens=400)).outstanding += 1
        assert len(router._sent_to) <= 6
    known = [router._keys(request(9, f"{stream} of few"))[0] in router._sent_to for stream in "abcde"]
    assert known == [False, False, False, True, True]


def test_turns_of_a_conversation_stay_together() -> None:
    requests = [request(session=session) for session in (7, 8, 7, 9, 8, 7)]
    places = chosen("session_affinity", fakes(0, 0, 0), requests)
    assert places == [0, 1, 0, 2, 1, 0]
    assert chosen("session_affinity", fakes(0, 0), [request()] * 3) == [0, 1, 0]  # no session: the least outstanding


def talks(turns: list[list[int]], **more: Any) -> Workload:
    """Conversations that begin together; of each, the prompt tokens of its turns."""
    tokens = [count for prompts in turns for count in prompts]
    session = np.repeat(np.arange(len(turns)), [len(prompts) for prompts in turns])
    rows = np.arange(len(tokens))
    follows = np.append(session[1:] == session[:-1], False)
    return Workload(
        np.array(tokens), np.full(len(tokens), 4), np.zeros(len(tokens)),
        next_turn=np.where(follows, rows + 1, -1), session=session, **more,
    )  # fmt: skip


def test_a_conversation_is_over_when_no_turn_of_it_can_reach_a_router() -> None:
    load = talks([[8, 20, 40], [9], [50, 60], [10, 70, 30]])
    assert load.last_turns(below_tokens=100).tolist() == [0, 0, 1, 1, 0, 1, 0, 0, 1]
    # longer prompts are refused before: of the third conversation none comes, of the last one its third turn still does
    assert load.last_turns(below_tokens=40).tolist() == [0, 1, 0, 1, 0, 0, 0, 0, 1]
    alone = Workload(np.array([5, 5]), np.array([1, 1]), np.zeros(2), session=np.array([0, 0]))
    assert not alone.last_turns(below_tokens=100).any()  # turns that wait for nothing may come in any order


def test_affinity_remembers_the_conversations_under_way_only() -> None:
    rounds = [request(3 * session + turn, session=session) for session in range(500) for turn in range(3)]
    last = np.arange(1500) % 3 == 2
    routers: Any = [make_router("session_affinity", Random(1), 16, last_turns=ends) for ends in (last, None)]
    forgetful, hoarder = routers
    here, there = fakes(0, 0, 0), fakes(0, 0, 0)
    for seq in rounds:
        places = [router.choose(fleet, seq) for router, fleet in ((forgetful, here), (hoarder, there))]
        assert places[0].index == places[1].index
        for replica in places:
            replica.outstanding += 1
        assert len(forgetful._replica_of) <= 1
    assert len(hoarder._replica_of) == 500


@pytest.mark.parametrize("longest", [4000, 60])
def test_a_run_of_conversations_leaves_nothing_to_remember(longest: int) -> None:
    load = talks([[8 + 3 * i % 40 + 20 * turn for turn in range(1 + i % 5)] for i in range(60)])
    router: Any = make_router("session_affinity", Random(1), 4, last_turns=load.last_turns(longest))
    found = play(load, replicas=3, router=router, blocks=400, max_model_len=longest)
    assert (found.requests["status"] == 1).any() == (longest == 60)
    assert router._replica_of == {}
    served = found.requests["status"] == 0
    homes = set(zip(load.session[found.requests["id"]][served], found.requests["replica"][served], strict=True))
    assert len(homes) == len({session for session, _ in homes})


def test_a_hash_keeps_conversations_together_and_replicas_even_whatever_they_hold() -> None:
    requests = [request(session=session) for session in (7, 8, 7, 9, 8, 7)]
    places = chosen("session_hash", fakes(0, 99, 0), requests)
    assert places == chosen("session_hash", fakes(5, 0, 0), requests)
    assert len(set(places[::2][:2] + places[-1:])) == 1
    for replicas in (3, 4, 7):
        counts = np.bincount(chosen("session_hash", fakes(*[0] * replicas), [request(n) for n in range(700)]))
        assert counts.max() - counts.min() <= 5  # requests alone are conversations of their own


def spread(name: str, granularity: str = "leap") -> Run:
    rows = [(0.013 * i, 10 + i * 7 % 50, 5 + i * 11 % 40) for i in range(120)]
    router = make_router(name, Random(5), block_size=4)
    return play(workload(rows), replicas=5, router=router, granularity=granularity, max_num_seqs=4, blocks=200)


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_serves_everyone_and_a_leap_routes_as_its_steps_do(name: str) -> None:
    leap, step = spread(name), spread(name, "step")
    assert leap.requests["replica"].tolist() == step.requests["replica"].tolist()
    np.testing.assert_allclose(leap.requests["finish_s"], step.requests["finish_s"], rtol=1e-9)
    assert (leap.requests["status"] == 0).all()
    assert set(leap.requests["replica"].tolist()) == set(range(5))


def test_an_unknown_router_is_named() -> None:
    with pytest.raises(InputError, match="did you mean 'round_robin'"):
        make_router("roundrobin", Random(0), 16)


def chats(router: str) -> dict[str, Any]:
    return {
        "model": "llama-3.1-8b",
        "cluster": {"topology": "dgx-h100"},
        "deployment": {"data_parallel_size": 4, "router": router},
        "engine": {"enable_prefix_caching": True},
        "workload": {
            "arrivals": {"kind": "poisson", "request_rate": 4},
            "sessions": {"turns": [3, 6], "pause": "2 s", "pause_cv": 1.0},
            "lengths": {"kind": "fixed", "input_tokens": 200, "output_tokens": 80},
            "num_requests": 200,
        },
    }


def hit_rate(load: Workload, result: Any) -> float:
    return float(result.requests["cached_tokens"].sum() / load.input_tokens.sum())


def test_affinity_finds_the_prefixes_that_other_routers_scatter() -> None:
    rates = {}
    for router in ("round_robin", "session_affinity", "prefix_affinity"):
        scenario = Scenario.from_dict(chats(router))
        rates[router] = hit_rate(scenario.build_workload(), simulate(scenario))
    assert rates["session_affinity"] > rates["round_robin"] + 0.2
    assert rates["prefix_affinity"] == pytest.approx(rates["session_affinity"], abs=0.05)


def test_affinity_to_nothing_is_refused() -> None:
    alone = {**chats("session_affinity"), "workload": {**chats("random")["workload"], "sessions": None}}
    with pytest.raises(InputError, match="session_affinity without conversations"):
        Scenario.from_dict(alone)
    with pytest.raises(InputError, match="prefix_affinity without a prefix cache"):
        Scenario.from_dict({**chats("prefix_affinity"), "engine": {}})
