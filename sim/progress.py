"""A progress line for people: on a terminal only, and only for work of more than two seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PATIENCE_S = 2.0
"""A run that is over sooner shows nothing."""


class ProgressLine:
    """Shows how far a run is on standard error, once it has lasted `PATIENCE_S`; silent where nobody watches.

    Called with the simulated time in seconds, the number of things done, and a note to add; `total` of them are awaited
    (None: unknown).
    """

    def __init__(self, label: str, total: int | None, noun: str = "requests") -> None:
        self._label = label
        self._total = total
        self._noun = noun
        self._watched = sys.stderr.isatty()
        self._start = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, simulated_s: float, done: int, note: str = "") -> None:
        if not self._watched or time.monotonic() - self._start < PATIENCE_S:
            return
        if self._bar is None:
            self._show()
        assert self._bar is not None
        assert self._task is not None
        clock = f"{simulated_s:,.1f} s simulated, " if simulated_s else ""
        total = f" of {self._total:,}" if note and self._total else ""
        self._bar.update(self._task, completed=done, what=f"{clock}{done:,}{total} {self._noun}{note}")

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[what]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._bar.start()
        self._task = self._bar.add_task(self._label, total=self._total, what="")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
