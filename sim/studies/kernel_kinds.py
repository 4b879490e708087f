"""What each kernel kind fits: its table, its starting constants, and its prediction for the rows of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim.cost import attention_fits, fits
from sim.cost.fits import Constants
from sim.cost.kernels import DecodeAttentionTime, Floats
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
    predict: Predict
    headline: Callable[[Table], NDArray[np.bool_]]
    """Rows the fit is made on and its headline error counts; the others are reported too."""
    held: Mapping[str, str] = field(default_factory=dict)
    """Constants that are not fitted but taken from another dtype of the same kind: name -> dtype."""


def total_s(time: DecodeAttentionTime, context_tokens: Floats) -> Floats:
    """Duration of a decode attention kernel over contexts that sum to `context_tokens`."""
    return time.fixed_s + context_tokens * (time.memory_s_per_token + time.compute_s_per_token)


def on_host(c: Constants, kernels_s: Floats) -> Floats:
    """What a measurement without CUDA graphs sees: the host's `host_s` to launch, or the kernels, whichever is longer.

    An engine with CUDA graphs never pays `host_s`.
    """
    return np.maximum(kernels_s, c["host_s"]) if "host_s" in c else kernels_s


def _gemm(dtype: str) -> Predict:
    def predict(c: Constants, gpu: Gpu, table: Table) -> Floats:
        return on_host(c, fits.gemm(c, gpu, table["m"], table["n"], table["k"], dtype).total_s)

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
        time = attention_fits.decode_attention(c, gpu, table["batch_size"], heads, kv_heads, head_dim, dtype)
        return total_s(time, table["batch_size"] * (table["step"] + 1))

    return predict


def _moe(dtype: str) -> Predict:
    def predict(c: Constants, gpu: Gpu, table: Table) -> Floats:
        tokens, experts = table["num_tokens"], table["num_experts"]
        local = np.maximum(experts / table["moe_ep_size"], 1)
        routed = tokens * table["topk"] * local / experts
        touched = np.minimum(local, np.maximum(routed, 1))
        columns = table["inter_size"] / table["moe_tp_size"]
        return fits.moe(c, gpu, tokens, table["hidden_size"], columns, touched, routed, dtype).total_s

    return predict


# DeepSeek-V3 (config.json): hidden 7168, q_lora_rank 1536, kv_lora_rank 512, nope 128, rope 64, v 128
_HIDDEN, _Q_RANK, _RANK, _NOPE, _ROPE, _V = 7168, 1536, 512, 128, 64, 128


def _module_gemms_s(gpu: Gpu, tokens: Floats, heads: Floats, prefill: bool) -> Floats:
    """Seconds of the matrix multiplications that the measured MLA module runs around its attention, in bf16."""
    c = Roofline(gpu).constants("gemm", "bf16")
    shapes: list[tuple[Floats | float, Floats | float]] = [
        (_Q_RANK + _RANK + _ROPE, _HIDDEN),
        (heads * (_NOPE + _ROPE), _Q_RANK),
        (_HIDDEN, heads * _V),
    ]
    shapes += [(heads * (_NOPE + _V), _RANK)] if prefill else [(heads * _RANK, _NOPE), (heads * _V, _RANK)]
    return sum((fits.gemm(c, gpu, tokens, n, k, "bf16").total_s for n, k in shapes), np.zeros_like(tokens))


def _prefill_mla(module: bool) -> Predict:
    def predict(c: Constants, gpu: Gpu, table: Table) -> Floats:
        sequences, new, heads = table["batch_size"], table["isl"], table["num_heads"]
        own = attention_fits.prefill_mla(c, gpu, sequences, new, 0.0, heads, _NOPE + _ROPE, _V).total_s
        around = _module_gemms_s(gpu, sequences * new, heads, True) if module else 0.0
        return on_host(c, own + around)

    return predict


def _decode_mla(dtype: str, module: bool) -> Predict:
    def predict(c: Constants, gpu: Gpu, table: Table) -> Floats:
        sequences, heads = table["batch_size"], table["num_heads"]
        time = attention_fits.decode_mla(c, gpu, sequences, heads, _RANK, _ROPE, dtype)
        # a module's table counts the new token in `step`, an operator's does not
        own = total_s(time, sequences * (table["step"] + (0 if module else 1)))
        around = _module_gemms_s(gpu, sequences, heads, False) if module else 0.0
        return on_host(c, own + around)

    return predict


def _all_rows(table: Table) -> NDArray[np.bool_]:
    return np.ones(len(table["latency_s"]), dtype=bool)


def _large(table: Table) -> NDArray[np.bool_]:
    return (table["n"] >= 512) & (table["k"] >= 512)


def _prompts(table: Table) -> NDArray[np.bool_]:
    # one new token is a decode step, and runs the decode kernel
    return np.asarray(table["isl"] > 1)


_US = 1e-6
_GEMM = {
    "launch_s": 2 * _US, "depth_s": 2 * _US, "compute": 0.8, "memory": 0.85, "activation": 0.6, "overlap": 3.0,
}  # fmt: skip
_QUANTISE = {"quantise_launch_s": 1 * _US, "quantise": 0.4}
_PREFILL = {"launch_s": 10 * _US, "compute": 0.7, "memory": 0.4, "overlap": 1.2, "exponential": 30.0, "tail": 0.5}
_DECODE = {"launch_s": 10 * _US, "tile_s": 2 * _US, "compute": 0.5, "memory": 0.85, "overlap": 2.0}
_MLA_PREFILL = {"launch_s": 20 * _US, "compute": 0.5, "memory": 0.4, "overlap": 1.5, "exponential": 10.0}
_MLA_DECODE = {"launch_s": 20 * _US, "tile_s": 2 * _US, "compute": 0.5, "memory": 0.8, "overlap": 2.0}
_MOE = {
    "launch_s": 20 * _US, "expert_s": 1 * _US, "tile": 8.0, "compute": 0.6, "memory": 0.8, "activation": 0.4, "overlap": 2.0,
}  # fmt: skip
_TABLE_NAMES = {"bf16": "bfloat16"}
_MOE_NAMES = {"bf16": "bfloat16", "int4_wo": "int4_wo", "mxfp4": "w4a16_mxfp4"}


def _gemms() -> list[KernelKind]:
    kinds = []
    for dtype in ("bf16", "fp8", "fp8_block", "nvfp4"):
        start: dict[str, float] = dict(_GEMM) if dtype == "bf16" else _GEMM | _QUANTISE
        held: dict[str, str] = {}
        if dtype == "fp8_block":  # measured without CUDA graphs: the small constants hide behind the host
            start["host_s"] = 60 * _US
            held = dict.fromkeys(("launch_s", "depth_s", "quantise_launch_s", "quantise", "activation"), "fp8")
        where: dict[str, str | int] = {"gemm_dtype": _TABLE_NAMES.get(dtype, dtype)}
        kinds.append(
            KernelKind(
                "gemm", dtype, "gemm/gemm_perf.parquet", where, ("m", "n", "k"), start, _gemm(dtype), _large, held
            )
        )
    return kinds


def _attentions() -> list[KernelKind]:
    kinds = []
    shape = ("batch_size", "num_heads", "num_key_value_heads", "head_dim")
    for dtype in ("bf16", "fp8"):
        where: dict[str, str | int] = {"kv_cache_dtype": _TABLE_NAMES.get(dtype, dtype), "window_size": 0}
        kinds.append(
            KernelKind(
                "prefill_attention",
                dtype,
                "attention/context_attention_perf.parquet",
                where,
                (*shape, "isl"),
                _PREFILL,
                _prefill(dtype),
                _prompts,
            )  # fmt: skip
        )
        kinds.append(
            KernelKind(
                "decode_attention",
                dtype,
                "attention/generation_attention_perf.parquet",
                where,
                (*shape, "step"),
                _DECODE,
                _decode(dtype),
                _all_rows,
            )  # fmt: skip
        )
    return kinds


def _mlas() -> list[KernelKind]:
    kinds = []
    shape = ("batch_size", "num_heads")
    host = {"host_s": 300 * _US}
    for dtype in ("bf16", "fp8"):
        where: dict[str, str | int] = {
            "kv_cache_dtype": _TABLE_NAMES.get(dtype, dtype), "gemm_type": "bfloat16", "mla_dtype": "bfloat16",
        }  # fmt: skip
        for module, prefill, decode in (
            (True, "mla/mla_context_module_perf.parquet", "mla/mla_generation_module_perf.parquet"),
            (False, "mla/context_mla_perf.parquet", "mla/generation_mla_perf.parquet"),
        ):
            start = _MLA_PREFILL if module else _MLA_PREFILL | host
            kinds.append(
                KernelKind("prefill_mla", dtype, prefill, where, (*shape, "isl"), start, _prefill_mla(module), _prompts)
            )
            start = _MLA_DECODE if module else _MLA_DECODE | host
            predict = _decode_mla(dtype, module)
            kinds.append(KernelKind("decode_mla", dtype, decode, where, (*shape, "step"), start, predict, _all_rows))
    return kinds


def _moes() -> list[KernelKind]:
    shape = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
    kinds = []
    for dtype in ("bf16", "fp8", "fp8_block", "nvfp4", "int4_wo", "mxfp4"):
        where: dict[str, str | int] = {"moe_dtype": _MOE_NAMES.get(dtype, dtype), "distribution": "balanced"}
        kinds.append(KernelKind("moe", dtype, "moe/moe_perf.parquet", where, shape, _MOE, _moe(dtype), _all_rows))
    return kinds


KERNEL_KINDS: Sequence[KernelKind] = (*_gemms(), *_attentions(), *_mlas(), *_moes())
"""In fitting order: what another fit builds on (the GEMMs of an MLA module) comes first."""
