"""Several seeds say what is chance, and two scenarios under the same seeds say what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim import Scenario, simulate
from sim.cli import app
from sim.errors import InputError
from sim.results.export import to_json
from sim.results.intervals import mean_interval
from sim.studies.seeds import Seeds, difference, play, several, together

BASE = {
    "name": "base",
    "model": "llama-3.1-8b",
    "cluster": {"topology": "dgx-h100"},
    "workload": {
        "arrivals": {"kind": "poisson", "request_rate": 8.0},
        "lengths": {"kind": "lognormal", "input_mean": 400, "input_cv": 1.0, "output_mean": 60, "output_cv": 1.0},
        "num_requests": 80,
        "seed": 3,
    },
}


def over_seeds(changes: dict[str, Any], count: int = 4) -> Seeds:
    scenario = Scenario.from_dict(BASE).with_overrides(changes)
    return together(scenario.name, [play(scenario.to_dict(), scenario.where, seed) for seed in range(3, 3 + count)])


@pytest.fixture(scope="module")
def base() -> Seeds:
    return over_seeds({})


def test_each_seed_is_a_run_of_its_own_and_the_first_is_the_scenarios(base: Seeds) -> None:
    assert base.seeds == [3, 4, 5, 6]
    assert base.by_seed[0] == simulate(Scenario.from_dict(BASE)).summary
    assert len({summary["p99_ttft_ms"] for summary in base.by_seed}) == 4


def test_rates_are_means_over_seeds_and_quantiles_those_of_all_samples(base: Seeds) -> None:
    throughputs = [summary["output_throughput"] for summary in base.by_seed]
    assert base.values["output_throughput"] == pytest.approx(np.mean(throughputs))
    assert base.intervals["output_throughput"] == mean_interval(throughputs)
    lowest = min(summary["median_ttft_ms"] for summary in base.by_seed)
    highest = max(summary["median_ttft_ms"] for summary in base.by_seed)
    assert lowest <= base.values["median_ttft_ms"] <= highest
    for key, (low, high) in base.intervals.items():
        assert low is None or low <= base.values[key] * (1 + 1e-9), key
        assert high is None or high >= base.values[key] * (1 - 1e-9), key


def test_common_random_numbers_see_what_separate_intervals_do_not(base: Seeds) -> None:
    other = over_seeds({"engine.max_num_batched_tokens": 512, "name": "chunks"})
    apart = difference(base, other)
    low, high = apart.intervals["mean_e2el_ms"]
    assert low is not None
    assert high is not None
    assert apart.values["mean_e2el_ms"] == pytest.approx(
        other.values["mean_e2el_ms"] - base.values["mean_e2el_ms"], abs=1e-6
    )
    alone_low, alone_high = base.intervals["mean_e2el_ms"]
    assert alone_low is not None
    assert alone_high is not None
    assert high - low < 0.1 * (alone_high - alone_low)


def test_processes_change_nothing(base: Seeds) -> None:
    assert to_json(several(Scenario.from_dict(BASE), 4, jobs=2).as_dict()) == to_json(base.as_dict())


def test_the_command_line_tells_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(json.dumps(BASE))
    Path("chunks.yaml").write_text(json.dumps({**BASE, "name": "chunks", "engine": {"max_num_seqs": 2}}))

    def twowalls(*arguments: str) -> str:
        app([*arguments, "--jobs", "1"], standalone_mode=False)
        return capsys.readouterr().out

    found = json.loads(twowalls("seeds", "base.yaml", "-n", "2", "--json"))
    assert found["seeds"] == [3, 4]
    assert set(found["intervals"]) == set(found["values"])
    told = twowalls("seeds", "base.yaml", "chunks.yaml", "-n", "2")
    assert "Over 2 seeds (95%): TTFT p50 ms" in told
    assert "Difference to base, seed by seed\nchunks: TTFT p50 ms +" in told
    assert twowalls("run", "base.yaml", "--seeds", "2", "--out", "out").count("Over 2 seeds (95%)") == 1
    assert json.loads(Path("out", "error-bars.json").read_text())["intervals"] == found["intervals"]
    asked = json.loads(twowalls("run", "base.yaml", "--seeds", "2", "--json"))
    assert asked["intervals"] == found["intervals"]
    assert asked["warmup"]["method"].startswith("MSER-5")
    assert asked["provenance"]
    with pytest.raises(InputError, match="--seeds: is for one scenario"):
        twowalls("run", "base.yaml", "chunks.yaml", "--seeds", "2")
