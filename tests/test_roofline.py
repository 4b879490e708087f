"""The roofline backend: its limits, its laws, and what makes one kernel slower than another."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cost import attention_fits, fits
from sim.cost.attention_software import attention_software, softmax_s
from sim.cost.expert_tiles import SGLANG_TILES, VLLM_SMALL_TILES, VLLM_TILES, ExpertTiles
from sim.cost.formats import KV_BYTES, WEIGHT_BYTES, Quantisation, quantised
from sim.cost.kernels import Floats, KernelTime
from sim.cost.mla_module import MEASURED_FUSED, beside_s
from sim.cost.roofline import Roofline, prompt_dtype
from sim.errors import InputError
from sim.hardware.gpu import Gpu, gpu_names, load_gpu

H100 = load_gpu("h100-sxm")
GPUS = st.sampled_from(gpu_names())
DTYPES = st.sampled_from(sorted(WEIGHT_BYTES))
KV_DTYPES = st.sampled_from(sorted(KV_BYTES))
SIDES = st.sampled_from([512, 1024, 4096, 5120, 8192, 28672])
LAWS = settings(derandomize=True, max_examples=60, deadline=None)


def rises(times: np.ndarray) -> bool:
    """Never falls, but for rounding."""
    return bool((np.diff(times) >= -1e-12 * times[:-1]).all())


def test_the_ideal_gemm_is_the_larger_of_bytes_and_flops() -> None:
    few, many = (Roofline(H100, ideal=True).gemm(m, 8192, 8192, "bf16") for m in (1.0, 8192.0))
    moved = 2 * (8192 * 8192 + 8192 + 8192)
    assert few.total_s == pytest.approx(moved / 3.35e12, rel=1e-12)
    assert (few.fixed_s, few.compute_s) == (0, 0)
    assert many.total_s == pytest.approx(2 * 8192**3 / 989.4e12, rel=1e-12)
    assert many.memory_s == 0


def test_ideal_attention_reads_the_cache_once() -> None:
    time = Roofline(H100, ideal=True).decode_attention(64.0, 64, 8, 128, "bf16")
    assert time.fixed_s == 0
    assert time.memory_s_per_token == pytest.approx(2 * 8 * 128 * 2 / 3.35e12, rel=1e-12)
    one = Roofline(H100, ideal=True).prefill_attention(1.0, 8191.0, 8, 8, 128, "bf16")
    assert one.total_s == pytest.approx((2 * 8192 + 2) * 8 * 128 * 2 / 3.35e12, rel=1e-12)
    assert Roofline(H100, ideal=True).elementwise(3.35e9, 7).total_s == pytest.approx(1e-3, rel=1e-12)


def test_the_body_is_a_p_norm_and_is_split_by_its_powers() -> None:
    memory, compute = fits.smooth_body(np.array([3.0]), np.array([4.0]), 2.0)
    assert memory + compute == pytest.approx(5.0)
    assert memory == pytest.approx(5.0 * 16 / 25)
    memory, compute = fits.smooth_body(np.array([0.0]), np.array([0.0]), 2.0)
    assert memory + compute == 0


@LAWS
@given(gpu=GPUS, n=SIDES, k=SIDES, dtype=DTYPES)
def test_a_gemm_rises_smoothly_with_its_tokens(gpu: str, n: int, k: int, dtype: str) -> None:
    tokens = np.arange(1.0, 4097.0)
    times = Roofline(load_gpu(gpu)).gemm(tokens, n, k, dtype).total_s
    assert rises(times)
    # no cliff: a token more never costs more than those before it did, but where it opens a new pair of 128-row tiles
    # (64 and 128 rows before) in the kernels that pay for whole tiles, or a new row of tiles of 64 or more where tiles
    # run in whole waves
    step = times[1:] / times[:-1]
    smooth = step <= 1 + 1 / tokens[:-1] + 1e-12
    opens = (tokens[:-1] % 256 == 0) | np.isin(tokens[:-1], (64, 128))
    whole = fits.arithmetic(load_gpu(gpu), dtype) != "bf16"
    waves = WEIGHT_BYTES[dtype] == 2 and load_gpu(gpu).sm_version in fits.IN_WAVES
    assert (smooth | (opens & whole) | ((tokens[:-1] % 64 == 0) & waves)).all()
    assert step[1:].max() < 2


@LAWS
@given(gpu=GPUS, n=SIDES, k=SIDES, dtype=DTYPES, m=st.floats(1, 16384))
def test_no_gemm_beats_its_printed_limits(gpu: str, n: int, k: int, dtype: str, m: float) -> None:
    fitted, ideal = (Roofline(load_gpu(gpu), ideal=kind).gemm(m, n, k, dtype) for kind in (False, True))
    assert fitted.total_s > ideal.total_s
    assert min(fitted.fixed_s, fitted.memory_s, fitted.compute_s) >= 0


@LAWS
@given(
    gpu=GPUS, kv_dtype=KV_DTYPES, window=st.sampled_from([None, 128, 4096]), chunk=st.sampled_from([1, 16, 512, 8192])
)
def test_prefill_attention_rises_with_prompt_and_context(
    gpu: str, kv_dtype: str, window: int | None, chunk: int
) -> None:
    backend, lengths = Roofline(load_gpu(gpu)), np.arange(1.0, 4097.0)
    by_prompt = backend.prefill_attention(lengths, 1024.0, 32, 8, 128, kv_dtype, window).total_s
    by_context = backend.prefill_attention(float(chunk), lengths, 32, 8, 128, kv_dtype, window).total_s
    assert rises(by_prompt)
    assert rises(by_context)
    assert (by_prompt[1:] / by_prompt[:-1]).max() < 1.03


@LAWS
@given(gpu=GPUS, kv_dtype=KV_DTYPES, kv_heads=st.sampled_from([1, 2, 8, 32]), context=st.floats(1, 131072))
def test_decode_attention_rises_with_sequences_and_contexts(
    gpu: str, kv_dtype: str, kv_heads: int, context: float
) -> None:
    sequences = np.arange(1.0, 1025.0)
    for time in (
        Roofline(load_gpu(gpu)).decode_attention(sequences, 32, kv_heads, 128, kv_dtype),
        Roofline(load_gpu(gpu)).decode_mla(sequences, 16, 512, 64, kv_dtype),
    ):
        slope = time.memory_s_per_token + time.compute_s_per_token
        assert time.fixed_s.shape == slope.shape == sequences.shape
        assert (slope > 0).all()
        assert rises(time.fixed_s + sequences * context * slope)


@LAWS
@given(
    gpu=GPUS,
    dtype=DTYPES,
    tiles=st.sampled_from([VLLM_TILES, VLLM_SMALL_TILES, SGLANG_TILES]),
    expert_parallel=st.sampled_from([1, 4, 32]),
)
def test_experts_rise_with_tokens(gpu: str, dtype: str, tiles: ExpertTiles, expert_parallel: int) -> None:
    tokens, local = np.arange(1.0, 4097.0), 256 // expert_parallel
    times = Roofline(load_gpu(gpu), tiles=tiles).moe(tokens, 7168, 2048, 256, local, 8, dtype).total_s
    assert rises(times)


@LAWS
@given(gpu=GPUS, dtype=DTYPES)
def test_arrays_and_numbers_agree(gpu: str, dtype: str) -> None:
    backend = Roofline(load_gpu(gpu))
    together = backend.gemm(np.array([1.0, 77.0]), 4096, 4096, dtype).total_s
    assert together[1] == pytest.approx(backend.gemm(77.0, 4096, 4096, dtype).total_s, rel=1e-14)


def test_bf16_tiles_run_in_whole_waves_before_hopper_unless_k_is_split() -> None:
    """108 SMs: 96 tiles of 256 x 128 are one wave and 112 are two, or one of all SMs with the partial sums through HBM."""
    a100, ideal = load_gpu("a100-sxm-80gb"), Roofline(load_gpu("a100-sxm-80gb"), ideal=True).constants("gemm", "bf16")
    m, n, k = np.array([1024.0]), np.array([3072.0, 3584.0]), 4096.0
    one_wave = 108 * 2 * 256 * 128 * k
    partial = 8 * m * n / 2.039e12 * 312e12
    assert fits._in_waves({}, a100, m, n, k) == pytest.approx([one_wave, 2 * m[0] * n[1] * k + partial[1]])
    assert 2 * m[0] * n[1] * k + partial[1] < 2 * one_wave
    # an H100's tiles share out what is left, those of an MI300X nobody measured, and perfect kernels waste nothing
    assert fits._in_waves({}, H100, m, n, k) == pytest.approx(2 * m * n * k)
    assert fits._in_waves({}, load_gpu("mi300x"), m, n, k) == pytest.approx(2 * m * n * k)
    assert fits._in_waves(ideal, a100, m, n, k) == pytest.approx(2 * m * n * k)
    # a last row of tiles with one token in it: 512 tokens more hide in the same wave
    few = fits._in_waves({}, a100, np.array([769.0, 1024.0]), np.array([3072.0]), 256.0)
    assert few[0] == few[1]


def test_a_token_is_written_to_the_cache_by_up_to_512_threads() -> None:
    """Keys of 64 elements leave room for eight times as many blocks on an SM as those of 512; more are no slower to write but
    for their bytes. A B200's cache is laid out by heads: a warp a head."""
    kv_heads = np.array([1.0, 4.0, 8.0, 32.0])
    assert attention_fits._write_threads(H100, kv_heads, np.array(64.0)).tolist() == [64, 256, 512, 512]
    assert attention_fits._write_threads(load_gpu("b200-sxm"), kv_heads, np.array(64.0)).tolist() == [
        64,
        256,
        512,
        1024,
    ]


