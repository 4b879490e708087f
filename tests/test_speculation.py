"""Speculative decoding: how far a sequence advances, what an iteration costs, and that nothing is lost."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from small_scenarios import changed

from sim.cost.speculation import SpeculativeCost
from sim.engine.deployment import Deployment
from sim.engine.speculation import Acceptance, HeldBlocks
from sim.errors import InputError
from sim.results.result import Result
from sim.scenario import Scenario
from sim.scenario.speculative import Speculative
from sim.simulate import prepare, simulate

EXACT = 1e-9
NEVER = {"num_speculative_tokens": 3, "acceptance_rate": 0.0, "draft_cost": 0.0}
ALWAYS = {"num_speculative_tokens": 3, "acceptance_rate": 1.0, "draft_cost": 0.0}
USUAL = {"num_speculative_tokens": 3, "acceptance_rate": 0.7, "draft_cost": 0.05}
MIXED = {
    "arrivals": {"kind": "poisson", "request_rate": 20.0},
    "lengths": {"kind": "lognormal", "input_mean": 300, "input_cv": 1.0, "output_mean": 60, "output_cv": 1.0,
                "max_tokens": 2000},
    "num_requests": 60,
}  # fmt: skip


def scenario(speculative: dict[str, Any] | None = None, **changes: Any) -> Scenario:
    content: dict[str, Any] = {
        "model": "llama-3.1-8b",
        "cluster": {"topology": "dgx-h100"},
        "engine": {"max_num_seqs": 64, "max_num_batched_tokens": 2048, "speculative": speculative},
        "workload": MIXED,
    }
    return changed(content, changes)


def lone(speculative: dict[str, Any] | None, output_tokens: int = 9) -> Scenario:
    fixed = {"kind": "fixed", "input_tokens": 128, "output_tokens": output_tokens}
    load = {"arrivals": {"kind": "burst"}, "lengths": fixed, "num_requests": 1}
    return scenario(speculative, workload=load, engine={"async_scheduling": False} if speculative is None else {})


def run(asked: Scenario) -> Result:
    found = simulate(asked)
    assert found.broken_laws == []
    return found


# --- how far --------------------------------------------------------------------------------------------------------------


def test_a_rate_gives_the_lengths_of_leviathan() -> None:
    asked = Speculative.model_validate({"num_speculative_tokens": 4, "acceptance_rate": 0.8, "draft_cost": 0.0})
    assert sum(asked.lengths) == pytest.approx(1.0)
    mean = sum((n + 1) * p for n, p in enumerate(asked.lengths))
    assert mean == pytest.approx((1 - 0.8**5) / (1 - 0.8))


def test_draws_follow_their_probabilities() -> None:
    lengths = [0.2, 0.5, 0.3]
    acceptance = Acceptance(lengths, Random(1))
    drawn = np.bincount([acceptance.draw() for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(drawn, [0, *lengths], atol=0.012)
    assert {Acceptance([0.0, 0.0, 1.0], Random(1)).draw() for _ in range(50)} == {3}


def test_all_accepted_needs_a_quarter_of_the_iterations() -> None:
    """After the first token eight are left: two verifications of four, or eight of one."""
    always, never = run(lone(ALWAYS)), run(lone(NEVER))
    assert always.steps["sampled"].tolist() == [1, 4, 4]
    assert never.steps["sampled"].tolist() == [1] * 9
    assert always.steps["extra_tokens"].tolist() == [0, 3, 3]
    ends = run(lone(ALWAYS, output_tokens=7))
    assert ends.steps["sampled"].tolist() == [1, 4, 2]  # it never gets more than it asked for


def test_itl_counts_what_comes_together_once_and_tpot_every_token() -> None:
    """As vLLM's benchmark: tokens of one verification are one message, so ITL is an iteration and TPOT a share of it."""
    found = run(lone(ALWAYS))
    iterations_ms = found.steps["first_s"][1:] * 1e3
    assert found.summary["mean_itl_ms"] == pytest.approx(iterations_ms.mean())
    assert found.summary["mean_tpot_ms"] == pytest.approx(iterations_ms.sum() / 8)


