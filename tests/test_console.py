"""What a person reads: vLLM's table to the letter, then memory, walls and the verdict."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import ledger, make_result, two_users
from small_engine import busy_engine

from sim.results.assertions import Verified, measure, verify
from sim.results.console import benchmark_table, memory_answer, render, self_checks_line, walls_table
from sim.results.result import Result
from sim.results.verdict import load_state, verdict
from sim.scenario.assertion import Assertion

TABLE = """\
============ Serving Benchmark Result ============
Successful requests:                     2         
Failed requests:                         0         
Request rate configured (RPS):           0.80      
Benchmark duration (s):                  3.75      
Total input tokens:                      20        
Total generated tokens:                  8         
Request throughput (req/s):              0.53      
Request goodput (req/s):                 0.27      
Output token throughput (tok/s):         2.13      
Peak output token throughput (tok/s):    5.00      
Peak concurrent requests:                2.00      
Total token throughput (tok/s):          7.47      
---------------Time to First Token----------------
Mean TTFT (ms):                          1375.00   
Median TTFT (ms):                        1375.00   
P99 TTFT (ms):                           1742.50   
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          468.75    
Median TPOT (ms):                        468.75    
P99 TPOT (ms):                           560.62    
---------------Inter-token Latency----------------
Mean ITL (ms):                           500.00    
Median ITL (ms):                         500.00    
P99 ITL (ms):                            975.00    
----------------End-to-end Latency----------------
Mean E2EL (ms):                          2875.00   
Median E2EL (ms):                        2875.00   
P99 E2EL (ms):                           3242.50   
=================================================="""  # noqa: W291  (vLLM pads its values)


def test_the_table_is_vllms_to_the_letter() -> None:
    assert benchmark_table(two_users().summary) == TABLE


def test_a_closed_loop_names_its_users_and_has_no_rate() -> None:
    lines = benchmark_table(busy_engine(concurrency=6).summary).splitlines()
    assert "Maximum request concurrency:             6         " in lines
    assert not any(line.startswith("Request rate") for line in lines)


def test_nothing_measured_reads_as_such() -> None:
    request = {"first_token_s": float("nan"), "finish_s": float("nan"), "output_tokens": 9, "status": 2}
    assert "Mean TTFT (ms):                          n/a       " in benchmark_table(
        make_result([request], [], simulated_seconds=2.0).summary
    )


def test_every_line_fits_a_page_and_holds_no_control_characters() -> None:
    result = busy_engine(blocks=16)
    result.ledger = ledger()
    result.notes = ["kernel fits of the H100 stand in for the H800"]
    text = render(result, [Verified("ttft.p99 < 1 s", False, 2.5)])
    assert all(character == "\n" or character.isprintable() for character in text)
    assert max(len(line) for line in text.splitlines()) <= 130
    assert "FAILS: ttft.p99 < 1 s (measured 2.5)" in text
    assert "Notes" in text


def test_gpus_alike_share_a_line() -> None:
    text = memory_answer(ledger(gpus=8), ledger())
    assert "n0.g0 .. n0.g7 (8)     85.04   80.79    70.56         1.41      3.88     4.94" in text
    assert "It fits." in text


def test_walls_add_up_and_have_bars() -> None:
    lines = walls_table({"weights_read": 12.0, "queue": 0.0, "kv_read": 4.0}).splitlines()
    assert lines[0] == "Where a token's milliseconds go (16.00 ms of a mean output token)"
    assert lines[1].split() == ["weights", "read", "12.000", "ms", "75.0%", "#" * 30]
    assert not any("queue" in line for line in lines)
    assert lines[2].endswith("#" * 10)


def test_self_checks_say_what_is_broken() -> None:
    good = {"name": "Little's law", "held": True, "detail": ""}
    bad = {"name": "tokens conserved", "held": False, "detail": "8 asked = 7 generated"}
    assert self_checks_line([good]) == "Self-checks: 1 of 1 hold (Little's law)"
    assert self_checks_line([good, bad]) == "Self-checks BROKEN: tokens conserved (8 asked = 7 generated)"


@pytest.mark.parametrize(
    ("gap_s", "state"), [(1.5, "stable"), (0.1, "overloaded"), (0.25, "overloaded")], ids=["idle", "flooded", "over"]
)
def test_an_open_loop_is_stable_or_overloaded(gap_s: float, state: str) -> None:
    assert load_state(busy_engine(120, gap_s=gap_s, blocks=40)) == state


def test_a_burst_is_backlogged_and_a_closed_loop_is_closed() -> None:
    assert load_state(busy_engine(40, gap_s=0.0)) == "backlogged"
    assert load_state(busy_engine(concurrency=6)) == "closed"


def _text(result: Result) -> str:
    return " ".join(verdict(result))


def test_the_verdict_of_a_full_closed_loop() -> None:
    result = busy_engine(blocks=16, concurrency=6)
    result.ledger = ledger()
    text = _text(result)
    assert "The model fits on 2 GPUs: 141.1 GB of weights" in text
    assert "Of 6 users" in text
    assert f"{result.preemptions:,} preemptions hit" in text
    assert "Decoding hits the memory wall (HBM bandwidth) first: 15.00 of 17.00 ms a token (88%)" in text
    assert "What would move it: weights in fewer bits" in text


def test_overload_is_said_aloud() -> None:
    assert "OVERLOADED" in _text(busy_engine(120, gap_s=0.1, blocks=40))
    assert "The load is stable" in _text(busy_engine(120, gap_s=1.5, blocks=40))


def test_out_of_memory_names_time_gpu_request_and_bytes() -> None:
    result = busy_engine(20)
    result.status = "oom"
    result.oom = {
        "time_s": 7.25, "gpu": "n0.g1", "request": 17, "kv_tokens": 31_000, "needed_bytes": 5.24e6, "free_bytes": 0.0,
    }  # fmt: skip
    assert verdict(result)[0] == (
        "Out of memory at 7.25 s on n0.g1: request 17 needed 5.24 MB more of KV cache with 0 B free (31,000 tokens held)."
    )


def test_assertions_are_held_against_the_run() -> None:
    lines = [
        "ttft.p99 < 10 min",
        "tpot.median <= 100 ms",
        "output_throughput >= 2 tok/s",
        "itl.max == 1 s",
        "slo_attainment > 60 %",
    ]
    verified = verify([Assertion.parse(line) for line in lines], two_users())
    assert [line.held for line in verified] == [True, False, True, True, False]
    assert verified[0].actual == pytest.approx(1.7425)
    assert verified[3].actual == 1.0


def test_what_was_not_measured_does_not_hold() -> None:
    empty = make_result([], [], simulated_seconds=1.0)
    verified = verify([Assertion.parse("ttft.p99 < 10 min"), Assertion.parse("kv_usage.max < 90 %")], empty)
    assert [(line.held, line.actual) for line in verified] == [(False, None), (False, None)]


def test_metrics_over_time_are_weighted_by_time() -> None:
    result = two_users()  # running: 1 for 2.5 s, 2 for 1.25 s
    result.kv_blocks = 4
    assert measure(result, "running.mean") == pytest.approx((2.5 + 2 * 1.25) / 3.75)
    assert measure(result, "running.p50") == 1.0
    assert measure(result, "running.max") == 2.0
    assert measure(result, "kv_usage.max") == 0.5
    assert measure(result, "waiting.mean") == pytest.approx(0.75 / 3.75)  # the second, from 1.25 s to 2.0 s


@settings(derandomize=True, max_examples=20, deadline=None)
@given(
    statistic=st.sampled_from(["mean", "std", "min", "max", "p10", "p99.9"]),
    metric=st.sampled_from(["ttft", "itl", "running"]),
)
def test_statistics_keep_their_order(statistic: str, metric: str) -> None:
    result = busy_engine(30, blocks=40)
    value, low, high = (measure(result, f"{metric}.{name}") for name in (statistic, "min", "max"))
    assert value is not None
    assert low is not None
    assert high is not None
    assert (0 if statistic == "std" else low) <= value <= high
