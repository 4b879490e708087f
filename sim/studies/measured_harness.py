"""What a published benchmark does not say in its columns but in its conditions: engine options and the harness.

Each assumption is a sentence in `Harness.notes`, which ends up beside the prediction.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from sim.hardware.gpu import load_gpu
from sim.model.transformer import load_model
from sim.studies.engine_defaults import (
    SGLANG_RANGE_RATIO,
    random_range,
    sglang_chunk,
    sglang_memory_share,
    sglang_sequences,
    vllm_limits,
    vllm_memory_share,
)
from sim.studies.load_forms import Load
from sim.studies.measured_engines import Engine, engine_of, numbers_of
from sim.studies.measured_rows import MeasuredRow, tokens

EAGER_TRTLLM = (0, 20)
"""The one whose tables were made without CUDA graphs (README of the folder of measurements)."""
BENCH_CACHE_SHARE = 0.95
"""--kv_cache_free_gpu_mem_fraction of the trtllm-bench runs of TensorRT-LLM's performance pages, as those of v0.17 state it."""
STATIC_PASS_TOKENS = 32768
"""Tokens of one pass in which a static batch is prefilled at most: beyond it the time grows in proportion anyway."""
SGLANG_RESERVE_BYTES = 15.7e9
"""What SGLang leaves free beside weights, cache and activations in NVIDIA's runs, for chunks of 8,192 tokens: 0.80 of an H100, of
which the ledger counts 1.5 % of activations apart, is what six runs of 0.5.8 with 65 GB of weights show, and four of 0.5.1 that
fill their cache. Neither release does so by itself (`sglang_memory_share`)."""
CYCLED_PROMPTS = 100
"""AIPerf's default number of dataset entries (`--num-dataset-entries`), which requests take in turn."""
CLIENT_S = 10e-3
"""Constant part of TTFT in the AIC rows beyond what the same engines show with other load generators; set by hand."""
PAUSE_S = 10e-3
"""Mean time of a load generator between an answer and the same user's next request; set by hand to the AIC rows of vLLM. Without
it users who once were answered in the same iteration would send their requests together for ever."""
TRTLLM_PAUSE_S = 1e-3
"""The same before TensorRT-LLM, half a year earlier: with more, each prompt finds more of those before it still waiting."""


BLANK_PRECISIONS = ("", "unknown", "unknown (blank in source)")
"""How a precision reads that the source left blank."""
UNEVEN_TRTLLM, UNEVEN_OUTPUTS = (1, 0), (0.8, 1.2)
"""Version of TensorRT-LLM (1.0.0rc3), and outputs over the nominal, of NVIDIA's runs whose precision is left blank; one of their
users always waits for a place besides. Found on those runs (Llama-3.1-8B): at 8 to 32 users TTFT grows by the time of one
generation over the number of users, whatever the prompt, and is otherwise that of prompts that do not come in trains. Runs whose
precision is stated (Qwen3-32B) show neither."""


@dataclass(slots=True)
class Harness:
    """How a row was measured."""

    preset: str
    engine: dict[str, Any] = field(default_factory=dict)
    """Keys of the scenario's engine section."""
    uniform: tuple[float, float] | None = None
    """Lengths uniform between these shares of the nominal ones; None: fixed."""
    outputs: tuple[float, float] | None = None
    """The same of the outputs alone, whose prompts are fixed."""
    varying: bool = False
    """Lengths of a data set of which only the means are stated."""
    mean_tokens: tuple[int, int] | None = None
    """Mean prompt and output where the run's own figures tell them."""
    client_s: float = 0.0
    """The load generator's own time, which is in its times to first token and end to end."""
    decodes_last_prompt_token: bool = False
    """The prompt is computed but for its last token, which the first decode takes (TurboMind's LlamaBatch): the first answer
    comes one iteration later."""
    pause_s: float = 0.0
    """Mean time between an answer and the same user's next request, exponentially distributed."""
    num_requests: int | None = None
    max_model_len: int | None = None
    """Tokens that a sequence may have in vLLM's V0, as its model allows; None: stated, or of no account."""
    reserves_whole_sequence: bool = False
    """The engine admits a request only if its prompt and its whole output fit into the KV cache beside the others'
    (TensorRT-LLM's GUARANTEED_NO_EVICT, the default of its capacity scheduler)."""
    activations_apart: bool = False
    """Its share of the memory is for weights and cache alone; activations are in what it leaves free (SGLang)."""
    cycled_prompts: int = 0
    """Distinct prompts that are sent over and over, so that a prefix cache finds them; 0: all differ."""
    notes: list[str] = field(default_factory=list)