def test_the_mean_of_a_run_is_that_of_the_distribution() -> None:
    found = run(scenario(USUAL, workload={"num_requests": 300}))
    decodes, extra = found.steps["decodes"].sum(), found.steps["extra_tokens"].sum()
    assert 1 + extra / decodes == pytest.approx((1 - 0.7**4) / 0.3, rel=0.03)


# --- what it costs ----------------------------------------------------------------------------------------------------------


def test_an_iteration_by_hand() -> None:
    cost, plain = Deployment.of(lone(USUAL)).cost(0), Deployment.of(lone(None)).cost(0)
    assert isinstance(cost, SpeculativeCost)
    found = run(lone(USUAL))
    once_s = plain.token_s[1] + plain.sampled_s[1] + plain.decode_fixed_s[1]  # type: ignore[union-attr]
    slope_s = plain.full_slope_s[1]  # type: ignore[union-attr]
    draft_s = 0.05 * (3 * once_s + slope_s * (129 + 130 + 131))
    verify_s = cost.token_s[4] + cost.sampled_s[4] + cost.decode_fixed_s[1] + cost.full_slope_s[1] * 129
    assert found.steps["first_s"][1] == pytest.approx(verify_s + draft_s + cost.host_s[1], rel=EXACT)
    # attention reads the cache once for four tokens and multiplies four times
    assert slope_s <= cost.full_slope_s[1] < 4 * slope_s


def test_without_drafts_that_cost_or_are_accepted_it_is_a_slower_plain_run() -> None:
    plain, never = run(lone(None)), run(lone(NEVER))
    assert never.steps["first_s"][0] == pytest.approx(plain.steps["first_s"][0])
    slower = never.steps["first_s"][1:].sum() / (plain.steps["first_s"] * plain.steps["iterations"])[1:].sum()
    assert 1.0 < slower < 1.1


def test_a_draft_model_costs_its_own_iterations() -> None:
    asked = {"num_speculative_tokens": 3, "acceptance_rate": 0.7, "draft_model": "llama-3.2-1b"}
    found = run(scenario(asked, model="llama-3.1-70b", deployment={"tensor_parallel_size": 4}))
    free = run(
        scenario(ALWAYS | {"acceptance_rate": 0.7}, model="llama-3.1-70b", deployment={"tensor_parallel_size": 4})
    )
    assert found.walls_ms_per_token["draft"] > 1.0
    assert free.walls_ms_per_token["draft"] == 0.0
    assert found.summary["median_tpot_ms"] > free.summary["median_tpot_ms"]


def test_a_draft_model_takes_room_from_the_kv_cache() -> None:
    big = {"model": "llama-3.1-70b", "deployment": {"tensor_parallel_size": 4}}
    asked = {"num_speculative_tokens": 3, "acceptance_rate": 0.7, "draft_model": "llama-3.2-1b"}
    free, held = (run(scenario(s, **big)).ledger.num_blocks for s in (USUAL, asked))
    # 2.5 GB of weights over four GPUs, and 32 KiB of KV a token beside 320
    assert held / free == pytest.approx(320 / 352, rel=0.03)


def test_the_notes_say_what_it_was_worth() -> None:
    notes = run(lone(ALWAYS, 101)).notes
    line = next(note for note in notes if note.startswith("speculation"))
    assert line.startswith("speculation: 4.00 tokens a verification of 4, 3.")
    assert not any(note.startswith("speculation") for note in run(lone(None)).notes)


def test_few_users_gain_and_a_full_gpu_does_not() -> None:
    """At batch 1 the weights are read once for several tokens; at 256 the tensor cores are busy already."""
    fixed = {"kind": "fixed", "input_tokens": 64, "output_tokens": 100}
    gains = []
    for users in (1, 256):
        load = {"arrivals": {"kind": "closed_loop", "concurrency": users}, "lengths": fixed, "num_requests": 2 * users}
        roomy = {"max_num_seqs": 256, "async_scheduling": False}
        tpots = [
            run(scenario(s, workload=load, engine=roomy)).summary["mean_tpot_ms"] for s in (None, USUAL)
        ]  # fmt: skip
        gains.append(tpots[0] / tpots[1])
    assert gains[0] > 1.8
    assert gains[1] < 0.85 * gains[0]


