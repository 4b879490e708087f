"""Who gets what at one instant: weighted max-min fairness over dominant shares, by progressive filling.

An activity uses its capacities in fixed proportions. Its dominant share is the largest fraction it takes of any of
them; progressive filling raises all dominant shares together (times a weight) and freezes an activity at its own cap
or where a capacity is full. Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2 (max-min flow control);
Ghodsi et al., Dominant Resource Fairness, NSDI 2011 (several kinds of capacity).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf, nan
from typing import TYPE_CHECKING

from sim.errors import InputError

if TYPE_CHECKING:
    from simpy.events import Event

# Two capacities that fill at levels this near (relative) fill together. Rounding of the sums is about 1e-15; without
# the margin, what is left of the second one would be that rounding error, shared out as if it were bandwidth.
TIE = 1e-12


class Capacity:
    """Something that activities share: a directed edge (bytes/s), a GPU's HBM (bytes/s), its compute (FLOP/s).

    Args:
        name: for error messages, such as "node0.nic3->leaf3".
        rate_per_s: amount it serves a second, finite; 0 is a link that is down (its activities stall).

    A capacity belongs to the `Fluid` that first uses it; change its rate there, by `Fluid.set_rate`.
    """

    __slots__ = ("left_per_s", "level", "name", "owner", "rate_per_s", "users")

    def __init__(self, name: str, rate_per_s: float) -> None:
        self.name = name
        self.rate_per_s = checked_rate(name, rate_per_s)
        self.users: dict[Bundle, float] = {}
        self.owner: object = None
        self.left_per_s = 0.0
        self.level = inf

    def __repr__(self) -> str:
        return f"Capacity({self.name!r}, {self.rate_per_s!r})"


def checked_rate(name: str, rate_per_s: float) -> float:
    """`rate_per_s` as a float.

    Raises:
        InputError: if it is negative, infinite or NaN.
    """
    if not 0.0 <= rate_per_s < inf:
        raise InputError(f"capacity {name}", f"got a rate of {rate_per_s} a second", "a rate is finite and >= 0")
    return float(rate_per_s)


class Activity:
    """One piece of work that uses capacities; the value of the event that `Fluid.start` returns.

    Attributes:
        amounts: what it uses of each capacity in all (bytes, FLOPs); zeros left out.
        asked_s: its duration alone as `start` was told.
        start_s: when it was asked for; its latency runs from here.
        begin_s: when its latency was paid and it began to occupy its capacities.
        alone_s: how long it takes from `begin_s` with its capacities to itself, at their rates of that moment.
        finish_s: when it was done (NaN before).
        sharing_s: `finish_s - begin_s - alone_s`: what others, or a capacity that degraded meanwhile, cost it.
        weight: its level of share relative to others.
    """

    __slots__ = (
        "alone_s",
        "amounts",
        "asked_s",
        "begin_s",
        "cap_per_s",
        "done",
        "finish_s",
        "serial",
        "sharing_s",
        "size",
        "start_s",
        "weight",
    )

    def __init__(
        self, serial: int, amounts: Mapping[Capacity, float], alone_s: float, weight: float, start_s: float
    ) -> None:
        self.serial = serial
        self.amounts = amounts
        # work is counted in units of its largest amount, so that flows of different sizes on one path are alike
        self.size = max(amounts.values(), default=0.0)
        self.cap_per_s = self.size / alone_s if alone_s > 0.0 else inf
        self.asked_s = alone_s
        self.alone_s = alone_s
        self.weight = weight
        self.start_s = start_s
        self.begin_s = start_s
        self.finish_s = nan
        self.sharing_s = 0.0
        self.done: Event


class Bundle:
    """Activities alike but for their size: same proportions of the same capacities, weight and cap.

    All members advance at the same rate, so the work served to one member since the bundle exists, `served`, says
    how far each has come: a member is done when `served` reaches the mark set when it joined. Nothing is updated a
    member; `served` moves only when the rate changes, so work is exact between changes.
    """

    __slots__ = (
        "cap_per_s",
        "component",
        "count",
        "filling",
        "finish_s",
        "full_per_s",
        "key",
        "limit_level",
        "limit_per_s",
        "members",
        "path",
        "rate",
        "served",
        "since_s",
        "slope",
        "weight",
    )

    def __init__(self, key: object, path: list[tuple[Capacity, float]], weight: float, cap_per_s: float) -> None:
        self.key = key
        self.path = path
        self.weight = weight
        self.cap_per_s = cap_per_s
        self.members: list[tuple[float, int, Activity]] = []  # heap of (mark, serial, activity)
        self.count = 0
        self.component: Component
        self.rate = 0.0  # of one member, in units of its largest amount a second
        self.served = 0.0
        self.since_s = 0.0  # when `served` and `rate` were set
        self.finish_s = inf  # of the first member
        self.limit_per_s = cap_per_s  # by its cap and by what only it uses, and the level at which it gets there
        self.limit_level = inf
        self.filling = False
        self.refresh()

    def refresh(self) -> None:
        """Take the present rates of its capacities."""
        self.full_per_s = min([capacity.rate_per_s / ratio for capacity, ratio in self.path])
        self.slope = self.weight * self.full_per_s  # rate a unit of level

    def served_at(self, now_s: float) -> float:
        """Work served to one member until `now_s`."""
        return self.served + self.rate * (now_s - self.since_s)

    def set_rate(self, rate: float, now_s: float) -> None:
        """Go on at `rate` from `now_s`."""
        if rate != self.rate:
            self.served += self.rate * (now_s - self.since_s)
            self.since_s = now_s
            self.rate = rate


class Component:
    """Bundles joined by the capacities they share; what happens in one component never touches another."""

    __slots__ = ("armed_s", "begins_s", "bundles", "changed", "next_s", "timer")

    def __init__(self, begins_s: float) -> None:
        self.bundles: dict[Bundle, None] = {}  # a dict for its order, which makes runs repeatable
        self.begins_s = begins_s  # in the future: one activity that is still paying its latency
        self.next_s = inf  # when the next member is done
        self.armed_s = inf  # when its timer comes
        self.changed = False  # its rates are to be settled at this moment
        self.timer: Event | None = None

    def add(self, bundle: Bundle) -> None:
        """Take in a bundle and enter it at its capacities."""
        bundle.component = self
        self.bundles[bundle] = None
        for capacity, ratio in bundle.path:
            capacity.users[bundle] = ratio

    def absorb(self, other: Component) -> None:
        """Take over all bundles of `other`, which is then dead."""
        for bundle in other.bundles:
            bundle.component = self
        self.bundles.update(other.bundles)
        other.bundles = {}
        other.timer = None

    def remove(self, gone: list[Bundle]) -> list[Component]:
        """Drop bundles without members; the components that are left (none, itself, or itself and what split off)."""
        bridges = 0
        for bundle in gone:
            del self.bundles[bundle]
            for capacity, _ in bundle.path:
                del capacity.users[bundle]
                bridges += bool(capacity.users)
        if not self.bundles:
            self.timer = None
            return []
        # what hung together only through a bundle that is gone must have shared two capacities with it
        if bridges < 2 or len(self.bundles) == 1:
            return [self]
        return self._split()

    def _split(self) -> list[Component]:
        parts = [self]
        unseen = self.bundles
        self.bundles = _reachable(unseen)
        while unseen:
            part = Component(self.begins_s)
            part.bundles = _reachable(unseen)
            for bundle in part.bundles:
                bundle.component = part
            parts.append(part)
        return parts


def _reachable(unseen: dict[Bundle, None]) -> dict[Bundle, None]:
    """The bundles joined to the first of `unseen`, taken out of it."""
    first = next(iter(unseen))
    del unseen[first]
    found = {first: None}
    queue = [first]
    for bundle in queue:
        for capacity, _ in bundle.path:
            for other in capacity.users:
                if other in unseen:
                    del unseen[other]
                    found[other] = None
                    queue.append(other)
    return found


def fair_rates(bundles: Collection[Bundle]) -> list[float]:
    """The rate of one member of each bundle of a component, in order: weighted max-min over dominant shares.

    Returns units of the member's largest amount a second. A bundle on a capacity of rate 0 gets 0.
    """
    if len(bundles) == 1:
        (only,) = bundles
        return [min(only.cap_per_s, only.full_per_s / only.count)]
    rates = dict.fromkeys(bundles, 0.0)
    filling, shared = _bounded(bundles)
    level = 0.0
    while filling:
        level = _next_full(shared, level)
        # A bundle that stops at its own limit leaves more for the others, so no capacity fills before `level`:
        # all whose limit lies below it can be frozen at once.
        frozen = [bundle for bundle in filling if bundle.limit_level <= level]
        if frozen:
            for bundle in frozen:
                rates[bundle] = bundle.limit_per_s
        else:
            frozen = _at_full(shared, level)
            for bundle in frozen:
                rates[bundle] = level * bundle.slope
        for bundle in frozen:
            bundle.filling = False
            taken_per_s = bundle.count * rates[bundle]
            for capacity, ratio in bundle.path:
                capacity.left_per_s -= taken_per_s * ratio
        filling = [bundle for bundle in filling if bundle.filling]
    return list(rates.values())


def _bounded(bundles: Collection[Bundle]) -> tuple[list[Bundle], dict[Capacity, None]]:
    """The bundles that can run, each with its own limit, and the capacities that more than one bundle uses.

    A capacity with one user is no matter of sharing: it is a limit of that bundle, like its cap.
    """
    filling = []
    shared: dict[Capacity, None] = {}
    for bundle in bundles:
        slope = bundle.slope
        if slope <= 0.0:
            continue
        limit_per_s = bundle.cap_per_s
        for capacity, ratio in bundle.path:
            if len(capacity.users) > 1:
                shared[capacity] = None
                capacity.left_per_s = capacity.rate_per_s
            else:
                own_per_s = capacity.rate_per_s / (ratio * bundle.count)
                if own_per_s < limit_per_s:
                    limit_per_s = own_per_s
        bundle.limit_per_s = limit_per_s
        bundle.limit_level = limit_per_s / slope
        bundle.filling = True
        filling.append(bundle)
    return filling, shared


def _next_full(capacities: dict[Capacity, None], level: float) -> float:
    """The level, not below the present one, at which the next capacity is full."""
    lowest = inf
    for capacity in capacities:
        slope = 0.0
        for bundle, ratio in capacity.users.items():
            if bundle.filling:
                slope += bundle.count * bundle.slope * ratio
        # rounding may leave a capacity a hair over-full; levels never go back
        full = max(level, capacity.left_per_s / slope) if slope > 0.0 else inf
        capacity.level = full
        if full < lowest:
            lowest = full
    return lowest


def _at_full(capacities: dict[Capacity, None], level: float) -> list[Bundle]:
    """The bundles still filling on capacities that are full at `level`."""
    full = level * (1.0 + TIE)
    found = {
        bundle: None for capacity in capacities if capacity.level <= full for bundle in capacity.users if bundle.filling
    }
    return list(found)
