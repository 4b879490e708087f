"""The highest load that keeps an SLO: on a machine whose answer is known in closed form, and on the simulator."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from small_scenarios import small
from test_cli import twowalls

from sim.errors import InputError
from sim.scenario import Scenario
from sim.studies.capacity import Capacity
from sim.studies.objective import Objective, objectives
from sim.studies.search import Found, load_of, search

SCENARIO = small(200)
SLO = [Objective.parse("ttft.p99=2s")]


def scenario(**arrivals: Any) -> Scenario:
    workload = SCENARIO["workload"] | ({"arrivals": arrivals} if arrivals else {})
    return Scenario.from_dict(SCENARIO | {"workload": workload})


def run(base: Scenario, start: float, tolerance: float, answer: Any) -> tuple[Found, list[Scenario]]:
    """The search on a machine that answers each load with `answer(load)`: a record, or a status."""
    asked: list[Scenario] = []
    one = search(base, SLO, start, tolerance)
    wanted = next(one)
    while True:
        asked.append(wanted)
        told = answer(float(getattr(wanted.workload.arrivals, load_of(base))))
        try:
            wanted = one.send(("done", told, "") if isinstance(told, dict) else (told, None, "why"))
        except StopIteration as end:
            return end.value, asked


def queue(capacity: float) -> Any:
    """An M/M/1 queue's answer: the wait grows as 1 / (capacity - load)."""

    def answer(load: float) -> dict[str, Any]:
        wait_ms = 1e3 / (capacity - load) if load < capacity else 1e6
        return {"p99_ttft_ms": wait_ms, "mean_e2el_ms": wait_ms, "load": "stable" if load < capacity else "overloaded"}

    return answer


@settings(derandomize=True, deadline=None, max_examples=60)
@given(capacity=st.floats(1.0, 5000.0), start=st.floats(0.01, 5000.0), tolerance=st.sampled_from([0.01, 0.1]))
def test_the_bracket_closes_on_the_answer_wherever_it_begins(capacity: float, start: float, tolerance: float) -> None:
    found, asked = run(scenario(), start, tolerance, queue(capacity))
    answer = capacity - 0.5  # a wait of 2 s = 1 / (capacity - load)
    assert found.low <= answer <= found.high
    assert found.high <= found.low * (1 + tolerance)
    assert len(asked) < 60
    assert found.best is not None
    assert found.best.load == found.low


def test_users_are_whole() -> None:
    found, asked = run(scenario(kind="closed_loop", concurrency=5), 5, 0.001, queue(37.2))
    assert (found.low, found.high) == (36, 37)
    loop = asked[-1].workload
    assert loop.warmup_requests == asked[-1].workload.arrivals.concurrency  # type: ignore[union-attr]
    assert loop.num_requests == 216 + 6 if loop.warmup_requests == 37 else 216


def test_what_is_lost_in_an_overload_makes_no_later_run_longer() -> None:
    def overloads(load: float) -> dict[str, Any]:
        good = load < 100
        return {"p99_ttft_ms": 100.0 if good else 2e6, "mean_e2el_ms": 1e3 if good else 2e6, "load": "stable"}

    _, asked = run(scenario(), 90, 0.01, overloads)
    # six times the second that requests take below the capacity, never six times the half hour beyond it
    assert max(one.workload.num_requests or 0 for one in asked) == math.ceil(6 * math.sqrt(90 * 180))


def test_a_run_is_long_enough_for_its_queue_to_be_seen() -> None:
    def slow(load: float) -> dict[str, Any]:
        return {"p99_ttft_ms": 1.0 if load < 50 else 9e9, "mean_e2el_ms": 20e3, "load": "stable"}

    _, asked = run(scenario(), 16, 0.1, slow)
    for one in asked[1:]:
        assert one.workload.num_requests is not None
        assert one.workload.num_requests >= 6 * 20 * one.workload.arrivals.request_rate / 8  # type: ignore[union-attr]
    assert asked[0].workload.num_requests == 200
    assert asked[1].workload.num_requests == 6 * 20 * 16  # the first run turned out too short for its latency


def test_an_overload_whose_latency_is_still_good_does_not_hold() -> None:
    def calm(load: float) -> dict[str, Any]:
        return {"p99_ttft_ms": 1.0, "mean_e2el_ms": 1.0, "load": "overloaded" if load > 30 else "stable"}

    found, _ = run(scenario(), 5, 0.05, calm)
    assert found.low <= 30 <= found.high
    assert found.binding == "the queue grows without end"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda load: "infeasible", "infeasible: why"),
        (lambda load: {"p99_ttft_ms": 3000.0, "mean_e2el_ms": 1.0, "load": "stable"},
         "even at next to no load ttft.p99 <= 2 s is missed by a factor of 1.50"),
    ],
)  # fmt: skip
def test_no_load_at_all(answer: Any, reason: str) -> None:
    found, asked = run(scenario(), 5, 0.05, answer)
    assert (found.low, found.reason, found.best) == (0.0, reason, None)
    assert len(asked) < 10


