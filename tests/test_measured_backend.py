"""The measured backend: the tables where they speak, the roofline's form between and beyond them, and no cliffs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cost import fits, measured_tables, mla_module
from sim.cost.formats import weight_bytes
from sim.cost.interpolation import affine_factors, log_grid
from sim.cost.kernels import KernelBackend
from sim.cost.measured import MeasuredKernels
from sim.cost.measured_tables import GpuTables, find_tables
from sim.cost.roofline import Roofline
from sim.engine.deployment import Deployment
from sim.errors import InputError
from sim.hardware.gpu import load_gpu
from sim.scenario import Scenario

H100 = load_gpu("h100-sxm")
ROOFLINE = Roofline(H100)
M = (1, 8, 64, 512, 4096)
N = K = (512, 2048, 8192)
FACTOR = 1.25
"""The synthetic tables' kernels take so much longer than the roofline says."""
NOISE = 0.15

tokens = st.floats(1, 1e5)
widths = st.integers(64, 60_000)
checked = settings(derandomize=True, deadline=None, max_examples=60)


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist([{"framework": "VLLM", "version": "9.9.9"} | row for row in rows]), path)


def on_the_bench_s(m: int, n: int, k: int, dtype: str = "bf16") -> float:
    """What the roofline says of a product that is repeated and finds in L2 what fits there of its weights."""
    c = ROOFLINE.constants("gemm", dtype)
    cold = fits.from_l2(c, H100, n * k * weight_bytes(dtype))
    return float(fits.gemm(c, H100, m, n, k, dtype, cold).total_s)


def gemm_rows(factor: Callable[[int, int, int], float], dtype: str = "bf16") -> Iterator[dict[str, object]]:
    name = {"bf16": "bfloat16"}.get(dtype, dtype)
    for m, n, k in itertools.product(M, N, K):
        latency_ms = on_the_bench_s(m, n, k, dtype) * factor(m, n, k) * 1e3
        yield {"gemm_dtype": name, "m": m, "n": n, "k": k, "latency": latency_ms}


def noisy(m: int, n: int, k: int) -> float:
    """A factor that differs from shape to shape, the same in every run."""
    return float(np.exp(np.random.default_rng([m, n, k]).uniform(-NOISE, NOISE)))


def backend(folder: Path) -> MeasuredKernels:
    return MeasuredKernels(H100, GpuTables(folder))


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> MeasuredKernels:
    """GEMM tables that are FACTOR times the roofline on a test bench."""
    folder = tmp_path_factory.mktemp("steady")
    write(folder / "gemm" / "gemm_perf.parquet", list(gemm_rows(lambda m, n, k: FACTOR)))
    return backend(folder)


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory) -> MeasuredKernels:
    """GEMM tables with noise from row to row, and a hole."""
    folder = tmp_path_factory.mktemp("rough")
    rows = [row for row in gemm_rows(noisy) if (row["m"], row["n"], row["k"]) != (64, 2048, 2048)]
    write(folder / "gemm" / "gemm_perf.parquet", rows)
    return backend(folder)


# --- matrix multiplications -----------------------------------------------------------------------------------------------


@checked
@given(m=tokens, n=widths, k=widths)
def test_a_gpu_a_quarter_slower_than_its_roofline_is_so_at_every_shape(
    steady: MeasuredKernels, m: float, n: int, k: int
) -> None:
    assert float(steady.gemm(m, n, k, "bf16").total_s) == pytest.approx(
        FACTOR * float(ROOFLINE.gemm(m, n, k, "bf16").total_s)
    )


def test_a_measured_shape_takes_what_was_measured_but_from_hbm(rough: MeasuredKernels) -> None:
    """134 MB of weights were read from HBM by the bench too; 0.5 MB it found in L2, where no engine finds them."""
    for row in gemm_rows(noisy):
        m, n, k = int(str(row["m"])), int(str(row["n"])), int(str(row["k"]))
        if (m, n, k) == (64, 2048, 2048):
            continue
        mine_s, measured_s = float(rough.gemm(m, n, k, "bf16").total_s), float(str(row["latency"])) * 1e-3
        assert mine_s == pytest.approx(
            measured_s * float(ROOFLINE.gemm(m, n, k, "bf16").total_s) / on_the_bench_s(m, n, k)
        )
        if n * k == 8192 * 8192:
            assert mine_s == pytest.approx(measured_s, rel=1e-5)
        if (m, n, k) == (1, 512, 512):
            assert mine_s > 1.01 * measured_s


