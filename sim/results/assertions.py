"""The `assert:` lines of a scenario, held against the summary of its run."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sim.errors import InputError, nearest

_STATISTICS = ("mean", "median", "std", "p50", "p90", "p95", "p99", "p99.9")
_IN_MS = ("ttft", "tpot", "itl", "e2el", "queue")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


class Assertion(Protocol):
    """One line such as `ttft.p99 < 10 min`, parsed: the value in SI units."""

    @property
    def text(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def operator(self) -> str: ...
    @property
    def value(self) -> float: ...


@dataclass(frozen=True)
class Verified:
    """What became of one assertion."""

    text: str
    held: bool
    actual: float | None
    """The measured value in SI units; None where there was nothing to measure, and then it does not hold."""


def measures(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Every metric that an assertion may name, in SI units: `ttft.p99` in seconds, plain numbers by their key."""
    found: dict[str, float | None] = {}
    for metric in _IN_MS:
        for statistic in _STATISTICS:
            value = summary.get(f"{statistic}_{metric}_ms")
            found[f"{metric}.{statistic}"] = None if value is None else value / 1e3
    for key, value in summary.items():
        if not key.endswith("_ms") and not isinstance(value, (str, bool)):
            found[key] = value
    return found


def verify(assertions: Iterable[Assertion], summary: Mapping[str, Any]) -> list[Verified]:
    """Hold every assertion against the summary.

    Raises:
        InputError: for a metric that no run has, with the nearest name.
    """
    measured = measures(summary)
    verified = []
    for assertion in assertions:
        if assertion.metric not in measured:
            problem = f"got the metric '{assertion.metric}' in '{assertion.text}', which no run has"
            raise InputError("assert", problem, nearest(assertion.metric, measured))
        actual = measured[assertion.metric]
        held = actual is not None and _OPERATORS[assertion.operator](actual, assertion.value)
        verified.append(Verified(assertion.text, held, actual))
    return verified
