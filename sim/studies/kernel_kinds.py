"""What each kernel kind fits: its table, its starting constants, and its prediction for the rows of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim.cost import attention_fits, fits
from sim.cost.expert_tiles import SMALL, TRITON_BLOCKS, TUNED
from sim.cost.fits import Constants
from sim.cost.formats import kv_bytes, weight_bytes
from sim.cost.kernels import DecodeAttentionTime, Floats
from sim.cost.mla_module import MODEL, NOPE, ROPE, V, beside_s, measured_decode_s
from sim.cost.roofline import Roofline
from sim.hardware.gpu import Gpu
from sim.studies.kernel_tables import Table

Predict = Callable[[Constants, Gpu, Table], Floats]


@dataclass(frozen=True, slots=True)
class KernelKind:
    """One fit: kernel kind x dtype."""

    kind: str
    dtype: str
    file: str
    where: Mapping[str, str | int]
    shape: Sequence[str]
    start: Mapping[str, float]
    """Constants to fit, and where shared ones start; fixed costs (`_s`) in cycles of the boost clock."""
    predict: Predict
    headline: Callable[[Table], NDArray[np.bool_]]
    """Rows the fit is made on and its headline error counts; the others are reported too."""
    along: str = ""
    """A column of which more cannot make a kernel faster: rows that say so are spoilt. Empty: not looked for."""
    held: Mapping[str, str] = field(default_factory=dict)
    """Constants that are not fitted but taken from another dtype of the same kind: name -> dtype."""


def total_s(time: DecodeAttentionTime, context_tokens: Floats) -> Floats:
    """Duration of a decode attention kernel over contexts that sum to `context_tokens`."""
    return time.fixed_s + context_tokens * (time.memory_s_per_token + time.compute_s_per_token)


HOST = ("host_s", "few_host_s", "align_host_s")
"""Constants of a host that launched kernel by kernel. An engine with CUDA graphs never pays them."""


def on_host(host_s: Floats | float | None, kernels_s: Floats) -> Floats:
    """What a measurement without CUDA graphs sees: the host's launches, or the kernels, whichever is longer."""
    return kernels_s if host_s is None else np.maximum(kernels_s, host_s)


def _gemm(dtype: str) -> Predict:
    def predict(c: Constants, gpu: Gpu, table: Table) -> Floats:
        cold = fits.from_l2(c, gpu, table["n"] * table["k"] * weight_bytes(dtype))
        kernels_s = fits.gemm(c, gpu, table["m"], table["n"], table["k"], dtype, cold).total_s
        return on_host(fits.gemm_host_s(c, gpu, table["m"]), kernels_s)

    return predict


def _prefill(dtype: str) -> Predict:
    def predict(c: Constants, gpu: Gpu, table: Table) -> Floats:
        return attention_fits.prefill_attention(
            c,
            gpu,
            table["batch_size"],
            table["isl"],
            0.0,
            table["num_heads"],
            table["num_key_value_heads"],
            table["head_dim"],
            dtype,
        ).total_s

    return predict


def _decode(dtype: str) -> Predict:
    def predict(c: Constants, gpu: Gpu, table: Table) -> Floats:
        heads, kv_heads, head_dim = table["num_heads"], table["num_key_value_heads"], table["head_dim"]
        context = table["batch_size"] * (table["step"] + 1)
        cold = fits.from_l2(c, gpu, 2 * context * kv_heads * head_dim * kv_bytes(dtype))
        time = attention_fits.decode_attention(c, gpu, table["batch_size"], heads, kv_heads, head_dim, dtype, cold)
        return total_s(time, context)

    return predict


def experts_with_tokens(table: Table) -> Floats:
    """Experts of this rank that the bench sends tokens to."""
    experts, picks = table["num_experts"], table["num_tokens"] * table["topk"]
    local = np.maximum(experts / table["moe_ep_size"], 1)
    balanced = np.minimum(local, np.maximum(picks * local / experts, 1))
    if (table["distribution"] == "balanced").all():
        return np.asarray(balanced)
    return np.asarray(np.maximum(local * _share_with_tokens(table["num_tokens"], picks / experts), 1.0))