def test_an_exponential_does_not_care_for_the_format_of_the_keys() -> None:
    for name in ("h100-sxm", "h200-sxm", "b200-sxm"):
        fits_ = load_gpu(name).kernels["prefill_attention"]
        assert fits_["fp8"].constants["softmax"] == fits_["bf16"].constants["softmax"]


def test_one_long_sequence_is_walked_at_the_pace_of_its_thread_blocks() -> None:
    """A lone context cannot draw the whole bandwidth: on a B200 the measured time of one KV head rises by 0.06 to 0.25 ns a
    token in bf16 and in fp8 alike, where their bytes would take 0.06 and 0.03. Many sequences are read from HBM."""
    backend = Roofline(load_gpu("b200-sxm"))

    def slope_s(sequences: float, dtype: str) -> float:
        time = backend.decode_attention(sequences, 8, 1, 128, dtype)
        return float(time.memory_s_per_token + time.compute_s_per_token)

    assert slope_s(1.0, "fp8") == pytest.approx(slope_s(1.0, "bf16"), rel=0.35)
    assert 0.06e-9 < slope_s(1.0, "bf16") < 0.35e-9
    assert slope_s(1024.0, "bf16") > 1.6 * slope_s(1024.0, "fp8")


def test_weight_only_int4_saves_bytes_and_no_flops() -> None:
    backend = Roofline(H100)
    bf16, int4 = (backend.gemm(np.array([1.0, 16384.0]), 8192, 8192, dtype) for dtype in ("bf16", "int4_wo"))
    assert int4.memory_s[0] / bf16.memory_s[0] == pytest.approx((0.5 + 2 / 128) / 2, rel=0.01)
    assert int4.total_s[1] == pytest.approx(bf16.total_s[1], rel=0.01)


