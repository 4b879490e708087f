"""How many bytes a parameter and a cached element take, part by part of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.errors import InputError, nearest

PARTS = (
    *("embedding", "head", "attention", "attention_output", "mlp"),
    *("experts", "expert_biases", "shared_experts", "router", "norms"),
)
"""Classes of parameters, as in `ParameterCounts`."""

KEPT_IN_16_BIT = frozenset({"embedding", "head", "router", "norms", "expert_biases"})
"""Parts that a quantised checkpoint leaves in 16 bit unless its config says otherwise."""

WEIGHT_WORDS = {
    "bf16": "bf16",
    "fp16": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "w8a8": "int8",
    "int8": "int8_wo",
    "int4": "int4_wo",
    "nvfp4": "nvfp4",
    "mxfp4": "mxfp4",
}
"""What a user writes -> the resolved name. int8 and int4 are weight-only: the arithmetic stays bf16; w8a8 multiplies
int8 by int8 (SmoothQuant)."""

KV_WORDS = ("bf16", "fp16", "fp8", "int8", "int4", "nvfp4")

_BASE_TYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "bf16"}
"""`torch_dtype` -> type of the unquantised parts; engines load 32-bit checkpoints in 16 bit."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a checkpoint says about its own precision."""

    base: str = "bf16"
    """Type of everything that is not quantised: bf16 or fp16."""
    weights: str | None = None
    """Resolved name of the quantised parts' type, or None."""
    kv_cache: str | None = None
    kept: frozenset[str] = KEPT_IN_16_BIT
    """Parts that stay in the base type."""
    group_size: int = 128
    """Elements that share one scale, for the int4 types."""
    static_scales: bool | None = None
    """It brings the scales of activations; None: it does not say."""


@dataclass(frozen=True, slots=True)
class Precision:
    """The types a deployment runs with, all resolved."""

    weights: str
    """bf16, fp16, fp8 (a scale a channel), fp8_block (a scale per 128 x 128), int8, int8_wo, int4_wo, nvfp4 or mxfp4."""
    kv_cache: str
    base: str = "bf16"
    """Type of the parts in `kept`, and of activations between kernels."""
    kept: frozenset[str] = KEPT_IN_16_BIT
    group_size: int = 128
    static_scales: bool | None = None
    """Scales of activations are known in advance; None: as the engine likes."""

    def of(self, part: str) -> str:
        """Type of the parameters of `part` (one of `PARTS`)."""
        return self.base if part in self.kept else self.weights

    def arithmetic(self, part: str) -> str:
        """Type by which a kernel backend knows the GEMMs of `part`; fp16 and bf16 cost the same."""
        name = self.of(part)
        return "bf16" if name == "fp16" else name

    def parameter_bytes(self, part: str, fan_in: int) -> float:
        """Bytes a parameter of `part` takes, its share of the scales included; `fan_in`: inputs of a channel."""
        return weight_bytes(self.of(part), fan_in, self.group_size)

    def kv_bytes(self, head_dim: int) -> float:
        """Bytes a cached element takes; `head_dim`: elements that share a scale, where there is one."""
        return kv_element_bytes(self.kv_cache, head_dim)


def weight_bytes(name: str, fan_in: int, group_size: int = 128) -> float:
    """Bytes an element of weight type `name` takes, scales included.

    fp8, int8: one float32 scale a channel. fp8_block: one float32 scale per 128 x 128 block (DeepSeek-V3 config.json).
    int8_wo: one 16-bit scale a channel. int4_wo: a 16-bit scale and a 4-bit zero point a group (AWQ, GPTQ layouts).
    nvfp4: an 8-bit scale per 16 elements (hf_quant_config.json of modelopt). mxfp4: an 8-bit scale per 32 elements
    (OCP Microscaling Formats v1.0).
    """
    sizes = {
        "bf16": 2.0,
        "fp16": 2.0,
        "fp8": 1.0 + 4.0 / fan_in,
        "fp8_block": 1.0 + 4.0 / (128 * 128),
        "int8": 1.0 + 4.0 / fan_in,
        "int8_wo": 1.0 + 2.0 / fan_in,
        "int4_wo": 0.5 + 2.5 / group_size,
        "nvfp4": 0.5 + 1.0 / 16,
        "mxfp4": 0.5 + 1.0 / 32,
    }
    return sizes[name]


