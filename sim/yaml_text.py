"""YAML as users write it, read strictly: a key twice is a mistake, 1e3 is a number, and the key `on` is a name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from sim.errors import InputError

_BOOL, _TEXT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:str"
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """Safe YAML that refuses a key written twice, and reads 1e3 as a number and the key `on` as a name, as YAML 1.2 does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is no name", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' twice", key.start_mark)
            seen.add(key.value)
            if key.tag == _BOOL:
                key.tag = _TEXT
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_yaml_file(path: Path, hint: str) -> Any:
    """What the file `path` holds; None if that is nothing.

    Args:
        hint: which file is wanted, for the message if this one is no text.

    Raises:
        InputError: it cannot be read, or as `load_yaml`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", hint) from None
    except UnicodeDecodeError:
        raise InputError(str(path), "is not UTF-8 text", hint) from None
    return load_yaml(text, str(path))


def load_yaml(text: str, where: str) -> Any:
    """What `text` holds; None if that is nothing.

    Raises:
        InputError: it is not YAML, or has a key twice; the message begins with `where` and the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}:{mark.line + 1}" if mark and "\n" in text else where
        raise InputError(place, f"is not valid YAML: {error.problem}", "check indentation and brackets") from None
    except yaml.YAMLError as error:
        raise InputError(where, f"is not valid YAML: {str(error).splitlines()[0]}", "write plain text") from None
    except RecursionError:
        raise InputError(where, "is nested too deeply", "three or four levels are enough") from None
