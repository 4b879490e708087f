"""A small engine, iteration by iteration, that writes the records a real one writes."""

from __future__ import annotations

from typing import Any

import numpy as np
from records import make_result

from sim.results.result import Result

PROMPT_TOKENS, BLOCK_TOKENS, MAX_RUNNING = 100, 16, 8
NEVER = float("nan")


class SmallEngine:
    """First come first served, preemption of the latest by recompute; an iteration prefills one prompt or decodes all.

    A prefill takes 1 ms a token, a decode 20 ms + 0.5 ms a sequence.
    """

    def __init__(self, count: int, gap_s: float, blocks: int, concurrency: int | None) -> None:
        rng = np.random.default_rng(count)
        arrivals, outputs = np.cumsum(rng.exponential(gap_s, count)), rng.integers(20, 80, count)
        self.blocks, self.concurrency = blocks, concurrency
        self.rows: list[dict[str, Any]] = [
            {"id": i, "arrival_s": float(arrivals[i]), "scheduled_s": NEVER, "first_token_s": NEVER, "finish_s": NEVER,
             "input_tokens": PROMPT_TOKENS, "output_tokens": int(outputs[i]), "generated_tokens": 0, "preemptions": 0}
            for i in range(count)
        ]  # fmt: skip
        for row in self.rows if concurrency is not None else []:
            row["arrival_s"] = 0.0 if row["id"] < (concurrency or 0) else NEVER
        self.unsent = list(self.rows)
        self.waiting: list[dict[str, Any]] = []
        self.running: list[dict[str, Any]] = []
        self.steps: list[dict[str, Any]] = []
        self.irregular: list[float] = []
        self.last_token: dict[int, float] = {}
        self.now = 0.0

    def run(self) -> None:
        while self.waiting or self.running or self.unsent:
            while self.unsent and self.unsent[0]["arrival_s"] <= self.now:
                self.waiting.append(self.unsent.pop(0))
            if self.running or self.waiting:
                self.iterate()
            else:
                self.now = self.unsent[0]["arrival_s"]

    def held(self, row: dict[str, Any], more: int = 0) -> int:
        return -(-(PROMPT_TOKENS + row["generated_tokens"] + more) // BLOCK_TOKENS)

    def iterate(self) -> None:
        used = sum(self.held(row) for row in self.running)
        step: dict[str, Any] = {"start_s": self.now, "iterations": 1}
        if self.waiting and len(self.running) < MAX_RUNNING and used + self.held(self.waiting[0]) <= self.blocks:
            row = self.waiting.pop(0)
            tokens = PROMPT_TOKENS + row["generated_tokens"]
            step |= {"first_s": 0.001 * tokens, "prefill_tokens": tokens, "prefills": 1}
            if row["preemptions"] == 0:
                row["scheduled_s"] = self.now
            self.running.append(row)
            batch = [row]
        else:
            step["preempted"] = self.preempt()
            batch = list(self.running)
            step |= {"first_s": 0.02 + 0.0005 * len(batch), "decodes": len(batch)}
        step |= {"sampled": len(batch), "running": len(self.running), "waiting": len(self.waiting),
                 "used_blocks": sum(self.held(row) for row in self.running)}  # fmt: skip
        self.steps.append(step)
        step["itl_tokens"] = sum(self.token(row, self.now, self.now + step["first_s"]) for row in batch)
        self.now += step["first_s"]

    def preempt(self) -> int:
        count = 0
        while sum(self.held(row, 1) for row in self.running) > self.blocks:
            victim = self.running.pop()
            victim["preemptions"] += 1
            self.waiting.insert(0, victim)
            count += 1
        return count

    def token(self, row: dict[str, Any], start_s: float, end_s: float) -> bool:
        """One more token of `row`; whether its gap is this iteration."""
        before = self.last_token.get(row["id"])
        self.last_token[row["id"]] = end_s
        row["generated_tokens"] += 1
        if before is None:
            row["first_token_s"] = end_s
        elif before != start_s:
            self.irregular.append(end_s - before)
        if row["generated_tokens"] == row["output_tokens"]:
            row["finish_s"] = end_s
            self.running.remove(row)
            if self.concurrency is not None and self.unsent:
                self.unsent[0]["arrival_s"] = end_s
                self.waiting.append(self.unsent.pop(0))
        return before == start_s


def busy_engine(count: int = 60, *, gap_s: float = 0.2, blocks: int = 100, concurrency: int | None = None) -> Result:
    """The result of a small engine: Poisson arrivals, or a closed loop of `concurrency` users."""
    engine = SmallEngine(count, gap_s, blocks, concurrency)
    engine.run()
    open_loop = {"kind": "poisson", "request_rate": 1 / gap_s} if gap_s else {"kind": "burst"}
    closed = {"kind": "closed_loop", "concurrency": concurrency}
    scenario = {
        "name": "busy",
        "model": "llama-3.1-8b",
        "slo": {"ttft": "3 s", "tpot": "60 ms"},
        "workload": {
            "arrivals": closed if concurrency else open_loop,
            "num_requests": count,
            "seed": 3,
        },
    }
    return make_result(
        engine.rows, engine.steps, irregular_gaps_s=engine.irregular, scenario=scenario, kv_blocks=blocks
    )
