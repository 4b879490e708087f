"""From a row of published measurements to the scenario that repeats it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sim.engine.versions import newer_than_known
from sim.errors import TwoWallsError
from sim.model.balance import MemoryLedger
from sim.studies.load_forms import Load, parse_load
from sim.studies.measured_deployments import cluster_of, deployment_of
from sim.studies.measured_harness import Harness, harness_of
from sim.studies.measured_metrics import RunFacts
from sim.studies.measured_precision import precision_of
from sim.studies.measured_rows import MeasuredRow, tokens

SHAREGPT_TOKENS = (202, 214)
"""Mean prompt and output of ShareGPT as the TensorRT-LLM v0.17 online rows state them; others filter it differently."""
SHAREGPT_CV = (1.0, 0.8)
"""Coefficients of variation, both assumed: long-tailed, near exponential."""
MOST_TOKENS = 2048
"""Of a prompt, and of an output, of such a data set."""
REQUESTS_PER_USER = 10
"""Requests a user of a closed loop sends, if their number is not stated (AIPerf recipes: 10 x concurrency)."""
MOST_REQUESTS = 5000
OPEN_LOOP_S = 120.0
"""An open loop whose number of requests is not stated is simulated for this long, several times a request's stay."""
MLPERF_REQUESTS = 24_576
"""Samples of an offline run of MLPerf Inference (OpenOrca's set for Llama-2-70B; other models have fewer)."""
MLPERF_TOKENS = 4_000_000
"""Prompt and output tokens at which such a run is cut, for each GPU: many full batches of it."""
BURST_REQUESTS = ((300, 8192), (3000, 3000), (6000, 1500), (10**9, 1000))
"""(most tokens of prompt and output, requests) of a run with all requests queued at once, if its own number is not stated:
TensorRT-LLM's own tables send 30,000 requests of 128 + 128, which are cut to several full batches, and 3,000 to 1,000 of
the longer ones."""
CHUNK_TOKENS = 8192
"""Tokens that an iteration computes at most, where the engine's default is not known to differ."""
BLOCK_TOKENS = 16
"""Tokens of a KV block, the engine's default."""
STAGE_S = 120.0
"""Stages of an open loop are cut to this many seconds: several times a request's stay."""


@dataclass(slots=True)
class Case:
    """A scenario for the rows of one run, or why there is none."""

    rows: list[MeasuredRow]
    scenario: dict[str, Any] | None = None
    client_s: float = 0.0
    """The load generator's own time, in the measured TTFT and E2EL."""
    decodes_last_prompt_token: bool = False
    offered_rate: float | None = None
    """Requests a second of an open loop."""
    reason: str = ""
    notes: list[str] = field(default_factory=list)

    def before_first_s(self, facts: RunFacts) -> float:
        """What is in a measured time to first token and not in the simulated one."""
        return self.client_s + (facts.latencies_s["itl"].get("mean", 0.0) if self.decodes_last_prompt_token else 0.0)


def cases_of(rows: list[MeasuredRow]) -> list[Case]:
    """One case a benchmark run: rows that share everything but their metric."""
    by_run: dict[tuple[str, ...], list[MeasuredRow]] = {}
    for row in rows:
        by_run.setdefault(row.run, []).append(row)
    return [_case(group) for group in by_run.values()]


def _case(rows: list[MeasuredRow]) -> Case:
    row = rows[0]
    try:
        load = parse_load(row.load)
        if load.kind in ("unknown", "blank", "message", "gemm", "tokens"):
            return Case(rows, reason=f"the load '{row.load}' does not say how many requests come")
        harness = harness_of(row, load)
        harness.num_requests = load.requests or harness.num_requests
        harness.mean_tokens = _means_of(rows)
        last = harness.decodes_last_prompt_token
        case = Case(rows, client_s=harness.client_s, decodes_last_prompt_token=last, notes=harness.notes)
        case.scenario = _scenario(row, load, harness)
        if harness.reserves_whole_sequence and load.kind == "static":
            _allocate_batch(case.scenario, row, load)
        elif harness.reserves_whole_sequence:
            _reserve(case.scenario, row.id)
        elif harness.activations_apart:
            _spare_activations(case.scenario, row.id)
        case.offered_rate = load.rate or None
    except TwoWallsError as error:
        return Case(rows, reason=str(error).replace("\n", ";"))
    return case