def test_better_guesses_are_never_slower() -> None:
    times = [run(lone(USUAL | {"acceptance_rate": rate}, 200)).summary["mean_e2el_ms"] for rate in (0.0, 0.5, 0.8, 1.0)]
    assert times == sorted(times, reverse=True)


# --- nothing is lost ----------------------------------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "usual": {},
    "preemption": {"engine": {"num_gpu_blocks_override": 150}, "workload": {"arrivals": {"kind": "burst"}}},
    "small chunks": {"engine": {"max_num_batched_tokens": 256}},
    "prefix cache": {"engine": {"enable_prefix_caching": True}, "workload": {"shared_prefix": {"tokens": 256}}},
    "sliding windows": {"model": "gpt-oss-20b"},
    "two GPUs, two replicas": {"deployment": {"tensor_parallel_size": 2, "data_parallel_size": 2}},
    "the host launches every kernel": {"engine": {"cuda_graphs": False}, "model": "llama-3.2-1b"},
    "whole prompts": {"engine": {"enable_chunked_prefill": False}},
    "experts": {"model": "mixtral-8x7b", "deployment": {"tensor_parallel_size": 2, "enable_expert_parallel": True}},
    "closed loop": {"workload": {"arrivals": {"kind": "closed_loop", "concurrency": 7}}},
}


@pytest.mark.parametrize("case", CASES)
def test_every_law_holds(case: str) -> None:
    asked = scenario(USUAL, **CASES[case])
    begun = prepare(asked)
    found = begun.result(begun.cluster.run())
    assert found.broken_laws == []
    assert found.status == "done"
    assert (found.preemptions > 0) == (case == "preemption")
    for replica in begun.fleet.replicas:
        assert replica.scheduler.pool.free == replica.scheduler.pool.usable_blocks


@pytest.mark.parametrize("cut_s", [0.31, 0.5, 1.234])
def test_a_run_that_is_cut_has_whole_tokens(cut_s: float) -> None:
    found = run(scenario(USUAL, workload={"time_limit": f"{cut_s} s"}))
    assert found.status == "timed_out"


def test_it_is_the_same_run_every_time_and_at_every_granularity() -> None:
    one = run(scenario(USUAL))
    for granularity in ("leap", "step", "layer"):
        other = run(scenario(USUAL).with_overrides({"granularity": granularity}))
        assert other.requests["finish_s"].tobytes() == one.requests["finish_s"].tobytes()
    assert (
        run(scenario(USUAL, workload={"seed": 1})).requests["finish_s"].tobytes() != one.requests["finish_s"].tobytes()
    )


def test_a_rejected_token_keeps_its_block() -> None:
    pool = HeldBlocks(10, 16)
    seq: Any = object()
    pool.take(seq, 3)
    assert (pool.held(seq), pool.free) == (3, 7)
    pool.release(seq)
    pool.release(seq)
    assert (pool.held(seq), pool.free) == (0, 10)


# --- what makes no sense ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"acceptance_rate": None}, "got neither acceptance_rate nor acceptance_lengths"),
        ({"acceptance_lengths": [0.5, 0.5, 0, 0]}, "got both acceptance_rate and acceptance_lengths"),
        ({"acceptance_rate": None, "acceptance_lengths": [0.5, 0.5]}, "2 entries for 3"),
        ({"acceptance_rate": None, "acceptance_lengths": [0.5, 0.5, 0.5, 0.5]}, "sum to 2"),
        ({"draft_cost": None}, "got neither draft_model nor draft_cost"),
        ({"num_speculative_tokens": 64}, "cannot hold"),
    ],
)
def test_wrong_sections_are_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        scenario(USUAL | change)


@pytest.mark.parametrize(
    "change",
    [
        {"engine": {"scheduler": "orca"}},
        {"engine": {"async_scheduling": True}},
        {"engine": {"on_kv_full": "oom"}},
        {"deployment": {"pipeline_parallel_size": 2}},
        {"deployment": {"pools": [{"name": "p", "role": "prefill"}, {"name": "d", "role": "decode"}]}},
    ],
)
def test_what_cannot_speculate_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"specul"):
        simulate(scenario(USUAL, **change))