def harness_of(row: MeasuredRow, load: Load) -> Harness:
    """The harness of an end-to-end row.

    Raises:
        InputError: an engine for which no preset stands.
    """
    server = engine_of(row.engine)
    preset = server.preset
    found = Harness(preset, {"preset": preset, "gpu_memory_utilization": 0.9})
    if preset == "trtllm" and server.release == EAGER_TRTLLM:
        found.engine["cuda_graphs"] = False
    if server.relative:
        found.notes.append(f"nobody modelled {row.engine}: times of the preset {preset}")
        if preset == "vllm":
            found.engine["async_scheduling"] = False
    found.reserves_whole_sequence = "trt" in row.engine.lower() or "tensorrt" in row.engine.lower()
    if preset == "sglang":
        _sglang_defaults(found, row, server)
    words = f"{row.conditions} {row.engine}".lower()
    _options(found, row, load, words, server)
    _stated(found, row.conditions)
    if load.kind == "static":
        _static(found, load, row)
    return found


def _options(found: Harness, row: MeasuredRow, load: Load, words: str, server: Engine) -> None:
    """Defaults of the engine, and of the harness that the source is known to use."""
    engine = found.engine
    engine["version"] = server.version
    if found.preset == "vllm" and "nightly" in words and server.version is None:
        engine["async_scheduling"] = False
        found.notes.append(
            "a nightly build of vLLM's own dashboard: from before it scheduled asynchronously by default"
        )
    if found.preset == "vllm" and not server.relative and not row.id.startswith("aic"):
        _vllm_defaults(found, row, server, in_process=load.kind == "static" or "offline" in row.load.lower())
    if load.kind == "closed_loop":
        _closed_loop(found, row, load, words, server)
    elif found.preset == "sglang" and load.kind != "static":
        engine["scheduler"] = "prefill_first"
        engine["max_num_seqs"] = sglang_sequences(load_gpu(row.gpu))
    if found.preset.startswith("trtllm") and load.kind in ("burst", "poisson"):
        engine["max_num_seqs"] = 2048
    if any(
        name in words for name in ("trtllm-bench", "gptmanagerbenchmark", "in-flight batching", "benchmark_latency")
    ):
        found.engine["api_server"] = False
    if "gpt-fast" in words or "lmdeploy" in words:
        found.engine["api_server"] = False
    found.decodes_last_prompt_token = "turbomind" in words


def _sglang_defaults(found: Harness, row: MeasuredRow, server: Engine) -> None:
    """What SGLang does unless it is told otherwise, by version, GPU and cut."""
    gpu = load_gpu(row.gpu)
    chunk = sglang_chunk(server.numbers, gpu)
    found.engine["max_num_batched_tokens"] = chunk
    if row.id.startswith("aic"):
        share = 1 - SGLANG_RESERVE_BYTES * chunk / 8192 / gpu.visible_memory_bytes
    else:
        gpus = math.prod(int(cut) for cut in (row.tensor, row.pipeline) if cut.isdigit())
        share = sglang_memory_share(server.numbers, gpu, gpus)
        found.activations_apart = True
    found.engine["gpu_memory_utilization"] = round(max(share, 0.5), 3)


def _vllm_defaults(found: Harness, row: MeasuredRow, server: Engine, in_process: bool) -> None:
    """What vLLM does unless it is told otherwise, by version, GPU and model."""
    model = load_model(row.model)
    stated = re.search(r"max[_-]model[_-]len[\s=:]+(\d+)", row.conditions)
    longest = int(stated[1]) if stated else model.max_position
    limits = vllm_limits(server.numbers, load_gpu(row.gpu), longest, model.has_windows)
    found.engine["gpu_memory_utilization"] = vllm_memory_share(server.numbers)
    found.engine["max_num_seqs"] = limits.sequences
    found.engine["max_num_batched_tokens"] = limits.in_process_tokens if in_process else limits.server_tokens
    if limits.prompts_first:
        found.engine["scheduler"] = "prefill_first"
        found.notes.append("vLLM before its V1 engine: prompts first, and whole")
    if limits.by_length and not stated:
        found.max_model_len = longest


