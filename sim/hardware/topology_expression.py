"""Arithmetic in topology files: `8 * ceil(nodes / 32)`, `i // 2`, over the parameters and nothing else."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

from sim.errors import InputError, nearest

_FUNCTIONS: dict[str, Callable[..., float]] = {"ceil": math.ceil, "min": min, "max": max}
_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, ast.Name, ast.Call, ast.Load,
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.USub,
)  # fmt: skip


class Expression:
    """A checked arithmetic expression; `value(**names)` evaluates it."""

    def __init__(self, text: str | int | float, names: Mapping[str, Any], where: str) -> None:
        """Raise InputError when `text` is no arithmetic over `names`, ceil, min and max."""
        self.text = str(text)
        self.where = where
        self._code = _checked(self.text, set(names), where)
        self._names = {**_FUNCTIONS, **names}
        self._used = {name: names[name] for name in names if name in self._code.co_names}

    def value(self, **names: float) -> float:
        """The number this expression has for these extra names (`i`, `node`)."""
        try:
            value = float(eval(self._code, {"__builtins__": {}}, {**self._names, **names}))
        except (ArithmeticError, TypeError, ValueError) as error:
            raise InputError(self.where, f"'{self.text}' cannot be evaluated: {error}", self._given(names)) from None
        if not math.isfinite(value):
            raise InputError(self.where, f"'{self.text}' is beyond every number", self._given(names))
        return value

    def _given(self, names: Mapping[str, float]) -> str:
        """The values of the names in it, for whoever wonders why it comes out as it does; empty if it has none."""
        used = {name: names.get(name, value) for name, value in self._used.items()}
        return "with " + ", ".join(f"{name} = {value}" for name, value in used.items()) if used else ""

    def whole(self, **names: float) -> int:
        """The value, which must be a whole number of at least 0."""
        value = self.value(**names)
        if value != int(value) or value < 0:
            problem = f"'{self.text}' is {value:g}; it must be a whole number of at least 0"
            raise InputError(self.where, problem, self._given(names))
        return int(value)

    def positive(self) -> float:
        """The value, which must be more than 0."""
        value = self.value()
        if value <= 0:
            raise InputError(self.where, f"'{self.text}' is {value:g}; it must be more than 0", self._given({}))
        return value


def _checked(text: str, names: set[str], where: str) -> CodeType:
    hint = "allowed: numbers, parameters, + - * / // %, ceil(), min(), max()"
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        raise InputError(where, f"'{text}' is not an expression", hint) from None
    for node in ast.walk(tree):
        number = not isinstance(node, ast.Constant) or isinstance(node.value, (int, float))
        if not isinstance(node, _NODES) or not number:
            raise InputError(where, f"'{text}' has something other than arithmetic in it", hint)
        if isinstance(node, ast.Name) and node.id not in names and node.id not in _FUNCTIONS:
            raise InputError(where, f"'{text}' uses the unknown name '{node.id}'", nearest(node.id, names))
    return compile(tree, where, "eval")
