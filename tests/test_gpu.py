"""The GPU catalogue: names people use, numbers with sources, and where fitted constants come from."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from sim.errors import InputError
from sim.hardware import gpu as gpu_module
from sim.hardware.gpu import ALL_MEASURED, gpu_names, load_gpu, shared_kernels

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.mark.parametrize("name", gpu_names())
def test_every_gpu_is_complete_and_sourced(name: str) -> None:
    gpu = load_gpu(name)
    assert gpu.name == name
    # HIP shows GiB where the data sheet prints GB, hence 8 % above at most
    assert 0.9 * gpu.memory_bytes < gpu.visible_memory_bytes < 1.08 * gpu.memory_bytes
    assert gpu.hbm_bytes_per_s > 2e11
    assert all(rate > 5e13 for rate in gpu.flops_per_s.values())
    assert {"memory", "visible_memory", "hbm_bandwidth", "sm_count", "l2", "power", "flops.bf16"} <= set(gpu.sources)
    assert all(len(source) > 5 for source in gpu.sources.values())
    assert {"gemm", "prefill_attention", "decode_attention", "moe", "elementwise"} <= set(gpu.kernels)
    # whoever brings tables of their own has them read as a bench measured them, with what it found in L2
    read_from_l2 = [fit for kind in ("gemm", "decode_attention", "moe") for fit in gpu.kernels[kind].values()]
    assert all({"warm_l2", "warm_time"} <= set(fit.constants) for fit in read_from_l2)


def test_the_h100_is_the_h100() -> None:
    gpu = load_gpu("h100-sxm")
    assert gpu.memory_bytes == 80e9
    assert gpu.visible_memory_bytes == pytest.approx(79.2 * 2**30)
    assert gpu.hbm_bytes_per_s == 3.35e12
    assert gpu.flops_per_s == pytest.approx({"bf16": 989.4e12, "fp8": 1978.9e12, "int8": 1978.9e12})
    assert (gpu.sm_count, gpu.sm_version, gpu.power_w) == (132, 90, 700.0)
    assert gpu.link_bytes_per_s == 450e9
    assert gpu.fitted_on == "h100-sxm"


SPELLINGS = {
    "a10": ["NVIDIA A10", "A10-24GB"],
    "a30": ["A30"],
    "a40": ["NVIDIA A40", "A40-48GB"],
    "a100-pcie-40gb": ["A100-PCIe-40GB", "NVIDIA A100-PCIE-40GB"],
    "a100-pcie-80gb": ["NVIDIA A100 80GB PCIe"],
    "a100-sxm-40gb": ["A100-SXM4-40GB"],
    "a100-sxm-80gb": ["NVIDIA A100-SXM4-80GB", "NVIDIA_A100-SXM4-80GB"],
    "b200-sxm": ["B200-180GB", "B200-SXM-192GB", "NVIDIA B200"],
    "b300-sxm": ["B300-SXM", "NVIDIA B300", "NVIDIA B300 SXM6 AC", "B300-SXM-288GB"],
    "gb200": ["GB200-NVL72", "NVIDIA GB200"],
    "gb300": ["GB300", "GB300-NVL72", "NVIDIA GB300"],
    "gh200-96gb": ["GH200-96GB", "NVIDIA GH200 480GB"],
    "gh200-144gb": ["GH200 144GB", "NVIDIA GH200 144G HBM3e"],
    "h100-nvl": ["H100-NVL-94GB", "NVIDIA H100 NVL"],
    "h100-pcie": ["H100-PCIe-80GB", "NVIDIA H100 PCIe"],
    "h100-sxm": ["H100 (8x node)", "H100-SXM5-80GB", "NVIDIA_H100_80GB_HBM3"],
    "h200-nvl": ["H200-NVL-141GB", "NVIDIA H200 NVL"],
    "l4": ["NVIDIA L4", "L4-24GB"],
    "l40": ["NVIDIA L40", "L40-48GB"],
    "l40s": ["L40S-48GB"],
    "mi300x": ["AMD MI300X", "MI300X-192GB", "AMD_Instinct_MI300X_OAM"],
    "mi325x": ["MI325X-256GB", "AMD Instinct MI325X"],
    "mi350x": ["MI350X", "AMD Instinct MI350X"],
    "mi355x": ["MI355X", "AMD Instinct MI355X", "MI355X-288GB"],
    "rtx-3090": ["RTX 3090", "NVIDIA GeForce RTX 3090"],
    "rtx-4090": ["RTX 4090", "NVIDIA GeForce RTX 4090"],
    "rtx-5090": ["RTX 5090", "NVIDIA GeForce RTX 5090"],
    "rtx-6000-ada": ["RTX 6000 Ada", "NVIDIA RTX 6000 Ada Generation"],
    "rtx-a6000": ["A6000", "NVIDIA RTX A6000"],
    "t4": ["Tesla T4", "NVIDIA T4"],
    "v100-sxm-32gb": ["Tesla V100-SXM2-32GB"],
}
"""By the catalogue's name: as benchmarks, drivers and engines write it."""


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("H100-SXM-80GB", "h100-sxm"),
        ("H100-SXM-80GB (DGX)", "h100-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("h100_sxm", "h100-sxm"),
        ("H200-SXM-141GB", "h200-sxm"),
        ("DGX H100", "h100-sxm"),
        ("8x H100 80GB SXM5", "h100-sxm"),
        ("A100 80G SXM4", "a100-sxm-80gb"),
        ("H800-80G", "h800-sxm"),
        ("B200 SXM6 192GB", "b200-sxm"),
        ("RTX Pro 6000 Blackwell Server Edition", "rtx-pro-6000"),
        ("A100-80G", "a100-sxm-80gb"),
        ("A100-SXM4-80GB", "a100-sxm-80gb"),
        ("A100 (4x, NVLink3 fully connected)", "a100-sxm-80gb"),
        ("A100-PCIe", "a100-pcie-80gb"),
        ("GH200-120GB", "gh200-96gb"),
        ("GH200-480GB", "gh200-96gb"),
        ("GH200-SXM (900W, 141GB)", "gh200-144gb"),
        ("H800 + CX7 IB 400Gb/s", "h800-sxm"),
        ("B200", "b200-sxm"),
        ("L40S", "l40s"),
        ("AMD Instinct MI300X", "mi300x"),
        *[(written, name) for name, spellings in SPELLINGS.items() for written in spellings],
    ],
)
def test_names_people_write(written: str, name: str) -> None:
    assert load_gpu(written).name == name