def _share_with_tokens(tokens: Floats, mean: Floats) -> Floats:
    """Share of the experts that get any of `tokens` in the bench's skewed routing, `mean` picks an expert.

    Tokens an expert are spread evenly in their logarithm between 1 and 0.8 of all tokens (between 0.01 and 2 where there are
    fewer picks than experts), scaled to their sum and rounded; what rounding loses goes to experts without (aiconfigurator,
    the collector's sample_power_law, exponent near 1).
    """
    few = mean <= 1
    low, high = np.where(few, 0.01, 1.0), np.where(few, 2.0, np.maximum(0.8 * tokens, 2.0))
    stretch = np.log(high / low)
    most = high * mean * stretch / (high - low)
    beyond = [np.clip(np.log(most / (n + 0.5)) / stretch, 0.0, 1.0) for n in range(6)]  # of more than n tokens
    lost = np.where(few, np.maximum(mean - sum(beyond), 0.0), 0.0)
    return np.asarray(np.minimum(beyond[0] + lost, 1.0))


def _moe(dtype: str) -> Predict:
    def predict(c: Constants, gpu: Gpu, table: Table) -> Floats:
        tokens, experts, pairs = table["num_tokens"], table["num_experts"], table["num_tokens"] * table["topk"]
        local = np.maximum(experts / table["moe_ep_size"], 1)
        routing = fits.Routing(tokens, local, experts_with_tokens(table), pairs * local / experts, pairs)
        hidden, columns = table["hidden_size"], table["inter_size"] / table["moe_tp_size"]
        cold = fits.from_l2(c, gpu, 3 * routing.touched * hidden * columns * weight_bytes(dtype))
        return fits.moe(c, gpu, routing, hidden, columns, dtype, cold).total_s

    return predict


def _prefill_mla(module: bool) -> Predict:
    def predict(c: Constants, gpu: Gpu, table: Table) -> Floats:
        sequences, new, heads = table["batch_size"], table["isl"], table["num_heads"]
        own = attention_fits.prefill_mla(c, gpu, sequences, new, 0.0, heads, NOPE + ROPE, V).total_s
        beside = beside_s(Roofline(gpu), sequences * new, heads, "bf16", prefill=True, module=module)
        return on_host(c.get("host_s"), own + beside)

    return predict


def _decode_mla(dtype: str, module: bool) -> Predict:
    def predict(c: Constants, gpu: Gpu, table: Table) -> Floats:
        sequences, heads = table["batch_size"], table["num_heads"]
        # a module's table counts the new token in `step`, an operator's does not
        context = sequences * (table["step"] + (0 if module else 1))
        measured_s = measured_decode_s(c, Roofline(gpu), sequences, heads, context, dtype, module=module)
        return on_host(c.get("host_s"), measured_s)

    return predict


def _common_software(table: Table) -> NDArray[np.bool_]:
    """Rows that the library of most rows served: the constants describe one implementation, and for a few models an engine
    takes another. Triton and CUTLASS count as one: vLLM on Hopper takes the one for slices of experts, the other for whole."""
    if "kernel_source" not in table:
        return np.ones(len(table["latency_s"]), dtype=bool)
    names, place, counts = np.unique(table["kernel_source"], return_inverse=True, return_counts=True)
    libraries = np.array([library(str(name)) for name in names])
    if "triton" in libraries:
        libraries[libraries == "cutlass"] = "triton"
    most = max(dict.fromkeys(libraries), key=lambda one: counts[libraries == one].sum())
    return np.asarray((libraries == most)[place])


def library(kernel_source: str) -> str:
    """The library of an expert kernel, as its name in the tables tells."""
    return next((name for name in ("trtllm", "cutlass", "marlin") if name in kernel_source), "triton")


