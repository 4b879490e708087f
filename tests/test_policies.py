"""What each batching policy decides, told with iterations of one second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_runs import AffineCost, Run, play, workload

from sim import Scenario, simulate
from sim.engine.policies import POLICIES, find_policy
from sim.engine.policies.ordered import OrderedScheduler
from sim.engine.sequence import Sequence
from sim.errors import InputError

SECOND = AffineCost(1.0, 0.0, 0.0, 0.0)
LONGEST = {"max_model_len": 100, "max_num_batched_tokens": 100}


def story(policy: str, rows: list[tuple[float, int, int]], **more: Any) -> Run:
    """Requests (arrival, prompt tokens, output tokens) under a policy, iterations of one second."""
    options: dict[str, Any] = {"cost": SECOND, "granularity": "step", **LONGEST, **more}
    return play(options.pop("load", None) or workload(rows), POLICIES[policy], **options)


def times(run: Run, name: str) -> list[float]:
    return [round(float(value), 6) for value in run.requests[name]]


def test_static_batch_runs_until_its_longest_is_done() -> None:
    # The third request arrives after the batch was filled, and waits for the longest of it although the first is done.
    run = story("static", [(0, 10, 2), (0, 10, 5), (0.5, 10, 1)], max_num_seqs=4, blocks=100)
    assert times(run, "finish_s") == [2, 5, 6]
    assert times(run, "scheduled_s") == [0, 0, 5]


def test_static_batch_reserves_the_longest_request_for_everyone() -> None:
    # 60 blocks of 4 tokens hold two requests of max_model_len 100 (25 blocks each), however short they are.
    run = story("static", [(0, 10, 3), (0, 10, 3), (0, 10, 3)], max_num_seqs=8, blocks=60)
    assert times(run, "scheduled_s") == [0, 0, 3]
    assert run.steps["used_blocks"].tolist() == [50] * 3 + [25] * 3


def test_static_batch_prefills_whole_prompts_in_as_many_iterations_as_the_budget_asks_for() -> None:
    run = story("static", [(0, 60, 3), (0, 60, 2)], max_num_seqs=8, blocks=100)
    assert run.steps["prefills"].tolist() == [1, 1, 0, 0]
    assert times(run, "first_token_s") == [1, 2]
    assert times(run, "finish_s") == [4, 3]
    assert run.gaps_s.tolist() == [2.0]  # the first one waited for the second prompt


def test_orca_lets_requests_join_and_leave_at_every_iteration() -> None:
    run = story("orca", [(0, 10, 2), (0, 10, 5), (0.5, 10, 1)], max_num_seqs=4, blocks=100)
    assert times(run, "finish_s") == [2, 5, 2]
    assert run.steps["decodes"].tolist() == [0, 2, 1, 1, 1]
    assert run.steps["prefills"].tolist() == [2, 1, 0, 0, 0]


def test_orca_reserves_prompt_and_output_at_admission_and_never_preempts() -> None:
    # 10 + 30 tokens are 10 blocks of 4: 15 blocks hold one request at a time; vllm starts both and has to preempt.
    rows = [(0.0, 10, 30), (0.0, 10, 30)]
    run = story("orca", rows, blocks=15)
    assert times(run, "scheduled_s") == [0, 30]
    assert set(run.steps["used_blocks"].tolist()) == {10}
    assert run.requests["preemptions"].sum() == 0
    assert story("vllm", rows, blocks=15).requests["preemptions"].sum() > 0


def test_a_prompt_stalls_all_decodes_under_prefill_first_and_none_under_vllm() -> None:
    rows = [(0.0, 10, 4), (0.5, 10, 2), (1.5, 10, 1)]
    first = story("prefill_first", rows, blocks=100)
    assert times(first, "first_token_s") == [1, 2, 3]
    assert times(first, "finish_s") == [6, 4, 3]
    assert sorted(first.gaps_s.tolist()) == [2.0, 3.0]  # the second request and the first one waited for prompts
    both = story("vllm", rows, blocks=100)
    assert times(both, "finish_s") == [4, 3, 3]
    assert len(both.gaps_s) == 0


def test_prefill_first_preempts_the_latest_and_recomputes_it() -> None:
    run = story("prefill_first", [(0, 7, 12), (0, 7, 12)], blocks=8)
    assert run.requests["preemptions"].tolist() == [0, 1]
    assert run.requests["generated_tokens"].tolist() == [12, 12]
    assert run.free_blocks == [8]


def test_whole_prompts_must_fit_an_iteration() -> None:
    for policy in ("prefill_first", "orca", "static"):
        with pytest.raises(InputError, match=r"engine.max_num_batched_tokens: got 50, less than the longest"):
            story(policy, [(0, 10, 2)], max_num_batched_tokens=50)


def test_the_shortest_job_goes_first_and_the_mean_wait_shrinks() -> None:
    rows = [(0.0, 10, 8), (0.0, 10, 6), (0.0, 10, 2), (0.0, 10, 4)]
    sjf = story("sjf", rows, max_num_seqs=1, blocks=100)
    assert times(sjf, "scheduled_s") == [12, 6, 0, 2]
    fifo = story("vllm", rows, max_num_seqs=1, blocks=100)
    assert np.mean(sjf.requests["finish_s"]) < np.mean(fifo.requests["finish_s"])
    assert sjf.outcome.end_s == fifo.outcome.end_s == 20


def test_priorities_order_the_queue_and_choose_the_victim() -> None:
    rows = [(0.0, 7, 12), (0.0, 7, 12), (0.0, 7, 12)]
    load = replace(workload(rows), priority=np.array([5, 0, 3]))
    queue = story("priority", rows, load=load, max_num_seqs=1, blocks=100)
    assert times(queue, "scheduled_s") == [24, 0, 12]
    # Two fit at first; the growing one of the lower class is preempted although it was admitted first.
    load = replace(workload([(0.0, 7, 12), (0.5, 7, 12)]), priority=np.array([5, 0]))
    tight = story("priority", [], load=load, blocks=8)
    assert tight.requests["preemptions"].tolist() == [1, 0]


def test_a_busy_tenant_does_not_starve_a_quiet_one() -> None:
    # Ten requests of tenant 0 wait when the first of tenant 1 arrives: from now on they take turns.
    rows = [(0.0, 10, 4)] * 10 + [(0.5, 10, 4), (0.6, 10, 4)]
    load = replace(workload(rows), tenant=np.array([0] * 10 + [1, 1]))
    fair = story("fair_share", rows, load=load, max_num_seqs=1, blocks=100)
    assert times(fair, "scheduled_s")[10:] == [8, 16]
    fifo = story("vllm", rows, load=load, max_num_seqs=1, blocks=100)
    assert times(fifo, "scheduled_s")[10:] == [40, 44]


def test_a_tenant_saves_nothing_up_by_being_silent() -> None:
    # Tenant 1 comes after eleven requests of tenant 0 were served; from then on the two take turns.
    rows = [(0.0, 10, 4)] * 14 + [(40.5, 10, 4)] * 4
    load = replace(workload(rows), tenant=np.array([0] * 14 + [1] * 4))
    fair = story("fair_share", rows, load=load, max_num_seqs=1, blocks=100)
    order = np.argsort(fair.requests["scheduled_s"])[11:]
    assert load.tenant is not None
    assert load.tenant[order].tolist() == [0, 1, 0, 1, 0, 1, 1]


class LongestFirst(OrderedScheduler):
    """The example in the documentation of the policies."""

    def rank(self, seq: Sequence) -> int:
        return -seq.prompt_tokens


def test_a_policy_of_your_own_is_five_lines() -> None:
    run = play(workload([(0, 5, 2), (0, 20, 2), (0, 10, 2)]), LongestFirst, cost=SECOND, max_num_seqs=1, blocks=100)
    assert times(run, "scheduled_s") == [4, 0, 2]


def scenario(**engine: Any) -> Scenario:
    return Scenario.from_dict(
        {
            "model": "llama-3.1-8b",
            "cluster": {"topology": "dgx-h100"},
            "engine": {"preset": "ideal", **engine},
            "workload": {
                "arrivals": {"kind": "burst"},
                "lengths": {"kind": "uniform", "input_tokens": [50, 400], "output_tokens": [5, 60]},
                "num_requests": 60,
            },
        }
    )


def test_a_scenario_names_its_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_policy.py").write_text(
        "from sim.engine.policies.ordered import OrderedScheduler\n\n"
        "class LongestFirst(OrderedScheduler):\n"
        "    def rank(self, seq):\n"
        "        return -seq.prompt_tokens\n"
    )
    monkeypatch.chdir(tmp_path)
    ends = {}
    for name in (*POLICIES, "my_policy:LongestFirst"):
        result = simulate(scenario(scheduler=name, max_num_seqs=8))
        assert result.status == "done"
        assert result.broken_laws == []
        ends[name] = float(np.mean(result.requests["finish_s"]))
    assert ends["vllm"] == ends["chunked"]
    assert ends["orca"] < ends["static"]
    assert ends["sjf"] < ends["vllm"] != ends["my_policy:LongestFirst"]


def test_a_policy_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="did you mean 'static'"):
        find_policy("statik")
    with pytest.raises(InputError, match="no_such_module cannot be imported"):
        find_policy("no_such_module:Policy")
    with pytest.raises(InputError, match="json has no 'Policy'"):
        find_policy("json:Policy")
    with pytest.raises(InputError, match="is no class or function"):
        find_policy("json:__name__")
    with pytest.raises(InputError, match="cannot be called with three arguments"):
        find_policy("json:dumps")


def test_options_that_a_policy_cannot_honour_are_refused() -> None:
    for options, problem in [
        ({"scheduler": "chunked", "enable_chunked_prefill": False}, "chunked with enable_chunked_prefill"),
        ({"scheduler": "orca", "enable_prefix_caching": True}, "cannot be shared"),
        ({"scheduler": "static", "long_prefill_token_threshold": 64}, "never cuts a prompt"),
    ]:
        with pytest.raises(InputError, match=problem):
            scenario(**options)


def test_a_victim_goes_to_the_host_and_comes_back_while_the_others_decode() -> None:
    # Blocks of 1 token: at 12 ms both hold 7 of the 15, and only one of them gets another. The other's 7 blocks take 14 ms
    # out and 21 ms back, although the first request ends, and leaves room, before they are out.
    rows = [(0.0, 5, 6), (0.0, 5, 6)]
    cost = AffineCost(0.004, 0.0, 0.0, 0.0)
    swap = play(workload(rows), cost=cost, blocks=15, block_size=1, host_blocks=100, **LONGEST)
    assert swap.requests["preemptions"].tolist() == [0, 1]
    assert swap.requests["generated_tokens"].tolist() == [6, 6]
    back_s = 0.012 + 7 * (2e-3 + 3e-3)
    assert times(swap, "finish_s") == [0.024, round(back_s + 3 * 0.004, 6)]
    assert swap.steps["prefills"].sum() == 2  # nothing is computed again
    recompute = play(workload(rows), cost=cost, blocks=15, block_size=1, host_blocks=0, **LONGEST)
    assert recompute.steps["prefills"].sum() == 3
    assert swap.free_blocks == recompute.free_blocks == [15]


def test_swapping_in_a_scenario_uses_the_pcie_edges_of_the_topology() -> None:
    base = scenario(num_gpu_blocks_override=60, max_num_seqs=32)
    swap, recompute = simulate(base.with_overrides({"engine.on_kv_full": "swap"})), simulate(base)
    for result in (swap, recompute):
        assert result.status == "done"
        assert result.broken_laws == []
        assert result.preemptions > 0
    assert swap.steps["prefill_tokens"].sum() < recompute.steps["prefill_tokens"].sum()
    nothing = simulate(base.with_overrides({"engine.on_kv_full": "swap", "engine.swap_space": 0}))
    assert nothing.requests["finish_s"].tolist() == recompute.requests["finish_s"].tolist()
    with pytest.raises(InputError, match="on_kv_full swap with scheduler static"):
        scenario(scheduler="static", on_kv_full="swap")
