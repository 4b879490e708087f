"""Topologies: what the files say, what the language refuses, what the graph answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sim import catalogue
from sim.errors import InputError
from sim.hardware.gpu import load_gpu
from sim.hardware.nvidia_smi import read_topo_matrix
from sim.hardware.topology import build_topology, load_topology
from sim.hardware.topology_language import DIRECT_KINDS
from sim.hardware.topology_summary import summarise

NAMES = [
    "cloud-h100-100gbe", "cloud-h100-10gbe", "cloud-h100-25gbe", "dgx-1-v100", "dgx-a100", "dgx-h100", "dgx-h200",
    "fat-tree-oversubscribed", "gb200-nvl72", "gb300-nvl72", "hgx-b200", "hgx-b300", "hgx-h800", "mi300x-platform",
    "mi355x-platform", "pcie-box-a10g", "pcie-box-h100-nvl", "pcie-box-h200-nvl", "pcie-box-l40s",
    "pcie-box-rtx-pro-6000", "pcie-box-t4", "pcie4-box", "rail-leaf-spine", "rtx-4090-box", "rtx-5090-box",
]  # fmt: skip


def small(**changes: Any) -> dict[str, Any]:
    """Two GPUs behind one switch."""
    data = {
        "name": "small",
        "description": "two GPUs",
        "source": "made up",
        "gpu": "h100-sxm",
        "parameters": {"nodes": 1, "wide": "100 GB/s"},
        "node": {
            "components": {"g": {"type": "gpu", "count": 2}, "nvs": {"type": "nvswitch"}},
            "links": [{"from": "g", "to": "nvs", "kind": "nvlink4", "bandwidth": "wide", "latency": "1 us"}],
        },
    }
    return {**data, **changes}


def test_the_catalogue_holds_every_promised_machine() -> None:
    assert set(NAMES) <= set(catalogue.files("topologies"))


@pytest.mark.parametrize("name", NAMES)
def test_every_machine_connects_all_its_gpus_both_ways_alike(name: str) -> None:
    cluster = load_topology(name, {"nodes": 2})
    first, last = cluster.gpus[0], cluster.gpus[-1]
    there, back = cluster.route(first, last), cluster.route(last, first)
    assert there.bandwidth_bytes_per_s == back.bandwidth_bytes_per_s
    assert there.latency_s == pytest.approx(back.latency_s)
    assert len(cluster.source) > 20
    for a, b, data in cluster.graph.edges(data=True):
        assert cluster.graph.edges[b, a] == data
        assert data["bandwidth_bytes_per_s"] > 0
        assert data["latency_s"] > 0


def test_a_dgx_h100_is_eight_gpus_on_one_switch() -> None:
    box = load_topology("dgx-h100", {})
    assert box.gpus == [f"n0.g{i}" for i in range(8)]
    assert box.path("n0.g0", "n0.g5") == (("n0.g0", "n0.nvs"), ("n0.nvs", "n0.g5"))
    assert box.route("n0.g0", "n0.g5").bandwidth_bytes_per_s == 450e9


def test_two_nodes_meet_on_their_rail() -> None:
    pair = load_topology("dgx-h100", {"nodes": 2})
    assert [b for _, b in pair.path("n0.g3", "n1.g3")] == ["n0.sw1", "n0.nic3", "leaf3", "n1.nic3", "n1.sw1", "n1.g3"]
    assert pair.route("n0.g3", "n1.g3").bandwidth_bytes_per_s == 50e9
    assert pair.route("n0.g3", "n1.g3").kind == "infiniband"


def test_other_rails_and_other_pods_are_reached_by_the_spine() -> None:
    pods = load_topology("rail-leaf-spine", {})
    assert "spine" in {b for _, b in pods.path("n0.g3", "n1.g4")}
    assert [b for _, b in pods.path("n0.g3", "n40.g3")][2:5] == ["leaf3", "spine", "leaf11"]


def test_the_cloud_node_has_one_port_for_all() -> None:
    cloud = load_topology("cloud-h100-25gbe", {})
    ports = {next(edge for edge in cloud.path(f"n0.g{i}", f"n1.g{i}") if edge[1] == "tor") for i in range(8)}
    assert ports == {("n0.nic", "tor")}
    assert cloud.route("n0.g0", "n1.g0").bandwidth_bytes_per_s == 25e9 / 8


def test_the_hybrid_cube_mesh_has_six_links_a_gpu() -> None:
    dgx1 = load_topology("dgx-1-v100", {})
    for gpu in dgx1.gpus:
        links = [
            d["bandwidth_bytes_per_s"] for _, _, d in dgx1.graph.out_edges(gpu, data=True) if d["kind"] == "nvlink2"
        ]
        assert sum(links) == 6 * 25e9


def test_an_nvl72_rack_is_one_nvlink_domain_and_two_racks_are_two() -> None:
    racks = load_topology("gb200-nvl72", {"nodes": 36})
    assert racks.domain("n0.g0") == racks.domain("n17.g3") != racks.domain("n18.g0")
    assert racks.route("n0.g0", "n18.g0").kind == "infiniband"


def test_a_blackwell_ultra_node_reaches_the_network_past_its_host() -> None:
    """Host links of 64 GB/s would hold back NICs of 100."""
    pair, trays = load_topology("hgx-b300", {"nodes": 2}), load_topology("gb300-nvl72", {"nodes": 36})
    assert [b for _, b in pair.path("n0.g3", "n1.g3")] == ["n0.sw3", "n0.nic3", "leaf3", "n1.nic3", "n1.sw3", "n1.g3"]
    assert [b for _, b in trays.path("n0.g3", "n18.g3")] == ["n0.nic3", "leaf3", "spine", "leaf7", "n18.nic3", "n18.g3"]
    for cluster, far in ((pair, "n1.g3"), (trays, "n18.g3")):
        assert cluster.route("n0.g3", far).bandwidth_bytes_per_s == 100e9
        assert cluster.route("n0.g3", "n0.g0").bandwidth_bytes_per_s == 900e9


def test_four_bridged_cards_are_a_domain_of_their_own() -> None:
    box = load_topology("pcie-box-h200-nvl", {})
    assert box.domain("n0.g0") == box.domain("n0.g3") != box.domain("n0.g4")
    assert box.route("n0.g0", "n0.g3").bandwidth_bytes_per_s == 150e9
    assert box.route("n0.g3", "n0.g4").kind in ("pcie5", "socket")


def test_bridged_pairs_reach_each_other_by_nvlink_and_other_cards_by_pcie() -> None:
    box = load_topology("pcie-box-h100-nvl", {})
    assert box.route("n0.g2", "n0.g3").bandwidth_bytes_per_s == 300e9
    assert box.route("n0.g1", "n0.g2").bandwidth_bytes_per_s == 40e9


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("cloud")])
def test_a_gpu_has_the_direct_links_that_its_datasheet_prints(name: str) -> None:
    machine = load_topology(name, {})
    out = machine.graph.out_edges(machine.gpus[0], data=True)
    direct = sum(data["bandwidth_bytes_per_s"] for _, _, data in out if data["kind"] in DIRECT_KINDS)
    assert direct == pytest.approx(load_gpu(machine.gpu_kind[machine.gpus[0]]).link_bytes_per_s)


def test_peers_turn_round_in_the_root_complex_and_host_memory_is_beside() -> None:
    box = load_topology("pcie-box-l40s", {})
    assert [b for _, b in box.path("n0.g0", "n0.g1")] == ["n0.sw0", "n0.g1"]
    assert [b for _, b in box.path("n0.g0", "n0.g2")] == ["n0.sw0", "n0.root0", "n0.sw1", "n0.g2"]
    assert [b for _, b in box.path("n0.g0", "n0.g7")] == ["n0.sw0", "n0.root0", "n0.root1", "n0.sw3", "n0.g7"]
    rates = [box.route("n0.g0", f"n0.g{k}").bandwidth_bytes_per_s for k in (1, 2, 7)]
    assert rates == [32e9, 8.8e9, 3e9]
    assert box.host_path("n0.g5") == (("n0.g5", "n0.sw2"), ("n0.sw2", "n0.cpu1"))
    better = load_topology("pcie-box-l40s", {"peer_bandwidth": "32 GB/s"})
    assert better.route("n0.g0", "n0.g2").bandwidth_bytes_per_s == 32e9


def test_host_memory_is_reached_over_pcie() -> None:
    box = load_topology("dgx-h100", {})
    assert box.host_path("n0.g5") == (("n0.g5", "n0.sw2"), ("n0.sw2", "n0.cpu1"))


def test_the_gpu_can_be_swapped() -> None:
    assert set(load_topology("dgx-h100", {}, gpu="h20").gpu_kind.values()) == {"h20"}


def test_overrides_degrade_a_rail_and_slow_a_gpu() -> None:
    overrides = [
        {"link": ["n0.nic3", "leaf3"], "bandwidth_fraction": 0.25, "extra_latency": "5 us"},
        {"gpu": "n1.g2", "speed": 0.8},
    ]
    pair = load_topology("dgx-h100", {"nodes": 2, "overrides": overrides})
    healthy = load_topology("dgx-h100", {"nodes": 2})
    assert pair.route("n0.g3", "n1.g3").bandwidth_bytes_per_s == 12.5e9
    assert pair.route("n0.g3", "n1.g3").latency_s == pytest.approx(healthy.route("n0.g3", "n1.g3").latency_s + 5e-6)
    assert pair.route("n0.g2", "n1.g2").bandwidth_bytes_per_s == 50e9
    assert pair.gpu_speed == {"n1.g2": 0.8}


def test_without_its_nvlink_a_gpu_falls_back_to_pcie_and_without_any_link_it_is_unreachable() -> None:
    no_nvlink = {"link": ["n0.g0", "n0.nvs"], "missing": True}
    alone = {"link": ["n0.g0", "n0.sw0"], "missing": True}
    box = load_topology("dgx-h100", {"overrides": [no_nvlink]})
    assert box.route("n0.g1", "n0.g0").kind == "pcie5"
    cut = load_topology("dgx-h100", {"overrides": [no_nvlink, alone]})
    with pytest.raises(InputError, match=r"n0.g0 cannot be reached from n0.g1"):
        cut.path("n0.g1", "n0.g0")


def test_without_a_spine_another_rail_is_reached_through_a_neighbour() -> None:
    cuts = [{"link": [f"leaf{i}", "spine"], "missing": True} for i in range(8)]
    pair = load_topology("dgx-h100", {"nodes": 2, "overrides": cuts})
    assert pair.route("n0.g3", "n1.g6").bandwidth_bytes_per_s == 50e9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpus": "x"}, "gpus: unknown key\n  did you mean 'gpu'"),
        ({"node": {"components": {"g": {"type": "gpu", "cuont": 2}}}}, "did you mean 'count'"),
        ({"node": {"components": {"g": {"type": "gpv"}}}}, "node.components.g.type: got 'gpv'"),
        ({"node": {"components": {"nvs": {"type": "nvswitch"}}}}, "exactly one component of type gpu"),
        ({"gpu": "h100-smx"}, "gpu: got 'h100-smx', which is not in the catalogue\n  did you mean 'h100-sxm'"),
        (
            {"node": {"components": {"g": {"type": "gpu", "count": 0}}}},
            "components.g.count: got 0\n  allowed: 1 to 2,000,000",
        ),
        ({"node": {"components": {"g": {"type": "gpu", "count": 10**11}}}}, "components.g.count: got 100,000,000,000"),
        ({"node": {"components": {"g": {"type": "gpu", "count": 1.5}}}}, "'1.5' is 1.5; it must be a whole number"),
        ({"parameters": {"nodes": 0}}, "parameters.nodes: got 0"),
        ({"parameters": {"nodes": float("nan")}}, "parameters.nodes: got nan"),
        ({"parameters": {"nodes": "two"}}, "parameters.nodes: got 'two'\n  write how many"),
        ({"parameters": {"wide": "1 GB/s"}}, "parameters.nodes: is missing"),
        ({"overrides": [{"link": ["n0.g0", "n0.nvs"], "extra_latency": "-1 us"}]}, "a time is zero or longer"),
        ({"overrides": [{"link": ["n0.g0", "n0.nvs"], "bandwidth_fraction": float("inf")}]}, "finite number"),
        (
            {"calibration": {"nvlink4": {"start": 3, "source": "x"}}},
            "calibration.nvlink4.start: got 3, a number without a unit",
        ),
        ({"overrides": [{"link": ["n0.g0", "n0.g1"], "missing": True}]}, "no link between n0.g0 and n0.g1"),
        ({"overrides": [{"gpu": "n0.g7", "speed": 0.5}]}, "nothing is called 'n0.g7'"),
        ({"overrides": [{"bandwidth_fraction": 0.5}]}, "neither `link` nor `gpu`"),
        ({"overrides": [{"link": ["n0.g0", "n0.sw0"]}]}, "overrides[0]: nothing is said about n0.g0 - n0.sw0"),
        ({"overrides": [{"link": ["n0.g0", "n0.sw0"], "speed": 0.5}]}, "`speed` is of a gpu, not of a link"),
        ({"overrides": [{"gpu": "n0.g0", "speed": 0.5, "missing": True}]}, "mixes `gpu` and missing"),
    ],
)
def test_a_wrong_file_is_refused_with_the_path_and_a_hint(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        build_topology(small(**change), {}, "small.yaml")
    assert message in str(error.value)
    assert str(error.value).startswith("small.yaml")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kind", "nvlnk4", "did you mean 'nvlink4'"),
        ("bandwidth", "450", "without a unit|not a number and a unit"),
        ("bandwidth", "0 GB/s", "more than 0"),
        ("bandwidth", 450, "got 450, a number without a unit"),
        ("latency", "-1 us", r"node.links\[0\].latency: got '-1 us'\n  a time is zero or longer"),
        ("latency", "1 GB", "quantity of another kind"),
        ("to", "nvx", "no component 'nvx'"),
        ("to", "g[i + 1]", "there are 2, counted from 0"),
        ("to", "g[__import__('os')]", "unknown name '__import__'"),
        ("to", "g[2 ** 9]", "something other than arithmetic"),
        ("to", "g[j]", "unknown name 'j'"),
        ("times", "1 / 0", "cannot be evaluated"),
        ("times", "1 / (nodes - 1)", "cannot be evaluated: division by zero\n  with nodes = 1"),
        ("times", "nodes - 3", r"node.links\[0\].times: 'nodes - 3' is -2; it must be more than 0\n  with nodes = 1"),
        ("times", float("inf"), "times: got inf"),
    ],
)
def test_a_wrong_link_is_refused(key: str, value: object, message: str) -> None:
    data = small()
    data["node"]["links"][0][key] = value
    with pytest.raises(InputError, match=message):
        build_topology(data, {}, "small.yaml")


def test_an_unknown_parameter_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'nodes'"):
        load_topology("dgx-h100", {"node": 2})
    with pytest.raises(InputError, match=r"cluster.wide: got 3\n.*has '100 GB/s'"):
        build_topology(small(), {"wide": 3}, "small.yaml")


def test_a_link_from_a_component_to_itself_is_refused() -> None:
    data = small()
    data["node"]["links"].append(
        {"from": "g[0]", "to": "g[0]", "kind": "pcie5", "bandwidth": "1 GB/s", "latency": "1 us"}
    )
    with pytest.raises(InputError, match=r"node.links\[1\].to: got 'g\[0\]', which joins g0 to itself"):
        build_topology(data, {}, "small.yaml")


def test_a_parameter_is_a_finite_number() -> None:
    with pytest.raises(InputError, match=r"cluster.nodes: got nan\n.*has 1"):
        load_topology("dgx-h100", {"nodes": float("nan")})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: mine\ngpu: h100-sxm\ngpu: t4\n", "mine.yaml:3: is not valid YAML: the key 'gpu' twice"),
        ("base: dgx-h100\nparameters: 3\n", "mine.yaml: parameters: got 3\n  write names and values"),
        ("base: dgx-h100\noverrides: 3\n", "mine.yaml: overrides: got 3\n  write a list"),
        ("", "mine.yaml: holds no topology"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_so(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        load_topology(path, {})
    assert told in str(error.value)


def test_a_file_of_ones_own_may_build_on_a_catalogue_entry(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: dgx-h100\nname: mine\nparameters: {nodes: 3, nic_bandwidth: 200 Gbit/s}\n", encoding="utf-8")
    mine = load_topology(path, {})
    assert len(mine.gpus) == 24
    assert mine.route("n0.g0", "n2.g0").bandwidth_bytes_per_s == 25e9


def test_a_file_that_builds_on_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: yours\nname: mine\n", encoding="utf-8")
    (tmp_path / "yours.yaml").write_text("base: mine\nname: yours\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"yours.yaml: base: leads back to itself \(mine.yaml -> yours.yaml -> mine.yaml\)"
    ):
        load_topology(tmp_path / "mine.yaml", {})


def test_summary_of_two_nodes_on_rails() -> None:
    facts = summarise(load_topology("dgx-h100", {"nodes": 2}))
    assert (facts.gpus, facts.nodes, facts.links["nvlink4"]) == (16, 2, 16)
    assert facts.bisection_bytes_per_s == pytest.approx(8 * 50e9)
    assert facts.diameter_hops == 8
    inside = facts.pairs[0]
    assert (inside.relation, inside.bandwidth_bytes_per_s, inside.pairs) == ("inside a node", 450e9, 56)
    assert not any(shared.purpose == "leaving the node" for shared in facts.shared)


def test_summary_names_what_is_shared() -> None:
    cloud = summarise(load_topology("cloud-h100-100gbe", {}))
    port = next(shared for shared in cloud.shared if shared.edge == ("n0.nic", "tor"))
    assert (port.gpus, port.each_bytes_per_s) == (8, 12.5e9 / 8)
    assert any("8 GPUs of a node need n0.nic to tor" in line for line in cloud.lines)
    assert summarise(load_topology("fat-tree-oversubscribed", {})).oversubscribed == {"leaf0": 4.0, "leaf1": 4.0}


def test_summary_names_an_overridden_gpu_and_counts_a_single_pair() -> None:
    overrides = [{"gpu": "n0.g3", "speed": 0.8}, {"link": ["n0.nic0", "leaf0"], "bandwidth_fraction": 0.25}]
    lines = summarise(load_topology("dgx-h100", {"nodes": 2, "overrides": overrides})).lines
    assert "overridden: n0.g3 computes at 0.8 of its speed" in lines
    assert any("12.5 GB/s a direction" in line and "(1 pair, such as n0.g0 and n1.g0)" in line for line in lines)


def test_four_thousand_gpus_are_built_and_described() -> None:
    big = load_topology("rail-leaf-spine", {"nodes": 512})
    facts = summarise(big)
    assert (facts.gpus, facts.sampled) == (4096, True)
    assert facts.bisection_bytes_per_s is None


HGX = """
\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tNIC1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tNV18\tNV18\tPIX\tSYS\t0-51\t0\t\tN/A
GPU1\tNV18\t X \tNV18\tNV18\tNODE\tSYS\t0-51\t0\t\tN/A
GPU2\tNV18\tNV18\t X \tNV18\tSYS\tPIX\t52-103\t1\t\tN/A
GPU3\tNV18\tNV18\tNV18\t X \tSYS\tNODE\t52-103\t1\t\tN/A
NIC0\tPIX\tNODE\tSYS\tSYS\t X \tSYS
NIC1\tSYS\tSYS\tPIX\tNODE\tSYS\t X

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes
"""


def test_nvidia_smi_shows_an_nvswitch_and_two_sockets() -> None:
    node = build_topology(read_topo_matrix(HGX, "h100-sxm"), {}, "imported")
    assert node.path("n0.g0", "n0.g3") == (("n0.g0", "n0.nvs"), ("n0.nvs", "n0.g3"))
    assert node.route("n0.g0", "n0.g3").bandwidth_bytes_per_s == 450e9
    assert node.path("n0.g0", "n0.nic0") == (("n0.g0", "n0.sw0"), ("n0.sw0", "n0.nic0"))
    assert node.host_path("n0.g3")[-1][1] == "n0.cpu1"


def test_nvidia_smi_shows_pairs_bridged_point_to_point() -> None:
    text = """
        GPU0  GPU1  GPU2  GPU3  CPU Affinity
