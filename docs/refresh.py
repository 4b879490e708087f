"""Writes what the code says into the pages, between their begin and end marks: answers, worked numbers, the list of modules.

Run by `make docs`; a test holds the pages to what it writes. The Azure table is kept as it is where the trace is not at hand.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sim import Result, Scenario, catalogue, simulate
from sim.cost.collectives import Communicator
from sim.cost.kernels import DecodeAttentionTime, KernelTime
from sim.cost.roofline import Roofline
from sim.errors import DoesNotFit
from sim.hardware.gpu import load_gpu
from sim.hardware.topology import load_topology
from sim.results.console import benchmark_table, render

ROOT = Path(__file__).resolve().parents[1]
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
    "deepseek-v3-4x8h100": "{token}, {throughput}; first token after {first}",
    "mixtral-8x7b-2xh100": "Yes: {token}, {throughput}",
    "gpt-oss-120b-1xh100": "Yes: {token}, {throughput}",
    "llama3-405b-fp8-8xh100": "Yes: {token}, {throughput}",
    "llama3-405b-bf16-2x8h100": "{token}, {throughput}",
    "llama3-70b-disaggregated-16xh100": "Yes: {token}, first token after {first}, {slo} within",
    "llama3-70b-aggregated-16xh100": "{token}, first token after {first}, {slo} within",
    "chat-64-users-1xh100": "First token after {first}, then {token}",
    "llama3-70b-speculative-4xh100": "{token}, {throughput}",
}
# the same for recorded traces; where one is not at hand its line stays as it is
ANSWERS_ON_TRACES = {
    "mooncake-conv-16xh100": "First token after {first} (P99 {first_p99}), then {token}; {slo} within",
    "mooncake-conv-16xh100-cached": "{hits} of the prompts; first token after {first} (P99 {first_p99}), {token}; {slo} within",
}


def _time(of_ms: float) -> str:
    return f"{of_ms:.0f} ms" if of_ms < 1000 else f"{of_ms / 1e3:.1f} s"


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
        "first": _time(summary["median_ttft_ms"]),
        "first_p99": f"{summary['p99_ttft_ms'] / 1e3:.2f} s",
        "throughput": f"{summary['output_throughput']:,.0f} tokens/s",
        "hits": f"{summary['prefix_cache_hit_rate'] or 0.0:.1%}",
        "slo": "n/a" if summary["slo_attainment"] is None else f"{summary['slo_attainment']:.1%}",
    }


def scenario_table(done: Mapping[str, Result | DoesNotFit]) -> str:
    """One line a scenario: its question and its answer."""
    lines = ["| scenario | asks | answers |", "|---|---|---|"]
    for name, answer in ANSWERS.items():
        question = Scenario.load(catalogue.files("scenarios")[name]).description
        lines.append(f"| `{name}` | {question} | {answer.format(**numbers(done[name]))} |")
    return "\n".join([*lines, *(trace_line(name) for name in ANSWERS_ON_TRACES)])


def trace_line(name: str) -> str:
    """The line of a scenario that replays a trace, run anew if the trace is at hand."""
    scenario = Scenario.load(catalogue.files("scenarios")[name])
    if Path(str(scenario.workload.arrivals.path)).exists():  # type: ignore[union-attr]
        answer = ANSWERS_ON_TRACES[name].format(**numbers(simulate(scenario)))
        return f"| `{name}` | {scenario.description} | {answer} |"
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"| `{name}` |"))


def readme() -> dict[str, str]:
    """The first answer and the tables of README.md; no Azure table without the trace."""
    done = runs(ANSWERS)
    first = done[FIRST]
    assert isinstance(first, Result)
    answer = "\n".join(line.rstrip() for line in render(first).splitlines())
    found = {"answer": f"```console\n$ make test\n$ make run\n{answer}\n```", "scenarios": scenario_table(done)}
    azure = Scenario.load(catalogue.files("scenarios")[AZURE])
    if Path(str(azure.workload.arrivals.path)).exists():  # type: ignore[union-attr]
        shown = "\n".join(line.rstrip() for line in benchmark_table(simulate(azure).summary).splitlines())
        skip = "<!-- not run in CI: the trace is an optional download -->"
        found["azure"] = f"{skip}\n```console\n$ twowalls run {AZURE}\n{shown}\n```"
    return found


def module_list() -> str:
    """One line a module: the first sentence of its docstring."""
    lines, folder = [], None
    for path in sorted((ROOT / "sim").rglob("*.py"), key=lambda path: (path.parent, path.name)):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if text is None:
            continue
        if path.parent != folder:
            folder = path.parent
            lines += ["", f"**`{folder.relative_to(ROOT).as_posix()}/`**", ""]
        first, _, _ = text.partition("\n\n")
        lines.append(f"- `{path.name}`: {' '.join(first.split())}")
    return "\n".join(lines[1:])


def kernel_table() -> str:
    """Kernels of one TP2 rank of Llama-3-70B on an H100: the back of an envelope beside the fit."""
    gpu = load_gpu("h100-sxm")
    lines = ["| kernel | envelope | fitted | fixed | memory | compute |", "|---|---|---|---|---|---|"]

    def row(name: str, times: list[KernelTime]) -> None:
        envelope, fitted = ([float(part) * 1e6 for part in (time.total_s, *time)] for time in times)
        lines.append(f"| {name} | {envelope[0]:,.1f} us | " + " | ".join(f"{us:,.1f} us" for us in fitted) + " |")

    def decode(time: DecodeAttentionTime, tokens: int) -> KernelTime:
        return KernelTime(time.fixed_s, tokens * time.memory_s_per_token, tokens * time.compute_s_per_token)

    backends = [Roofline(gpu, ideal=True), Roofline(gpu)]
    for rows in (1, 64, 512, 8192):
        row(f"GEMM of {rows} x 8192 by 8192 x 28672, bf16", [b.gemm(rows, 28672, 8192, "bf16") for b in backends])
    heads = (32, 4, 128, "bf16")
    row(
        "decode attention, 64 users of 2048 tokens",
        [decode(b.decode_attention(64, *heads), 64 * 2048) for b in backends],
    )
    row("prefill attention, one prompt of 8192 tokens", [b.prefill_attention(8192, 0, *heads) for b in backends])
    return "\n".join(lines)


def collective_table() -> str:
    """All-reduces of 16 KiB and 1 MiB on machines of the catalogue."""
    lines = [
        "| GPUs | size | algorithm | steps | launch | latency | bandwidth | time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for machine, nodes, count in (
        ("dgx-h100", 1, 2),
        ("dgx-h100", 1, 8),
        ("dgx-h100", 2, 16),
        ("cloud-h100-100gbe", 2, 16),
    ):
        topology = load_topology(machine, {"nodes": nodes})
        for size, text in ((2**14, "16 KiB"), (2**20, "1 MiB")):
            time = Communicator(topology, topology.gpus[:count], "custom").time("all_reduce", size)
            parts = (time.launch_s, time.latency_s, time.bandwidth_s, time.time_s)
            algorithm = f"{time.algorithm} {time.protocol}".strip()
            cells = [f"{count} of `{machine}`", text, algorithm, str(time.steps), *(f"{s * 1e6:.1f} us" for s in parts)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


PAGES: dict[str, Callable[[], dict[str, str]]] = {
    "README.md": readme,
    "docs/architecture.md": lambda: {"modules": module_list()},
    "docs/physics.md": lambda: {"kernels": kernel_table(), "collectives": collective_table()},
}


def refreshed(page: str) -> str:
    """The text of a page with every block written anew."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, block in PAGES[page]().items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        before, _, rest = text.partition(begin)
        _, marked, after = rest.partition(end)
        assert marked, f"{page} has no block called {name}"
        text = f"{before}{begin}{block}\n{end}{after}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(refreshed(page), encoding="utf-8")
