"""Replicas, router and workload on one clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import simpy
from simpy.core import EmptySchedule
from simpy.events import Event, Timeout

from sim.engine.recorder import CUT, REJECTED, Recorder
from sim.engine.replica import KvOutOfMemory, ServingReplica
from sim.engine.router import Router
from sim.engine.sequence import Sequence
from sim.errors import ClockStuck
from sim.workload.content import Content
from sim.workload.workload import Workload

ARRIVALS_AT_ONCE = 4096
"""Requests whose arrival times are turned into Python numbers together: arrays stay small, loops stay fast."""


@dataclass(slots=True)
class Outcome:
    """How the clock stopped."""

    end_s: float
    events: int
    out_of_memory: KvOutOfMemory | None = None
    stuck: str = ""
    timed_out: bool = False


class CountingEnvironment(simpy.Environment):
    """An environment that knows how many events it has scheduled (SimPy numbers them to break ties)."""

    @property
    def events(self) -> int:
        return next(self._eid)


class Cluster:
    """Plays one workload on replicas that share a clock."""

    def __init__(
        self,
        env: CountingEnvironment,
        workload: Workload,
        recorder: Recorder,
        router: Router,
        *,
        max_model_len: int,
        entry_s: float = 0.0,
        exit_s: float = 0.0,
        content: Callable[[int], Content | None] | None = None,
        progress: Callable[[float, int], None] | None = None,
    ) -> None:
        self.env = env
        self.workload = workload
        self.recorder = recorder
        self.router = router
        self.replicas: list[ServingReplica] = []
        self.finished = 0
        self._max_model_len = max_model_len
        self._entry_s = entry_s
        """From the client's send to the engine's queue: HTTP, tokenisation."""
        self._exit_s = exit_s
        self._content = content
        self._progress = progress
        self._sent = 0
        self._in_flight: dict[Sequence, ServingReplica] = {}
        self._next = self._requests()
        self._upcoming: tuple[float, int, int] | None = None

    # --- the workload -----------------------------------------------------------------------------------------------------

    def _requests(self) -> Iterator[tuple[float, int, int, float]]:
        """(arrival, prompt tokens, output tokens, think time) of each request in order."""
        load = self.workload
        for start in range(0, len(load), ARRIVALS_AT_ONCE):
            part = slice(start, start + ARRIVALS_AT_ONCE)
            prompts, outputs = load.input_tokens[part].tolist(), load.output_tokens[part].tolist()
            zeros = [0.0] * len(prompts)
            arrivals = zeros if load.arrival_s is None else load.arrival_s[part].tolist()
            thinks = zeros if load.think_time_s is None else load.think_time_s[part].tolist()
            yield from zip(arrivals, prompts, outputs, thinks, strict=True)

    def _send(self, arrival_s: float, prompt_tokens: int, output_tokens: int) -> None:
        """The next request reaches the router now."""
        id = self._sent
        self._sent += 1
        content = None if self._content is None else self._content(id)
        seq = Sequence(id, arrival_s, prompt_tokens, output_tokens, self._max_model_len, content)
        if prompt_tokens >= self._max_model_len:
            self.recorder.request(seq, -1, float("nan"), REJECTED, 0.0)
            self.over(seq, self.env.now)
            return
        replica = self.router.choose(self.replicas, seq)
        self._in_flight[seq] = replica
        replica.submit(seq)

    def over(self, seq: Sequence, now_s: float) -> None:
        """A request is over: a user of a closed loop sends the next one."""
        self.finished += 1
        self._in_flight.pop(seq, None)
        if self._progress is not None and not self.finished & 255:
            self._progress(now_s, self.finished)
        if self.workload.arrival_s is None:
            self._send_next(self._exit_s)

    def _send_next(self, delay_s: float) -> None:
        request = next(self._next, None)
        if request is None:
            return
        _, prompt_tokens, output_tokens, think_s = request
        wait_s = delay_s + think_s + self._entry_s
        arrival_s = self.env.now + delay_s + think_s
        if wait_s <= 0:
            self._send(arrival_s, prompt_tokens, output_tokens)
            return
        timer = self.env.timeout(wait_s)
        timer.callbacks.append(lambda _: self._send(arrival_s, prompt_tokens, output_tokens))

    def _open_loop(self, _: Event | None = None) -> None:
        """Sends what is due now and waits for the next arrival."""
        env = self.env
        while True:
            if self._upcoming is not None:
                self._send(*self._upcoming)
            request = next(self._next, None)
            if request is None:
                return
            arrival_s = request[0]
            self._upcoming = request[:3]
            wait_s = arrival_s + self._entry_s - env.now
            if wait_s > 0:
                Timeout(env, wait_s).callbacks.append(self._open_loop)
                return

    def _closed_loop(self) -> None:
        users = min(self.workload.concurrency or 1, len(self.workload))
        for user in range(users):
            start_s = self.workload.ramp_s * user / users
            self._send_next(start_s)

    # --- the clock --------------------------------------------------------------------------------------------------------

    def run(self, time_limit_s: float | None = None) -> Outcome:
        """Plays the workload to its end, to the time limit, or to the first failed allocation."""
        env = self.env
        if self.workload.arrival_s is None:
            self._closed_loop()
        else:
            self._open_loop()
        outcome = Outcome(0.0, 0)
        try:
            if time_limit_s is None:
                self._drain()
            else:
                env.run(until=time_limit_s)
                outcome.timed_out = self.finished < len(self.workload)
        except KvOutOfMemory as error:
            outcome.out_of_memory = error
        except ClockStuck as error:
            outcome.stuck = str(error)
        outcome.end_s, outcome.events = env.now, env.events
        if self.finished < len(self.workload):
            if time_limit_s is None and not outcome.stuck and outcome.out_of_memory is None:
                outcome.stuck = self._stuck_reason()
            self._cut()
        return outcome

    def _drain(self) -> None:
        """Runs until every request is over; timers that nobody waits for any more are left in the queue."""
        step, total = self.env.step, len(self.workload)
        with suppress(EmptySchedule):
            while self.finished < total:
                step()

    def _stuck_reason(self) -> str:
        waiting = next(iter(self._in_flight), None)
        if waiting is None:
            return "no event is left although requests are missing"
        return (
            f"request {waiting.id} ({waiting.known_tokens} tokens) can never be admitted: its replica's KV cache is too small, "
            f"and {len(self._in_flight)} requests wait for ever"
        )

    def _cut(self) -> None:
        """Records what was in flight when the clock stopped, and what was never sent."""
        for seq, replica in self._in_flight.items():
            replica.write_back(seq)
            self.recorder.request(seq, replica.index, float("nan"), CUT, self._exit_s)
        for replica in self.replicas:
            replica.stop()
        for arrival_s, prompt_tokens, output_tokens, _ in self._next:
            if self.workload.arrival_s is None:
                break  # a closed loop sends a request when the one before is answered, so these were never due
            seq = Sequence(self._sent, arrival_s, prompt_tokens, output_tokens, self._max_model_len)
            self._sent += 1
            self.recorder.request(seq, -1, float("nan"), CUT, 0.0)
