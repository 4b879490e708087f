"""Formulas of matrix multiplications and elementwise kernels over their fitted constants.

Each takes the constants of one fit (`c`), the GPU, and a shape, all numpy-vectorised, and returns a `KernelTime`.
Calibration fits the constants through the same functions, so a fit and its use cannot drift apart. Constants are
dimensionless fractions of printed peaks, or seconds (`_s`), and mean the same on every GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sim.cost.formats import ARITHMETIC, weight_bytes
from sim.cost.kernels import Floats, KernelTime
from sim.hardware.gpu import Gpu

Constants = Mapping[str, float]
ACTIVATION_BYTES = 2.0  # activations between kernels are bf16
MXFP8_BYTES = 1 + 1 / 32  # with one 8-bit exponent a group of 32 (OCP microscaling formats)
TILE = 128.0  # rows and columns of the usual tile of a thread block (CUTLASS, cuBLAS); half the rows for few tokens
IN_WAVES = range(70, 90)  # compute capabilities whose bf16 kernels run tiles in whole waves
WAVE_TILES = ((256.0, 128.0), (128.0, 128.0), (128.0, 64.0), (64.0, 64.0))  # rows, columns (cuBLAS on Ampere)
OLDER_READS = 0.87  # rate of cuBLAS's and FlashAttention-2's kernels for Ampere at HBM, over later ones' (L40S)
EDGE = 40.0  # rows and columns whose loading costs a tile as much as its products (A100 table: 128 x 128 at 0.9 of 256 x 128)
PARTIAL_BYTES = 8.0  # an fp32 partial sum written and read, where blocks split k
MMA_ROWS = 16.0  # of the smallest product of tensor cores (PTX ISA, mma.m16n8k16)
MMA_SYNC_FLOPS = 2048.0  # bf16, a cycle and SM (NVIDIA A100 whitepaper: 1024 fused multiply-adds)
DEPTH_REFERENCE = 4096.0  # elements of k at which `depth_s` is quoted
FEW_TOKENS = 32.0  # below which vLLM on Hopper takes FlashInfer's kernel for block-scaled FP8, not DeepGEMM
MARLIN_SM = 120  # compute capability from which vLLM 0.24 runs experts in mxfp4 in Marlin, as before Blackwell
SCALES_ALIGNED = 4.0  # fp32 scales of 16 bytes: what the columns of scales that DeepGEMM's TMA loads are multiples of


def array(value: Floats | float) -> Floats:
    """`value` as an array of float64."""
    return np.asarray(value, dtype=np.float64)


def smooth_body(compute_s: Floats, memory_s: Floats, overlap: float) -> tuple[Floats, Floats]:
    """(memory share, compute share) of the body (x^p + y^p)^(1/p), x compute, y memory, p `overlap`.

    The shares are body x y^p / (x^p + y^p) and body x x^p / (x^p + y^p). p = 1 adds the two, p = infinity takes the larger.
    """
    high = np.maximum(compute_s, memory_s)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(high > 0, np.minimum(compute_s, memory_s) / high, 0.0)
    power = np.zeros_like(ratio) if np.isinf(overlap) else ratio**overlap
    body = high if np.isinf(overlap) else high * (1 + power) ** (1 / overlap)
    major = body / (1 + power)
    minor = body - major
    compute_leads = compute_s >= memory_s
    return np.where(compute_leads, minor, major), np.where(compute_leads, major, minor)


def peak_flops_per_s(gpu: Gpu, dtype: str) -> float:
    """Tensor peak of the arithmetic that multiplies `dtype`, at the clock its power leaves the GPU; a format the GPU cannot
    multiply is unpacked to bf16."""
    return gpu.loaded_clock * gpu.flops_per_s[arithmetic(gpu, dtype)]


def arithmetic(gpu: Gpu, dtype: str) -> str:
    """The arithmetic `dtype` runs in on `gpu`: its own where the GPU has it, else bf16 (weight-only kernels, Marlin)."""
    own = ARITHMETIC.get(dtype, "bf16")
    return own if own in gpu.flops_per_s else "bf16"


def expert_flops_per_s(gpu: Gpu, dtype: str) -> float:
    """The same for the grouped GEMMs of experts, which reach half of the peak and leave a GPU its boost clock: Marlin, which
    unpacks integers, multiplies on every GPU by the instructions of Ampere (mma.sync), 2048 FLOPs a cycle and SM, and not by
    those that reach the printed peak of later ones."""
    peak = gpu.flops_per_s[expert_arithmetic(gpu, dtype)]
    return min(peak, MMA_SYNC_FLOPS * cycles_per_s(gpu)) if dtype == "int4_wo" else peak


def expert_arithmetic(gpu: Gpu, dtype: str) -> str:
    """The arithmetic of experts in `dtype`: where tensor cores take 4-bit operands, engines multiply mxfp4 weights by mxfp8
    activations, at the rate of fp8 (vLLM's recipe for gpt-oss on Blackwell; the default of SGLang and TensorRT-LLM; on CDNA 4
    assumed alike). On Blackwell's graphics cards vLLM 0.24 unpacks them to bf16 (Marlin), and reaches the same share of that
    peak as on an L40S: 0.59 and 0.55."""
    takes_4_bits = not gpu.flops_per_s.keys().isdisjoint(("fp4", "mxfp4")) and gpu.sm_version < MARLIN_SM
    return "fp8" if dtype == "mxfp4" and takes_4_bits else arithmetic(gpu, dtype)


def expert_activation_bytes(gpu: Gpu, dtype: str) -> float:
    """Bytes of one element that goes into experts in `dtype`."""
    if expert_arithmetic(gpu, dtype) == "bf16":
        return ACTIVATION_BYTES
    return MXFP8_BYTES if dtype == "mxfp4" else weight_bytes(dtype)


def streaming_s(c: Constants, gpu: Gpu, size_bytes: Floats) -> Floats:
    """Seconds to read `size_bytes` once: at `memory` of the HBM bandwidth, or, where the SMs must unpack what they read,
    at `stream` bytes a cycle each, whichever is slower."""
    hbm_s = size_bytes / (c["memory"] * gpu.hbm_bytes_per_s)
    if "stream" not in c:
        return hbm_s
    return np.asarray((hbm_s**4 + (size_bytes / (c["stream"] * cycles_per_s(gpu))) ** 4) ** 0.25)


def cycles_per_s(gpu: Gpu) -> float:
    """Cycles a second of all SMs together, at the boost clock."""
    return gpu.sm_count * gpu.boost_hz


def from_l2(c: Constants, gpu: Gpu, read_bytes: Floats | float) -> Floats:
    """What remains of the HBM time when a measurement repeats one kernel and finds what it reads in L2.

    Below `warm_l2` of the L2's size it is read in `warm_time` of the time. In an engine the weights of all layers have
    passed through L2 since.
    """
    found = 1 / (1 + (array(read_bytes) / (c["warm_l2"] * gpu.l2_bytes)) ** 6)
    return np.asarray(1 - found * (1 - c["warm_time"]))


def _rows(m: Floats, whole: float, tuned: bool) -> Floats:
    """Rows that the tensor cores multiply for `m` tokens: pairs of 128-row tiles beyond one tile, 64 rows at least; an engine
    that tries its kernels has tiles of 192 rows too.

    Between whole tokens a new tile opens gradually, so that the function has no jump.
    """
    pairs = np.floor(m / (2 * TILE))
    many = 2 * TILE * (pairs + np.minimum(m - 2 * TILE * pairs, 1.0))
    third = 1.5 * TILE if tuned else TILE
    few = TILE / 2 * (1 + np.clip(m - TILE / 2, 0, 1) + np.clip(m - TILE, 0, 1) + np.clip(m - third, 0, 1))
    return np.asarray(m + whole * (np.where(m < 2 * TILE, few, many) - m))


def _loading(rows: float, columns: float) -> float:
    """Time of a tile over that of its multiplications: its operands are loaded too."""
    return 1 + EDGE * (1 / rows + 1 / columns)


def _in_waves(c: Constants, gpu: Gpu, m: Floats, n: Floats, k: Floats) -> Floats:
    """FLOPs of the time that bf16 tiles take where they run in whole waves, one tile an SM at a time.

    The last wave costs a whole one, at the best size of tile, or k is split until no SM idles, and partial sums pass HBM. From
    Hopper on no waves are seen in the time of kernels, whose thread blocks stay on their SM and share out what is left.
    """
    flops = 2 * m * n * k
    if gpu.sm_version not in IN_WAVES:
        return flops
    peak = gpu.loaded_clock * gpu.flops_per_s["bf16"]
    whole = np.full(np.shape(flops), np.inf)
    for rows, columns in WAVE_TILES:
        waves = np.ceil(np.ceil(m / rows) * np.ceil(n / columns) / gpu.sm_count)
        tile = 2 * np.clip(m, MMA_ROWS, rows) * columns * k * _loading(rows, columns) / _loading(*WAVE_TILES[0])
        whole = np.minimum(whole, waves * gpu.sm_count * tile)
    split = flops + c.get("partial", PARTIAL_BYTES) * m * n / gpu.hbm_bytes_per_s * peak
    return np.asarray(np.maximum(np.minimum(whole, split), flops))


def weight_reads(c: Constants, gpu: Gpu) -> float:
    """Share of the HBM bandwidth at which a matrix product reads its weights."""
    return c["memory"] * c.get("reads", OLDER_READS if gpu.sm_version in IN_WAVES else 1.0)


def gemm(
    c: Constants,
    gpu: Gpu,
    m: Floats | float,
    n: Floats | float,
    k: Floats | float,
    dtype: str,
    cold: Floats | float = 1.0,
) -> KernelTime:
    """out[m, n] = in[m, k] x weights[k, n], of which reading the weights takes `cold` of its time from HBM (1 but for a test
    bench that finds them in L2).

    body = p-norm of FLOPs over the tensor peak and bytes over HBM. The last tile of tokens, where it is not full, costs
    `whole` of what it lacks (1: a whole tile; in bf16 cuBLAS picks among so many tiles that nothing is left of it). The
    last wave of tiles leaves SMs idle for `serial` of the time of one tile, which runs through all of k (almost none in
    bf16, where cuBLAS splits k). Filling and draining that pipeline costs `depth_s` x (k / 4096) ^ `depth_power`: power 1
    where one thread block does all of k, 1/2 at the best split of k over thread blocks (s of them leave k/s steps and s
    partial sums to add).

    A quantised activation is first read in bf16 and written in its own format by a kernel of its own (its launch is part
    of `launch_s`), at `quantise` bytes a cycle on every SM. Where a thread block looks for the scale of a whole token, it
    costs `quantise_row_s`; with a scale for every 128 elements a block takes several, of whichever token.
    """
    m, n, k = array(m), array(n), array(k)
    weight = weight_bytes(dtype)
    quantised = arithmetic(gpu, dtype) != "bf16"
    activation = weight if quantised else ACTIVATION_BYTES
    hbm, peak = gpu.hbm_bytes_per_s, peak_flops_per_s(gpu, dtype)
    one_tile_s = 2 * np.clip(m, TILE / 2, TILE) * TILE * k / (peak / gpu.sm_count)
    rows = _rows(m, c.get("whole", 0.0), "tuned" in c)
    flops = _in_waves(c, gpu, m, n, k) if weight == ACTIVATION_BYTES else 2 * rows * n * k
    compute_s = (flops / peak + c["serial"] * one_tile_s) / c["compute"]
    reads = weight_reads(c, gpu)
    moved_s = (m * k * activation + m * n * ACTIVATION_BYTES) / (c.get("activation", reads) * hbm)
    memory_s = cold * n * k * weight / (reads * hbm) + moved_s
    memory, compute = smooth_body(compute_s, memory_s, c["overlap"])
    fixed_s = c["launch_s"] + c["depth_s"] * (k / DEPTH_REFERENCE) ** c["depth_power"] + np.zeros_like(compute)
    if quantised:
        fixed_s = fixed_s + c.get("quantise_row_s", 0.0) * m / gpu.sm_count
        memory = memory + m * k * (ACTIVATION_BYTES + activation) / (c["quantise"] * cycles_per_s(gpu))
    return KernelTime(fixed_s, memory, compute)


def gemm_host_s(c: Constants, gpu: Gpu, m: Floats) -> Floats | None:
    """Seconds that the host took to launch a GEMM measured without CUDA graphs; None where it was measured in them.

    Block-scaled FP8 in vLLM: quantising and DeepGEMM `host_s`, and `align_host_s` to lay out the scales anew where their
    columns are not aligned; on Hopper, for few tokens, one kernel of FlashInfer, `few_host_s`.
    """
    if "host_s" not in c:
        return None
    align_s = np.where(m % SCALES_ALIGNED != 0, c.get("align_host_s", 0.0), 0.0)
    few = (m < FEW_TOKENS) & (gpu.sm_version // 10 == 9)
    return np.where(few, c.get("few_host_s", c["host_s"]), c["host_s"] + align_s)


def experts_touched(
    tokens: Floats | float, experts: Floats | float, local_experts: Floats | float, top_k: Floats | float
) -> Floats:
    """Experts of this rank that at least one of `tokens` picks, expected when every token picks uniformly.

    local x (1 - (1 - k/E)^T); the weights of the others are not read.
    """
    missed = (1 - array(top_k) / experts) ** array(tokens)
    return array(local_experts * (1 - missed))


@dataclass(frozen=True, slots=True)
class Routing:
    """What the tokens of a batch ask of the experts on one rank; numbers are expectations."""

    tokens: Floats
    experts: Floats
    """On this rank."""
    touched: Floats
    """Of these, the ones that a token picks."""
    here: Floats
    """(token, expert) pairs of this rank's experts."""
    pairs: Floats
    """Those of all ranks."""

    @classmethod
    def uniform(
        cls, tokens: Floats | float, experts: Floats | float, local_experts: Floats | float, top_k: Floats | float
    ) -> Routing:
        """Every token picks `top_k` of `experts`, of which `local_experts` are here, uniformly."""
        touched, pairs = experts_touched(tokens, experts, local_experts, top_k), array(tokens) * top_k
        return cls(array(tokens), array(local_experts), touched, pairs * local_experts / experts, pairs)


