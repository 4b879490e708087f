"""The answer of a plan: in words, as a table, as files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sim.results.console import table
from sim.studies.plan import HEADROOM, SEEDS, Choice, with_replicas
from sim.studies.prices import Prices

SHOWN = 12


def plan_text(choices: Sequence[Choice], prices: Prices, request_rate: float | None = None) -> str:
    """The whole answer: what to deploy and why, the golden rule, the ranking, and what was left out."""
    ranked = [choice for choice in choices if choice.cost is not None]
    if not ranked:
        reasons = [f"  {choice.candidate.words}: {choice.reason}" for choice in choices[:SHOWN]]
        return "\n".join(["Nothing that was tried keeps the SLO.", *reasons])
    parts = [
        _answer(ranked, request_rate),
        golden_rule(choices),
        _ranking(ranked),
        _rest(choices),
        _small_print(prices),
    ]
    return "\n\n".join(parts)


def _answer(ranked: Sequence[Choice], request_rate: float | None) -> str:
    best = ranked[0]
    assert best.cost is not None
    lines = [
        f"Deploy {best.candidate.words}: ${_money(best.usd)} a million output tokens"
        f" at {best.cost.request_rate:.3g} requests/s."
    ]
    if request_rate is not None:
        count = with_replicas(best, request_rate)
        lines.append(
            f"For {request_rate:g} requests/s it takes {count} of them"
            f" ({count * best.candidate.gpus} GPUs, ${count * best.candidate.usd_per_h:,.2f} an hour)."
        )
    if len(ranked) > 1:
        lines.append(
            f"It beats {ranked[1].candidate.words} (${_money(ranked[1].usd)}) because {because(best, ranked[1])}."
        )
    quick = min((c for c in ranked if c.status == "ranked"), key=_latency, default=best)
    if quick is not best:
        lines.append(f"Of the verified, {quick.candidate.words} answers soonest ({_latency(quick):.2f} s alone).")
    by_candidate = {choice.candidate: choice for choice in ranked}
    several = sorted((c for c in ranked if c.candidate.copy_of in by_candidate), key=lambda c: c.candidate.data)
    lines += [_copies(by_candidate[c.candidate.copy_of], c) for c in several if c.candidate.copy_of is not None]
    return "\n".join(lines)


def _copies(one: Choice, several: Choice) -> str:
    """What queueing behind one router does to copies of a deployment."""
    assert one.cost is not None
    assert several.cost is not None
    each = several.cost.request_rate / several.candidate.data
    return (
        f"{several.candidate.data} copies of {one.candidate.words} behind one router carry {several.cost.request_rate:.3g}"
        f" requests/s, {each / one.cost.request_rate - 1:+.0%} a copy."
    )


def _money(usd: float) -> str:
    """Dollars to the cent, and below one to a tenth of it."""
    return f"{usd:.2f}" if usd >= 1 else f"{usd:.3f}"


def _latency(choice: Choice) -> float:
    return float("inf") if choice.screened is None else choice.screened.latency_alone_s


def because(better: Choice, worse: Choice) -> str:
    """What makes `better` cheaper: the price of its hour, or what an hour yields, and there the walls that differ most."""
    assert better.cost is not None
    assert worse.cost is not None
    hour, other_hour = better.candidate.usd_per_h, worse.candidate.usd_per_h
    tokens, other_tokens = better.cost.output_tokens_per_s, worse.cost.output_tokens_per_s
    told = f"its hour costs ${hour:.2f} against ${other_hour:.2f} and yields {tokens:,.0f} against {other_tokens:,.0f} tokens/s"
    walls, others = better.metrics.get("walls_ms_per_token") or {}, worse.metrics.get("walls_ms_per_token") or {}
    gpus, other_gpus = better.candidate.gpus_a_replica, worse.candidate.gpus_a_replica
    # GPU-milliseconds: a millisecond of two GPUs costs twice
    spent = {cause: others.get(cause, 0.0) * other_gpus - walls.get(cause, 0.0) * gpus for cause in {*walls, *others}}
    from sim.results.verdict import label

    most = [cause for cause in sorted(spent, key=spent.__getitem__, reverse=True)[:2] if spent[cause] >= 1]
    saved = [f"{spent[cause]:.0f} GPU-ms less of {label(cause)}" for cause in most]
    return told + (f"; a token takes {' and '.join(saved)}" if saved else "")


def golden_rule(choices: Sequence[Choice]) -> str:
    """One card before several, one node before several: whether it holds here, and if not why."""
    lines = ["The golden rule:"]
    whole = [choice for choice in choices if choice.candidate.copy_of is None]
    for noun, alone in (
        ("card", [choice for choice in whole if choice.candidate.gpus == 1]),
        ("node", [choice for choice in whole if choice.candidate.nodes == 1]),
    ):
        apart = [choice for choice in whole if choice not in alone]
        one, several = (min((c for c in some if c.cost), key=lambda c: c.usd, default=None) for some in (alone, apart))
        if one is None:
            tried = alone[0] if alone else None
            lines.append(
                f"  one {noun} before several: no single {noun} can do it" + (f" ({tried.reason})" if tried else "")
            )
        elif several is None:
            lines.append(f"  one {noun} before several: nothing on several {noun}s came near{_nearest(apart)}")
        elif one.usd <= several.usd:
            lines.append(f"  one {noun} before several holds: {_against(one, several)}")
        else:
            lines.append(f"  one {noun} before several is wrong here: {_against(several, one)}")
    return "\n".join(lines)


def _nearest(apart: Sequence[Choice]) -> str:
    """The cheapest by the closed form of what was not run, and why it was not."""
    near = min(apart, key=lambda choice: choice.estimate_usd, default=None)
    return "" if near is None else f"; {near.candidate.words}: {near.reason}"


def _against(better: Choice, worse: Choice) -> str:
    first, second = (f"{choice.candidate.words} (${_money(choice.usd)})" for choice in (better, worse))
    return f"{first} before {second}; {because(better, worse)}"


def _ranking(ranked: Sequence[Choice]) -> str:
    by_latency = {id(c): place + 1 for place, c in enumerate(sorted(ranked, key=_latency))}
    rows = []
    for choice in ranked[:SHOWN]:
        assert choice.cost is not None
        m, joules = choice.metrics, choice.cost.joules_per_output_token
        rows.append([
            choice.candidate.name, choice.status, f"{choice.candidate.gpus}", _money(choice.usd),
            f"{choice.cost.request_rate:.3g}", f"{choice.cost.output_tokens_per_s:,.0f}",
            f"{m['p99_ttft_ms']:,.0f}", f"{m['p99_tpot_ms']:,.1f}", f"{_latency(choice):.2f}", f"{by_latency[id(choice)]}",
            "-" if joules is None else f"{joules:.2f}",
        ])  # fmt: skip
    header = ["deployment", "status", "GPUs", "$/1M out", "req/s", "tok/s", "TTFT p99 ms", "TPOT p99 ms", "alone s",
              "by latency", "J/token <="]  # fmt: skip
    more = [f"... and {len(ranked) - SHOWN} more in candidates.csv"] if len(ranked) > SHOWN else []
    return "\n".join([table(header, rows), *more])


def _rest(choices: Sequence[Choice]) -> str:
    counts = {status: sum(c.status == status for c in choices) for status in ("infeasible", "screened", "failed")}
    told = {"infeasible": "do not fit", "screened": "are too slow or too dear", "failed": "cannot be made"}
    parts = [f"{count} {told[status]}" for status, count in counts.items() if count]
    return f"Of {len(choices)} candidates " + (
        ", ".join(parts) + "; candidates.csv says why." if parts else "all were run."
    )


def _small_print(prices: Prices) -> str:
    return (
        f"Rates leave {1 - HEADROOM:.0%} of the lowest capacity over {SEEDS} seeds; simulated (not ranked) rows stand on short"
        f" runs of one seed.\nPrices of {prices.date}: {prices.source}.\nJoules count a busy GPU at its printed power limit."
    )


def plan_rows(choices: Sequence[Choice]) -> list[dict[str, Any]]:
    """Every candidate as plain data, for `--json`."""
    rows = []
    for rank, choice in enumerate(choices, 1):
        candidate, cost = choice.candidate, choice.cost
        rows.append(
            {
                "rank": rank if cost is not None else None,
                "name": candidate.name,
                "status": choice.status,
                "reason": choice.reason,
                "deployment": {
                    "gpu": candidate.offer.gpu,
                    "gpus": candidate.gpus,
                    "nodes": candidate.nodes,
                    "tensor_parallel_size": candidate.tensor,
                    "pipeline_parallel_size": candidate.pipeline,
                    "data_parallel_size": candidate.data,
                    "prefill_replicas": candidate.prefill,
                    "decode_replicas": candidate.decode,
                    "placement": candidate.placement,
                    "enable_expert_parallel": candidate.expert_parallel,
                    "weights": candidate.precision,
                },
                "metrics": choice.metrics | {"latency_alone_s": None if choice.screened is None else _latency(choice)},
                "capacity": None if choice.capacity is None else list(choice.capacity),
                "cost": None
                if cost is None
                else {
                    "request_rate": cost.request_rate,
                    "output_tokens_per_s": cost.output_tokens_per_s,
                    "usd_per_h": cost.usd_per_h,
                    "usd_per_million_output_tokens": cost.usd_per_million_output_tokens,
                    "joules_per_output_token": cost.joules_per_output_token,
                },
                "scenario": f"scenarios/{candidate.name}.yaml" if cost is not None else None,
            }
        )
    return rows


def write_plan(choices: Sequence[Choice], folder: Path) -> None:
    """Write candidates.csv, with a line and a reason for every candidate, and the scenario of each that was run."""
    (folder / "scenarios").mkdir(parents=True, exist_ok=True)
    for choice in choices:
        if choice.cost is not None and choice.scenario is not None:
            data = choice.scenario.to_dict(relative_to=folder / "scenarios")
            path = folder / "scenarios" / f"{choice.candidate.name}.yaml"
            path.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
    rows = []
    for row in plan_rows(choices):
        metrics = {k: v for k, v in row["metrics"].items() if not isinstance(v, dict)}
        flat = {k: v for k, v in row.items() if not isinstance(v, (dict, list))}
        rows.append(flat | row["deployment"] | (row["cost"] or {}) | metrics)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "candidates.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
