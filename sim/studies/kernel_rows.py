"""Predictions for rows that measure one kernel, one collective or the memory of a deployment."""

from __future__ import annotations

import re
from functools import lru_cache

from sim.cost.collectives import Communicator
from sim.cost.kernels import DecodeAttentionTime, KernelTime
from sim.cost.roofline import Roofline
from sim.errors import InputError
from sim.hardware.gpu import load_gpu
from sim.hardware.placement import place
from sim.hardware.topology import load_topology
from sim.hardware.topology_language import CalibrationSpec
from sim.studies.load_forms import message_bytes, parse_load
from sim.studies.measured_deployments import cluster_of
from sim.studies.measured_precision import precision_of
from sim.studies.measured_rows import MeasuredRow, tokens

ENGINES = ("vllm", "trtllm", "sglang")
"""Whose layers, not whose bare kernels, an operator row times."""
PYTORCH_MATMUL_S = 21e-6
"""Overhead of one torch.matmul beside its kernel, measured on an A100 (LLMCompass, its constants of the A100)."""
COLLECTIVES = {
    "all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter", "alltoall": "all_to_all",
    "all_to_all": "all_to_all", "send_recv": "send_recv", "broadcast": "broadcast",
}  # fmt: skip
MLA_RANK = 512
"""Of DeepSeek's latents (DeepSeek-V3 config.json, kv_lora_rank)."""
VIDUR_LAYER = {
    "mlp_up_proj": (57344, 8192, True), "mlp_down_proj": (8192, 28672, False), "attn_pre_proj": (10240, 8192, True),
    "attn_post_proj": (8192, 8192, False),
}  # fmt: skip
"""Projection of Llama-2-70B -> (n, k, whether TP cuts n; otherwise it cuts k), as the rows' conditions state them."""


def kernel_prediction(row: MeasuredRow) -> float:
    """The predicted value of a row, in SI units.

    Raises:
        InputError: the row does not say enough, or nothing here models it.
    """
    if row.kind == "memory":
        return _memory(row)
    if row.kind == "collective":
        return _collective(row)
    return _operator(row)


# --- collectives ------------------------------------------------------------------------------------------------------


UNSTATED_FABRIC = {
    "infiniband": CalibrationSpec(
        start="0 us",
        step_overhead="12.32 us",
        efficiency=0.306,
        source="send/recv rows of Vidur's two A100 nodes, whose fabric is not stated (calibrate collectives)",
    )
}
"""What joins the two DGX A100 of Vidur's tables, as their own send/recv shows it: 7.8 GB/s where a rail would give 25."""


@lru_cache(maxsize=64)
def _communicator(topology: str, gpu: str, nodes: int, ranks: int, software: str, stated: bool) -> Communicator:
    cluster = load_topology(topology, {"nodes": nodes}, gpu)
    if not stated:
        cluster.calibration = UNSTATED_FABRIC
    placed = place(cluster, ranks, 1, 1, "spread" if nodes > 1 else "pack")[0][0]
    return Communicator(cluster, placed, software)


def software_of(engine: str) -> str:
    """The software path of a measured collective, from what its row says ran."""
    words = engine.lower()
    paths = (("eager", "eager"), ("custom", "custom"), ("trtllm", "trtllm"), ("torch.distributed", "torch"))
    return next((path for word, path in paths if word in words), "nccl")


def _collective(row: MeasuredRow) -> float:
    name = re.split(r"_(?:latency|busbw)", row.metric)[0]
    if name not in COLLECTIVES:
        raise InputError("metric", f"got '{row.metric}'", "expert dispatch and combine kernels are not priced alone")
    load = parse_load(row.load)
    if load.message is None:
        raise InputError("batch_or_concurrency_or_rate", f"got '{row.load}'", "the size of the message is not stated")
    element_bytes = 1.0 if "int8" in row.precision else 2.0
    size = message_bytes(*load.message, element_bytes)
    software = software_of(row.engine)
    cluster = cluster_of(row)
    ranks = row.gpus if row.gpus > 1 else int(row.tensor or 1)
    nodes = int(cluster.get("nodes", 1))
    stated = nodes == 1 or cluster["topology"] != "dgx-a100" or "fabric not stated" not in row.conditions
    group = _communicator(cluster["topology"], cluster["gpu"], nodes, ranks, software, stated)
    time = group.time(COLLECTIVES[name], size)
    return time.bus_bandwidth_bytes_per_s if "busbw" in row.metric else time.time_s


# --- operators --------------------------------------------------------------------------------------------------------


