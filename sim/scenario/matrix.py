"""Scenario files that stand for many: `base:` and `matrix:` expand to their product."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sim.errors import InputError, nearest
from sim.scenario.loading import read_yaml

_KEYS = ("name", "description", "base", "matrix")


class Draft(NamedTuple):
    """A scenario as plain data, not yet validated."""

    data: dict[str, Any]
    where: str
    """What an error message begins with."""
    base_dir: Path
    """Where its relative paths start."""


def read_drafts(path: Path, parents: Sequence[Path] = ()) -> list[Draft]:
    """The scenarios that the file `path` stands for: one, or the product of its matrix, in the order written.

    Raises:
        InputError: as `read_yaml`; an unknown key beside `base`; a matrix that is no mapping of lists; a base that
            leads back to itself.
    """
    path = path.resolve()
    if path in parents:
        raise InputError(str(path), "is its own base", "let `base:` name another file")
    data = read_yaml(path)
    where = _short(path)
    if "base" not in data and "matrix" not in data:
        data.setdefault("name", path.stem)
        return [Draft(data, where, path.parent)]
    return _expand(data, where, path, (*parents, path))


def set_key(data: dict[str, Any], key: str, value: object, where: str) -> None:
    """Set the dotted `key` of nested `data` in place, making sections that are absent.

    Raises:
        InputError: a part of the key other than the last is a plain value.
    """
    *sections, last = key.split(".")
    for index, part in enumerate(sections):
        if data.get(part) is None:
            data[part] = {}
        data = data[part]
        if not isinstance(data, dict):
            taken = ".".join(sections[: index + 1])
            raise InputError(
                f"{where}: {key}", f"'{taken}' is a value and has no keys below it", f"set '{taken}' instead"
            )
    data[last] = copy.deepcopy(value)


def _expand(data: Mapping[str, Any], where: str, path: Path, parents: Sequence[Path]) -> list[Draft]:
    for key in data:
        if key not in _KEYS:
            hint = f"{nearest(str(key), _KEYS)} Other keys stand in the base, or in the matrix as a list of one."
            raise InputError(f"{where}: {key}", "is an unknown key beside base: and matrix:", hint)
    matrix = _matrix(data.get("matrix") or {}, where)
    bases = _bases(data.get("base"), where, path, parents)
    name = data.get("name", path.stem if matrix else None)
    drafts = []
    for base in bases:
        for values in itertools.product(*matrix.values()):
            cell = copy.deepcopy(base.data)
            for key, value in zip(matrix, values, strict=True):
                set_key(cell, key, value, where)
            stem = name if name and len(bases) == 1 else cell.get("name", path.stem)
            cell["name"] = "-".join([str(stem), *_labels(matrix, values)])
            if "description" in data:
                cell["description"] = data["description"]
            drafts.append(Draft(cell, where, base.base_dir))
    return drafts


def _bases(base: object, where: str, path: Path, parents: Sequence[Path]) -> list[Draft]:
    if isinstance(base, str):
        return read_drafts(path.parent / base, parents)
    if isinstance(base, dict):
        return [Draft(base, where, path.parent)]
    raise InputError(f"{where}: base", f"got {base!r}", "give the path of a scenario file, or a scenario inline")


def _matrix(matrix: object, where: str) -> dict[str, list[Any]]:
    if not isinstance(matrix, dict):
        raise InputError(
            f"{where}: matrix",
            f"got {matrix!r}",
            "write key paths with lists, such as `engine.max_num_seqs: [64, 256]`",
        )
    for key, values in matrix.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{where}: matrix.{key}", f"got {values!r}", "give a list of at least one value")
    return {str(key): values for key, values in matrix.items()}


def _labels(matrix: Mapping[str, list[Any]], values: Sequence[object]) -> list[str]:
    """`key=value` of each axis: the last part of the key if that is clear; the position if the value is a section."""
    last = [key.rsplit(".", 1)[-1] for key in matrix]
    labels = []
    for key, short, value in zip(matrix, last, values, strict=True):
        shown = matrix[key].index(value) + 1 if isinstance(value, (dict, list)) else value
        text = str(shown).lower() if isinstance(value, bool) else str(shown)
        labels.append(f"{short if last.count(short) == 1 else key}={text.replace('/', '_').replace(' ', '')}")
    return labels


def _short(path: Path) -> str:
    """`path` as the user would type it: relative to the current folder where it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
