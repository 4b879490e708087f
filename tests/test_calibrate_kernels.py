"""Calibration: reading the tables' traps, finding constants that were put there, and the errors that the catalogue states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sim.cli import app
from sim.cost import fits, measured_tables
from sim.cost.formats import weight_bytes
from sim.errors import InputError
from sim.hardware import gpu as gpu_module
from sim.hardware.gpu import load_gpu, shared_kernels
from sim.studies import calibrate_kernels
from sim.studies.calibrate_kernels import calibrate, error_rows, read_rows, run, table_folder
from sim.studies.kernel_kinds import KERNEL_KINDS
from sim.studies.kernel_tables import read_table
from sim.studies.leave_one_out import GpuLeftOut, LeftOut, by_gpu, leave_one_out
from sim.studies.write_fits import write_fits

TABLES = Path(__file__).resolve().parents[2] / "shared" / "data" / "kernels"
MEASURED = ("a100-sxm-80gb", "h100-sxm", "h200-sxm", "b200-sxm")
SHAPE = ("m", "n", "k")


def write_table(path: Path, columns: dict[str, list[Any]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """GEMM rows whose latency follows known constants, each shape twice: a slow kernel and a fast one."""
    gpu = load_gpu("h100-sxm")
    sides = [512.0, 1024.0, 4096.0, 16384.0]
    m, n, k = (grid.ravel() for grid in np.meshgrid([1.0, 16.0, 256.0, 1024.0, 8192.0], sides, sides))
    truth = {
        "launch_s": 3e-6, "depth_s": 2e-6, "depth_power": 0.5, "compute": 0.7, "serial": 0.01, "whole": 0.01,
        "memory": 0.8, "activation": 0.5, "overlap": 3.0,
    }  # fmt: skip
    fast_ms = fits.gemm(truth, gpu, m, n, k, "bf16").total_s * 1e3
    twice = {name: [*column, *column] for name, column in (("m", m), ("n", n), ("k", k))}
    rows = {"gemm_dtype": ["bfloat16"] * (2 * len(m)), **twice, "latency": [*(fast_ms * 1.5), *fast_ms]}
    write_table(tmp_path / "h100_sxm" / "gemm" / "gemm_perf.parquet", rows)
    return tmp_path


def test_the_fastest_row_of_a_shape_counts_in_seconds(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "m": [1, 1, 2], "n": [8, 8, 8], "k": [8, 8, 8], "latency": [3.0, 2.0, 5.0], "window_size": [0, 0, 128],
    }  # fmt: skip
    write_table(tmp_path / "gemm" / "t.parquet", columns)
    table = read_table(tmp_path, "gemm/t.parquet", {}, SHAPE)
    assert table is not None
    assert table["latency_s"].tolist() == [2e-3, 5e-3]
    unwindowed = read_table(tmp_path, "gemm/t.parquet", {"window_size": 0, "no_such_column": "x"}, SHAPE)
    assert unwindowed is not None
    assert unwindowed["m"].tolist() == [1.0]
    assert read_table(tmp_path, "gemm/t.parquet", {"window_size": 7}, SHAPE) is None
    assert read_table(tmp_path, "gemm/nowhere.parquet", {}, SHAPE) is None
    with pytest.raises(InputError, match="lacks the columns tokens"):
        read_table(tmp_path, "gemm/t.parquet", {}, ("tokens",))


def products(path: Path, latency_ms: float, dtype: str = "bfloat16") -> None:
    columns: dict[str, list[Any]] = {"gemm_dtype": [dtype], "m": [8], "n": [512], "k": [512], "latency": [latency_ms]}
    write_table(path / "gemm_perf.parquet", columns)


def test_of_several_versions_the_newest_with_such_rows_counts(tmp_path: Path) -> None:
    """The layout of the package: vLLM 0.25 brings fp8 alone, so bf16 is 0.24's; a GPU to come has a folder without tables, and
    TensorRT-LLM's kernels are not those of the fit."""
    versions = tmp_path / "h100_sxm" / "gemm" / "vllm"
    products(versions / "0.9.1", 9.0)
    products(versions / "0.24.0", 2.0)
    products(versions / "0.25.0", 1.0, "fp8")
    products(tmp_path / "h100_sxm" / "gemm" / "trtllm" / "1.3.0", 0.5)
    (tmp_path / "l4" / "gemm" / "vllm").mkdir(parents=True)
    read = {
        dtype: read_table(tmp_path / "h100_sxm", "gemm/gemm_perf.parquet", {"gemm_dtype": dtype}, SHAPE)
        for dtype in ("bfloat16", "fp8", "nvfp4")
    }
    assert {dtype: table and table["latency_s"].tolist() for dtype, table in read.items()} == {
        "bfloat16": [2e-3], "fp8": [1e-3], "nvfp4": None,
    }  # fmt: skip
    assert calibrate_kernels.measured_gpus(tmp_path) == ["h100-sxm"]