def _scenario(row: MeasuredRow, load: Load, harness: Harness) -> dict[str, Any]:
    weights, kv_cache = precision_of(row, harness)
    precision = {"weights": weights, "kv_cache": kv_cache, **_scales(row, weights)}
    deployment = deployment_of(row, harness, precision)
    if deployment.get("pipeline_parallel_size", 1) > 1:
        harness.engine.pop("scheduler", None)  # stages are scheduled as vLLM does
    elif harness.max_model_len is not None and not _holds_one(row, harness.max_model_len, precision, deployment):
        # vLLM refuses to start then, so a shorter one was set
        harness.engine |= {"scheduler": "prefill_first", "max_num_batched_tokens": CHUNK_TOKENS}
    if harness.engine.get("scheduler") == "prefill_first":
        longest = (
            sum(tokens(row.isl)) + sum(tokens(row.osl or "1")) if "sharegpt" not in row.isl.lower() else 2 * MOST_TOKENS
        )
        budget = harness.engine.get("max_num_batched_tokens", CHUNK_TOKENS)
        harness.engine["max_num_batched_tokens"] = max(budget, longest)
    harness.engine = {key: value for key, value in harness.engine.items() if value is not None}
    if harness.preset == "vllm" and newer_than_known(harness.engine.get("version")):
        newer = harness.engine.pop("version")
        harness.notes.append(f"vLLM {newer} is newer than any whose rules are known: scheduled as the newest")
    return {
        "name": row.source,
        "model": row.model,
        "precision": precision,
        "cluster": cluster_of(row),
        "deployment": deployment,
        "engine": harness.engine,
        "workload": _workload(row, load, harness, deployment.get("data_parallel_size", 1)),
    }


def _holds_one(row: MeasuredRow, length: int, precision: dict[str, str], deployment: dict[str, Any]) -> bool:
    """Whether a replica of vLLM has room for one sequence of `length` tokens."""
    from sim.scenario import Scenario
    from sim.simulate import plan_memory

    one = {"kind": "fixed", "input_tokens": length - 1, "output_tokens": 1}
    about = {
        "model": row.model,
        "precision": precision,
        "cluster": cluster_of(row),
        "deployment": deployment,
        "engine": {"gpu_memory_utilization": 0.9},
        "workload": {"lengths": one, "arrivals": {"kind": "burst"}, "num_requests": 1},
    }
    try:
        return plan_memory(Scenario.from_dict(about, where=row.id)).max_sequences >= 1
    except TwoWallsError:
        return False


def _reserve(scenario: dict[str, Any], where: str) -> None:
    """Memory as TensorRT-LLM shares it out: the cache gets its fraction of what weights and activations leave free, and only as
    many sequences run as fit into it at their full length, so that none is ever preempted."""
    from sim.scenario import Scenario
    from sim.simulate import plan_memory

    asked = int(scenario["engine"].get("max_num_seqs", 256))

    def ledger(**options: float) -> MemoryLedger:
        return plan_memory(Scenario.from_dict({**scenario, "engine": scenario["engine"] | options}, where=where))

    # the sampler's memory is sized by the sequences that run, so it must not be planned for more
    running = min(asked, 256)
    fullest = ledger(max_num_seqs=running).per_gpu[0]
    free_share = 1 - fullest.needed_bytes / fullest.capacity_bytes
    left_share = (1 - scenario["engine"]["gpu_memory_utilization"]) * max(free_share, 0.0)
    scenario["engine"]["gpu_memory_utilization"] = 1 - left_share
    for _ in range(2):
        running = max(min(asked, ledger(max_num_seqs=running).max_sequences), 1)
    scenario["engine"]["max_num_seqs"] = running


def _spare_activations(scenario: dict[str, Any], where: str) -> None:
    """Memory as SGLang shares it out: its share holds weights and cache, and the rest whatever else is needed."""
    from sim.scenario import Scenario
    from sim.simulate import plan_memory

    engine = scenario["engine"]
    roomy = {**scenario, "engine": engine | {"gpu_memory_utilization": 1.0}}
    fullest = plan_memory(Scenario.from_dict(roomy, where=where)).per_gpu[0]
    beside_share = (fullest.activation_bytes + fullest.overhead_bytes) / fullest.capacity_bytes
    engine["gpu_memory_utilization"] = round(min(engine["gpu_memory_utilization"] + beside_share, 1.0), 3)


