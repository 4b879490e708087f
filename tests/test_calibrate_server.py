"""One benchmark run of a server gives its own times back: through the command, from the files of four tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from sim.cli import app
from sim.errors import InputError
from sim.studies.benchmark_files import read_benchmark

HIDDEN = {"layer": 1.6, "host_step": 1.8, "host_request": 2.2, "entry": 1.5}
SERVER = {
    "name": "my-server", "model": "llama-3.1-8b", "cluster": {"topology": "dgx-h100"},
    "engine": {"preset": "vllm", "async_scheduling": False},
    "workload": {
        "arrivals": {"kind": "poisson", "request_rate": 12},
        "lengths": {"kind": "uniform", "input_tokens": [200, 800], "output_tokens": [50, 250]}, "num_requests": 200,
    },
}  # fmt: skip


def command(*arguments: str) -> str:
    run = CliRunner().invoke(app, list(arguments))
    assert run.exit_code == 0, run.output + repr(run.exception)
    return run.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scenario, and the result of a server like it with hidden times, at another seed."""
    found = tmp_path_factory.mktemp("server")
    (found / "server.yaml").write_text(yaml.safe_dump(SERVER))
    hidden = {"source": "hidden", "engine": {"preset": "vllm"} | {name: {"factor": f} for name, f in HIDDEN.items()}}
    (found / "hidden.yaml").write_text(yaml.safe_dump(hidden))
    run = ("run", str(found / "server.yaml"), "--set", f"engine.calibration={found / 'hidden.yaml'}", "--json")
    (found / "vllm.json").write_text(command(*run, "--set", "workload.seed=7"))
    return found


def test_hidden_times_lie_within_their_intervals_and_the_file_reproduces_the_run(folder: Path) -> None:
    mine = folder / "mine.yaml"
    fit = json.loads(
        command(
            "calibrate", "engine", str(folder / "vllm.json"), "--scenario", str(folder / "server.yaml"),
            "--out", str(mine), "--json",
        )
    )  # fmt: skip
    for name, value in HIDDEN.items():
        low, high = fit["intervals"][name]
        assert low < value < high, name
    assert max(abs(row["error"]) for row in fit["after"] if row["statistic"] == "mean") < 0.04
    assert min(row["error"] for row in fit["before"] if row["latency"] == "tpot") < -0.1
    assert "entry" not in fit["undetermined"]
    # the sum is known far better than engines are alike, and --uncertainty draws from what is left
    assert fit["log_std"] < 0.15
    assert yaml.safe_load(mine.read_text())["engine"]["log_std"] == pytest.approx(fit["log_std"], rel=0.01)
    again = json.loads(
        command(
            "run",
            str(folder / "server.yaml"),
            "--set",
            f"engine.calibration={mine}",
            "--set",
            "workload.seed=7",
            "--json",
        )
    )
    measured = json.loads((folder / "vllm.json").read_text())
    for key in ("mean_ttft_ms", "mean_tpot_ms", "median_itl_ms", "output_throughput"):
        assert again[key] == pytest.approx(measured[key], rel=0.06), key
    assert any("mine.yaml" in note and "vllm.json" in note for note in again["notes"])


def spread(data: dict[str, Any], latency: str, unit: float = 1.0) -> dict[str, float]:
    """Statistics as AIPerf and inference-perf name them."""
    names = {"avg": "mean", "mean": "mean", "p50": "median", "median": "median", "p90": "p90", "p99": "p99"}
    return {name: data[f"{key}_{latency}_ms"] * unit for name, key in names.items()}