def test_a_folder_without_tables_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no kernel tables of a GPU of the catalogue"):
        calibrate_kernels.run(tmp_path)


def test_the_folder_of_one_gpu_is_that_of_its_name(made_up: Path, tmp_path: Path) -> None:
    assert calibrate_kernels.measured_gpus(made_up / "h100_sxm") == ["h100-sxm"]
    nameless = (made_up / "h100_sxm").rename(tmp_path / "tables")
    with pytest.raises(InputError, match="does not say which") as unsaid:
        calibrate_kernels.measured_gpus(nameless)
    assert unsaid.value.hint == "--gpu NAME"


def test_without_a_folder_the_installed_tables_are_fitted(made_up: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["calibrate", "kernels", "--gpu", "h100-sxm", "--json"]
    monkeypatch.setattr(measured_tables, "PACKAGE", "no_such_package_of_tables")
    monkeypatch.delenv(measured_tables.VARIABLE, raising=False)
    refused = CliRunner().invoke(app, command).exception
    assert isinstance(refused, InputError)
    assert str(refused).startswith("DIR: no measured kernel tables are installed")
    assert "TWOWALLS_TABLES" in refused.hint
    assert "costs: roofline" not in refused.hint
    monkeypatch.setenv(measured_tables.VARIABLE, str(made_up))
    rows = json.loads(CliRunner().invoke(app, command).stdout)["errors"]
    assert [(row["kind"], row["rows_of"], row["n"]) for row in rows if row["kind"] == "gemm"] == [
        ("gemm", "headline", 80), ("gemm", "all", 80),
    ]  # fmt: skip


def test_calibration_finds_the_constants_that_made_the_table(made_up: Path) -> None:
    result = calibrate(made_up, "h100-sxm")
    headline, everything = [row for row in result.errors if row.kind == "gemm"]
    assert (headline.gpu, headline.dtype, headline.rows_of, headline.n) == ("h100-sxm", "bf16", "headline", 80)
    assert headline.mape < 0.012  # the pull of the shared constants
    assert everything.n == 80
    found = result.gpu.kernels["gemm"]["bf16"]
    assert found.constants["compute"] == pytest.approx(0.7, rel=0.03)
    assert found.constants["memory"] == pytest.approx(0.8, rel=0.03)
    assert found.error == {"mape": headline.mape, "rows": 80, "mape_all": everything.mape, "rows_all": 80}
    # what the tables do not have keeps the constants of the catalogue
    assert result.gpu.kernels["moe"] == load_gpu("h100-sxm").kernels["moe"]


def test_written_constants_are_what_the_catalogue_then_loads(
    made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gpus"
    folder.mkdir()
    for path in gpu_module.GPU_FOLDER.glob("*.yaml"):
        (folder / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    fitted = calibrate(made_up, "h100-sxm").gpu
    write_fits(fitted, folder)
    monkeypatch.setattr(gpu_module, "GPU_FOLDER", folder)
    gpu_module.forget_gpus()
    try:
        loaded = load_gpu("h100-sxm")
        again = load_gpu("h800-sxm").kernels["gemm"]["bf16"]
    finally:
        monkeypatch.undo()
        gpu_module.forget_gpus()
    assert loaded.kernels["gemm"]["bf16"].constants == pytest.approx(fitted.kernels["gemm"]["bf16"].constants, rel=1e-3)
    assert loaded.kernels["moe"]["bf16"].constants == pytest.approx(fitted.kernels["moe"]["bf16"].constants, rel=1e-3)
    assert (again.fitted_on, again.error["rows"]) == ("h100-sxm", 80)


def test_a_folder_without_this_gpu_is_refused(made_up: Path) -> None:
    assert table_folder(made_up, load_gpu("h100-sxm")).name == "h100_sxm"
    with pytest.raises(InputError, match="no folder with kernel tables of b200-sxm"):
        calibrate(made_up, "b200-sxm")
    assert {row.gpu for row in run(made_up)} == {"h100-sxm"}


# what the fits must stay below on the headline rows, by kind and dtype
GOALS = {
    ("gemm", "bf16"): 0.08,
    ("gemm", "fp8"): 0.09,
    ("gemm", "nvfp4"): 0.09,
    ("gemm", "fp8_block"): 0.08,
    ("prefill_attention", "bf16"): 0.08,
    ("prefill_attention", "fp8"): 0.08,
    ("decode_attention", "bf16"): 0.08,
    ("decode_attention", "fp8"): 0.08,
    ("prefill_mla", "bf16"): 0.05,
    ("prefill_mla", "fp8"): 0.05,
    ("decode_mla", "bf16"): 0.08,
    ("decode_mla", "fp8"): 0.09,
    ("moe", "bf16"): 0.12,
    ("moe", "bf16_small"): 0.1,
    ("moe", "bf16_tuned"): 0.06,
    ("moe", "fp8_block_triton"): 0.06,
    ("moe", "fp8"): 0.1,
    ("moe", "fp8_block"): 0.12,
    ("moe", "int4_wo"): 0.14,
    ("moe", "mxfp4"): 0.14,
    ("moe", "nvfp4"): 0.15,
}


@pytest.mark.skipif(not TABLES.exists(), reason="no measured kernels beside the repository")
@pytest.mark.parametrize("gpu", MEASURED)
@pytest.mark.parametrize(
    ("kind", "dtype"), [("gemm", "bf16"), ("gemm", "fp8_block"), ("decode_attention", "bf16"), ("moe", "bf16")]
)
def test_the_catalogue_states_the_error_it_has(gpu: str, kind: str, dtype: str) -> None:
    spec = next(spec for spec in KERNEL_KINDS if (spec.kind, spec.dtype) == (kind, dtype))
    table = read_rows(spec, table_folder(TABLES, load_gpu(gpu)), load_gpu(gpu))
    fit = load_gpu(gpu).kernels[kind][dtype]
    assert (table is None) == (fit.fitted_on != gpu)
    if table is None:  # the A100 does not multiply fp8
        assert fit.error == {}
        return
    headline = error_rows(spec, load_gpu(gpu), fit.constants, table)[0]
    assert headline.mape == pytest.approx(fit.error["mape"], abs=1e-3)
    assert headline.n == fit.error["rows"]


MISSED = {
    "b300-sxm": {("decode_attention", "fp8"): 0.083},
    "gb200": {("gemm", "bf16"): 0.089, ("prefill_attention", "fp8"): 0.081, ("moe", "mxfp4"): 0.141},
    "gb300": {},
    "l40s": {
        ("gemm", "bf16"): 0.107, ("gemm", "fp8"): 0.124, ("prefill_attention", "bf16"): 0.109,
        ("prefill_attention", "fp8"): 0.148, ("decode_attention", "bf16"): 0.106, ("decode_attention", "fp8"): 0.1,
        ("prefill_mla", "bf16"): 0.087, ("moe", "bf16_tuned"): 0.091, ("moe", "fp8"): 0.144,
    },
    "rtx-pro-6000": {
        ("gemm", "nvfp4"): 0.108, ("prefill_attention", "fp8"): 0.116, ("decode_attention", "bf16"): 0.101,
        ("decode_attention", "fp8"): 0.091,
    },
}  # fmt: skip
"""Of the GPUs that were measured later: the form of the fits was found on the first four, which miss nothing."""


@pytest.mark.parametrize("gpu", [*MEASURED, *MISSED])
def test_stated_errors_meet_the_goals(gpu: str) -> None:
    """Or are named with what they are: graphics cards run other kernels in fewer bits."""
    kernels = load_gpu(gpu).kernels
    for fits_ in kernels.values():
        assert gpu in {fit.fitted_on for dtype, fit in fits_.items() if dtype.startswith("bf16")}
    stated = {
        (kind, dtype): fit.error["mape"]
        for kind, fits_ in kernels.items()
        for dtype, fit in fits_.items()
        if fit.fitted_on == gpu and "mape" in fit.error
    }
    missed = {key: round(stated[key], 3) for key, goal in GOALS.items() if key in stated and stated[key] > goal}
    assert missed == MISSED.get(gpu, {})


def test_a_good_fit_of_the_host_is_not_counted_for_the_kernels() -> None:
    """Four products that a host of 100 us hides and two that take longer: the error of those two is told apart."""
    spec = next(spec for spec in KERNEL_KINDS if (spec.kind, spec.dtype) == ("gemm", "fp8_block"))
    gpu = load_gpu("h100-sxm")
    host = {"host_s": 100e-6, "few_host_s": 100e-6, "align_host_s": 0.0}
    constants = {**gpu.kernels["gemm"]["fp8_block"].constants, **host}
    side = np.full(6, 4096.0)
    table = {"m": np.array([1.0, 8.0, 64.0, 256.0, 16384.0, 32768.0]), "n": side, "k": side}
    cold = fits.from_l2(constants, gpu, side * side * weight_bytes("fp8_block"))
    kernels_s = fits.gemm(constants, gpu, table["m"], side, side, "fp8_block", cold).total_s
    table["latency_s"] = np.where(kernels_s < 100e-6, 100e-6, kernels_s / 1.2)
    headline, everything, beyond = error_rows(spec, gpu, constants, table)
    assert (headline.n, everything.n, beyond.n, beyond.rows_of) == (6, 6, 2, "beyond host")
    assert headline.mape == pytest.approx(0.2 * 2 / 6)
    assert beyond.mape == pytest.approx(0.2)


@pytest.mark.parametrize("gpu", ["h100-sxm", "h200-sxm", "b200-sxm"])
def test_block_scaled_products_meet_their_goal_without_the_host(gpu: str) -> None:
    """A third of the Hoppers' rows and an eighth of the B200's show a kernel, the others how long Python takes."""
    error = load_gpu(gpu).kernels["gemm"]["fp8_block"].error
    assert error["mape_beyond_host"] < 0.08
    assert 0.1 < error["rows_beyond_host"] / error["rows"] < 0.4


@pytest.fixture(scope="module")
def foretold() -> list[LeftOut]:
    if not TABLES.exists():
        pytest.skip("no measured kernels beside the repository")
    dense = ("gemm", "prefill_attention", "decode_attention")
    return leave_one_out(
        TABLES, [kind for kind in KERNEL_KINDS if kind.kind in dense and kind.dtype in ("bf16", "fp8")]
    )


def test_a_gpu_is_foretold_by_the_others(foretold: list[LeftOut]) -> None:
    """To 12 %, half again of its own error: 1.54 for GEMMs, whose own fits know what the bench found in L2, which no other GPU
    foretells; of nine GPUs the A100's GEMMs are foretold to 1.36 and the B200's, by the GB200, to 1.03 (docs/kernels.md)."""
    ratios = {(row.gpu, row.kind, row.dtype): row.ratio for row in foretold}
    assert len(ratios) == 12 + 9  # the A100 has no fp8
    assert {key for key, ratio in ratios.items() if ratio > 1.55} == set()
    assert max(row.left_out for row in foretold) < 0.12


def test_what_leaving_a_gpu_out_costs_is_told_of_kernels_that_others_ran() -> None:
    def left_out(gpu: str, own: float, foretold: float, same_software: bool) -> LeftOut:
        return LeftOut(gpu, "gemm", "bf16", own, foretold, 0.0, [], same_software)

    rows = [left_out("a", 0.1, 0.12, True), left_out("b", 0.1, 0.9, False), left_out("a", 0.2, 0.24, True)]
    assert by_gpu([*rows, left_out("a", 0.1, 0.9, False)]) == [
        GpuLeftOut("a", 2, pytest.approx(0.15), pytest.approx(0.18), 1)
    ]
    assert by_gpu(rows)[0].ratio == pytest.approx(1.2)


def test_an_h200_and_an_h100_foretell_each_other(foretold: list[LeftOut]) -> None:
    others = {"h100-sxm": "h200-sxm", "h200-sxm": "h100-sxm"}
    hopper = [row for row in foretold if row.gpu in others]
    assert all(row.same_software and list(row.relatives) == [others[row.gpu]] for row in hopper)
    assert max(row.ratio for row in hopper) < 1.4


def test_flash_attention_of_two_generations_is_other_software() -> None:
    """The tables call the prefill of latent attention FLASH_ATTN on Hopper and Blackwell: FlashAttention-3 runs on one only."""
    kind = next(kind for kind in KERNEL_KINDS if kind.kind == "prefill_mla")
    table = {"latency_s": np.ones(1)}
    h100, h200, b200 = (
        calibrate_kernels.software(kind, table, load_gpu(name)) for name in ("h100-sxm", "h200-sxm", "b200-sxm")
    )
    assert h100 == h200 != b200


def test_what_serves_most_generations_is_what_all_share() -> None:
    """Four Blackwells of the data centre run one kernel of latent attention, an L40S and an RTX PRO 6000 another: the latter is
    nearer to a GPU that nobody measured, which is of neither generation."""
    kind = next(kind for kind in KERNEL_KINDS if kind.kind == "prefill_mla")
    table = {"latency_s": np.ones(1)}
    groups: dict[str, list[calibrate_kernels.Measured]] = {}
    catalogue = {name: load_gpu(name) for name in ("b200-sxm", "b300-sxm", "gb200", "gb300", "l40s", "rtx-pro-6000")}
    for name, gpu in catalogue.items():
        group = groups.setdefault(calibrate_kernels.software(kind, table, gpu), [])
        group.append(calibrate_kernels.Measured(name, kind, table))
    wide = {
        tuple(one.gpu for one in group): calibrate_kernels.generations(group, catalogue) for group in groups.values()
    }
    assert wide == {("b200-sxm", "b300-sxm", "gb200", "gb300"): 1, ("l40s", "rtx-pro-6000"): 2}
    own = [gpu.kernels["prefill_mla"]["bf16"].constants["overlap"] for gpu in catalogue.values()]
    shared = shared_kernels(catalogue["l40s"])["prefill_mla"]["bf16"].constants["overlap"]
    assert min(own[4:]) < shared < max(own[4:]) < min(own[:4])


def test_spoilt_rows_are_left_out(made_up: Path) -> None:
    import pyarrow.parquet as parquet

    path = made_up / "h100_sxm" / "gemm" / "gemm_perf.parquet"
    columns = parquet.read_table(path).to_pydict()
    where = [
        i for i in range(len(columns["m"])) if (columns["m"][i], columns["n"][i], columns["k"][i]) == (16, 512, 512)
    ]
    for i in where:
        columns["latency"][i] *= 10
    write_table(path, columns)
    gemm = next(spec for spec in KERNEL_KINDS if (spec.kind, spec.dtype) == ("gemm", "bf16"))
    table = read_rows(gemm, made_up / "h100_sxm", load_gpu("h100-sxm"))
    assert table is not None
    assert len(table["m"]) == 79


def test_the_sample_is_the_same_every_time() -> None:
    rows = calibrate_kernels._sample(np.ones(100_000, dtype=bool))
    assert len(rows) == calibrate_kernels.FIT_ROWS
    assert (rows == calibrate_kernels._sample(np.ones(100_000, dtype=bool))).all()
