"""vLLM's recorded decisions again, this time through the whole engine: what is replayed is what runs.

Iterations last one second, so that a recorded iteration has a time; requests arrive at that time. A leap stands for several
recorded iterations, and is expanded into them. Iterations that compute nothing take no time in the engine and are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from engine_runs import AffineCost
from reference.random_cases import random_case
from reference.scaled_cases import scaled_case
from replay_scheduler import build, decodes_now, expand, load, recorded, sequences
from test_scheduler import recording

from sim.engine.batch import Batch
from sim.engine.batching import VllmScheduler
from sim.engine.clock import Clock
from sim.engine.recorder import Recorder
from sim.engine.replica import Replica
from sim.engine.sequence import Sequence
from sim.errors import ClockStuck

TRACES = Path(__file__).resolve().parents[2] / "shared" / "data" / "vllm_scheduler"
IDLE_S = 1000.0
"""Time between the end of a busy period and the arrival that begins the next one."""
Line = dict[str, Any]


def starts_s(lines: list[Line]) -> list[float]:
    """When each recorded iteration begins: those that compute take a second, the others none."""
    out, now_s = [], 0.0
    for before, line in zip([None, *lines], lines, strict=False):
        if before is not None:
            now_s += float(computes(before))
            now_s += IDLE_S if line["i"] > before["i"] + 1 else 0.0
        out.append(now_s)
    return out


def computes(line: Line) -> bool:
    return bool(line.get("p") or line.get("d"))


@dataclass
class Engine:
    """One replica fed with the requests of a recording, writing down what it decides."""

    header: Line
    lines: list[Line]
    granularity: str
    decided: list[Line] = field(default_factory=list)
    finished: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.env = Clock()
        self.scheduler = build(self.header)
        self.sequences = sequences(self.header)
        self.arrival = {request["id"]: request["arrival"] for request in self.header["requests"]}
        self.is_async = self.scheduler.limits.async_scheduling
        self.times_s = starts_s(self.lines)
        self.row_of = {line["i"]: row for row, line in enumerate(self.lines)}
        self.replica = Replica(
            self.env, 0, self.scheduler, AffineCost(1.0, 0.0, 0.0, 0.0), Recorder(), self.on_finish,
            leaps=self.granularity == "leap", observer=self.observe,
        )  # fmt: skip
        self.just_scheduled: list[list[Sequence]] = []
        self._inject()

    def _inject(self) -> None:
        """Sends every request when the engine must get it for the recorded iteration to be the first that sees it.

        Asynchronously that is when the iteration before is scheduled; if that one ended an idle time, in between.
        """
        between: dict[tuple[float, int], list[Sequence]] = {}  # by the time and the number of the schedule() then
        for row, line in enumerate(self.lines):
            for id in expand(line.get("add", "")):
                seq, time_s = self.sequences[id], self.times_s[row]
                if self.is_async and row and line["i"] == self.lines[row - 1]["i"] + 1:
                    time_s = self.times_s[row - 1]
                    number = self.times_s[: row - 1].count(time_s)
                    if number or row == 1 or self.lines[row - 1]["i"] > self.lines[row - 2]["i"] + 1:
                        between.setdefault((time_s, number), []).append(seq)
                        continue
                self.env.timeout(time_s).callbacks.append(lambda _, seq=seq: self.replica.submit(seq))
        update, schedules = self.scheduler.update, Counter[float]()

        def after_schedule() -> Items[Sequence]:
            for seq in between.pop((self.env.now, schedules[self.env.now]), []):
                self.replica.submit(seq)
            schedules[self.env.now] += 1
            return update()

        self.scheduler.update = after_schedule  # type: ignore[method-assign]

    def on_finish(self, seq: Sequence, now_s: float) -> None:
        self.finished.append((seq.id, now_s))

    def observe(self, scheduler: VllmScheduler, batch: Batch, planned: int) -> None:
        """A segment is over: one decision for each of its iterations."""
        chunked = {seq for _, _, seq, _ in batch.chunks}
        decoding = batch.decoding
        if decoding is None:
            decoding = [seq for seq in scheduler.running if decodes_now(seq, batch, chunked)]
        assert len(decoding) == batch.decodes
        first = self.times_s.index(self.env.now - planned)
        while not computes(self.lines[first]):
            first += 1
        for number in range(planned):
            line = self.lines[first + number]["i"]
            self.decided.append({
                "i": line,
                "adm": [[s.id, s.cached_tokens, "res" if s.preemptions else "new"] for s in batch.admitted],
                "p": [[seq.id, start, tokens] for start, tokens, seq, _ in batch.chunks],
                "d": [seq.id for seq in decoding],
                "pre": [seq.id for seq in batch.preempted],
                "run": len(scheduler.running),
                "wait": sum(self.arrival[seq.id] <= line for seq in scheduler.waiting),
                "free": scheduler.pool.free - scheduler.decodes.blocks_needed(batch.iteration + 1, number),
            })  # fmt: skip

    def run(self) -> None:
        try:
            self.env.stop_at(self.times_s[-1] + 1.5)
            self.env.drain()
        except ClockStuck:
            assert self.header["status"] != "complete"


def expected(engine: Engine) -> list[Line]:
    """The recording in the words of `observe`, which is asked at the end of an iteration, after an asynchronous update."""
    out = []
    for line in engine.lines:
        if not computes(line):
            continue
        want = {"i": line["i"], **recorded(line)}
        if engine.is_async:
            want["free"] = line.get("free_end", line["free"])
            waited = set(want["pre"]) & set(line.get("fin", []))  # preempted with its last token in flight
            want["run"] -= len(line.get("fin", [])) - len(waited)
            want["wait"] -= len(waited)
        out.append(want)
    return out


def differs(header: Line, lines: list[Line], granularity: str) -> str | None:
    """The first decision of the whole engine that is not the recorded one, or None."""
    engine = Engine(header, lines, granularity)
    engine.run()
    want = expected(engine)
    pairs = zip_longest(engine.decided, want)
    return next((f"decided {mine}, recorded {theirs}" for mine, theirs in pairs if mine != theirs), None)


@pytest.mark.parametrize("granularity", ["leap", "step"])
def test_the_engine_decides_what_the_plain_reference_decides(granularity: str) -> None:
    cases = [random_case(seed) for seed in range(150)] + [scaled_case(seed) for seed in range(40)]
    recordings = [(case.name, *recording(case)) for case in cases]
    complete = [(name, header, lines) for name, header, lines in recordings if header["status"] == "complete"]
    found = {name: differs(header, lines, granularity) for name, header, lines in complete}
    assert {name: difference for name, difference in found.items() if difference} == {}
    assert len(found) > 120


@pytest.mark.parametrize("granularity", ["leap", "step"])
@pytest.mark.parametrize("path", sorted(TRACES.glob("**/dev_*.jsonl")), ids=lambda path: path.stem)
def test_the_engine_decides_what_vllm_decided(path: Path, granularity: str) -> None:
    header, lines = load(path)
    engine = Engine(header, lines, granularity)
    engine.run()
    want = expected(engine)
    for mine, theirs in zip(engine.decided, want, strict=False):
        assert mine == theirs
    assert len(engine.decided) == len(want)
    ended = [(id, row) for row, line in enumerate(lines) for id in line.get("fin", [])]
    delay_s = 0.0 if engine.is_async else 1.0
    assert engine.finished == [(id, engine.times_s[row] + delay_s) for id, row in ended]
