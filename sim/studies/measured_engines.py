"""Which preset stands for an engine as benchmark tables write its name, and in which version."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from sim.errors import InputError

Version = tuple[int, int]

ENGINES = (
    ("tensorrtllm", "trtllm"), ("trtllm", "trtllm"), ("lmdeploy", "trtllm-cpp"), ("turbomind", "trtllm-cpp"),
    ("gptfast", "trtllm-cpp"), ("torchcompile", "trtllm-cpp"), ("sglang", "sglang"), ("vllm", "vllm"),
    ("tensorrt", "trtllm-cpp"), ("trt", "trtllm"), ("nim", "trtllm"), ("dynamo", "vllm"),
)  # fmt: skip
"""Word in `engine+version`, without case and punctuation -> preset; the first that is found counts. TurboMind and gpt-fast run
captured or C++ loops like TensorRT-LLM; who names TensorRT alone, as MLPerf's tables do, runs compiled engines."""
RELATIVES = (
    ("textgenerationinference", "vllm"), ("tgi", "vllm"), ("lightllm", "vllm"), ("deepspeed", "vllm"), ("fastgen", "vllm"),
    ("aphrodite", "vllm"), ("sarathi", "vllm"), ("splitwise", "vllm"), ("distserve", "vllm"), ("llmd", "vllm"),
    ("mlc", "trtllm-cpp"), ("fastertransformer", "trtllm-cpp"), ("llamacpp", "trtllm-cpp"), ("llamabench", "trtllm-cpp"),
    ("ollama", "trtllm-cpp"), ("exllama", "trtllm-cpp"),
)  # fmt: skip
"""The same of engines that nobody modelled -> the preset of their nearest relative: who schedules iterations in Python, or runs a
compiled loop."""
PYTORCH_TRTLLM = (0, 20)
"""TensorRT-LLM's published tables run its PyTorch backend from this version on, compiled engines before (its own pages)."""
COMPILED_MLPERF = (5, 0)
"""The last round of MLPerf Inference whose TensorRT-LLM is taken to be compiled engines (February 2025: 0.17 or 0.18)."""


_BESIDE = re.compile(r"(mlperf|dynamo|rocm|cuda)\W{0,2}(?:inference\W)?v?(\d+)\.(\d+)[\w.]*", re.IGNORECASE)
"""What an engine ran behind, on or for, whose version is not the engine's."""
_OWN_VERSION = frozenset({"tensorrt", "nim", "dynamo"})
"""Words whose version is that of another product than the preset's."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine as a row names it."""

    preset: str
    version: str | None
    """Of the engine that the preset is of, as written; None: not stated, or of another engine."""
    relative: bool = False
    """The preset is that of a relative; nobody modelled the engine itself."""

    @property
    def release(self) -> Version | None:
        """(major, minor) of the version."""
        return None if self.numbers is None else (self.numbers[0], self.numbers[1])

    @property
    def numbers(self) -> tuple[int, ...] | None:
        """All numbers of the version, such as (0, 8, 4)."""
        return numbers_of(self.version)


def numbers_of(version: str | None) -> tuple[int, ...] | None:
    """All numbers that `version` begins with; None if it does with none."""
    match = re.match(r"\d+(?:\.\d+)+", version or "")
    return tuple(int(number) for number in match[0].split(".")) if match else None


def engine_of(text: str) -> Engine:
    """The engine that a table calls `text`.

    Raises:
        InputError: no preset stands for it.
    """
    beside = {match[1].lower(): (int(match[2]), int(match[3])) for match in _BESIDE.finditer(text)}
    without = _BESIDE.sub(lambda match: match[1], text)
    plain = re.sub(r"[^a-z0-9]", "", without.lower())
    stated = re.search(r"(\d+\.\d+[\w.]*)", without)
    for word, preset in ENGINES:
        if word in plain:
            found = Engine(preset, stated[1] if stated and word not in _OWN_VERSION else None)
            older = beside.get("mlperf", (99, 0)) <= COMPILED_MLPERF and found.release is None
            compiled = preset == "trtllm" and (older or (found.release or PYTORCH_TRTLLM) < PYTORCH_TRTLLM)
            return replace(found, preset="trtllm-cpp") if compiled else found
    for word, preset in RELATIVES:
        if word in plain:
            return Engine(preset, None, relative=True)
    known = ", ".join(word for word, _ in (*ENGINES, *RELATIVES))
    raise InputError("engine+version", f"got '{text}'", f"known: {known}")


def preset_name(engine: str) -> str:
    """The preset of an engine as tables write it.

    Raises:
        InputError: no preset stands for it.
    """
    return engine_of(engine).preset
