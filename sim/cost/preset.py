"""What a serving engine adds to the kernels: gaps, graph padding, host time, API time.

Fixed costs of kernels themselves are in the kernel fits; these are the engine's own. Every number is a time that could be
seen in a profile of the engine, fitted to published end-to-end measurements (`sim/studies/calibrate_engine.py`,
docs/validation.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.cost.expert_tiles import SGLANG_TILES, SMALL_BEFORE, VLLM_SMALL_TILES, VLLM_TILES, ExpertTiles
from sim.cost.formats import Quantisation
from sim.cost.vector_attention import VectorAttention
from sim.hardware.gpu import Gpu

POWER_BOUND_SM = range(90, 120)
"""Compute capabilities of GPUs that lower their clock under hours of load. Published runs of LMDeploy and of five versions of
TensorRT-LLM on A100 show prompts computed at the clock at which its kernels were measured; graphics cards, too, were
measured at the clock that they keep (`sim/hardware/power.py`)."""


@dataclass(frozen=True, slots=True)
class EnginePreset:
    """Overheads and defaults of one serving engine."""

    name: str
    layer_s: float
    """GPU idle time a layer between its kernels beyond their own fixed cost: dependent launches inside a CUDA graph."""
    step_s: float
    """GPU time an iteration outside the model: input copies, metadata kernels, sampling set-up."""
    host_step_s: float
    """Host time an iteration: scheduling, input preparation, output handling."""
    host_request_s: float
    """Host time for each scheduled request: its block table, its output token, its share of the message to the API."""
    stream_s: float
    """More host time for each token that is streamed to a client over HTTP, where the engine's loop waits for it."""
    entry_s: float
    """From the client's send until the engine's queue: HTTP, tokenisation, inter-process hop."""
    exit_s: float
    """From a sampled token until the client holds it: detokenisation, streaming."""
    async_scheduling: bool
    """The next iteration is scheduled while the GPU runs this one."""
    software: str
    """Whose all-reduce: one of `sim.cost.collectives.SOFTWARE`."""
    graph_sizes: tuple[int, ...]
    """Token counts that CUDA graphs are captured for; smaller batches are padded up. Empty: no padding."""
    server_token_s: float = 0.0
    """Time of the server process for each token that it streams, beside the engine: a new request waits behind those that are
    not sent yet."""
    launch_layer_s: float = 0.0
    """Host time to launch the kernels of one layer one by one, where no CUDA graph holds the iteration: the least a layer
    takes, however fast the GPU."""
    launch_all_reduce_s: float = 0.0
    """The same for an all-reduce, which begins when the hosts of all ranks have launched it: they are separate processes, and
    without a graph nothing keeps them in step."""
    mixed_graph_tokens: int = 0
    """Largest iteration with prompt tokens that CUDA graphs hold (vLLM's piecewise graphs); 0: they hold decodes only."""
    sustained_clock: float = 0.86
    """Clock that a GPU keeps under hours of prompt processing over the one its kernels were measured at in short bursts:
    what waits for the tensor cores takes that much longer. Fits of four engines gave 0.80 to 0.93 (docs/validation.md). An
    A100 keeps its clock (`clock_on`)."""
    quantisation: Quantisation = "dynamic"
    """Of activations, unless the checkpoint brings their scales."""
    fp8_attention: float = 1.0
    """Decode attention over an fp8 cache, in time of the measured kernels (vLLM's): an engine's own may be faster,
    but never reads its cache faster than the HBM gives it: a small share stands for kernels that HBM alone limits."""
    vector_attention: VectorAttention | None = None
    """Decode attention that does not run on tensor cores; None: all of it does."""
    latent_splits: float | None = None
    """Thread blocks to which Triton's latent attention gives the keys of a sequence (with 16 heads); None: one for 512 keys."""
    expert_tiles: ExpertTiles = VLLM_TILES
    """Of experts in bf16, and whether block-scaled ones are Triton's."""
    sliding_windows: bool = True
    """A model's sliding windows limit what its queries see and what is kept for them."""
    tuned_reads: bool = False
    """Whoever built the engine tried its kernels: what mostly reads (products of few tokens, decode attention) reads as fast as
    the best kernel measured."""
    serve_step_s: float = 0.0
    """More host time of an iteration as a server: its tokens are handed to the process that answers the clients."""
    ideal: bool = False
    """Printed peaks, no fixed cost: the back of an envelope."""
    source: str = ""

    @property
    def eager(self) -> EnginePreset:
        """Without CUDA graphs: nothing is padded, and the host launches every kernel of every iteration."""
        return replace(self, graph_sizes=(), mixed_graph_tokens=0)

    @property
    def over_http(self) -> EnginePreset:
        """As a server: every token is streamed."""
        step_s, request_s = self.host_step_s + self.serve_step_s, self.host_request_s + self.stream_s
        return replace(self, host_step_s=step_s, host_request_s=request_s, serve_step_s=0.0, stream_s=0.0)

    @property
    def in_process(self) -> EnginePreset:
        """As a library: the client calls the engine in its own process, without HTTP or tokenisation."""
        return replace(self, serve_step_s=0.0, stream_s=0.0, server_token_s=0.0, entry_s=0.0, exit_s=0.0)

    def host_s(self, requests: NDArray[Any]) -> NDArray[np.float64]:
        """Host time of iterations of so many requests each."""
        return np.asarray(self.host_step_s + self.host_request_s * requests)

    def clock_on(self, gpu: Gpu) -> float:
        """The clock that `gpu` keeps: all of it before tensor cores could draw more power than a card may."""
        return self.sustained_clock if gpu.sm_version in POWER_BOUND_SM else 1.0


