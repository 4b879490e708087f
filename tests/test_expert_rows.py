"""Which measured rows of expert kernels stand for what an engine runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sim.cost import fits
from sim.cost.expert_tiles import SMALL, TUNED
from sim.cost.roofline import Roofline
from sim.hardware.gpu import load_gpu
from sim.studies.expert_rows import expert_rows
from sim.studies.kernel_kinds import KERNEL_KINDS, KernelKind, experts_with_tokens

pyarrow = pytest.importorskip("pyarrow")

MIXTRAL = (4096, 14336, 2, 8)
QWEN = (2048, 768, 8, 128)


def kind_of(dtype: str) -> KernelKind:
    return next(kind for kind in KERNEL_KINDS if (kind.kind, kind.dtype) == ("moe", dtype))


def write(
    folder: Path,
    rows: list[tuple[str, str, tuple[int, int, int, int], int, float]],
    more: dict[str, object] | None = None,
    place: str = "",
) -> Path:
    """Rows of (moe_dtype, distribution, model, tokens, milliseconds), all experts on one GPU, with `more` in every row."""
    import pyarrow.parquet as parquet

    (folder / "moe" / place).mkdir(parents=True, exist_ok=True)
    shape = ("hidden_size", "inter_size", "topk", "num_experts")
    alike = {"moe_tp_size": 1, "moe_ep_size": 1, "kernel_source": "triton"} | (more or {})
    columns = {
        "moe_dtype": [r[0] for r in rows],
        "distribution": [r[1] for r in rows],
        **{name: [r[2][i] for r in rows] for i, name in enumerate(shape)},
        "num_tokens": [r[3] for r in rows],
        "latency": [r[4] for r in rows],
        **{name: [value] * len(rows) for name, value in alike.items()},
    }
    parquet.write_table(pyarrow.table(columns), folder / "moe" / place / "moe_perf.parquet")
    return folder


def test_fp8_that_bf16_beats_is_replaced_by_the_block_scaled_kernel(tmp_path: Path) -> None:
    """A bench without autotuning took 2.2 ms for what Triton does in 0.5 ms in fp8 and in 1.0 ms in bf16."""
    rows = [(dtype, "balanced", MIXTRAL, 64, ms) for dtype, ms in (("bfloat16", 1.0), ("fp8", 2.2), ("fp8_block", 0.5))]
    table = expert_rows(kind_of("fp8"), write(tmp_path / "slow", rows), load_gpu("h100-sxm"))
    assert table is not None
    assert table["latency_s"].tolist() == [0.5e-3]
    rows[1] = ("fp8", "balanced", MIXTRAL, 64, 0.6)
    table = expert_rows(kind_of("fp8"), write(tmp_path / "quick", rows), load_gpu("h100-sxm"))
    assert table is not None
    assert table["latency_s"].tolist() == [0.6e-3]


def test_a_model_that_beats_the_memory_bandwidth_is_left_out(tmp_path: Path) -> None:
    """128 experts of 9.4 MB in bf16 are 1.2 GB, 0.36 ms on an H100: nothing that takes 0.2 ms has read them all."""
    rows = [("bfloat16", "balanced", QWEN, tokens, ms) for tokens, ms in ((1, 0.05), (16, 0.2), (4096, 0.8))]
    rows += [("bfloat16", "balanced", MIXTRAL, tokens, ms) for tokens, ms in ((1, 0.26), (4096, 5.6))]
    table = expert_rows(kind_of("bf16"), write(tmp_path / "t", rows), load_gpu("h100-sxm"))
    assert table is not None
    assert table["num_experts"].tolist() == [8.0, 8.0]


def test_skewed_rows_stand_in_where_none_are_balanced(tmp_path: Path) -> None:
    rows = [("bfloat16", "power_law_1.01", MIXTRAL, 64, 2.0)]
    assert expert_rows(kind_of("bf16"), write(tmp_path / "t", rows), load_gpu("a100-sxm-80gb")) is not None
    assert expert_rows(kind_of("fp8"), tmp_path / "t", load_gpu("a100-sxm-80gb")) is None


def test_rows_with_tuned_tiles_and_rows_by_rule_are_of_two_kinds(tmp_path: Path) -> None:
    """On an H200 vLLM brings tiles for experts of 14,336 columns, and for 128 of 768; on an H100 for neither."""
    rows = [("bfloat16", "balanced", MIXTRAL, 64, 2.0), ("bfloat16", "balanced", QWEN, 64, 1.0)]
    folder = write(tmp_path / "t", rows)
    for gpu, tuned, by_rule in (("h200-sxm", 2, 0), ("h100-sxm", 0, 2)):
        found = [expert_rows(kind_of(dtype), folder, load_gpu(gpu)) for dtype in (TUNED, "bf16")]
        assert [0 if table is None else len(table["latency_s"]) for table in found] == [tuned, by_rule]


def test_rows_of_small_tiles_are_those_of_old_releases_and_of_sglang(tmp_path: Path) -> None:
    """An A100's rows of vLLM 0.14 are no rows of today's rule; where SGLang measured too, its rows count, on one rank."""
    rows = [("bfloat16", "balanced", MIXTRAL, 64, 2.5), ("bfloat16", "balanced", QWEN, 64, 0.7)]
    write(tmp_path / "t", rows, {"framework": "VLLM", "version": "0.14.0"})
    found = {dtype: expert_rows(kind_of(dtype), tmp_path / "t", load_gpu("a100-sxm-80gb")) for dtype in ("bf16", SMALL)}
    assert found["bf16"] is None
    assert found[SMALL] is not None
    assert found[SMALL]["latency_s"].tolist() == pytest.approx([0.7e-3, 2.5e-3])
    source = {"framework": "SGLang", "version": "0.5.10", "kernel_source": "sglang_fused_moe_triton"}
    below = write(tmp_path / "p", rows[:1], {"framework": "VLLM", "version": "0.14.0"}, "vllm/0.14.0")
    write(below, [("bfloat16", "balanced", MIXTRAL, 64, 2.6)], source, "sglang/0.5.10")
    small = expert_rows(kind_of(SMALL), below, load_gpu("a100-sxm-80gb"))
    assert small is not None
    assert small["latency_s"].tolist() == pytest.approx([2.6e-3])
    write(below, [("bfloat16", "balanced", MIXTRAL, 64, 2.6)], source | {"moe_ep_size": 2}, "sglang/0.5.10")
    small = expert_rows(kind_of(SMALL), below, load_gpu("a100-sxm-80gb"))
    assert small is not None
    assert small["latency_s"].tolist() == pytest.approx([2.5e-3])


def test_skewed_routing_leaves_experts_without_tokens() -> None:
    """128 experts, 8 a token. Few tokens all find experts of their own; 16 tokens, 128 picks, find about half the experts
    (bf16 kernels took 0.53 of the balanced time); 64 tokens find 88 %."""
    tokens = np.array([1.0, 2.0, 16.0, 64.0, 16384.0])
    table = {
        "num_tokens": tokens,
        "topk": np.full(5, 8.0),
        "num_experts": np.full(5, 128.0),
        "moe_ep_size": np.ones(5),
        "distribution": np.array(["power_law_1.01"] * 5),
    }
    share = experts_with_tokens(table) / 128
    assert share[:2] * 128 == pytest.approx([8, 16], rel=0.02)
    assert share[2:] == pytest.approx([0.49, 0.88, 1.0], abs=0.04)
    balanced = experts_with_tokens(table | {"distribution": np.array(["balanced"] * 5)})
    assert balanced.tolist() == [8, 16, 128, 128, 128]


def test_fp8_experts_are_faster_than_bf16_ones_on_every_gpu_that_multiplies_fp8() -> None:
    for name in ("h100-sxm", "h200-sxm", "b200-sxm", "h20", "l40s"):
        backend = Roofline(load_gpu(name))
        tokens = np.array([1.0, 16.0, 64.0, 1024.0, 16384.0])
        fp8, bf16 = (backend.moe(tokens, 4096, 14336, 8, 8, 2, dtype).total_s for dtype in ("fp8", "bf16"))
        assert (fp8 < bf16).all()


def test_mxfp4_experts_take_mxfp8_activations_where_those_were_measured(tmp_path: Path) -> None:
    rows = [("w4a16_mxfp4", "balanced", MIXTRAL, 64, 0.4), ("w4a8_mxfp4_mxfp8", "balanced", MIXTRAL, 64, 0.3)]
    both = expert_rows(kind_of("mxfp4"), write(tmp_path / "both", rows), load_gpu("b200-sxm"))
    one = expert_rows(kind_of("mxfp4"), write(tmp_path / "one", rows[:1]), load_gpu("h100-sxm"))
    assert both is not None
    assert one is not None
    assert (both["latency_s"][0], one["latency_s"][0]) == (0.3e-3, 0.4e-3)
    assert fits.expert_arithmetic(load_gpu("b200-sxm"), "mxfp4") == "fp8"
    # an H100 has no such tensor cores, and on an RTX PRO 6000 vLLM 0.24 ran Marlin, which unpacks to bf16
    assert {fits.expert_arithmetic(load_gpu(name), "mxfp4") for name in ("h100-sxm", "rtx-pro-6000")} == {"bf16"}


def test_picking_out_the_experts_of_a_rank_costs_a_kernel() -> None:
    """gpt-oss-20b on an H100, one token: 61 us on one GPU, 68 us on one of eight that have four experts each. The fit says 90:
    it has one time for the picking whatever the tokens, 44 us, of which a single token shows half."""
    backend = Roofline(load_gpu("h100-sxm"))
    alone, shared = (float(backend.moe(1.0, 2880, 2880, 32, local, 4, "mxfp4").total_s) for local in (32, 4))
    assert alone == pytest.approx(61e-6, rel=0.15)
    assert alone < 68e-6 < shared
    assert shared == pytest.approx(68e-6, rel=0.35)
