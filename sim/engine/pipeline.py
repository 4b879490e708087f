"""A replica of several pipeline stages: one batch in flight a stage, each passing through all of them.

Batches enter in order and no stage lets one overtake another, so the whole passage of a batch is known when it starts: at each
stage it waits for the one before it to leave.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from collections.abc import Sequence as Items

from simpy.events import Event

from sim.cost.pipeline import PipelineCost
from sim.engine.batch import Batch
from sim.engine.clock import Clock
from sim.engine.fluid import Fluid
from sim.engine.lanes import LaneScheduler
from sim.engine.pricing import StagePricing
from sim.engine.recorder import FINISHED, Recorder
from sim.engine.sequence import DECODING, NEVER, Sequence
from sim.engine.serving import KvOutOfMemory
from sim.engine.wires import Amounts

# differences of a clock's readings are not exact
_ROUNDING = 1e-9


class Lane:
    """One batch in flight after another."""

    __slots__ = ("at_end", "batch", "held", "index", "scheduler", "shared_s", "start_s")

    def __init__(self, index: int, scheduler: LaneScheduler, on_end: Callable[[Lane], None]) -> None:
        self.index = index
        self.scheduler = scheduler
        self.batch: Batch | None = None
        self.start_s = 0.0
        self.held = (0, 0, 0)
        """What the replica held as its batch started: requests that ran and that waited, blocks in use."""
        self.shared_s = 0.0
        """What its batch has lost so far to others on the same links."""
        self.at_end: Callable[[int], None] = lambda _: on_end(self)

    def lost(self, took_s: float, alone_s: float) -> None:
        """Something that takes `alone_s` alone took `took_s`."""
        if took_s > alone_s * (1 + _ROUNDING):
            self.shared_s += took_s - alone_s


class PipelineReplica:
    """Serves sequences on one copy of the model that is cut into stages; it always steps, it never leaps."""

    def __init__(
        self,
        env: Clock,
        index: int,
        schedulers: Items[LaneScheduler],
        cost: PipelineCost,
        stages: Items[StagePricing],
        recorder: Recorder,
        on_finish: Callable[[Sequence, float], None],
        *,
        hand_overs: Items[Amounts | None] = (),
        exit_s: float = 0.0,
        fluid: Fluid | None = None,
    ) -> None:
        self.env = env
        self.index = index
        self.lane = index * len(schedulers)
        self.scheduler = schedulers[0]
        self.outstanding = 0
        self._cost = cost
        self._stages = stages
        self._lanes = [Lane(i, s, self._lane_ends) for i, s in enumerate(schedulers)]
        self._free_s = [0.0] * len(self._stages)
        """When each stage has let its last batch go."""
        self._host_free_s = 0.0
        self._recorder = recorder
        self._on_finish = on_finish
        self._exit_s = exit_s
        self._fluid = fluid
        self._hand_overs = hand_overs or [None] * (len(stages) - 1)
        """What each hand-over puts on links that others use too; needed with `fluid` only."""
        self._left: list[Event] = []
        """Layer by layer: for each stage, the departure of the batch that entered it last."""
        self._waking = False
        self._at_boundary = False

    def submit(self, seq: Sequence) -> None:
        """A request arrives now."""
        self.outstanding += 1
        self.scheduler.add(seq)
        if not self._waking and not self._at_boundary and any(lane.batch is None for lane in self._lanes):
            self._waking = True
            self.env.call_at(self.env.now, self._wake)

    def write_back(self, seq: Sequence) -> None:
        """Gives `seq`, cut by the end of the run, the tokens it has by now."""
        lane = seq.lane
        if seq.state == DECODING and isinstance(lane, LaneScheduler):
            seq.known_tokens = lane.iteration + seq.offset + (0 if lane.in_flight else 1)

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use now."""
        pool = self.scheduler.pool
        return 1.0 - pool.free / pool.usable_blocks

    def stop(self) -> None:
        """The run ends now: it never leaps, so every iteration that is over is recorded already."""

    # --- lanes ---

    def _wake(self, _: int) -> None:
        self._waking = False
        self._fill()

    def _lane_ends(self, lane: Lane) -> None:
        """The batch of a lane is back: its tokens are there, and the lane is scheduled again."""
        assert lane.batch is not None
        self._at_boundary = True
        now_s, scheduler = self.env.now, lane.scheduler
        self._record(lane, lane.batch, now_s)
        for seq in scheduler.returned():
            seq.gap_since_s = now_s
        for seq in scheduler.update():
            self.outstanding -= 1
            self._recorder.request(seq, self.lane + lane.index, now_s, FINISHED, self._exit_s)
            self._on_finish(seq, now_s)
        lane.batch = None
        self._at_boundary = False
        self._fill(lane)

    def _fill(self, first: Lane | None = None) -> None:
        """Starts batches until every lane has one in flight or nothing more can be scheduled."""
        idle = [lane for lane in self._lanes if lane.batch is None and lane is not first]
        for lane in ([first] if first is not None else []) + idle:
            while True:
                batch = lane.scheduler.schedule()
                self._note(batch)
                if batch.sampled or batch.chunks or not batch.preempted:
                    break
            if not (batch.sampled or batch.chunks):
                lane.scheduler.update()
                continue
            self._start(lane, batch)

    def _note(self, batch: Batch) -> None:
        now_s = self.env.now
        for seq in batch.admitted:
            if seq.scheduled_s != seq.scheduled_s:
                seq.scheduled_s = now_s
        if batch.out_of_memory is not None:
            raise KvOutOfMemory(now_s, self.index, *batch.out_of_memory)
        for seq in (*batch.preempted, *batch.starved):
            waits = seq not in self.scheduler.returning  # a token in flight comes when its lane ends
            if waits and seq.generated_tokens and seq.gap_since_s != seq.gap_since_s:
                seq.gap_since_s = now_s
        self._recorder.preemptions += len(batch.preempted)

    # --- the passage ---

    def _start(self, lane: Lane, batch: Batch) -> None:
        """Sends a batch through the stages."""
        now_s, scheduler, pool = self.env.now, lane.scheduler, lane.scheduler.pool
        lane.batch, lane.start_s, lane.shared_s, scheduler.in_flight = batch, now_s, 0.0, True
        # others' batches start before this one ends, and tell of what changed meanwhile
        lane.held = (len(scheduler.running), len(scheduler.waiting), pool.usable_blocks - pool.free)
        requests = batch.decodes + len(batch.chunks)
        self._host_free_s = ready_s = max(now_s, self._host_free_s) + self._cost.host_s[requests]
        if self._fluid is not None:
            self.env.process(self._pass_layers(lane, batch, ready_s))
            return
        tokens, last = batch.decodes + batch.chunk_tokens, len(self._stages) - 1
        for stage, pricing in enumerate(self._stages):
            ready_s = max(ready_s, self._free_s[stage]) + pricing.gpu_s(batch)
            self._free_s[stage] = ready_s
            if stage < last:
                ready_s += self._cost.hand_over_s[stage][tokens]
        self.env.call_at(ready_s, lane.at_end)

    def _pass_layers(self, lane: Lane, batch: Batch, ready_s: float) -> Generator[Event, None, None]:
        """The same passage, kernel group by kernel group; the stages are left in the order in which they were entered."""
        assert self._fluid is not None
        env, tokens, last = self.env, batch.decodes + batch.chunk_tokens, len(self._stages) - 1
        before, self._left = self._left, [Event(env) for _ in self._stages]
        mine = self._left
        if ready_s > env.now:
            yield env.timeout(ready_s - env.now)
        for stage, pricing in enumerate(self._stages):
            if before and not before[stage].processed:
                yield before[stage]
            for phase in pricing.kernels(batch):
                begin_s = env.now
                yield self._fluid.start(phase.amounts, phase.alone_s, phase.latency_s)
                lane.lost(env.now - begin_s, phase.alone_s + phase.latency_s)
            mine[stage].succeed()
            if stage < last:
                loads = self._hand_overs[stage]
                begin_s, alone_s = env.now, self._cost.hand_over_s[stage][tokens]
                yield self._fluid.start(loads(tokens) if loads else {}, alone_s)
                lane.lost(env.now - begin_s, alone_s)
        env.call_at(env.now, lane.at_end)

    def _record(self, lane: Lane, batch: Batch, now_s: float) -> None:
        recorder = self._recorder
        step = recorder.num_steps
        if lane.shared_s:
            recorder.shared.append((step, lane.shared_s))
        for start, tokens, seq, last in batch.chunks:
            recorder.chunks.append((step, seq.id, start, tokens))
            if last:
                if seq.first_token_s != seq.first_token_s:
                    seq.first_token_s = now_s
                elif seq.gap_since_s == seq.gap_since_s:
                    self._irregular(lane, seq, now_s)
        for seq in batch.late:
            self._irregular(lane, seq, now_s)
        for table, events in ((recorder.preempted, batch.preempted), (recorder.late, batch.late)):
            if events:
                table.append((step, len(events)))
        windows = (*batch.window_tokens, *batch.window_growth) or (0, 0) * len(self._cost.windows)
        recorder.steps.append((
            self.lane + lane.index, lane.start_s, 1, now_s - lane.start_s, 0.0, batch.decodes, batch.context_tokens,
            batch.sampled, *lane.held, *windows,
        ))  # fmt: skip
        recorder.num_steps += 1

    def _irregular(self, lane: Lane, seq: Sequence, now_s: float) -> None:
        self._recorder.gaps.append((seq.id, self.lane + lane.index, seq.gap_since_s, now_s))
        seq.gap_since_s = NEVER