def test_a_format_the_gpu_cannot_multiply_is_unpacked_to_bf16() -> None:
    a100 = load_gpu("a100-sxm-80gb")
    assert fits.arithmetic(a100, "fp8") == "bf16"
    assert fits.arithmetic(H100, "fp8") == "fp8"
    assert fits.arithmetic(H100, "nvfp4") == "bf16"
    assert fits.arithmetic(load_gpu("b200-sxm"), "nvfp4") == "fp4"
    bf16, fp8 = (Roofline(a100).gemm(8192.0, 8192, 8192, dtype).total_s for dtype in ("bf16", "fp8"))
    assert fp8 == pytest.approx(bf16, rel=0.02)


def test_each_vendor_multiplies_its_own_four_bits() -> None:
    """Blackwell nvfp4, CDNA 4 mxfp4; the other's is unpacked."""
    for name, own, other in (("b300-sxm", "nvfp4", "mxfp4"), ("mi355x", "mxfp4", "nvfp4")):
        gpu = load_gpu(name)
        assert fits.peak_flops_per_s(gpu, own) > 3.9 * fits.peak_flops_per_s(gpu, "bf16")
        assert fits.arithmetic(gpu, other) == "bf16"
        fp8, four_bits, unpacked = (Roofline(gpu).gemm(8192.0, 8192, 8192, d).total_s for d in ("fp8", own, other))
        assert four_bits < fp8 < unpacked
        assert fits.expert_arithmetic(gpu, "mxfp4") == "fp8"


