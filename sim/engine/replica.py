"""One serving replica: schedule, execute, update, and the leap over iterations that are alike.

The replica is a chain of events at iteration ends (boundaries), not a process: a boundary that an arrival makes obsolete is
simply not the one it waits for any more.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from collections.abc import Sequence as Items

from simpy.events import Event

from sim.engine.batch import Batch
from sim.engine.batching import VllmScheduler
from sim.engine.clock import Clock
from sim.engine.fluid import Fluid
from sim.engine.iteration import IterationCost, Stretch, in_progress, span_s
from sim.engine.recorder import FINISHED, Recorder
from sim.engine.sequence import DECODING, NEVER, WAITING, Sequence
from sim.engine.serving import KvOutOfMemory
from sim.errors import ClockStuck

NOTHING = -1
"""No call on the clock has this number."""
FRUITLESS_LIMIT = 10_000
"""Iterations in a row that preempt and sample nothing, after which the replica is called stuck."""


class Replica:
    """Serves sequences on one copy of the model."""

    # more attributes than CPython reads fast from a dict (30)
    __slots__ = (
        "_alike", "_async", "_at_boundary", "_at_end", "_batch", "_before", "_call_at", "_cost", "_disturbances", "_due",
        "_exit_s", "_first_s", "_fluid", "_fruitless", "_growth_s", "_incoming", "_layered", "_leaps", "_no_windows", "_observer",
        "_on_finish", "_pack_step", "_planned", "_recorder", "_start_s", "_stretch", "_write_step", "at_boundary",
        "env", "hand_over", "index", "lane", "outstanding", "scheduler",
    )  # fmt: skip

    def __init__(
        self,
        env: Clock,
        index: int,
        scheduler: VllmScheduler,
        cost: IterationCost,
        recorder: Recorder,
        on_finish: Callable[[Sequence, float], None],
        *,
        leaps: bool = True,
        layered: bool = False,
        exit_s: float = 0.0,
        fluid: Fluid | None = None,
        observer: Callable[[VllmScheduler, Batch, int], None] | None = None,
    ) -> None:
        self.env = env
        self.index = self.lane = index
        self.scheduler = scheduler
        self.outstanding = 0
        """Requests that were sent here and are not over."""
        self._cost = cost
        self._recorder = recorder
        self._on_finish = on_finish
        self._leaps = leaps
        self._fluid = fluid
        self._layered = layered
        """Every iteration runs kernel group by kernel group on the fluid engine, not only while others are on its links."""
        self._exit_s = exit_s
        self._observer = observer
        self._async = scheduler.limits.async_scheduling
        self._at_end = self._boundary
        self._call_at = env.call_at
        self._at_boundary = False
        self.hand_over: Callable[[Sequence, Replica, float], None] | None = None
        """A prefill replica's way out: takes sequences that have their first token."""
        self.at_boundary: Callable[[Replica], None] | None = None
        """Called at every boundary, once the next batch is decided: what may change the pool only between iterations."""
        self._disturbances = 0
        self._first_s = self._growth_s = 0.0
        self._start_s = 0.0
        self._alike = 0
        self._stretch: Stretch | None = None
        """What the ends of the iterations under way are counted from, where segments of the same pace went before."""
        self._pack_step, self._write_step = recorder.pack_step, recorder.steps.write
        self._no_windows = (0, 0) * len(cost.windows)
        self._begin()

    def _begin(self) -> None:
        """Nothing is under way, waited for or remembered: at the start, and again after a failure."""
        self._due = NOTHING
        """The number of the call it waits for."""
        self._batch: Batch | None = None
        self._before: Batch | None = None
        """The first of the iterations before, if they only decoded."""
        self._incoming: list[Sequence] = []
        """Asynchronous scheduling: arrivals that the next schedule() is too early to see."""
        self._planned = 1
        self._fruitless = 0

    # --- arrivals ---

    def submit(self, seq: Sequence) -> None:
        """A request arrives now."""
        self.outstanding += 1
        if self.hand_over is not None:
            seq.limit_tokens = seq.prompt_tokens + 1
        if self._batch is None or self._at_boundary:
            if self._at_boundary and self._async:
                self._incoming.append(seq)
            else:
                self.scheduler.add(seq)
            if self._due == NOTHING and not self._at_boundary:
                self._wait_until(self.env.now)
        elif self._planned > 1:
            self._interrupt(seq)
        elif self._async:
            self._incoming.append(seq)
        else:
            self.scheduler.add(seq)

    def _interrupt(self, seq: Sequence) -> None:
        """Shortens the leap so that the schedule that could admit `seq` takes place on time."""
        stop = self._under_way()
        if self._async:
            if stop == self._planned:
                self._incoming.append(seq)
                return
            if (
                self.at_boundary is not None
            ):  # a KV transfer waits for a boundary, and may end the leap before the schedule after next
                self._incoming.append(seq)
                self.nudge()
                return
            stop += 1  # the next schedule is made already; the one after sees it
        admissible = self.scheduler.may_admit(seq)
        self.scheduler.add(seq)
        if admissible and stop < self._planned:
            self._planned = stop
            self._wait_until(self._end_s(stop))

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use now, in the iteration under way of a leap."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        free = pool.free
        if self._planned > 1 and self._batch is not None:
            number = self._under_way()
            free -= scheduler.decodes.blocks_needed(self._batch.iteration + 1, number - 1)
        return 1.0 - free / pool.usable_blocks

    def _end_s(self, number: int) -> float:
        """When iteration `number` (1, 2, ...) of the segment under way ends."""
        if self._stretch is not None:
            return self._stretch.end_s(number)
        return self._start_s + span_s(self._first_s, self._growth_s, number)

    begin_s = _end_s
    """When the iteration after so many of the segment under way begins."""

    def _under_way(self) -> int:
        """Which iteration (1 .. planned) of the segment is under way; one that ends just now counts as it."""
        if self._stretch is not None:
            return self._stretch.under_way(self.env.now, self._planned)
        return in_progress(self._first_s, self._growth_s, self._start_s, self.env.now, self._planned)

    def nudge(self) -> None:
        """Something changed that the next schedule should see: an idle replica looks at once, a leap ends with its iteration."""
        if self._batch is None:
            if not self._at_boundary and self._due == NOTHING:
                self._wait_until(self.env.now)
        elif self._planned > 1:
            stop = self._under_way()
            if stop < self._planned:
                self._planned = stop
                self._wait_until(self._end_s(stop))

    def disturb(self, change: int) -> None:
        """Traffic of others begins (1) or ends (-1) on its links: while there is any, it runs layer by layer."""
        self._disturbances += change
        if change > 0:
            self.nudge()

    def write_back(self, seq: Sequence) -> None:
        """Gives `seq`, cut by the end of the run, the tokens it has by now."""
        if seq.state != DECODING:
            return
        if self._batch is None:  # the run ended in schedule(): the iteration it decided is not computed
            seq.known_tokens = self.scheduler.known_before(seq)
            return
        if seq in self._batch.starved:  # it keeps the length it had
            return
        seq.known_tokens = min(self._batch.iteration + self._iterations_over() + seq.offset, seq.limit_tokens)

    def stop(self) -> None:
        """The run ends now: what is over of a leap is recorded. Called after `write_back`."""
        over = self._iterations_over()
        if over and self._batch is not None:
            self._planned = over
            self._close_segment(self._batch, self.env.now)

    def fail(self, fresh: VllmScheduler) -> list[Sequence]:
        """The replica loses all it holds, and goes on with the scheduler `fresh`; returns its requests, to be sent elsewhere.

        They keep the tokens that were there, the iteration under way is lost.
        """
        scheduler = self.scheduler
        seqs = [*scheduler.running, *scheduler.waiting, *self._incoming]
        over = self._iterations_over() if self._batch is not None else 0
        last_s = self._end_s(over) if over else self._start_s
        for seq in seqs:
            self.write_back(seq)
            if seq.generated_tokens and seq.gap_since_s != seq.gap_since_s:
                seq.gap_since_s = last_s
            if seq in scheduler.running:
                seq.preemptions += 1
                self._recorder.preemptions += 1
        self.stop()  # while the sequences still hold their blocks
        for seq in seqs:
            seq.state, seq.computed_tokens, seq.blocks, seq.keyed_blocks = WAITING, 0, [], 0
        self.scheduler, self.outstanding = fresh, 0
        self._begin()
        return seqs

    def _iterations_over(self) -> int:
        """Iterations of a leap whose tokens are there; one that is alone is over at its boundary only."""
        if self._planned == 1:
            return 0
        number = self._under_way()
        return number if self._end_s(number) <= self.env.now else number - 1

    # --- boundaries ---

    def _wait_until(self, at_s: float) -> None:
        """The next boundary is then; one waited for before is not awaited any more."""
        self._due = self._call_at(at_s, self._at_end)

    def _boundary(self, number: int) -> None:
        if number != self._due:
            return
        self._at_boundary = True
        now_s = self.env._now  # `now` is a property, and this the most frequent event
        if self._batch is not None:
            self._close_segment(self._batch, now_s)
        batch = self._decide(now_s)
        if self.at_boundary is not None:
            self.at_boundary(self)
        self._at_boundary = False
        if batch is not None:
            self._open_segment(batch, now_s)
        else:
            self._due, self._before = NOTHING, None

    def _decide(self, now_s: float) -> Batch | None:
        """The next batch that computes anything, for an iteration without work takes no time; None if nothing can be computed."""
        scheduler = self.scheduler
        while True:
            progressed = False
            if self._async:
                batch = scheduler.schedule()
                finished = scheduler.update()
                if finished:
                    progressed = True
                    self._finish(finished, now_s)
                if self._incoming:
                    progressed = True
                    self._receive()
            else:
                self._finish(scheduler.update(), now_s)
                batch = scheduler.schedule()
            if batch.admitted or not batch.steady:
                self._note(batch, now_s)
            if batch.sampled or batch.chunks:
                return batch
            if not ((progressed or batch.preempted) and scheduler.has_work):
                return None

    def _receive(self) -> None:
        """Arrivals that were too early for a schedule() are there for the next one."""
        for seq in self._incoming:
            self.scheduler.add(seq)
        self._incoming.clear()

    def _finish(self, finished: Items[Sequence], now_s: float) -> None:
        """Requests whose last token is there are over."""
        for seq in finished:
            self.outstanding -= 1
            if self.hand_over is not None and seq.generated_tokens < seq.output_tokens:
                self.hand_over(seq, self, now_s)
                continue
            self._recorder.request(seq, self.lane, now_s, FINISHED, self._exit_s)
            self._on_finish(seq, now_s)

    def _note(self, batch: Batch, now_s: float) -> None:
        """Times that follow from admissions, preemptions and starvation; raises where memory ran out."""
        for seq in batch.admitted:
            if seq.scheduled_s != seq.scheduled_s:
                seq.scheduled_s = now_s
        if batch.steady:
            return
        if batch.out_of_memory is not None:
            raise KvOutOfMemory(now_s, self.index, *batch.out_of_memory)
        for seq in (*batch.preempted, *batch.starved):
            if seq.generated_tokens and seq.gap_since_s != seq.gap_since_s:
                seq.gap_since_s = now_s
        if batch.preempted:
            self._recorder.preemptions += len(batch.preempted)
            self._fruitless = 0 if batch.sampled else self._fruitless + 1
            if self._fruitless > FRUITLESS_LIMIT:
                raise ClockStuck(
                    f"replica {self.index} preempts request {batch.preempted[-1].id} in every iteration and samples "
                    f"nothing (at {now_s:.6g} s): its KV cache cannot hold that request"
                )

    # --- segments ---

    def _open_segment(self, batch: Batch, now_s: float) -> None:
        """Iterations alike begin: as many as stay alike if nothing arrives, or one."""
        before, stretch = self._before, None
        if before is not None and not batch.chunks and before.decodes == batch.decodes:
            stretch = self._stretch or Stretch(self._start_s, (self._first_s, self._growth_s, self._alike))
            if not stretch.prolong(before, self._planned, batch):
                stretch = None
        self._stretch = stretch
        self._batch = batch
        self._start_s = now_s
        if self._fluid is not None and (self._layered or self._disturbances):
            self._stretch, self._alike, self._planned = None, 0, 1
            self.env.process(self._layers(batch))
            return
        first_s, growth_s, alike = self._cost.pace(batch) if stretch is None else stretch.pace
        planned = 1
        if self._leaps and not batch.chunks and batch.steady:
            planned = self.scheduler.horizon()
            if alike < planned:
                planned = alike
        self._first_s = first_s
        self._growth_s = growth_s
        self._alike = alike
        self._planned = planned
        over_s = planned * first_s + growth_s * (planned * (planned - 1) / 2)
        self._due = self._call_at(now_s + over_s if stretch is None else stretch.end_s(planned), self._at_end)

    def _layers(self, batch: Batch) -> Generator[Event, None, None]:
        """Runs one iteration kernel group by kernel group."""
        assert self._fluid is not None
        phases, host_s = self._cost.phases(batch)
        for phase in phases:
            yield self._fluid.start(phase.amounts, phase.alone_s, phase.latency_s)
        remaining_s = self._start_s + host_s - self.env.now
        if remaining_s > 0:
            yield self.env.timeout(remaining_s)
        if self._batch is not batch:  # the replica failed meanwhile
            return
        self._first_s, self._growth_s = self.env.now - self._start_s, 0.0
        self._wait_until(self.env.now)

    def _close_segment(self, batch: Batch, now_s: float) -> None:
        """The iterations of the segment are over: their tokens are there."""
        planned, recorder, scheduler = self._planned, self._recorder, self.scheduler
        if self._observer is not None:
            self._observer(scheduler, batch, planned)
        pool = scheduler.pool
        self._write_step(self._pack_step(
            self.lane, self._start_s, planned, self._first_s, self._growth_s, batch.decodes, batch.context_tokens,
            batch.sampled, len(scheduler.running), len(scheduler.waiting), pool.usable_blocks - pool.free,
        ))  # fmt: skip
        if self._no_windows:
            self._write_step(recorder.pack_windows(*(*batch.window_tokens, *batch.window_growth) or self._no_windows))
        if planned > 1:
            scheduler.advance(planned - 1)
        elif not batch.steady:
            self._close_unsteady(batch, now_s)
        if batch.chunks:
            self._close_chunks(batch, now_s)
        self._before = None if batch.chunks or not batch.steady else batch
        recorder.num_steps += 1
        self._batch = None

    def _close_unsteady(self, batch: Batch, now_s: float) -> None:
        if batch.preempted:
            self._recorder.preempted.append((self._recorder.num_steps, len(batch.preempted)))
        if batch.late:
            self._recorder.late.append((self._recorder.num_steps, len(batch.late)))
        for seq in batch.late:
            self._irregular(seq, now_s)

    def _close_chunks(self, batch: Batch, now_s: float) -> None:
        chunks, step = self._recorder.chunks, self._recorder.num_steps
        for start, tokens, seq, last in batch.chunks:
            chunks.write(chunks.pack(step, seq.id, start, tokens))
            if last:
                if seq.first_token_s != seq.first_token_s:
                    seq.first_token_s = now_s
                elif seq.gap_since_s == seq.gap_since_s:
                    self._irregular(seq, now_s)

    def _irregular(self, seq: Sequence, now_s: float) -> None:
        self._recorder.gaps.append((seq.id, self.lane, seq.gap_since_s, now_s))
        seq.gap_since_s = NEVER
