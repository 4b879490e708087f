"""The clock of a run: arrivals that are sorted already, beside SimPy's events."""

from __future__ import annotations

from sim.engine.clock import Clock


def played(arrivals_s: list[float], stop_s: float | None = None) -> tuple[list[str], Clock]:
    """What happened, with a timeout and the end of an iteration at 1 s and at 3 s each."""
    clock, told, upcoming = Clock(), [], iter([*arrivals_s, float("inf")])

    def arrive() -> None:
        told.append(f"arrival {clock.now:g}")
        clock.due_s = next(upcoming)

    for time_s in (1.0, 3.0):
        clock.call_at(time_s, lambda _: told.append(f"boundary {clock.now:g}"))
        clock.timeout(time_s).callbacks.append(lambda _: told.append(f"timeout {clock.now:g}"))
    clock.arrive, clock.due_s = arrive, next(upcoming)
    if stop_s is not None:
        clock.stop_at(stop_s)
    clock.drain()
    return told, clock


def test_an_arrival_comes_after_the_timeouts_of_its_instant_and_before_the_ends_of_iterations() -> None:
    told, clock = played([1.0, 1.0, 2.0])
    assert told == ["timeout 1", "arrival 1", "arrival 1", "boundary 1", "arrival 2", "timeout 3", "boundary 3"]
    assert clock.events == 7


def test_it_stops_before_what_happens_just_then() -> None:
    told, clock = played([0.5, 1.0], stop_s=1.0)
    assert told == ["arrival 0.5"]
    assert clock.now == 1.0


def test_the_next_thing_to_happen_may_be_an_arrival() -> None:
    clock = Clock()
    assert clock.peek() == float("inf")
    clock.timeout(2.0)
    clock.due_s = 1.5
    assert clock.peek() == 1.5