def test_a_hole_takes_the_mean_of_its_neighbours(rough: MeasuredKernels) -> None:
    around = [(8, 2048, 2048), (512, 2048, 2048), (64, 512, 2048), (64, 8192, 2048), (64, 2048, 512), (64, 2048, 8192)]
    expected = np.exp(np.mean([np.log(noisy(*shape)) for shape in around]))
    ratio = rough.gemm(64, 2048, 2048, "bf16").total_s / ROOFLINE.gemm(64, 2048, 2048, "bf16").total_s
    assert float(ratio) == pytest.approx(float(expected))


def test_a_large_corner_missing_from_a_grid_fills_from_its_edge() -> None:
    m, n, k = (
        np.array(column, dtype=float) for column in zip(*itertools.product((1, 2), (1, 2, 4), (1, 2, 4)), strict=True)
    )
    kept = ~((n == 4) & (k == 4))
    grid = log_grid((m[kept], n[kept], k[kept]), np.full(kept.sum(), 0.5))
    curve, outside = grid.of(4.0, 4.0)
    assert np.allclose(curve.values, 0.5)
    assert not outside


@checked
@given(m=tokens, n=widths, k=widths, step=st.sampled_from((1, -1)))
def test_no_cliffs_a_hair_more_work_takes_a_hair_more_time(
    rough: MeasuredKernels, m: float, n: int, k: int, step: int
) -> None:
    here = float(rough.gemm(m, n, k, "bf16").total_s)
    assert here > 0
    assert np.isfinite(here)
    hair = 1e-6
    assert float(rough.gemm(m * (1 + hair), n, k, "bf16").total_s) == pytest.approx(here, rel=1e-4)
    # n and k are whole numbers: one more column in a thousand or so, times at most the slope of the noise
    bound = 3 * (1 + NOISE) / min(n, k) + 1e-9
    assert float(rough.gemm(m, n + step, k, "bf16").total_s) == pytest.approx(here, rel=bound)
    assert float(rough.gemm(m, n, k + step, "bf16").total_s) == pytest.approx(here, rel=bound)


@pytest.mark.parametrize(("m", "n", "k"), [(65536, 2048, 8192), (64, 40000, 2048), (1e6, 64, 65536), (512, 100, 100)])
def test_beyond_the_table_the_utilisation_of_its_edge_is_held(rough: MeasuredKernels, m: float, n: int, k: int) -> None:
    def utilisation(*shape: float) -> float:
        m, n, k = shape[0], int(shape[1]), int(shape[2])
        return float(ROOFLINE.gemm(m, n, k, "bf16").total_s / rough.gemm(m, n, k, "bf16").total_s)

    edge = [np.clip(value, axis[0], axis[-1]) for value, axis in ((m, M), (n, N), (k, K))]
    assert utilisation(m, n, k) == pytest.approx(utilisation(*edge))


def test_time_splits_like_the_rooflines_and_sums_to_the_whole(rough: MeasuredKernels) -> None:
    m = np.arange(1.0, 5000.0, 37.0)
    mine, theirs = rough.gemm(m, 3000, 3000, "bf16"), ROOFLINE.gemm(m, 3000, 3000, "bf16")
    assert (mine.fixed_s <= theirs.fixed_s + 1e-15).all()
    assert min(part.min() for part in mine) >= 0
    np.testing.assert_allclose(mine.memory_s * theirs.compute_s, mine.compute_s * theirs.memory_s, rtol=1e-9)


def test_an_engine_takes_the_fastest_of_several_kernels(tmp_path: Path) -> None:
    rows = [*gemm_rows(lambda m, n, k: 2.0), *gemm_rows(lambda m, n, k: 1.0), *gemm_rows(lambda m, n, k: 3.0)]
    write(tmp_path / "gemm" / "gemm_perf.parquet", rows)
    ratio = backend(tmp_path).gemm(100, 4096, 4096, "bf16").total_s / ROOFLINE.gemm(100, 4096, 4096, "bf16").total_s
    assert float(ratio) == pytest.approx(1.0)


