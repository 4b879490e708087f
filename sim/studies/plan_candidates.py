"""Every deployment of a model that is worth a thought: GPU, number, cut, placement, roles and precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sim.errors import InputError, nearest
from sim.hardware.gpu import load_gpu
from sim.model.transformer import Transformer
from sim.scenario import Scenario
from sim.studies.prices import Offer

GPUS_A_NODE = 8
"""Of the machines that are planned with."""
TENSOR_SIZES = (1, 2, 4, 8)
PIPELINE_SIZES = (1, 2)
DATA_SIZES = (2, 4, 8)
ROLES = ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1))
"""(prefill, decode) replicas that a disaggregated deployment is tried with; more of both is the same, several times."""
_ARITHMETIC = {"fp8": "fp8", "nvfp4": "fp4"}
"""Precisions that need tensor cores of their own; weight-only formats run on any."""
PRECISIONS = ("bf16", "fp8", "int4", "nvfp4")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One deployment behind one router."""

    offer: Offer
    tensor: int
    pipeline: int
    expert_parallel: bool
    precision: str
    data: int = 1
    """Replicas: in lock-step where they share their experts, else copies of the whole model."""
    prefill: int = 0
    """Replicas that only compute prompts; 0: every replica does both."""
    decode: int = 0
    """Replicas that only decode."""
    placement: Literal["pack", "spread"] = "pack"
    """spread: each tensor-parallel group or pipeline over two nodes, although one would hold it."""

    @property
    def gpus(self) -> int:
        return self.gpus_a_replica * (self.prefill + self.decode or self.data)

    @property
    def gpus_a_replica(self) -> int:
        return self.tensor * self.pipeline

    @property
    def nodes(self) -> int:
        return 2 if self.placement == "spread" else -(-self.gpus // GPUS_A_NODE)

    @property
    def lock_step(self) -> bool:
        """Whether its replicas share their experts, and so iterate together."""
        return self.expert_parallel and self.data > 1

    @property
    def copy_of(self) -> Candidate | None:
        """The deployment of which this is several copies that have nothing in common but the router."""
        return replace(self, data=1) if self.data > 1 and not self.expert_parallel else None

    @property
    def usd_per_h(self) -> float:
        """Of all its GPUs."""
        return self.gpus * self.offer.usd_per_h

    @property
    def name(self) -> str:
        parts = [
            self.offer.gpu,
            f"tp{self.tensor}",
            f"pp{self.pipeline}" if self.pipeline > 1 else "",
            f"dp{self.data}" if self.data > 1 else "",
            f"{self.prefill}p{self.decode}d" if self.prefill else "",
            "ep" if self.expert_parallel else "",
            "spread" if self.placement == "spread" else "",
            self.precision,
        ]
        return "-".join(part for part in parts if part)

    @property
    def words(self) -> str:
        """How people say it: two H100 in bf16."""
        count = {1: "one", 2: "two", 3: "three", 4: "four", 8: "eight", 16: "sixteen"}.get(self.gpus, str(self.gpus))
        cut = " x ".join(
            f"{letter}P{size}"
            for letter, size in (("T", self.tensor), ("P", self.pipeline), ("D", self.data))
            if size > 1
        )
        told = [
            f"{count} {self.offer.gpu}",
            "" if self.nodes == 1 else f"in {self.nodes} nodes",
            f"({cut})" if self.pipeline > 1 or self.data > 1 else "",
            f"({self.prefill} prefill + {self.decode} decode of TP{self.tensor})" if self.prefill else "",
            f"in {self.precision}",
            "with expert parallelism" if self.expert_parallel else "",
        ]
        return " ".join(part for part in told if part)

    def scenario(self, base: Mapping[str, Any]) -> Scenario:
        """The candidate under the workload of `base`.

        Raises:
            InputError: the model cannot be cut so, or held in this precision.
        """
        return Scenario.from_dict(
            {
                **base,
                "name": self.name,
                "precision": {**base.get("precision", {}), "weights": self.precision},
                "cluster": {"topology": self.offer.topology, "nodes": self.nodes, "gpu": self.offer.gpu},
                "deployment": {"placement": self.placement, **self._cut()},
            },
            where=self.name,
        )

    def _cut(self) -> dict[str, Any]:
        if self.prefill:
            roles = (("prefill", self.prefill), ("decode", self.decode))
            pools = [
                {"name": role, "role": role, "replicas": replicas, "tensor_parallel_size": self.tensor}
                for role, replicas in roles
            ]
            return {"pools": pools}
        return {
            "tensor_parallel_size": self.tensor,
            "pipeline_parallel_size": self.pipeline,
            "data_parallel_size": self.data,
            "enable_expert_parallel": self.expert_parallel,
        }


def candidates(
    offers: Sequence[Offer], model: Transformer, *, max_gpus: int, precisions: Sequence[str]
) -> Iterator[Candidate]:
    """All combinations, the smallest cut first; what the hardware cannot compute in is left out."""
    experts = any(layer.mlp.experts > 1 for layer in model.layers)
    for pipeline in PIPELINE_SIZES:
        for tensor in TENSOR_SIZES:
            for offer in offers:
                able = load_gpu(offer.gpu).flops_per_s
                for precision in precisions:
                    if _ARITHMETIC.get(precision, "bf16") in able:
                        whole = Candidate(offer, tensor, pipeline, False, precision)
                        yield from (found for found in _variants(whole, experts) if found.gpus <= max_gpus)


def _variants(whole: Candidate, experts: bool) -> Iterator[Candidate]:
    """One replica, and what else can be made of such replicas."""
    yield whole
    if 1 < whole.gpus <= GPUS_A_NODE:
        yield replace(whole, placement="spread")
    for data in DATA_SIZES:
        yield replace(whole, data=data)
    if whole.pipeline > 1:
        return
    for prefill, decode in ROLES:
        yield replace(whole, prefill=prefill, decode=decode)
    if experts:
        for data in (1, *DATA_SIZES):
            if whole.tensor * data > 1:
                yield replace(whole, expert_parallel=True, data=data)


def known_precisions(text: str) -> list[str]:
    """The formats named in `text`, separated by commas.

    Raises:
        InputError: one is not known.
    """
    found = [name.strip() for name in text.split(",")]
    for name in found:
        if name not in PRECISIONS:
            raise InputError("--precisions", f"got '{name}'", nearest(name, PRECISIONS))
    return found
