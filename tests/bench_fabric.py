"""Speed of fabrics and collectives: building a large one, placing on it, compiling collectives, and looking one up.

Run: pytest -m benchmark tests/bench_fabric.py -s
"""

import time
from collections.abc import Callable

import numpy as np
import pytest

from sim.cost.collectives import Communicator
from sim.engine.deployment import Deployment
from sim.hardware.placement import place
from sim.hardware.topology import Topology, load_topology
from sim.scenario import Scenario

pytestmark = pytest.mark.benchmark

NODES = 512
"""Of eight GPUs each: 4,096."""
FABRICS = ["dgx-h100", "fat-tree-oversubscribed", "cloud-h100-100gbe"]
SIZES = [2.0**power for power in range(10, 27)]


def best_s(work: Callable[[], object], times: int = 3) -> float:
    """CPU seconds of the fastest of a few."""
    found = []
    for _ in range(times):
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return min(found)


def built(name: str) -> Topology:
    topology = load_topology(name, {"nodes": NODES})
    assert len(topology.gpus) == 8 * NODES
    return topology


@pytest.mark.parametrize("name", FABRICS)
def test_a_fabric_of_4096_gpus_builds(name: str) -> None:
    took_s = best_s(lambda: built(name))
    print(f"\n{name}: {took_s:.2f} s")
    assert took_s < 2.0


@pytest.mark.parametrize("op", ["all_reduce", "all_to_all"])
@pytest.mark.parametrize("ranks", [8, 16, 256, 512, 1024, 4096])
@pytest.mark.parametrize("name", FABRICS)
def test_placement_and_collectives_on_it(name: str, ranks: int, op: str) -> None:
    """All 4,096 GPUs placed; the collective of the last group compiled and priced over all sizes."""
    topologies = [built(name) for _ in range(3)]  # routes are kept: each try starts without any
    data = 8 * NODES // ranks

    def work() -> None:
        topology = topologies.pop()
        groups = place(topology, ranks, 1, data)
        assert len(groups) == data
        times = Communicator(topology, groups[-1][0], "custom").times(op, np.array(SIZES))
        assert times.bandwidth_s[-1] > 0

    took_s = best_s(work)
    print(f"\n{name}, {op} in {data} groups of {ranks}: {took_s:.3f} s")
    assert took_s < 0.5


def test_a_known_collective_is_a_dictionary_look_up() -> None:
    """What `Communicator.time` costs the second time, beside a bare look-up by the same key."""
    communicator = Communicator(
        load_topology("dgx-h100", {"nodes": 2}), [f"n{n}.g{g}" for n in (0, 1) for g in range(8)]
    )
    assert communicator.time("all_reduce", 2.0**20).time_s > 0
    bare = {("all_reduce", size): size for size in SIZES}
    count = 200_000

    def asked() -> None:
        for _ in range(count):
            communicator.time("all_reduce", 2.0**20)

    def looked_up() -> None:
        for _ in range(count):
            bare.get(("all_reduce", 2.0**20))

    took_s, floor_s = best_s(asked) / count, best_s(looked_up) / count
    print(f"\ncollective known: {1e9 * took_s:.0f} ns; bare look-up {1e9 * floor_s:.0f} ns")
    assert took_s < 1e-6


def test_in_a_step_a_collective_is_an_entry_of_a_list() -> None:
    """An iteration's kernels and collectives are one list entry by its tokens; building the tables is once a deployment."""
    scenario = Scenario.from_dict({
        "model": "llama-3.1-70b",
        "cluster": {"topology": "dgx-h100", "nodes": 2},
        "deployment": {"tensor_parallel_size": 16},
        "workload": {
            "arrivals": {"kind": "burst"},
            "lengths": {"kind": "fixed", "input_tokens": 8, "output_tokens": 8},
            "num_requests": 1,
        },
    })  # fmt: skip
    cost = Deployment.of(scenario).cost(0)
    count = 200_000

    def asked() -> None:
        table = cost.token_s  # type: ignore[union-attr]
        for _ in range(count):
            table[64]

    built_s = best_s(lambda: Deployment.of(scenario).cost(0))
    print(f"\nstep tables with collectives: {1e3 * built_s:.0f} ms once; look-up {1e9 * best_s(asked) / count:.0f} ns")
    assert built_s < 0.5