VLLM_GRAPH_SIZES = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))
"""Token counts for which vLLM captures CUDA graphs by default (vllm/config, cudagraph_capture_sizes)."""

_IDEAL = EnginePreset(
    name="ideal",
    layer_s=0.0,
    step_s=0.0,
    host_step_s=0.0,
    host_request_s=0.0,
    stream_s=0.0,
    entry_s=0.0,
    exit_s=0.0,
    async_scheduling=False,
    software="ideal",
    graph_sizes=(),
    sustained_clock=1.0,
    ideal=True,
    source="the back of an envelope",
)

PRESETS: dict[str, EnginePreset] = {
    "ideal": _IDEAL,
    "vllm": EnginePreset(
        name="vllm",
        layer_s=14e-6,
        step_s=120e-6,
        host_step_s=0.2e-3,
        host_request_s=28e-6,
        stream_s=0.0,
        entry_s=8e-3,
        exit_s=1e-3,
        async_scheduling=True,
        software="custom",
        graph_sizes=VLLM_GRAPH_SIZES,
        launch_layer_s=0.25e-3,
        mixed_graph_tokens=512,
        source="AIC rows of 0.12 and BLIS rows of 0.15.1 on H100; launching and entry assumed (docs/validation.md)",
    ),
    "trtllm": EnginePreset(
        name="trtllm",
        layer_s=10e-6,
        step_s=100e-6,
        host_step_s=2.0e-3,
        host_request_s=3e-6,
        stream_s=50e-6,
        entry_s=8e-3,
        exit_s=1e-3,
        async_scheduling=True,
        software="trtllm",
        graph_sizes=VLLM_GRAPH_SIZES,
        launch_layer_s=0.57e-3,
        quantisation="fused",
        fp8_attention=0.35,
        source="AIC rows of 1.0.0rc3 on H100: the host from Llama-3.1-8B over eight GPUs, launching from short prompts",
    ),
    "trtllm-cpp": EnginePreset(
        name="trtllm-cpp",
        layer_s=3e-6,
        step_s=100e-6,
        host_step_s=0.1e-3,
        host_request_s=0.5e-6,
        stream_s=3e-6,
        entry_s=2e-3,
        exit_s=1e-3,
        async_scheduling=False,
        software="trtllm",
        graph_sizes=(),
        launch_layer_s=40e-6,
        sustained_clock=0.9,
        quantisation="fused",
        fp8_attention=0.35,
        vector_attention=VectorAttention(12.0, None),
        sliding_windows=False,
        tuned_reads=True,
        serve_step_s=0.65e-3,
        source="TensorRT-LLM v0.5 to v0.17; one batch after the other, as its executor did; launching and entry assumed",
    ),
    "sglang": EnginePreset(
        name="sglang",
        layer_s=5e-6,
        step_s=120e-6,
        host_step_s=0.5e-3,
        host_request_s=4e-6,
        stream_s=38e-6,
        entry_s=20e-3,
        exit_s=1e-3,
        async_scheduling=True,
        software="shots",
        graph_sizes=VLLM_GRAPH_SIZES,
        server_token_s=48e-6,
        launch_layer_s=0.25e-3,
        mixed_graph_tokens=16384,
        expert_tiles=SGLANG_TILES,
        source="62 runs of SGLang 0.5; its server by the 19,600 tokens/s it reaches; entry by hand, launching assumed",
    ),
}
"""Each engine in its newest known version. TensorRT-LLM has two: its PyTorch backend, and the compiled engines before it."""


