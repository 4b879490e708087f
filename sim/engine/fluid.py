"""Activities that share capacities: kernels, collectives and KV transfers in time, on SimPy.

An activity has one unit of work, an amount for each capacity it uses, a latency paid first that occupies nothing,
and its duration alone, which caps its rate. Alone it takes exactly that; together, activities get weighted max-min
fair shares (see fair_share.py). It is the fluid model of flow-level network simulators (Casanova et al., SimGrid,
2014), here with several kinds of capacity in one activity.

A start or a finish re-solves only the component it touches, and an activity that meets nobody is one SimPy timer.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush
from math import inf, ulp
from typing import cast

from simpy import Environment
from simpy.events import Event, Timeout

from sim.engine.fair_share import Activity, Bundle, Capacity, Component, checked_rate, fair_rates
from sim.errors import InputError

__all__ = ["Activity", "Capacity", "Fluid"]

# Activities whose rest would take less than this are done together: a femtosecond (a thousandth of a byte at 1 TB/s),
# or a few steps of the clock, below which time itself is not resolved.
FINISH_TOLERANCE_S = 1e-15
FINISH_TOLERANCE_ULPS = 4.0


class Fluid:
    """Runs activities on a SimPy environment.

    Every capacity belongs to one `Fluid`. SimPy timers cannot be called off, so outdated ones stay in its queue and
    do nothing when they come; end a run at an event or a time, not by an empty queue.
    """

    def __init__(self, env: Environment) -> None:
        self.env = env
        self._bundles: dict[object, Bundle] = {}
        self._serial = 0

    def start(
        self, amounts: Mapping[Capacity, float], alone_s: float, latency_s: float = 0.0, weight: float = 1.0
    ) -> Event:
        """An event that fires when the activity is done; its value is the `Activity`.

        Args:
            amounts: what it uses of each capacity in all, in the capacity's unit (bytes, FLOPs); zeros are ignored.
            alone_s: its duration with the capacities to itself, latency left out; caps its rate at 1 / alone_s.
                Where a capacity cannot serve its amount in that time, the capacity is the limit; 0 sets no cap.
            latency_s: paid first; occupies nothing.
            weight: its dominant share rises `weight` times as fast as that of weight 1.

        Raises:
            InputError: for a negative, infinite or NaN number, a weight of 0, or a capacity of another `Fluid`.
        """
        if not (0.0 <= alone_s < inf and 0.0 <= latency_s < inf and 0.0 < weight < inf):
            got = f"got alone_s={alone_s}, latency_s={latency_s}, weight={weight}"
            raise InputError("activity", got, "durations are finite and >= 0, a weight is finite and > 0")
        used = self._used(amounts)
        self._serial += 1
        now_s = self.env.now
        if not used:
            return self._unshared(alone_s, latency_s, weight)
        activity = Activity(self._serial, used, alone_s, weight, now_s)
        activity.done = Event(self.env)
        if latency_s == 0.0:
            self._begin(activity)
        elif any(capacity.users for capacity in used):
            self._begin_later(activity, latency_s)
        else:
            # no other activity is there: one timer for latency and work, taken apart only if another comes
            self._occupy(activity, now_s + latency_s)
        return activity.done

    def set_rate(self, capacity: Capacity, rate_per_s: float) -> None:
        """Change a capacity from now on: a link degrades, fails (0) or is repaired.

        Raises:
            InputError: if the rate is negative, infinite or NaN.
        """
        if capacity.owner not in (None, self):
            raise InputError(f"capacity {capacity.name}", "it belongs to another Fluid")
        capacity.rate_per_s = checked_rate(capacity.name, rate_per_s)
        self._evict(capacity)
        component = None
        for bundle in capacity.users:
            bundle.refresh()
            component = bundle.component
        if component is not None:
            self._advance(component)

    def _used(self, amounts: Mapping[Capacity, float]) -> dict[Capacity, float]:
        """The amounts above zero, checked."""
        used = {}
        for capacity, amount in amounts.items():
            if not 0.0 <= amount < inf:
                raise InputError(f"activity on {capacity.name}", f"got an amount of {amount}", "it is finite and >= 0")
            if capacity.owner is not self:
                if capacity.owner is not None:
                    raise InputError(f"activity on {capacity.name}", "the capacity belongs to another Fluid")
                capacity.owner = self
            if amount > 0.0:
                used[capacity] = amount
        return used

    def _unshared(self, alone_s: float, latency_s: float, weight: float) -> Event:
        """The timer of an activity that uses no capacity."""
        activity = Activity(self._serial, {}, alone_s, weight, self.env.now)
        activity.begin_s = activity.start_s + latency_s
        activity.finish_s = activity.start_s + (latency_s + alone_s)
        activity.done = Timeout(self.env, latency_s + alone_s, activity)
        return activity.done

    def _begin_later(self, activity: Activity, delay_s: float) -> None:
        timer = Timeout(self.env, delay_s, activity)
        timer.callbacks.append(self._latency_paid)

    def _latency_paid(self, timer: Event) -> None:
        self._begin(cast(Activity, timer.value))

    def _begin(self, activity: Activity) -> None:
        """Occupy the capacities now, together with whoever is there."""
        now_s = self.env.now
        component: Component | None = None
        for capacity in activity.amounts:
            if not capacity.users:
                continue
            self._evict(capacity)
            for bundle in capacity.users:
                component = _joined(component, bundle.component)
                break
        if component is None:
            self._occupy(activity, now_s)
            return
        bundle = self._bundle(activity)
        if not bundle.count:
            component.add(bundle)
            bundle.since_s = now_s
        self._enlist(activity, bundle, now_s)
        self._change(component)

    def _occupy(self, activity: Activity, begin_s: float) -> None:
        """Start a component of its own, of which the activity is alone; needs no solve."""
        bundle = self._bundle(activity)
        component = Component(begin_s)
        component.add(bundle)
        bundle.since_s = begin_s
        bundle.rate = min(bundle.cap_per_s, bundle.full_per_s)
        self._enlist(activity, bundle, begin_s)
        bundle.finish_s = component.next_s = begin_s + activity.alone_s
        self._arm(component)

    def _bundle(self, activity: Activity) -> Bundle:
        """The bundle of its kind, an existing one or a new one that is nowhere yet."""
        size = activity.size
        path = [(capacity, amount / size) for capacity, amount in activity.amounts.items()]
        key = (frozenset(path), activity.weight, activity.cap_per_s)
        bundle = self._bundles.get(key)
        if bundle is None:
            bundle = self._bundles[key] = Bundle(key, path, activity.weight, activity.cap_per_s)
        return bundle

    def _enlist(self, activity: Activity, bundle: Bundle, begin_s: float) -> None:
        activity.begin_s = begin_s
        least_s = activity.size / bundle.full_per_s if bundle.full_per_s > 0.0 else inf
        activity.alone_s = max(activity.asked_s, least_s)
        heappush(bundle.members, (bundle.served_at(begin_s) + activity.size, activity.serial, activity))
        bundle.count += 1

    def _evict(self, capacity: Capacity) -> None:
        """Let one that waits for its latency on this capacity wait outside, since it is no longer alone."""
        for bundle in capacity.users:
            component = bundle.component
            if component.begins_s > self.env.now:
                activity = bundle.members[0][2]
                self._dissolve(component, [bundle])
                self._begin_later(activity, component.begins_s - self.env.now)
            return

    def _dissolve(self, component: Component, gone: list[Bundle]) -> list[Component]:
        for bundle in gone:
            del self._bundles[bundle.key]
        return component.remove(gone)

    def _change(self, component: Component) -> None:
        """Have the component's shares settled once, after all that happens at this moment.

        A finish is often followed by the next start within no time; nothing is served in between.
        """
        if not component.changed:
            component.changed = True
            timer = Timeout(self.env, 0.0, component)
            timer.callbacks.append(self._settle)

    def _settle(self, timer: Event) -> None:
        """Give every bundle of the component its fair rate and wait for the first member to be done."""
        component = cast(Component, timer.value)
        component.changed = False
        now_s = self.env.now
        next_s = inf
        for bundle, rate in zip(component.bundles, fair_rates(component.bundles), strict=True):
            bundle.set_rate(rate, now_s)
            if rate > 0.0:
                bundle.finish_s = bundle.since_s + (bundle.members[0][0] - bundle.served) / rate
                next_s = min(next_s, bundle.finish_s)
            else:
                bundle.finish_s = inf
        component.next_s = next_s
        self._arm(component)

    def _arm(self, component: Component) -> None:
        """Make sure that a timer comes not later than the next finish; one that comes early is armed again."""
        if component.next_s < component.armed_s:
            now_s = self.env.now
            timer = Timeout(self.env, max(0.0, component.next_s - now_s), component)
            timer.callbacks.append(self._timer_came)
            component.timer = timer
            component.armed_s = component.next_s

    def _timer_came(self, timer: Event) -> None:
        component = cast(Component, timer.value)
        if component.timer is not timer:
            return
        component.timer = None
        component.armed_s = inf
        if self.env.now < component.next_s:
            self._arm(component)
        else:
            self._advance(component)

    def _advance(self, component: Component) -> None:
        """Complete what is done by now and share anew."""
        for part in self._dissolve(component, self._finish(component)):
            self._change(part)

    def _finish(self, component: Component) -> list[Bundle]:
        """Complete every member that is done by now, in the order of their starts; the bundles left empty."""
        now_s = self.env.now
        tolerance_s = max(FINISH_TOLERANCE_S, FINISH_TOLERANCE_ULPS * ulp(now_s))
        done: list[tuple[int, Activity]] = []
        empty = []
        for bundle in component.bundles:
            if bundle.finish_s > now_s + tolerance_s:
                continue
            served = max(bundle.members[0][0], bundle.served_at(now_s) + bundle.rate * tolerance_s)
            while bundle.members and bundle.members[0][0] <= served:
                _, serial, activity = heappop(bundle.members)
                done.append((serial, activity))
                bundle.count -= 1
            if not bundle.count:
                empty.append(bundle)
        for _, activity in sorted(done):
            over_s = now_s - activity.begin_s - activity.alone_s
            activity.sharing_s = over_s if over_s > tolerance_s else 0.0
            activity.finish_s = now_s
            activity.done.succeed(activity)
        return empty


def _joined(component: Component | None, other: Component) -> Component:
    """One component of both; the larger takes over the smaller."""
    if component is None or component is other:
        return other
    if len(component.bundles) < len(other.bundles):
        component, other = other, component
    component.absorb(other)
    return component
