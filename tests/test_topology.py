"""Topologies: what the files say, what the language refuses, what the graph answers."""

from __future__ import annotations

import pytest

from sim.errors import InputError
from sim.hardware.topology import load_topology


def test_a_dgx_h100_is_eight_gpus_on_one_switch() -> None:
    box = load_topology("dgx-h100", {})
    assert box.gpus == [f"n0.g{i}" for i in range(8)]
    assert box.path("n0.g0", "n0.g5") == (("n0.g0", "n0.nvs"), ("n0.nvs", "n0.g5"))
    assert box.route("n0.g0", "n0.g5").bandwidth_bytes_per_s == 450e9


def test_two_nodes_meet_on_their_rail() -> None:
    pair = load_topology("dgx-h100", {"nodes": 2})
    assert [b for _, b in pair.path("n0.g3", "n1.g3")] == ["n0.sw1", "n0.nic3", "leaf3", "n1.nic3", "n1.sw1", "n1.g3"]
    assert pair.route("n0.g3", "n1.g3").bandwidth_bytes_per_s == 50e9


def test_an_unknown_parameter_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'nodes'"):
        load_topology("dgx-h100", {"node": 2})
