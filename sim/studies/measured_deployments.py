"""How the model of a published row is cut over how many GPUs of which machines.

Most rows state their cuts. A disaggregated row says "disagg" instead, and in its conditions "prefill batch_size=1 num_workers=5
tp_size=1 pp_size=1 attention_dp_size=1 moe_tp_size=1 moe_ep_size=1 | decode batch_size=48 num_workers=11 ...". One that says
"unknown" gets replicas on as few GPUs as serve.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sim.errors import InputError, TwoWallsError
from sim.hardware.gpu import load_gpu
from sim.model.transformer import load_model
from sim.studies.measured_harness import Harness
from sim.studies.measured_rows import MeasuredRow, tokens

TOPOLOGIES: tuple[tuple[str, str, int], ...] = (
    ("gb300", "gb300-nvl72", 4), ("gb200", "gb200-nvl72", 4), ("b300", "hgx-b300", 8), ("b200", "hgx-b200", 8),
    ("gh200", "dgx-h100", 8), ("h200-nvl", "pcie-box-h200-nvl", 8), ("h200", "dgx-h200", 8),
    ("h100-pcie", "pcie-box-rtx-pro-6000", 8), ("h100-nvl", "pcie-box-h100-nvl", 8), ("h100", "dgx-h100", 8),
    ("h800", "hgx-h800", 8),
    ("h20", "dgx-h100", 8), ("a100-pcie", "pcie4-box", 8), ("a100", "dgx-a100", 8), ("a10g", "pcie-box-a10g", 8),
    ("rtx-5090", "rtx-5090-box", 8), ("rtx-4090", "rtx-4090-box", 8), ("rtx-3090", "rtx-4090-box", 8),
    ("rtx-pro-6000", "pcie-box-rtx-pro-6000", 8),
    ("mi35", "mi355x-platform", 8), ("mi3", "mi300x-platform", 8), ("v100", "dgx-1-v100", 8), ("t4", "pcie-box-t4", 8),
    ("l40s", "pcie-box-l40s", 8), ("", "pcie4-box", 8),
)  # fmt: skip
"""Beginning of a catalogue GPU's name -> the machine it usually stands in, and its GPUs."""
RACKS = frozenset({"gb200-nvl72", "gb300-nvl72"})
"""Topologies that are a whole rack unless they are asked for fewer nodes."""

DISAGGREGATED, UNKNOWN = "disagg", "unknown"
"""What stands in the columns of a row in place of its cuts."""
FULL_BATCH_SEQUENCES = 256
"""A replica whose cut is not stated has room for so many sequences at full length: what vLLM runs at most by default."""
_SIZES = re.compile(r"(\w+)=(\d+)")


@dataclass(frozen=True, slots=True)
class Workers:
    """Workers of one kind, all alike."""

    role: str
    count: int
    tensor: int
    pipeline: int
    experts: int
    """GPUs that the routed experts of a worker are spread over."""
    batch: int
    """Sequences that a worker runs at most."""

    @property
    def pool(self) -> dict[str, Any]:
        """As a scenario's deployment lists it."""
        sizes = {"tensor_parallel_size": self.tensor, "pipeline_parallel_size": self.pipeline}
        return {"name": self.role, "role": self.role, "replicas": self.count, **sizes}


def deployment_of(row: MeasuredRow, harness: Harness, precision: dict[str, str]) -> dict[str, Any]:
    """The deployment section of the scenario that repeats `row`; what is assumed is noted in `harness`.

    Raises:
        InputError: the row's cuts are neither numbers nor stated in its conditions.
    """
    if row.tensor == DISAGGREGATED:
        return _pools(row, harness)
    if row.tensor == UNKNOWN:
        tensor = _fewest_gpus(row, precision)
        harness.notes.append(
            f"cut not stated: replicas of {tensor} GPUs, the fewest with room for {FULL_BATCH_SEQUENCES} sequences"
        )
    else:
        tensor = _cut(row.tensor, "tensor")
    pipeline = 1 if row.pipeline == UNKNOWN else _cut(row.pipeline, "pipeline")
    return _replicas(row, tensor, pipeline, harness)


def _pools(row: MeasuredRow, harness: Harness) -> dict[str, Any]:
    """Workers for prompts and workers for decoding, which run as many sequences as the row says."""
    prefill, decode = workers_of(row)
    harness.engine["max_num_seqs"] = max(prefill.batch, decode.batch)
    return {"pools": [prefill.pool, decode.pool], "enable_expert_parallel": prefill.experts > 1}