def written(tool: str, data: dict[str, Any]) -> dict[str, Any]:
    """The result `data` (vLLM's keys) as another tool writes it."""
    done = data["completed"]
    prompt, output = data["total_input_tokens"] / done, data["total_output_tokens"] / done
    if tool == "aiperf":
        return {
            "time_to_first_token": {"unit": "ms", **spread(data, "ttft")},
            "inter_token_latency": {"unit": "ms", **spread(data, "tpot")}, "request_count": {"unit": "requests", "avg": done},
            "input_sequence_length": {"unit": "tokens", "avg": prompt},
            "output_sequence_length": {"unit": "tokens", "avg": output},
        }  # fmt: skip
    if tool == "guidellm":

        def metric(latency: str) -> dict[str, Any]:
            flat = spread(data, latency)
            return {"successful": {"mean": flat["mean"], "median": flat["median"], "percentiles": {"p90": flat["p90"]}}}

        metrics = {
            "time_to_first_token_ms": metric("ttft"), "inter_token_latency_ms": metric("tpot"),
            # counts the first token: not TPOT, and not to be taken for it
            "time_per_output_token_ms": {"successful": {"mean": 1e6, "median": 1e6, "percentiles": {}}},
            "prompt_token_count": {"successful": {"mean": prompt, "count": done}},
            "output_token_count": {"successful": {"mean": output, "count": done}},
        }  # fmt: skip
        return {"metadata": {"version": 1}, "benchmarks": [{"metrics": metrics}]}
    latencies = {"time_to_first_token": "ttft", "time_per_output_token": "tpot", "inter_token_latency": "itl"}
    return {
        "load_summary": {"count": done, "requested_rate": data["request_rate"]},
        "successes": {
            "count": done, "latency": {name: spread(data, latency, 1e-3) for name, latency in latencies.items()},
            "prompt_len": {"mean": prompt}, "output_len": {"mean": output},
        },
    }  # fmt: skip


@pytest.mark.parametrize("tool", ["aiperf", "guidellm", "inference-perf"])
def test_every_tools_file_reads_as_the_same_run(folder: Path, tool: str) -> None:
    file = folder / f"{tool}.json"
    file.write_text(json.dumps(written(tool, json.loads((folder / "vllm.json").read_text()))))
    ours, theirs = read_benchmark(folder / "vllm.json"), read_benchmark(file)
    assert {("ttft", "mean"), ("ttft", "median"), ("ttft", "p90"), ("tpot", "mean"), ("tpot", "p90")} <= set(
        theirs.latencies_s
    )
    for key, value in theirs.latencies_s.items():
        assert value == pytest.approx(ours.latencies_s[key]), key
    assert (theirs.requests, theirs.input_tokens, theirs.output_tokens) == pytest.approx(
        (ours.requests, ours.input_tokens, ours.output_tokens)
    )


def test_the_command_takes_another_tools_file(folder: Path) -> None:
    file = folder / "aiperf-run.json"
    file.write_text(json.dumps(written("aiperf", json.loads((folder / "vllm.json").read_text()))))
    text = command(
        "calibrate", "engine", str(file), "--scenario", str(folder / "server.yaml"), "--parameters", "host_step,entry"
    )
    assert "vllm: factors on its own times" in text
    assert "entry" in text


RESULT = {"mean_ttft_ms": 40.0, "completed": 10, "total_input_tokens": 800, "total_output_tokens": 200}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"completed": 0}, "holds no answered request"),
        ({"mean_ttft_ms": float("nan")}, "got nan as its mean ttft"),
        ({"mean_ttft_ms": -40.0}, "got -0.04 as its mean ttft"),
        ({"total_input_tokens": -800}, "got -80.0 as its mean prompt tokens"),
        ({"max_concurrency": "many"}, "got 'many' as its concurrency"),
        ({"request_rate": 0}, "got 0.0 as its request rate"),
    ],
)
def test_numbers_that_no_run_has_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = tmp_path / "odd.json"
    file.write_text(json.dumps(RESULT | {"request_rate": float("inf")}))
    assert read_benchmark(file).request_rate is None
    file.write_text(json.dumps(RESULT | changes))
    with pytest.raises(InputError, match=f"odd.json: {message}"):
        read_benchmark(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "is no JSON object"),
        ('{"colour": 1}', "the result of no tool known here"),
        ('{"mean_ttft_ms": 3}', "lacks what its tool writes"),
        ('{"benchmarks": []}', "holds 0 runs"),
        ('{"successes": {"count": 1, "latency": {}}}', "holds no latencies"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_benchmark(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--scenario", "server.yaml", "--parameters", "layr"], "did you mean 'layer'"),
        (["--scenario", "server.yaml", "--parameters", "stream"], "which is 0 in the preset vllm"),
        (["--scenario", "other.yaml"], "the scenario has 6 requests a second, the file 12"),
        ([], "does not say what ran"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    folder: Path, changes: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower = SERVER["workload"] | {"arrivals": {"kind": "poisson", "request_rate": 6}}  # type: ignore[operator]
    (folder / "other.yaml").write_text(yaml.safe_dump(SERVER | {"workload": slower}))
    monkeypatch.chdir(folder)
    run = CliRunner().invoke(app, ["calibrate", "engine", "vllm.json", *changes])
    assert message in str(run.exception)