def test_a_spoilt_measurement_is_left_out_and_said(tmp_path: Path) -> None:
    """One token that takes four times as long as eight: an engine could pad, and the neighbours stand in."""
    write(tmp_path / "gemm" / "gemm_perf.parquet", list(gemm_rows(lambda m, n, k: 4.0 if m == 1 else 1.0)))
    measured = backend(tmp_path)
    assert float(measured.gemm(1, 2048, 2048, "bf16").total_s) == pytest.approx(
        float(ROOFLINE.gemm(1, 2048, 2048, "bf16").total_s)
    )
    assert any("9 rows left out" in note for note in measured.notes)


def test_a_measurement_that_waited_for_the_host_says_nothing_of_the_kernel(tmp_path: Path) -> None:
    """Block-scaled FP8 was measured launch by launch: a flat 90 us for small shapes is the host, not the GPU."""
    host_s = ROOFLINE.constants("gemm", "fp8_block")["host_s"]
    rows = list(gemm_rows(lambda m, n, k: 1.0, "fp8_block"))
    for row in rows:
        row["latency"] = max(float(str(row["latency"])), host_s * 1.2e3)
    write(tmp_path / "gemm" / "gemm_perf.parquet", rows)
    small = ROOFLINE.gemm(1, 512, 512, "fp8_block").total_s
    assert float(small) < 0.2 * host_s
    assert float(backend(tmp_path).gemm(1, 512, 512, "fp8_block").total_s) == pytest.approx(float(small), rel=0.01)


# --- attention ------------------------------------------------------------------------------------------------------------


def decode_rows(fixed: float, body: float) -> Iterator[dict[str, object]]:
    for sequences, step in itertools.product((1, 8, 64), (1, 255, 4095, 65535, 262143)):
        time = ROOFLINE.decode_attention(float(sequences), 32, 8, 128, "bf16")
        context = sequences * (step + 1)
        c, read = ROOFLINE.constants("decode_attention", "bf16"), context * 4096
        warm = 1 - (1 - c["warm_time"]) / (1 + (read / (c["warm_l2"] * H100.l2_bytes)) ** 6)
        memory_s = time.memory_s_per_token * warm
        cold = time.fixed_s + context * (time.memory_s_per_token + time.compute_s_per_token)
        seen = time.fixed_s + context * (memory_s + time.compute_s_per_token)
        asked = fixed * time.fixed_s + body * context * (time.memory_s_per_token + time.compute_s_per_token)
        yield {
            "batch_size": sequences, "num_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "step": step,
            "kv_cache_dtype": "bfloat16", "window_size": 0, "latency": float(asked * seen / cold) * 1e3,
        }  # fmt: skip


def test_decode_attention_finds_fixed_cost_and_slope_and_forgets_the_warm_l2(tmp_path: Path) -> None:
    write(tmp_path / "attention" / "generation_attention_perf.parquet", list(decode_rows(1.3, 1.1)))
    sequences = np.array([1.0, 20.0, 64.0, 500.0])
    mine = backend(tmp_path).decode_attention(sequences, 32, 8, 128, "bf16")
    theirs = ROOFLINE.decode_attention(sequences, 32, 8, 128, "bf16")
    np.testing.assert_allclose(mine.fixed_s / theirs.fixed_s, 1.3, rtol=0.01)
    np.testing.assert_allclose(mine.memory_s_per_token / theirs.memory_s_per_token, 1.1, rtol=0.01)


def test_no_fit_reads_keys_faster_than_the_printed_bandwidth(tmp_path: Path) -> None:
    write(tmp_path / "attention" / "generation_attention_perf.parquet", list(decode_rows(1.0, 0.2)))
    slope = backend(tmp_path).decode_attention(64.0, 32, 8, 128, "bf16")
    read_s = 2 * 8 * 128 * 2 / H100.hbm_bytes_per_s
    assert float(slope.memory_s_per_token + slope.compute_s_per_token) >= read_s * (1 - 1e-9)