def _operator(row: MeasuredRow) -> float:
    # a library that multiplies quantised matrices is handed them quantised; an engine's layer quantises first
    engine = any(name in row.engine.lower() for name in ENGINES)
    backend = Roofline(load_gpu(row.gpu), quantisation="dynamic" if engine else "none")
    load = parse_load(row.load)
    if load.shape is not None:
        m, n, k = load.shape
        seconds = float(backend.gemm(float(m), n, k, _weights(row)).total_s) + _launched_alone_s(row)
        return 2.0 * m * n * k / seconds if row.unit == "TFLOP/s" else seconds
    name = re.sub(r"_latency.*$", "", row.metric)
    if name in VIDUR_LAYER and load.kind == "tokens":
        n, k, cuts_n = VIDUR_LAYER[name]
        share = int(row.tensor or 1)
        n, k = (n // share, k) if cuts_n else (n, k // share)
        return float(backend.gemm(float(load.count), n, k, "bf16").total_s)
    if "attention" in name and load.kind == "static":
        return _attention(row, backend, load.count, name)
    raise InputError("metric", f"got '{row.metric}'", "no kernel of this name is priced alone")


def _launched_alone_s(row: MeasuredRow) -> float:
    """What a host adds that launches one kernel and waits for it."""
    return PYTORCH_MATMUL_S if row.engine.startswith("PyTorch") else 0.0


def _weights(row: MeasuredRow) -> str:
    if "deepgemm" in row.engine.lower():
        return "fp8_block"  # DeepGEMM has scales for blocks only
    found = precision_of(row)[0]
    return "bf16" if found == "fp16" else found


def _attention(row: MeasuredRow, backend: Roofline, batch: int, name: str) -> float:
    heads = re.search(r"num_heads=(\d+) kv_heads=(\d+)", row.conditions)
    triple = re.search(r"heads config (\d+)-(\d+)-(\d+)", row.conditions)
    _, length = tokens(row.isl)
    cache = precision_of(row)[1]
    if "/mla/prefill/" in row.publication and triple:
        queries, nope, rope = (int(triple[i]) for i in (1, 2, 3))
        chunk = backend.prefill_mla(float(length), 0.0, queries, MLA_RANK, rope, nope, nope, cache)
        return _seconds_of_prefill(chunk, batch)
    if name.startswith("mla") and triple:
        decode = backend.decode_mla(float(batch), int(triple[1]), int(triple[2]), int(triple[3]), cache)
        return _seconds_of_decode(decode, batch * (length + 1))
    if heads is None and triple is None:
        raise InputError("conditions", "the numbers of heads are not stated", "num_heads=N kv_heads=N")
    query, kv = (int(heads[1]), int(heads[2])) if heads else (int(triple[1]), int(triple[2]))  # type: ignore[index]
    size = 128 if heads else int(triple[3])  # type: ignore[index]
    if "prefill" in name:
        return _seconds_of_prefill(backend.prefill_attention(float(length), 0.0, query, kv, size, cache), batch)
    return _seconds_of_decode(backend.decode_attention(float(batch), query, kv, size, cache), batch * (length + 1))


def _seconds_of_decode(time: DecodeAttentionTime, context_tokens: int) -> float:
    fixed_s, memory_s, compute_s = time
    return float(fixed_s + context_tokens * (memory_s + compute_s))


def _seconds_of_prefill(time: KernelTime, batch: int) -> float:
    return float(time.fixed_s + batch * (time.memory_s + time.compute_s))


# --- memory -----------------------------------------------------------------------------------------------------------


def _memory(row: MeasuredRow) -> float:
    from sim.scenario import Scenario
    from sim.simulate import plan_memory

    stated = re.search(r"max_num_batched_tokens (\d+)", row.conditions)
    utilization = re.search(r"util(?:ization)? (0\.\d+)", row.conditions)
    precision = precision_of(row)[0]
    scenario = {
        "model": row.model,
        "precision": {"weights": precision, "kv_cache": "bf16" if precision != "fp16" else "fp16"},
        "cluster": cluster_of(row),
        "deployment": {"tensor_parallel_size": int(row.tensor or 1)},
        "engine": {
            "gpu_memory_utilization": float(utilization[1]) if utilization else 0.9,
            "max_num_batched_tokens": int(stated[1]) if stated else 8192,
        },
        "workload": {
            "arrivals": {"kind": "burst"},
            "lengths": {"kind": "fixed", "input_tokens": 16, "output_tokens": 16},
            "num_requests": 1,
        },
    }
    ledger = plan_memory(Scenario.from_dict(scenario, where=row.id))
    gpu = ledger.per_gpu[0]
    answers = {
        "num_gpu_blocks": float(ledger.num_blocks * ledger.block_size),
        "kv_cache_available": gpu.kv_pool_bytes,
        "weights_per_gpu": gpu.weights_bytes,
        "activation_peak": gpu.activation_bytes,
        "non_torch_memory": gpu.overhead_bytes,
    }
    if row.metric not in answers:
        raise InputError("metric", f"got '{row.metric}'", "known: " + ", ".join(answers))
    return answers[row.metric]
