"""Keys that are equal where two spellings, by a publisher, a checkpoint or a benchmark, mean one model."""

from __future__ import annotations

import re
from collections.abc import Iterator

_SUFFIX = re.compile(
    r"[-_.: ]+("
    # fine-tunes and releases that keep the shape; the catalogue's aliases name those that do not, or not for certain
    r"instruct|chat|it|base|hf|thinking|original|preview|turbo|v0\.\d|2407|2507|2501|0324|0528|0905"
    # checkpoint formats
    r"|(?:(?:nv|mx)?fp4|fp8)(?:-v\d)?|bf16|fp16|int4|int8|w\d+a\d+(?:kv\d+)?|w4afp8|awq|gptq|bnb|[48]bit|g128|block|dynamic"
    r"|kv|quantized|gguf|q\d(?:_[01k](?:_[sml])?)?|w?mxfp4|amxfp4|kvfp8|scale|uint8|mlperf"
    # MLPerf: share of the reference's accuracy, and the scenario's variant
    r"|99(?:\.9)?|interactive"
    r")$"
)


def keys_of(name: str) -> Iterator[str]:
    """The keys that a catalogue entry of this model may have, the most exact first.

    Every next key lacks one more of what names a fine-tune, a checkpoint format or a release (`-Instruct`, `-hf`,
    `-FP8`, `-v0.1`) at the end. Organisation, `meta-`, case and separators do not count, except that digits stay
    apart: "nvidia/Llama-3.1-8B-Instruct-FP8", "Meta-Llama-3.1-8B" and "llama 3.1 8b" share a key, OPT-1.3B and
    OPT-13B do not.
    """
    text = re.sub(r"^meta[- ]", "", without_owner(name).lower())
    text = re.sub(r"(?<=llama)[-_ ]?v(?=\d)", "", text)  # "LLaMA-v3-8B"
    text = re.sub(r"(?<=llama)([23])(?=[123][-_ ])", r"\1.", text)  # "llama31-8b"
    without_remark = re.sub(r"\s*\(.*?\)", "", text)
    for spelling in dict.fromkeys((re.sub(r"\s*[()]\s*", " ", text).strip(), without_remark)):  # "Llama 2 (7B)"
        yield from _ever_shorter(spelling)


def _ever_shorter(text: str) -> Iterator[str]:
    while True:
        yield re.sub(r"[-_.: ]", "", re.sub(r"(?<=\d)[-_.: ]+(?=\d)", "/", text))
        shorter = _SUFFIX.sub("", text)
        if shorter == text:
            return
        text = shorter


def without_owner(name: str) -> str:
    """The last part of `organisation/model`."""
    return name.strip().rstrip("/").rsplit("/", 1)[-1]