@pytest.mark.parametrize(("name", "elder"), [("h200-nvl", "h200-sxm"), ("h100-pcie", "h100-sxm"), ("l4", "l40s")])
def test_a_gpu_of_the_same_silicon_takes_its_time_by_its_datasheet(name: str, elder: str) -> None:
    new, old = load_gpu(name), load_gpu(elder)
    assert attention_software(new) == attention_software(old)
    bandwidth, peak = new.hbm_bytes_per_s / old.hbm_bytes_per_s, new.flops_per_s["bf16"] / old.flops_per_s["bf16"]
    peak *= new.loaded_clock / old.loaded_clock
    for dtype in ("bf16", "fp8_block"):
        for tokens, faster in ((1.0, bandwidth), (16384.0, peak)):
            mine, its = (Roofline(gpu).gemm(tokens, 16384, 16384, dtype) for gpu in (new, old))
            assert (its.memory_s + its.compute_s) / (mine.memory_s + mine.compute_s) == pytest.approx(faster, rel=0.04)


def test_fewer_heads_than_a_tile_of_flashmla_holds_take_as_long() -> None:
    """64 of them, over an fp8 cache on Hopper; the same latents in bf16, and the B200's kernels, take each head for itself."""

    def multiplied_s(gpu: Gpu, heads: int, kv_dtype: str) -> float:
        # so many sequences that nothing but products counts, and none of the fixed cost that each head has
        c = {
            **Roofline(gpu).constants("decode_mla", kv_dtype),
            "memory": 1e9,
            "split": 1e9,
            "stream": 1e9,
            "overlap": 1.0,
        }
        return float(attention_fits.decode_mla(c, gpu, 1024.0, heads, 512, 64, kv_dtype).compute_s_per_token)

    b200 = load_gpu("b200-sxm")
    assert (
        multiplied_s(H100, 8, "fp8")
        == multiplied_s(H100, 64, "fp8")
        == pytest.approx(multiplied_s(H100, 128, "fp8") / 2)
    )
    for gpu, kv_dtype in ((H100, "bf16"), (b200, "bf16"), (b200, "fp8")):
        assert multiplied_s(gpu, 8, kv_dtype) == pytest.approx(multiplied_s(gpu, 64, kv_dtype) / 8)


def test_experts_elsewhere_cost_kernels_that_know_nothing_of_ranks() -> None:
    """Of 8,192 tokens, an eighth of whose picks is routed here, Triton's kernels write and activate the others' rows too; a
    library that sums in its second product does hardly anything for them."""

    def passed_s(dtype: str, local: int) -> float:
        return float(Roofline(H100).moe(8192.0, 4096, 1536, 128, local, 8, dtype).memory_s)

    here, elsewhere = 128, 16
    rows = 8192 * 8 * (1 - elsewhere / here)
    written_s = rows * 2 * (5 * 1536 + 4096) / H100.hbm_bytes_per_s
    weights_s = 3 * 128 * 4096 * 1536 * 2 / H100.hbm_bytes_per_s
    assert passed_s("bf16", elsewhere) > written_s + weights_s * elsewhere / here
    assert passed_s("fp8", elsewhere) < written_s


def test_more_exponentials_make_attention_faster_but_not_its_products() -> None:
    ultra, blackwell = load_gpu("b300-sxm"), load_gpu("b200-sxm")
    assert softmax_s(ultra) / softmax_s(blackwell) == pytest.approx((1 / 32 + 6 / 128) / (1 / 16 + 6 / 128))
    mine, its = (
        Roofline(gpu).prefill_attention(16384.0, 0.0, 32, 8, 128, "bf16").total_s for gpu in (ultra, blackwell)
    )
    assert 0.8 < mine / its < 0.9


def test_fp8_pays_for_quantising_its_input() -> None:
    backend = Roofline(H100)
    fp8, bf16 = (backend.gemm(np.array([16.0, 8192.0]), 8192, 8192, dtype).total_s for dtype in ("fp8", "bf16"))
    assert 0.5 < fp8[0] / bf16[0] < 0.8
    # twice the FLOP/s, but lower reach of them, and 8192 x 8192 elements to read in bf16 and write in fp8
    assert 0.6 < fp8[1] / bf16[1] < 0.85


def test_an_engine_never_pays_for_a_host_that_measured_without_graphs() -> None:
    fit = H100.kernels["gemm"]["fp8_block"].constants
    assert fit["host_s"] > 50e-6
    assert Roofline(H100).gemm(1.0, 2048, 7168, "fp8_block").total_s < 20e-6