def _large(table: Table) -> NDArray[np.bool_]:
    return (table["n"] >= 512) & (table["k"] >= 512)


# A served request brings prompts, and has contexts, of hundreds of tokens. Heads beyond 256 wide, and the Triton kernel
# that stands in where a GPU's own kernels lack a shape, are other kernels than those the constants describe.
_SERVED_TOKENS = 256


def _served(table: Table, tokens: Floats) -> NDArray[np.bool_]:
    return np.asarray(
        (tokens >= _SERVED_TOKENS) & (table["head_dim"] <= 256) & (table["kernel_source"] != "vllm_triton_attn")
    )


def _prompts(table: Table) -> NDArray[np.bool_]:
    return _served(table, table["isl"])


def _contexts(table: Table) -> NDArray[np.bool_]:
    return _served(table, table["step"] + 1)


def _mla_prompts(table: Table) -> NDArray[np.bool_]:
    return np.asarray(table["isl"] >= _SERVED_TOKENS)


def _mla_contexts(table: Table) -> NDArray[np.bool_]:
    # one head is another kernel (Triton's, without tensor cores), and 128 ranks of DeepSeek-V3
    return np.asarray((table["step"] + 1 >= _SERVED_TOKENS) & (table["num_heads"] > 1))


_US = 1900.0  # cycles of a microsecond at the clock of recent GPUs
_WARM = {"warm_l2": 0.3, "warm_time": 0.5}
_GEMM = _WARM | {
    "launch_s": 2 * _US, "depth_s": 2 * _US, "depth_power": 0.5, "compute": 0.8, "serial": 0.3, "memory": 0.85,
    "activation": 0.6, "overlap": 3.0,
}  # fmt: skip
_QUANTISE = {"quantise_row_s": 1 * _US, "quantise": 6.0, "whole": 0.5}
_PREFILL = {
    "launch_s": 4 * _US, "block_s": 1 * _US, "row_s": 0.1 * _US, "compute": 0.8, "softmax": 1.2, "tile": 30.0, "kv": 3.0,
    "tail": 0.5,
}  # fmt: skip
_DECODE = _WARM | {
    "launch_s": 4 * _US, "tile_s": 1 * _US, "compute": 0.5, "memory": 0.85, "overlap": 2.0, "key_s": 0.0003 * _US,
}  # fmt: skip
_MLA_PREFILL = {
    "launch_s": 20 * _US, "row_s": 0.5 * _US, "compute": 0.5, "softmax": 1.2, "tile": 100.0, "kv": 4.0, "overlap": 1.5,
    "tail": 0.5,
}  # fmt: skip
_MLA_DECODE = {
    "launch_s": 20 * _US, "tile_s": 2 * _US, "head_s": 0.3 * _US, "compute": 0.5, "memory": 0.8, "overlap": 2.0, "split": 30.0,
}  # fmt: skip
_MLA_DECODE_IN_BLOCKS = {
    "launch_s": 2 * _US, "tile_s": 1 * _US, "head_s": 1 * _US, "key_s": 0.07 * _US, "memory": 0.8, "overlap": 2.0,
}  # fmt: skip
_MOE = _WARM | {
    "launch_s": 12 * _US, "depth_s": 10 * _US, "compute": 0.6, "memory": 0.8, "tile": 16.0, "gather": 8.0, "overlap": 2.0,
    "combine": 8.0, "passes": 0.5, "expert_s": 1 * _US, "map_s": 2 * _US,
}  # fmt: skip
# on one rank alone, with Triton's kernel: it makes all passes, and where ranks pick out their own it takes 4 to 9 us
_MOE_SMALL = {name: value for name, value in _MOE.items() if name != "passes"} | {"narrow": 0.6, "map_s": 6 * _US}
_LIKE_SMALL = ("memory", *_WARM)
_MOE_BLOCKS = {name: value for name, value in _MOE_SMALL.items() if name not in (*_LIKE_SMALL, "narrow")} | {
    "stream": 10.0
}
_MLA_HOST = {"host_s": 300 * _US}
_MLA_MODULE: Mapping[str, str] = {"gemm_type": "bfloat16", "mla_dtype": "bfloat16", "model": MODEL}
_TABLE_NAMES = {"bf16": "bfloat16"}
MOE_NAMES = {"bf16": "bfloat16", "int4_wo": "int4_wo", "mxfp4": "w4a16_mxfp4", "mxfp4_mxfp8": "w4a8_mxfp4_mxfp8"}
"""`moe_dtype` of the tables, where it is not the dtype's name."""


