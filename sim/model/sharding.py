"""How a model is cut over GPUs: heads, columns and vocabulary by TP, layers by PP, experts by EP."""

from __future__ import annotations

from dataclasses import dataclass

from sim.errors import InputError
from sim.model.transformer import LayerGroup, ParameterCounts, Transformer, count_parameters

_LARGEST_TENSOR = 64
"""TP values above the largest NVLink domain in the catalogue (72 GPUs) are not worth naming in a hint."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """The cut of a model over `tensor x pipeline x data` GPUs; `data` counts replicas of the whole model."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert_parallel: bool = False
    """MoE layers hold whole experts on tensor x data ranks instead of a slice of every expert on `tensor` ranks."""

    @property
    def ranks(self) -> int:
        """GPUs of one replica."""
        return self.tensor * self.pipeline

    @property
    def expert_ranks(self) -> int:
        """Ranks that whole experts are spread over; 1 without expert parallelism."""
        return self.tensor * self.data if self.expert_parallel else 1

    def check(self, model: Transformer, where: str = "deployment") -> None:
        """Refuses a cut that the engine would refuse.

        vLLM's rules: TP divides the attention heads and the MLP columns; it divides the KV heads or is a multiple of
        them (then each is replicated); every pipeline stage has a layer.

        Raises:
            InputError: with the legal values.
        """
        for key, value in (("tensor", self.tensor), ("pipeline", self.pipeline), ("data", self.data)):
            if value < 1:
                raise InputError(f"{where}.{key}_parallel_size", f"got {value}", "allowed: 1 or more")
        problem = tensor_problem(model, self.tensor, self.expert_parallel)
        if problem:
            legal = ", ".join(map(str, legal_tensor_sizes(model, self.expert_parallel)))
            raise InputError(
                f"{where}.tensor_parallel_size",
                f"got {self.tensor}, but {problem}",
                f"allowed for {model.name}: {legal}",
            )
        if self.pipeline > len(model.layers):
            raise InputError(
                f"{where}.pipeline_parallel_size",
                f"got {self.pipeline}, but {model.name} has {len(model.layers)} layers",
                f"allowed: 1 to {len(model.layers)}",
            )
        experts = max(layer.mlp.experts for layer in model.layers)
        if self.expert_parallel and self.expert_ranks > experts:
            raise InputError(
                f"{where}.enable_expert_parallel",
                f"got {self.expert_ranks} ranks (TP x DP), but {model.name} has {experts} routed experts",
                "set enable_expert_parallel: false" if not experts else f"allowed: TP x DP up to {experts}",
            )

    def stage_layers(self, layers: int, stage: int) -> range:
        """Indices of the layers of a pipeline stage.

        Layers that are left over go one each to the stages before the last, counted backwards (vLLM, `get_pp_indices`):
        the last stage also has the head, the first the embedding.
        """
        base, left = divmod(layers, self.pipeline)
        sizes = [base + (1 if 2 <= self.pipeline - i <= left + 1 else 0) for i in range(self.pipeline)]
        start = sum(sizes[:stage])
        return range(start, start + sizes[stage])

    def is_first(self, stage: int) -> bool:
        return stage == 0

    def is_last(self, stage: int) -> bool:
        return stage == self.pipeline - 1

    def vocab_rows(self, vocab: int) -> int:
        """Rows of the embedding and of the head on one rank."""
        return -(-vocab // self.tensor)

    def stage_groups(self, model: Transformer, stage: int) -> list[LayerGroup]:
        """Groups of equal layers of a stage, as one rank holds them."""
        layers = self.stage_layers(len(model.layers), stage)
        return [
            LayerGroup(group.attention.cut(self.tensor), group.mlp.cut(self.tensor, self.expert_ranks), group.count)
            for group in model.groups(layers.start, layers.stop)
        ]

    def rank_parameters(self, model: Transformer, stage: int) -> ParameterCounts:
        """Parameters that one GPU of a stage holds; norms, router, latent down-projections are on every rank."""
        groups = self.stage_groups(model, stage)
        return count_parameters(
            model,
            [(group.attention, group.mlp) for group in groups for _ in range(group.count)],
            vocab=self.vocab_rows(model.vocab),
            embedding=self.is_first(stage),
            head=self.is_last(stage),
        )


def tensor_problem(model: Transformer, tensor: int, expert_parallel: bool = False) -> str:
    """Why `tensor` ranks cannot cut the model, or an empty string."""
    for group in model.groups():
        attention, mlp = group.attention, group.mlp
        if attention.heads % tensor:
            return f"{attention.heads} attention heads are not divisible by it"
        if attention.kind == "gqa" and attention.kv_heads % tensor and tensor % attention.kv_heads:
            return f"it neither divides {attention.kv_heads} KV heads nor is a multiple of them"
        sliced = (mlp.intermediate, mlp.shared_intermediate, 0 if expert_parallel else mlp.expert_intermediate)
        for columns in sliced:
            if columns % tensor:
                return f"{columns} MLP columns are not divisible by it"
    return ""


def legal_tensor_sizes(model: Transformer, expert_parallel: bool = False) -> list[int]:
    """Every tensor_parallel_size up to 64 that cuts the model."""
    return [t for t in range(1, _LARGEST_TENSOR + 1) if not tensor_problem(model, t, expert_parallel)]
