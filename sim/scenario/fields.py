"""Field types of the scenario: quantities with units, paths, names that may be a `module:object`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from sim import units
from sim.errors import InputError, nearest


class Section(BaseModel):
    """A block of the scenario file: unknown keys refused, no silent conversion between types, immutable.

    The text under each field is its description in the JSON Schema (`sim/scenario/schema.py`).
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def refuse(problem: str, hint: str = "") -> PydanticCustomError:
    """The error to raise inside a validator so that the user reads `problem` and `hint` and nothing else."""
    return PydanticCustomError("scenario", "{problem}", {"problem": problem, "hint": hint})


def _duration(minimum_exclusive: bool) -> Callable[[object], float]:
    def read(value: object) -> float:
        try:
            seconds = units.parse(value, "s")
        except InputError as error:
            raise refuse(error.problem, error.hint) from None
        if seconds < 0 or (minimum_exclusive and seconds == 0):
            bound = "longer than zero" if minimum_exclusive else "zero or longer"
            raise refuse(f"got {value!r}; a time here is {bound}")
        return seconds

    return read


def duration_text(seconds: float) -> str:
    """The shortest text that reads back as exactly `seconds`."""
    return f"{seconds!r} s".replace(".0 s", " s")


_DURATION_SCHEMA = {
    "anyOf": [{"type": "string", "pattern": r"^\s*[0-9.eE_+-]+\s*(ns|us|ms|s|min|h)\s*$"}, {"const": 0}],
    "examples": ["50 ms", "2 s", "10 min"],
}
Duration = Annotated[
    float, BeforeValidator(_duration(False)), PlainSerializer(duration_text), WithJsonSchema(_DURATION_SCHEMA)
]
"""Seconds, written with a unit; zero allowed."""
PositiveDuration = Annotated[
    float, BeforeValidator(_duration(True)), PlainSerializer(duration_text), WithJsonSchema(_DURATION_SCHEMA)
]
"""Seconds, written with a unit; more than zero."""


def _bytes(value: object) -> float:
    try:
        size_bytes = units.parse(value, "bytes")
    except InputError as error:
        raise refuse(error.problem, error.hint) from None
    if size_bytes < 0:
        raise refuse(f"got {value!r}; a size is zero or more")
    return size_bytes


Bytes = Annotated[
    float,
    BeforeValidator(_bytes),
    PlainSerializer(lambda size_bytes: f"{size_bytes!r} B".replace(".0 B", " B")),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": r"^\s*[0-9.eE_+-]+\s*[kKMGTP]?i?B\s*$"}, {"const": 0}],
         "examples": ["4 GiB", "64 GB"]}
    ),
]  # fmt: skip
"""Bytes, written with a unit; zero allowed."""


def looks_like_path(text: str) -> bool:
    """Whether `text` names a file or a folder, not a catalogue entry: it holds a separator or ends like a file."""
    return "/" in text or "\\" in text or Path(text).suffix.lower() in {".json", ".yaml", ".yml"}


def _anchored(text: str, info: ValidationInfo) -> str:
    """`text` as an absolute path: relative paths start at the folder of the scenario file."""
    base: Path = (info.context or {}).get("base_dir", Path.cwd())
    path = Path(text).expanduser()
    return str(path if path.is_absolute() else (base / path).resolve())


def _anchored_if_path(text: str, info: ValidationInfo) -> str:
    return _anchored(text, info) if looks_like_path(text) else text


FilePath = Annotated[str, AfterValidator(_anchored)]
"""A path; relative ones start at the folder of the scenario file."""
NameOrPath = Annotated[str, AfterValidator(_anchored_if_path)]
"""The name of a catalogue entry, or the path of the user's own file."""

_OBJECT = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")


def name_or_object(names: tuple[str, ...]) -> Any:
    """The type of a field that takes one of `names` or the user's own `module:object`."""

    def check(text: str) -> str:
        if text in names or _OBJECT.match(text):
            return text
        raise refuse(f"got '{text}'", f"{nearest(text, names)} (or module:object for your own)")

    schema = {"anyOf": [{"enum": list(names)}, {"type": "string", "pattern": _OBJECT.pattern}]}
    return Annotated[str, AfterValidator(check), WithJsonSchema(schema)]
