"""What measured tables say beyond the roofline, kernel kind by kernel kind.

Every correction is measured / reference, where the reference is the roofline of the GPU as it stood on the test bench:
its keys and values warm in L2, its host launching kernel by kernel, its experts balanced to the last token. Applied to
the roofline of what an engine asks, it leaves the test bench behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.cost import attention_fits, fits
from sim.cost.formats import kv_bytes, weight_bytes
from sim.cost.interpolation import Curve, LogGrid, affine_factors, kernel_share, log_grid
from sim.cost.kernels import DecodeAttentionTime, Floats
from sim.cost.measured_tables import Table
from sim.cost.mla_module import NOPE, RANK, ROPE, V, beside_s, measured_decode_s
from sim.cost.roofline import Roofline

DECODE_CONTEXT = 64.0
"""Least context, in tokens, of the decode rows that count: below it a kernel is all fixed cost, and nobody serves that."""
PREFILL_BATCH_TOKENS = 32768.0
"""Most tokens of the prefill rows that count: engines batch no more prompt tokens into an iteration."""

SPOILT = 1.5
"""How much longer than with more tokens a matrix multiplication may take before its measurement counts as spoilt."""


@dataclass(frozen=True, slots=True)
class AffineCurve:
    """Corrections of a kernel's fixed cost and of its body, along one axis."""

    fixed: Curve
    body: Curve
    rows: int
    """Measured rows that they were fitted to."""


Point = tuple[Floats, Floats, Floats, float]
"""Rows at one coordinate: reference fixed cost, reference body, measured seconds, and the least factor of the body."""


def gemm_grid(roofline: Roofline, table: Table, dtype: str) -> LogGrid:
    """log(measured / roofline) over m, n, k."""
    c = roofline.constants("gemm", dtype)
    values = np.empty(len(table))
    for rows in _by_weights(table):
        n, k = int(table["n"][rows[0]]), int(table["k"][rows[0]])
        cold = fits.from_l2(c, roofline.gpu, n * k * weight_bytes(dtype))
        alone_s = fits.gemm(c, roofline.gpu, table["m"][rows], n, k, dtype, cold).total_s
        values[rows] = _deviation(
            table["latency_s"][rows], alone_s, fits.gemm_host_s(c, roofline.gpu, table["m"][rows])
        )
    return log_grid((table["m"], table["n"], table["k"]), values)


def without(roofline: Roofline, table: Table, apart: Table, dtype: str) -> Table:
    """Matrix multiplications without another kernel in them, whose times by (m, k) `apart` holds; no shorter than printed
    peaks allow. Rows that `apart` does not know are left out."""
    apart_s = dict(zip(zip(apart["m"], apart["k"], strict=True), apart["latency_s"], strict=True))
    shapes = list(zip(table["m"], table["k"], strict=True))
    known = np.flatnonzero([shape in apart_s for shape in shapes])
    rows = table.only(known)
    left_s = rows["latency_s"] - [apart_s[shapes[i]] for i in known]
    peaks = Roofline(roofline.gpu, ideal=True).constants("gemm", dtype)
    least_s = fits.gemm(peaks, roofline.gpu, rows["m"], rows["n"], rows["k"], dtype).total_s
    return Table({**rows.columns, "latency_s": np.maximum(left_s, least_s)}, rows.origin, rows.engine)


class Columns(Protocol):
    """Columns of a table by name."""

    def __getitem__(self, column: str, /) -> NDArray[Any]: ...


def spoilt_gemms(table: Columns) -> NDArray[np.bool_]:
    """Rows that took more than `SPOILT` times as long as the same weights with more tokens: an engine could pad."""
    return spoilt_rows(table, "m", ("n", "k"))


def spoilt_rows(table: Columns, along: str, alike: Sequence[str]) -> NDArray[np.bool_]:
    """Rows that took more than `SPOILT` times as long as one with more of `along` and the same `alike`."""
    spoilt = np.zeros(len(table[along]), dtype=bool)
    for rows in _by_shape(table, along, alike):
        latency_s = table["latency_s"][rows]
        later_s = np.minimum.accumulate(latency_s[::-1])[::-1]
        spoilt[rows] = latency_s > SPOILT * later_s
    return spoilt


def _by_weights(table: Columns) -> list[NDArray[np.intp]]:
    """Indices of the rows of each (n, k), by ascending m."""
    return _by_shape(table, "m", ("n", "k"))


def _by_shape(table: Columns, along: str, alike: Sequence[str]) -> list[NDArray[np.intp]]:
    """Indices of the rows of each set of values of `alike`, by ascending `along`."""
    order = np.lexsort((table[along], *(table[name] for name in alike)))
    changes = np.zeros(len(order) - 1, dtype=bool)
    for name in alike:
        changes |= np.diff(table[name][order]) != 0
    return np.split(order, np.flatnonzero(changes) + 1)