def moe(
    c: Constants,
    gpu: Gpu,
    routing: Routing,
    hidden: Floats | float,
    intermediate: Floats | float,
    dtype: str,
    cold: Floats | float = 1.0,
) -> KernelTime:
    """Grouped gate+up and down GEMMs of the experts of a rank that have tokens.

    Three matrices of hidden x intermediate an expert. An expert computes `tile` rows more than it has, for its last row
    tile is never full (four times as many where tiles of 16 rows become 64: `_more_rows`), and costs `expert_s` of one SM to
    set up. Small tiles (`sim/cost/expert_tiles.py`) of 64 rows read weights at `narrow` of the rate, half a cache line at a
    time. The serial reductions over hidden, then intermediate, cost `depth_s` for every 4096 elements. Where some of the pairs
    are not routed here, those of this rank are picked out first, which costs `map_s`. Reading the weights takes `cold` of its
    time from HBM (as in `gemm`).

    The rows of pairs routed here go in and out of the GEMMs at `gather` bytes a cycle on every SM, at HBM's rate at most.
    Kernels that know nothing of ranks (Triton's and Marlin's in vLLM) write zeros for pairs of other ranks and activate
    those too; then all rows are summed. These bytes go at `combine` bytes a cycle, and `passes` of them are made: all, or the
    tenth that is left where a library sums in its second GEMM.
    """
    hidden, intermediate = array(hidden), array(intermediate)
    tokens, touched, routed, pairs = routing.tokens, routing.touched, routing.here, routing.pairs
    activation = expert_activation_bytes(gpu, dtype)
    large = _more_rows(routing, "narrow" in c)
    rows = routed + c["tile"] * (1 + 3 * large) * touched
    compute_s = 6 * rows * hidden * intermediate / (c["compute"] * expert_flops_per_s(gpu, dtype))
    weights_s = cold * streaming_s(c, gpu, 3 * touched * hidden * intermediate * weight_bytes(dtype))
    moved = routed * (hidden * (activation + ACTIVATION_BYTES) + intermediate * (3 * ACTIVATION_BYTES + activation))
    weights_s = weights_s * (1 + large * (1 / c.get("narrow", 1.0) - 1))
    memory, compute = smooth_body(compute_s, weights_s + _passed_s(c, gpu, moved, c["gather"]), c["overlap"])
    # gate and up written and read, their product written; the output written
    elsewhere = ACTIVATION_BYTES * (pairs - routed) * (5 * intermediate + hidden)
    summed = ACTIVATION_BYTES * hidden * (pairs + tokens)
    combine_s = _passed_s(c, gpu, c.get("passes", 1.0) * (elsewhere + summed), c["combine"])
    depth_s = c["depth_s"] * (hidden + intermediate) / DEPTH_REFERENCE
    map_s = np.where(routed < 0.999 * pairs, c["map_s"], 0.0)
    fixed_s = c["launch_s"] + depth_s + map_s + c["expert_s"] * touched / gpu.sm_count + np.zeros_like(compute)
    return KernelTime(fixed_s, memory + combine_s, compute)


