"""Writes what the shipped scenarios answer into README.md, between its begin and end marks.

Run by `make readme`; a test holds README.md to what it writes. The Azure table is kept as it is where the trace is not at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim import Result, Scenario, catalogue, simulate
from sim.errors import DoesNotFit
from sim.results.console import benchmark_table, render

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
FIRST, AZURE = "llama3-70b-2xh100-64way", "azure-conv-4xh100"

# what each scenario answers to the question in its description; the numbers are put in by the run
ANSWERS = {
    "llama3-70b-2xh100-64way": "Yes, by waiting: {most} run at most, {preemptions} preemptions; {token}, {throughput}",
    "llama3-70b-2xh100-64way-edge": "Half of the room: {most} run at most; first token after {first}, {throughput}",
    "llama3-70b-2xh100-64way-fp8": "Yes: all {most} run, {preemptions} preemptions; {token}, {throughput}, {slo} within",
    "llama3-70b-2xh100-64way-oom": "After {oom_time} on {oom_gpu}: request {oom_request} finds {oom_free} free",
    "llama3-70b-32k-gqa-2xh100": "Yes: first token after {first}, then {token}",
    "llama3-70b-32k-mha-2xh100": "No: refused, {refusal}",
    "llama3-70b-32k-mha-4xh100": "Yes: first token after {first}, then {token}",
    "llama3-70b-128k-gqa-4xh100": "Yes: first token after {first}, then {token}",
    "llama3-70b-128k-mha-4xh100": "No: refused, {refusal}",
    "llama3-70b-128k-mha-8xh100": "Yes: first token after {first}, then {token}",
    "llama3-70b-one-gpu-int4": "Yes: {token}, first token after {first}, {throughput}",
    "llama3-70b-two-gpus-bf16": "A faster first token ({first}), but {token}; {throughput}",
    "synthetic-conv-4xh100": "Yes: {token}, P99 of the first token {first_p99}, {slo} within",
}


def runs(names: Any) -> dict[str, Result | DoesNotFit]:
    """What became of each scenario."""
    done: dict[str, Result | DoesNotFit] = {}
    for name in names:
        try:
            done[name] = simulate(Scenario.load(catalogue.files("scenarios")[name]))
        except DoesNotFit as refused:
            done[name] = refused
    return done


def numbers(run: Result | DoesNotFit) -> Mapping[str, object]:
    """Everything that an answer can name."""
    if isinstance(run, DoesNotFit):
        return {"refusal": str(run).splitlines()[0].rpartition("; ")[2]}
    summary, oom = run.summary, run.oom
    if oom is not None:
        return {
            "oom_time": f"{oom['time_s']:.2f} s", "oom_gpu": oom["gpu"], "oom_request": oom["request"],
            "oom_free": f"{oom['free_bytes'] / 1e6:.0f} of the {oom['needed_bytes'] / 1e6:.0f} MB it needs",
        }  # fmt: skip
    return {
        "most": int(run.steps["running"].max()),
        "preemptions": run.preemptions or "no",
        "token": f"{summary['median_tpot_ms']:.1f} ms a token",
        "first": f"{summary['median_ttft_ms'] / 1e3:.1f} s",
        "first_p99": f"{summary['p99_ttft_ms'] / 1e3:.2f} s",
        "throughput": f"{summary['output_throughput']:,.0f} tokens/s",
        "slo": "n/a" if summary["slo_attainment"] is None else f"{summary['slo_attainment']:.1%}",
    }


def scenario_table(done: Mapping[str, Result | DoesNotFit]) -> str:
    """One line a scenario: its question and its answer."""
    lines = ["| scenario | asks | answers |", "|---|---|---|"]
    for name, answer in ANSWERS.items():
        question = Scenario.load(catalogue.files("scenarios")[name]).description
        lines.append(f"| `{name}` | {question} | {answer.format(**numbers(done[name]))} |")
    return "\n".join(lines)


def blocks() -> dict[str, str]:
    """The text between each pair of marks; no Azure table without the trace."""
    done = runs(ANSWERS)
    first = done[FIRST]
    assert isinstance(first, Result)
    answer = "\n".join(line.rstrip() for line in render(first).splitlines())
    found = {"answer": f"```console\n$ make test\n$ make run\n{answer}\n```", "scenarios": scenario_table(done)}
    azure = Scenario.load(catalogue.files("scenarios")[AZURE])
    if Path(str(azure.workload.arrivals.path)).exists():  # type: ignore[union-attr]
        shown = "\n".join(line.rstrip() for line in benchmark_table(simulate(azure).summary).splitlines())
        found["azure"] = (
            "<!-- not run in CI: the trace is an optional download -->\n"
            f"```console\n$ twowalls run {AZURE}\n{shown}\n```"
        )
    return found


def refreshed(text: str, found: Mapping[str, str]) -> str:
    """`text` with every block replaced."""
    for name, block in found.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        before, _, rest = text.partition(begin)
        _, marked, after = rest.partition(end)
        assert marked, f"README.md has no block called {name}"
        text = f"{before}{begin}{block}\n{end}{after}"
    return text


if __name__ == "__main__":
    README.write_text(refreshed(README.read_text(encoding="utf-8"), blocks()), encoding="utf-8")