def moe_curve(roofline: Roofline, table: Table, shape: Sequence[int], dtype: str, balanced: bool) -> tuple[Curve, bool]:
    """log(measured / roofline) over tokens, and whether `shape` itself was measured.

    Else it is the mean over all measured shapes, weighted by the inverse square of their distance in logarithms.

    Args:
        shape: hidden size, columns of an expert on the rank, top-k, experts, experts on the rank.
        balanced: the rows were measured with every expert taking the same number of tokens, else uniformly at random.
    """
    every = _moe_shapes(table)
    shapes, place = np.unique(every, axis=0, return_inverse=True)
    distance = ((np.log(shapes) - np.log(shape)) ** 2).sum(axis=1)
    measured = bool(distance.min() == 0)
    chosen = np.flatnonzero(distance == 0) if measured else np.arange(len(shapes))
    weights = np.ones(1) if measured else 1 / distance
    tokens = np.unique(table["num_tokens"])
    order = np.lexsort((table["num_tokens"], place.ravel()))
    parts = np.split(order, np.flatnonzero(np.diff(place.ravel()[order])) + 1)
    values = [_moe_deviation(roofline, table.only(parts[i]), shapes[i], dtype, balanced).at(tokens) for i in chosen]
    return Curve(np.log(tokens), np.average(values, axis=0, weights=weights)), measured


def _moe_deviation(roofline: Roofline, rows: Table, shape: Floats, dtype: str, balanced: bool) -> Curve:
    """log(measured / roofline) over tokens for the rows of one shape."""
    tokens, place = np.unique(rows["num_tokens"], return_inverse=True)
    latency_s = np.full(len(tokens), np.inf)
    np.minimum.at(latency_s, place.ravel(), rows["latency_s"])
    hidden, columns, top_k, experts, local = shape
    routing = fits.Routing.uniform(tokens, experts, local, top_k)
    if balanced:
        routing = replace(routing, touched=np.minimum(local, np.maximum(routing.here, 1)))
    c = roofline.expert_constants(dtype, int(local), int(columns))
    cold = fits.from_l2(c, roofline.gpu, 3 * routing.touched * hidden * columns * weight_bytes(dtype))
    alone = fits.moe(c, roofline.gpu, routing, hidden, columns, dtype, cold)
    return Curve(np.log(tokens), _deviation(latency_s, alone.total_s, c.get("host_s")))


def sound_ranks(engine: str, ranks: Floats) -> NDArray[np.bool_]:
    """Rows of experts over `ranks` that can be believed.

    SGLang's on several ranks cannot. On Hopper those of 0.5.10 took 1.3 to 2.1 times as long as 0.5.14's for many tokens on 2
    to 16 ranks, and 0.5 to 0.85 times on more; and 0.5.14's of Mixtral and two other models take 1.4 to 3 times as long as
    their products would. On one rank both agree to 4 %.
    """
    return np.asarray((ranks == 1) | (engine != "sglang"))


MOE_SHAPE = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")


def _moe_shapes(table: Table) -> Floats:
    """Hidden size, columns of an expert on the rank, top-k, experts and experts on the rank, for every row."""
    local = np.maximum(table["num_experts"] / table["moe_ep_size"], 1.0)
    columns = table["inter_size"] / table["moe_tp_size"]
    return np.stack([table["hidden_size"], columns, table["topk"], table["num_experts"], local], axis=1)


def decode_curve(
    roofline: Roofline, rows: Table, heads: int, kv_heads: int, head_dim: int, kv_dtype: str
) -> AffineCurve:
    """Corrections of decode attention by number of sequences, from the rows of one shape."""
    c, gpu = roofline.constants("decode_attention", kv_dtype), roofline.gpu
    peaks = Roofline(gpu, ideal=True)

    def factors(sequences: float, part: Table) -> Point:
        context = sequences * (part["step"] + 1)
        time = roofline.decode_attention(sequences, heads, kv_heads, head_dim, kv_dtype)
        body_s = context * _slope_s(time)
        # what a test bench that repeats one kernel finds in L2, an engine reads from HBM
        cold = fits.from_l2(c, gpu, 2 * context * kv_heads * head_dim * kv_bytes(kv_dtype))
        asked_s, seen_s = (
            one.fixed_s + context * (one.memory_s_per_token + one.compute_s_per_token)
            for one in (
                attention_fits.decode_attention(c, gpu, sequences, heads, kv_heads, head_dim, kv_dtype, share)
                for share in (1.0, cold)
            )
        )
        cold_s = part["latency_s"] * asked_s / seen_s
        ideal = peaks.decode_attention(sequences, heads, kv_heads, head_dim, kv_dtype)
        return time.fixed_s + 0 * context, body_s, cold_s, _slope_s(ideal) / _slope_s(time)

    served = rows.only(rows["step"] + 1 >= DECODE_CONTEXT)
    return _affine_curve(_groups(served, "batch_size"), factors)


