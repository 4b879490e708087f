"""How much of real prompts a prefix cache finds."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_runs import AffineCost, play

from sim.workload.prompts import HashedPrompts
from sim.workload.traces import read_trace
from sim.workload.workload import Workload

MOONCAKE = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces" / "mooncake"
BLOCK_TOKENS = 256
pytestmark = pytest.mark.skipif(not MOONCAKE.exists(), reason="the Mooncake traces are not here")


@pytest.mark.parametrize(("name", "percent"), [("conversation", 37.4), ("synthetic", 65.1)])
def test_an_infinite_cache_finds_the_published_share_of_the_mooncake_prompts(name: str, percent: float) -> None:
    trace = read_trace(MOONCAKE / f"{name}_trace.jsonl")
    prompts = trace.prompts
    assert isinstance(prompts, HashedPrompts)
    load = Workload(trace.input_tokens, trace.output_tokens, trace.arrival_s, prompts=prompts)
    blocks = int(((load.input_tokens + load.output_tokens) // BLOCK_TOKENS + 1).sum())
    run = play(
        load, blocks=blocks, block_size=BLOCK_TOKENS, cost=AffineCost(1e-3, 0.0, 0.0, 0.0), caching=True,
        content=lambda row: prompts.content(row, BLOCK_TOKENS), max_num_seqs=len(load),
    )  # fmt: skip
    found = run.requests["cached_tokens"].sum() / run.requests["input_tokens"].sum()
    assert 100 * found == pytest.approx(percent, abs=0.06)
    assert (run.requests["cached_tokens"] < run.requests["input_tokens"]).all()  # at least one token is computed
    assert run.free_blocks == [blocks]


def test_a_smaller_cache_finds_less() -> None:
    trace = read_trace(MOONCAKE / "synthetic_trace.jsonl", max_requests=600)
    prompts = trace.prompts
    assert isinstance(prompts, HashedPrompts)
    load = Workload(trace.input_tokens, trace.output_tokens, trace.arrival_s, prompts=prompts)
    found = []
    for blocks in (1_000, 3_000, 10_000, 30_000):
        run = play(
            load, blocks=blocks, block_size=BLOCK_TOKENS, cost=AffineCost(1e-3, 1e-6, 0.0, 0.0), caching=True,
            content=lambda row: prompts.content(row, BLOCK_TOKENS), max_num_seqs=len(load),
        )  # fmt: skip
        assert (run.requests["status"] == 0).all()
        found.append(float(run.requests["cached_tokens"].sum()))
    assert found == sorted(found)
    assert found[-1] > 1.3 * found[0]
