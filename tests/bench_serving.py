"""How fast one replica is simulated: the figures that the README quotes. Run by `make bench`."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import simpy

from sim import Result, Scenario, simulate

pytestmark = pytest.mark.benchmark
ROOT = Path(__file__).resolve().parents[1]
REQUESTS = 100_000
LOAD = 0.7


def scenario(arrivals: dict[str, object], requests: int, output_tokens: int = 256) -> Scenario:
    """Llama-3.1-8B on one H100: 512 tokens in, 256 out."""
    return Scenario.from_dict(
        {
            "name": "bench",
            "model": "llama-3.1-8b",
            "cluster": {"topology": "dgx-h100"},
            "workload": {
                "arrivals": arrivals,
                "lengths": {"kind": "fixed", "input_tokens": 512, "output_tokens": output_tokens},
                "num_requests": requests,
            },
        }
    )


def saturation() -> float:
    """Requests a second that the replica completes when all are queued at once."""
    return float(simulate(scenario({"kind": "burst"}, 4000)).summary["request_throughput"])


def timed(run: Scenario) -> tuple[Result, float]:
    """The result and the fastest of three runs, in seconds of processor time."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        result = simulate(run)
        best = min(best, time.process_time() - start)
    return result, best


def bare_simpy(requests: int = 100_000, users: int = 256) -> float:
    """Requests a second of bare SimPy: two timeouts a request, 256 in flight."""
    env = simpy.Environment()

    def user() -> object:
        for _ in range(requests // users):
            yield env.timeout(0.5)
            yield env.timeout(1.0)

    for _ in range(users):
        env.process(user())  # type: ignore[arg-type]
    start = time.process_time()
    env.run()
    return requests / (time.process_time() - start)


def test_a_hundred_thousand_requests_on_one_replica() -> None:
    rate = LOAD * saturation()
    result, seconds = timed(scenario({"kind": "poisson", "request_rate": rate}, REQUESTS))
    print(f"\n{REQUESTS:,} requests at {rate:.1f}/s: {REQUESTS / seconds:,.0f} requests/s, records and ledger included")
    print(f"bare SimPy, two timeouts a request: {bare_simpy():,.0f} requests/s")
    print(f"{result.events / REQUESTS:.2f} events a request, {len(result.steps['start_s']) / REQUESTS:.2f} segments")
    assert result.status == "done"


def test_cost_does_not_depend_on_output_length_while_the_batch_stays() -> None:
    costs = {}
    for output_tokens in (256, 1024, 4096):
        run = scenario({"kind": "constant", "request_rate": 0.02}, 5000, output_tokens)
        costs[output_tokens] = timed(run)[1] / 5000
    print("\nseconds a request, one at a time: " + ", ".join(f"{n} out {c * 1e6:.1f} us" for n, c in costs.items()))
    assert costs[4096] < 2 * costs[256]


def test_memory_beyond_the_records() -> None:
    run = scenario({"kind": "poisson", "request_rate": LOAD * saturation()}, REQUESTS)
    tracemalloc.start()
    result = simulate(run)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    records = sum(c.nbytes for table in (result.requests, result.steps) for c in table.values())
    print(f"\npeak {peak_bytes / REQUESTS:.0f} B a request, records {records / REQUESTS:.0f} B of them")
    assert peak_bytes > records


def test_the_command_answers_at_once() -> None:
    for arguments in (["--help"], ["run", "llama3-70b-2xh100-64way"]):
        start = time.perf_counter()
        code = "import sys; from sim.cli import main; sys.argv = ['twowalls', *sys.argv[1:]]; main()"
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, cwd=ROOT)
        print(f"\ntwowalls {' '.join(arguments)}: {time.perf_counter() - start:.2f} s")
