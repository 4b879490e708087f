"""Speed of the fluid engine: activities started and finished a second of real time, closed loop.

Run: pytest -m benchmark tests/bench_fluid.py -s
"""

import random
import time
from collections.abc import Callable

import pytest
from simpy import Environment
from simpy.events import Event

from sim.engine.fluid import Activity, Capacity, Fluid

pytestmark = pytest.mark.benchmark

CONCURRENT = 64
ACTIVITIES = 6_000
Work = tuple[dict[Capacity, float], float, float]  # amounts, alone_s, latency_s


def closed_loop(env: Environment, fluid: Fluid, clients: list[list[Work]]) -> float:
    """Each client starts its next activity when its last is done; activities finished a second of real time."""
    finished: list[Activity] = []

    def follow(works: list[Work]) -> None:
        todo = iter(works)

        def start_next(event: Event | None) -> None:
            if event is not None:
                finished.append(event.value)
            work = next(todo, None)
            if work is not None:
                fluid.start(*work).callbacks.append(start_next)

        start_next(None)

    begin = time.perf_counter()
    for works in clients:
        follow(works)
    env.run()
    took_s = time.perf_counter() - begin
    assert len(finished) == sum(len(works) for works in clients)
    assert sum(activity.sharing_s > 0 for activity in finished) > 0.5 * len(finished)
    return len(finished) / took_s


def activities_per_s(
    name: str, fabric: Callable[[], list[list[Capacity]]], sizes: list[float], latency_s: float = 0.0
) -> float:
    """Best of three closed loops of one client a path, whose activities have random ones of `sizes`."""
    speeds = []
    for seed in range(3):
        rng = random.Random(seed)
        env = Environment()
        paths = fabric()
        clients: list[list[Work]] = []
        for path in paths:
            # out of step with each other, or equal activities would start and finish in one event
            works: list[Work] = [({}, 0.0, rng.uniform(0.0, 1e-3))]
            for _ in range(ACTIVITIES // len(paths)):
                size = rng.choice(sizes)
                works.append((dict.fromkeys(path, size), size / min(edge.rate_per_s for edge in path), latency_s))
            clients.append(works)
        speeds.append(closed_loop(env, Fluid(env), clients))
    print(f"\n{name}: {max(speeds):,.0f} activities/s")
    return max(speeds)


EQUAL = [1e6]
MIXED = [1e5 + 9_901.0 * i for i in range(1000)]


def edges(count: int) -> list[Capacity]:
    return [Capacity(f"edge{i}", 50e9) for i in range(count)]


def groups_on_one_edge_each() -> list[list[Capacity]]:
    return [[edge] for edge in edges(CONCURRENT // 4) for _ in range(4)]


def groups_with_paths_of_their_own() -> list[list[Capacity]]:
    """Three edges a flow: its own into the NIC, the NIC that the group shares, its own out of the fabric."""
    return [[edges(1)[0], nic, edges(1)[0]] for nic in edges(CONCURRENT // 4) for _ in range(4)]


def all_on_one_edge() -> list[list[Capacity]]:
    return [edges(1)] * CONCURRENT


def all_on_one_spine() -> list[list[Capacity]]:
    spine = edges(1)[0]
    return [[own, spine] for own in edges(CONCURRENT)]


@pytest.mark.parametrize("sizes", [EQUAL, MIXED], ids=["equal", "mixed"])
@pytest.mark.parametrize("fabric", [groups_on_one_edge_each, groups_with_paths_of_their_own])
def test_disjoint_groups_of_four(fabric: Callable[[], list[list[Capacity]]], sizes: list[float]) -> None:
    assert activities_per_s(fabric.__name__, fabric, sizes) >= 20_000


@pytest.mark.parametrize("latency_s", [0.0, 5e-6])
@pytest.mark.parametrize("sizes", [EQUAL, MIXED], ids=["equal", "mixed"])
def test_all_on_one_edge(sizes: list[float], latency_s: float) -> None:
    assert activities_per_s(f"all_on_one_edge, latency {latency_s} s", all_on_one_edge, sizes, latency_s) >= 5_000


def test_all_on_one_spine() -> None:
    assert activities_per_s("all_on_one_spine", all_on_one_spine, MIXED) >= 1_000
