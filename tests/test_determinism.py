"""Two runs of one scenario give the same bytes, in one process or in two, whatever the order of hashes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from sim import catalogue
from sim.results.export import record, to_json
from sim.results.result import Result
from sim.scenario import Scenario
from sim.simulate import simulate

# a closed loop that preempts, and a trace with chunked prompts and objectives
SCENARIOS = {"llama3-70b-2xh100-64way": 128, "synthetic-conv-4xh100": 200}
RANDOM = {
    "model": "gpt-oss-20b",
    "cluster": {"topology": "dgx-h100"},
    "deployment": {"data_parallel_size": 2},
    "engine": {"enable_prefix_caching": True, "num_gpu_blocks_override": 600},
    "workload": {
        "arrivals": {"kind": "poisson", "request_rate": 30.0, "burstiness": 0.5},
        "lengths": {"kind": "lognormal", "input_mean": 400, "input_cv": 1.0, "output_mean": 100, "output_cv": 1.0,
                    "max_tokens": 2000},
        "shared_prefix": {"tokens": 256, "prefixes": 5},
        "num_requests": 150,
        "seed": 7,
    },
}  # fmt: skip


def scenarios() -> dict[str, Scenario]:
    files = catalogue.files("scenarios")
    shipped = {name: Scenario.load(files[name], {"workload.num_requests": cut}) for name, cut in SCENARIOS.items()}
    return shipped | {"random": Scenario.from_dict(RANDOM)}


def parts(result: Result) -> dict[str, str]:
    """A digest of the summary and of every column of every table."""
    tables = {"requests": result.requests, "steps": result.steps}
    content = {
        f"{table}.{name}": column.tobytes() for table, columns in tables.items() for name, column in columns.items()
    }
    content["summary"] = to_json(record(result)).encode()
    return {name: hashlib.sha256(part).hexdigest() for name, part in content.items()}


def digest(name: str) -> str:
    found = parts(simulate(scenarios()[name]))
    return hashlib.sha256("".join(f"{key} {found[key]}\n" for key in sorted(found)).encode()).hexdigest()


@pytest.mark.parametrize("name", [*SCENARIOS, "random"])
def test_two_runs_are_byte_equal(name: str) -> None:
    first, second = (parts(simulate(scenarios()[name])) for _ in range(2))
    assert first == second


def test_another_seed_is_another_run() -> None:
    changed = scenarios()["random"].with_overrides({"workload.seed": 8})
    assert (
        parts(simulate(changed))["requests.arrival_s"] != parts(simulate(scenarios()["random"]))["requests.arrival_s"]
    )


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_another_process_with_another_hash_seed_gives_the_same_bytes(hash_seed: str) -> None:
    code = "import sys; from test_determinism import digest; print(*map(digest, sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *SCENARIOS, "random"],
        cwd=os.path.dirname(__file__),
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [digest(name) for name in (*SCENARIOS, "random")]