def prefill_curve(
    roofline: Roofline, rows: Table, heads: int, kv_heads: int, head_dim: int, kv_dtype: str, window: int | None
) -> AffineCurve:
    """Corrections of prefill attention by prompt length, from the rows of one shape: prompts of a batch share the fixed
    cost, and each adds its body."""
    peaks = Roofline(roofline.gpu, ideal=True)

    def factors(tokens: float, part: Table) -> Point:
        time = roofline.prefill_attention(tokens, 0.0, heads, kv_heads, head_dim, kv_dtype, window)
        sequences = part["batch_size"]
        ideal = peaks.prefill_attention(tokens, 0.0, heads, kv_heads, head_dim, kv_dtype, window)
        least = float(ideal.total_s / (time.memory_s + time.compute_s))
        return time.fixed_s + 0 * sequences, sequences * (time.memory_s + time.compute_s), part["latency_s"], least

    batched = rows.only((rows["batch_size"] * rows["isl"] <= PREFILL_BATCH_TOKENS) | (rows["batch_size"] == 1))
    return _affine_curve(_groups(batched, "isl"), factors)


def prefill_mla_curve(roofline: Roofline, rows: Table, heads: int, kv_dtype: str, module: bool) -> AffineCurve:
    """Corrections of latent prefill attention by prompt length.

    Args:
        module: the rows hold the projections around the attention too (`beside_s`); their share of a deviation is theirs.
    """
    host_s = roofline.constants("prefill_mla", kv_dtype).get("host_s")
    peaks = Roofline(roofline.gpu, ideal=True)

    def factors(tokens: float, part: Table) -> Point:
        sequences = part["batch_size"]
        time = roofline.prefill_mla(tokens, 0.0, heads, RANK, ROPE, NOPE, V, kv_dtype)
        body_s = sequences * (time.memory_s + time.compute_s)
        own_s = time.fixed_s + body_s
        beside = beside_s(
            roofline, sequences * tokens, heads, kv_dtype, prefill=True, module=module, engine=rows.engine
        )
        measured_s = own_s * np.exp(_deviation(part["latency_s"], own_s + beside, host_s))
        ideal = peaks.prefill_mla(tokens, 0.0, heads, RANK, ROPE, NOPE, V, kv_dtype)
        least = float(ideal.total_s / (time.memory_s + time.compute_s))
        return time.fixed_s + 0 * sequences, body_s, measured_s, least

    batched = rows.only((rows["batch_size"] * rows["isl"] <= PREFILL_BATCH_TOKENS) | (rows["batch_size"] == 1))
    return _affine_curve(_groups(batched, "isl"), factors)


def decode_mla_curve(roofline: Roofline, rows: Table, heads: int, kv_dtype: str, module: bool) -> AffineCurve:
    """Corrections of latent decode attention by number of sequences; `module` as in `prefill_mla_curve`."""
    c = roofline.latent_constants(kv_dtype)
    peaks = Roofline(roofline.gpu, ideal=True)

    def factors(sequences: float, part: Table) -> Point:
        # a module's table counts the new token in `step`, an operator's does not
        context = sequences * (part["step"] + (0 if module else 1))
        time = roofline.decode_mla(sequences, heads, RANK, ROPE, kv_dtype)
        body_s = context * _slope_s(time)
        seen_s = measured_decode_s(c, roofline, sequences, heads, context, kv_dtype, module=module, engine=rows.engine)
        measured_s = (time.fixed_s + body_s) * np.exp(_deviation(part["latency_s"], seen_s, c.get("host_s")))
        ideal = peaks.decode_mla(sequences, heads, RANK, ROPE, kv_dtype)
        return time.fixed_s + 0 * context, body_s, measured_s, _slope_s(ideal) / _slope_s(time)

    served = rows.only(rows["step"] + 1 >= DECODE_CONTEXT)
    return _affine_curve(_groups(served, "batch_size"), factors)


def _deviation(measured_s: Floats, alone_s: Floats, host_s: Floats | float | None) -> Floats:
    """log(measured / reference), of which only the kernel's own share counts."""
    seen_s = alone_s if host_s is None else np.maximum(alone_s, host_s)
    return np.asarray(kernel_share(host_s, alone_s) * np.log(measured_s / seen_s))


def _slope_s(time: DecodeAttentionTime) -> float:
    return float(time.memory_s_per_token + time.compute_s_per_token)


def _groups(table: Table, column: str) -> Iterator[tuple[float, Table]]:
    for value in np.unique(table[column]):
        yield float(value), table.only(table[column] == value)


def _affine_curve(groups: Iterator[tuple[float, Table]], point: Callable[[float, Table], Point]) -> AffineCurve:
    """The curves through the factors fitted at each coordinate."""
    coordinates, fixed, body, rows = [], [], [], 0
    for coordinate, part in groups:
        a, b = affine_factors(*point(coordinate, part))
        coordinates.append(coordinate)
        fixed.append(a)
        body.append(b)
        rows += len(part)
    logs = np.log(coordinates)
    return AffineCurve(Curve(logs, np.array(fixed)), Curve(logs, np.array(body)), rows)
