"""The JSON Schema of a scenario file, for completion in editors (schema/scenario.schema.json)."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from typing import Any

from sim.scenario import deployment, experts, fleet, scenario, speculative, workload_spec

_MATRIX: dict[str, Any] = {
    "title": "Matrix",
    "description": "A base scenario and lists by key path: stands for their product.",
    "type": "object",
    "additionalProperties": False,
    "required": ["base"],
    "properties": {
        "name": {"type": "string", "description": "Begins the name of every cell."},
        "description": {"type": "string", "description": "What is asked, in a sentence."},
        "base": {
            "description": "The path of a scenario file, or a scenario inline.",
            "anyOf": [{"type": "string"}, {"type": "object"}],
        },
        "matrix": {
            "description": "Lists of values by key path, such as deployment.tensor_parallel_size: [1, 2, 4].",
            "type": "object",
            "additionalProperties": {"type": "array", "minItems": 1},
        },
    },
}


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 7) of a scenario file: a scenario, or a base with a matrix."""
    single = scenario.Scenario.model_json_schema(by_alias=True, ref_template="#/definitions/{model}")
    definitions = single.pop("$defs")
    definitions["Scenario"] = single
    for section, key, text in _descriptions():
        definitions[section]["properties"][key]["description"] = text
    definitions["Matrix"] = _MATRIX
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "twowalls scenario",
        "anyOf": [{"$ref": "#/definitions/Scenario"}, {"$ref": "#/definitions/Matrix"}],
        "definitions": dict(sorted(definitions.items())),
    }


def schema_text() -> str:
    """`schema()` as the text of schema/scenario.schema.json, which a test keeps in step."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _descriptions() -> Iterator[tuple[str, str, str]]:
    """(section, key, text under the field) of every field of every section.

    pydantic's use_attribute_docstrings would read the sources at every start of the command (35 ms); here it is done
    only when the schema is asked for.
    """
    for module in (deployment, experts, fleet, speculative, workload_spec, scenario):
        for node in ast.parse(inspect.getsource(module)).body:
            fields = (
                getattr(getattr(module, node.name, None), "model_fields", {}) if isinstance(node, ast.ClassDef) else {}
            )
            if not isinstance(node, ast.ClassDef) or not fields:
                continue
            for field, text in zip(node.body, node.body[1:], strict=False):
                match field, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(description))):
                        if name in fields:
                            yield (
                                node.name,
                                fields[name].alias or name,
                                inspect.cleandoc(description).replace("\n", " "),
                            )