def test_heads_that_were_not_measured_scale_from_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "attention" / "generation_attention_perf.parquet", list(decode_rows(1.3, 1.1)))
    measured = backend(tmp_path)
    mine, theirs = (b.decode_attention(8.0, 20, 5, 128, "bf16") for b in (measured, ROOFLINE))
    assert float(mine.fixed_s / theirs.fixed_s) == pytest.approx(1.3, rel=0.01)
    assert "nearest measured" in measured.provenance()[0]


def prefill_rows(fixed: float, body: Callable[[int], float], window: int = 0) -> Iterator[dict[str, object]]:
    for sequences, prompt in itertools.product((1, 2, 8), (16, 256, 2048, 16384)):
        time = ROOFLINE.prefill_attention(prompt, 0, 32, 8, 128, "bf16", window or None)
        latency_s = fixed * time.fixed_s + sequences * body(prompt) * (time.memory_s + time.compute_s)
        yield {
            "batch_size": sequences, "num_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "isl": prompt,
            "kv_cache_dtype": "bfloat16", "window_size": window, "step": 0, "latency": float(latency_s) * 1e3,
        }  # fmt: skip


def test_a_chunk_with_context_runs_at_the_utilisation_of_a_prompt_with_as_many_pairs(tmp_path: Path) -> None:
    """1024 queries after 1533 tokens see as many keys as a prompt of 2,048 does: the body of 2,048 tokens, 1.4."""
    rows = list(prefill_rows(1.2, lambda prompt: 1.4 if prompt >= 2048 else 1.0))
    write(tmp_path / "attention" / "context_attention_perf.parquet", rows)
    new, context = 1024.0, 1533.0
    assert new * (context + (new + 1) / 2) == pytest.approx(2048 * 2049 / 2, rel=0.002)
    mine = backend(tmp_path).prefill_attention(new, context, 32, 8, 128, "bf16")
    theirs = ROOFLINE.prefill_attention(new, context, 32, 8, 128, "bf16")
    assert float(mine.fixed_s / theirs.fixed_s) == pytest.approx(1.2, rel=0.05)
    assert float(mine.compute_s / theirs.compute_s) == pytest.approx(1.4, rel=0.02)


def test_sliding_windows_use_their_own_rows_and_full_attention_never_does(tmp_path: Path) -> None:
    rows = [*prefill_rows(1.0, lambda prompt: 1.1), *prefill_rows(1.0, lambda prompt: 3.0, window=1024)]
    write(tmp_path / "attention" / "context_attention_perf.parquet", rows)
    measured = backend(tmp_path)
    for window, factor in ((None, 1.1), (1024, 3.0), (512, 1.1)):
        mine, theirs = (b.prefill_attention(4096.0, 0.0, 32, 8, 128, "bf16", window) for b in (measured, ROOFLINE))
        assert float(mine.compute_s / theirs.compute_s) == pytest.approx(factor, rel=0.02)


def test_an_affine_fit_of_rows_that_are_all_fixed_cost_leaves_the_body_alone() -> None:
    fixed, body = np.full(5, 10e-6), np.full(5, 1e-9)
    a, b = affine_factors(fixed, body, 1.2 * fixed)
    assert a == pytest.approx(1.2, rel=0.01)
    assert b == pytest.approx(1.0, rel=0.01)


def module_rows(framework: str, slower: float) -> Iterator[dict[str, object]]:
    """Latent attention that takes `slower` times the roofline's time, with what the engine's module ran around it."""
    for sequences, step in itertools.product((1, 8, 64), (256, 4096, 65536)):
        c, context = ROOFLINE.latent_constants("bf16"), np.array(float(sequences * step))
        seen_s = mla_module.measured_decode_s(
            c, ROOFLINE, sequences, 16, context, "bf16", module=True, engine=framework.lower()
        )
        yield {
            "framework": framework, "model": mla_module.MODEL, "kv_cache_dtype": "bfloat16", "gemm_type": "bfloat16",
            "mla_dtype": "bfloat16", "num_heads": 16, "batch_size": sequences, "step": step,
            "latency": float(slower * seen_s) * 1e3,
        }  # fmt: skip


