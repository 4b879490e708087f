"""Deployments side by side: what each costs a token, what its wires add to an ideal NVLink domain, and which to choose."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import asdict, dataclass
from typing import Any

from sim.cost.causes import CAUSES, INDEX
from sim.engine.deployment import Deployment
from sim.errors import InputError
from sim.results.verdict import label
from sim.scenario import Scenario
from sim.simulate import simulate
from sim.studies.breakeven import BreakEven, Contender, break_even, crossing
from sim.studies.mean_iteration import (
    Iterations,
    batches_in_flight,
    decode_iterations,
    mean_causes,
    mean_sharing_s,
    prefill_iteration,
)
from sim.studies.twin import nvlink_twin
from sim.units import format_rate

PARTS = {
    "latency": ("collective_latency",),
    "bandwidth": ("collective_bandwidth",),
    "sharing": ("shared_links",),
    "straggler": ("weights_read", "kv_read", "compute", "activations", "kernel_fixed"),
    "rest": ("pipeline_bubble", "engine_overhead"),
}
"""What makes an iteration longer than on the twin, and the causes it is the difference in: latency and bandwidth of collectives
and hand-overs, waiting for others on the same links, a slow GPU (the kernels differ in nothing else); the rest is pipeline
bubbles, and host time that the GPU hides on one of the two only."""

_RUN_THEM = "hold the runs' own TPOT side by side (twowalls run A B)"


@dataclass(frozen=True)
class Slowdown:
    """A mean iteration against the same one on the ideal twin, in milliseconds."""

    ms: float
    twin_ms: float
    parts_ms: dict[str, float]
    """`PARTS`; they sum to `ms - twin_ms`."""
    causes_ms: dict[str, float]

    @property
    def factor(self) -> float:
        return self.ms / self.twin_ms

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "slowdown": self.factor}


@dataclass(frozen=True)
class Compared:
    """One deployment."""

    name: str
    label: str
    gpus: int
    status: str
    mean_tpot_ms: float | None
    mean_ttft_ms: float | None
    output_throughput: float
    """Tokens a second of the run."""
    batch: float
    """Sequences in the mean decode iteration, as a token sees it."""
    batches: int
    """Of a replica in flight at a time: a pipeline has up to one a stage."""
    decode: Slowdown
    prefill_tokens: int
    prefill: Slowdown
    deployment: Deployment
    decoding: Iterations
    prefilling: Iterations

    @property
    def batch_text(self) -> str:
        return f"{self.batch:.0f}" if self.batches == 1 else f"{self.batches} x {self.batch:.0f}"

    def as_dict(self) -> dict[str, Any]:
        """What `twowalls compare --json` prints of it."""
        plain = (
            "name",
            "gpus",
            "status",
            "mean_tpot_ms",
            "mean_ttft_ms",
            "output_throughput",
            "batch",
            "prefill_tokens",
        )
        data = {name: getattr(self, name) for name in plain}
        slowdowns = {"decode": self.decode.as_dict(), "prefill": self.prefill.as_dict()}
        return data | {"deployment": self.label, "throughput_per_gpu": self.output_throughput / self.gpus} | slowdowns


@dataclass(frozen=True)
class Comparison:
    """All of them, and the choice between the first two."""

    deployments: list[Compared]
    break_even: dict[str, dict[str, BreakEven]]
    """By mean iteration (decode, prefill) and by what changes (latency, bandwidth)."""
    answer: str

    def as_dict(self) -> dict[str, Any]:
        """What `twowalls compare --json` prints."""
        return {
            "deployments": [one.as_dict() for one in self.deployments],
            "break_even": {
                kind: {quantity: asdict(one) for quantity, one in by_quantity.items()}
                for kind, by_quantity in self.break_even.items()
            },
            "answer": self.answer,
        }


def compare(scenarios: Items[Scenario]) -> Comparison:
    """Runs every scenario, sets each beside its ideal twin, and answers which of the first two is faster a token.

    Raises:
        InputError: fewer than two scenarios, one whose mean iteration says nothing (pools for prefill and decode, replicas in
            lock-step, speculation), or a run in which nothing only decodes.
        DoesNotFit: one of them does not.
    """
    if len(scenarios) < 2:
        raise InputError("compare", f"got {len(scenarios)} scenario", "at least two to set side by side")
    found = [compared(scenario) for scenario in scenarios]
    first = found[:2]
    breaks = {
        "decode": _break_even([(one.decode.ms, Contender(one.deployment, one.decoding)) for one in first]),
        "prefill": _break_even([(one.prefill.ms, Contender(one.deployment, one.prefilling)) for one in first]),
    }
    faster, slower = sorted(first, key=lambda one: one.decode.ms)
    return Comparison(found, breaks, answer(faster, slower, found))


def _break_even(timed: list[tuple[float, Contender]]) -> dict[str, BreakEven]:
    (_, faster), (_, slower) = sorted(timed, key=lambda one: one[0])
    return {
        "latency": break_even(faster, slower, "latency"),
        "bandwidth": break_even(faster, slower, "bandwidth"),
    }


def compared(scenario: Scenario) -> Compared:
    """One scenario, run, and its mean iterations beside those of its twin; errors as `compare`."""
    if scenario.deployment.pools is not None:
        hint = "compare the pools as deployments of their own"
        raise InputError(f"{scenario.where}: deployment.pools", "got pools for prefill and decode", hint)
    if scenario.engine.speculative is not None:
        problem = "got speculation, with which an iteration yields more than one token"
        raise InputError(f"{scenario.where}: engine.speculative", problem, _RUN_THEM)
    deployment = Deployment.of(scenario)
    if deployment.lock_step:
        problem = "got replicas in lock-step, whose iterations wait for what others compute"
        raise InputError(f"{scenario.where}: deployment.enable_expert_parallel", problem, _RUN_THEM)
    result = simulate(scenario)
    decoding = decode_iterations(result.steps)
    if decoding is None:
        hint = "give it more output tokens or a lower load"
        raise InputError(scenario.where, "no iteration of the run only decodes", hint)
    prompt = min(round(float(result.requests["input_tokens"].mean())), scenario.engine.max_num_batched_tokens)
    prefill = prefill_iteration(max(prompt, 1), deployment.cost(0).windows)
    twin, summary = nvlink_twin(deployment), result.summary
    return Compared(
        name=scenario.name,
        label=described(deployment),
        gpus=result.num_gpus,
        status=result.status,
        mean_tpot_ms=summary["mean_tpot_ms"],
        mean_ttft_ms=summary["mean_ttft_ms"],
        output_throughput=summary["output_throughput"],
        batches=round(batches_in_flight(deployment, decoding)),
        batch=float(decoding.mean(decoding.steps["decodes"] * decoding.steps["iterations"])),
        decode=slowdown(deployment, twin, decoding, mean_sharing_s(deployment, decoding)),
        prefill_tokens=max(prompt, 1),
        prefill=slowdown(deployment, twin, prefill, 0.0),
        deployment=deployment,
        decoding=decoding,
        prefilling=prefill,
    )


def slowdown(deployment: Deployment, twin: Deployment, iterations: Iterations, sharing_s: float) -> Slowdown:
    """The mean iteration on `deployment` against that on `twin`; `sharing_s` of it is waiting for others."""
    mine, ideal = mean_causes(deployment, iterations), mean_causes(twin, iterations)
    mine[INDEX["shared_links"]] = sharing_s
    more_ms = 1e3 * (mine - ideal)
    parts_ms = {part: float(sum(more_ms[INDEX[cause]] for cause in causes)) for part, causes in PARTS.items()}
    causes_ms = {cause: 1e3 * float(mine[INDEX[cause]]) for cause in CAUSES}
    return Slowdown(1e3 * float(mine.sum()), 1e3 * float(ideal.sum()), parts_ms, causes_ms)


# --- in words -----------------------------------------------------------------------------------------------------------


def described(deployment: Deployment) -> str:
    """ "TP8 x PP2 over two nodes joined by infiniband (50 GB/s)"."""
    cut, topology = deployment.sharding, deployment.topology
    sizes = [
        f"TP{cut.tensor}",
        *(f"{name}{size}" for name, size in (("PP", cut.pipeline), ("DP", cut.data)) if size > 1),
    ]
    nodes = max(len({topology.node_of[gpu] for ranks in stages for gpu in ranks}) for stages in deployment.placement)
    wire = crossing(deployment)
    where = "inside one node" if nodes == 1 else f"over {_NUMBERS.get(nodes, nodes)} nodes"
    joined = "" if wire is None else f" joined by {wire.kind} ({format_rate(wire.bandwidth_bytes_per_s)})"
    return f"{' x '.join(sizes)} {where}{joined}"


_EQUAL = 1.005
"""A smaller ratio is written 1.00x: nobody beats anybody."""
_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}


def answer(faster: Compared, slower: Compared, everyone: Items[Compared]) -> str:
    """Which is faster a token, by how much, and why; in one sentence."""
    names, ratio = _distinct(faster, slower), slower.decode.ms / faster.decode.ms
    batches = f"batch {faster.batch_text}"
    if faster.batch_text != slower.batch_text:
        batches = f"batches of {faster.batch_text} and {slower.batch_text}"
    numbers = f"{faster.decode.ms:.1f} against {slower.decode.ms:.1f} ms"
    if ratio < _EQUAL:
        said = f"{names[0]} and {names[1]} are equally fast per token at {batches} ({numbers})"
    else:
        said = f"{names[0]} beats {names[1]} by {ratio:.2f}x per token at {batches} ({numbers})"
        said += f", because {_reason(faster.decode.causes_ms, slower.decode.causes_ms)}"
    best = min(everyone, key=lambda one: one.decode.ms)
    if best not in (faster, slower):
        said += f"; the fastest of all {len(everyone)} is {best.label} ({best.name}) with {best.decode.ms:.1f} ms"
    return said + "."


def _distinct(faster: Compared, slower: Compared) -> tuple[str, str]:
    if faster.label != slower.label:
        return faster.label, slower.label
    return f"{faster.label} ({faster.name})", f"{slower.label} ({slower.name})"


def _reason(faster_ms: dict[str, float], slower_ms: dict[str, float]) -> str:
    """The cause that speaks most for the faster one, and the one that speaks most against it."""
    lead_ms = {cause: slower_ms[cause] - faster_ms[cause] for cause in faster_ms}
    most, least = max(lead_ms, key=lead_ms.__getitem__), min(lead_ms, key=lead_ms.__getitem__)
    said = f"{label(most)} costs it {faster_ms[most]:.1f} ms a token instead of {slower_ms[most]:.1f}"
    if lead_ms[least] < -0.1 * lead_ms[most]:
        said += f", more than it loses by {label(least)} ({faster_ms[least]:.1f} against {slower_ms[least]:.1f} ms)"
    return said