def test_no_spelling_names_two_gpus() -> None:
    names = [(gpu_module._normal(text), key) for key in gpu_names() for text in [key, *gpu_module._read(key).aliases]]
    assert len(dict(names)) == len(set(names))


@pytest.mark.parametrize("written", ["H100-64GB", "H20-141GB", "RTX 4090 D", "RTX 4080 24GB"])
def test_a_gpu_of_another_memory_or_grade_is_not_taken_for_one_of_the_catalogue(written: str) -> None:
    with pytest.raises(InputError):
        load_gpu(written)


def test_an_unknown_gpu_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"got 'h10-sxm'.*\n.*did you mean 'h100-sxm'"):
        load_gpu("h10-sxm")


def test_every_gpu_of_the_published_measurements_is_known() -> None:
    path = DATA / "measured.csv"
    if not path.exists():
        pytest.skip("no published measurements beside the repository")
    unknown = set()
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                load_gpu(row["gpu"])
            except InputError:
                unknown.add(row["gpu"])
    # a class of cards, and clusters named by architecture
    assert {name for name in unknown if not name.startswith(("SM90", "SM100", "80GB class"))} == set()


def test_a_gpu_without_measurements_takes_what_all_share() -> None:
    a10, hopper, nvl = load_gpu("a10"), load_gpu("h100-sxm"), load_gpu("h100-nvl")
    assert a10.fitted_on == a10.kernels["gemm"]["bf16"].fitted_on == ALL_MEASURED
    assert a10.kernels["gemm"]["bf16"].error == {}
    shared = shared_kernels(hopper)["gemm"]["bf16"].constants
    mine = a10.kernels["gemm"]["bf16"].constants
    assert mine["memory"] == shared["memory"]
    # fixed costs are cycles, but for the launch of an elementwise kernel
    assert mine["launch_s"] == pytest.approx(shared["launch_s"] * hopper.boost_hz / a10.boost_hz)
    launches = [gpu.kernels["elementwise"]["bf16"].constants["launch_s"] for gpu in (a10, load_gpu("v100-sxm-32gb"))]
    assert launches[0] == launches[1]
    # the same silicon in another package
    assert nvl.fitted_on == nvl.kernels["gemm"]["bf16"].fitted_on == "h100-sxm"
    assert nvl.kernels["gemm"]["bf16"].constants["memory"] == hopper.kernels["gemm"]["bf16"].constants["memory"]
    assert load_gpu("h800-sxm").kernels["gemm"]["bf16"].error == hopper.kernels["gemm"]["bf16"].error


def test_one_measured_constant_overrides_an_inherited_fit() -> None:
    amd, shared = load_gpu("mi300x"), shared_kernels(load_gpu("mi300x"))["gemm"]["bf16"]
    fit = amd.kernels["gemm"]["bf16"]
    assert fit.constants["compute"] == pytest.approx(668.4 / 1307.4, abs=1e-3)
    assert fit.constants["memory"] == shared.constants["memory"]
    assert fit.fitted_on == ALL_MEASURED
    assert fit.error == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("memory: {value: 80, source: x}", "without a unit"),
        ("memory: {value: 80 W, source: x}", "another kind"),
        ("memory: {value: 80 GB}", "memory.source"),
        ("memry: {value: 80 GB, source: x}", "memry"),
    ],
)
def test_a_wrong_file_is_refused_by_key(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (gpu_module.GPU_FOLDER / "h100-sxm.yaml").read_text(encoding="utf-8")
    lines = [line if old.startswith("memory:") else old for old in text.splitlines()]
    (tmp_path / "h100-sxm.yaml").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(gpu_module, "GPU_FOLDER", tmp_path)
    caches = (gpu_module.load_gpu, gpu_module._read, gpu_module._aliases)
    for cache in caches:
        cache.cache_clear()
    try:
        with pytest.raises(InputError, match=message):
            load_gpu("h100-sxm")
    finally:
        for cache in caches:
            cache.cache_clear()