def test_a_host_launches_what_the_shape_needs() -> None:
    """vLLM on Hopper: below 32 tokens one kernel; from there on two, and a third where 4 does not divide the tokens."""
    c = {"host_s": 85e-6, "few_host_s": 60e-6, "align_host_s": 10e-6}
    tokens = np.array([1.0, 16.0, 31.0, 32.0, 33.0, 34.0, 4096.0, 4097.0])
    on_hopper, on_blackwell = (fits.gemm_host_s(c, gpu, tokens) for gpu in (H100, load_gpu("b200-sxm")))
    assert np.round(on_hopper * 1e6).tolist() == [60, 60, 60, 85, 95, 95, 85, 95]
    assert np.round(on_blackwell * 1e6).tolist() == [95, 85, 95, 85, 95, 95, 85, 95]
    assert fits.gemm_host_s({"launch_s": 5e-6}, H100, tokens) is None


def test_a_scale_for_128_elements_costs_nothing_a_token() -> None:
    """Its thread blocks take groups, not tokens: no fixed cost grows with their number, and bytes cost what they cost."""
    tokens = np.array([1024.0, 8192.0])
    block, token = (Roofline(H100).gemm(tokens, 4096, 4096, dtype).fixed_s for dtype in ("fp8_block", "fp8"))
    assert block[0] == block[1]
    row_s = H100.kernels["gemm"]["fp8"].constants["quantise_row_s"]
    assert token[1] - token[0] == pytest.approx(7168 * row_s / 132)


def test_a_window_costs_what_it_shows() -> None:
    long, window = np.array([16384.0]), 1024
    assert attention_fits.attended_pairs(long, np.array([0.0]), None) == 16384 * 16385 / 2
    inside = attention_fits.attended_pairs(np.array([4.0]), np.array([0.0]), 3)
    assert inside == 1 + 2 + 3 + 3
    backend = Roofline(H100)
    full, cut = (backend.prefill_attention(long, 0.0, 32, 8, 128, "bf16", kind).total_s[0] for kind in (None, window))
    assert 4 < full / cut < 8


def test_sequences_of_one_kernel_add_up() -> None:
    backend = Roofline(H100)
    one = backend.prefill_attention(1024.0, 0.0, 32, 8, 128, "bf16")
    c = backend.constants("prefill_attention", "bf16")
    four = attention_fits.prefill_attention(c, H100, 4.0, 1024.0, 0.0, 32, 8, 128, "bf16")
    assert four.fixed_s == one.fixed_s
    assert four.memory_s + four.compute_s == pytest.approx(4 * (one.memory_s + one.compute_s))


def test_experts_touched_by_uniform_choice() -> None:
    assert fits.experts_touched(1.0, 128, 128, 8) == pytest.approx(8)
    assert fits.experts_touched(2.0, 128, 128, 8) == pytest.approx(128 * (1 - (120 / 128) ** 2))
    assert fits.experts_touched(4096.0, 128, 16, 8) == pytest.approx(16)
    assert fits.experts_touched(3.0, 8, 8, 8) == 8


def test_known_kernels_on_the_h100() -> None:
    backend = Roofline(H100)

    def total(time: KernelTime) -> float:
        return float(time.total_s)

    # best bf16 matmul measured: 794.5 TFLOP/s, 2048 x 2048 x 13312 (stas00/ml-engineering)
    assert 2 * 2048 * 2048 * 13312 / total(backend.gemm(2048.0, 2048, 13312, "bf16")) == pytest.approx(
        794.5e12, rel=0.15
    )
    # FlashAttention-3 forward, causal, head_dim 128, 16k: about 610 TFLOP/s bf16 (FlashAttention-3, figure 5)
    flops = 4 * 16 * 128 * 16384**2 / 2
    assert flops / total(backend.prefill_attention(16384.0, 0.0, 16, 16, 128, "bf16")) == pytest.approx(
        610e12, rel=0.15
    )
    # one token through a 33.6 MB matrix: 15 us (vLLM 0.24 table of aiconfigurator)
    assert total(backend.gemm(1.0, 4096, 4096, "bf16")) == pytest.approx(15.05e-6, rel=0.1)


def test_unknown_formats_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="did you mean 'int8_wo'"):
        Roofline(H100).gemm(1.0, 512, 512, "int8wo")
    with pytest.raises(InputError, match=r"precision\.kv_cache"):
        Roofline(H100).decode_attention(1.0, 8, 8, 128, "int4")


