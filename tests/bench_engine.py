"""Speed of the whole engine on one core. The limits are those of an otherwise idle machine.

Run: pytest -m benchmark tests/bench_engine.py -s
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sim import Scenario, simulate
from sim.workload.traces import read_trace

pytestmark = pytest.mark.benchmark

TRACES = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"
REPLICAS, REQUESTS = 1000, 1_000_000
MILLION = {
    "model": "llama-3.1-8b",
    "cluster": {"topology": "dgx-h100", "nodes": REPLICAS},
    "deployment": {"tensor_parallel_size": 8, "data_parallel_size": REPLICAS, "router": "least_outstanding"},
    "workload": {
        "arrivals": {"kind": "poisson", "request_rate": 20_000},
        "lengths": {"kind": "uniform", "input_tokens": [200, 800], "output_tokens": [50, 250]},
        "num_requests": REQUESTS,
    },
}
ALONE = """
import json, resource, sys, time
from sim import Scenario, simulate
scenario = Scenario.from_dict(json.load(sys.stdin))
started_s = time.perf_counter()
result = simulate(scenario)
took_s = time.perf_counter() - started_s
peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"took_s": took_s, "peak_bytes": peak_bytes, "requests": len(result.requests["id"]),
    "broken": result.broken_laws,
    "hit_rate": float(result.requests["cached_tokens"].sum() / result.requests["input_tokens"].sum())}))
"""


def alone(scenario: dict[str, Any]) -> dict[str, Any]:
    """Runs a scenario in a process of its own, whose memory nobody else uses."""
    text = json.dumps(scenario)
    done = subprocess.run([sys.executable, "-c", ALONE], input=text, capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    print(measured)
    return measured


def test_a_million_requests_over_a_thousand_replicas() -> None:
    measured = alone(MILLION)
    assert measured["requests"] == REQUESTS
    assert measured["broken"] == []
    assert measured["took_s"] < 60
    assert measured["peak_bytes"] < 2 * 2**30


@pytest.mark.skipif(not TRACES.exists(), reason="the traces are not here")
def test_the_mooncake_conversation_trace_with_prefix_caching() -> None:
    measured = alone(
        {
            "model": "llama-3.1-70b",
            "precision": {"weights": "fp8", "kv_cache": "fp8"},
            "cluster": {"topology": "dgx-h100", "nodes": 4},
            "deployment": {"tensor_parallel_size": 4, "data_parallel_size": 8, "router": "prefix_affinity"},
            "engine": {"enable_prefix_caching": True},
            "workload": {"arrivals": {"kind": "trace", "path": str(TRACES / "mooncake" / "conversation_trace.jsonl")}},
        }
    )
    assert measured["broken"] == []
    assert measured["took_s"] < 15


@pytest.mark.skipif(not TRACES.exists(), reason="the traces are not here")
def test_reading_a_trace_is_no_part_of_the_wait() -> None:
    started_s = time.perf_counter()
    read_trace(TRACES / "azure2023" / "AzureLLMInferenceTrace_conv.csv")
    assert time.perf_counter() - started_s < 0.15


def test_chunked_prefill_at_a_steady_mix() -> None:
    scenario = Scenario.from_dict(
        {
            "model": "llama-3.1-8b",
            "cluster": {"topology": "dgx-h100"},
            "engine": {"max_num_batched_tokens": 2048},
            "workload": {
                "arrivals": {"kind": "closed_loop", "concurrency": 64},
                "lengths": {"kind": "fixed", "input_tokens": 512, "output_tokens": 256},
                "num_requests": 40_000,
            },
        }
    )
    started_s = time.perf_counter()
    result = simulate(scenario)
    rate = len(result.requests["id"]) / (time.perf_counter() - started_s)
    print(f"{rate:,.0f} requests a second")
    assert rate >= 20_000