GPU0     X    NV4   SYS   SYS   0-15
GPU1    NV4    X    SYS   SYS   0-15
GPU2    SYS   SYS    X    NV4   16-31
GPU3    SYS   SYS   NV4    X    16-31
"""
    node = build_topology(read_topo_matrix(text, "a100-pcie-80gb"), {}, "imported")
    assert node.route("n0.g0", "n0.g1").bandwidth_bytes_per_s == 100e9
    assert node.route("n0.g0", "n0.g2").kind in ("pcie4", "socket")


BOX = """
\t[4mGPU0\tGPU1\tGPU2\tmlx5_0\tCPU Affinity\tNUMA Affinity[0m
GPU0\t X \tPIX\tSYS\tNODE\t0-31\t0
GPU1\tPIX\t X \tSYS\tNODE\t0-31\t0
GPU2\tSYS\tSYS\t X \tSYS\t32-63\t1
mlx5_0\tNODE\tNODE\tSYS\t X
"""


def test_nvidia_smi_of_an_older_driver_names_the_network_device() -> None:
    node = build_topology(read_topo_matrix(BOX, "l40s"), {}, "imported")
    assert node.path("n0.g0", "n0.nic0")[-1] == ("n0.cpu0", "n0.nic0")
    assert node.path("n0.g2", "n0.nic0")[-2:] == (("n0.cpu1", "n0.cpu0"), ("n0.cpu0", "n0.nic0"))


@pytest.mark.parametrize(
    ("gpu", "kind", "rate"),
    [
        ("v100-sxm-32gb", "nvlink2", 450e9), ("a100-sxm-80gb", "nvlink3", 450e9), ("b200-sxm", "nvlink5", 900e9),
        ("b300-sxm", "nvlink5", 900e9), ("rtx-a6000", "nvlink3", 18 * 14.0625e9),
    ],
)  # fmt: skip
def test_generations_are_those_of_the_gpu(gpu: str, kind: str, rate: float) -> None:
    route = build_topology(read_topo_matrix(HGX, gpu), {}, "imported").route("n0.g0", "n0.g1")
    assert (route.kind, route.bandwidth_bytes_per_s) == (kind, rate)
    box = build_topology(read_topo_matrix(BOX, "l40s"), {}, "imported")
    assert (box.route("n0.g0", "n0.g1").kind, box.route("n0.g0", "n0.g1").bandwidth_bytes_per_s) == ("pcie4", 32e9)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("mlx5_0\tNODE\tNODE\tSYS\t X\n", "", "has a column but no row of mlx5_0"),
        ("GPU1\tPIX", "GPU1\tSYS", "says PIX from GPU0 to GPU1 and SYS back"),
        ("GPU1\tPIX", "GPU1\tPIZ", "row GPU1 cannot be read"),
    ],
)
def test_a_damaged_matrix_is_refused(old: str, new: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        read_topo_matrix(BOX.replace(old, new), "l40s")


@pytest.mark.parametrize("text", ["", "GPU0 GPU1\n", "        GPU0  GPU1\nGPU0 X WAT\nGPU1 WAT X\n"])
def test_what_is_no_matrix_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="nvidia-smi topo -m"):
        read_topo_matrix(text, "h100-sxm")


def test_root_complexes_are_drawn_above_the_switches_that_gpus_hang_from() -> None:
    from sim.results.topology_plot import _rows

    box = load_topology("pcie-box-l40s", {})
    heights = {name: height for _, height, row in _rows(box, list(box.graph)) for name in row}
    assert heights["n0.sw0"] == heights["n0.sw3"] < heights["n0.root0"] == heights["n0.root1"] < heights["n0.cpu0"]


def test_the_drawing_is_written(tmp_path: Path) -> None:
    from sim.results.topology_plot import draw_topology

    path = tmp_path / "dgx.png"
    draw_topology(load_topology("dgx-1-v100", {}), path)
    assert path.read_bytes().startswith(b"\x89PNG")
