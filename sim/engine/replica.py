"""One serving replica: schedule, execute, update, and the leap over iterations that are alike.

The replica is a chain of events at iteration ends (boundaries), not a process: a boundary that an arrival makes obsolete is
simply not the one it waits for any more.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import simpy
from simpy.events import Event

from sim.engine.batching import Batch, VllmScheduler
from sim.engine.fluid import Fluid
from sim.engine.iteration import IterationCost, Pace
from sim.engine.recorder import FINISHED, Recorder
from sim.engine.sequence import DECODING, Sequence
from sim.errors import ClockStuck

BOUNDARY_PRIORITY = 2
"""After arrivals of the same instant: an arrival exactly at an iteration's end is seen by the next schedule."""
FRUITLESS_LIMIT = 10_000
"""Iterations in a row that preempt and sample nothing, after which the replica is called stuck."""


class KvOutOfMemory(Exception):  # noqa: N818 (an outcome of the run, not an error of the program)
    """A KV allocation failed and the engine does not preempt."""

    def __init__(self, time_s: float, replica: int, seq: Sequence, blocks_short: int) -> None:
        super().__init__(f"request {seq.id} lacks {blocks_short} KV blocks at {time_s} s")
        self.time_s = time_s
        self.replica = replica
        self.seq = seq
        self.blocks_short = blocks_short