def test_scales_known_in_advance_spare_the_quantisation_and_take_the_best_kernel() -> None:
    dynamic, static = (Roofline(H100, quantisation=how) for how in ("dynamic", "fused"))
    for shape in ((1.0, 8192, 8192), (8192.0, 8192, 8192)):
        assert static.gemm(*shape, "fp8").total_s < dynamic.gemm(*shape, "fp8").total_s
        assert static.gemm(*shape, "bf16").total_s == dynamic.gemm(*shape, "bf16").total_s
    many = static.moe(16384.0, 4096, 14336, 8, 8, 2, "fp8").total_s
    assert many < 0.8 * dynamic.moe(16384.0, 4096, 14336, 8, 8, 2, "fp8").total_s
    assert many > 6 * 32768 * 4096 * 14336 / 1978.9e12 / 0.7
    few = static.moe(1.0, 4096, 14336, 8, 8, 2, "fp8").total_s
    assert few == pytest.approx(dynamic.moe(1.0, 4096, 14336, 8, 8, 2, "fp8").total_s, rel=0.02)


def test_a_static_scale_costs_a_pass_over_the_activations_and_no_more() -> None:
    """4096 x 8192 elements, read in bf16 and written in fp8: 101 MB at some 2.9 TB/s. Tables of TensorRT-LLM 1.3 have 34.5 us."""
    times = {
        how: float(Roofline(H100, quantisation=how).gemm(4096.0, 10240, 8192, "fp8").total_s)
        for how in ("dynamic", "static", "none")
    }
    assert times["dynamic"] > times["static"] > times["none"]
    plain = Roofline(H100, quantisation="static")
    assert plain.gemm(4096.0, 10240, 8192, "bf16").total_s == Roofline(H100).gemm(4096.0, 10240, 8192, "bf16").total_s
    moved_s = float(plain.gemm(4096.0, 10240, 8192, "fp8").memory_s) - float(
        Roofline(H100, quantisation="none").gemm(4096.0, 10240, 8192, "fp8").memory_s
    )
    assert moved_s == pytest.approx(34.5e-6, rel=0.1)


def test_scales_are_the_engines_affair_unless_somebody_says_what_they_are() -> None:
    assert [quantised(engine, None) for engine in ("dynamic", "static", "fused")] == ["dynamic", "static", "fused"]
    assert [quantised(engine, True) for engine in ("dynamic", "static", "fused")] == ["static", "static", "fused"]
    assert {quantised(engine, False) for engine in ("dynamic", "static", "fused")} == {"dynamic"}


def test_blocks_bring_scales_of_their_own_whatever_the_engine_knows() -> None:
    of = {
        how: Roofline(H100, quantisation=how).gemm(4096.0, 8192, 8192, "fp8_block").total_s
        for how in get_args(Quantisation)
    }
    assert of["dynamic"] == of["static"] == of["fused"] > of["none"]


@LAWS
@given(gpu=GPUS, n=SIDES, k=SIDES, dtype=DTYPES, m=st.floats(1, 16384))
def test_an_engine_pays_what_a_bench_with_a_warm_l2_does_not(gpu: str, n: int, k: int, dtype: str, m: float) -> None:
    """A product is the slower the more of its weights come from HBM, which for an engine is all of them."""
    device = load_gpu(gpu)
    c = Roofline(device).constants("gemm", dtype if fits.arithmetic(device, dtype) != "bf16" else "bf16")
    shares = np.linspace(0.0, 1.0, 11)
    times = fits.gemm(c, device, m, n, k, dtype, shares).total_s
    assert rises(times)
    assert times[-1] == pytest.approx(fits.gemm(c, device, m, n, k, dtype).total_s, rel=1e-12)


def test_what_fits_in_l2_a_bench_reads_from_there() -> None:
    """An L40S has 96 MB of L2: 8 MB of weights were read at 1.36 times the bandwidth of HBM; of 512 MB nothing is left."""
    l40s = load_gpu("l40s")
    c = l40s.kernels["gemm"]["bf16"].constants
    cold = fits.from_l2(c, l40s, np.array([1e6, 8e6, 16e6, 32e6, 512e6]))
    assert rises(cold)
    assert cold[0] == pytest.approx(c["warm_time"], rel=1e-3)
    assert cold[-1] == pytest.approx(1.0, rel=1e-4)
    on_the_bench, in_an_engine = (fits.gemm(c, l40s, 1.0, 2048, 2048, "bf16", share) for share in (cold[1], 1.0))
    read_s = 2048 * 2048 * 2 / l40s.hbm_bytes_per_s
    assert on_the_bench.memory_s < read_s < in_an_engine.memory_s


