"""One name for a model, however its publisher, checkpoint format or benchmark writes it."""

from __future__ import annotations

import re

_SUFFIX = re.compile(
    r"[-_.](instruct|chat|it|base|hf|fp8|fp4|nvfp4|mxfp4|bf16|fp16|awq|gptq|int4|int8|w8a8|w4a16|dynamic|kv|turbo"
    r"|v0\.\d|16e|128e|17b|2407|2507|2501|0324|0528|0905|original|quantized)$"
)


def normalise(name: str) -> str:
    """The key under which two spellings of one model are equal.

    Drops the organisation, `meta-`, and what names a fine-tune, a checkpoint format or a release
    (`-Instruct`, `-hf`, `-FP8`, `-v0.1`); ignores case and separators. "nvidia/Llama-3.1-8B-Instruct-FP8",
    "Meta-Llama-3.1-8B" and "llama-3.1-8b" are one model.
    """
    text = name.strip().rstrip("/").rsplit("/", 1)[-1].lower().removeprefix("meta-")
    while (shorter := _SUFFIX.sub("", text)) != text:
        text = shorter
    return re.sub(r"[-_. ]", "", text)
