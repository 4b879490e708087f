"""A fleet cut into shards gives the result of one process, to the last digit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_cli import twowalls

from sim.errors import InputError
from sim.results import export
from sim.scenario import Scenario
from sim.simulate import simulate
from sim.studies.executor import open_workers
from sim.studies.shards import simulate_in_shards

LOGNORMAL = {
    "kind": "lognormal",
    "input_mean": 400,
    "input_cv": 1.0,
    "output_mean": 80,
    "output_cv": 0.8,
    "max_tokens": 3000,
}


def fleet(replicas: int = 5, router: str = "round_robin", **changes: Any) -> Scenario:
    data: dict[str, Any] = {
        "name": "fleet",
        "model": "llama-3.1-8b",
        "cluster": {"topology": "dgx-h100"},
        "deployment": {"data_parallel_size": replicas, "router": router},
        "workload": {
            "arrivals": {"kind": "poisson", "request_rate": 60.0},
            "lengths": LOGNORMAL,
            "num_requests": 600,
        },
    }
    return Scenario.from_dict(data).with_overrides(changes)


CHATS = {
    "workload.sessions": {"turns": [1, 6], "pause": "2 s", "pause_cv": 1.0},
    "workload.arrivals": {"kind": "poisson", "request_rate": 15.0},
    "engine.enable_prefix_caching": True,
}
CASES: dict[str, tuple[Scenario, int]] = {
    "round robin": (fleet(), 2),
    "random": (fleet(router="random"), 3),
    "a shard a replica": (fleet(3), 8),
    "all at once": (
        fleet(4, **{"workload.arrivals": {"kind": "burst"},
                    "workload.lengths": {"kind": "fixed", "input_tokens": 200, "output_tokens": 50}}),
        2,
    ),
    "on the beat": (fleet(4, **{"workload.arrivals": {"kind": "constant", "request_rate": 50}}), 3),
    "preempting": (fleet(2, **{"engine.num_gpu_blocks_override": 400}), 2),
    "tensor parallel": (fleet(4, **{"deployment.tensor_parallel_size": 2}), 2),
    "pipelines": (fleet(2, **{"deployment.pipeline_parallel_size": 2}), 2),
    "step by step": (fleet(3, **{"granularity": "step", "workload.num_requests": 100}), 2),
    "by the hash of a request": (fleet(4, router="session_hash"), 3),
    "conversations": (fleet(4, router="session_hash", **CHATS), 3),
    "conversations that grow too long": (fleet(3, router="session_hash", **CHATS, **{"engine.max_model_len": 1500}), 2),
    "too long for any": (fleet(3, **{"engine.max_model_len": 1000}), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_shards_merge_to_the_single_run(name: str) -> None:
    scenario, shards = CASES[name]
    alone = simulate(scenario)
    with open_workers(count=2) as workers:
        merged = simulate_in_shards(scenario, workers, shards)
    assert export.to_json(export.record(merged)) == export.to_json(export.record(alone))
    for one, other in ((merged.requests, alone.requests), (merged.steps, alone.steps)):
        assert list(one) == list(other)
        for column in one:
            assert one[column].dtype == other[column].dtype
            np.testing.assert_array_equal(one[column], other[column], err_msg=column)
    np.testing.assert_array_equal(merged.irregular_gaps_s, alone.irregular_gaps_s)
    assert merged.broken_laws == []


@pytest.mark.parametrize(
    ("scenario", "problem"),
    [
        (fleet(1), "a single replica"),
        (fleet(router="least_outstanding"), "looks at the replicas"),
        (fleet(**{"workload.arrivals": {"kind": "closed_loop", "concurrency": 8}}), "a closed loop"),
        (fleet(**CHATS), "conversations whose turns go to any replica"),
        (fleet(**{"workload.time_limit": "5 s"}), "cut short"),
        (fleet(**{"engine.enable_chunked_prefill": False, "engine.max_num_batched_tokens": 256}), "got 256 without"),
    ],
)
def test_what_cannot_be_cut_is_refused(scenario: Scenario, problem: str) -> None:
    with open_workers(count=1) as workers, pytest.raises(InputError, match=problem):
        simulate_in_shards(scenario, workers)


def test_the_command_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(fleet(3).to_dict()))
    for folder, shards in (("alone", []), ("shards", ["--shards", "2"])):
        done = twowalls("run", "fleet.yaml", "--out", folder, *shards, folder=tmp_path)
        assert done.returncode == 0, done.stderr
    for name in ("summary.json", "answer.txt", "requests.parquet", "steps.parquet"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "shards" / name).read_bytes(), name
