"""A calibration file: what a user's own measurements say of an engine, of kernels and of links, for a scenario to name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from sim.errors import InputError, nearest
from sim.hardware.gpu import load_gpu
from sim.hardware.topology_language import LINK_KINDS, CalibrationSpec
from sim.scenario.fields import Section, refuse
from sim.scenario.loading import input_error, read_yaml

KERNELS = (
    "gemm", "prefill_attention", "decode_attention", "prefill_mla", "decode_mla", "moe", "elementwise",
)  # fmt: skip
"""Kernel kinds that a file may hold factors for."""


class Factor(Section):
    """How much longer than the built-in constant says."""

    factor: Annotated[float, Field(gt=0)]
    """Dimensionless; 1: as built in."""
    interval: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)] | None = None
    """Within which it lies with 95 % confidence; null: not said."""


class EngineFactors(Section):
    """Factors on the engine's own times; null: as built in."""

    preset: Literal["vllm", "trtllm", "trtllm-cpp", "sglang"]
    """Whose times they multiply."""
    log_std: Annotated[float, Field(ge=0)] | None = None
    """Standard deviation of the logarithm of what all of them together may be off by; null: as far as engines differ."""
    layer: Factor | None = None
    """GPU idle time a layer between its kernels."""
    step: Factor | None = None
    """GPU time an iteration outside the model."""
    host_step: Factor | None = None
    """Host time an iteration."""
    host_request: Factor | None = None
    """Host time for each scheduled request."""
    stream: Factor | None = None
    """Host time for each token streamed over HTTP."""
    launch_layer: Factor | None = None
    """Host time to launch the kernels of a layer that no CUDA graph holds."""
    entry: Factor | None = None
    """From the client's send until the engine's queue."""
    exit: Factor | None = None
    """From a sampled token until the client holds it."""

    @property
    def by_field(self) -> dict[str, float]:
        """Factor by field of `sim.cost.preset.EnginePreset`, those given."""
        given = {name: getattr(self, name) for name in type(self).model_fields if name not in ("preset", "log_std")}
        return {f"{name}_s": found.factor for name, found in given.items() if found is not None}


class Calibration(Section):
    """What a calibration file says."""

    source: Annotated[str, Field(min_length=1)]
    """What it was fitted to."""
    engine: EngineFactors | None = None
    """Of the serving engine."""
    kernels: dict[str, dict[str, dict[str, Factor]]] = Field(default_factory=dict)
    """Durations of kernels by GPU, kernel kind and number format."""
    links: dict[str, CalibrationSpec] = Field(default_factory=dict)
    """Behaviour of collectives by link kind, in place of the built-in constants and of the topology's own."""

    _name: str = PrivateAttr(default="")
    _digest: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for gpu, kinds in self.kernels.items():
            try:
                load_gpu(gpu)
            except InputError as error:
                raise refuse(error.problem, error.hint) from None
            unknown = [kind for kind in kinds if kind not in KERNELS]
            if unknown:
                raise refuse(f"got the kernel kind '{unknown[0]}'", nearest(unknown[0], KERNELS))
        unknown = [kind for kind in self.links if kind not in LINK_KINDS]
        if unknown:
            raise refuse(f"got the link kind '{unknown[0]}'", nearest(unknown[0], LINK_KINDS))
        if self.engine is None and not self.kernels and not self.links:
            raise refuse("calibrates nothing", "give engine, kernels or links")
        return self

    @property
    def origin(self) -> str:
        """For provenance: the file's name, the beginning of its SHA-256, and what it was fitted to."""
        return f"fitted by file {self._name} ({self._digest[:12]}): {self.source}"

    @property
    def kernel_times(self) -> Mapping[tuple[str, str, str], float]:
        """Factors by (GPU, kernel kind, number format)."""
        return {
            (load_gpu(gpu).name, kind, dtype): found.factor
            for gpu, kinds in self.kernels.items()
            for kind, dtypes in kinds.items()
            for dtype, found in dtypes.items()
        }

    @property
    def link_specs(self) -> dict[str, CalibrationSpec]:
        """What stands in for the behaviour of links, with this file as its source."""
        return {kind: spec.model_copy(update={"source": self.origin}) for kind, spec in self.links.items()}


def load_calibration(path: str | Path, where: str) -> Calibration:
    """The calibration file `path`.

    Args:
        where: file and key path that names it, for error messages.

    Raises:
        InputError: it cannot be read, or is no calibration file.
    """
    file = Path(path)
    try:
        data = read_yaml(file, "`twowalls calibrate` writes one with --out")
    except InputError as error:
        raise InputError(f"{where}: {error.where}", error.problem, error.hint) from None
    try:
        found = Calibration.model_validate(data)
    except ValidationError as error:
        raise input_error(error, data, Calibration, f"{where}: {file}") from None
    found._name, found._digest = file.name, hashlib.sha256(file.read_bytes()).hexdigest()
    return found
