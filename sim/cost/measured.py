"""The measured kernel backend: the roofline, corrected to what measured tables say at the shape in question.

    t(q) = roofline(q) x interpolated(measured / roofline)

At a measured shape that is the measured latency, between them it follows the roofline's form, and beyond them it keeps
the utilisation of the last measured shape. Where there is no table it is the roofline itself, and `notes` say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sim.cost import attention_fits
from sim.cost import measured_corrections as corrections
from sim.cost.expert_tiles import VLLM_TILES, ExpertTiles, tiles_of
from sim.cost.fits import arithmetic, array
from sim.cost.interpolation import Curve, LogGrid, nearest_row
from sim.cost.kernels import DecodeAttentionTime, Floats, KernelTime
from sim.cost.measured_corrections import AffineCurve
from sim.cost.measured_tables import DEFAULT_FRAMEWORK, GpuTables, Table
from sim.cost.measured_usage import Usage
from sim.cost.mla_module import MLA_SHAPE, MODEL
from sim.cost.roofline import Roofline, prompt_dtype
from sim.hardware.gpu import Gpu, load_gpu

_TABLE_DTYPES = {"bf16": "bfloat16", "fp16": "bfloat16"}
_MOE_DTYPES = _TABLE_DTYPES | {"mxfp4": "w4a16_mxfp4"}
_KV_DTYPES = {"fp16": "bf16"}
_ATTENTION_SHAPE = ("num_heads", "num_key_value_heads", "head_dim", "batch_size")
# an engine's kernel depends on the grouping of queries first, then on how wide a head is, then on how many there are
_GROUPING, _WIDTH = 2.0, 2.0
_MLA_FILES = (("mla_{}_module_perf.parquet", True), ("{}_mla_perf.parquet", False))


class MeasuredKernels:
    """Durations of kernels on one GPU from measured tables; implements `sim.cost.kernels.KernelBackend`.

    Args:
        gpu: whose kernels are asked for.
        tables: of that GPU; None: every kernel is the roofline's.
        static_scales: the engine knows the scales of quantised activations in advance; the products of the tables look
            for them.
        fp8_attention: decode attention over an fp8 cache of the engine, in time of the default engine's kernels; not
            applied to tables of the engine itself.
        tiles: of the engine's experts in bf16; those of the tables are known by their engine and version.
    """

    def __init__(
        self,
        gpu: Gpu,
        tables: GpuTables | None,
        static_scales: bool = False,
        fp8_attention: float = 1.0,
        tiles: ExpertTiles = VLLM_TILES,
    ) -> None:
        self.gpu = gpu
        self.tables = tables
        self.static_scales = static_scales
        self.fp8_attention = fp8_attention
        self.roofline = Roofline(gpu, tiles=tiles)
        # what-if studies change `gpu`; its tables were measured on the one of the catalogue
        self._bench = Roofline(load_gpu(gpu.name)) if tables else self.roofline
        self._found: dict[Any, Any] = {}
        self._usage: dict[tuple[str, str], Usage] = {}
        self._notes: dict[str, None] = {}

    @property
    def notes(self) -> list[str]:
        """What was asked for and is not in the tables."""
        return list(self._notes)

    @property
    def usage(self) -> Mapping[tuple[str, str], Usage]:
        """The tables in use, by kernel kind and dtype."""
        return self._usage

    def provenance(self) -> list[str]:
        """A line for every table in use: its rows that answered, and what was asked beyond them; then the notes."""
        return [used.line(*key) for key, used in self._usage.items()] + self.notes

    # --- matrix multiplications -------------------------------------------------------------------------------------------

    def gemm(self, m: Floats | float, n: int, k: int, dtype: str) -> KernelTime:
        """out[m, n] = in[m, k] x weights[k, n], interpolated in log m, log n, log k."""
        asked = self.roofline.gemm(m, n, k, dtype)
        grid = self._once(("gemm", dtype), lambda: self._gemm_grid(dtype))
        if grid is None:
            return asked
        curve, outside = self._once(("gemm", dtype, n, k), lambda: grid.of(float(n), float(k)))
        used = self._usage["gemm", dtype]
        used.count("tokens", curve, array(m), outside)
        if outside:
            for name, value, axis in (("n", n, grid.axes[1]), ("k", k, grid.axes[2])):
                if not axis[0] <= value <= axis[-1]:
                    used.leave(name, value, value, float(axis[0]), float(axis[-1]))
        ns, ks = (" and ".join(f"{x:g}" for x in axis) for axis in grid.around(float(n), float(k)))
        used.shapes[f"n {ns}, k {ks}"] = None
        return _scaled(asked, np.exp(curve.at(array(m))))

    def _gemm_grid(self, dtype: str) -> LogGrid | None:
        where: dict[str, str | int] = {"gemm_dtype": _TABLE_DTYPES.get(dtype, dtype)}
        table = self._table("gemm", dtype, "gemm", "gemm_perf.parquet", where, ("m", "n", "k"))
        if table is None:
            return None
        spoilt = corrections.spoilt_gemms(table)
        if spoilt.any():
            self._notes[
                f"gemm {dtype}: {int(spoilt.sum())} rows left out that took more than {corrections.SPOILT} times as long as "
                "the same weights with more tokens"
            ] = None
        sound = self._known_scales(table.only(~spoilt), dtype)
        return corrections.gemm_grid(self._bench, sound, dtype)

    def _known_scales(self, table: Table, dtype: str) -> Table:
        """Matrix multiplications without the kernel that looks for the scale of an activation, where the engine knows it in
        advance and the tables say what that kernel takes. The cast itself stays, which they measure as part of the product:
        how much of it another kernel could hide they do not say."""
        if not self.static_scales or arithmetic(self.gpu, dtype) == "bf16" or self.tables is None:
            return table
        scales = self.tables.read("quantize", "computescale_perf.parquet", {"quant_dtype": dtype}, ("m", "k"))
        if scales is None or scales.engine != table.engine:
            self._notes[f"gemm {dtype}: with activation scales found in each product, as the tables measured it"] = None
            return table
        self._notes[f"gemm {dtype}: without the kernel that finds activation scales, {scales.origin}"] = None
        return corrections.without(self._bench, table, scales, dtype)

    def moe(
        self, tokens: Floats | float, hidden: int, intermediate: int, experts: int, local_experts: int, top_k: int, dtype: str
    ) -> KernelTime:  # fmt: skip
        """Grouped GEMMs of the routed experts, interpolated in log tokens; a shape that was not measured takes the
        mean deviation of those that were, the near ones first."""
        asked = self.roofline.moe(tokens, hidden, intermediate, experts, local_experts, top_k, dtype)
        shape = (hidden, intermediate, top_k, experts, local_experts)
        curve = self._once(("moe", dtype, *shape), lambda: self._moe_curve(shape, dtype))
        if curve is None:
            return asked
        self._usage["moe", dtype].count("tokens", curve, array(tokens))
        return _scaled(asked, np.exp(curve.at(array(tokens))))

    def _moe_curve(self, shape: tuple[int, ...], dtype: str) -> Curve | None:
        found = self._once(("moe table", dtype), lambda: self._moe_table(dtype))
        if found is None:
            return None
        table, balanced = found
        bench = Roofline(self._bench.gpu, tiles=tiles_of(table.engine, table.version))
        curve, measured = corrections.moe_curve(bench, table, shape, dtype, balanced)
        self._substituted(("moe", dtype), not measured)
        if measured:
            asked = "hidden {}, {} columns, top {} of {}, {} here".format(*shape)
            self._usage["moe", dtype].shapes[asked] = None
        return curve

    def _moe_table(self, dtype: str) -> tuple[Table, bool] | None:
        """The balanced rows, or the least skewed ones with all experts on one GPU, where skew changes little."""
        where: dict[str, str | int] = {"moe_dtype": _MOE_DTYPES.get(dtype, dtype)}
        skewed = where | {"distribution": "power_law_1.01", "moe_ep_size": 1}
        for balanced, rows in ((True, where | {"distribution": "balanced"}), (False, skewed)):
            last = not balanced
            table = self._table("moe", dtype, "moe", "moe_perf.parquet", rows, corrections.MOE_SHAPE, note=last)
            if table is not None:
                sound = corrections.sound_ranks(table.engine, table["moe_ep_size"])
                if sound.any():
                    table = table.only(sound)
                else:
                    self._notes[f"moe {dtype}: only rows on several ranks, which contradict each other"] = None
                if last:
                    self._notes[f"moe {dtype}: no rows with balanced routing; those of power_law_1.01 on one GPU"] = (
                        None
                    )
                return table, balanced
        return None

    def elementwise(self, bytes_moved: Floats | float, kernels: int = 1) -> KernelTime:
        """Norms, rope, activation, residual: the roofline's, for tables hold none of them."""
        self._notes.setdefault("elementwise: not in the tables; roofline")
        return self.roofline.elementwise(bytes_moved, kernels)

    # --- attention --------------------------------------------------------------------------------------------------------

    def prefill_attention(
        self, new_tokens: Floats | float, context_tokens: Floats | float, heads: int, kv_heads: int, head_dim: int,
        kv_dtype: str, window: int | None = None,
    ) -> KernelTime:  # fmt: skip
        """Causal attention of one sequence, at the utilisation of a prompt with as many (query, key) pairs: tables
        hold prompts without context only."""
        kv_dtype = prompt_dtype(kv_dtype, self.fp8_attention)
        asked = self.roofline.prefill_attention(new_tokens, context_tokens, heads, kv_heads, head_dim, kv_dtype, window)
        shape = (heads, kv_heads, head_dim)
        curve = self._once(
            ("prefill_attention", kv_dtype, shape, window), lambda: self._prefill_curve(shape, kv_dtype, window)
        )
        seen = array(context_tokens) if window is None else np.minimum(context_tokens, window)
        return self._affine_time(("prefill_attention", kv_dtype), asked, curve, _prompt_of_equal_work(new_tokens, seen))

    def _prefill_curve(self, shape: tuple[int, int, int], kv_dtype: str, window: int | None) -> AffineCurve | None:
        dtype = _KV_DTYPES.get(kv_dtype, kv_dtype)
        for width in dict.fromkeys((window or 0, 0)):
            where: dict[str, str | int] = {
                "kv_cache_dtype": _TABLE_DTYPES.get(dtype, dtype), "window_size": width,
            }  # fmt: skip
            name = "context_attention_perf.parquet"
            columns = (*_ATTENTION_SHAPE, "isl")
            table = self._table("prefill_attention", kv_dtype, "attention", name, where, columns, note=width == 0)
            if table is not None:
                rows, nearest = self._nearest("prefill_attention", kv_dtype, table, shape)
                return corrections.prefill_curve(self._bench, rows, *nearest, dtype, width or None)
        return None

    def decode_attention(
        self, sequences: Floats | float, heads: int, kv_heads: int, head_dim: int, kv_dtype: str
    ) -> DecodeAttentionTime:
        """One query token for each of `sequences`: at every measured batch size the affine function of the contexts' sum
        nearest to the rows, interpolated in log batch size."""
        asked = self.roofline.decode_attention(sequences, heads, kv_heads, head_dim, kv_dtype)
        shape, key = (heads, kv_heads, head_dim), ("decode_attention", kv_dtype)
        curve = self._once((*key, shape), lambda: self._decode_curve(shape, kv_dtype))
        time = self._affine_decode(key, asked, curve, array(sequences))
        if key in self._usage and self._usage[key].engine not in ("", DEFAULT_FRAMEWORK):
            return time
        least_slope_s = self.roofline.least_slope_s(kv_heads, head_dim, kv_dtype)
        return attention_fits.own_fp8(time, self.fp8_attention, least_slope_s, kv_dtype)

    def _decode_curve(self, shape: tuple[int, int, int], kv_dtype: str) -> AffineCurve | None:
        dtype = _KV_DTYPES.get(kv_dtype, kv_dtype)
        where: dict[str, str | int] = {"kv_cache_dtype": _TABLE_DTYPES.get(dtype, dtype), "window_size": 0}
        name, columns = "generation_attention_perf.parquet", (*_ATTENTION_SHAPE, "step")
        table = self._table("decode_attention", kv_dtype, "attention", name, where, columns)
        if table is None:
            return None
        rows, nearest = self._nearest("decode_attention", kv_dtype, table, shape)
        return corrections.decode_curve(self._bench, rows, *nearest, dtype)

    def _nearest(
        self, kind: str, dtype: str, table: Table, shape: tuple[int, int, int]
    ) -> tuple[Table, tuple[int, int, int]]:
        """The rows of the measured (heads, KV heads, head dimension) nearest to `shape`, and that shape."""
        columns = np.stack([table[name] for name in _ATTENTION_SHAPE[:3]], axis=1)
        known = np.unique(columns, axis=0)

        def features(shapes: Floats) -> Floats:
            return np.stack([(shapes[:, 0] / shapes[:, 1]) ** _GROUPING, shapes[:, 1], shapes[:, 2] ** _WIDTH], axis=1)

        best = known[nearest_row(features(known), features(np.array([shape], dtype=float))[0])]
        self._substituted((kind, dtype), tuple(best) != shape)
        heads, kv_heads, head_dim = (int(value) for value in best)
        self._usage[kind, dtype].shapes[f"{heads} heads, {kv_heads} KV heads of {head_dim}"] = None
        return table.only((columns == best).all(axis=1)), (heads, kv_heads, head_dim)

    # --- latent attention -------------------------------------------------------------------------------------------------

    def prefill_mla(
        self, new_tokens: Floats | float, context_tokens: Floats | float, heads: int, kv_lora_rank: int, rope_dim: int,
        nope_dim: int, v_dim: int, kv_dtype: str,
    ) -> KernelTime:  # fmt: skip
        """Multi-head latent attention of one prompt chunk, by the nearest measured number of heads of DeepSeek-V3."""
        asked = self.roofline.prefill_mla(
            new_tokens, context_tokens, heads, kv_lora_rank, rope_dim, nope_dim, v_dim, kv_dtype
        )
        shape = (kv_lora_rank, rope_dim, nope_dim, v_dim)
        curve = self._once(("prefill_mla", kv_dtype, heads), lambda: self._mla_curve("prefill_mla", heads, kv_dtype))
        self._substituted(("prefill_mla", kv_dtype), shape != MLA_SHAPE)
        equal = _prompt_of_equal_work(new_tokens, context_tokens)
        return self._affine_time(("prefill_mla", kv_dtype), asked, curve, equal)

    def decode_mla(
        self, sequences: Floats | float, heads: int, kv_lora_rank: int, rope_dim: int, kv_dtype: str
    ) -> DecodeAttentionTime:
        """Absorbed multi-head latent attention, by the nearest measured number of heads of DeepSeek-V3."""
        asked = self.roofline.decode_mla(sequences, heads, kv_lora_rank, rope_dim, kv_dtype)
        curve = self._once(("decode_mla", kv_dtype, heads), lambda: self._mla_curve("decode_mla", heads, kv_dtype))
        self._substituted(("decode_mla", kv_dtype), (kv_lora_rank, rope_dim) != MLA_SHAPE[:2])
        return self._affine_decode(("decode_mla", kv_dtype), asked, curve, array(sequences))

    def _mla_curve(self, kind: str, heads: int, kv_dtype: str) -> AffineCurve | None:
        prefill = kind == "prefill_mla"
        dtype = _KV_DTYPES.get(kv_dtype, kv_dtype)
        where: dict[str, str | int] = {
            "kv_cache_dtype": _TABLE_DTYPES.get(dtype, dtype), "gemm_type": "bfloat16", "mla_dtype": "bfloat16",
            "model": MODEL,
        }  # fmt: skip
        columns = ("num_heads", "batch_size", "isl" if prefill else "step")
        for pattern, module in _MLA_FILES:
            name = pattern.format("context" if prefill else "generation")
            table = self._table(kind, kv_dtype, "mla", name, where, columns, note=not module)
            if table is None:
                continue
            known = np.unique(table["num_heads"])
            best = int(known[nearest_row(known[:, None], np.array([float(heads)]))])
            self._substituted((kind, kv_dtype), best != heads)
            self._usage[kind, kv_dtype].shapes[f"{best} heads"] = None
            build = corrections.prefill_mla_curve if prefill else corrections.decode_mla_curve
            return build(self._bench, table.only(table["num_heads"] == best), best, dtype, module)
        return None

    # --- look-ups ---------------------------------------------------------------------------------------------------------

    def _once(self, key: Any, build: Callable[[], Any]) -> Any:
        if key not in self._found:
            self._found[key] = build()
        return self._found[key]

    def _table(
        self, kind: str, dtype: str, family: str, file: str, where: dict[str, str | int], shape: tuple[str, ...],
        note: bool = True,
    ) -> Table | None:  # fmt: skip
        """A table, entered into the provenance; None is noted unless the caller has another to try."""
        table = self.tables.read(family, file, where, shape) if self.tables else None
        if table is not None:
            self._usage.setdefault((kind, dtype), Usage(table.origin, len(table), table.engine))
        elif note:
            self._notes[f"{kind} {dtype}: no measured table of {self.gpu.name}; roofline"] = None
        return table

    def _substituted(self, key: tuple[str, str], substitute: bool) -> None:
        if key in self._usage:
            self._usage[key].substitute |= substitute

    def _affine_time(
        self, key: tuple[str, str], asked: KernelTime, curve: AffineCurve | None, at: Floats
    ) -> KernelTime:
        if curve is None:
            return asked
        self._usage[key].count("prompt", curve.body, at)
        body = curve.body.at(at)
        return KernelTime(curve.fixed.at(at) * asked.fixed_s, body * asked.memory_s, body * asked.compute_s)

    def _affine_decode(
        self, key: tuple[str, str], asked: DecodeAttentionTime, curve: AffineCurve | None, at: Floats
    ) -> DecodeAttentionTime:
        if curve is None:
            return asked
        self._usage[key].count("sequences", curve.body, at)
        body = curve.body.at(at)
        return DecodeAttentionTime(
            curve.fixed.at(at) * asked.fixed_s, body * asked.memory_s_per_token, body * asked.compute_s_per_token
        )


def _prompt_of_equal_work(new_tokens: Floats | float, context_tokens: Floats | float) -> Floats:
    """Length of a prompt without context that has as many (query, key) pairs as `new_tokens` after `context_tokens`."""
    new, context = array(new_tokens), array(context_tokens)
    pairs = new * (context + (new + 1) / 2)
    return np.maximum((np.sqrt(1 + 8 * pairs) - 1) / 2, 1.0)


def _scaled(asked: KernelTime, factor: Floats) -> KernelTime:
    """`factor` times `asked`: its fixed part stays, the body takes the rest in the same split."""
    total_s = factor * asked.total_s
    fixed_s = np.minimum(asked.fixed_s, total_s)
    body_s = asked.memory_s + asked.compute_s
    share = np.divide(asked.memory_s, body_s, out=np.zeros_like(body_s), where=body_s > 0)
    return KernelTime(fixed_s, (total_s - fixed_s) * share, (total_s - fixed_s) * (1 - share))