# What a measurement without CUDA graphs hides behind the host
_BEHIND_HOST = ("launch_s", "depth_s", "depth_power", "whole", *_WARM)
_BLOCK_SCALED = {
    "compute": 0.8, "serial": 0.3, "overlap": 3.0, "quantise": 6.0,
    "host_s": 80 * _US, "few_host_s": 60 * _US, "align_host_s": 10 * _US,
}  # fmt: skip
# A quantised operand is unpacked by the SMs; HBM streams no faster or slower for it than in bf16.
_STREAM, _LIKE_BF16 = {"stream": 10.0}, {"memory": "bf16"}
# nor does the bench leave more of one format's experts in L2 than of another's
_EXPERTS_LIKE_BF16 = _LIKE_BF16 | dict.fromkeys(_WARM, "bf16")


def _gemms() -> list[KernelKind]:
    kinds = []
    for dtype in ("bf16", "fp8", "fp8_block", "nvfp4"):
        start: Mapping[str, float] = _GEMM if dtype == "bf16" else _GEMM | _QUANTISE
        held: dict[str, str] = {}
        if dtype == "fp8_block":
            # its activations are quantised by another kernel, so DeepGEMM streams them as it does weights
            start, held = _BLOCK_SCALED, dict.fromkeys(_BEHIND_HOST, "fp8") | _LIKE_BF16
        where: dict[str, str | int] = {"gemm_dtype": _TABLE_NAMES.get(dtype, dtype)}
        file, shape = "gemm/gemm_perf.parquet", ("m", "n", "k")
        kinds.append(KernelKind("gemm", dtype, file, where, shape, start, _gemm(dtype), _large, "m", held))
    return kinds


def _attentions() -> list[KernelKind]:
    kinds = []
    shape = ("batch_size", "num_heads", "num_key_value_heads", "head_dim")
    for dtype in ("bf16", "fp8"):
        where: dict[str, str | int] = {"kv_cache_dtype": _TABLE_NAMES.get(dtype, dtype), "window_size": 0}
        file = "attention/context_attention_perf.parquet"
        predict = _prefill(dtype)
        fp8 = {} if dtype == "bf16" else {"wide": 0.3, "transpose": 8.0}
        # an exponential does not care for the format of the keys
        start, held = (_PREFILL, {}) if dtype == "bf16" else (_PREFILL | fp8, {"softmax": "bf16"})
        kinds.append(
            KernelKind("prefill_attention", dtype, file, where, (*shape, "isl"), start, predict, _prompts, held=held)
        )
        file = "attention/generation_attention_perf.parquet"
        start, held = (_DECODE, {}) if dtype == "bf16" else (_DECODE | fp8, _LIKE_BF16)
        predict = _decode(dtype)
        kinds.append(
            KernelKind("decode_attention", dtype, file, where, (*shape, "step"), start, predict, _contexts, held=held)
        )
    return kinds


