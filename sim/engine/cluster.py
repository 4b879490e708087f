"""Replicas, router and workload on one clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from simpy.core import Infinity

from sim.collector import collector_paused
from sim.engine.clock import Clock
from sim.engine.recorder import CUT, REJECTED, Recorder
from sim.engine.router import Router
from sim.engine.sequence import Sequence
from sim.engine.serving import KvOutOfMemory, ServingReplica
from sim.errors import ClockStuck
from sim.workload.content import Content
from sim.workload.workload import Workload

ARRIVALS_AT_ONCE = 4096
"""Requests whose arrival times are turned into Python numbers together: arrays stay small, loops stay fast."""
Request = tuple[int, float, int, int, float]
"""(row, arrival, prompt tokens, output tokens, think time)"""
NO_MORE: Request = (-1, Infinity, 0, 0, 0.0)
"""Comes after the last request."""


@dataclass(slots=True)
class Outcome:
    """How the clock stopped."""

    end_s: float
    events: int
    out_of_memory: KvOutOfMemory | None = None
    stuck: str = ""
    timed_out: bool = False


class Cluster:
    """Plays one workload on replicas that share a clock."""

    def __init__(
        self,
        env: Clock,
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
        self._total = len(workload)
        self._next_turn = None if workload.next_turn is None else workload.next_turn.tolist()
        self._labelled = any(column is not None for column in (workload.session, workload.tenant, workload.priority))
        self._in_flight: dict[Sequence, ServingReplica] = {}
        self._homeless: list[Sequence] = []
        self._next = chain.from_iterable(self._requests())
        self._upcoming = NO_MORE
        self._at_once: deque[tuple[int, float, int, int]] = deque()
        """What is sent without any delay, while something is being sent."""
        self._sending = False
        self._limited = False

    # --- the workload -----------------------------------------------------------------------------------------------------

    def _requests(self) -> Iterator[Iterable[Request]]:
        """The requests in order, many at once, later turns left out."""
        load = self.workload
        first = np.ones(len(load), dtype=bool)
        if load.next_turn is not None:
            first[load.next_turn[load.next_turn >= 0]] = False
        for start in range(0, len(load), ARRIVALS_AT_ONCE):
            rows = start + np.flatnonzero(first[start : start + ARRIVALS_AT_ONCE])
            prompts, outputs = load.input_tokens[rows].tolist(), load.output_tokens[rows].tolist()
            zeros = [0.0] * len(prompts)
            arrivals = zeros if load.arrival_s is None else load.arrival_s[rows].tolist()
            thinks = zeros if load.think_time_s is None else load.think_time_s[rows].tolist()
            yield zip(rows.tolist(), arrivals, prompts, outputs, thinks, strict=True)

    def _send(self, row: int, arrival_s: float, prompt_tokens: int, output_tokens: int) -> None:
        """A request reaches the router now."""
        seq = Sequence(row, arrival_s, prompt_tokens, output_tokens, self._max_model_len)
        if self._content is not None:
            seq.content = self._content(row)
        if self._labelled:
            self._label(seq)
        if prompt_tokens >= self._max_model_len:
            self.recorder.request(seq, -1, float("nan"), REJECTED, 0.0)
            self.over(seq, self.env.now)
        else:
            self._hand_out(seq)

    def _label(self, seq: Sequence) -> None:
        """Conversation, tenant and class, where the workload has them."""
        load, row = self.workload, seq.id
        seq.session = -1 if load.session is None else int(load.session[row])
        seq.tenant = 0 if load.tenant is None else int(load.tenant[row])
        seq.priority = 0 if load.priority is None else int(load.priority[row])

    def _hand_out(self, seq: Sequence) -> None:
        """To the replica that the router chooses; where none is there, it waits for one."""
        replicas = self.replicas
        if not replicas:
            self._homeless.append(seq)
            return
        self._in_flight[seq] = replica = self.router.choose(replicas, seq)
        replica.submit(seq)

    # --- replicas that come and go ----------------------------------------------------------------------------------------

    @property
    def homeless(self) -> int:
        """Requests that no replica is there for."""
        return len(self._homeless)

    def open(self, replica: ServingReplica) -> None:
        """`replica` takes requests from now on, first those that waited for one."""
        self.replicas.append(replica)
        self.replicas.sort(key=lambda known: known.index)
        self.router.changed(replica)
        waited, self._homeless = self._homeless, []
        for seq in waited:
            self._hand_out(seq)

    def close(self, replica: ServingReplica) -> None:
        """`replica` takes no more requests."""
        self.replicas.remove(replica)
        self.router.changed(replica)

    def send_again(self, seqs: Iterable[Sequence]) -> None:
        """Requests whose replica is gone go to others."""
        for seq in seqs:
            del self._in_flight[seq]
            self._hand_out(seq)

    def over(self, seq: Sequence, now_s: float) -> None:
        """A request is over: the conversation goes on, or a user of a closed loop sends the next one."""
        self.finished = finished = self.finished + 1
        if finished == self._total and not self._limited:  # timers that nobody waits for any more are left in the queue
            self.env.stopped = True
        replica = self._in_flight.pop(seq, None)
        if replica is not None:
            self.router.over(replica)
        if self._progress is not None and not finished & 255:
            self._progress(now_s, finished)
        if self._next_turn is not None and self._next_turn[seq.id] >= 0:
            self._send_turn(self._next_turn[seq.id])
        elif self.workload.arrival_s is None:
            self._send_next(self._exit_s)

    def elsewhere(self, seq: Sequence) -> None:
        """A request that somebody else plays, with all turns that follow it: none of them is sent here."""
        row, turns = seq.id, 1
        while self._next_turn is not None and (row := self._next_turn[row]) >= 0:
            turns += 1
        del self._in_flight[seq]
        self.finished += turns
        if self.finished == self._total:
            self.env.stopped = True

    def moved(self, seq: Sequence, replica: ServingReplica) -> None:
        """A request leaves the replica that it was routed to, and goes on at `replica`."""
        self.router.over(self._in_flight[seq])
        self._in_flight[seq] = replica

    def _send_turn(self, row: int) -> None:
        """The next turn of a conversation, once its user or tool is ready."""
        load = self.workload
        pause_s = 0.0 if load.think_time_s is None else float(load.think_time_s[row])
        self._send_after(self._exit_s + pause_s, row, int(load.input_tokens[row]), int(load.output_tokens[row]))

    def _send_next(self, delay_s: float) -> None:
        """The next request of a closed loop."""
        request = next(self._next, None)
        if request is not None:
            row, _, prompt_tokens, output_tokens, think_s = request
            self._send_after(delay_s + think_s, row, prompt_tokens, output_tokens)

    def _send_after(self, delay_s: float, row: int, prompt_tokens: int, output_tokens: int) -> None:
        arrival_s = self.env.now + delay_s
        if delay_s + self._entry_s > 0:
            timer = self.env.timeout(delay_s + self._entry_s)
            # the sum of the times may be later than the timer, by rounding
            timer.callbacks.append(
                lambda _: self._send(row, min(arrival_s, self.env.now), prompt_tokens, output_tokens)
            )
            return
        self._at_once.append((row, arrival_s, prompt_tokens, output_tokens))
        if self._sending:
            return
        self._sending = True
        while self._at_once:  # a rejected request asks for the next one at once
            self._send(*self._at_once.popleft())
        self._sending = False

    def _open_loop(self) -> None:
        """The clock lets every request arrive when it is due."""
        self.env.arrive = self._arrive
        self._await()

    def _await(self) -> Request:
        """The next request is due when it has passed the API; returns the one before."""
        before, self._upcoming = self._upcoming, next(self._next, NO_MORE)
        self.env.due_s = self._upcoming[1] + self._entry_s
        return before

    def _arrive(self) -> None:
        """The request that is due now reaches the router."""
        row, arrival_s, prompt_tokens, output_tokens, _ = self._await()
        self._send(row, arrival_s, prompt_tokens, output_tokens)

    def _closed_loop(self) -> None:
        users = min(self.workload.concurrency or 1, len(self.workload))
        for user in range(users):
            start_s = self.workload.ramp_s * user / users
            self._send_next(start_s)

    # --- the clock --------------------------------------------------------------------------------------------------------

    def run(self, time_limit_s: float | None = None) -> Outcome:
        """Plays the workload to its end, to the time limit, or to the first failed allocation."""
        env = self.env
        self._limited = time_limit_s is not None
        if self.workload.arrival_s is None:
            self._closed_loop()
        else:
            self._open_loop()
        outcome = Outcome(0.0, 0)
        if time_limit_s is not None:
            env.stop_at(time_limit_s)
        try:
            with collector_paused():
                env.drain()
            outcome.timed_out = self._limited and self.finished < self._total
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

    def _stuck_reason(self) -> str:
        if self._homeless:
            return f"no replica is there for {len(self._homeless)} requests, and none will start"
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
            self.recorder.request(seq, replica.lane, float("nan"), CUT, self._exit_s)
        for seq in self._homeless:
            self.recorder.request(seq, -1, float("nan"), CUT, self._exit_s)
        for replica in dict.fromkeys([*self.replicas, *self._in_flight.values()]):
            replica.stop()
        if self.workload.arrival_s is None:
            return  # a closed loop sends a request when the one before is answered, so the others were never due
        upcoming = [] if self._upcoming is NO_MORE else [self._upcoming]
        for row, arrival_s, prompt_tokens, output_tokens, _ in (*upcoming, *self._next):
            seq = Sequence(row, arrival_s, prompt_tokens, output_tokens, self._max_model_len)
            self.recorder.request(seq, -1, float("nan"), CUT, 0.0)
