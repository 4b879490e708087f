"""What a published benchmark does not say in its columns but in its conditions: engine options and the harness.

Each assumption is a sentence in `Harness.notes`, which ends up beside the prediction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from sim.hardware.gpu import load_gpu
from sim.studies.load_forms import Load
from sim.studies.measured_engines import Engine, engine_of
from sim.studies.measured_rows import MeasuredRow, tokens

EAGER_TRTLLM = (0, 20)
"""The one whose tables were made without CUDA graphs (README of the folder of measurements)."""
BENCH_CACHE_SHARE = 0.95
"""--kv_cache_free_gpu_mem_fraction of the trtllm-bench runs of TensorRT-LLM's performance pages, as those of v0.17 state it."""
STATIC_PASS_TOKENS = 32768
"""Tokens of one pass in which a static batch is prefilled at most: beyond it the time grows in proportion anyway."""
SGLANG_RESERVE_BYTES = 15.7e9
"""What SGLang leaves free beside weights, cache and activations. Its `mem_fraction_static` is what a reserve in bytes leaves, not
a share (server_args.py: most of it 1.5 MiB for each token of a chunk); 0.80 of an H100, of which the ledger counts 1.5 % of
activations apart, is what six runs of 0.5.8 with 65 GB of weights show, and four of 0.5.1 that fill their cache."""
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
    reserves_whole_sequence: bool = False
    """The engine admits a request only if its prompt and its whole output fit into the KV cache beside the others'
    (TensorRT-LLM's GUARANTEED_NO_EVICT, the default of its capacity scheduler)."""
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
        share = 1 - SGLANG_RESERVE_BYTES / load_gpu(row.gpu).visible_memory_bytes
        found.engine["gpu_memory_utilization"] = round(max(share, 0.5), 3)
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
    if load.kind == "closed_loop":
        _closed_loop(found, row, load, words, server)
    if found.preset.startswith("trtllm") and load.kind in ("burst", "poisson"):
        engine["max_num_seqs"] = 2048
    if any(
        name in words for name in ("trtllm-bench", "gptmanagerbenchmark", "in-flight batching", "benchmark_latency")
    ):
        found.engine["api_server"] = False
    if "gpt-fast" in words or "lmdeploy" in words:
        found.engine["api_server"] = False
    found.decodes_last_prompt_token = "turbomind" in words


def _closed_loop(found: Harness, row: MeasuredRow, load: Load, words: str, server: Engine) -> None:
    """Users who send the next request when the last one is answered."""
    engine = found.engine
    nvidia = row.id.startswith("aic")
    engine["max_num_seqs"] = load.count if nvidia else max(load.count, 256)
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
        if match := re.search(rf"{key}\s+(\d+)", conditions):
            found.engine[key] = int(match[1])
    if match := re.search(
        r"(?:gpu_mem(?:ory)?_util(?:ization)?|kv_cache_free_gpu_mem_fraction)\s+(0\.\d+)", conditions
    ):
        found.engine["gpu_memory_utilization"] = float(match[1])
    elif "trtllm-bench" in conditions:
        found.engine["gpu_memory_utilization"] = BENCH_CACHE_SHARE
    if "KV 99%" in conditions:
        found.engine["gpu_memory_utilization"] = 0.99
    if "max runtime batch 4096" in conditions:
        found.engine["max_num_seqs"] = 4096
    if "prefix caching ON" in conditions:
        found.engine["enable_prefix_caching"] = True
    if match := re.search(r"(\d+) distinct \S+ prompts cycled", conditions):
        found.cycled_prompts = int(match[1])
    if "lengths vary" in conditions:
        found.varying = True
        found.notes.append("only mean lengths stated: log-normal around them")
    if match := re.search(r"^(\d+) (?:ShareGPT )?(?:requests|prompts)", conditions):
        found.num_requests = int(match[1])


def _static(found: Harness, load: Load, row: MeasuredRow) -> None:
    """One batch, computed to its end."""
    found.engine["api_server"] = False
    found.num_requests = load.count
    in_a_pass = min(STATIC_PASS_TOKENS, load.count * sum(tokens(row.isl)))
    found.engine |= {"max_num_seqs": load.count, "max_num_batched_tokens": max(in_a_pass, load.count)}
