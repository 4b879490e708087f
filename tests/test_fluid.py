"""Activities that share capacities: stories with exact times, laws, and a plain reference on random cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.fluid import Change, Job, finish_times
from simpy import Environment
from simpy.events import Event

from sim.engine import fluid as fluid_module
from sim.engine.fluid import Activity, Capacity, Fluid
from sim.errors import InputError


class Run:
    """One simulation of jobs; steps through it and integrates what every capacity served."""

    def __init__(self, capacities: Mapping[str, float], jobs: Sequence[Job], changes: Sequence[Change] = ()) -> None:
        self.env = Environment()
        self.fluid = Fluid(self.env)
        self.capacities = {name: Capacity(name, rate) for name, rate in capacities.items()}
        self.done: list[Activity | None] = [None] * len(jobs)
        self.order: list[int] = []
        self.served = dict.fromkeys(capacities, 0.0)
        self.most_used = dict.fromkeys(capacities, 0.0)  # highest fraction of the rate of the moment
        for change in changes:
            self._at(change.time_s, lambda change=change: self._change(change))
        for index, job in enumerate(jobs):
            self._at(job.start_s, lambda index=index, job=job: self._start(index, job))
        while self.env.peek() < inf:
            self._step()

    @property
    def finish_s(self) -> list[float]:
        return [inf if activity is None else activity.finish_s for activity in self.done]

    def _at(self, time_s: float, act) -> None:
        self.env.timeout(time_s).callbacks.append(lambda _: act())

    def _change(self, change: Change) -> None:
        self.fluid.set_rate(self.capacities[change.capacity], change.rate_per_s)

    def _start(self, index: int, job: Job) -> None:
        amounts = {self.capacities[name]: amount for name, amount in job.amounts.items()}

        def finished(event: Event) -> None:
            assert event.value.finish_s == self.env.now
            self.done[index] = event.value
            self.order.append(index)

        self.fluid.start(amounts, job.alone_s, job.latency_s, job.weight).callbacks.append(finished)

    def _step(self) -> None:
        now_s, next_s = self.env.now, self.env.peek()
        if next_s > now_s:
            for name, capacity in self.capacities.items():
                used_per_s = 0.0
                for bundle, ratio in capacity.users.items():
                    used_per_s += bundle.count * ratio * bundle.rate
                    # one that waits alone for its latency to be paid begins without an event
                    begin_s = min(max(now_s, bundle.component.begins_s), next_s)
                    self.served[name] += bundle.count * ratio * bundle.rate * (next_s - begin_s)
                if used_per_s > 0.0:
                    self.most_used[name] = max(self.most_used[name], used_per_s / capacity.rate_per_s)
        self.env.step()


def flow(size: float, *edges: str, start_s: float = 0.0, **options: float) -> Job:
    """A transfer of `size` bytes over `edges`, limited by nothing but them."""
    return Job(start_s, dict.fromkeys(edges, size), options.pop("alone_s", 0.0), **options)


# --- stories ------------------------------------------------------------------------------------------------------


def test_alone_takes_latency_and_then_the_duration_alone() -> None:
    run = Run({"edge": 100.0}, [flow(50.0, "edge", start_s=2.0, alone_s=0.75, latency_s=0.125)])
    [activity] = run.done
    assert (activity.start_s, activity.begin_s, activity.finish_s) == (2.0, 2.125, 2.875)
    assert activity.alone_s == 0.75
    assert activity.sharing_s == 0.0


def test_alone_on_too_thin_an_edge_takes_the_edges_time() -> None:
    run = Run({"edge": 100.0}, [flow(50.0, "edge", alone_s=0.25)])
    assert run.finish_s == [0.5]
    assert run.done[0].sharing_s == 0.0


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_flows_on_one_edge_each_get_an_equal_part(count: int) -> None:
    run = Run({"edge": 8.0}, [flow(8.0, "edge", alone_s=1.0)] * count)
    assert run.finish_s == [float(count)] * count
    assert run.order == list(range(count))
    assert [activity.sharing_s for activity in run.done] == [count - 1.0] * count


def test_flows_of_different_sizes_on_one_edge_get_equal_bytes_a_second() -> None:
    # 10 B/s: 5 + 5 until both have 10 (t=2); then the larger has 10 left, alone
    assert Run({"edge": 10.0}, [flow(10.0, "edge"), flow(20.0, "edge")]).finish_s == [2.0, 3.0]


def test_a_late_flow_takes_its_part_and_gives_it_back() -> None:
    # first alone until 1 (10 of 30 done), both at 5 until the second's 10 are done at 3, then 10 left at 10 B/s
    run = Run({"edge": 10.0}, [flow(30.0, "edge"), flow(10.0, "edge", start_s=1.0)])
    assert run.finish_s == [4.0, 3.0]
    assert [activity.sharing_s for activity in run.done] == [1.0, 1.0]


def test_three_flows_over_two_links() -> None:
    # max-min (Bertsekas and Gallager, section 6.5.2): the flow over both links gets half of the thin one, 2;
    # the flow on the wide link takes what is left there, 8
    jobs = [flow(2.0, "wide", "thin"), flow(8.0, "wide"), flow(2.0, "thin")]
    assert Run({"wide": 10.0, "thin": 4.0}, jobs).finish_s == [1.0, 1.0, 1.0]


def test_shares_are_of_the_dominant_capacity() -> None:
    # the first takes 1/4 of the thin edge and 1/8 of the wide one a unit of rate: level 2/3 on the wide edge
    # gives it 2/3 x 4 and the other 2/3 x 8 B/s, together 8
    jobs = [flow(8.0, "wide", "thin"), flow(16.0, "wide")]
    assert Run({"wide": 8.0, "thin": 4.0}, jobs).finish_s == pytest.approx([3.0, 3.0], rel=1e-15)


def test_kinds_of_capacity_mix_in_one_activity() -> None:
    # prefill: 80 of 100 FLOP/s and 1 of 10 B/s alone; decode: 10 FLOP/s, all 10 B/s. Level L: 0.1 L + L of HBM, so
    # L = 10/11; compute then has 0.8/0.8 L + 0.1 L = 1.1 L = full too
    prefill = Job(0.0, {"compute": 100.0, "hbm": 1.0}, 1.0)
    decode = Job(0.0, {"compute": 10.0, "hbm": 10.0}, 1.0)
    assert Run({"compute": 100.0, "hbm": 10.0}, [prefill, decode]).finish_s == pytest.approx([1.1, 1.1], rel=1e-15)


def test_weights_set_the_proportion() -> None:
    # 3 : 1 of 8 B/s: 6 and 2; after the first's 6 bytes the other goes on at 8
    jobs = [flow(6.0, "edge", weight=3.0), flow(10.0, "edge", weight=1.0)]
    assert Run({"edge": 8.0}, jobs).finish_s == [1.0, 2.0]


def test_one_that_cannot_go_faster_leaves_the_rest_to_others() -> None:
    jobs = [flow(2.0, "edge", alone_s=1.0), flow(8.0, "edge"), flow(8.0, "edge")]
    assert Run({"edge": 10.0}, jobs).finish_s == [1.0, 1.8, 1.8]


def test_latency_occupies_nothing() -> None:
    # two messages of one byte: their latencies overlap, only the two bytes queue up
    jobs = [flow(1.0, "edge", alone_s=2.0**-30, latency_s=1.0)] * 2
    assert Run({"edge": 2.0**30}, jobs).finish_s == [1.0 + 2.0**-29] * 2


def test_nobody_is_slowed_by_one_that_still_pays_its_latency() -> None:
    jobs = [flow(10.0, "edge", latency_s=5.0), flow(20.0, "edge", start_s=1.0), flow(10.0, "edge", start_s=1.5)]
    run = Run({"edge": 10.0}, jobs)
    assert run.finish_s == [6.0, 4.0, 3.5]
    assert run.done[0].sharing_s == 0.0


def test_waiting_one_shares_with_who_is_still_there_when_its_latency_is_paid() -> None:
    run = Run({"edge": 10.0}, [flow(10.0, "edge", latency_s=2.0), flow(20.0, "edge", start_s=1.0)])
    assert run.finish_s == [4.0, 4.0]  # from 2 on both have 10 bytes left
    assert run.done[0].begin_s == 2.0


def test_what_uses_nothing_just_takes_its_time() -> None:
    run = Run({"edge": 10.0}, [Job(1.0, {}, 2.0, 0.5), Job(0.0, {"edge": 0.0}, 0.0, 0.25), flow(10.0, "edge")])
    assert run.finish_s == [3.5, 0.25, 1.0]
    assert run.done[0].begin_s == 1.5


def test_a_link_that_degrades_slows_what_is_on_it() -> None:
    run = Run({"edge": 10.0}, [flow(100.0, "edge", alone_s=10.0)], [Change(5.0, "edge", 5.0)])
    assert run.finish_s == [15.0]
    assert run.done[0].sharing_s == 5.0


def test_a_link_that_fails_stalls_its_flows_until_it_is_repaired() -> None:
    jobs = [flow(20.0, "edge", "port"), flow(10.0, "port")]
    changes = [Change(1.0, "edge", 0.0), Change(11.0, "edge", 10.0)]
    # 5 + 5 until 1; then the port is the second's alone until 1.5; the first has 15 left at 11
    assert Run({"edge": 10.0, "port": 10.0}, jobs, changes).finish_s == [12.5, 1.5]
    assert Run({"edge": 10.0, "port": 10.0}, jobs, changes[:1]).finish_s == [inf, 1.5]


def test_a_link_that_fails_in_the_moment_of_a_finish_comes_too_late() -> None:
    assert Run({"edge": 3.0}, [flow(3.0, "edge", alone_s=1.0)], [Change(1.0, "edge", 0.0)]).finish_s == [1.0]


def test_degrading_before_the_latency_is_paid_counts_from_the_begin() -> None:
    run = Run({"edge": 10.0}, [flow(10.0, "edge", latency_s=2.0)], [Change(1.0, "edge", 5.0)])
    assert run.finish_s == [4.0]
    assert run.done[0].sharing_s == 0.0


def test_a_link_repaired_before_the_latency_is_paid_costs_nothing() -> None:
    job = flow(10.0, "edge", start_s=1.0, alone_s=1.0, latency_s=2.0)
    run = Run({"edge": 0.0}, [job], [Change(2.0, "edge", 10.0)])
    assert run.finish_s == [4.0]
    assert (run.done[0].alone_s, run.done[0].sharing_s) == (1.0, 0.0)


def test_one_faster_edge_may_slow_another_flow() -> None:
    """More bandwidth is not better for everybody: freed from its thin edge, one flow takes more of the shared one."""
    jobs = [flow(10.0, "thin", "port"), flow(8.0, "port")]
    slow = Run({"thin": 2.0, "port": 10.0}, jobs).done[1].finish_s
    fast = Run({"thin": 10.0, "port": 10.0}, jobs).done[1].finish_s
    # thin 2, port 10: level 10/12, so the second gets 10 x 10/12 B/s; then both are alike and it gets 5
    assert (slow, fast) == (0.96, 1.6)


def test_two_groups_that_lose_their_bridge_go_on_apart() -> None:
    jobs = [flow(10.0, "left", "right"), flow(10.0, "left"), flow(30.0, "right")]
    # all at 5 until 2; the first two are done; the third has 20 left at 10
    assert Run({"left": 10.0, "right": 10.0}, jobs).finish_s == [2.0, 2.0, 4.0]


def test_equal_flows_started_together_finish_together_after_any_history() -> None:
    jobs = [flow(7.0, "edge", start_s=0.1 * i) for i in range(17)] + [flow(11.3, "edge", start_s=0.77)] * 3
    run = Run({"edge": 3.3}, jobs, [Change(4.1, "edge", 1.7)])
    assert len(set(run.finish_s[17:])) == 1


# --- what it costs ------------------------------------------------------------------------------------------------


def solved(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The names of the capacities in every solve from now on."""
    seen: list[set[str]] = []
    plain = fluid_module.fair_rates

    def counted(bundles):
        seen.append({capacity.name for bundle in bundles for capacity, _ in bundle.path})
        return plain(bundles)

    monkeypatch.setattr(fluid_module, "fair_rates", counted)
    return seen


