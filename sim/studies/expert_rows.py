"""Measured rows of expert kernels: those that say something of what an engine runs.

Five things are left out or replaced. A GPU without rows of balanced routing takes skewed ones. Per-tensor fp8 that is slower
than bf16 of the same shape is no kernel an engine keeps: on Hopper the bench ran FlashInfer's CUTLASS kernels without the
autotuning that an engine does when it starts (twice the bytes a second slower, and slower with fewer tokens), so the rows of
the block-scaled kernels, which multiply the same weights, stand in. And a model of which some row is faster than HBM can
read its experts did not read them: its router sends tokens to a few groups of experts only, or its experts are not gated.
Experts in mxfp4 are those with mxfp8 activations where such were measured (Blackwell): what engines are set to there, though
vLLM's default keeps bf16 activations. And rows in bf16 are of three kinds (`sim/cost/expert_tiles.py`): with tuned tiles, with
those of vLLM's rule of today, and with the small ones of its old rule. That is SGLang's too, whose rows count where there
are some: of an A100's experts, vLLM 0.14 and SGLang 0.5.10 took the same time to 1 % in the median.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.cost.expert_tiles import OTHER_LIBRARY, SMALL, TRITON_BLOCKS, TUNED, tiles_of
from sim.cost.fits import array
from sim.cost.formats import weight_bytes
from sim.cost.kernels import Floats
from sim.cost.measured_corrections import sound_ranks
from sim.hardware.gpu import Gpu
from sim.studies.kernel_kinds import MOE_NAMES, SKEWED, KernelKind, experts_with_tokens
from sim.studies.kernel_tables import Table, read_table

COLD = 8.0
"""Times the size of L2 that weights must have so that a bench that repeats one kernel reads them from HBM."""
NOT_GATED = ((1024, 2688), (2048, 5120), (2688, 1856), (4096, 2688), (8192, 5120))
"""Hidden sizes and columns of the models of the tables whose experts are not gated (Nemotron 3): two matrices, not three."""
MODEL = ("hidden_size", "inter_size", "num_experts", "topk")
"""Columns that name a model."""


def expert_rows(kind: KernelKind, tables: Path, gpu: Gpu) -> Table | None:
    """The rows that the constants of `kind` are fitted to; None where there are none."""
    if kind.dtype == TRITON_BLOCKS:
        table = _read(kind, tables, "fp8_block", "sglang")
        if table is None or gpu.sm_version in OTHER_LIBRARY:
            return None
        return _kept(table, _plausible(kind, table, gpu) & sound_ranks("sglang", table["moe_ep_size"]))
    table = _read(kind, tables, "mxfp4_mxfp8") if kind.dtype == "mxfp4" else None
    if table is None:
        table = _read(kind, tables, _weights(kind))
    if kind.dtype == "fp8" and table is not None and _slower_than_bf16(kind, table, tables):
        table = _read(kind, tables, "fp8_block") or table
    if _weights(kind) != "bf16":
        return None if table is None else _kept(table, _plausible(kind, table, gpu))
    others = _read(kind, tables, "bf16", "sglang") if kind.dtype in (SMALL, TUNED) else None
    for one in (others, table) if kind.dtype == SMALL else (table, others):
        found = None if one is None else _kept(one, _plausible(kind, one, gpu) & _with_tiles(kind, one, gpu))
        if found is not None:
            return found
    return None


def _kept(table: Table, rows: NDArray[np.bool_]) -> Table | None:
    return {name: column[rows] for name, column in table.items()} if rows.any() else None


def _weights(kind: KernelKind) -> str:
    """The format of the experts' weights."""
    return {SMALL: "bf16", TUNED: "bf16", TRITON_BLOCKS: "fp8_block"}.get(kind.dtype, kind.dtype)


def _with_tiles(kind: KernelKind, table: Table, gpu: Gpu) -> NDArray[np.bool_]:
    """Rows that ran with the tiles of `kind`, on ranks that can be believed."""
    engine, version = (str(table[name][0]) if name in table else "" for name in ("framework", "version"))
    ranks = table["moe_ep_size"]
    experts, columns = table["num_experts"] / ranks, table["inter_size"] / table["moe_tp_size"]
    tiles = tiles_of(engine.lower(), version).constants_of(gpu, experts, columns)
    return np.asarray((tiles == kind.dtype) & sound_ranks(engine.lower(), ranks))


def _read(kind: KernelKind, tables: Path, dtype: str, engine: str = "vllm") -> Table | None:
    where = {**kind.where, "moe_dtype": MOE_NAMES.get(dtype, dtype)}
    if engine == "sglang":  # whose other kernels are FlashInfer's
        where |= {"kernel_source": "sglang_fused_moe_triton"}
    for routing in ({}, SKEWED):
        table = read_table(tables, kind.file, {**where, **routing}, kind.shape, engine)
        if table is not None:
            return table
    return None


def _slower_than_bf16(kind: KernelKind, table: Table, tables: Path) -> bool:
    """Whether most shapes measured in both formats take longer with half the bytes."""
    bf16 = _read(kind, tables, "bf16")
    if bf16 is None:
        return False
    known = dict(zip(_shapes(kind, bf16), bf16["latency_s"], strict=True))
    pairs = zip(_shapes(kind, table), table["latency_s"], strict=True)
    ratios = [seconds / known[shape] for shape, seconds in pairs if shape in known]
    return bool(ratios) and float(np.median(ratios)) > 1


def _shapes(kind: KernelKind, table: Table) -> list[tuple[float, ...]]:
    return list(zip(*(table[name].tolist() for name in kind.shape), strict=True))


def _plausible(kind: KernelKind, table: Table, gpu: Gpu) -> NDArray[np.bool_]:
    """Rows of models none of which beats the printed HBM bandwidth, and whose experts are gated."""
    weights = _weights_bytes(kind, table)
    beaten = (weights > COLD * gpu.l2_bytes) & (weights > gpu.hbm_bytes_per_s * table["latency_s"])
    models = np.stack([table[name] for name in MODEL], axis=1)
    _, place = np.unique(models, axis=0, return_inverse=True)
    gated = [pair not in NOT_GATED for pair in zip(table["hidden_size"], table["inter_size"], strict=True)]
    return ~np.isin(place.reshape(-1), place.reshape(-1)[beaten]) & gated


def _weights_bytes(kind: KernelKind, table: Table) -> Floats:
    """Bytes of the experts that have tokens: three matrices each."""
    columns = table["inter_size"] / table["moe_tp_size"]
    return array(3 * experts_with_tokens(table) * table["hidden_size"] * columns * weight_bytes(_weights(kind)))