def _closed_loop(found: Harness, row: MeasuredRow, load: Load, words: str, server: Engine) -> None:
    """Users who send the next request when the last one is answered."""
    engine = found.engine
    nvidia = row.id.startswith("aic")
    own = engine.get("max_num_seqs")  # of vLLM, which nobody is said to have changed
    engine["max_num_seqs"] = load.count if nvidia else own or max(load.count, 256)
    if not nvidia and "max_num_batched_tokens" in engine:
        engine["max_num_batched_tokens"] = max(engine["max_num_batched_tokens"], engine["max_num_seqs"])
    found.num_requests = 10 * load.count
    found.pause_s = TRTLLM_PAUSE_S if found.preset.startswith("trtllm") else PAUSE_S
    inference_max = re.search(r"inference ?max|infmax", f"{words} {row.publication}".lower()) is not None
    nominal = row.isl.endswith("000") and not inference_max
    # one benchmark of NVIDIA's sends lengths such as 4000 to engines set up alike
    alike = nvidia and nominal
    if found.preset == "sglang" and not alike:
        # prompts go before decodes, so whoever arrives late catches up, and users stay in step whatever happens
        engine["scheduler"] = "prefill_first"
    if inference_max or (nominal and not (alike and found.preset == "sglang")):
        found.uniform = (0.8, 1.0)
    if not nvidia:
        return
    found.client_s = CLIENT_S
    if alike or found.preset.startswith("trtllm") or (found.preset == "vllm" and not inference_max):
        engine["max_num_batched_tokens"] = one_prompt_tokens(sum(tokens(row.isl)), load.count)
        found.notes.append("one prompt beside the decodes of an iteration, as NVIDIA's recipes set the token budget")
    blank = row.precision.lower() in BLANK_PRECISIONS
    if found.preset == "trtllm" and server.release == UNEVEN_TRTLLM and blank and not alike:
        engine["max_num_seqs"] = max(load.count - 1, 1)
        found.outputs = UNEVEN_OUTPUTS
        found.notes.append("one place fewer than users and outputs of 0.8 to 1.2 of the nominal: as such runs look")
    if nominal and found.preset != "sglang":
        found.cycled_prompts = CYCLED_PROMPTS
        engine["enable_prefix_caching"] = True
        found.notes.append("prompts assumed to repeat every 100: prefill would exceed the tensor peak otherwise")


def one_prompt_tokens(prompt_tokens: int, users: int) -> int:
    """The token budget that holds one prompt and every user's decode, rounded up to 64.

    Source: MAX_NUM_TOKENS of NVIDIA's recipes in InferenceMAX's TensorRT-LLM scripts, concurrency + input + 64.
    """
    return -(-(users + prompt_tokens + 64) // 64) * 64


def _stated(found: Harness, conditions: str) -> None:
    """Engine options that the conditions state in so many words."""
    for key in ("max_num_seqs", "max_num_batched_tokens"):
        if match := re.search(rf"{key.replace('_', '[_-]')}[\s=:]+(\d+)", conditions):
            found.engine[key] = int(match[1])
    if match := re.search(
        r"(?:gpu[_-]mem(?:ory)?[_-]util(?:ization)?|mem[_-]fraction[_-]static|kv_cache_free_gpu_mem_fraction)[\s=:]+(0\.\d+)",
        conditions,
    ):
        found.engine["gpu_memory_utilization"] = float(match[1])
    elif "trtllm-bench" in conditions:
        found.engine["gpu_memory_utilization"] = BENCH_CACHE_SHARE
    _random_lengths(found, conditions)
    if "KV 99%" in conditions:
        found.engine["gpu_memory_utilization"] = 0.99
    if "max runtime batch 4096" in conditions:
        found.engine["max_num_seqs"] = 4096
    if re.search(r"enforce[_-]eager", conditions):
        found.engine["cuda_graphs"] = False
    if "prefix caching ON" in conditions:
        found.engine["enable_prefix_caching"] = True
    if match := re.search(r"(\d+) distinct \S+ prompts cycled", conditions):
        found.cycled_prompts = int(match[1])
    if "lengths vary" in conditions:
        found.varying = True
        found.notes.append("only mean lengths stated: log-normal around them")
    if match := re.search(r"^(\d+) (?:ShareGPT )?(?:requests|prompts)", conditions):
        found.num_requests = int(match[1])


def _random_lengths(found: Harness, conditions: str) -> None:
    """The range of lengths that a benchmark tool was asked for, or draws if it was not."""
    stated = re.search(r"random[_-]range[_-]ratio[\s=:]+(\d*\.?\d+)", conditions)
    of_sglang = "bench_serving" in conditions
    asked = re.search(r"dataset[_-]name[\s=:]+random\b", conditions) is not None
    if stated is None and not (of_sglang and asked):
        return
    ratio = float(stated[1]) if stated else SGLANG_RANGE_RATIO
    of_vllm = not of_sglang and found.preset == "vllm"
    found.uniform = random_range(ratio, of_vllm, numbers_of(found.engine.get("version")))


def _static(found: Harness, load: Load, row: MeasuredRow) -> None:
    """One batch, computed to its end."""
    found.engine["api_server"] = False
    found.num_requests = load.count
    prompt = STATIC_PASS_TOKENS if "sharegpt" in row.isl.lower() else sum(tokens(row.isl))
    in_a_pass = min(STATIC_PASS_TOKENS, load.count * prompt)
    found.engine |= {"max_num_seqs": load.count, "max_num_batched_tokens": max(in_a_pass, load.count)}