def _more_rows(routing: Routing, by_rule: bool) -> Floats:
    """How much tiles have 64 rows instead of 16 (0 to 1): the rule of small tiles gives them to more tokens than experts, opening
    gradually over one token; tuned ones and those of libraries do so around that many for each expert with tokens."""
    if by_rule:
        return np.clip(routing.tokens - routing.experts, 0.0, 1.0)
    tokens_an_expert = routing.here * routing.tokens / np.maximum(routing.touched * routing.pairs, 1e-12)
    return np.asarray(tokens_an_expert**4 / (1 + tokens_an_expert**4))


def _passed_s(c: Constants, gpu: Gpu, size_bytes: Floats, cycle_bytes: float) -> Floats:
    """Seconds of activations through HBM and the SMs, which take `cycle_bytes` a cycle each."""
    through_hbm, through_sms = 1 / (c["memory"] * gpu.hbm_bytes_per_s), 1 / (cycle_bytes * cycles_per_s(gpu))
    return size_bytes * float(np.hypot(through_hbm, through_sms))


def elementwise(c: Constants, gpu: Gpu, bytes_moved: Floats | float, kernels: int) -> KernelTime:
    """Memory-bound kernels: a fixed cost each, and their bytes through HBM."""
    moved = array(bytes_moved)
    memory_s = moved / (c["memory"] * gpu.hbm_bytes_per_s)
    return KernelTime(np.full_like(memory_s, kernels * c["launch_s"]), memory_s, np.zeros_like(memory_s))
