"""A transformer as its `config.json` describes it: dimensions, layers and exact parameter counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from sim import catalogue
from sim.errors import InputError, nearest
from sim.model.config import ConfigReader
from sim.model.names import keys_of, without_owner
from sim.model.precision import Quantization, parse_quantization
from sim.model.shapes import AttentionShape, MlpShape


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer."""

    attention: AttentionShape
    mlp: MlpShape


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that are alike, and how many there are."""

    attention: AttentionShape
    mlp: MlpShape
    count: int


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Parameters by class; the classes may have different precisions and are sharded differently."""

    embedding: int = 0
    head: int = 0
    attention: int = 0
    """Every projection before the attention, with biases, q/k norms and sinks."""
    attention_output: int = 0
    mlp: int = 0
    experts: int = 0
    expert_biases: int = 0
    shared_experts: int = 0
    router: int = 0
    norms: int = 0

    @property
    def total(self) -> int:
        return sum(self.by_class().values())

    def by_class(self) -> dict[str, int]:
        """Class name -> parameters."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Transformer:
    """A decoder-only transformer."""

    name: str
    hidden: int
    vocab: int
    layers: tuple[Layer, ...]
    tied: bool
    """The head shares the embedding's matrix."""
    max_position: int
    """Longest sequence the checkpoint was made for, tokens (`max_position_embeddings`)."""
    norms_per_layer: int = 2
    norm_parameters: int = 0
    """Parameters of one norm over the hidden state."""
    embedding_norm: bool = False
    """A norm stands between the embedding and the first layer."""
    learned_positions: int = 0
    """Positions whose vectors are stored and added to the embedding; 0: rotated, or a bias of the scores."""
    head_bias: bool = False
    parallel_block: bool = False
    """Attention and MLP read the same input and are summed (GPT-J): one all-reduce a layer."""
    quantization: Quantization | None = None
    """What the checkpoint itself says about its precision."""
    source: str = ""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str, where: str = "config.json") -> Transformer:
        """The transformer that a Hugging Face `config.json` describes.

        Args:
            config: the parsed file; multimodal ones are read from `text_config`.
            name: what to call the model.
            where: the file, for error messages.

        Raises:
            InputError: a needed key is missing or has a wrong value, or the architecture is not modelled.
        """
        reader = ConfigReader(config, where)
        family = reader.family
        return cls(
            name=name,
            hidden=reader.hidden,
            vocab=reader.vocab,
            layers=tuple(Layer(reader.attention(i), reader.mlp(i)) for i in range(reader.layers)),
            tied=reader.tied,
            max_position=reader.max_position,
            norms_per_layer=family.norms_per_layer,
            norm_parameters=reader.norm_parameters,
            embedding_norm=family.embedding_norm,
            learned_positions=reader.learned_positions,
            head_bias=family.head_bias,
            parallel_block=family.parallel_block,
            quantization=parse_quantization(config, where),
            source=str(config.get("source", "")),
        )

    @property
    def has_windows(self) -> bool:
        """Whether some layers see a sliding window of the tokens only."""
        return any(layer.attention.window is not None for layer in self.layers)

    def without_windows(self) -> Transformer:
        """The same model, every query of which sees all tokens before it."""
        full = (replace(layer, attention=replace(layer.attention, window=None)) for layer in self.layers)
        return replace(self, layers=tuple(full))

    def groups(self, start: int = 0, stop: int | None = None) -> list[LayerGroup]:
        """Layers start..stop as groups of equal layers, in order of first appearance."""
        counts = Counter(self.layers[start:stop])
        return [LayerGroup(layer.attention, layer.mlp, count) for layer, count in counts.items()]

    @cached_property
    def parameters(self) -> ParameterCounts:
        """Exact parameter counts by class (multi-token-prediction modules come on top and are not counted)."""
        return count_parameters(self, [(layer.attention, layer.mlp) for layer in self.layers])


def count_parameters(
    model: Transformer,
    layers: list[tuple[AttentionShape, MlpShape]],
    *,
    vocab: int | None = None,
    embedding: bool = True,
    head: bool = True,
) -> ParameterCounts:
    """Parameters of `layers` and of the model's ends, as held together in one place.

    Args:
        layers: the (possibly cut) shapes that are held.
        vocab: rows of the embedding and the head that are held; None: all.
        embedding, head: whether the first and the last part of the model are held.
    """
    rows = model.vocab if vocab is None else vocab
    h = model.hidden
    # tied: the head is the embedding's matrix, so only a stage that lacks the embedding needs its own copy
    own_head = head and not (model.tied and embedding)
    norms = len(layers) * model.norms_per_layer + (1 if head else 0) + (1 if embedding and model.embedding_norm else 0)
    return ParameterCounts(
        # learned positions are on every rank, whatever rows of the vocabulary it holds
        embedding=(rows + model.learned_positions) * h if embedding else 0,
        head=(rows * h if own_head else 0) + (rows if head and model.head_bias else 0),
        attention=sum(attention.input_parameters(h) for attention, _ in layers),
        attention_output=sum(attention.output_parameters(h) for attention, _ in layers),
        mlp=sum(mlp.dense_parameters(h) for _, mlp in layers),
        experts=sum(mlp.local_experts * mlp.expert_parameters(h) for _, mlp in layers),
        expert_biases=sum(mlp.local_experts * mlp.expert_biases(h) for _, mlp in layers),
        shared_experts=sum(mlp.shared_parameters(h) for _, mlp in layers),
        router=sum(mlp.router_parameters(h) for _, mlp in layers),
        norms=model.norm_parameters * norms,
    )


def load_model(name_or_path: str, where: str = "model") -> Transformer:
    """The model that a catalogue name, a Hugging Face name of a catalogue model, or a path stands for.

    Args:
        name_or_path: "llama-3.1-70b", "meta-llama/Llama-3.1-70B-Instruct", a `config.json`, or the folder of one.
        where: file and key path of the value, for error messages.

    Raises:
        InputError: neither a known name nor a path; or the file is no config.json of a language model.
    """
    entries = catalogue.files("models")
    if name_or_path in entries:
        return _read(entries[name_or_path], name_or_path)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        path = path / "config.json"
    if path.is_file():
        return _read(path, path.parent.name if path.name == "config.json" else path.stem)
    written = _written_names()
    known = {next(keys_of(text)): name for text, name in written.items()}
    for key in keys_of(name_or_path):
        if key in known:
            return _read(entries[known[key]], known[key])
    raise InputError(
        where,
        f"got '{name_or_path}', which is no model of the catalogue and no config.json",
        nearest(without_owner(name_or_path), written),
    )


@cache
def _written_names() -> dict[str, str]:
    """The catalogue name behind every name and alias, as its file writes it."""
    entries = catalogue.files("models").items()
    return {text: name for name, entry in entries for text in (name, *_json(entry).get("aliases", ()))}


def _read(path: Path, name: str) -> Transformer:
    config = _json(path)
    beside = path.parent / "hf_quant_config.json"
    if path.name == "config.json" and beside.is_file() and "quantization_config" not in config:
        config["quantization_config"] = _json(beside)
    return Transformer.from_config(config, name, str(path))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        hint = "is this the config.json of a language model?"
        raise InputError(str(path), f"is not readable as JSON ({error})", hint) from None
    if not isinstance(content, dict):
        raise InputError(str(path), "is not a JSON object", "is this the config.json of a language model?")
    return content
