from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.random_cases import random_case
from reference.replay import drive, replay
from reference.scheduler import VERSIONS, ReferenceScheduler
from reference.trace import Case, Config, Record, Request, expand, first_difference, load_case

RECORDED = Path(__file__).resolve().parents[2] / "shared" / "data" / "vllm_scheduler"
TRACES = sorted(RECORDED.glob("dev_*.jsonl")) + sorted(RECORDED.glob("async/dev_*.jsonl"))


@pytest.mark.skipif(not TRACES, reason="the recorded decisions of vLLM's scheduler are not here")
@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_replays_the_recorded_decisions_of_vllm_without_one_difference(path: Path) -> None:
    case = load_case(path)
    assert replay(case, check_every=1 if len(case.records) < 1000 else 50) is None


def run(case: Case) -> list[Record]:
    """The records of a case, with the invariants asserted after every iteration."""
    scheduler = ReferenceScheduler(case.config)
    records, _ = drive(scheduler, case, scheduler.check)
    return records


def story(config: Config, *requests: tuple[int, str, int, int]) -> list[Record]:
    """Run requests given as (arrival, name of the prompt's text, prompt_len, max_tokens), numbered in order."""
    return run(
        Case(
            "story",
            config,
            tuple(
                Request(number, arrival, prompt_len, max_tokens, (("s", text, prompt_len),))
                for number, (arrival, text, prompt_len, max_tokens) in enumerate(requests)
            ),
        )
    )


ROOMY = Config(max_num_seqs=8, max_num_batched_tokens=64, block_size=4, num_gpu_blocks=101, max_model_len=100)


def test_compact_ids_keep_their_order() -> None:
    assert expand("7") == [7]
    assert expand("3-5,0,9-10") == [3, 4, 5, 0, 9, 10]


def test_a_lone_long_prompt_ignores_the_chunk_threshold_since_0_33() -> None:
    for version, chunks in [("0.33.0", [(0, 0, 20)]), ("0.24.0", [(0, 0, 8), (0, 8, 8), (0, 16, 4)])]:
        config = dataclasses.replace(ROOMY, long_prefill_token_threshold=8, version=version)
        records = story(config, (0, "a", 20, 1))
        assert [chunk for record in records for chunk in record.p] == chunks


def test_without_chunked_prefill_0_11_steps_over_long_prompts_and_puts_them_back_in_reverse() -> None:
    prompts = [(0, "a", 8, 1), (0, "b", 5, 1), (0, "c", 6, 1), (0, "d", 2, 1)]
    config = dataclasses.replace(ROOMY, max_num_batched_tokens=10, enable_chunked_prefill=False)
    old = story(dataclasses.replace(config, version="0.11.0"), *prompts)
    assert [[request for request, _, _ in record.adm] for record in old] == [[0, 3], [2], [1]]
    new = story(dataclasses.replace(config, version="0.14.1"), *prompts)
    assert [[request for request, _, _ in record.adm] for record in new] == [[0], [1], [2, 3]]


def test_blocks_without_a_key_are_reused_before_cached_ones_since_0_24() -> None:
    # Each prompt of 5 leaves one cached block and one without a key; the third request takes a single block. It used to
    # be the least recently freed one, which held the first prompt.
    config = dataclasses.replace(ROOMY, num_gpu_blocks=4, max_model_len=12)
    for version, cached_tokens in [("0.24.0", 4), ("0.18.1", 0)]:
        records = story(
            dataclasses.replace(config, version=version), (0, "a", 5, 1), (1, "b", 5, 1), (2, "c", 3, 1), (3, "a", 5, 1)
        )
        assert records[-1].adm == [(3, cached_tokens, "new")]