def kv_element_bytes(name: str, head_dim: int) -> float:
    """Bytes a cached key or value element takes.

    fp8 and int8 have one scale a tensor (TensorRT-LLM, vLLM); int4 a 16-bit scale and zero point for each token and
    head (LMDeploy); nvfp4 an 8-bit scale per 16 elements.
    """
    sizes = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5 + 4.0 / head_dim, "nvfp4": 0.5 + 1.0 / 16}
    return sizes[name]


def resolve_precision(
    checkpoint: Quantization | None,
    weights: str | None,
    kv_cache: str | None,
    where: str = "precision",
    activation_scales: str | None = None,
) -> Precision:
    """The precision of a deployment: the user's words, else what the checkpoint says.

    A word that names the checkpoint's own family (`fp8` for a block-scaled fp8 checkpoint) means the checkpoint's type
    with its exceptions. The KV cache follows the checkpoint, else the base type.

    Args:
        checkpoint: from `Transformer.quantization`.
        weights: bf16, fp16, fp8, fp8_block, w8a8, int8, int4, nvfp4, mxfp4, or None.
        kv_cache: bf16, fp16, fp8, int8, int4, nvfp4, or None.
        where: file and key path, for error messages.
        activation_scales: dynamic, static, or None.

    Raises:
        InputError: an unknown word.
    """
    known = checkpoint or Quantization()
    if kv_cache is not None and kv_cache not in KV_WORDS:
        raise InputError(f"{where}.kv_cache", f"got '{kv_cache}'", nearest(kv_cache, KV_WORDS))
    if weights is not None and weights not in WEIGHT_WORDS:
        raise InputError(f"{where}.weights", f"got '{weights}'", nearest(weights, WEIGHT_WORDS))
    base = weights if weights in ("bf16", "fp16") else known.base
    cache = kv_cache or known.kv_cache or base
    asked = None if activation_scales is None else activation_scales == "static"
    if weights is None or (known.weights is not None and _family(WEIGHT_WORDS[weights]) == _family(known.weights)):
        static = known.static_scales if asked is None else asked
        return Precision(known.weights or base, cache, base, known.kept, known.group_size, static)
    return Precision(WEIGHT_WORDS[weights], cache, base, static_scales=asked)


def parse_quantization(config: Mapping[str, Any], where: str) -> Quantization:
    """What a `config.json` (or a `hf_quant_config.json` put under its `quantization_config`) says about precision.

    Raises:
        InputError: a `quant_method` or a number of bits that is not modelled.
    """
    text = config.get("text_config")
    inner: Mapping[str, Any] = text if isinstance(text, Mapping) else {}
    dtype = next((x[key] for x in (config, inner) for key in ("torch_dtype", "dtype") if x.get(key)), "bfloat16")
    if dtype not in _BASE_TYPES:
        raise InputError(where, f"'torch_dtype' is '{dtype}'", nearest(str(dtype), _BASE_TYPES))
    base = _BASE_TYPES[dtype]
    quantization = config.get("quantization_config") or inner.get("quantization_config")
    if quantization is None:
        return Quantization(base)
    if "quantization" in quantization:
        quantization = {"quant_method": "modelopt", **quantization["quantization"]}
    method = quantization.get("quant_method")
    if method not in _PARSERS:
        raise InputError(where, f"'quant_method' is '{method}'", nearest(str(method), _PARSERS))
    weights, group_size = _PARSERS[method](quantization, where)
    kept, static = _kept(quantization, method), _static_scales(quantization)
    return Quantization(base, weights, _kv_cache(quantization), kept, group_size, static)


def _family(name: str) -> str:
    return name.split("_")[0]