def _mlas() -> list[KernelKind]:
    """Whole modules, measured in CUDA graphs; on the A100 the operator alone, without."""
    kinds = [*_mlas_in_blocks()]
    prompts, steps = ("batch_size", "num_heads", "isl"), ("batch_size", "num_heads", "step")
    for dtype in ("bf16", "fp8"):
        stream, held = ({}, {}) if dtype == "bf16" else (_STREAM, _LIKE_BF16)
        where: dict[str, str | int] = {"kv_cache_dtype": _TABLE_NAMES.get(dtype, dtype), **_MLA_MODULE}
        file, predict = "mla/mla_context_module_perf.parquet", _prefill_mla(True)
        kinds.append(KernelKind("prefill_mla", dtype, file, where, prompts, _MLA_PREFILL, predict, _mla_prompts))
        file, predict, start = "mla/mla_generation_module_perf.parquet", _decode_mla(dtype, True), _MLA_DECODE | stream
        kinds.append(KernelKind("decode_mla", dtype, file, where, steps, start, predict, _mla_contexts, held=held))
        file, predict, start = "mla/context_mla_perf.parquet", _prefill_mla(False), _MLA_PREFILL | _MLA_HOST
        kinds.append(KernelKind("prefill_mla", dtype, file, where, prompts, start, predict, _mla_prompts, "isl"))
        file, predict, start = "mla/generation_mla_perf.parquet", _decode_mla(dtype, False), _MLA_DECODE | _MLA_HOST
        kinds.append(KernelKind("decode_mla", dtype, file, where, steps, start, predict, _mla_contexts, "step"))
    return kinds


def _mlas_in_blocks() -> list[KernelKind]:
    """Decodes of Triton's kernel: with vLLM 0.24 in modules, with 0.14 (A100) the operator, which split a sequence in four."""
    steps, bf16, start = ("batch_size", "num_heads", "step"), {"kv_cache_dtype": "bfloat16"}, _MLA_DECODE_IN_BLOCKS
    module: dict[str, str | int] = {"kernel_source": "TRITON_MLA", **bf16, **_MLA_MODULE}
    operator: dict[str, str | int] = {"kernel_source": "vllm_triton_mla", **bf16}
    files = ("mla/mla_generation_module_perf.parquet", "mla/generation_mla_perf.parquet")
    predict = (_decode_mla("bf16", True), _decode_mla("bf16", False))
    return [
        KernelKind("decode_mla", "bf16", files[0], module, steps, start, predict[0], _mla_contexts),
        KernelKind(
            "decode_mla", "bf16", files[1], operator, steps, start | _MLA_HOST, predict[1], _mla_contexts, "step"
        ),
    ]


SKEWED: Mapping[str, str | int] = {"distribution": "power_law_1.01", "moe_ep_size": 1}
"""Rows that stand in for balanced routing where a table has none: with all experts on one GPU skew changes little."""


def _moes() -> list[KernelKind]:
    shape = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
    kinds = []
    for dtype in ("bf16", "fp8", "fp8_block", "nvfp4", "int4_wo", "mxfp4"):
        where: dict[str, str | int] = {"moe_dtype": MOE_NAMES.get(dtype, dtype), "distribution": "balanced"}
        start, held = (_MOE, {}) if dtype == "bf16" else (_MOE | _STREAM, _EXPERTS_LIKE_BF16)
        file = "moe/moe_perf.parquet"
        kinds.append(KernelKind("moe", dtype, file, where, shape, start, _moe(dtype), _common_software, held=held))
        if dtype == "bf16":
            for tiles, start in ((SMALL, _MOE_SMALL), (TUNED, _MOE)):
                kinds.append(KernelKind("moe", tiles, file, where, shape, start, _moe(dtype), _common_software))
        if dtype == "fp8_block":
            held = dict.fromkeys(_LIKE_SMALL, SMALL)
            predict = _moe(dtype)
            kinds.append(
                KernelKind("moe", TRITON_BLOCKS, file, where, shape, _MOE_BLOCKS, predict, _common_software, held=held)
            )
    return kinds


KERNEL_KINDS: Sequence[KernelKind] = (*_gemms(), *_attentions(), *_mlas(), *_moes())
"""In fitting order: what another fit builds on (the GEMMs of an MLA module) comes first."""
