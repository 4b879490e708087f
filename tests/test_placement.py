"""Placement: which GPU holds which rank, and what that makes cross a network."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import InputError
from sim.hardware.placement import place
from sim.hardware.topology import Topology, load_topology


@pytest.fixture(scope="module")
def two() -> Topology:
    return load_topology("dgx-h100", {"nodes": 2})


def test_pack_keeps_a_group_in_a_node_and_puts_stages_across(two: Topology) -> None:
    placed = place(two, tensor=8, pipeline=2, data=1)
    assert placed == [[[f"n0.g{i}" for i in range(8)], [f"n1.g{i}" for i in range(8)]]]


def test_pack_does_not_tear_a_group_that_fits_in_the_next_node(two: Topology) -> None:
    groups = [stages[0] for stages in place(two, tensor=6, pipeline=1, data=2)]
    assert [{two.node_of[gpu] for gpu in group} for group in groups] == [{"n0"}, {"n1"}]


def test_pack_fills_gaps_before_it_opens_a_node(two: Topology) -> None:
    placed = place(two, tensor=2, pipeline=2, data=2)
    assert {two.node_of[gpu] for stages in placed for group in stages for gpu in group} == {"n0"}


def test_a_group_larger_than_a_node_takes_whole_nodes(two: Topology) -> None:
    assert place(two, 16, 1, 1)[0][0] == two.gpus


def test_spread_deals_the_ranks_of_a_group_to_the_nodes(two: Topology) -> None:
    assert place(two, 2, 1, 2, "spread") == [[["n0.g0", "n1.g0"]], [["n0.g1", "n1.g1"]]]


def test_a_list_is_taken_in_the_order_replica_stage_rank(two: Topology) -> None:
    names = ["n1.g7", "n0.g0", "n0.g1", "n1.g6"]
    assert place(two, 2, 2, 1, names) == [[["n1.g7", "n0.g0"], ["n0.g1", "n1.g6"]]]


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ("pak", "did you mean 'pack'"),
        (["n0.g0"], "got 1 GPU names"),
        (["n0.g0", "n0.g0"], "'n0.g0' is named twice"),
        (["n0.g0", "n0.g9"], "no GPU is called 'n0.g9'"),
    ],
)
def test_a_wrong_placement_is_refused(two: Topology, placement: str | list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        place(two, 2, 1, 1, placement)


def test_too_few_gpus_are_counted(two: Topology) -> None:
    with pytest.raises(InputError, match="needs 32 GPUs, dgx-h100 has 16"):
        place(two, 8, 2, 2)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    tensor=st.integers(1, 16),
    pipeline=st.integers(1, 4),
    data=st.integers(1, 4),
    policy=st.sampled_from(["pack", "spread"]),
)
def test_every_rank_has_a_gpu_of_its_own(tensor: int, pipeline: int, data: int, policy: str) -> None:
    cluster = load_topology("dgx-a100", {"nodes": 4})
    if tensor * pipeline * data > 32:
        with pytest.raises(InputError):
            place(cluster, tensor, pipeline, data, policy)
        return
    placed = place(cluster, tensor, pipeline, data, policy)
    names = [gpu for stages in placed for group in stages for gpu in group]
    assert len(set(names)) == len(names) == tensor * pipeline * data
    assert [[len(group) for group in stages] for stages in placed] == [[tensor] * pipeline] * data
