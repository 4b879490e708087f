"""Every shipped scenario answers the question in its description, and the answer is pinned here."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sim import catalogue
from sim.errors import DoesNotFit, InputError
from sim.results.result import Result
from sim.results.verdict import load_state
from sim.scenario import Scenario
from sim.simulate import plan_memory, simulate
from sim.workload.traces import read_trace

ROOT = Path(__file__).resolve().parents[1]
FILES = catalogue.files("scenarios")
AZURE = (ROOT.parent / "shared" / "data" / "traces" / "azure2023" / "AzureLLMInferenceTrace_conv.csv").resolve()
REFUSED = {"llama3-70b-32k-mha-2xh100", "llama3-70b-128k-mha-4xh100"}
TRACES = FILES["synthetic-conv-4xh100"].parent / "traces"


def load(name: str) -> Scenario:
    scenario = Scenario.load(FILES[name])
    arrivals = scenario.workload.arrivals
    if arrivals.kind == "trace" and not Path(arrivals.path).exists():
        pytest.skip("its trace is an optional download")
    return scenario


@cache
def answer(name: str) -> Result:
    return simulate(load(name))


def median(name: str, metric: str) -> float:
    return float(answer(name).summary[f"median_{metric}_ms"])


# --- of all of them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_scenario_has_a_name_and_asks_a_question(name: str) -> None:
    text = FILES[name].read_text(encoding="utf-8")
    scenario = Scenario.load(FILES[name])
    folder, _, own = name.rpartition("/")
    assert scenario.name == own
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", own)
    # in a folder, the question is what tells its scenarios apart: they are compared
    assert scenario.description.endswith("." if folder else "?")
    up = "../" * (name.count("/") + 1)
    assert text.startswith(f"# yaml-language-server: $schema={up}schema/scenario.schema.json\n")


@pytest.mark.parametrize("name", FILES)
def test_it_ends_as_expected_and_breaks_no_law(name: str) -> None:
    if name in REFUSED:
        with pytest.raises(DoesNotFit):
            simulate(load(name))
        return
    result = answer(name)
    assert result.status == ("oom" if name.endswith("-oom") else "done")
    assert result.broken_laws == []
    if result.status == "done":
        assert result.summary["completed"] == len(result.requests["id"])


@pytest.mark.parametrize(
    ("name", "exit_code"),
    [
        ("llama3-70b-2xh100-64way", 0),
        ("llama3-70b-2xh100-64way-fp8", 0),
        ("llama3-70b-2xh100-64way-oom", 3),
        ("llama3-70b-128k-mha-4xh100", 3),
    ],
)
def test_the_command_runs_it_by_name_and_ends_with(name: str, exit_code: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from sim.cli import main; main()", "run", name],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


# --- sixty-four users on two H100s ------------------------------------------------------------------------------------


def test_64_users_in_bf16_fit_by_waiting_and_preempting() -> None:
    result = answer("llama3-70b-2xh100-64way")
    assert result.ledger.max_sequences == 23
    assert 15 <= result.steps["running"].max() <= 31
    assert result.preemptions > 0
    assert result.summary["mean_queue_time_ms"] > 0.5 * result.summary["mean_e2el_ms"]


def test_five_points_of_utilisation_cost_almost_half_of_the_throughput() -> None:
    full, edge = answer("llama3-70b-2xh100-64way"), answer("llama3-70b-2xh100-64way-edge")
    assert edge.ledger.max_sequences == 10
    assert edge.ledger.cautious_kv_tokens < 5_000  # where engines charge more to the budget, hardly two users are left
    assert 0.5 < edge.summary["output_throughput"] / full.summary["output_throughput"] < 0.65


def test_fp8_weights_let_all_64_run_at_once_within_the_objectives() -> None:
    scenario, result = load("llama3-70b-2xh100-64way-fp8"), answer("llama3-70b-2xh100-64way-fp8")
    assert scenario.slo is not None
    assert [line.text for line in scenario.assertions] == ["tpot.p99 < 50 ms", "preemptions == 0"]
    assert result.ledger.max_sequences > 64
    assert result.steps["running"].max() == 64
    assert result.preemptions == 0
    assert result.summary["p99_tpot_ms"] < 50
    assert result.summary["slo_attainment"] == 1.0
    assert result.summary["output_throughput"] > 2 * answer("llama3-70b-2xh100-64way").summary["output_throughput"]


def test_the_naive_engine_crashes_at_a_named_time_on_a_named_gpu_with_the_request_that_did_it() -> None:
    oom = answer("llama3-70b-2xh100-64way-oom").oom
    assert oom is not None
    assert oom["gpu"] == "n0.g0"
    assert oom["request"] == 31  # thirty-one prompts of 1536 tokens fit, the thirty-second does not
    assert 1 < oom["time_s"] < 10
    assert oom["kv_tokens"] == pytest.approx(31 * 1536, rel=0.02)
    assert oom["needed_bytes"] == pytest.approx(1536 * 163_840, rel=0.1)  # half of 327,680 B a token on each GPU
    assert oom["free_bytes"] < oom["needed_bytes"]


# --- one user with a long prompt --------------------------------------------------------------------------------------


def test_32k_under_gqa_fits_on_two_gpus_and_under_mha_takes_four() -> None:
    assert answer("llama3-70b-32k-gqa-2xh100").num_gpus == 2
    refused = plan_memory(load("llama3-70b-32k-mha-2xh100"))
    assert "1.452 GB too much" in refused.reason
    assert any(line.startswith("TP4 fits") for line in refused.suggestions)
    # twice the GPUs, and the cache of one user still makes a token no faster than these four cards read their weights
    assert answer("llama3-70b-32k-mha-4xh100").ledger.max_sequences == 1
    assert median("llama3-70b-32k-mha-4xh100", "tpot") > 0.75 * median("llama3-70b-32k-gqa-2xh100", "tpot")


def test_128k_under_mha_does_not_fit_on_the_articles_four_cards() -> None:
    assert answer("llama3-70b-128k-gqa-4xh100").ledger.max_sequences >= 4
    refused = plan_memory(load("llama3-70b-128k-mha-4xh100"))
    assert "one sequence of 131,072 tokens needs 85.9 GB of KV, 38.45 GB are left" in refused.reason
    assert refused.suggestions[0].startswith("TP8 fits")
    assert answer("llama3-70b-128k-mha-8xh100").ledger.max_sequences == 1
    # eight GPUs under MHA are slower for a token than four under GQA
    assert median("llama3-70b-128k-mha-8xh100", "tpot") > median("llama3-70b-128k-gqa-4xh100", "tpot")


# --- one GPU against two ----------------------------------------------------------------------------------------------


def test_one_card_in_int4_reads_faster_and_two_in_bf16_prefill_faster() -> None:
    one, two = answer("llama3-70b-one-gpu-int4"), answer("llama3-70b-two-gpus-bf16")
    assert (one.num_gpus, two.num_gpus) == (1, 2)
    assert one.summary["median_tpot_ms"] < two.summary["median_tpot_ms"]
    assert one.summary["median_ttft_ms"] > 1.3 * two.summary["median_ttft_ms"]
    assert one.summary["output_throughput_per_gpu"] > 2 * two.summary["output_throughput_per_gpu"]
    assert one.preemptions == two.preemptions == 0


# --- traces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["azure-conv-4xh100", "synthetic-conv-4xh100"])
def test_four_gpus_keep_up_with_real_arrivals(name: str) -> None:
    result = answer(name)
    assert load_state(result) == "stable"
    assert result.summary["slo_attainment"] > 0.98
    assert result.preemptions == 0


def test_the_azure_trace_is_replayed_whole_and_with_its_own_times() -> None:
    result = answer("azure-conv-4xh100")
    assert result.summary["completed"] == 19_366
    assert result.summary["total_output_tokens"] == 4_088_665
    assert result.requests["arrival_s"][-1] == pytest.approx(3501.72, abs=0.01)


def test_the_path_of_the_azure_scenario_leads_to_the_shared_folder_beside_the_checkout() -> None:
    assert Path(Scenario.load(FILES["azure-conv-4xh100"]).workload.arrivals.path) == AZURE  # type: ignore[union-attr]
    gone = Scenario.load(FILES["azure-conv-4xh100"], {"workload.arrivals.path": "/nowhere/trace.csv"})
    with pytest.raises(InputError, match="does not exist"):
        simulate(gone)


def test_the_synthetic_trace_comes_out_of_its_script(tmp_path: Path) -> None:
    script = tmp_path / "make_synthetic_conv.py"
    script.write_text((TRACES / script.name).read_text(encoding="utf-8"))
    runpy.run_path(str(script), run_name="__main__")
    made: Any = (tmp_path / "synthetic-conv.csv").read_bytes()
    assert made == (TRACES / "synthetic-conv.csv").read_bytes()
    trace = read_trace(TRACES / "synthetic-conv.csv")
    assert (trace.format, len(trace), trace.dropped) == ("azure", 500, 0)
