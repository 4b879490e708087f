"""The server process streams beside the engine: who comes while it is behind waits, and the engine does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from engine_runs import AffineCost, play, workload
from hypothesis import given
from hypothesis import strategies as st

from sim.cost.preset import PRESETS, preset_for
from sim.engine.streaming import StreamQueue
from sim.scenario import Scenario
from sim.simulate import simulate

TEN_MS = AffineCost(0.01, 0.0, 0.0, 0.0)


@given(
    st.floats(0.0, 0.1), st.floats(1e-4, 0.1), st.floats(0.0, 1e-3), st.integers(1, 50), st.integers(1, 20),
    st.floats(0.0, 0.01),
)  # fmt: skip
def test_many_iterations_at_once_leave_what_one_after_the_other_leaves(
    before_s: float, first_s: float, growth_s: float, iterations: int, tokens: int, token_s: float
) -> None:
    """Lindley's recursion, in closed form and step by step."""
    whole, steps = StreamQueue(token_s), StreamQueue(token_s)
    for queue in (whole, steps):
        queue.add(0.0, before_s, 0.0, 1, 7)
    whole.add(before_s, first_s, growth_s, iterations, tokens)
    now_s = before_s
    for number in range(iterations):
        steps.add(now_s, first_s + number * growth_s, 0.0, 1, tokens)
        now_s += first_s + number * growth_s
    assert whole.wait_s(now_s) == pytest.approx(steps.wait_s(now_s), rel=1e-9, abs=1e-12)


def test_a_request_waits_for_the_tokens_that_are_not_sent_yet() -> None:
    """Two requests get a token each 10 ms, 15 ms of work for the server: 5 ms more is left after every iteration.

    Who comes at 55 ms finds five iterations over: 75 ms of work since the first of them at 10 ms, 30 ms of it left.
    """
    load = workload([(0.0, 1, 20), (0.0, 1, 20), (0.055, 1, 1)])
    run = play(load, cost=TEN_MS, server_token_s=7.5e-3)
    assert run.requests["scheduled_s"][2] == pytest.approx(0.09)  # at 85 ms it is with the engine, which looks at 90 ms
    assert run.requests["finish_s"][:2].tolist() == pytest.approx([0.2, 0.2])  # the engine waits for nobody


def test_who_comes_to_an_idle_server_does_not_wait() -> None:
    load = workload([(0.0, 1, 20), (0.055, 1, 1)])
    fast, none = play(load, cost=TEN_MS, server_token_s=7.5e-3), play(load, cost=TEN_MS)
    assert fast.requests["scheduled_s"][1] == none.requests["scheduled_s"][1]  # at 57.5 ms it is with the engine, too
    assert fast.requests["finish_s"].tolist() == none.requests["finish_s"].tolist()


@pytest.mark.parametrize("granularity", ["leap", "step"])
def test_a_full_house_streams_as_fast_as_its_server(granularity: str) -> None:
    """The engine alone would give 64 users 6,400 tokens/s; a server that needs 0.25 ms a token streams 4,000."""
    load = workload([(0.0, 1, 100)] * 1280, concurrency=64)
    run = play(load, cost=TEN_MS, granularity=granularity, blocks=100_000, server_token_s=0.25e-3)
    rate = 100 * 1280 / run.requests["finish_s"].max()
    assert rate == pytest.approx(4000, rel=0.03)
    per_token_s = (run.requests["finish_s"] - run.requests["first_token_s"]) / 99
    np.testing.assert_allclose(per_token_s, 0.01)  # tokens come at the engine's pace, requests late


def test_a_library_has_no_server_and_neither_has_an_ideal_engine() -> None:
    assert preset_for("sglang", api_server=False).server_token_s == 0.0
    assert PRESETS["ideal"].server_token_s == 0.0


def test_trtllm_serve_streams_slower_than_what_came_after() -> None:
    assert preset_for("trtllm", "1.0.0rc3").server_token_s > 0
    assert preset_for("trtllm").server_token_s == preset_for("trtllm", "1.2.0rc6.post1").server_token_s == 0.0


def test_requests_on_their_way_are_not_lost_with_their_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica fails while users wait behind its server: all are served by the other one."""
    slow = replace(PRESETS["sglang"], server_token_s=2e-3)
    monkeypatch.setitem(PRESETS, "sglang", slow)
    data = {
        "model": "llama-3.1-8b",
        "cluster": {"topology": "dgx-h100"},
        "deployment": {
            "data_parallel_size": 2,
            "events": [{"at": "1 s", "replica": 0, "event": "fail"}],
        },
        "engine": {"preset": "sglang"},
        "workload": {
            "arrivals": {"kind": "closed_loop", "concurrency": 32},
            "lengths": {"kind": "fixed", "input_tokens": 100, "output_tokens": 50},
            "num_requests": 128,
        },
    }
    result = simulate(Scenario.from_dict(data))
    assert result.summary["completed"] == 128
    assert result.broken_laws == []
