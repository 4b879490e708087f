"""The recorded trace format: one case of vLLM's scheduler, its requests and its decisions iteration by iteration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Token = tuple[str, str | int, int]
"""("s", name, index) or ("o", request, index): two tokens are the same one iff these are equal."""

Segment = tuple[str, str | int, int]
"""("s", name, count) or ("o", request, count): `count` tokens, from index 0."""

Chunk = tuple[int, int, int]
"""(request, start, count): tokens start .. start + count - 1 are computed."""


@dataclass(frozen=True)
class Config:
    """The settings of the scheduler, in vLLM's words, and where a recording of it is cut."""

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_gpu_blocks: int
    max_model_len: int
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    long_prefill_token_threshold: int = 0
    scheduler_reserve_full_isl: bool = True
    watermark: float = 0.0
    async_scheduling: bool = False
    version: str = "0.33.0"
    max_iters: int = 20000
    stop_after_idle: int = 5

    @property
    def usable_blocks(self) -> int:
        """Blocks requests can hold: block 0 is the null block."""
        return self.num_gpu_blocks - 1


@dataclass(frozen=True)
class Request:
    """One request: `arrival` is the iteration before whose schedule() it is added."""

    id: int
    arrival: int
    prompt_len: int
    max_tokens: int
    prompt: tuple[Segment, ...]

    def prompt_tokens(self) -> list[Token]:
        """The identity of every token of the prompt."""
        return [(kind, source, index) for kind, source, count in self.prompt for index in range(count)]


@dataclass(frozen=True)
class Result:
    """What became of a request: tokens generated, times preempted, name of vLLM's RequestStatus."""

    n_out: int
    n_preempt: int
    end: str


@dataclass
class Record:
    """One line of a trace, expanded; the names are those of the format."""

    i: int
    add: list[int] = field(default_factory=list)
    adm: list[tuple[int, int, str]] = field(default_factory=list)
    p: list[Chunk] = field(default_factory=list)
    d: list[int] = field(default_factory=list)
    pre: list[int] = field(default_factory=list)
    run: int = 0
    wait: int = 0
    free: int = 0
    fin: list[int] = field(default_factory=list)
    free_end: int = 0


@dataclass(frozen=True)
class Case:
    """A configuration, its requests in order of id and, if it was recorded, what vLLM did with them."""

    name: str
    config: Config
    requests: tuple[Request, ...]
    status: str | None = None
    records: tuple[Record, ...] = ()
    results: Mapping[int, Result] = field(default_factory=dict)


def load_case(path: Path) -> Case:
    """Read one recorded case; ValueError where the file holds a field this parser does not know."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if line]
    header, iterations = lines[0], lines[1:]
    if header["iterations"] != len(iterations):
        raise ValueError(f"{path.name}: {header['iterations']} iterations promised, {len(iterations)} found")
    return Case(
        name=header["trace"],
        config=_config(header),
        requests=tuple(_request(entry) for entry in header["requests"]),
        status=header["status"],
        records=tuple(_record(line) for line in iterations),
        results={entry["id"]: Result(entry["n_out"], entry["n_preempt"], entry["end"]) for entry in header["requests"]},
    )


def expand(compact: str) -> list[int]:
    """The ids of "0-3,7": [0, 1, 2, 3, 7]; their order is kept."""
    ids: list[int] = []
    for part in compact.split(","):
        first, _, last = part.partition("-")
        ids.extend(range(int(first), int(last or first) + 1))
    return ids


def _config(header: Mapping[str, Any]) -> Config:
    """The configuration in a header."""
    values = dict(header["config"])
    # How the arrivals came about does not matter once they are written down; fcfs is the only policy recorded.
    values.pop("closed_loop", None)
    if values.pop("policy", "fcfs") != "fcfs":
        raise ValueError(f"{header['trace']}: only policy fcfs is known")
    unknown = set(values) - {f.name for f in dataclasses.fields(Config)}
    if unknown:
        raise ValueError(f"{header['trace']}: unknown settings {sorted(unknown)}")
    return Config(version=header["vllm"], **values)


def _request(entry: Mapping[str, Any]) -> Request:
    """One request of a header."""
    segments = tuple((kind, source, count) for kind, source, count in entry["prompt"])
    request = Request(entry["id"], entry["arrival"], entry["prompt_len"], entry["max_tokens"], segments)
    if sum(count for _, _, count in segments) != request.prompt_len:
        raise ValueError(f"request {request.id}: segments do not add up to prompt_len {request.prompt_len}")
    return request


def _record(line: Mapping[str, Any]) -> Record:
    """One iteration; a missing list is empty, a missing free_end equals free."""
    unknown = set(line) - {f.name for f in dataclasses.fields(Record)}
    if unknown:
        raise ValueError(f"iteration {line['i']}: unknown fields {sorted(unknown)}")
    return Record(
        i=line["i"],
        add=_ids(line, "add"),
        adm=[(request, cached, kind) for request, cached, kind in line.get("adm", [])],
        p=[(request, start, count) for request, start, count in line.get("p", [])],
        d=_ids(line, "d"),
        pre=list(line.get("pre", [])),
        run=line["run"],
        wait=line["wait"],
        free=line["free"],
        fin=list(line.get("fin", [])),
        free_end=line.get("free_end", line["free"]),
    )


def _ids(line: Mapping[str, Any], name: str) -> list[int]:
    """The ids of a compact field."""
    return expand(line[name]) if line.get(name) else []


def first_difference(expected: Iterable[Record], actual: Iterable[Record]) -> str | None:
    """The first field of the first iteration that differs, in words; None where all are equal."""
    expected_list: Sequence[Record] = list(expected)
    actual_list: Sequence[Record] = list(actual)
    for want, got in zip(expected_list, actual_list, strict=False):
        for f in dataclasses.fields(Record):
            wanted, found = getattr(want, f.name), getattr(got, f.name)
            if wanted != found:
                return f"iteration {want.i}: {f.name} should be {wanted}, is {found}"
    if len(expected_list) != len(actual_list):
        return f"{len(expected_list)} iterations expected, {len(actual_list)} found"
    return None