def workers_of(row: MeasuredRow) -> tuple[Workers, Workers]:
    """The workers that compute prompts and those that decode, as the conditions of `row` state them.

    Raises:
        InputError: they are not stated, or attention is data-parallel within a worker, which pools cannot be.
    """
    prefill, decode = _workers(row, "prefill"), _workers(row, "decode")
    if (prefill.experts > 1) != (decode.experts > 1):
        raise InputError("conditions", "experts spread over the GPUs of one kind of worker only", "of both, or of none")
    return prefill, decode


def _workers(row: MeasuredRow, role: str) -> Workers:
    stated = re.search(rf"\b{role} (batch_size=[^|;]*)", row.conditions)
    if stated is None:
        raise InputError(
            "tensor", f"got '{row.tensor}'", f"its conditions do not say '{role} batch_size=.. num_workers=..'"
        )
    sizes = {name: int(value) for name, value in _SIZES.findall(stated[1])}
    missing = next((name for name in ("num_workers", "tp_size", "batch_size") if not sizes.get(name)), None)
    if missing is not None:
        raise InputError("conditions", f"the {role} workers have no {missing}", "a number of 1 or more")
    if sizes.get("attention_dp_size", 1) > 1:
        raise InputError("conditions", f"{role} workers with data-parallel attention", "pools of such are not modelled")
    cuts = (sizes["tp_size"], sizes.get("pp_size", 1), max(sizes.get("moe_ep_size", 1), 1))
    return Workers(role, sizes["num_workers"], *cuts, batch=sizes["batch_size"])


def _replicas(row: MeasuredRow, tensor: int, pipeline: int, harness: Harness) -> dict[str, Any]:
    """Replicas of TP x PP; experts over all GPUs where the row says so, and attention data-parallel where its source does or
    where the experts are spread over more GPUs than share a layer's attention."""
    ranks = tensor * pipeline
    replicas = 1 if row.id.startswith("aic") else max(row.gpus // ranks, 1)
    sizes = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline, "data_parallel_size": replicas}
    if not row.expert.isdigit() or pipeline > 1 or load_model(row.model).parameters.experts == 0:
        return sizes
    experts = int(row.expert)
    if "attention data parallel" in row.conditions and tensor > 1:
        harness.notes.append("attention data-parallel, experts over all GPUs")
        return {"data_parallel_size": replicas * tensor, "enable_expert_parallel": True}
    if experts > ranks and experts % ranks == 0:
        harness.notes.append(f"attention data-parallel, experts over {experts} GPUs")
        return sizes | {"data_parallel_size": experts // ranks, "enable_expert_parallel": True}
    return sizes | ({"enable_expert_parallel": True} if experts == ranks > 1 else {})


def _fewest_gpus(row: MeasuredRow, precision: dict[str, str]) -> int:
    """The smallest power of two of the row's GPUs over which one replica has room for a full batch, else all of them."""
    from sim.scenario import Scenario
    from sim.simulate import plan_memory

    one = {"input_tokens": sum(tokens(row.isl)), "output_tokens": sum(tokens(row.osl or "1"))}
    workload = {"lengths": {"kind": "fixed", **one}, "arrivals": {"kind": "burst"}, "num_requests": 1}
    about = {
        "name": row.id,
        "model": row.model,
        "precision": precision,
        "cluster": cluster_of(row),
        "workload": workload,
    }
    tensor = 1
    while tensor < row.gpus:
        scenario = {
            **about,
            "deployment": {"tensor_parallel_size": tensor},
            "engine": {"max_num_seqs": FULL_BATCH_SEQUENCES},
        }
        try:
            if plan_memory(Scenario.from_dict(scenario, where=row.id)).max_sequences >= FULL_BATCH_SEQUENCES:
                return tensor
        except TwoWallsError:  # no such cut of this model, or its weights do not fit
            pass
        tensor *= 2
    return max(row.gpus, 1)


def _cut(text: str, name: str) -> int:
    if text and not text.isdigit():
        raise InputError(name, f"got '{text}'", f"a number, '{DISAGGREGATED}' or '{UNKNOWN}'")
    return int(text) if text else 1


def cluster_of(row: MeasuredRow) -> dict[str, Any]:
    """The machines that hold the row's GPUs: as many as it says, and no fewer than they need.

    Raises:
        InputError: the GPU is not in the catalogue.
    """
    gpu = load_gpu(re.sub(r"^80GB class.*", "h100-sxm", row.gpu)).name
    topology, per_node = next((name, count) for start, name, count in TOPOLOGIES if gpu.startswith(start))
    nodes = max(row.nodes, -(-row.gpus // per_node))
    return {"topology": topology, "gpu": gpu, **({"nodes": nodes} if nodes > 1 or topology in RACKS else {})}
