"""The number formats of a published row, in the words of a scenario."""

from __future__ import annotations

import re

from sim.errors import InputError
from sim.hardware.gpu import load_gpu
from sim.model.transformer import load_model
from sim.studies.measured_harness import BLANK_PRECISIONS, Harness
from sim.studies.measured_rows import MeasuredRow

WEIGHTS = {
    "bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16", "f16": "fp16", "half": "fp16", "w16a16": "bf16",
    "fp8": "fp8", "float8": "fp8", "w8a8fp8": "fp8", "fp8w8a8": "fp8",
    "int8": "int8", "w8a16": "int8", "q8": "int8", "8bit": "int8",
    "w8a8": "w8a8", "int8w8a8": "w8a8", "w8a8int8": "w8a8", "smoothquant": "w8a8", "sq": "w8a8",
    "int4": "int4", "w4a16": "int4", "awq": "int4", "gptq": "int4", "q4": "int4", "4bit": "int4", "int4awq": "int4",
    "awqint4": "int4", "gptqint4": "int4",
    "nvfp4": "nvfp4", "fp4": "nvfp4", "mxfp4": "mxfp4",
}  # fmt: skip
"""What tables write, without case and punctuation -> the scenario's word."""
CACHES = {"bf16": "bf16", "fp16": "fp16", "fp8": "fp8", "int8": "fp8"}
"""The same of the KV cache; one in int8 is priced as fp8, which has as many bytes."""
WITH_EXPERTS_IN_4_BITS = frozenset({"bf16", "fp16", "fp8", "nvfp4"})
"""What is said of models of which the experts alone are in MXFP4 (gpt-oss): their other parts are in 16 bit."""
_KV_OF = re.compile(r"kv[ _-]?(?:cache)?[ _-]?(?:dtype|type|precision)?[ :=]*(bf16|fp16|fp8|int8)")
_OF_KV = re.compile(r"(bf16|fp16|fp8|int8)(?:_e4m3|_e5m2)?[ _-]kv")
_NAMED = re.compile(r"[-_.](nvfp4|mxfp4|fp4|fp8|w8a8|w4a16|w8a16|awq|gptq|int4|int8)(?=[-_.]|$)", re.IGNORECASE)
"""The format in the name of a checkpoint."""


def precision_of(row: MeasuredRow, harness: Harness | None = None) -> tuple[str, str]:
    """(weights, KV cache) of a row, in the scenario's words; blank and unknown mean the format that the checkpoint's name or
    its config states, else bf16.

    Raises:
        InputError: a format nobody modelled.
    """
    text = row.precision.lower()
    weights = _stated(text)
    if weights == "nvfp4" and "nvfp4" not in text and load_gpu(row.gpu).vendor == "AMD":
        weights = "mxfp4"  # NVIDIA's own format is the other
    if weights in WITH_EXPERTS_IN_4_BITS and _own_format(row.model) == "mxfp4":
        weights = "mxfp4"  # which are so published: what is stated is of the rest, or says four bits
    if weights is None and text not in (*BLANK_PRECISIONS, "mixed") and not text.startswith("unknown"):
        raise InputError("precision", f"got '{row.precision}'", "known: " + ", ".join(WEIGHTS))
    if weights is None:
        weights = _of_checkpoint(row.model)
        if harness is not None:
            whence = "of the checkpoint" if weights != "bf16" else "assumed"
            harness.notes.append(f"precision not stated: {weights} {whence}")
    if weights == "fp8" and "gemm=fp8_block" in row.conditions:
        weights = "fp8_block"
    told = text + "; " + row.conditions.lower()
    kv = _KV_OF.search(told) or _OF_KV.search(told)
    stated = CACHES.get(kv[1]) if kv else None
    if stated == "fp8" and "when weights fp8" in row.conditions.lower() and weights != "fp8":
        stated = None
    # NVIDIA's quantised checkpoints bring scales for an fp8 KV cache, which engines then use (hf_quant_config.json)
    nvidia = harness is None or harness.preset.startswith("trtllm") or row.model.startswith("nvidia/")
    quantised_kv = nvidia and weights in ("fp8", "nvfp4")
    return weights, stated or ("fp8" if quantised_kv else "bf16" if weights != "fp16" else "fp16")


def _stated(text: str) -> str | None:
    """The word for weights that `text` begins with: its first part, or the first two ("AWQ INT4", "INT8 (W8A8)")."""
    parts = re.findall(r"[a-z0-9]+", re.sub(r"_e4m3(fn)?|_block|[ _-]dynamic", "", text))
    both, first = WEIGHTS.get("".join(parts[:2])), WEIGHTS.get(parts[0]) if parts else None
    return both or first


def _of_checkpoint(model: str) -> str:
    """The format in the name of a checkpoint, else that of its config, else bf16."""
    named = _NAMED.search(model)
    if named is not None:
        return WEIGHTS[named[1].lower()]
    own = _own_format(model)
    return "bf16" if own is None else own.removesuffix("_wo")


def _own_format(model: str) -> str | None:
    """The format that the model's config states; None where `model` is none (rows of single kernels)."""
    try:
        stated = load_model(model).quantization
    except InputError:
        return None
    return None if stated is None else stated.weights
