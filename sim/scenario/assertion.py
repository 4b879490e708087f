"""Assertions of a scenario: `ttft.p99 < 10 min` as metric, operator and SI value.

They are read here and evaluated on the finished result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sim import units
from sim.errors import InputError, nearest

OPERATORS = ("<=", ">=", "==", "!=", "<", ">")
SECONDS, SHARE, COUNT, REQUESTS_PER_S, TOKENS_PER_S = "s", "share", "count", "req/s", "tok/s"
# metrics that have a value for each request (or each moment), so that a statistic must be named
DISTRIBUTIONS = {
    "ttft": SECONDS,
    "tpot": SECONDS,
    "itl": SECONDS,
    "e2el": SECONDS,
    "queue_time": SECONDS,
    "kv_usage": SHARE,
    "running": COUNT,
    "waiting": COUNT,
}
# metrics that are one number a run
SCALARS = {
    "duration": SECONDS,
    "request_throughput": REQUESTS_PER_S,
    "request_goodput": REQUESTS_PER_S,
    "output_throughput": TOKENS_PER_S,
    "total_token_throughput": TOKENS_PER_S,
    "output_throughput_per_gpu": TOKENS_PER_S,
    "output_tokens_per_s_per_user": TOKENS_PER_S,
    "slo_attainment": SHARE,
    "prefix_cache_hit_rate": SHARE,
    "host_cache_hit_rate": SHARE,
    "completed": COUNT,
    "failed": COUNT,
    "rejected": COUNT,
    "cut": COUNT,
    "preemptions": COUNT,
    "max_concurrent_requests": COUNT,
    "total_input_tokens": COUNT,
    "total_output_tokens": COUNT,
}
ALIASES = {"goodput": "request_goodput"}
STATISTICS = ("mean", "median", "std", "min", "max")
_PERCENTILE = re.compile(r"^p(\d{1,2}(\.\d+)?|100)$")
_LINE = re.compile(rf"^\s*([A-Za-z_][\w.]*)\s*({'|'.join(OPERATORS)})\s*(\S.*?)\s*$")
_EXAMPLE = "write it as `ttft.p99 < 10 min` or `output_throughput >= 1000`"


@dataclass(frozen=True, slots=True)
class Assertion:
    """One line under `assert:`.

    Attributes:
        text: the line as the user wrote it.
        metric: a name of `SCALARS`, or `name.statistic` with a name of `DISTRIBUTIONS`; the statistic is one of
            `STATISTICS` or a percentile such as p99 or p99.9.
        operator: one of `OPERATORS`.
        value: in SI (seconds, bytes, a share between 0 and 1, requests or tokens a second).
    """

    text: str
    metric: str
    operator: str
    value: float

    @classmethod
    def parse(cls, text: str, where: str = "assert") -> Assertion:
        """The assertion written in `text`.

        Raises:
            InputError: `text` is no comparison, names an unknown metric or statistic, or has a wrong unit.
        """
        match = _LINE.match(text)
        if match is None:
            raise InputError(where, f"got '{text}', which is not a comparison", _EXAMPLE)
        name, operator, right = match.groups()
        metric, dimension = _metric(name, where)
        return cls(text, metric, operator, _value(right, dimension, where))


def metric_names() -> Iterator[str]:
    """Every metric an assertion can name, distributions with each plain statistic and p99."""
    for name in DISTRIBUTIONS:
        yield from (f"{name}.{statistic}" for statistic in (*STATISTICS, "p99"))
    yield from SCALARS
    yield from ALIASES


def _metric(name: str, where: str) -> tuple[str, str]:
    """(canonical metric path, dimension) of a metric as the user names it."""
    head, _, statistic = name.partition(".")
    head = ALIASES.get(head, head)
    if head in SCALARS and not statistic:
        return head, SCALARS[head]
    if head in DISTRIBUTIONS:
        if statistic in STATISTICS or _PERCENTILE.match(statistic):
            return f"{head}.{statistic}", DISTRIBUTIONS[head]
        got = f"the unknown statistic '{statistic}' of {head}" if statistic else f"{head} without a statistic"
        raise InputError(where, f"got {got}", f"name one of {', '.join(STATISTICS)} or a percentile such as p99")
    raise InputError(where, f"got the unknown metric '{name}'", nearest(name, metric_names()))


def _value(text: str, dimension: str, where: str) -> float:
    if dimension == SECONDS:
        return units.parse(0 if text == "0" else text, "s", where)
    allowed = _UNITS_OF[dimension]
    unit = next((unit for unit in allowed if text.endswith(unit)), "")
    try:
        return float(text.removesuffix(unit)) * allowed.get(unit, 1.0)
    except ValueError:
        hint = "write a plain number" + (f", or one in {' or '.join(allowed)}" if allowed else "")
        raise InputError(where, f"got '{text}' after the comparison", hint) from None


_UNITS_OF: dict[str, dict[str, float]] = {
    SHARE: {"%": 0.01},
    COUNT: {},
    REQUESTS_PER_S: {"req/s": 1.0, "requests/s": 1.0},
    TOKENS_PER_S: {"tok/s": 1.0, "tokens/s": 1.0},
}