def _allocate_batch(scenario: dict[str, Any], row: MeasuredRow, load: Load) -> None:
    """The cache of a static session: allocated for its batch at full length, whatever share of the memory that is."""
    blocks = -(-(sum(tokens(row.isl)) + sum(tokens(row.osl or "1"))) // BLOCK_TOKENS)
    # and the block that vLLM's pool never hands out
    scenario["engine"]["num_gpu_blocks_override"] = load.count * blocks + 1


def _scales(row: MeasuredRow, weights: str) -> dict[str, str]:
    """NVIDIA's FP8 checkpoints bring the scales of activations (hf_quant_config.json: quant_algo FP8)."""
    return {"activation_scales": "static"} if row.model.startswith("nvidia/") and weights == "fp8" else {}


# --- workload ---------------------------------------------------------------------------------------------------------


def _queued(row: MeasuredRow, replicas: int) -> int:
    """Requests of a run with all of them queued at once, whose number is not stated."""
    total = sum(tokens(row.isl)) + sum(tokens(row.osl or "1")) if "sharegpt" not in row.isl.lower() else 0
    if row.load.startswith("Offline"):
        return max(1, min(MLPERF_REQUESTS, row.gpus * MLPERF_TOKENS // max(total, 1)))
    return replicas * next(count for most, count in BURST_REQUESTS if total <= most)


def _workload(row: MeasuredRow, load: Load, harness: Harness, replicas: int) -> dict[str, Any]:
    lengths, prefix = _lengths(row, harness)
    workload: dict[str, Any] = {"lengths": lengths}
    if prefix:
        workload["shared_prefix"] = prefix
    match load.kind:
        case "closed_loop":
            asked = harness.num_requests or REQUESTS_PER_USER * load.count
            loop = {"kind": "closed_loop", "concurrency": load.count}
            if harness.pause_s:
                loop |= {"think_time": f"{harness.pause_s:g} s", "think_time_cv": 1.0}
            workload |= {"arrivals": loop, "num_requests": min(asked, MOST_REQUESTS)}
        case "static":
            workload |= {"arrivals": {"kind": "burst"}, "num_requests": load.count}
        case "burst":
            workload |= {"arrivals": {"kind": "burst"}, "num_requests": harness.num_requests or _queued(row, replicas)}
        case "poisson":
            workload |= {
                "arrivals": {"kind": "poisson", "request_rate": load.rate},
                "num_requests": harness.num_requests or max(1000, round(OPEN_LOOP_S * (load.rate or 0))),
            }
        case _:
            stages = [
                {"duration": f"{min(seconds or STAGE_S, STAGE_S):g} s", "request_rate": rate}
                for rate, seconds in load.stages
            ]
            workload["arrivals"] = {"kind": "piecewise", "stages": stages}
    return workload


def _lengths(row: MeasuredRow, harness: Harness) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(lengths, shared prefix or None)."""
    if "sharegpt" in row.isl.lower():
        of = "this run's throughputs" if harness.mean_tokens else "another publication"
        harness.notes.append(f"ShareGPT lengths: log-normal around the means of {of}")
        return _lognormal(*(harness.mean_tokens or SHAREGPT_TOKENS)), None
    (shared, own), (_, output) = tokens(row.isl), tokens(row.osl or "1")
    if harness.varying:
        # a power of two is no mean of a data set: so many tokens were asked for
        asked = output & (output - 1) == 0
        return _lognormal(own, output, asked=asked), {"tokens": shared} if shared else None
    if harness.cycled_prompts:
        # the whole prompt is known from an earlier round, but for the last token, which is always computed
        low, high = harness.uniform or (1.0, 1.0)
        prefix = {"tokens": max(round((shared + own) * (low + high) / 2) - 1, 1), "prefixes": harness.cycled_prompts}
        return {"kind": "uniform", "input_tokens": [1, 1], "output_tokens": [round(low * output), output]}, prefix
    if harness.uniform is not None:
        low, high = harness.uniform
        ranges = {
            key: [max(round(low * n), 1), max(round(high * n), 1)]
            for key, n in (("input_tokens", own), ("output_tokens", output))
        }
        return {"kind": "uniform", **ranges}, None
    if harness.outputs is not None:
        low, high = harness.outputs
        spread = {"input_tokens": [own, own], "output_tokens": [max(round(low * output), 1), round(high * output)]}
        return {"kind": "uniform", **spread}, None
    one = {"kind": "fixed", "input_tokens": own, "output_tokens": output}
    return one, {"tokens": shared} if shared else None


def _means_of(rows: list[MeasuredRow]) -> tuple[int, int] | None:
    """Mean prompt and output of a run that published its throughput in requests, output tokens and all tokens."""
    found = {row.metric: row.value for row in rows}
    requests, output, total = (found.get(f"{of}_throughput") for of in ("request", "output", "total_token"))
    if requests is None or output is None or total is None or not 0 < output < total:
        return None
    return round((total - output) / requests), round(output / requests)


def _lognormal(input_mean: int, output_mean: int, asked: bool = False) -> dict[str, Any]:
    """Lengths with the long tail of a conversation data set, or outputs all as long as `asked` for."""
    input_cv, output_cv = SHAREGPT_CV
    return {
        "kind": "lognormal",
        "input_mean": input_mean,
        "output_mean": output_mean,
        "input_cv": input_cv,
        "output_cv": 0.0 if asked else output_cv,
        "max_tokens": MOST_TOKENS,
    }