class Replica:
    """Serves sequences on one copy of the model."""

    def __init__(
        self,
        env: simpy.Environment,
        index: int,
        scheduler: VllmScheduler,
        cost: IterationCost,
        recorder: Recorder,
        on_finish: Callable[[Sequence, float], None],
        *,
        granularity: str = "leap",
        exit_s: float = 0.0,
        fluid: Fluid | None = None,
        observer: Callable[[VllmScheduler, Batch, int], None] | None = None,
    ) -> None:
        self.env = env
        self.index = index
        self.scheduler = scheduler
        self.outstanding = 0
        """Requests that were sent here and are not over."""
        self._cost = cost
        self._recorder = recorder
        self._on_finish = on_finish
        self._leaps = granularity == "leap"
        self._fluid = fluid if granularity == "layer" else None
        self._exit_s = exit_s
        self._observer = observer
        self._async = scheduler.limits.async_scheduling
        self._due: Event | None = None
        self._at_boundary = False
        self._incoming: list[Sequence] = []
        """Asynchronous scheduling: arrivals that the next schedule() is too early to see."""
        self._batch: Batch | None = None
        self._pace = Pace(0.0, 0.0, 1)
        self._start_s = 0.0
        self._planned = 1
        self._window_tokens: tuple[int, ...] = (0,) * len(cost.windows)
        self._window_growth: tuple[int, ...] = (0,) * len(cost.windows)
        self._fruitless = 0

    # --- arrivals ---------------------------------------------------------------------------------------------------------

    def submit(self, seq: Sequence) -> None:
        """A request arrives now."""
        self.outstanding += 1
        if self._batch is None or self._at_boundary:
            if self._at_boundary and self._async:
                self._incoming.append(seq)
            else:
                self.scheduler.add(seq)
            if self._due is None and not self._at_boundary:
                self._wait(0.0)
            return
        if self._planned == 1:
            if self._async:
                self._incoming.append(seq)
            else:
                self.scheduler.add(seq)
            return
        self._interrupt(seq)

    def _interrupt(self, seq: Sequence) -> None:
        """Shortens the leap so that the schedule that could admit `seq` takes place on time."""
        elapsed_s = self.env.now - self._start_s
        stop = self._pace.in_progress(elapsed_s, self._planned)
        if self._async:
            if stop == self._planned:
                self._incoming.append(seq)
                return
            stop += 1  # the next schedule is made already; the one after sees it
        admissible = self.scheduler.may_admit(seq)
        self.scheduler.add(seq)
        if admissible and stop < self._planned:
            self._planned = stop
            self._wait(max(self._pace.span_s(stop) - elapsed_s, 0.0))

    def write_back(self, seq: Sequence) -> None:
        """Gives `seq`, cut by the end of the run, the tokens it has by now."""
        if seq.state == DECODING and self._batch is not None:
            done = self._pace.in_progress(self.env.now - self._start_s, self._planned)
            if self._pace.span_s(done) > self.env.now - self._start_s:
                done -= 1
            seq.known_tokens = min(self._batch.iteration + done + seq.offset, seq.limit_tokens)

    # --- boundaries -------------------------------------------------------------------------------------------------------

    def _wait(self, delay_s: float) -> None:
        due = Event(self.env)
        due._ok, due._value = True, None
        due.callbacks.append(self._boundary)
        self._due = due
        self.env.schedule(due, BOUNDARY_PRIORITY, delay_s)  # type: ignore[arg-type]  # SimPy compares numbers

    def _boundary(self, event: Event) -> None:
        if event is not self._due:
            return
        self._due = None
        self._at_boundary = True
        if self._batch is not None:
            self._close_segment(self._batch)
        while True:
            if self._async:
                batch = self.scheduler.schedule()
                progressed = self._finish()
            else:
                self._finish()
                batch = self.scheduler.schedule()
                progressed = False
            if self._incoming:
                progressed = True
                for seq in self._incoming:
                    self.scheduler.add(seq)
                self._incoming.clear()
            self._note(batch)
            progressed = progressed or bool(batch.preempted)
            if batch.sampled or batch.chunks or not (progressed and self.scheduler.has_work):
                break
        self._at_boundary = False
        if batch.sampled or batch.chunks:
            self._open_segment(batch)
        else:
            self._batch = None

    def _finish(self) -> bool:
        """Applies the outputs of the iterations that ended now; True if a request is over."""
        finished = self.scheduler.update()
        now = self.env.now
        for seq in finished:
            self.outstanding -= 1
            self._recorder.request(seq, self.index, now, FINISHED, self._exit_s)
            self._on_finish(seq, now)
        return bool(finished)

    def _note(self, batch: Batch) -> None:
        """Times that follow from the decisions."""
        now = self.env.now
        for seq in batch.admitted:
            if seq.scheduled_s != seq.scheduled_s:
                seq.scheduled_s = now
        if batch.out_of_memory is not None:
            raise KvOutOfMemory(now, self.index, *batch.out_of_memory)
        if batch.preempted or batch.starved:
            for seq in (*batch.preempted, *batch.starved):
                if seq.generated_tokens and seq.gap_since_s != seq.gap_since_s:
                    seq.gap_since_s = now
            self._recorder.preemptions += len(batch.preempted)
            self._fruitless = 0 if batch.sampled else self._fruitless + 1
            if self._fruitless > FRUITLESS_LIMIT:
                raise ClockStuck(
                    f"replica {self.index} preempts request {batch.preempted[-1].id} in every iteration and samples nothing "
                    f"(at {now:.6g} s): its KV cache cannot hold that request"
                )

    def _open_segment(self, batch: Batch) -> None:
        scheduler = self.scheduler
        decodes = scheduler.decodes
        windows = decodes.windows
        tokens: tuple[int, ...] = ()
        growth: tuple[int, ...] = ()
        if windows:
            tokens = tuple([w.tokens(batch.iteration, batch.decodes) for w in windows])
            growth = tuple([w.below for w in windows])
            self._window_tokens, self._window_growth = tokens, growth
        self._batch, self._start_s = batch, self.env.now
        if self._fluid is not None:
            self._planned = 1
            self._pace = Pace(0.0, 0.0, 1)
            self.env.process(self._layers(batch, tokens))
            return
        self._pace = pace = self._cost.pace(batch, tokens, growth)
        if self._leaps and batch.steady and not batch.chunks:
            self._planned = min(scheduler.horizon(), pace.alike)
        else:
            self._planned = 1
        self._wait(pace.span_s(self._planned))

    def _layers(self, batch: Batch, window_tokens: tuple[int, ...]) -> Generator[Event, None, None]:
        """Runs one iteration kernel group by kernel group."""
        assert self._fluid is not None
        phases, host_s = self._cost.phases(batch, window_tokens)
        for phase in phases:
            yield self._fluid.start(phase.amounts, phase.alone_s, phase.latency_s)
        remaining_s = self._start_s + host_s - self.env.now
        if remaining_s > 0:
            yield self.env.timeout(remaining_s)
        self._pace = Pace(self.env.now - self._start_s, 0.0, 1)
        self._wait(0.0)

    def _close_segment(self, batch: Batch) -> None:
        """The iterations of the segment are over: their tokens are there."""
        now, planned, recorder, scheduler = self.env.now, self._planned, self._recorder, self.scheduler
        used = scheduler.pool.usable_blocks - scheduler.pool.free
        if self._observer is not None:
            self._observer(scheduler, batch, planned)
        if planned > 1:
            scheduler.advance(planned - 1)
        for chunk in batch.chunks:
            seq = chunk.seq
            recorder.chunks.append((recorder.num_steps, seq.id, chunk.start, chunk.tokens))
            if chunk.last:
                if seq.first_token_s != seq.first_token_s:
                    seq.first_token_s = now
                elif seq.gap_since_s == seq.gap_since_s:
                    self._irregular(seq, now)
        for seq in batch.late:
            self._irregular(seq, now)
        recorder.num_steps += 1
        recorder.steps.append((
            self.index, self._start_s, planned, self._pace.first_s, self._pace.growth_s, batch.chunk_tokens, len(batch.chunks),
            batch.decodes, batch.context_tokens, batch.sampled, batch.decodes - len(batch.late), len(scheduler.running),
            len(scheduler.waiting), used, len(batch.preempted), *self._window_tokens, *self._window_growth,
        ))  # fmt: skip
        self._batch = None

    def _irregular(self, seq: Sequence, now_s: float) -> None:
        self._recorder.gaps.append((seq.id, seq.gap_since_s, now_s))
        seq.gap_since_s = float("nan")