def test_one_that_shares_nothing_is_one_timer_and_no_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    solves = solved(monkeypatch)
    env = Environment()
    done = Fluid(env).start({Capacity("edge", 10.0): 10.0}, 1.0, latency_s=0.5)
    env.step()
    assert (env.now, done.triggered) == (1.5, True)
    env.run()
    assert solves == []


def test_a_start_and_a_finish_solve_only_what_they_touch(monkeypatch: pytest.MonkeyPatch) -> None:
    solves = solved(monkeypatch)
    jobs = [flow(10.0, "a"), flow(10.0, "a"), flow(30.0, "b", start_s=0.5), flow(10.0, "b", start_s=1.0)]
    assert Run({"a": 10.0, "b": 10.0}, jobs).finish_s == [2.0, 2.0, 4.5, 3.0]
    assert solves == [{"a"}, {"b"}, {"b"}]  # at 0, 1 and 3


def test_equal_activities_are_solved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = fluid_module.fair_rates
    monkeypatch.setattr(fluid_module, "fair_rates", lambda bundles: sizes.append(len(bundles)) or plain(bundles))
    run = Run({"a": 8.0, "b": 8.0}, [flow(float(size), "a", "b") for size in (8, 16, 24, 32)])
    assert run.finish_s == [4.0, 7.0, 9.0, 10.0]
    assert set(sizes) == {1}


