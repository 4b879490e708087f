"""Which deployment: candidates, prices, closed form, and an answer that holds when it is run again."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from test_cli import twowalls

from sim.engine.warm import warm_deployment
from sim.errors import InputError
from sim.model.transformer import load_model
from sim.scenario import Scenario
from sim.simulate import simulate
from sim.studies.objective import Objective
from sim.studies.plan import Choice, with_replicas
from sim.studies.plan_candidates import Candidate, candidates
from sim.studies.plan_cost import TokenCost, token_cost
from sim.studies.plan_screen import Mean, Replica, screen
from sim.studies.plan_words import golden_rule, plan_text
from sim.studies.plan_workload import plan_base
from sim.studies.prices import Offer, Prices, load_prices

H100 = Offer("h100-sxm", "dgx-h100", 3.0, 700.0, 70.0, "a test")
SLO = [Objective.parse("ttft.p99=2s"), Objective.parse("tpot.p99=50ms")]


def candidate(tensor: int = 1, precision: str = "bf16", **changes: Any) -> Candidate:
    offer, pipeline, expert = (
        changes.pop(key, usual) for key, usual in (("offer", H100), ("pipeline", 1), ("expert", False))
    )
    return Candidate(offer, tensor, pipeline, expert, precision, **changes)


def test_candidates_are_what_the_hardware_can_compute() -> None:
    a100 = Offer("a100-sxm-80gb", "dgx-a100", 1.8, 400.0, 60.0, "a test")
    found = list(
        candidates([H100, a100], load_model("llama-3.1-8b"), max_gpus=4, precisions=["bf16", "fp8", "int4", "nvfp4"])
    )
    assert {c.precision for c in found if c.offer is H100} == {"bf16", "fp8", "int4"}  # fp4 is Blackwell's
    assert {c.precision for c in found if c.offer is a100} == {"bf16", "int4"}
    assert {(c.tensor, c.pipeline) for c in found} == {(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)}
    assert max(c.gpus for c in found) == 4
    assert len({c.name for c in found}) == len(found)
    assert not any(c.expert_parallel for c in found)
    experts = list(candidates([H100], load_model("mixtral-8x7b"), max_gpus=2, precisions=["bf16"]))
    assert {c.name.removeprefix("h100-sxm-").removesuffix("-bf16") for c in experts} == {
        "tp1", "tp1-dp2", "tp1-1p1d", "tp1-dp2-ep", "tp2", "tp2-spread", "tp2-ep", "tp1-pp2", "tp1-pp2-spread",
    }  # fmt: skip


def test_every_kind_of_deployment_becomes_its_scenario() -> None:
    base = plan_base("mixtral-8x7b", "chat")
    staged = candidate(8, pipeline=2)
    assert staged.words == "sixteen h100-sxm in 2 nodes (TP8 x PP2) in bf16"
    apart = candidate(1, prefill=2, decode=1)
    assert apart.words == "three h100-sxm (2 prefill + 1 decode of TP1) in bf16"
    pools = apart.scenario(base).deployment.pools
    assert [(pool.role, pool.replicas, pool.tensor_parallel_size) for pool in pools or []] == [
        ("prefill", 2, 1), ("decode", 1, 1),
    ]  # fmt: skip
    spread = candidate(2, placement="spread")
    assert spread.words == "two h100-sxm in 2 nodes in bf16"
    assert warm_deployment(spread.scenario(base)).placement == [[["n0.g0", "n1.g0"]]]
    ranks = candidate(2, data=2, expert=True)
    assert ranks.words == "four h100-sxm (TP2 x DP2) in bf16 with expert parallelism"
    assert (ranks.gpus, ranks.lock_step, ranks.copy_of) == (4, True, None)
    copies = candidate(2, data=2)
    assert (copies.gpus, copies.copy_of) == (4, candidate(2))


def copies_joules(one: Candidate, rate: float) -> float:
    """Share of time in which a GPU is busy, read off the joules."""
    joules = token_cost(one, rate, 250.0, 1.0, latency_s=10.0).joules_per_output_token or 0.0
    return (joules * rate * 250.0 / one.gpus - 70.0) / (700.0 - 70.0)


def test_dollars_and_joules_of_a_token() -> None:
    # 4 requests/s x 250 tokens = 1,000 tokens/s; two GPUs at 3 $/h: 6 / 3.6e6 $ a token
    found = token_cost(candidate(2), 4.0, 250.0, 1.0, latency_s=10.0)
    assert found.output_tokens_per_s == 1000.0
    assert found.usd_per_million_output_tokens == pytest.approx(6 / 3600 / 1000 * 1e6)
    assert found.joules_per_output_token == pytest.approx(2 * 700 / 1000, rel=1e-6)  # 40 in flight: never idle
    idle = token_cost(candidate(2), 0.001, 250.0, 1.0, latency_s=10.0)
    busy = 1 - math.exp(-0.01)
    assert idle.joules_per_output_token == pytest.approx(2 * (busy * 700 + (1 - busy) * 70) / 0.25)
    # two copies get half of the requests each; apart, a prompt occupies one of two replicas and its decode a third
    assert copies_joules(candidate(1, data=2), 0.1) == pytest.approx(1 - math.exp(-0.05 * 10))
    apart = 2 * (1 - math.exp(-0.05 * 1)) + (1 - math.exp(-0.1 * 9))
    assert copies_joules(candidate(1, prefill=2, decode=1), 0.1) == pytest.approx(apart / 3)
    unknown = Offer("h100-sxm", "dgx-h100", 3.0, 700.0, None, "")
    assert token_cost(candidate(offer=unknown), 1.0, 250.0, 1.0, 1.0).joules_per_output_token is None


def test_the_closed_form_is_the_step_that_the_engine_takes() -> None:
    scenario = Scenario.from_dict({
        "model": "llama-3.1-70b", "cluster": {"topology": "dgx-h100"}, "deployment": {"tensor_parallel_size": 4},
        "workload": {"arrivals": {"kind": "closed_loop", "concurrency": 16}, "num_requests": 16,
                     "lengths": {"kind": "fixed", "input_tokens": 512, "output_tokens": 256}},
    })  # fmt: skip
    deployment = warm_deployment(scenario)
    replica, client_s = Replica.of(deployment), deployment.preset.entry_s + deployment.preset.exit_s
    assert simulate(scenario).summary["p50_itl_ms"] == pytest.approx(1e3 * replica.decode_s(16, 512 + 128), rel=0.01)
    alone = scenario.with_overrides({"workload.arrivals.concurrency": 1, "workload.num_requests": 1})
    assert simulate(alone).summary["mean_ttft_ms"] == pytest.approx(1e3 * (client_s + replica.prefill_s(512)), rel=0.01)


def test_the_closed_form_knows_the_experts_that_ranks_share() -> None:
    scenario = Scenario.from_dict({
        "model": "mixtral-8x7b", "cluster": {"topology": "dgx-h100"},
        "deployment": {"data_parallel_size": 4, "enable_expert_parallel": True, "router": "round_robin"},
        "workload": {"arrivals": {"kind": "closed_loop", "concurrency": 32}, "num_requests": 32,
                     "lengths": {"kind": "fixed", "input_tokens": 512, "output_tokens": 256}},
    })  # fmt: skip
    replica = Replica.of(warm_deployment(scenario))
    assert replica.ranks == 4
    assert simulate(scenario).summary["p50_itl_ms"] == pytest.approx(1e3 * replica.decode_s(8, 512 + 128), rel=0.02)


def test_prompts_apart_leave_decoding_its_whole_machine() -> None:
    base = plan_base("llama-3.1-8b", "chat")
    one, apart = (candidate(**changes).scenario(base) for changes in ({}, {"prefill": 1, "decode": 1}))
    workload = one.build_workload()
    alone, parted = screen(one, workload, SLO), screen(apart, workload, SLO)
    replica = Replica.of(warm_deployment(one))
    mean = Mean(float(workload.input_tokens.mean()), float(workload.output_tokens.mean()))
    # a prompt's replica is the bottleneck: it serves as many as fit its time
    assert parted.request_rate == pytest.approx(1 / replica.prompt_share_s(mean))
    assert alone.request_rate < parted.request_rate < 2 * alone.request_rate
    assert parted.latency_alone_s == pytest.approx(alone.latency_alone_s)


def test_a_candidate_is_refused_with_its_reason() -> None:
    base = plan_base("llama-3-70b", "chat")
    workload = candidate(8).scenario(base).build_workload()
    assert "does not fit: n0.g0: 141.1 GB weights" in screen(candidate(1).scenario(base), workload, SLO).reason
    quick = [Objective.parse("tpot.p99=5ms")]
    assert "the TPOT of a mean request is" in screen(candidate(8).scenario(base), workload, quick).reason
    fine = screen(candidate(8).scenario(base), workload, SLO)
    assert fine.reason == ""
    assert 5 < fine.request_rate < 30
    with pytest.raises(InputError, match="attention heads"):
        candidate(3).scenario(base) and screen(candidate(3).scenario(base), workload, SLO)


def choice(usd: float, **changes: Any) -> Choice:
    cost = TokenCost(2.0, 400.0, 3.0, usd, None)
    walls = {"weights_read": 10.0, "collective_latency": 0.0 if changes.get("tensor", 1) == 1 else 2.0}
    metrics = {"p99_ttft_ms": 1000.0, "p99_tpot_ms": 40.0, "walls_ms_per_token": walls}
    return Choice(candidate(**changes), "ranked", cost=cost, metrics=metrics)


def test_the_golden_rule_holds_or_not_and_says_why() -> None:
    one, two = choice(1.0, precision="int4"), choice(2.0, tensor=2)
    told = golden_rule([one, two])
    assert "one card before several holds: one h100-sxm in int4 ($1.00) before two h100-sxm in bf16 ($2.00)" in told
    assert "a token takes 10 GPU-ms less of weights read and 4 GPU-ms less of all-reduce latency" in told
    assert "one card before several is wrong here" in golden_rule([choice(0.5, tensor=2), one])
    unfit = Choice(candidate(), "infeasible", "does not fit: 141.1 GB")
    assert "no single card can do it (does not fit: 141.1 GB)" in golden_rule([unfit, two])
    assert "one node before several holds" in golden_rule([one, choice(3.0, tensor=8, pipeline=2)])
    copies = choice(0.9, precision="int4", data=2)
    assert "one card before several holds: one h100-sxm in int4 ($1.00)" in golden_rule([one, two, copies])
    prices = Prices("2025-06", "a test", {})
    told = "2 copies of one h100-sxm in int4 behind one router carry 2 requests/s, -50% a copy."
    assert told in plan_text([one, copies], prices)
    text = plan_text([one, two, unfit], prices, request_rate=5.0)
    assert text.startswith("Deploy one h100-sxm in int4: $1.00 a million output tokens at 2 requests/s.")
    assert "For 5 requests/s it takes 3 of them (3 GPUs, $9.00 an hour)." in text
    assert with_replicas(one, 4.0) == 2
    assert plan_text([unfit], prices).startswith(
        "Nothing that was tried keeps the SLO.\n  one h100-sxm in bf16: does not fit"
    )


def test_prices_are_the_users_own(tmp_path: Path) -> None:
    shipped = load_prices()
    assert {"h100-sxm", "h200-sxm", "b200-sxm", "a100-sxm-80gb", "l40s"} <= set(shipped.offers)
    assert [offer.gpu for offer in shipped.chosen(["H100", "l40s"])] == ["h100-sxm", "l40s"]
    with pytest.raises(InputError, match="has no price"):
        shipped.chosen(["v100"])
    mine = tmp_path / "mine.yaml"
    mine.write_text("date: 2026-01\nsource: our contract\ngpus:\n  h100: {topology: dgx-h100, price: 1.5 $/h}\n")
    offer = load_prices(mine).offers["h100-sxm"]
    assert (offer.usd_per_h, offer.power_w, offer.idle_power_w) == (1.5, 700.0, None)
    mine.write_text("date: 2026-01\ngpus:\n  h100: {topology: dgx-h100, price: 1.5}\n")
    with pytest.raises(InputError, match=r"gpus\.h100\.price"):
        load_prices(mine)
    for offers, problem in (
        ("{h100: {topolgy: dgx-h100, price: 1 $/h}}", r"mine\.yaml: gpus\.h100\.topolgy: is an unknown key"),
        ("{h100: {topology: dgx-h1000, price: 1 $/h}}", r"mine\.yaml: gpus\.h100\.topology: got 'dgx-h1000'"),
        ("{h100: {topology: dgx-h100, price: -1 $/h}}", r"mine\.yaml: gpus\.h100\.price: got '-1 \$/h'"),
        ("{h1000: {topology: dgx-h100, price: 1 $/h}}", r"mine\.yaml: gpus\.h1000: got 'h1000'"),
        ("{h100: {topology: dgx-h100, price: 1}}", r"gpus\.h100\.price: got 1\.0, a number without a unit"),
        (
            "{h100: {topology: dgx-h100, price: 1 $/h, idle_power: -1 W}}",
            r"gpus\.h100\.idle_power: got '-1 W'\n  .* 700 W",
        ),
        (
            "{h100: {topology: dgx-h100, price: 1 $/h, idle_power: 7 kW}}",
            r"gpus\.h100\.idle_power: got '7 kW'\n  .* 700 W",
        ),
        (
            "{h100: {topology: dgx-h100, price: 1 $/h}, h100-sxm: {topology: dgx-h100, price: 2 $/h}}",
            r"mine\.yaml: gpus\.h100-sxm: is the GPU that h100 names too",
        ),
        ("{}", r"mine\.yaml: gpus: names no GPU"),
    ):
        mine.write_text(f"date: 2026-01\ngpus: {offers}\n")
        with pytest.raises(InputError, match=problem):
            load_prices(mine)
    mine.write_text("")
    with pytest.raises(InputError, match=r"mine\.yaml: is empty\n  it should look like prices\.yaml"):
        load_prices(mine)
    with pytest.raises(InputError, match="--gpus: got 'h1000'"):
        shipped.chosen(["h1000"])
    for wrong in ("chats", str(tmp_path / "absent.yaml")):
        with pytest.raises(InputError, match="--workload"):
            plan_base("llama-3-70b", wrong)
    with pytest.raises(InputError, match="got closed_loop"):
        plan_base("llama-3-70b", "llama3-70b-2xh100-64way")


def test_the_command_answers_and_its_scenarios_hold_when_run_alone(tmp_path: Path) -> None:
    command = ["plan", "--model", "llama-3.1-8b", "--workload", "chat", "--slo", "ttft.p99=2s", "--slo", "tpot.p99=50ms",
               "--gpus", "l40s,h100", "--max-gpus", "1", "--precisions", "bf16", "--out", "out"]  # fmt: skip
    done = twowalls(*command, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["candidates"]
    assert {row["name"] for row in found} == {"h100-sxm-tp1-bf16", "l40s-tp1-bf16"}
    best = found[0]
    assert best["status"] == "ranked"
    assert (
        best["cost"]["usd_per_million_output_tokens"]
        <= (found[1]["cost"] or best["cost"])["usd_per_million_output_tokens"]
    )
    with (tmp_path / "out" / "candidates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [row["name"] for row in found]
    assert all(row["reason"] or row["status"] in ("ranked", "simulated") for row in rows)
    path = str(Path("out") / best["scenario"])
    alone = twowalls(
        "sweep", path, "--set", "workload.seed=7", "--seeds", "2", "--json", "--out", "alone", folder=tmp_path
    )
    assert json.loads(alone.stdout)["points"][0]["statuses"] == {"done": 2}, alone.stdout