def test_a_victim_whose_last_token_is_in_flight_ends_in_the_waiting_queue() -> None:
    config = dataclasses.replace(ROOMY, num_gpu_blocks=3, max_model_len=9, async_scheduling=True)
    records = story(config, (0, "a", 4, 3), (0, "b", 4, 1))
    assert records[0] == Record(i=0, add=[0, 1], adm=[(0, 0, "new"), (1, 0, "new")], p=[(0, 0, 4), (1, 0, 4)], run=2)
    # The first request needs the second block. The token that ends the other one arrives after that decision.
    assert records[1] == Record(i=1, d=[0], pre=[1], run=1, wait=1, free=0, fin=[1], free_end=0)
    assert records[2] == Record(i=2, d=[0], run=1, wait=0, free=0, free_end=0)
    # All three tokens are on their way: nothing to schedule, and the blocks are free one iteration late.
    assert records[3] == Record(i=3, run=1, wait=0, free=0, fin=[0], free_end=2)


@given(st.integers(0, 2**32))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_invariants_hold_and_every_finished_request_has_all_its_tokens(seed: int) -> None:
    case = random_case(seed)
    scheduler = ReferenceScheduler(case.config)
    records, status = drive(scheduler, case, scheduler.check)
    for request in case.requests:
        result = scheduler.results().get(request.id)
        if result is not None and result.end == "FINISHED_LENGTH_CAPPED":
            assert result.n_out == min(request.max_tokens, case.config.max_model_len - request.prompt_len)
    finished = [request for record in records for request in record.fin]
    assert len(set(finished)) == len(finished)
    if status == "complete":
        assert sorted(finished) == [request.id for request in case.requests]
        assert records[-1].free_end == case.config.usable_blocks
    for record in records:
        assert sum(count for _, _, count in record.p) + len(record.d) <= case.config.max_num_batched_tokens


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_gate_and_watermark_do_not_exist_up_to_0_18(seed: int) -> None:
    old = run(random_case(seed, version="0.18.1"))
    for gate in (False, True):
        other = run(random_case(seed, version="0.18.1", scheduler_reserve_full_isl=gate, watermark=0.3))
        assert first_difference(old, other) is None


def test_random_cases_reach_the_corners() -> None:
    seen: Counter[str] = Counter()
    for seed in range(300):
        case = random_case(seed)
        scheduler = ReferenceScheduler(case.config)
        records, status = drive(scheduler, case)
        seen[status] += 1
        seen[case.config.version] += 1
        queued: set[int] = set()
        for record in records:
            queued = (queued | set(record.pre)) - {request for request, _, _ in record.adm}
            seen["ended in the queue"] += len(queued & set(record.fin))
            seen["several victims"] += len(record.pre) > 1
            seen["resumed from the cache"] += any(cached and kind == "res" for _, cached, kind in record.adm)
            seen["new with a hit"] += any(cached and kind == "new" for _, cached, kind in record.adm)
            seen["nothing scheduled"] += not (record.p or record.d)
    corners = ["ended in the queue", "several victims", "resumed from the cache", "new with a hit", "nothing scheduled"]
    for corner in [*corners, "complete", "stuck", "max_iters", *VERSIONS]:
        assert seen[corner] >= 3, corner


def test_a_replay_notices_any_changed_field() -> None:
    scheduler = ReferenceScheduler(random_case(1).config)
    records, status = drive(scheduler, random_case(1))
    case = dataclasses.replace(random_case(1), records=tuple(records), status=status, results=scheduler.results())
    assert replay(case) is None
    changes = {"i": 999, "adm": [(99, 0, "new")], "run": 99, "wait": 99, "free": 99, "free_end": 99}
    changes |= {name: [99] for name in ("add", "p", "d", "pre", "fin")}
    for name, value in changes.items():
        changed = [*records[:-1], dataclasses.replace(records[-1], **{name: value})]
        difference = replay(dataclasses.replace(case, records=tuple(changed)))
        assert difference is not None
        assert f": {name} should be" in difference
    assert replay(dataclasses.replace(case, records=tuple(records[:-1]))) is not None
    assert replay(dataclasses.replace(case, status="another")) is not None
    assert replay(dataclasses.replace(case, results={**case.results, 0: dataclasses.replace(case.results[0], n_out=0)}))


def test_asynchronous_scheduling_of_an_engine_nobody_checked_is_refused() -> None:
    with pytest.raises(ValueError, match=r"never checked in 0\.11\.0"):
        ReferenceScheduler(dataclasses.replace(ROOMY, version="0.11.0", async_scheduling=True))