# --- laws ---------------------------------------------------------------------------------------------------------

NAMES = "abcdef"
rates = st.integers(1, 64).map(float)
jobs_on = st.builds(
    Job,
    start_s=st.integers(0, 16).map(lambda n: n / 4),
    amounts=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 100).map(float), max_size=4),
    alone_s=st.sampled_from([0.0, 0.3, 1.0, 2.5, 7.0]),
    latency_s=st.sampled_from([0.0, 0.0, 0.1, 1.0]),
    weight=st.sampled_from([1.0, 1.0, 1.0, 2.0, 0.3]),
)
flows_on = st.builds(
    lambda start, size, edges: flow(size, *edges, start_s=start),
    st.integers(0, 16).map(lambda n: n / 4),
    st.integers(1, 100).map(float),
    st.sets(st.sampled_from(NAMES), min_size=1, max_size=4).map(sorted),
)
many_jobs = st.lists(jobs_on | flows_on, min_size=1, max_size=14)
capacities_of = st.fixed_dictionaries(dict.fromkeys(NAMES, rates))
changes_of = st.lists(
    st.builds(Change, st.integers(1, 40).map(lambda n: n / 3), st.sampled_from(NAMES), st.just(0.0) | rates),
    max_size=4,
    unique_by=lambda change: (change.time_s, change.capacity),
)
laws = settings(max_examples=250, deadline=None, derandomize=True)