@pytest.mark.parametrize("framework", ["VLLM", "TRTLLM"])
def test_a_module_of_latent_attention_is_its_attention_and_what_its_engine_ran_around_it(
    tmp_path: Path, framework: str
) -> None:
    """vLLM's bench ran a chain of norms that TensorRT-LLM's did not, and a table that holds another model's rows too."""
    kimi = [row | {"model": "moonshotai/Kimi-K3", "latency": 1.0} for row in module_rows(framework, 1.0)]
    rows = [*module_rows(framework, 1.1), *kimi]
    write(tmp_path / "mla" / "mla_generation_module_perf.parquet", rows)
    mine, theirs = (b.decode_mla(8.0, 16, 512, 64, "bf16") for b in (backend(tmp_path), ROOFLINE))
    np.testing.assert_allclose(mine.fixed_s / theirs.fixed_s, 1.1, rtol=1e-3)
    np.testing.assert_allclose(mine.memory_s_per_token / theirs.memory_s_per_token, 1.1, rtol=1e-3)


# --- experts --------------------------------------------------------------------------------------------------------------


def experts_on_the_bench_s(tokens: int, experts: int, balanced: bool) -> float:
    """What the roofline says of experts of 4096 x 1024, two a token, with weights in L2 where they fit."""
    c, routing = ROOFLINE.constants("moe", "bf16"), fits.Routing.uniform(tokens, experts, experts, 2)
    if balanced:
        routing = replace(routing, touched=np.minimum(experts, routing.pairs))
    cold = fits.from_l2(c, H100, 3 * routing.touched * 4096 * 1024 * weight_bytes("bf16"))
    time = fits.moe(c, H100, routing, 4096, 1024, "bf16", cold)
    return float(time.total_s)


def moe_rows(distribution: str, factor: float, experts: int) -> Iterator[dict[str, object]]:
    for count in (1, 16, 256, 4096):
        seen_s = experts_on_the_bench_s(count, experts, balanced=distribution == "balanced")
        yield {
            "moe_dtype": "bfloat16", "num_tokens": count, "hidden_size": 4096, "inter_size": 2048, "topk": 2,
            "num_experts": experts, "moe_tp_size": 2, "moe_ep_size": 1, "distribution": distribution,
            "latency": seen_s * factor * 1e3,
        }  # fmt: skip


def test_experts_take_balanced_rows_and_skewed_ones_only_where_there_are_no_others(tmp_path: Path) -> None:
    skewed = list(moe_rows("power_law_1.01", 1.5, 8))
    write(tmp_path / "both" / "moe" / "moe_perf.parquet", [*skewed, *moe_rows("balanced", 1.2, 8)])
    write(tmp_path / "skewed" / "moe" / "moe_perf.parquet", skewed)
    theirs = ROOFLINE.moe(4096, 4096, 1024, 8, 8, 2, "bf16").total_s
    for folder, factor in (("both", 1.2), ("skewed", 1.5)):
        measured = backend(tmp_path / folder)
        mine = measured.moe(4096, 4096, 1024, 8, 8, 2, "bf16").total_s
        assert float(mine / theirs) == pytest.approx(factor, rel=1e-3)
        assert any("power_law" in note for note in measured.notes) == (folder == "skewed")


def test_sglangs_rows_of_several_ranks_count_only_where_there_are_no_others(tmp_path: Path) -> None:
    alone = [row | {"framework": "SGLang", "version": "0.5.14"} for row in moe_rows("balanced", 1.2, 8)]
    ranks = [row | {"moe_ep_size": 2, "latency": 3 * float(str(row["latency"]))} for row in alone]
    write(tmp_path / "both" / "moe" / "moe_perf.parquet", [*alone, *ranks])
    write(tmp_path / "ranks" / "moe" / "moe_perf.parquet", ranks)
    for folder, shapes in (("both", 1), ("ranks", 0)):
        measured = backend(tmp_path / folder)
        measured.moe(4096, 4096, 1024, 8, 8, 2, "bf16")
        assert len(measured.usage["moe", "bf16"].shapes) == shapes
        assert any("contradict each other" in note for note in measured.notes) == (folder == "ranks")


def test_experts_between_two_measured_shapes_deviate_like_their_mean(tmp_path: Path) -> None:
    rows = [*moe_rows("power_law_1.01", 1.1, 8), *moe_rows("power_law_1.01", 1.3, 32)]
    write(tmp_path / "moe" / "moe_perf.parquet", rows)
    measured = backend(tmp_path)
    mine = measured.moe(256, 4096, 1024, 16, 16, 2, "bf16").total_s
    theirs = ROOFLINE.moe(256, 4096, 1024, 16, 16, 2, "bf16").total_s
    assert float(mine / theirs) == pytest.approx(np.sqrt(1.1 * 1.3))
    assert "nearest measured" in measured.provenance()[0]


