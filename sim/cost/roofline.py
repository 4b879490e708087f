"""The default kernel backend: a smooth roofline with constants fitted to measured kernels.

    t = fixed + ((f / (e_f F))^p + (b / (e_b B))^p)^(1/p)

for f FLOPs and b bytes on a GPU that prints F FLOP/s and B bytes/s. What each kernel kind adds to that (quantisation,
split-K, tiles, the last wave) is in `sim/cost/fits.py` and `sim/cost/attention_fits.py`.
"""

from __future__ import annotations

from dataclasses import replace

from sim.cost import attention_fits, fits
from sim.cost.attention_software import attention_software
from sim.cost.expert_tiles import SMALL, TUNED, VLLM_TILES, ExpertTiles
from sim.cost.fits import Constants
from sim.cost.formats import STATIC_SCALES, Quantisation, kv_bytes
from sim.cost.kernels import DecodeAttentionTime, Floats, KernelTime
from sim.errors import InputError
from sim.hardware.gpu import ALL_MEASURED, Gpu

# the back of an envelope: printed peaks, perfect overlap, no fixed cost
_PERFECT = ("compute", "memory", "activation", "tuned", "reads")
_NOTHING = (
    "launch_s",
    "depth_s",
    "quantise_row_s",
    "expert_s",
    "map_s",
    "tile_s",
    "block_s",
    "row_s",
    "key_s",
    "head_s",
    "partial",
    "tile",
    "tail",
    "serial",
    "whole",
    "depth_power",
    "wide",
    "passes",
)
_FREE = ("overlap", "softmax", "split", "gather", "combine", "kv", "quantise", "transpose")
IDEAL: Constants = dict.fromkeys(_PERFECT, 1.0) | dict.fromkeys(_NOTHING, 0.0) | dict.fromkeys(_FREE, float("inf"))

_KV_KEYS = {"bf16": "bf16", "fp16": "bf16", "fp8": "fp8"}


def prompt_dtype(kv_dtype: str, fp8_attention: float) -> str:
    """The format in which prompts attend: an engine with decode kernels of its own (`fp8_attention` other than 1) multiplies a
    prompt's keys before they are cast to the cache's (TensorRT-LLM, unless told use_fp8_context_fmha)."""
    return kv_dtype if fp8_attention == 1.0 else "bf16"


