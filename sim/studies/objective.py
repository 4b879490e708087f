"""Service-level objectives of a whole run: percentiles within a limit, or a share of good requests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from sim import units
from sim.errors import InputError, nearest
from sim.scenario.deployment import Slo

_METRICS = ("ttft", "tpot", "itl", "e2el")
_STATISTICS = ("mean", "median", "p50", "p90", "p95", "p99", "p99.9")
_TEXT = re.compile(r"^\s*(?P<name>[a-z0-9_]+)(?:\.(?P<statistic>[a-z0-9.]+))?\s*(?:=|<=|<|>=)\s*(?P<limit>\S.*?)\s*$")
_EXAMPLE = "write ttft.p99=2s, tpot.p99=50ms or goodput=95%"


@dataclass(frozen=True, slots=True)
class Objective:
    """One line of an SLO."""

    text: str
    key: str
    """Of the summary."""
    limit: float
    """In the unit of the summary: milliseconds, or a share."""
    at_least: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """The objective written as `ttft.p99=2s` or `goodput=95%`.

        Raises:
            InputError: an unknown metric or statistic, or a limit without a unit.
        """
        match = _TEXT.match(text)
        if match is None:
            raise InputError("--slo", f"got '{text}'", _EXAMPLE)
        name, statistic, limit = match["name"], match["statistic"], match["limit"]
        if name == "goodput" and statistic is None:
            return cls(f"goodput >= {limit}", "slo_attainment", _share(limit), True)
        if name not in _METRICS:
            raise InputError("--slo", f"got the metric '{name}'", nearest(name, [*_METRICS, "goodput"]))
        if statistic not in _STATISTICS:
            got = f"{name} without a statistic" if statistic is None else f"the statistic '{statistic}' of {name}"
            raise InputError("--slo", f"got {got}", f"name one of {', '.join(_STATISTICS)}, as in {name}.p99=...")
        limit_ms = units.parse(limit, "s", f"--slo {name}.{statistic}") * 1e3
        if limit_ms <= 0:
            raise InputError("--slo", f"got '{text}'", "the limit must be above 0")
        return cls(f"{name}.{statistic} <= {units.format_time(limit_ms / 1e3)}", f"{statistic}_{name}_ms", limit_ms)

    @property
    def assertion(self) -> str:
        """The line of a scenario's `assert:` that says the same."""
        if self.at_least:
            return f"{self.key} >= {self.limit!r}"
        statistic, metric = self.key.removesuffix("_ms").split("_")
        return f"{metric}.{statistic} <= {self.limit!r} ms"

    def excess(self, record: Mapping[str, Any]) -> float:
        """By which factor a run misses the objective: up to 1 it is met; infinite where nothing was measured."""
        measured = record.get(self.key)
        if measured is None:
            return float("inf")
        if not self.at_least:
            return float(measured) / self.limit
        return self.limit / float(measured) if measured else float("inf")


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise InputError("--slo", f"got goodput '{text}'", "write a share such as 95%") from None
    if not 0 < share <= 1:
        raise InputError("--slo", f"got goodput '{text}'", "a share is above 0 % and at most 100 %")
    return share


def objectives(texts: Sequence[str] | None, slo: Slo | None, usual: Sequence[str] = ()) -> list[Objective]:
    """The SLO as given, or the 99th percentile within each of the scenario's limits, or what is usual.

    Args:
        slo: the scenario's.

    Raises:
        InputError: none anywhere; goodput without limits in the scenario.
    """
    limits_s = {} if slo is None else slo.limits_s
    given = texts or [f"{name}.p99={limit_s} s" for name, limit_s in limits_s.items()] or usual
    if not given:
        raise InputError("--slo", "no objective is given, and the scenario has no slo:", _EXAMPLE)
    found = [Objective.parse(text) for text in given]
    if any(one.key == "slo_attainment" for one in found) and not limits_s:
        hint = "add slo: {ttft: 2 s, tpot: 50 ms} to the scenario, which says what a good request is"
        raise InputError("--slo", "goodput needs limits in the scenario", hint)
    return found
