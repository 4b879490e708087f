"""Which attention kernels serve on a GPU, as far as their structure shows in their time.

vLLM (its choice of attention backends by compute capability, 0.14 to 0.24) runs FlashAttention-3 on Hopper, the kernels of
TensorRT-LLM through FlashInfer on data-centre Blackwell, and FlashAttention-2 elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

from sim.cost.fits import OLDER_READS
from sim.hardware.gpu import Gpu


class AttentionSoftware(NamedTuple):
    """What differs between generations of attention kernels beyond how well they do."""

    prefill_launches: int
    """Kernels that follow each other in a prefill attention: cache write, (work list of tiles), attention."""
    decode_launches: int
    """The same where the keys of a sequence are split: cache write, (work list), attention, (sum of the splits)."""
    decode_tiles: float
    """Thread blocks of a decode attention that are at work on one SM at the same time."""
    query_tile: float
    """Rows of queries that a thread block works on."""
    overlap: float
    """How the tensor cores' time and the softmax's combine: 1 one after the other, more the better they overlap."""
    splits_ungrouped: bool
    """Keys are split over thread blocks too where every query head has a KV head of its own. Over an fp8 cache they always are:
    where FlashAttention does not read it, FlashInfer does."""
    transposes_fp8: bool
    """Over an fp8 cache both products are in fp8: a kernel more quantises the queries, and values are transposed on the way to
    the tensor cores, which take them in one layout only, through registers that a head of more than 128 elements overflows."""
    writes_by_head: bool
    """The cache keeps the tokens of a head together, so that a warp writes one head of a token, however short."""
    multiplies_latents_in_fp8: bool
    """Absorbed latent attention over an fp8 cache multiplies in fp8; else in bf16."""
    latent_tile_fp8: float
    """Heads of a tile of that attention: fewer take as long."""
    latents_in_blocks: bool
    """Absorbed latent attention is Triton's, in thread blocks of few heads and keys; over an fp8 cache too."""
    reads: float
    """Share of the rate of the others at which its decoding draws keys from HBM."""


FLASH_ATTENTION_2 = AttentionSoftware(2, 3, 2.0, 128.0, 1.0, False, False, False, False, 1.0, True, OLDER_READS)
"""Its products wait for its softmax; splits keys in grouped decoding only (FlashAttention-2; set_params_splitkv); the tiles of
its decoding, 80 KB of shared memory for heads of 64 and 128, leave room for a second thread block on an SM."""
FLASH_ATTENTION_3 = AttentionSoftware(3, 3, 1.0, 128.0, 1.6, True, True, False, False, 64.0, False, 1.0)
"""Two warp groups take turns, one multiplying, one in its softmax (FlashAttention-3, sections 3.1 and 3.3). Latents in fp8
are FlashMLA's there, whose tiles hold 64 heads (its BLOCK_SIZE_M)."""
TRTLLM_GEN = AttentionSoftware(3, 2, 4.0, 256.0, 2.5, True, False, True, True, 1.0, False, 1.0)
"""Two tiles of 128 rows take turns while the tensor cores run on by themselves; the last thread block of a sequence sums the
splits. Launches and blocks at work are those that its costs a call and a tile show beside the others' (tables of
aiconfigurator)."""

FP32_LANES = {70: 64.0, 75: 64.0, 80: 64.0}
"""FP32 results a cycle and SM where that is not 128 (CUDA C++ programming guide, throughput of arithmetic instructions)."""
EXPONENTIALS_A_CYCLE = 16.0
"""Of the special-function units of one SM (same table)."""
MORE_EXPONENTIALS = {103: 2 * EXPONENTIALS_A_CYCLE}
"""Where they do more (NVIDIA's blog, Inside NVIDIA Blackwell Ultra: 10.7e12 exponentials a second, 5e12 on Blackwell)."""
SOFTMAX_INSTRUCTIONS = 6.0
"""FP32 instructions of one score beside its exponential: scale and shift, maximum, sum, conversion, rescaling."""


def attention_software(gpu: Gpu) -> AttentionSoftware:
    """The kernels that vLLM runs on `gpu`."""
    if gpu.sm_version == 90:
        return FLASH_ATTENTION_3
    return TRTLLM_GEN if 100 <= gpu.sm_version < 110 else FLASH_ATTENTION_2


def softmax_s(gpu: Gpu) -> float:
    """Seconds of one score's softmax on the whole GPU, with all units busy."""
    exponentials = MORE_EXPONENTIALS.get(gpu.sm_version, EXPONENTIALS_A_CYCLE)
    cycles = 1 / exponentials + SOFTMAX_INSTRUCTIONS / FP32_LANES.get(gpu.sm_version, 128.0)
    return cycles / (gpu.sm_count * gpu.boost_hz)
