"""How long a thousand small scenarios take on two processes, and a plan of a 70B model.

Run: pytest -m benchmark tests/bench_batch.py -s
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml
from test_cli import twowalls

pytestmark = pytest.mark.benchmark


def test_a_thousand_small_scenarios_in_a_minute(tmp_path: Path) -> None:
    base = {
        "model": "llama-3.1-8b",
        "cluster": {"topology": "dgx-h100"},
        "workload": {
            "arrivals": {"kind": "poisson", "request_rate": 5},
            "lengths": {"kind": "fixed", "input_tokens": 512, "output_tokens": 128},
            "num_requests": 100,
        },
    }
    matrix = {
        "deployment.tensor_parallel_size": [1, 2],
        "workload.arrivals.request_rate": [2, 5, 10, 20, 40],
        "workload.seed": list(range(100)),
    }
    (tmp_path / "many.yaml").write_text(yaml.safe_dump({"base": base, "matrix": matrix}))
    begin = time.perf_counter()
    done = twowalls("run", "many.yaml", "--out", "out", "--jobs", "2", folder=tmp_path)
    took_s = time.perf_counter() - begin
    print(f"\n1,000 scenarios of 100 requests, every output written: {took_s:.1f} s")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out" / "ledger.csv").read_text().splitlines()) == 1001
    assert took_s < 60


def test_a_plan_of_a_70b_model_in_two_minutes(tmp_path: Path) -> None:
    begin = time.perf_counter()
    done = twowalls(
        "plan", "--model", "llama-3-70b", "--workload", "chat", "--slo", "ttft.p99=2s", "--slo", "tpot.p99=50ms",
        "--gpus", "h100,h200,b200,a100,l40s", "--jobs", "2", "--json", "--out", "out", folder=tmp_path,
    )  # fmt: skip
    took_s = time.perf_counter() - begin
    print(f"\nplan: {took_s:.1f} s")
    assert done.returncode == 0, done.stderr
    ranked = [row for row in json.loads(done.stdout)["candidates"] if row["status"] == "ranked"]
    assert took_s < 120
    for row in ranked[:3]:
        path = f"out/{row['scenario']}"
        alone = twowalls("sweep", path, "--set", "workload.seed=50", "--seeds", "5", "--json", folder=tmp_path)
        assert json.loads(alone.stdout)["points"][0]["statuses"] == {"done": 5}, row["name"]
