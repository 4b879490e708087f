"""A result on the terminal: vLLM's table, the memory ledger, the walls, the verdict. Plain text, for pipes too."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from sim.model.balance import MemoryLedger
from sim.results.assertions import Verified
from sim.results.result import Result
from sim.results.verdict import label, verdict

WIDTH = 50
"""Width of the table that `vllm bench serve` prints."""
_PAGE = 110
_BAR = 40
_SECTIONS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
_DEFINITIONS = (
    "TTFT counts from arrival; TPOT = (E2EL - TTFT) / (tokens - 1); ITL are single gaps, pooled over all requests."
)


def _row(name: str, value: Any) -> str:
    if value is None:
        value = "n/a"
    return f"{name:<40} {value:<10.2f}" if isinstance(value, float) else f"{name:<40} {value:<10}"


def benchmark_table(summary: Mapping[str, Any]) -> str:
    """The table that `vllm bench serve` prints, row by row."""
    rows = [
        f"{' Serving Benchmark Result ':=^{WIDTH}}",
        _row("Successful requests:", summary["completed"]),
        _row("Failed requests:", summary["failed"]),
    ]
    if summary["max_concurrency"] is not None:
        rows.append(_row("Maximum request concurrency:", summary["max_concurrency"]))
    if summary["request_rate"] != "inf":
        rows.append(_row("Request rate configured (RPS):", float(summary["request_rate"])))
    rows += [
        _row("Benchmark duration (s):", summary["duration"]),
        _row("Total input tokens:", summary["total_input_tokens"]),
        _row("Total generated tokens:", summary["total_output_tokens"]),
        _row("Request throughput (req/s):", summary["request_throughput"]),
    ]
    if summary["request_goodput"] is not None:
        rows.append(_row("Request goodput (req/s):", summary["request_goodput"]))
    rows += [
        _row("Output token throughput (tok/s):", summary["output_throughput"]),
        _row("Peak output token throughput (tok/s):", summary["max_output_tokens_per_s"]),
        _row("Peak concurrent requests:", float(summary["max_concurrent_requests"])),
        _row("Total token throughput (tok/s):", summary["total_token_throughput"]),
    ]
    for metric, title in _SECTIONS.items():
        rows.append(f"{title:-^{WIDTH}}")
        for name, statistic in (("Mean", "mean"), ("Median", "median"), ("P99", "p99")):
            rows.append(_row(f"{name} {metric.upper()} (ms):", summary[f"{statistic}_{metric}_ms"]))
    return "\n".join([*rows, "=" * WIDTH])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first to the left and the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = f"{cells[0]:<{widths[0]}}"
        return "  ".join(
            [first, *(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True))]
        ).rstrip()

    return "\n".join([line(header), *(line(row) for row in rows)])


_CLASSES = {
    "capacity_bytes": "capacity",
    "usable_bytes": "usable",
    "weights_bytes": "weights",
    "activation_bytes": "activations",
    "overhead_bytes": "overhead",
    "kv_pool_bytes": "KV pool",
}


def memory_table(ledger: MemoryLedger) -> str:
    """Bytes by class for each GPU (GPUs alike on one line), and what the KV pool holds."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for gpu in ledger.per_gpu:
        alike.setdefault(tuple(f"{getattr(gpu, name) / 1e9:.2f}" for name in _CLASSES), []).append(gpu.gpu)
    rows = [[span(names), *cells] for cells, names in alike.items()]
    lines = [
        "Memory of each GPU in GB (1e9 bytes)",
        textwrap.indent(table(["GPU", *_CLASSES.values()], rows), "  "),
        f"  KV cache: {ledger.kv_bytes_per_token:,.0f} B a token of the whole model;"
        f" {ledger.kv_tokens_capacity:,} tokens fit, {ledger.max_sequences:,} sequences of full length",
    ]
    return "\n".join(lines)


def span(names: Sequence[str]) -> str:
    """Names of GPUs alike in one cell: the first, the last and how many."""
    return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names)})"


