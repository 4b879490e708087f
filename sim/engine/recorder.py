"""Flat facts of a run, written as they happen and turned into columns at the end."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
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
GAP_COLUMNS = ("request", "replica", "start_s", "end_s")
REAL_COLUMNS = frozenset(
    {"arrival_s", "scheduled_s", "first_token_s", "finish_s", "start_s", "first_s", "growth_s", "end_s"}
)
"""Every other column holds whole numbers."""
FINISHED, REJECTED, CUT = 0, 1, 2
"""Status of a request: finished, rejected with a reason, or cut by the time limit or the end of the run."""

Columns = dict[str, NDArray[Any]]


class Table:
    """Rows of numbers in one growing array of 8-byte floats: small in memory, cheap to append to."""

    __slots__ = ("_values", "append", "columns")

    def __init__(self, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self._values = array("d")
        self.append: Callable[[Iterable[float]], None] = self._values.extend
        """Adds one row, in the order of `columns`."""

    def to_columns(self) -> Columns:
        """The table as one array a column; whole numbers become int64."""
        whole = np.frombuffer(self._values, dtype=np.float64).reshape(-1, len(self.columns))
        return {
            name: whole[:, i].copy() if name in REAL_COLUMNS else whole[:, i].astype(np.int64)
            for i, name in enumerate(self.columns)
        }


def window_columns(windows: tuple[int, ...]) -> tuple[str, ...]:
    """Columns that a model with sliding windows adds to a step: sum of min(length, window), and its growth an iteration."""
    return tuple(f"window{w}_tokens" for w in windows) + tuple(f"window{w}_growth" for w in windows)


class Recorder:
    """Collects requests, steps, prefill chunks and irregular token gaps of one run."""

    def __init__(self, windows: tuple[int, ...] = ()) -> None:
        self.requests = Table(REQUEST_COLUMNS)
        self.steps = Table(STEP_COLUMNS + window_columns(windows))
        self.chunks = Table(CHUNK_COLUMNS)
        self.gaps = Table(GAP_COLUMNS)
        """Between two tokens of a request that did not come from two iterations in a row."""
        self.preempted = Table(EVENT_COLUMNS)
        """Preemptions by the schedule of a step."""
        self.late = Table(EVENT_COLUMNS)
        """Decodes of a step that had skipped the iteration before it."""
        self.lock_steps = Table(LOCK_STEP_COLUMNS)
        """Of ranks in lock-step: rows a step ran, its own, of all ranks, of the widest; whether as two half batches."""
        self.num_steps = 0
        self.preemptions = 0

    def request(self, seq: Sequence, replica: int, finish_s: float, status: int, exit_s: float) -> None:
        """One request that is over; `exit_s` passes between a sampled token and the client that reads it."""
        self.requests.append((
            seq.id, replica, seq.arrival_s, seq.scheduled_s, seq.first_token_s + exit_s, finish_s + exit_s, seq.prompt_tokens,
            seq.output_tokens, seq.generated_tokens, seq.cached_tokens, seq.preemptions, status,
        ))  # fmt: skip

    def request_columns(self) -> Columns:
        """The requests, sorted by id."""
        columns = self.requests.to_columns()
        order = np.argsort(columns["id"], kind="stable")
        return {name: column[order] for name, column in columns.items()}

    def step_columns(self) -> Columns:
        """The steps, with what prompt chunks and rare events add to them."""
        steps, chunks = self.steps.to_columns(), self.chunks.to_columns()
        count = len(steps["start_s"])

        def per_step(rows: Columns, weights: str | None = None) -> NDArray[np.int64]:
            of_row = None if weights is None else rows[weights]
            return np.bincount(rows["step"], of_row, count).astype(np.int64)

        steps["prefill_tokens"] = per_step(chunks, "tokens")
        steps["prefills"] = per_step(chunks)
        steps["itl_tokens"] = steps["decodes"] - per_step(self.late.to_columns(), "count")
        steps["preempted"] = per_step(self.preempted.to_columns(), "count")
        shared = self.lock_steps.to_columns()
        if len(shared["step"]):
            steps.update((name, per_step(shared, name)) for name in LOCK_STEP_COLUMNS[1:])
        return steps