@laws
@given(capacities_of, many_jobs, changes_of)
def test_times_are_those_of_the_plain_reference(capacities, jobs, changes) -> None:
    assert Run(capacities, jobs, changes).finish_s == pytest.approx(finish_times(capacities, jobs, changes), rel=1e-9)


@laws
@given(capacities_of, many_jobs)
def test_bytes_are_conserved_and_no_edge_serves_more_than_it_can(capacities, jobs) -> None:
    run = Run(capacities, jobs)
    asked = {name: sum(job.amounts.get(name, 0.0) for job in jobs) for name in capacities}
    assert run.served == pytest.approx(asked, rel=1e-12)
    assert max(run.most_used.values()) <= 1 + 1e-12


@laws
@given(capacities_of, many_jobs, capacities_of, many_jobs)
def test_unrelated_activities_change_nothing(capacities, jobs, others, strangers) -> None:
    apart = Run(capacities, jobs).finish_s
    elsewhere = [
        Job(job.start_s, {name.upper(): amount for name, amount in job.amounts.items()}, job.alone_s, job.latency_s)
        for job in strangers
    ]
    both = Run(capacities | {name.upper(): rate for name, rate in others.items()}, [*elsewhere, *jobs]).finish_s
    assert both[len(elsewhere) :] == apart  # to the last bit