def test_prompts_attend_in_bf16_where_an_engine_has_decode_kernels_of_its_own() -> None:
    """TensorRT-LLM casts a prompt's keys to the format of the cache after they were multiplied; vLLM reads them from it."""
    own, default = Roofline(H100, fp8_attention=0.35), Roofline(H100)
    shape = (4096.0, 0.0, 32, 8, 128)
    assert prompt_dtype("fp8", 0.35) == "bf16"
    assert own.prefill_attention(*shape, "fp8") == own.prefill_attention(*shape, "bf16")
    assert default.prefill_attention(*shape, "fp8") != default.prefill_attention(*shape, "bf16")
    assert (
        own.decode_attention(64.0, 32, 8, 128, "fp8").fixed_s < own.decode_attention(64.0, 32, 8, 128, "bf16").fixed_s
    )


@pytest.mark.parametrize("prefill", [True, False])
def test_a_measured_module_ran_a_chain_that_no_engine_runs(prefill: bool) -> None:
    """Some 40 us for one token, of an H100's 98 in all; then 12 ns a token, and 14 more where its L2 has no room for them. More
    heads take longer. The B200's modules were measured without, and so were TensorRT-LLM's everywhere."""
    tokens = np.array([1.0, 16.0, 512.0, 1024.0, 65536.0, 131072.0])

    def measured_s(gpu: Gpu, heads: int, engine: str) -> Floats:
        return beside_s(Roofline(gpu), tokens, heads, "bf16", prefill=prefill, module=True, engine=engine)

    chain = measured_s(H100, 16, "vllm") - measured_s(H100, 16, "trtllm")
    assert chain[0] == pytest.approx(40.0e-6, rel=0.01)
    assert rises(chain)
    heads_s = 16 * 217 / (H100.sm_count * H100.boost_hz)
    assert (chain[3] - chain[2]) / 512 == pytest.approx(12e-9 + heads_s, rel=0.1)
    assert (chain[5] - chain[4]) / 65536 == pytest.approx(26e-9 + heads_s, rel=0.05)
    assert (measured_s(H100, 128, "vllm") - measured_s(H100, 128, "trtllm") > chain).all()
    for name in MEASURED_FUSED:
        assert (measured_s(load_gpu(name), 16, "vllm") == measured_s(load_gpu(name), 16, "trtllm")).all()


def test_an_operator_of_vllm_expands_its_latents_itself() -> None:
    """A prompt's keys and values of 16 heads are one GEMM of the operator, its weights read from HBM where much else is.
    TensorRT-LLM's come without."""
    one = Roofline(load_gpu("a100-sxm-80gb"))
    vllm, trtllm = (
        beside_s(one, 4096.0, 16, "bf16", prefill=True, module=False, engine=engine, cache_bytes=1e12)
        for engine in ("vllm", "trtllm")
    )
    assert float(vllm) == pytest.approx(float(one.gemm(4096.0, 16 * 256, 512, "bf16").total_s))
    assert float(trtllm) == 0.0


def test_the_chain_quantised_the_queries_of_many_heads_faster_than_fused_kernels_do() -> None:
    """Over an fp8 cache on a B300: more for few heads than in bf16, less for 128; so the attention that is left is dearer."""
    b300 = Roofline(load_gpu("b300-sxm"))

    def chain_s(heads: int, kv_dtype: str) -> float:
        vllm, trtllm = (
            beside_s(b300, 512.0, heads, kv_dtype, prefill=False, module=True, engine=engine)
            for engine in ("vllm", "trtllm")
        )
        return float(vllm - trtllm)

    assert chain_s(1, "fp8") > chain_s(1, "bf16")
    assert chain_s(128, "fp8") < 0 < chain_s(128, "bf16")


def test_kernels_that_were_tried_have_tiles_of_192_rows() -> None:
    """160 tokens take 192 rows of an engine that tries its kernels, 256 of one that picks them by rule; neither is faster with
    more tokens."""
    tokens = np.arange(1.0, 600.0)
    static, dynamic = (
        Roofline(H100, quantisation=how).gemm(tokens, 28672, 8192, "fp8") for how in ("fused", "dynamic")
    )
    assert rises(static.total_s)
    assert rises(dynamic.total_s)
    assert fits._rows(np.array([64.0, 160.0, 200.0]), 1.0, True).tolist() == [64, 192, 256]
    assert fits._rows(np.array([64.0, 160.0, 200.0]), 1.0, False).tolist() == [64, 256, 256]


