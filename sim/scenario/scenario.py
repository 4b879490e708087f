"""One scenario: everything a run depends on, validated, immutable, and written back as it can be read again."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from os.path import relpath
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from sim.errors import InputError
from sim.scenario.assertion import Assertion
from sim.scenario.build import build_workload
from sim.scenario.deployment import Cluster, Deployment, Engine, Fusion, Precision, Slo
from sim.scenario.fields import NameOrPath, Section, refuse
from sim.scenario.loading import input_error
from sim.scenario.matrix import Draft, read_drafts, set_key
from sim.scenario.workload_spec import WorkloadSpec
from sim.workload.workload import Workload


def _assertion(value: object) -> Assertion:
    if not isinstance(value, str):
        raise refuse(f"got {value!r}", 'write a comparison as text, such as "ttft.p99 < 10 min"')
    try:
        return Assertion.parse(value)
    except InputError as error:
        raise refuse(error.problem, error.hint) from None


AssertionLine = Annotated[
    Assertion,
    BeforeValidator(_assertion),
    PlainSerializer(lambda assertion: assertion.text),
    WithJsonSchema({"type": "string", "examples": ["ttft.p99 < 10 min", "output_throughput >= 1000"]}),
]


class Scenario(Section):
    """A model on a cluster under a workload: the file a user writes."""

    name: Annotated[str, Field(min_length=1)] = "scenario"
    """Short name, used in tables and for result folders."""
    description: str = ""
    """What is asked, in a sentence."""
    model: NameOrPath
    """A model by name, such as llama-3.1-70b, or the path of a Hugging Face config.json (or its folder)."""
    precision: Precision = Field(default_factory=Precision)
    """Number formats."""
    cluster: Cluster
    """The machines."""
    deployment: Deployment = Field(default_factory=Deployment)
    """How the model is cut over GPUs."""
    engine: Engine = Field(default_factory=Engine)
    """The serving engine."""
    workload: WorkloadSpec
    """The requests."""
    costs: Literal["roofline", "measured"] = "roofline"
    """How kernels are priced: roofline (fitted constants, any GPU) or measured (interpolated tables)."""
    granularity: Literal["leap", "step", "layer"] = "leap"
    """One event for many iterations alike, for each iteration, or for each kernel group and collective."""
    fusion: Fusion = Field(default_factory=Fusion)
    """Which kernels are fused."""
    slo: Slo | None = None
    """Limits a request must keep; gives goodput and attainment."""
    assertions: list[AssertionLine] = Field(default_factory=list, alias="assert")
    """Comparisons such as "ttft.p99 < 10 min"; one that does not hold ends the command with exit code 1."""

    _where: str = PrivateAttr(default="scenario")

    @model_validator(mode="after")
    def _router_has_something_to_look_at(self) -> Self:
        router = self.deployment.router
        if router == "session_affinity" and self.workload.sessions is None:
            raise refuse(
                "router session_affinity without conversations", "add workload.sessions, or choose another router"
            )
        if router == "prefix_affinity" and not self.engine.enable_prefix_caching:
            raise refuse("router prefix_affinity without a prefix cache", "set engine.enable_prefix_caching: true")
        return self

    def __eq__(self, other: object) -> bool:
        """Whether both ask for the same run, wherever they were written."""
        return isinstance(other, Scenario) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def where(self) -> str:
        """What an error message about this scenario begins with: its file, or what `from_dict` was told."""
        return self._where

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, object] | None = None) -> Self:
        """The one scenario in the file `path`, with `overrides` (values by dotted key) applied before validation.

        Raises:
            InputError: the file is wrong, or stands for several scenarios.
        """
        drafts = read_drafts(Path(path))
        if len(drafts) != 1:
            raise InputError(str(path), f"stands for {len(drafts)} scenarios", "load them all, or choose one cell")
        return cls._from_draft(drafts[0], overrides)

    @classmethod
    def load_all(cls, path: str | Path, overrides: Mapping[str, object] | None = None) -> list[Self]:
        """The scenarios that the file `path` stands for: itself, or the product of its `matrix:`.

        Raises:
            InputError: the file, or any of its cells, is wrong.
        """
        return [cls._from_draft(draft, overrides) for draft in read_drafts(Path(path))]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "scenario", base_dir: str | Path = ".") -> Self:
        """The scenario written in `data`, as a file would hold it.

        Args:
            data: keys and values of a scenario file.
            where: what error messages begin with.
            base_dir: where relative paths start.

        Raises:
            InputError: names every mistake with its key path.
        """
        try:
            scenario = cls.model_validate(data, context={"base_dir": Path(base_dir).resolve()})
        except ValidationError as error:
            raise input_error(error, data, cls, where) from None
        scenario._where = where
        return scenario

    @classmethod
    def _from_draft(cls, draft: Draft, overrides: Mapping[str, object] | None) -> Self:
        for key, value in (overrides or {}).items():
            set_key(draft.data, key, value, draft.where)
        return cls.from_dict(draft.data, draft.where, draft.base_dir)

    def to_dict(self, relative_to: str | Path | None = None) -> dict[str, Any]:
        """Every key with its value, defaults too, as a scenario file holds it; it reads back as an equal scenario.

        Args:
            relative_to: a folder; paths are written relative to it. None: paths are absolute.
        """
        data = self.model_dump(mode="json", by_alias=True)
        if relative_to is not None:
            folder = Path(relative_to).resolve()
            for section, key in _paths(data):
                section[key] = relpath(section[key], folder)
                if "/" not in section[key]:
                    section[key] = f"./{section[key]}"
        return data

    def with_overrides(self, overrides: Mapping[str, object]) -> Self:
        """A copy with the values of `overrides` (by dotted key, such as deployment.tensor_parallel_size) set.

        Raises:
            InputError: an unknown key or a wrong value.
        """
        return self._from_draft(Draft(self.to_dict(), self._where, Path.cwd()), overrides)

    def content_hash(self) -> str:
        """SHA-256 (hex) of all a run depends on: every key, and the content, not the place, of the files named."""
        data = copy.deepcopy(self.to_dict())
        for section, key in _paths(data):
            section[key] = _digest(Path(section[key]))
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def build_workload(self) -> Workload:
        """The requests of this scenario, drawn with its seed.

        Raises:
            InputError: a trace file is missing or wrong.
        """
        return build_workload(self.workload)


def _paths(data: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """(section, key) of every absolute path in a scenario written as data."""
    places = [(data, "model"), (data["cluster"], "topology"), (data["cluster"], "gpu"), (data["engine"], "calibration")]
    places += [(data["workload"]["arrivals"], "path"), (data["workload"]["lengths"] or {}, "path")]
    return [(section, key) for section, key in places if section.get(key) and Path(section[key]).is_absolute()]


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of the JSON and CSV files of a folder (never its weights); of the name if it is absent."""
    total = hashlib.sha256()
    files = sorted(f for f in path.iterdir() if f.suffix in {".json", ".csv"}) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            total.update(file.name.encode())
        total.update(file.read_bytes() if file.is_file() else str(file).encode())
    return total.hexdigest()
