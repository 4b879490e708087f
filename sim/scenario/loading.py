"""From a YAML file to plain data, and from pydantic's errors to one clear message a mistake."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sim.errors import InputError, nearest
from sim.yaml_text import load_yaml, load_yaml_file

_SCENARIO = "a scenario needs at least model, cluster and workload"
_SHOWN = 8
"""Mistakes that one message lists: a file with more is no scenario at all."""


def read_yaml(path: Path, hint: str = _SCENARIO) -> dict[str, Any]:
    """The mapping in the YAML file `path`.

    Args:
        hint: what the file should hold, for the message if it is empty.

    Raises:
        InputError: no such file, not YAML, a key twice, empty, or anything but a mapping of names.
    """
    return _mapping(load_yaml_file(path, "give the path of a YAML file"), str(path), hint)


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """The mapping in `text`; errors begin with `where`. Raises InputError as `read_yaml` does."""
    return _mapping(load_yaml(text, where), where, _SCENARIO)


def _mapping(data: object, where: str, hint: str) -> dict[str, Any]:
    """`data` if it is keys and values; raises InputError else."""
    if data is None:
        raise InputError(where, "is empty", hint)
    if not isinstance(data, dict):
        raise InputError(
            where,
            f"holds a {type(data).__name__}, not keys and values",
            "start with a line such as `model: llama-3.1-8b`",
        )
    return data


def input_error(error: ValidationError, data: Mapping[str, Any], model: type[BaseModel], where: str) -> InputError:
    """The user's view of a pydantic error: for each mistake its key path, what was got, what is allowed."""
    mistakes = list(dict.fromkeys(_mistakes(error.errors(include_url=False), data, model)))
    if len(mistakes) == 1:
        path, problem, hint = mistakes[0]
        return InputError(f"{where}: {path}" if path else where, problem, hint)
    lines = [
        f"\n  {path or 'scenario'}: {problem}" + (f"; {hint}" if hint else "")
        for path, problem, hint in mistakes[:_SHOWN]
    ]
    more = f"\n  ... and {len(mistakes) - _SHOWN} more" if len(mistakes) > _SHOWN else ""
    return InputError(where, f"{len(mistakes)} mistakes" + "".join(lines) + more)


def _mistakes(
    errors: Sequence[ErrorDetails], data: Mapping[str, Any], model: type[BaseModel]
) -> Iterator[tuple[str, str, str]]:
    """(key path, problem, hint) of each mistake; a key that is missing because it was misspelt counts once."""
    unknown = {_key_path(e["loc"], data) for e in errors if e["type"] == "extra_forbidden"}
    for error in errors:
        path = _key_path(error["loc"], data)
        if error["type"] == "missing":
            others = [other[-1] for other in unknown if other[:-1] == path[:-1]]
            if nearest(path[-1], others).startswith("did you mean"):
                continue
        yield ".".join(path), *_explain(error, path, data, model)


def _explain(
    error: ErrorDetails, path: tuple[str, ...], data: Mapping[str, Any], model: type[BaseModel]
) -> tuple[str, str]:
    """(problem, hint) of one pydantic error."""
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    got = f"got {_shown(value)}"
    if kind == "scenario":
        return context["problem"], context["hint"]
    if kind == "extra_forbidden":
        return "is an unknown key", nearest(path[-1], _keys_at(path[:-1], data, model))
    if kind == "missing":
        return "is missing", f"needed here: {', '.join(_needed_at(path[:-1], data, model)) or path[-1]}"
    if kind == "union_tag_not_found":
        return "has no `kind`", f"allowed kinds: {', '.join(sorted(_variants(_annotation_at(path, data, model))))}"
    if kind == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        return f"got the unknown kind '{context['tag']}'", nearest(str(context["tag"]), tags)
    if kind == "literal_error":
        allowed = context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return got, nearest(value, allowed) if isinstance(value, str) else f"allowed: {', '.join(allowed)}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        kinds = sorted(_variants(_annotation_at(path, data, model)))
        keys = f"kind: {' | '.join(kinds)}" if kinds else ", ".join(_keys_at(path, data, model))
        return got, f"write keys and values here: {keys}".removesuffix(": ")
    return got, _EXPECTED.get(kind, error["msg"]).format(**context).removesuffix(".0")


_EXPECTED = {
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number (without a unit)",
    "string_type": "expected text",
    "bool_type": "expected true or false",
    "list_type": "expected a list",
    "finite_number": "expected a finite number",
    "invalid_key": "a key is a name; write it in letters",
    "greater_than": "must be greater than {gt:,}",
    "greater_than_equal": "must be at least {ge:,}",
    "less_than": "must be less than {lt:,}",
    "less_than_equal": "must be at most {le:,}",
}


def _shown(value: object) -> str:
    """`value` as the user wrote it in YAML, shortened."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (ValueError, RecursionError):  # an alias that leads back to itself
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _key_path(location: Sequence[str | int], data: object) -> tuple[str, ...]:
    """pydantic's location without the tags of discriminated unions, which are no keys of the file."""
    path: list[str] = []
    for index, part in enumerate(location):
        is_tag = isinstance(data, Mapping) and part not in data and data.get("kind") == part
        if is_tag and index < len(location) - 1:
            continue
        path.append(str(part))
        if isinstance(data, Mapping):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
    return tuple(path)


def _annotation_at(path: Sequence[str], data: Mapping[str, Any], model: type[BaseModel]) -> object:
    """The type of the field at `path`; in a union by `kind`, the member that `data` chose."""
    annotation: object = model
    value: Any = data
    for part in path:
        section = _section(annotation, value)
        field = next((f for n, f in section.model_fields.items() if part in (n, f.alias)), None) if section else None
        if field is None:
            return None
        annotation = field.annotation
        value = value.get(part) if isinstance(value, Mapping) else None
    return annotation


def _section(annotation: object, value: object) -> type[BaseModel] | None:
    """The section class behind `annotation`, looking through `| None` and through unions by `kind`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    variants = _variants(annotation)
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if kind in variants:
        return variants[str(kind)]
    sections = [arg for arg in get_args(annotation) if isinstance(arg, type) and issubclass(arg, BaseModel)]
    return sections[0] if len(sections) == 1 else None


def _variants(annotation: object) -> dict[str, type[BaseModel]]:
    """The members of a union by `kind`, also when it stands inside `| None`."""
    found: dict[str, type[BaseModel]] = {}
    for arg in get_args(annotation):
        if isinstance(arg, type) and issubclass(arg, BaseModel):
            field = arg.model_fields.get("kind")
            if field is not None:
                found[str(get_args(field.annotation)[0])] = arg
        else:
            found.update(_variants(arg))
    return found


def _keys_at(path: Sequence[str], data: Mapping[str, Any], model: type[BaseModel]) -> list[str]:
    section = _section(_annotation_at(path, data, model), _value_at(path, data))
    return [field.alias or name for name, field in section.model_fields.items()] if section else []


def _needed_at(path: Sequence[str], data: Mapping[str, Any], model: type[BaseModel]) -> list[str]:
    section = _section(_annotation_at(path, data, model), _value_at(path, data))
    fields = section.model_fields.items() if section else []
    return [field.alias or name for name, field in fields if field.is_required()]


def _value_at(path: Sequence[str], data: object) -> object:
    for part in path:
        data = data.get(part) if isinstance(data, Mapping) else None
    return data