def walls_table(walls_ms_per_token: Mapping[str, float]) -> str:
    """Where a token's milliseconds go, with a bar for each cause that took any."""
    total = sum(walls_ms_per_token.values())
    rows = [
        f"  {label(cause):<24} {ms:>10.3f} ms {ms / total:>7.1%}  {'#' * round(_BAR * ms / total)}".rstrip()
        for cause, ms in walls_ms_per_token.items()
        if ms
    ]
    return "\n".join([f"Where a token's milliseconds go ({total:.2f} ms of a mean output token)", *rows])


def render(result: Result, verified: Sequence[Verified] = ()) -> str:
    """The whole answer of one run."""
    parts = [_asked(result.scenario, result.status)]
    parts.append(benchmark_table(result.summary) + "\n" + textwrap.fill(_DEFINITIONS, _PAGE))
    if result.ledger is not None:
        parts.append(memory_table(result.ledger))
    if any(ms > 0 for ms in result.walls_ms_per_token.values()):
        parts.append(walls_table(result.walls_ms_per_token))
    parts.append("Verdict\n" + "\n".join(_item(sentence) for sentence in verdict(result)))
    if verified:
        parts.append("Assertions\n" + "\n".join(_item(_assertion(line)) for line in verified))
    parts.append(textwrap.fill(self_checks_line(result.self_checks), _PAGE))
    parts += ["\n".join(["Notes", *(_item(note) for note in result.notes)])] if result.notes else []
    return "\n\n".join(parts)


def _asked(scenario: Mapping[str, Any], status: str) -> str:
    """Name and status of a run, and the question that its scenario asks."""
    question = str(scenario.get("description", ""))
    return f"{scenario.get('name', 'scenario')}: {status}" + (f"\n{textwrap.fill(question, _PAGE)}" if question else "")


def refusal(scenario: Mapping[str, Any], reason: str) -> str:
    """The answer for a scenario that does not fit: `reason` is why, and on further lines what would."""
    why, *remedies = reason.splitlines()
    parts = [_asked(scenario, "infeasible"), f"Verdict\n{_item(f'It does NOT fit. {why}')}"]
    if remedies:
        parts.append("What would hold what the scenario asks for\n" + "\n".join(_item(one.strip()) for one in remedies))
    return "\n\n".join(parts)


def _item(sentence: str) -> str:
    return textwrap.fill(sentence, _PAGE, initial_indent="  - ", subsequent_indent="    ")


def _assertion(line: Verified) -> str:
    actual = "nothing was measured" if line.actual is None else f"measured {line.actual:.6g}"
    return f"{'holds' if line.held else 'FAILS'}: {line.text} ({actual})"


def self_checks_line(self_checks: Sequence[Mapping[str, Any]]) -> str:
    """One line: how many laws hold, or which are broken."""
    broken = [f"{check['name']} ({check['detail']})" for check in self_checks if not check["held"]]
    if broken:
        return "Self-checks BROKEN: " + "; ".join(broken)
    return (
        f"Self-checks: {len(self_checks)} of {len(self_checks)} hold ("
        + ", ".join(c["name"] for c in self_checks)
        + ")"
    )


def memory_answer(ledger: MemoryLedger, nominal: MemoryLedger) -> str:
    """What `twowalls memory` prints: the ledger in both accountings, whether it fits, and what would make it fit."""
    gpu = nominal.per_gpu[0]
    lines = [
        memory_table(ledger),
        f"  {ledger.parameters:,} parameters, {ledger.weights_bytes / 1e9:,.1f} GB of weights in one copy",
        "",
        f"Back of an envelope (parameters x bytes against the printed size): {gpu.weights_bytes / 1e9:,.1f} GB of weights on"
        f" each {gpu.capacity_bytes / 1e9:,.0f} GB card; {nominal.kv_tokens_capacity:,} tokens of KV cache",
        "",
        f"{'It fits.' if ledger.fits else 'It does NOT fit:'} {ledger.reason}",
    ]
    if ledger.suggestions:
        lines += [
            "What would hold what the scenario asks for:",
            *(_item(suggestion) for suggestion in ledger.suggestions),
        ]
    return "\n".join(lines)