def test_seeds_give_an_interval_that_holds_every_bracket() -> None:
    brackets = [(9.0, 9.2), (10.0, 10.2), (11.0, 11.2)]
    found = Capacity("request_rate", SLO, tuple(Found(low, high, ()) for low, high in brackets))
    assert found.value == 9.0  # the load that held with every seed
    low, high = found.interval
    middle = sum(math.sqrt(a * b) for a, b in brackets) / 3
    assert (low + high) / 2 == pytest.approx(middle)
    assert high - middle == pytest.approx(4.3027 / math.sqrt(3), rel=1e-2)
    alone = Capacity("request_rate", SLO, (Found(9.0, 9.2, ()),))
    assert alone.interval == (9.0, 9.2)


def test_objectives_as_they_are_written() -> None:
    assert [(o.key, o.limit, o.at_least) for o in objectives(["ttft.p99=2s", "tpot.mean=50 ms"], None)] == [
        ("p99_ttft_ms", 2000.0, False), ("mean_tpot_ms", 50.0, False),
    ]  # fmt: skip
    with_slo = Scenario.from_dict(SCENARIO | {"slo": {"ttft": "1 s", "tpot": "30 ms"}})
    assert [o.key for o in objectives(None, with_slo.slo)] == ["p99_ttft_ms", "p99_tpot_ms"]
    goodput = objectives(["goodput=95%"], with_slo.slo)[0]
    assert goodput.assertion == "slo_attainment >= 0.95"
    assert Objective.parse("ttft.p99.9=2s").assertion == "ttft.p99.9 <= 2000.0 ms"
    assert (goodput.excess({"slo_attainment": 0.95}), goodput.excess({"slo_attainment": 0.0})) == (1.0, math.inf)
    for wrong in ("ttft=2s", "ttft.p98=2s", "tftt.p99=2s", "ttft.p99=2", "ttft.p99", "goodput=150%", "ttft.p99=-1s"):
        with pytest.raises(InputError, match="--slo"):
            objectives([wrong], with_slo.slo)
    assert [o.text for o in objectives(None, None, ["ttft.p99=2s"])] == ["ttft.p99 <= 2 s"]
    with pytest.raises(InputError, match="no objective"):
        objectives(None, None)
    with pytest.raises(InputError, match="goodput needs limits"):
        objectives(["goodput=95%"], None)
    with pytest.raises(InputError, match="got burst"):
        load_of(scenario(kind="burst"))


def test_a_scenario_that_cannot_be_is_the_users_mistake(tmp_path: Path) -> None:
    wrong = SCENARIO | {"deployment": {"tensor_parallel_size": 3}}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    done = twowalls("capacity", "wrong.yaml", "--slo", "ttft.p99=2s", "--jobs", "1", folder=tmp_path)
    assert done.returncode == 2
    assert "error: wrong.yaml: deployment.tensor_parallel_size: got 3" in done.stderr
    assert done.stdout == ""


def test_the_command_and_its_answer_hold_together(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(SCENARIO))
    command = ["capacity", "base.yaml", "--slo", "ttft.p99=500ms", "--seeds", "2", "--tolerance", "0.2", "--out", "out"]
    done = twowalls(*command, "--json", "--plot", "--jobs", "1", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    low, high = found["interval"]
    assert low <= found["max_request_rate"] <= high
    assert found["slo"] == ["ttft.p99 <= 500 ms"]
    assert found["metrics"]["p99_ttft_ms"] <= 500
    assert all(seed["high"] <= 1.2 * seed["low"] for seed in found["per_seed"])
    assert (tmp_path / "out" / "knee.png").read_bytes().startswith(b"\x89PNG")
    runs = len((tmp_path / "out" / "journal.jsonl").read_text().splitlines())
    again = twowalls(*command, "--json", folder=tmp_path)
    assert json.loads(again.stdout) == found
    assert len((tmp_path / "out" / "journal.jsonl").read_text().splitlines()) == runs
    tight = twowalls("capacity", "base.yaml", "--slo", "ttft.p99=1us", "--set", "model=llama-3.1-70b", folder=tmp_path)
    assert tight.returncode == 3
    assert "No load keeps" in tight.stdout