class Roofline:
    """Durations of kernels on one GPU, alone; implements `sim.cost.kernels.KernelBackend`.

    Args:
        gpu: with fitted constants; a dtype nobody measured on it or its relatives takes those of bf16.
        ideal: printed peaks, the larger of compute and memory time, no fixed cost and no quantisation kernel.
        quantisation: of activations in fp8 (`Quantisation`).
        fp8_attention: decode attention over an fp8 cache, in time of the measured kernels; other than 1, prompts attend in bf16.
        tuned_reads: decode attention, and matrix products whose weights need no unpacking, read as fast as the best kernel that
            was measured on this GPU, and keys are split over thread blocks whether heads share them or not.
        latent_splits: of a sequence in Triton's latent attention (`EnginePreset.latent_splits`).
        tiles: of experts (`EnginePreset.expert_tiles`).
    """

    def __init__(
        self,
        gpu: Gpu,
        ideal: bool = False,
        quantisation: Quantisation = "dynamic",
        fp8_attention: float = 1.0,
        tuned_reads: bool = False,
        latent_splits: float | None = None,
        tiles: ExpertTiles = VLLM_TILES,
    ) -> None:
        self.gpu = replace(gpu, loaded_clock=1.0) if ideal else gpu
        self.ideal = ideal
        self.quantisation = quantisation
        self.fp8_attention = fp8_attention
        self.tuned_reads = tuned_reads
        self.latent_splits = latent_splits
        self.tiles = tiles

    def constants(self, kind: str, dtype: str) -> Constants:
        """The fitted constants of a kernel kind for `dtype`, or those of bf16 where there are none for it. Nobody measured int8
        by int8: it has the shares of fp8, as many bits through the same tensor cores."""
        if self.ideal:
            return IDEAL
        by_dtype = self.gpu.kernels.get(kind, {})
        fit = by_dtype.get(dtype) or by_dtype.get("fp8" if dtype == "int8" else "bf16") or by_dtype.get("bf16")
        if fit is None:
            raise InputError(f"gpus/{self.gpu.name}.yaml: kernels.{kind}", "has no fitted constants")
        return fit.constants

    def gemm(self, m: Floats | float, n: int, k: int, dtype: str) -> KernelTime:
        """out[m, n] = in[m, k] x weights[k, n], with the kernel that quantises the activation where there is one."""
        own = dtype if fits.arithmetic(self.gpu, dtype) != "bf16" else "bf16"
        c = self.constants("gemm", own)
        if not self.ideal:
            c = {**c, **self._quantised(own)}
        if self.tuned_reads and not self.ideal and own == dtype:
            c = {**c, "memory": self._best_memory(), "reads": 1.0}
        return fits.gemm(c, self.gpu, m, n, k, dtype)

    def _quantised(self, dtype: str) -> Constants:
        """What of a product's constants is not as measured: in vLLM, whose kernels find the scales of activations themselves."""
        if self.quantisation == "none" or (self.quantisation == "fused" and dtype in STATIC_SCALES):
            free = {"quantise_row_s": 0.0, "quantise": float("inf")}
            return {**free, "tuned": 1.0, "compute": self._best_compute(dtype)}
        if self.quantisation == "static" and dtype == "fp8":
            streamed = self.constants("elementwise", "bf16")["memory"] * self.gpu.hbm_bytes_per_s
            return {"quantise_row_s": 0.0, "quantise": streamed / fits.cycles_per_s(self.gpu)}
        return {}

    def _best_memory(self) -> float:
        """Share of the HBM bandwidth at which the best of the kernels reads that mostly read: products, attention, experts; in
        bf16, in which all of them were measured on every GPU that has tables, experts in one kind of tiles or in several."""
        product, attention = self.constants("gemm", "bf16"), self.constants("decode_attention", "bf16")
        keys = attention["memory"] * attention_software(self.gpu).reads
        experts = [fit for tiles in ("bf16", SMALL) if (fit := self.gpu.kernels["moe"].get(tiles))]
        own = [fit.constants["memory"] for fit in experts if fit.fitted_on != ALL_MEASURED]
        # of small tiles more generations were measured
        passed = max(own, default=self.constants("moe", SMALL)["memory"])
        return max(fits.weight_reads(product, self.gpu), keys, passed)

    def _best_compute(self, dtype: str) -> float:
        """Share of the tensor peak that the best measured GEMM of this arithmetic reaches."""
        alike = ("fp8", "fp8_block") if dtype in ("fp8", "fp8_block") else (dtype,)
        return max(self.constants("gemm", one)["compute"] for one in alike)

    def prefill_attention(
        self,
        new_tokens: Floats | float,
        context_tokens: Floats | float,
        heads: int,
        kv_heads: int,
        head_dim: int,
        kv_dtype: str,
        window: int | None = None,
    ) -> KernelTime:
        """Causal attention of one sequence: `new_tokens` queries over `context_tokens` earlier tokens and themselves.

        Several sequences run in one kernel: their memory and compute parts add up, the fixed part is paid once.
        """
        kv_dtype = prompt_dtype(kv_dtype, self.fp8_attention)
        c = self.constants("prefill_attention", _KV_KEYS.get(kv_dtype, kv_dtype))
        return attention_fits.prefill_attention(
            c, self.gpu, 1.0, new_tokens, context_tokens, heads, kv_heads, head_dim, kv_dtype, window
        )

    def decode_attention(
        self, sequences: Floats | float, heads: int, kv_heads: int, head_dim: int, kv_dtype: str
    ) -> DecodeAttentionTime:
        """One query token for each of `sequences`."""
        c = self.constants("decode_attention", _KV_KEYS.get(kv_dtype, kv_dtype))
        if self.tuned_reads and not self.ideal:
            c = {**c, "memory": self._best_memory(), "reads": 1.0, "tuned": 1.0}
        time = attention_fits.decode_attention(c, self.gpu, sequences, heads, kv_heads, head_dim, kv_dtype)
        return attention_fits.own_fp8(
            time, self.fp8_attention, self.least_slope_s(kv_heads, head_dim, kv_dtype), kv_dtype
        )

    def least_slope_s(self, kv_heads: int, head_dim: int, kv_dtype: str) -> float:
        """Seconds a cached token that no kernel beats: its bytes through HBM, at the rate that kernels reach."""
        return float(self.elementwise(2 * kv_heads * head_dim * kv_bytes(kv_dtype), 0).memory_s)

    def prefill_mla(
        self, new_tokens: Floats | float, context_tokens: Floats | float, heads: int, kv_lora_rank: int, rope_dim: int,
        nope_dim: int, v_dim: int, kv_dtype: str,
    ) -> KernelTime:  # fmt: skip
        """Multi-head latent attention of one prompt chunk, with keys and values expanded from the latent of rank
        `kv_lora_rank` by a GEMM that is not counted here."""
        c = self.constants("prefill_mla", _KV_KEYS.get(kv_dtype, kv_dtype))
        return attention_fits.prefill_mla(
            c, self.gpu, 1.0, new_tokens, context_tokens, heads, nope_dim + rope_dim, v_dim
        )

    def decode_mla(
        self, sequences: Floats | float, heads: int, kv_lora_rank: int, rope_dim: int, kv_dtype: str
    ) -> DecodeAttentionTime:
        """Absorbed multi-head latent attention, one query token a sequence."""
        c = self.latent_constants(kv_dtype)
        splits = self.latent_splits
        return attention_fits.decode_mla(c, self.gpu, sequences, heads, kv_lora_rank, rope_dim, kv_dtype, splits=splits)

    def latent_constants(self, kv_dtype: str) -> Constants:
        """Those of absorbed latent attention over a cache in `kv_dtype`; Triton's kernel multiplies any in bf16."""
        in_blocks = attention_software(self.gpu).latents_in_blocks
        return self.constants("decode_mla", "bf16" if in_blocks else _KV_KEYS.get(kv_dtype, kv_dtype))

    def moe(
        self,
        tokens: Floats | float,
        hidden: int,
        intermediate: int,
        experts: int,
        local_experts: int,
        top_k: int,
        dtype: str,
    ) -> KernelTime:
        """Grouped GEMMs of the routed experts of one layer on this rank, every token picking its experts uniformly."""
        routing = fits.Routing.uniform(tokens, experts, local_experts, top_k)
        c = self.expert_constants(dtype, local_experts, intermediate)
        if self.quantisation != "dynamic" and dtype == "fp8" and self._stands_in(c):
            c = {**c, "compute": self._best_compute(dtype)}
        return fits.moe(c, self.gpu, routing, hidden, intermediate, dtype)

    def expert_constants(self, dtype: str, experts: int, columns: int) -> Constants:
        """Those of `experts` on a rank with `columns` there. An engine that tries its kernels has tuned tiles for all of them on
        a GPU for which some are known."""
        if dtype == "bf16" and self.tuned_reads and self.gpu.name in self.tiles.tuned:
            return self.constants("moe", TUNED)
        return self.constants("moe", self.tiles.priced_as(self.gpu, dtype, experts, columns))

    def _stands_in(self, c: Constants) -> bool:
        """Whether constants of fp8 experts are those of block-scaled kernels, as on Hopper. Without partial sums to scale,
        grouped products are as fast as others (TensorRT-LLM 1.3, H100, Mixtral: 0.74 of the peak in the tables of
        aiconfigurator-core 0.12)."""
        return not self.ideal and c["compute"] < 1.01 * self.constants("moe", "fp8_block")["compute"]

    def elementwise(self, bytes_moved: Floats | float, kernels: int = 1) -> KernelTime:
        """Norms, rope, activation, residual: `kernels` memory-bound kernels that move `bytes_moved` in all."""
        return fits.elementwise(self.constants("elementwise", "bf16"), self.gpu, bytes_moved, kernels)
