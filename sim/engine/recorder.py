"""Flat facts of a run, written as they happen and turned into columns at the end."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.engine.sequence import Sequence

REQUEST_COLUMNS = (
    "id", "replica", "arrival_s", "scheduled_s", "first_token_s", "finish_s", "input_tokens", "output_tokens",
    "generated_tokens", "cached_tokens", "preemptions", "status",
)  # fmt: skip
STEP_COLUMNS = (
    "replica", "start_s", "iterations", "first_s", "growth_s", "decodes", "context_tokens", "sampled", "running", "waiting",
    "used_blocks",
)  # fmt: skip
CHUNK_COLUMNS = ("step", "request", "start", "tokens")
EVENT_COLUMNS = ("step", "count")
LOCK_STEP_COLUMNS = ("step", "rows", "group_rows", "widest_rows", "overlapped")
SHARED_COLUMNS = ("step", "shared_s")
GAP_COLUMNS = ("request", "replica", "start_s", "end_s")
FETCH_COLUMNS = (*GAP_COLUMNS, "tokens")
REAL_COLUMNS = frozenset(
    {"arrival_s", "scheduled_s", "first_token_s", "finish_s", "start_s", "first_s", "growth_s", "end_s", "shared_s"}
)
"""Every other column holds whole numbers."""
FINISHED, REJECTED, CUT = 0, 1, 2
"""Status of a request: finished, rejected with a reason, or cut by the time limit or the end of the run."""

Columns = dict[str, NDArray[Any]]


def packer(columns: tuple[str, ...]) -> Callable[..., bytes]:
    """Packs one row of these columns: 8-byte floats and 8-byte integers."""
    return Struct("".join("d" if name in REAL_COLUMNS else "q" for name in columns)).pack


class Table:
    """Rows of numbers, kept packed."""

    __slots__ = ("_bytes", "_finished", "columns", "pack", "write")

    def __init__(self, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self._bytes = bytearray()
        self._finished: Columns | None = None
        self.pack = packer(columns)
        """The values of one row, in the order of `columns`, as `write` takes them."""
        self.write: Callable[[bytes], None] = self._bytes.extend
        """Adds a packed row: the hot path packs and writes, everybody else appends."""

    def append(self, row: tuple[float, ...]) -> None:
        """Adds one row, in the order of `columns`."""
        self._bytes += self.pack(*row)

    def to_columns(self) -> Columns:
        """The finished table as one array a column, float64 or int64. The rows are let go."""
        if self._finished is None:
            kinds = [(name, np.float64 if name in REAL_COLUMNS else np.int64) for name in self.columns]
            rows = np.frombuffer(self._bytes, dtype=kinds)
            self._finished = {name: rows[name].copy() for name in self.columns}
            del rows  # a buffer that an array looks into cannot shrink
            self._bytes.clear()
        return self._finished


def window_columns(windows: tuple[int, ...]) -> tuple[str, ...]:
    """Columns that a model with sliding windows adds to a step: sum of min(length, window), and its growth an iteration."""
    return tuple(f"window{w}_tokens" for w in windows) + tuple(f"window{w}_growth" for w in windows)


def _first_fetches(requests: Columns, fetches: Columns) -> NDArray[np.int64]:
    """Tokens of each request whose KV came from host memory before it was first scheduled."""
    place = np.searchsorted(requests["id"], fetches["request"])
    first = fetches["end_s"] <= requests["scheduled_s"][place]
    return np.bincount(place[first], fetches["tokens"][first], len(requests["id"])).astype(np.int64)


class Recorder:
    """Collects requests, steps, prefill chunks and irregular token gaps of one run."""

    def __init__(self, windows: tuple[int, ...] = ()) -> None:
        self.requests = Table(REQUEST_COLUMNS)
        self.steps = Table(STEP_COLUMNS + window_columns(windows))
        self.chunks = Table(CHUNK_COLUMNS)
        self.gaps = Table(GAP_COLUMNS)
        """Between two tokens of a request that did not come from two iterations in a row."""
        self.fetches = Table(FETCH_COLUMNS)
        """KV blocks that came back from host memory while their request waited, and the tokens they hold."""
        self.preempted = Table(EVENT_COLUMNS)
        """Preemptions by the schedule of a step."""
        self.late = Table(EVENT_COLUMNS)
        """Decodes of a step that had skipped the iteration before it."""
        self.accepted = Table(EVENT_COLUMNS)
        """Tokens that the decodes of a step got beyond one each (speculative decoding)."""
        self.lock_steps = Table(LOCK_STEP_COLUMNS)
        """Of ranks in lock-step: rows a step ran, its own, of all ranks, of the widest; whether as two half batches."""
        self.shared = Table(SHARED_COLUMNS)
        """What a passage through pipeline stages lost to others on the same links."""
        self.pack_step = packer(STEP_COLUMNS)
        """The values of a step but those of its windows, as `steps.write` takes them; `pack_windows` has those."""
        self.pack_windows = packer(window_columns(windows))
        self.num_steps = 0
        self.preemptions = 0
        self._pack, self._write = self.requests.pack, self.requests.write

    def request(self, seq: Sequence, replica: int, finish_s: float, status: int, exit_s: float) -> None:
        """One request that is over; `exit_s` passes between a sampled token and the client that reads it."""
        prompt_tokens = seq.prompt_tokens
        self._write(self._pack(
            seq.id, replica, seq.arrival_s, seq.scheduled_s, seq.first_token_s + exit_s, finish_s + exit_s, prompt_tokens,
            seq.output_tokens, seq.known_tokens - prompt_tokens, seq.cached_tokens, seq.preemptions, status,
        ))  # fmt: skip

    def request_columns(self) -> Columns:
        """The requests, sorted by id."""
        columns = self.requests.to_columns()
        order = np.argsort(columns["id"], kind="stable")
        for name in self.requests.columns:  # one column at a time: the table is large
            columns[name] = columns[name][order]
        fetches = self.fetches.to_columns()
        if len(fetches["request"]):
            columns["fetched_tokens"] = _first_fetches(columns, fetches)
        return columns

    def step_columns(self) -> Columns:
        """The steps, with what prompt chunks and rare events add to them."""
        steps, chunks = dict(self.steps.to_columns()), self.chunks.to_columns()
        count = len(steps["start_s"])

        def per_step(rows: Columns, weights: str | None = None) -> NDArray[np.int64]:
            of_row = None if weights is None else rows[weights]
            return np.bincount(rows["step"], of_row, count).astype(np.int64)

        steps["prefill_tokens"] = per_step(chunks, "tokens")
        steps["prefills"] = per_step(chunks)
        steps["itl_tokens"] = steps["decodes"] - per_step(self.late.to_columns(), "count")
        steps["preempted"] = per_step(self.preempted.to_columns(), "count")
        accepted = self.accepted.to_columns()
        if len(accepted["step"]):
            steps["extra_tokens"] = per_step(accepted, "count")
        together = self.lock_steps.to_columns()
        if len(together["step"]):
            steps.update((name, per_step(together, name)) for name in LOCK_STEP_COLUMNS[1:])
        shared = self.shared.to_columns()
        if len(shared["step"]):
            steps["shared_s"] = np.bincount(shared["step"], shared["shared_s"], count)
        return steps