@laws
@given(capacities_of, many_jobs)
def test_twice_the_speed_of_everything_halves_every_transfer(capacities, jobs) -> None:
    faster = [Job(job.start_s / 2, job.amounts, job.alone_s / 2, job.latency_s / 2, job.weight) for job in jobs]
    once = Run(capacities, jobs).finish_s
    twice = Run({name: 2 * rate for name, rate in capacities.items()}, faster).finish_s
    assert [2 * time_s for time_s in twice] == pytest.approx(once, rel=1e-12)


@laws
@given(capacities_of, many_jobs)
def test_nobody_is_faster_than_alone(capacities, jobs) -> None:
    for activity, job in zip(Run(capacities, jobs).done, jobs, strict=True):
        alone = Run(capacities, [job]).done[0]
        assert activity.finish_s >= alone.finish_s - 1e-12
        assert activity.sharing_s == pytest.approx(activity.finish_s - alone.finish_s, abs=1e-12)


@laws
@given(capacities_of, many_jobs, changes_of)
def test_a_run_repeats_to_the_last_bit(capacities, jobs, changes) -> None:
    first, second = Run(capacities, jobs, changes), Run(capacities, jobs, changes)
    assert (first.finish_s, first.order) == (second.finish_s, second.order)


def test_no_drift_over_a_long_busy_time() -> None:
    """Work never runs out of step with the clock: an edge that is never idle is done after bytes / rate."""
    env = Environment()
    fluid, edge = Fluid(env), Capacity("edge", 3.0)

    def client(size: float):
        for _ in range(3000):
            yield fluid.start({edge: size}, size / 3.0)

    clients = [env.process(client(size)) for size in (0.7, 1.1, 1.9)]
    env.run(env.all_of(clients))
    assert env.now == pytest.approx(3000 * (0.7 + 1.1 + 1.9) / 3.0, rel=1e-12)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1.0, nan, inf])
def test_impossible_numbers_are_refused(bad: float) -> None:
    fluid, edge = Fluid(Environment()), Capacity("edge", 1.0)
    with pytest.raises(InputError, match=r"edge.*amount"):
        fluid.start({edge: bad}, 1.0)
    for arguments in ({"alone_s": bad}, {"alone_s": 1.0, "latency_s": bad}, {"alone_s": 1.0, "weight": bad}):
        with pytest.raises(InputError, match="activity"):
            fluid.start({edge: 1.0}, **arguments)
    with pytest.raises(InputError, match="capacity edge"):
        Capacity("edge", bad)
    with pytest.raises(InputError, match="capacity edge"):
        fluid.set_rate(edge, bad)


def test_a_weight_of_zero_is_refused() -> None:
    with pytest.raises(InputError, match="weight"):
        Fluid(Environment()).start({Capacity("edge", 1.0): 1.0}, 1.0, weight=0.0)


def test_a_capacity_belongs_to_one_fluid() -> None:
    edge = Capacity("edge", 1.0)
    Fluid(Environment()).start({edge: 1.0}, 1.0)
    other = Fluid(Environment())
    with pytest.raises(InputError, match="another Fluid"):
        other.start({edge: 1.0}, 1.0)
    with pytest.raises(InputError, match="another Fluid"):
        other.set_rate(edge, 2.0)
