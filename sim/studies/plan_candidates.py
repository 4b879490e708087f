"""Every deployment of a model that is worth a thought: GPU, number, cut and precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.errors import InputError, nearest
from sim.hardware.gpu import load_gpu
from sim.model.transformer import Transformer
from sim.scenario import Scenario
from sim.studies.prices import Offer

GPUS_A_NODE = 8
TENSOR_SIZES = (1, 2, 4, 8)
PIPELINE_SIZES = (1, 2)
_ARITHMETIC = {"fp8": "fp8", "nvfp4": "fp4"}
"""Precisions that need tensor cores of their own; weight-only formats run on any."""
PRECISIONS = ("bf16", "fp8", "int4", "nvfp4")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One deployment of one replica."""

    offer: Offer
    tensor: int
    pipeline: int
    expert_parallel: bool
    precision: str

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline

    @property
    def nodes(self) -> int:
        return -(-self.gpus // GPUS_A_NODE)

    @property
    def usd_per_h(self) -> float:
        """Of the whole replica."""
        return self.gpus * self.offer.usd_per_h

    @property
    def name(self) -> str:
        cut = f"tp{self.tensor}" + (f"-pp{self.pipeline}" if self.pipeline > 1 else "")
        return f"{self.offer.gpu}-{cut}{'-ep' if self.expert_parallel else ''}-{self.precision}"

    @property
    def words(self) -> str:
        """How people say it: two H100 in bf16."""
        count = {1: "one", 2: "two", 4: "four", 8: "eight", 16: "sixteen"}.get(self.gpus, str(self.gpus))
        nodes = "" if self.nodes == 1 else f" in {self.nodes} nodes"
        cut = f" (TP{self.tensor} x PP{self.pipeline})" if self.pipeline > 1 else ""
        return f"{count} {self.offer.gpu}{nodes}{cut} in {self.precision}" + (
            " with expert parallelism" if self.expert_parallel else ""
        )

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
                "deployment": {
                    "tensor_parallel_size": self.tensor,
                    "pipeline_parallel_size": self.pipeline,
                    "enable_expert_parallel": self.expert_parallel,
                },
            },
            where=self.name,
        )


def candidates(
    offers: Sequence[Offer], model: Transformer, *, max_gpus: int, precisions: Sequence[str]
) -> Iterator[Candidate]:
    """All combinations, the fewest GPUs first; what the hardware cannot compute in is left out."""
    experts = any(layer.mlp.experts > 1 for layer in model.layers)
    for pipeline in PIPELINE_SIZES:
        for tensor in TENSOR_SIZES:
            if tensor * pipeline > max_gpus:
                continue
            for offer in offers:
                able = load_gpu(offer.gpu).flops_per_s
                for precision in precisions:
                    if _ARITHMETIC.get(precision, "bf16") not in able:
                        continue
                    for expert in (False, True) if experts and tensor > 1 else (False,):
                        yield Candidate(offer, tensor, pipeline, expert, precision)


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