# --- where tables come from, and what is said of them ---------------------------------------------------------------------


def test_what_is_not_in_the_tables_is_the_rooflines_and_noted(steady: MeasuredKernels) -> None:
    mine, theirs = (b.gemm(17, 4096, 4096, "int4_wo").total_s for b in (steady, ROOFLINE))
    assert mine == theirs
    assert steady.decode_attention(8.0, 32, 8, 128, "bf16") == ROOFLINE.decode_attention(8.0, 32, 8, 128, "bf16")
    steady.elementwise(1e6)
    for text in ("gemm int4_wo: no measured table of h100-sxm; roofline", "elementwise: not in the tables; roofline"):
        assert text in steady.notes


def test_a_gpu_without_tables_is_the_roofline_throughout() -> None:
    v100 = load_gpu("v100-sxm-32gb")
    measured, roofline = MeasuredKernels(v100, None), Roofline(v100)
    assert measured.gemm(9, 4096, 4096, "bf16") == roofline.gemm(9, 4096, 4096, "bf16")
    assert measured.moe(9, 4096, 1024, 8, 8, 2, "bf16") == roofline.moe(9, 4096, 1024, 8, 8, 2, "bf16")
    assert measured.provenance() == [
        "gemm bf16: no measured table of v100-sxm-32gb; roofline",
        "moe bf16: no measured table of v100-sxm-32gb; roofline",
    ]


def test_provenance_names_the_table_and_the_share_beyond_it(tmp_path: Path) -> None:
    write(tmp_path / "h100_sxm" / "gemm" / "gemm_perf.parquet", list(gemm_rows(noisy)))
    measured = backend(tmp_path / "h100_sxm")
    measured.gemm(np.array([1.0, 4096.0, 4097.0, 1e5]), 2048, 2048, "bf16")
    expected = "gemm bf16: h100_sxm/gemm/gemm_perf.parquet (VLLM 9.9.9), 45 rows (n 2048, k 2048), 50% of look-ups extrapolated"
    assert measured.provenance() == [f"{expected}; tokens 1 to 100,000 where 1 to 4,096 were measured"]


def test_provenance_names_the_rows_between_which_a_shape_lies(tmp_path: Path) -> None:
    write(tmp_path / "gemm" / "gemm_perf.parquet", list(gemm_rows(noisy)))
    measured = backend(tmp_path)
    measured.gemm(np.array([1.0]), 1024, 2048, "bf16")
    measured.gemm(np.array([1.0]), 16384, 2048, "bf16")
    (line,) = measured.provenance()
    assert "(n 512 and 2048, k 2048; n 8192, k 2048), 50% of look-ups extrapolated" in line
    assert line.endswith("; n 16,384 to 16,384 where 512 to 8,192 were measured")


# --- engines whose kernels differ from those of the tables ----------------------------------------------------------------


def test_an_engine_that_knows_its_scales_does_not_look_for_them(tmp_path: Path) -> None:
    write(tmp_path / "gemm" / "gemm_perf.parquet", list(gemm_rows(lambda m, n, k: FACTOR, "fp8")))
    tables, quiet = GpuTables(tmp_path), "with activation scales found in each product"
    before = MeasuredKernels(H100, tables, static_scales=True)
    # of weights so large that the bench too read them from HBM
    dynamic_s = [float(before.gemm(m, 8192, 8192, "fp8").total_s) for m in (8, 512)]
    assert any(quiet in note for note in before.notes)
    rows: list[dict[str, object]] = [{"quant_dtype": "fp8", "m": m, "k": k, "latency": 2e-3} for m in M for k in K]
    write(tmp_path / "quantize" / "computescale_perf.parquet", rows)
    static = MeasuredKernels(H100, tables, static_scales=True)
    static_s = [float(static.gemm(m, 8192, 8192, "fp8").total_s) for m in (8, 512)]
    assert np.subtract(dynamic_s, static_s) == pytest.approx([2e-6, 2e-6], rel=1e-5)
    assert any("without the kernel that finds activation scales" in note for note in static.notes)
    least = Roofline(H100, ideal=True).gemm(1, 512, 512, "fp8").total_s
    assert float(static.gemm(1, 512, 512, "fp8").total_s) >= float(least)


