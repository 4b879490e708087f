"""Flat facts of a run, written as they happen and turned into columns at the end."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

from sim.engine.sequence import Sequence

REQUEST_COLUMNS = (
    "id", "replica", "arrival_s", "scheduled_s", "first_token_s", "finish_s", "input_tokens", "output_tokens",
    "generated_tokens", "cached_tokens", "preemptions", "status",
)  # fmt: skip
STEP_COLUMNS = (
    "replica", "start_s", "iterations", "first_s", "growth_s", "prefill_tokens", "prefills", "decodes", "context_tokens",
    "sampled", "itl_tokens", "running", "waiting", "used_blocks", "preempted",
)  # fmt: skip
CHUNK_COLUMNS = ("step", "request", "start", "tokens")
INTEGER_COLUMNS = frozenset(
    "id replica input_tokens output_tokens generated_tokens cached_tokens preemptions status iterations prefill_tokens "
    "prefills decodes context_tokens sampled itl_tokens running waiting used_blocks preempted step request start tokens".split()
)
FINISHED, REJECTED, CUT = 0, 1, 2
"""Status of a request: finished, rejected with a reason, or cut by the time limit or the end of the run."""

Columns = dict[str, NDArray[np.generic]]


class Table:
    """Rows of numbers, kept as 8-byte floats in blocks: small in memory, cheap to append to."""

    __slots__ = ("_blocks", "_rows", "columns")

    def __init__(self, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self._rows = array("d")
        self._blocks: list[NDArray[np.float64]] = []

    def append(self, row: tuple[float, ...]) -> None:
        """Adds one row, in the order of `columns`."""
        rows = self._rows
        rows.extend(row)
        if len(rows) >= 65536:
            self._flush()

    def _flush(self) -> None:
        self._blocks.append(np.array(self._rows, dtype=np.float64).reshape(-1, len(self.columns)))
        self._rows = array("d")

    def to_columns(self) -> Columns:
        """The table as one array a column; whole numbers become int64."""
        if self._rows or not self._blocks:
            self._flush()
        whole = np.concatenate(self._blocks) if len(self._blocks) > 1 else self._blocks[0]
        self._blocks = [whole]
        return {
            name: whole[:, i].astype(np.int64) if name in INTEGER_COLUMNS else whole[:, i].copy()
            for i, name in enumerate(self.columns)
        }

    def __len__(self) -> int:
        return sum(len(block) for block in self._blocks) + len(self._rows) // len(self.columns)


class Recorder:
    """Collects requests, steps, prefill chunks and irregular token gaps of one run."""

    def __init__(self) -> None:
        self.requests = Table(REQUEST_COLUMNS)
        self.steps = Table(STEP_COLUMNS)
        self.chunks = Table(CHUNK_COLUMNS)
        self.irregular_gaps_s = array("d")
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
