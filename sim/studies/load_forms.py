"""How benchmark tables write the load of a measurement, read into one `Load`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from sim.errors import InputError

Kind = Literal[
    "static", "closed_loop", "poisson", "stages", "burst", "message", "gemm", "tokens", "unknown", "blank",
]  # fmt: skip

FORMS = (
    "batch=N, max concurrency/batch=N, concurrency=N, N users, single stream, rate=N req/s [Poisson], "
    "N req/s [Ns] then M req/s [Ms], rate=INF req/s, inf (max throughput), Offline (all samples at once), "
    "Server Poisson target_qps=N, Interactive Poisson target_qps=N, trace, N requests over S s, message=N UNIT, "
    "M=.. K=.. N=.., num_tokens=N, N tokens/batch, unknown; before or behind a load N requests"
)
"""What `parse_load` reads."""


@dataclass(frozen=True, slots=True)
class Load:
    """One load. Which fields are set depends on `kind`."""

    kind: Kind
    count: int = 0
    """Sequences of a static batch, users of a closed loop, or tokens of a kernel row."""
    rate: float = 0.0
    """Requests a second of an open loop."""
    requests: int | None = None
    """Requests sent in all, where the load says so."""
    stages: tuple[tuple[float, float | None], ...] = ()
    """(requests a second, seconds or None) one after another."""
    message: tuple[float, str] | None = None
    """(amount, unit) of a collective: bytes, KB, MB, GiB, elements."""
    shape: tuple[int, int, int] | None = None
    """(m, n, k) of a matrix product."""


_NUMBER = r"(\d[\d,]*(?:\.\d+)?)"
_IS = r"\s*[=: ]\s*"
_RATE = r"(?:req(?:uest)?s?/s(?:ec)?|qps|rps)"
_USERS = r"(?:users?|clients?|streams?|concurrent(?: (?:users?|clients?|requests?|streams?))?)"
_CALLED = r"(?:(?:max|num)[ _-]?)?(?:concurrency|concurrent(?:[ _](?:users|clients|requests))?|users|clients)"
_REQUESTS = re.compile(
    r"(?:(?P<n>\d[\d,]*) (?:requests|prompts|samples)|num[_-]prompts\s*[= ]\s*(?P<m>\d[\d,]*))", re.IGNORECASE
)
_STAGE = re.compile(rf"{_NUMBER}\s*req/s(?:\s+{_NUMBER}\s*s)?$")


def parse_load(text: str) -> Load:
    """The load that `text` describes.

    Raises:
        InputError: a form that is not in `FORMS`.
    """
    bare = re.sub(r"\s*\((?!max throughput|all samples).*\)\s*$", "", text.strip())
    for pattern, build in _FORMS:
        match = pattern.fullmatch(bare)
        if match is not None:
            return build(match)
    parts = [part.strip() for part in re.split(r"[,;](?!\d)", bare)]
    counts = [_REQUESTS.fullmatch(part) for part in parts]
    if sum(count is not None for count in counts) == 1 < len(parts):
        found = next(count for count in counts if count is not None)
        rest = parse_load(", ".join(part for part, count in zip(parts, counts, strict=True) if count is None))
        return replace(rest, requests=_count(found["n"] or found["m"]))
    if " then " in bare:
        stages = [_STAGE.match(part.strip()) for part in bare.split(" then ")]
        if all(stages):
            return Load("stages", stages=tuple((_real(m[1]), _real(m[2]) if m[2] else None) for m in stages if m))
    raise InputError("batch_or_concurrency_or_rate", f"got '{text}'", FORMS)


def _shape(match: re.Match[str]) -> Load:
    sizes = {name.upper(): int(value) for name, value in re.findall(r"([MNK])\s*=\s*(\d+)", match[0], re.I)}
    return Load("gemm", shape=(sizes["M"], sizes["N"], sizes["K"]))


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_FORMS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Load]], ...] = (
    (_compile(r""), lambda m: Load("blank")),
    (_compile(r"(?:unknown|concurrency=unknown|batch=unknown|large)"), lambda m: Load("unknown")),
    (_compile(rf"(?:static )?(?:batch(?:[ _-]size)?|bs){_IS}(\d+)"), lambda m: Load("static", count=int(m[1]))),
    (
        _compile(rf"max concurrency/batch{_IS}(\d+)|{_CALLED}{_IS}(\d+)|(\d+) {_USERS}"),
        lambda m: Load("closed_loop", count=int(m[1] or m[2] or m[3])),
    ),
    (_compile(r"single[ -]?(?:user|stream|request)"), lambda m: Load("closed_loop", count=1)),
    (_compile(rf"(?:request[ _-])?rate{_IS}inf(?:inite|inity)?(?:\s*{_RATE})?"), lambda m: Load("burst")),
    (
        _compile(
            r"inf(?:inite|inity)?(?:\s*\(max throughput\))?|max throughput|offline(?:\s*\(all samples at once\))?"
        ),
        lambda m: Load("burst"),
    ),
    (_compile(r"all(?: requests| prompts)? at once|burst"), lambda m: Load("burst")),
    (
        _compile(
            rf"(?:(?:request[ _-])?rate{_IS})?{_NUMBER}\s*{_RATE}(?:\s+Poisson)?|(?:qps|rps|(?:request[ _-])?rate){_IS}{_NUMBER}"
        ),
        lambda m: Load("poisson", rate=_real(m[1] or m[2])),
    ),
    (
        _compile(rf"(?:Server|Interactive)(?:\s+Poisson)?\s+target_qps\s*=\s*{_NUMBER}"),
        lambda m: Load("poisson", rate=_real(m[1])),
    ),
    (
        _compile(rf"trace,?\s*([\d,]+) requests over {_NUMBER}\s*s"),
        lambda m: Load("poisson", rate=_count(m[1]) / _real(m[2]), requests=_count(m[1])),
    ),
    (_compile(rf"message\s*=\s*{_NUMBER}\s*([A-Za-z]+)"), lambda m: Load("message", message=(_real(m[1]), m[2]))),
    (_compile(r"M\s*=\s*\d+\s+(?:K|N)\s*=\s*\d+\s+(?:K|N)\s*=\s*\d+"), _shape),
    (
        _compile(r"best shape MxNxK (\d+)x(\d+)x(\d+)"),
        lambda m: Load("gemm", shape=(int(m[1]), int(m[2]), int(m[3]))),
    ),
    (
        _compile(r"num_tokens?\s*=\s*(\d+)|(\d+) tokens/(?:batch|device)"),
        lambda m: Load("tokens", count=int(m[1] or m[2])),
    ),
)


def _count(text: str) -> int:
    return int(text.replace(",", ""))


def _real(text: str) -> float:
    return float(text.replace(",", ""))


def message_bytes(amount: float, unit: str, element_bytes: float) -> float:
    """Bytes of a message; KB and the like are powers of 1024, as nccl-tests writes them."""
    factors = {
        "bytes": 1.0, "byte": 1.0, "b": 1.0, "kb": 2.0**10, "kib": 2.0**10, "mb": 2.0**20, "mib": 2.0**20,
        "gb": 2.0**30, "gib": 2.0**30, "elements": element_bytes,
    }  # fmt: skip
    if unit.lower() not in factors:
        raise InputError("batch_or_concurrency_or_rate", f"unknown unit '{unit}' of a message", ", ".join(factors))
    return amount * factors[unit.lower()]