def _kept(quantization: Mapping[str, Any], method: str) -> frozenset[str]:
    """Parts that the skip list names; MXFP4 checkpoints (gpt-oss) quantise the routed experts only."""
    if method == "mxfp4":
        return frozenset(PARTS) - {"experts"}
    kept = set(KEPT_IN_16_BIT)
    for key in ("modules_to_not_convert", "ignore", "exclude_modules"):
        for pattern in quantization.get(key) or ():
            kept |= _parts_of(str(pattern).rstrip("*."))
    return frozenset(kept)


def _parts_of(pattern: str) -> set[str]:
    """The parts that one entry of a skip list names: a module's path, perhaps with wildcards for the layer."""
    if "o_proj" in pattern:
        return {"attention_output"}
    if pattern.endswith("self_attn"):
        return {"attention", "attention_output"}
    if "self_attn" in pattern:
        return {"attention"}
    if "shared_expert" in pattern and not pattern.endswith("gate"):
        return {"shared_experts"}
    return set()


def _static_scales(quantization: Mapping[str, Any]) -> bool | None:
    """Whether the checkpoint holds the scales of activations: modelopt's FP8 does, others say so or the contrary, or nothing."""
    if quantization.get("quant_algo") == "FP8":
        return True
    if scheme := quantization.get("activation_scheme"):
        return bool(scheme == "static")
    groups = (quantization.get("config_groups") or {}).values()
    dynamic = [group["input_activations"].get("dynamic") for group in groups if group.get("input_activations")]
    return None if not dynamic else False in dynamic


def _kv_cache(quantization: Mapping[str, Any]) -> str | None:
    scheme = quantization.get("kv_cache_scheme") or {}
    if quantization.get("kv_cache_quant_algo") == "FP8" or scheme.get("num_bits") == 8:
        return "fp8"
    return None


def _fp8(quantization: Mapping[str, Any], where: str) -> tuple[str, int]:
    return ("fp8_block" if quantization.get("weight_block_size") else "fp8"), 128


def _mxfp4(quantization: Mapping[str, Any], where: str) -> tuple[str, int]:
    return "mxfp4", 32


def _modelopt(quantization: Mapping[str, Any], where: str) -> tuple[str, int]:
    algorithms = {"FP8": "fp8", "NVFP4": "nvfp4", "W4A16_AWQ": "int4_wo", "W8A16": "int8_wo"}
    algorithm = str(quantization.get("quant_algo"))
    if algorithm not in algorithms:
        raise InputError(where, f"'quant_algo' is '{algorithm}'", nearest(algorithm, algorithms))
    return algorithms[algorithm], int(quantization.get("group_size") or 128)


def _integer_bits(quantization: Mapping[str, Any], where: str) -> tuple[str, int]:
    bits = quantization.get("bits")
    if bits not in (4, 8):
        raise InputError(where, f"'bits' is {bits!r}", "allowed: 4, 8")
    group_size = int(quantization.get("group_size") or 128)
    return ("int4_wo" if bits == 4 else "int8_wo"), group_size if group_size > 0 else 128


def _bitsandbytes(quantization: Mapping[str, Any], where: str) -> tuple[str, int]:
    return ("int4_wo" if quantization.get("load_in_4bit") else "int8_wo"), 64


def _compressed_tensors(quantization: Mapping[str, Any], where: str) -> tuple[str, int]:
    groups = list((quantization.get("config_groups") or {}).values())
    if not groups:
        raise InputError(where, "'quantization_config' has no 'config_groups'")
    weights = groups[0].get("weights") or {}
    bits, kind = int(weights.get("num_bits") or 0), str(weights.get("type"))
    group_size = int(weights.get("group_size") or 128)
    names = {(8, "float"): "fp8", (8, "int"): "int8_wo", (4, "int"): "int4_wo"}
    if groups[0].get("input_activations"):
        names[(8, "int")] = "int8"
    names[(4, "float")] = "nvfp4" if group_size == 16 else "mxfp4"
    if (bits, kind) not in names:
        raise InputError(where, f"has {bits}-bit {kind} weights", "allowed: 8-bit float, 8-bit int, 4-bit int or float")
    return names[(bits, kind)], group_size


_PARSERS = {
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
    "gptq": _integer_bits,
    "awq": _integer_bits,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
}