ASYNC_SINCE = (0, 14)
"""vLLM schedules asynchronously by default from this version on (vllm/config/scheduler.py, async_scheduling)."""
VLLM_GRAPHS: tuple[tuple[tuple[int, ...], tuple[int, ...], int], ...] = (
    ((0, 2, 6), (), 0),
    ((0, 6), (1, 2, 4, *range(8, 257, 8)), 0),
    ((0, 8), (1, 2, 4, *range(8, 8193, 8)), 0),
    ((0, 11, 1), (1, 2, 4, *range(8, 513, 8)), 512),
)
"""(version before which, `graph_sizes`, `mixed_graph_tokens`) of vLLM: none at first, then of decodes only (vllm/worker/
model_runner.py; from 0.6 on up to max_num_seqs, which no batch exceeds), with V1 of mixed iterations too (vllm/config)."""
SGLANG_GRAPHS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((0, 3), (1, 2, 4, *range(8, 129, 8))),
    ((0, 4, 8), (1, 2, 4, *range(8, 161, 8))),
)
"""(version before which, `graph_sizes`) of SGLang (model_executor/cuda_graph_runner.py), on GPUs of 25 GB or more."""
PIECEWISE_SINCE = (0, 5, 10)
"""SGLang replays prompts from CUDA graphs too by default from this version on, up to its longest chunk
(disable_piecewise_cuda_graph). That MLA stops at 2,048 tokens, and stages of a pipeline and data-parallel attention have none, is
not told apart."""
OVERLAP_SINCE = (0, 3, 6)
"""SGLang overlaps scheduling with the GPU by default from this version on (srt/server_args.py, disable_overlap_schedule)."""
VLLM_LAUNCH = ((0, 3), 0.37e-3)
"""(version before which, host time to launch a layer) of vLLM without CUDA graphs: the 80 layers of Llama-2-70B take 29.6 ms on
four H100s and 29.8 on eight (splitwise-sim, data/perf_model.csv, of 2023)."""
VLLM_LATENT_SPLITS = ((0, 20), 4.0)
"""(version before which, thread blocks of a sequence) of vLLM's Triton kernel (TritonMLAImpl, num_kv_splits: 4 in 0.15.1, by the
longest context in 0.20.0)."""
VLLM_V0_HOST: tuple[tuple[tuple[int, int], Mapping[str, Any]], ...] = (
    ((0, 6), {"host_step_s": 0.35e-3, "host_request_s": 88e-6, "serve_step_s": 0.6e-3, "stream_s": 90e-6}),
    ((0, 8), {"host_step_s": 0.2e-3, "host_request_s": 58e-6, "server_token_s": 66e-6}),
)
"""(version before which, host times) of vLLM before V1: those of V1 above, plus what its Python took longer than that of 0.12.0,
both run on one CPU without a GPU. An iteration took 0.35 ms and 12 us a request in 0.12.0; 0.5 ms and 72 us in 0.5.3 (90 us in
0.4.3); 0.34 ms and 43 us in 0.6.6 and 0.7.3, beside 24 us for outputs, which they process while the GPU runs. Streaming took 0.6
ms an iteration and 90 us a token in the engine's process of 0.5.3, and 66 us a token in the server's of 0.6.6. Of the run that
vLLM's blog of 5 September 2024 profiled with 0.5.3 (GPU 38 %, scheduling 29, server 33) these differences make 44, 27 and 29 %;
ratios would make 36, 40 and 24. Scheduling ten iterations at once (0.6, an option) is not priced."""
TRTLLM_SERVER = ((1, 1), 108e-6)
"""(version before which, server time a token) of trtllm-serve: up to 9,280 tokens/s in the runs of 1.0.0rc3, with seconds to the
first token long before; a run of 1.2 behind NVIDIA's Dynamo streams 10,140 without."""
TRTLLM_LAUNCH = ((1, 0), 0.3e-3)
"""(version before which, host time to launch a layer) of TensorRT-LLM's PyTorch backend. Assumed, near that of the other engines:
0.57 ms was seen on iterations with prompts of 1.0.0rc3 behind its server, and no row at hand tells of decodes without graphs;
those of v0.20's own tables, as remembered, would be a third slower with it than they are."""
TRTLLM_FUSES_SINCE = (1, 0, 0, 1)
"""Before this version (the release, not its candidates) TensorRT-LLM's PyTorch backend is taken to quantise activations by
kernels of their own, and to take its kernels untried: with FP8 prompts, iterations of 1.0.0rc3 take 7 to 10 % longer than
without, on one to eight GPUs alike; in bf16 they do not, nor do those of v1.0 in FP8."""
CPP_ALL_REDUCE_SINCE = (0, 6)
"""TensorRT-LLM has an all-reduce of its own from this version on; TurboMind 0.1 and FasterTransformer, where both come from, had
NCCL's only."""
CPP_STEPS = ((0, 10), (0, 13), 0.35e-3)
"""(versions from, before, `launch_all_reduce_s`) of the in-flight batching of TensorRT-LLM whose ranks were kept in step by their
hosts: Llama-70B decodes in 43 to 62 ms on two GPUs and in 67 to 105 on eight, with fp16 and fp8, at 20 to 900 sequences."""
CPP_VECTOR_ATTENTION = (
    ((0, 10), VectorAttention(17.0, (8,))),
    ((0, 11), VectorAttention(12.0, (8,))),
)
"""(version before which, decode attention) of TensorRT-LLM's compiled engines: for groups of eight there was a kernel on tensor
cores first (XQA, published with Llama-2-70B), for others from 0.11 on. Rates are those that max-throughput rows show on A100,
H100, H200 and GH200, with fp16 and fp8 caches alike (10 to 13 elements; 15 to 18 up to 0.9, whose static batches kept each
sequence's cache in one piece: no pages to look up). That windows are ignored is the default of its runtime, which keeps
`max_attention_window` at the longest sequence."""