@pytest.mark.parametrize(("framework", "share"), [("VLLM", 0.6), ("TRTLLM", 1.0)])
def test_an_engines_own_attention_kernels_need_no_factor(tmp_path: Path, framework: str, share: float) -> None:
    rows = [row | {"kv_cache_dtype": "fp8", "framework": framework} for row in decode_rows(1.0, 1.0)]
    write(tmp_path / "attention" / "generation_attention_perf.parquet", rows)
    usual = MeasuredKernels(H100, GpuTables(tmp_path)).decode_attention(8, 32, 8, 128, "fp8")
    faster = MeasuredKernels(H100, GpuTables(tmp_path), fp8_attention=0.6).decode_attention(8, 32, 8, 128, "fp8")
    assert float(faster.fixed_s) == pytest.approx(share * float(usual.fixed_s))


def test_a_faster_memory_shortens_measured_kernels_by_what_the_roofline_says(tmp_path: Path) -> None:
    write(tmp_path / "gemm" / "gemm_perf.parquet", list(gemm_rows(lambda m, n, k: FACTOR)))
    faster = dataclasses.replace(H100, hbm_bytes_per_s=2 * H100.hbm_bytes_per_s)
    mine = MeasuredKernels(faster, GpuTables(tmp_path)).gemm(1, 8192, 8192, "bf16").total_s
    assert float(mine / Roofline(faster).gemm(1, 8192, 8192, "bf16").total_s) == pytest.approx(FACTOR)


def test_without_tables_the_error_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(measured_tables.VARIABLE, raising=False)
    monkeypatch.setattr(measured_tables, "PACKAGE", "no_such_package_of_tables")
    with pytest.raises(InputError, match="no measured kernel tables") as absent:
        find_tables(H100, where="run.yaml: costs")
    assert "twowalls[measured]" in absent.value.hint
    assert "TWOWALLS_TABLES" in absent.value.hint
    monkeypatch.setenv(measured_tables.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="which is no folder"):
        find_tables(H100)