@pytest.mark.parametrize("name", ["l40s", "h100-sxm", "h200-sxm", "b200-sxm"])
def test_no_engine_reads_an_fp8_cache_faster_than_memory(name: str) -> None:
    """TensorRT-LLM's kernels beat vLLM's on an fp8 cache, but on an L40S, whose measured relatives are already limited by
    memory, a share of the time would be 1.4 times the printed bandwidth."""
    from sim.cost.step import StepCost
    from sim.engine.deployment import Deployment
    from sim.scenario import Scenario

    scenario = Scenario.from_dict(
        {
            "model": "llama-3.1-8b",
            "precision": {"weights": "fp8", "kv_cache": "fp8"},
            "cluster": {"topology": "dgx-h100", "gpu": name},
            "engine": {"preset": "trtllm"},
            "workload": {
                "arrivals": {"kind": "burst"},
                "lengths": {"kind": "fixed", "input_tokens": 16, "output_tokens": 16},
                "num_requests": 1,
            },
        },
        where="here",
    )
    cost = Deployment.of(scenario).cost(0)
    assert isinstance(cost, StepCost)
    token_bytes = 32 * 2 * 8 * 128
    assert min(cost.full_slope_s[1:]) > 0.999 * token_bytes / (load_gpu(name).hbm_bytes_per_s * 0.9)


def test_tuned_kernels_read_as_fast_as_the_best_that_was_measured():
    """On an A100 products in bf16 reach 78 % of the HBM bandwidth in vLLM's tables, experts 87 %."""
    a100 = load_gpu("a100-sxm-80gb")
    usual, tuned = Roofline(a100), Roofline(a100, tuned_reads=True)
    best = a100.kernels["moe"]["bf16_small"].constants["memory"]
    assert best > fits.weight_reads(a100.kernels["gemm"]["bf16"].constants, a100)
    read_s = 8192 * 28672 * 2 / a100.hbm_bytes_per_s
    saved_s = usual.gemm(1.0, 28672, 8192, "bf16").memory_s - tuned.gemm(1.0, 28672, 8192, "bf16").memory_s
    reads = fits.weight_reads(usual.constants("gemm", "bf16"), a100)
    assert float(saved_s) == pytest.approx(read_s / reads - read_s / best, rel=0.02)
    # weights that must be unpacked are another matter
    assert tuned.gemm(1.0, 4096, 4096, "int4_wo") == usual.gemm(1.0, 4096, 4096, "int4_wo")
    slopes = [kernels.decode_attention(256.0, 32, 32, 128, "bf16").memory_s_per_token for kernels in (tuned, usual)]
    assert slopes[0] < slopes[1]


def test_an_engines_own_kernel_splits_the_keys_of_heads_that_share_none() -> None:
    """One sequence of 3,072 tokens, 32 heads of 128 elements, 50 MB: FlashAttention-2 leaves 76 of 108 SMs of an A100 idle, and
    takes two and a half times as long as HBM."""
    a100 = load_gpu("a100-sxm-80gb")
    read_s = 3072 * 2 * 32 * 128 * 2 / a100.hbm_bytes_per_s
    alone, split = (
        float(Roofline(a100, tuned_reads=tuned).decode_attention(1.0, 32, 32, 128, "bf16").memory_s_per_token) * 3072
        for tuned in (False, True)
    )
    assert alone > 2.5 * read_s
    assert read_s < split < 1.3 * read_s


@pytest.mark.parametrize("name", ["a100-sxm-80gb", "h100-sxm", "l40s"])
def test_int8_by_int8_reads_as_packed_int8_and_multiplies_sooner(name: str) -> None:
    prices = Roofline(load_gpu(name))
    few, many = ({dtype: prices.gemm(m, 8192, 8192, dtype) for dtype in ("int8", "int8_wo")} for m in (1.0, 8192.0))
    assert few["int8"].memory_s == pytest.approx(few["int8_wo"].memory_s, rel=0.15)
    assert many["int8"].total_s < 0.8 * many["int8_wo"].total_s


def test_where_no_tensor_core_takes_int8_it_is_unpacked() -> None:
    prices = Roofline(load_gpu("b300-sxm"))
    assert prices.gemm(8192.0, 8192, 8192, "int8").compute_s == prices.gemm(8192.0, 8192, 8192, "int8_wo").compute_s