def preset_for(
    name: str,
    version: str | None = None,
    api_server: bool = True,
    cuda_graphs: bool = True,
    factors: Mapping[str, float] | None = None,
) -> EnginePreset:
    """The preset of an engine in one of its versions.

    Args:
        name: a key of `PRESETS`.
        version: such as "0.12.0"; None, or a text without a number, means the newest known.
        api_server: clients reach it over HTTP; False: they call it in their own process.
        cuda_graphs: iterations are replayed from CUDA graphs where the engine captures them.
        factors: on its times, by field, as a calibration found them.
    """
    preset = PRESETS[name]
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?(.*)", version or "")
    if match is not None:
        preset = _in_version(preset, (int(match[1]), int(match[2]), int(match[3] or 0), int("rc" not in match[4])))
    scaled = {field: getattr(preset, field) * factor for field, factor in (factors or {}).items()}
    preset = replace(preset, **scaled)
    if not cuda_graphs:
        preset = preset.eager
    return preset.over_http if api_server else preset.in_process


def _in_version(preset: EnginePreset, version: tuple[int, int, int, int]) -> EnginePreset:
    """`preset` as it was in `version`: three numbers, and 1 if released, 0 for a candidate."""
    if preset.name == "vllm":
        if version < VLLM_LAUNCH[0]:
            preset = replace(preset, launch_layer_s=VLLM_LAUNCH[1])
        if version < VLLM_LATENT_SPLITS[0]:
            preset = replace(preset, latent_splits=VLLM_LATENT_SPLITS[1])
        host = next((times for before, times in VLLM_V0_HOST if version < before), {})
        preset = replace(preset, expert_tiles=VLLM_SMALL_TILES if version < SMALL_BEFORE else VLLM_TILES, **host)
        for before, sizes, mixed_tokens in VLLM_GRAPHS:
            if version < before:
                preset = replace(preset, graph_sizes=sizes, mixed_graph_tokens=mixed_tokens)
                break
        return replace(preset, async_scheduling=False) if version < ASYNC_SINCE else preset
    if preset.name == "sglang":
        sizes = next((sizes for before, sizes in SGLANG_GRAPHS if version < before), preset.graph_sizes)
        mixed_tokens = preset.mixed_graph_tokens if version >= PIECEWISE_SINCE else 0
        overlaps = version >= OVERLAP_SINCE
        return replace(preset, graph_sizes=sizes, mixed_graph_tokens=mixed_tokens, async_scheduling=overlaps)
    if preset.name == "trtllm":
        if version < TRTLLM_SERVER[0]:
            preset = replace(preset, server_token_s=TRTLLM_SERVER[1])
        if version < TRTLLM_FUSES_SINCE:
            preset = replace(preset, quantisation="static")
        return replace(preset, launch_layer_s=TRTLLM_LAUNCH[1]) if version < TRTLLM_LAUNCH[0] else preset
    if preset.name == "trtllm-cpp":
        if version < CPP_ALL_REDUCE_SINCE:
            preset = replace(preset, software="nccl")
        since, before, launch_s = CPP_STEPS
        if since <= version < before:
            preset = replace(preset, launch_all_reduce_s=launch_s)
        older = (vector for before, vector in CPP_VECTOR_ATTENTION if version < before)
        return replace(preset, vector_attention=next(older, preset.vector_attention))
    return preset


def padded(tokens: NDArray[np.int64], sizes: tuple[int, ...]) -> NDArray[np.int64]:
    """Token counts as CUDA graphs run them: up to the next captured size, unchanged beyond the largest."""
    if not sizes:
        return tokens
    table = np.asarray(sizes)
    place = np.searchsorted(table, tokens)
    return np.where(place < len(table), table[np.minimum(place, len(table) - 1)], tokens)


def launches(tokens: NDArray[np.int64], mixed: bool, preset: EnginePreset) -> NDArray[np.bool_]:
    """Whether the host launches the kernels of iterations of so many tokens one by one, for want of a CUDA graph.

    Args:
        tokens: of each iteration.
        mixed: prompt tokens are among them.
    """
    largest = preset.mixed_graph_tokens if mixed else max(preset.graph_sizes, default=0)
    return tokens > largest