def test_tables_are_found_by_gpu_engine_and_newest_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The layout of the package: <gpu>/<family>/<framework>/<version>/<file>."""
    for path, factor in {
        "vllm/0.9.1": 2.0,
        "vllm/0.24.0": 1.5,
        "trtllm/1.3.0rc9": 3.0,
        "trtllm/1.3.0rc20": 1.2,
    }.items():
        file = tmp_path / "h100_sxm" / "gemm" / path / "gemm_perf.parquet"
        write(file, list(gemm_rows(lambda m, n, k, f=factor: f)))
    monkeypatch.setenv(measured_tables.VARIABLE, str(tmp_path))
    theirs = ROOFLINE.gemm(64, 2048, 2048, "bf16").total_s
    for framework, factor in {"vllm": 1.5, "trtllm": 1.2, "sglang": 1.5}.items():
        mine = MeasuredKernels(H100, find_tables(H100, framework)).gemm(64, 2048, 2048, "bf16").total_s
        assert float(mine / theirs) == pytest.approx(factor)
    assert find_tables(load_gpu("l40s")) is None


def test_a_newer_version_with_a_handful_of_rows_does_not_hide_the_full_table(tmp_path: Path) -> None:
    rows = list(gemm_rows(lambda m, n, k: FACTOR))
    write(tmp_path / "gemm" / "vllm" / "0.24.0" / "gemm_perf.parquet", rows)
    write(tmp_path / "gemm" / "vllm" / "0.25.0" / "gemm_perf.parquet", rows[:5])
    table = GpuTables(tmp_path).read("gemm", "gemm_perf.parquet", {"gemm_dtype": "bfloat16"}, ("m", "n", "k"))
    assert table is not None
    assert len(table) == len(rows)


def test_a_table_without_a_column_is_named(tmp_path: Path) -> None:
    write(tmp_path / "gemm" / "gemm_perf.parquet", [{"m": 1, "n": 1, "latency": 1.0}])
    with pytest.raises(InputError, match="lacks the columns k"):
        backend(tmp_path).gemm(1, 512, 512, "bf16")


def test_a_scenario_names_the_backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path / "h100_sxm" / "gemm" / "gemm_perf.parquet", list(gemm_rows(lambda m, n, k: FACTOR)))
    monkeypatch.setenv(measured_tables.VARIABLE, str(tmp_path))
    draft = {
        "name": "measured", "model": "llama-3.1-8b", "cluster": {"topology": "dgx-h100"}, "costs": "measured",
        "workload": {
            "arrivals": {"kind": "closed_loop", "concurrency": 1}, "num_requests": 1,
            "lengths": {"kind": "fixed", "input_tokens": 16, "output_tokens": 4},
        },
    }  # fmt: skip
    deployment = Deployment.of(Scenario.from_dict(draft))
    found: KernelBackend = deployment.backend(H100)
    assert float(found.gemm(1, 512, 512, "bf16").total_s) == pytest.approx(
        FACTOR * float(ROOFLINE.gemm(1, 512, 512, "bf16").total_s)
    )


# --- neither backend has cliffs -------------------------------------------------------------------------------------------

TABLES = Path(__file__).resolve().parents[2] / "shared" / "data" / "kernels"
HAIR = 1e-6
amounts = st.floats(0, 7).map(lambda power: float(10**power))
"""Tokens, sequences or contexts from 1 to ten million: far beyond what anybody measured."""


@pytest.fixture(scope="module", params=["roofline", "measured"])
def either(request: pytest.FixtureRequest) -> KernelBackend:
    """Each backend on an H100, the measured one over the real tables."""
    if request.param == "roofline":
        return ROOFLINE
    if not TABLES.is_dir():
        pytest.skip("needs the measured tables")
    return MeasuredKernels(H100, GpuTables(TABLES / "h100_sxm"))


@checked
@given(at=amounts, heads=st.sampled_from((1, 5, 8, 40, 128)), dtype=st.sampled_from(("bf16", "fp8")))
def test_a_hair_more_of_anything_takes_a_hair_more_time(
    either: KernelBackend, at: float, heads: int, dtype: str
) -> None:
    kv = max(heads // 8, 1)
    kernels: list[Callable[[float], float]] = [
        lambda x: float(either.gemm(x, 7000, 300, dtype).total_s),
        lambda x: float(either.prefill_attention(x, 0.0, heads, kv, 128, dtype).total_s),
        lambda x: float(either.prefill_attention(100.0, x, heads, kv, 128, dtype).total_s),
        lambda x: float(either.decode_attention(x, heads, kv, 128, dtype).fixed_s),
        lambda x: float(sum(either.decode_attention(x, heads, kv, 128, dtype)[1:])),
        lambda x: float(either.prefill_mla(x, 0.0, heads, 512, 64, 128, 128, dtype).total_s),
        lambda x: float(either.decode_mla(x, heads, 512, 64, dtype).fixed_s),
        lambda x: float(either.moe(x, 4096, 1000, 100, 50, 6, dtype).total_s),
        lambda x: float(either.elementwise(x, 1).total_s),
    ]
    for kernel in kernels:
        here, there = kernel(at), kernel(at * (1 + HAIR))
        assert 0 <= here < np.inf
        assert there == pytest.approx(here, rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_far_beyond_the_tables_the_work_decides_and_nothing_breaks_off(either: KernelBackend, dtype: str) -> None:
    """Ten times the tokens of the largest measured shape take ten times as long, within what fixed costs are left."""
    assert float(
        either.gemm(1e7, 8192, 8192, dtype).total_s / either.gemm(1e6, 8192, 8192, dtype).total_s
    ) == pytest.approx(10, rel=0.02)
    long = (
        either.prefill_attention(1e6, 0.0, 8, 1, 128, dtype).total_s
        / either.prefill_attention(1e5, 0.0, 8, 1, 128, dtype).total_s
    )
    assert float(long) == pytest.approx(100, rel=0.05)
    many = (
        either.moe(1e7, 4096, 1536, 128, 16, 8, dtype).total_s / either.moe(1e6, 4096, 1536, 128, 16, 8, dtype).total_s
    )
    assert float(many) == pytest.approx(10, rel=0.05)
