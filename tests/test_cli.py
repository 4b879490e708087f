"""The command as its users meet it: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sim import __version__
from sim.cli import options
from sim.errors import InputError

SCENARIO: dict[str, Any] = {
    "name": "small",
    "model": "llama-3.1-8b",
    "cluster": {"topology": "dgx-h100"},
    "workload": {
        "arrivals": {"kind": "poisson", "request_rate": 4.0},
        "lengths": {"kind": "fixed", "input_tokens": 256, "output_tokens": 32},
        "num_requests": 20,
    },
}
# twenty requests at once into room for three of them, without a gate
FULL = ["--set", "engine.num_gpu_blocks_override=60", "--set", "engine.on_kv_full=oom",
        "--set", "workload.arrivals={kind: burst}"]  # fmt: skip


def twowalls(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from sim.cli import main; main()", *arguments],
        cwd=folder, capture_output=True, text=True, check=False, env=os.environ | environment,
    )  # fmt: skip


def write(folder: Path, name: str = "small", **changes: Any) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(SCENARIO | {"name": name} | changes))
    return path.name


def test_it_says_its_version(tmp_path: Path) -> None:
    assert twowalls("--version", folder=tmp_path).stdout == f"twowalls {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['twowalls', '--help']\n"
        "from sim.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'simpy', 'networkx', 'scipy', 'pyarrow', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("run", "memory", "topology", "collective", "workload", "schema", "list", "validate", "calibrate"):
        assert f" {command} " in done.stdout


def test_a_run_imports_neither_plots_nor_parquet(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.argv = ['twowalls', 'run', {write(tmp_path)!r}]\n"
        "from sim.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'scipy', 'pyarrow', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_run_prints_the_whole_answer_and_nothing_else(tmp_path: Path) -> None:
    done = twowalls("run", write(tmp_path), folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    parts = ["small: done", "= Serving Benchmark Result =", "Memory of each GPU", "Where a token's milliseconds go", "Verdict",
             "Self-checks: "]  # fmt: skip
    places = [done.stdout.index(part) for part in parts]
    assert places == sorted(places)
    assert "\x1b" not in done.stdout


def test_run_as_json_has_the_stable_keys(tmp_path: Path) -> None:
    done = twowalls("run", write(tmp_path), "--json", "--granularity", "step", folder=tmp_path)
    found = json.loads(done.stdout)
    latencies = {
        f"{statistic}_{metric}_ms"
        for metric in ("ttft", "tpot", "itl", "e2el")
        for statistic in ("mean", "median", "std", "p50", "p90", "p95", "p99", "p99.9")
    }
    stable = {"status", "events", "preemptions", "walls_ms_per_token", "self_checks", "simulated_seconds", "wall_seconds",
              "scenario", "seed", "simulator_version", "completed", "output_throughput"}  # fmt: skip
    assert latencies | stable <= set(found)
    assert found["completed"] == 20
    assert found["status"] == "done"
    assert found["scenario"]["granularity"] == "step"
    assert found["simulator_version"] == __version__
    assert all(check["held"] for check in found["self_checks"])


def test_two_processes_with_other_hash_seeds_write_the_same_bytes(tmp_path: Path) -> None:
    name = write(tmp_path)
    for seed in ("1", "2"):
        assert twowalls("run", name, "--out", seed, folder=tmp_path, PYTHONHASHSEED=seed).returncode == 0
    files = {path.name for path in (tmp_path / "1").iterdir()}
    assert files == {"summary.json", "answer.txt", "requests.parquet", "steps.parquet", "run.json"}
    for file in files - {"run.json"}:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes(), file


@pytest.mark.parametrize(
    ("changes", "settings", "exit_code", "told"),
    [
        ({"assert": ["ttft.p99 < 1 us"]}, [], 1, "asserted: does not hold: ttft.p99 < 1 us"),
        ({"modell": 1}, [], 2, "modell"),
        ({"model": "llama-3.1-7b"}, [], 2, "did you mean 'llama-3.1-"),
        ({"model": "llama-3.1-70b"}, [], 3, "infeasible: "),
        ({}, FULL, 3, ""),
        ({}, ["--set", "engine.max_num_seq=3"], 2, "max_num_seqs"),
        ({}, ["--set", "nonsense"], 2, "write a key path and a value"),
    ],
    ids=["assertion", "unknown key", "unknown model", "does not fit", "out of memory", "wrong --set", "no value"],
)
def test_exit_codes(tmp_path: Path, changes: dict[str, Any], settings: list[str], exit_code: int, told: str) -> None:
    done = twowalls("run", write(tmp_path, **changes), *settings, folder=tmp_path)
    assert done.returncode == exit_code, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_what_does_not_fit_is_json_too(tmp_path: Path) -> None:
    done = twowalls("run", write(tmp_path, model="llama-3.1-70b"), "--json", folder=tmp_path)
    found = json.loads(done.stdout)
    assert done.returncode == 3
    assert found["status"] == "infeasible"
    assert found["events"] == 0
    assert "usable" in found["reason"]


def test_out_of_memory_says_when_where_and_who(tmp_path: Path) -> None:
    settings = ["--set", "engine.num_gpu_blocks_override=60", "--set", "engine.on_kv_full=oom"]
    done = twowalls(
        "run", write(tmp_path), "--json", *settings, "--set", "workload.arrivals={kind: burst}", folder=tmp_path
    )
    found = json.loads(done.stdout)
    assert found["status"] == "oom"
    assert set(found["oom"]) == {"time_s", "gpu", "request", "kv_tokens", "needed_bytes", "free_bytes"}
    assert found["oom"]["gpu"] == "n0.g0"


def test_several_scenarios_end_with_one_table(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    write(tmp_path / "more", "second")
    write(tmp_path / "more", "tight", model="llama-3.1-70b")
    done = twowalls("run", write(tmp_path), "more", "--out", "results", "--jobs", "2", folder=tmp_path)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:2] for line in lines[1:4]] == [["small", "done"], ["second", "done"], ["tight", "infeasible"]]
    assert done.returncode == 0  # in a batch, what does not fit is a result like any other
    assert (tmp_path / "results/second/summary.json").is_file()


def test_a_wrong_scenario_does_not_stop_the_others(tmp_path: Path) -> None:
    done = twowalls(
        "run", write(tmp_path), write(tmp_path, "wrong", modell=1), "absent.yaml", "--json", folder=tmp_path
    )
    found = json.loads(done.stdout)
    assert [row["status"] for row in found] == ["done", "failed", "failed"]
    assert "modell" in found[1]["reason"]
    assert "absent.yaml" in found[2]["reason"]
    assert done.returncode == 2


def test_a_scenario_named_twice_is_run_once(tmp_path: Path) -> None:
    name = write(tmp_path)
    assert twowalls("run", name, name, "--out", "results", folder=tmp_path).returncode == 0
    files = ["journal.jsonl", "ledger.csv", "ledger.parquet", "run.json", "small"]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == files


@pytest.mark.parametrize("count", [1, 2], ids=["alone", "batch"])
def test_an_interrupt_ends_with_130_and_no_traceback(tmp_path: Path, count: int) -> None:
    code = (
        "import multiprocessing, signal, sys, sim.simulate\n"
        "multiprocessing.set_start_method('fork')\n"
        "sys.modules['sim.simulate'].simulate = lambda scenario, progress: (print('up', flush=True), signal.pause())\n"
        "from sim.cli import main\n"
        "main()"
    )
    names = [write(tmp_path, f"endless{number}") for number in range(count)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", *names, "--jobs", "1"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a shell that runs the tests in the background has them ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "Traceback" not in told


def test_memory_prints_the_ledger_and_ends_with_3_if_it_does_not_fit(tmp_path: Path) -> None:
    small, large = write(tmp_path), write(tmp_path, "large", model="llama-3.1-70b")
    fits = json.loads(twowalls("memory", small, "--json", folder=tmp_path).stdout)
    assert {"fits", "parameters", "weights_bytes", "kv_bytes_per_token", "kv_tokens_capacity", "max_sequences", "per_gpu",
            "suggestions"} <= set(fits)  # fmt: skip
    assert fits["parameters"] == 8_030_261_248
    assert {"gpu", "capacity_bytes", "usable_bytes", "weights_bytes", "activation_bytes", "overhead_bytes",
            "kv_pool_bytes"} <= set(fits["per_gpu"][0])  # fmt: skip
    tight = twowalls("memory", large, folder=tmp_path)
    assert tight.returncode == 3
    assert "It does NOT fit" in tight.stdout
    assert "int4 weights fit" in tight.stdout


def test_topology_and_collective(tmp_path: Path) -> None:
    found = json.loads(twowalls("topology", "dgx-h100", "--nodes", "2", "--json", folder=tmp_path).stdout)
    assert (found["gpus"], found["nodes"]) == (16, 2)
    assert found["pairs"][0]["bandwidth_bytes_per_s"] == 450e9
    told = twowalls("topology", "dgx-h100", "--plot", "dgx.png", folder=tmp_path)
    assert told.stdout.startswith("dgx-h100: 8 GPUs in 1 node")
    assert (tmp_path / "dgx.png").read_bytes().startswith(b"\x89PNG")
    group = ["--topology", "dgx-h100", "--gpus", "2"]
    time_1 = json.loads(twowalls("collective", *group, "--size", "1MiB", "--json", folder=tmp_path).stdout)
    assert {"time_s", "algorithm", "steps", "latency_s", "bus_bandwidth_bytes_per_s", "edge_bytes"} <= set(time_1)
    assert 7e-6 < time_1["time_s"] < 10e-6  # 8.3 us measured: vLLM's custom all-reduce on two H100
    sweep = json.loads(twowalls("collective", *group, "--sweep", "--json", folder=tmp_path).stdout)
    assert [row["time_s"] for row in sweep] == sorted(row["time_s"] for row in sweep)
    table = twowalls("collective", *group, folder=tmp_path)
    assert table.returncode == 0
    assert "1 MiB" in table.stdout
    assert twowalls("collective", *group, "--op", "all_reduc", folder=tmp_path).returncode == 2


def test_a_node_is_imported_from_nvidia_smi(tmp_path: Path) -> None:
    (tmp_path / "matrix.txt").write_text("        GPU0    GPU1\nGPU0     X      NV4\nGPU1    NV4      X\n")
    made = twowalls("topology", "matrix.txt", "--nvidia-smi", "--gpu", "a100-sxm-80gb", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    (tmp_path / "mine.yaml").write_text(made.stdout)
    assert json.loads(twowalls("topology", "mine.yaml", "--json", folder=tmp_path).stdout)["gpus"] == 2
    assert twowalls("topology", "matrix.txt", "--nvidia-smi", folder=tmp_path).returncode == 2


def test_workload_list_and_schema(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n1,20,5\n3,30,5\n")
    found = json.loads(twowalls("workload", "trace.csv", "--json", folder=tmp_path).stdout)
    assert (found["requests"], found["duration_s"]) == (3, 3.0)
    assert "requests: 3" in twowalls("workload", "trace.csv", folder=tmp_path).stdout
    assert "h100-sxm" in twowalls("list", "gpus", folder=tmp_path).stdout.split()
    assert "dgx-h100" in json.loads(twowalls("list", "topologies", "--json", folder=tmp_path).stdout)["topologies"]
    assert twowalls("list", "gpu", folder=tmp_path).returncode == 2
    assert json.loads(twowalls("schema", folder=tmp_path).stdout)["title"] == "twowalls scenario"


def test_a_file_that_cannot_be_written_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    done = twowalls("run", write(tmp_path), "--out", "taken", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "error: --out: got 'taken' (File exists)\n  give a folder, or the name of one that can be made\n"
    )


def test_requests_that_are_too_long_for_the_engine_are_said_to_be(tmp_path: Path) -> None:
    done = twowalls("run", write(tmp_path), "--set", "engine.max_model_len=16", folder=tmp_path)
    assert "No request finished." in done.stdout
    assert (
        "20 of 20 requests were turned away: their prompts leave no room for a token within max_model_len (16)"
        in " ".join(done.stdout.split())
    )


def test_overrides_are_read_as_yaml() -> None:
    found = options.read_overrides(["a.b=4", "c=[1, 2]", "d=2 us", "e=1e3", "f = {kind: burst}"])
    assert found == {"a.b": 4, "c": [1, 2], "d": "2 us", "e": 1000.0, "f": {"kind": "burst"}}
    with pytest.raises(InputError, match="got '=4'"):
        options.read_overrides(["=4"])


def test_a_folder_without_scenarios_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without a scenario"):
        options.scenario_files(str(tmp_path))


def test_a_path_given_with_set_starts_where_it_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = options.read_overrides(["workload.arrivals.path=x.csv", "model=./mine", "cluster.topology=dgx-h100",
                                    "workload.lengths={kind: empirical, path: y.csv}"])  # fmt: skip
    assert found == {
        "workload.arrivals.path": str(tmp_path / "x.csv"),
        "model": str(tmp_path / "mine"),
        "cluster.topology": "dgx-h100",
        "workload.lengths": {"kind": "empirical", "path": str(tmp_path / "y.csv")},
    }


def test_list_without_a_kind_lists_all(tmp_path: Path) -> None:
    assert "\ntopologies:\n  cloud-h100" in twowalls("list", folder=tmp_path).stdout
    found = json.loads(twowalls("list", "--json", folder=tmp_path).stdout)
    assert set(found) == {"gpus", "models", "topologies", "scenarios"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["topology", "dgx-h100", "--gpu", "foo"], "--gpu: got 'foo'"),
        (["topology", "dgx-h100", "--plot", "x.foo"], "--plot: got 'x.foo'"),
        (["topology", "dgx-h100", "--plot", "absent/x.png"], "whose folder does not exist"),
        (["whatif", "llama3-70b-one-gpu-int4", "--plot", "x.foo"], "--plot: got 'x.foo'"),
        (["collective", "--topology", "dgx-h100", "--gpus", "8", "--size", "0 B"], "--size: got '0 B'"),
        (["collective", "--topology", "dgx-h100", "--gpus", "8", "--size", "-1 MiB"], "--size: got '-1 MiB'"),
        (["collective", "--topology", "dgx-h100", "--gpus", "9"], "--gpus: got 9, dgx-h100 has 8"),
        (["run", ""], "SCENARIO: got '', which names nothing"),
        (["plan", "--model", "llama-3.1-8b", "--workload", "chat", "--rate", "-3"], "--rate: got -3"),
        (["plan", "--model", "llama-3.1-8b", "--workload", "chat", "--rate", "nan"], "--rate: got nan"),
    ],
)
def test_wrong_arguments_end_with_2_and_say_which(tmp_path: Path, arguments: list[str], told: str) -> None:
    done = twowalls(*arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_what_does_not_fit_is_an_answer_with_its_name_and_question(tmp_path: Path) -> None:
    done = twowalls("run", write(tmp_path, model="llama-3.1-70b", description="Does it fit?"), folder=tmp_path)
    assert done.returncode == 3
    assert done.stdout.startswith(
        "small: infeasible\nDoes it fit?\n\nVerdict\n  - It does NOT fit. n0.g0: 141.1 GB weights"
    )
    assert "What would hold what the scenario asks for\n  - " in done.stdout


def test_an_assertion_about_a_run_cut_at_its_time_limit_counts(tmp_path: Path) -> None:
    asked = {"assert": ["output_throughput > 1e9"]}
    done = twowalls("run", write(tmp_path, **asked), "--set", "workload.time_limit=1 s", folder=tmp_path)
    assert (done.returncode, "= Serving Benchmark Result =" in done.stdout) == (1, True)
    assert "asserted: does not hold" in done.stderr


def test_json_begins_with_the_date_as_that_of_vllm_does(tmp_path: Path) -> None:
    found = json.loads(twowalls("run", write(tmp_path), "--json", folder=tmp_path).stdout)
    assert next(iter(found)) == "date"
    assert len(found["date"]) == len("20261122-160000")


@pytest.mark.parametrize(("asked", "exit_code"), [([], 0), (["ttft.p99 < 1 us"], 1)])
def test_a_reader_that_leaves_changes_nothing(tmp_path: Path, asked: list[str], exit_code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "sim", "run", write(tmp_path, **{"assert": asked}), "--out", "kept"],
        cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "kept" / "summary.json").is_file()


def test_an_interrupt_before_the_first_import_is_done_has_no_traceback(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'sim.cli.run': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from sim.__main__ import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")
