"""What can go wrong, as users catch it.

TwoWallsError                exit code
├── AssertionFailed          1   an `assert:` line of the scenario does not hold
├── InputError               2   the scenario, a file or an argument is wrong
├── DoesNotFit               3   the deployment cannot hold its weights or its longest request
├── CheckFailed              4   a law of the simulation (conservation, Little) is broken
└── ClockStuck               4   time can no longer advance although work is left
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class TwoWallsError(Exception):
    """Base of every error that twowalls raises on purpose; `exit_code` is what the command returns."""

    exit_code = 4


class AssertionFailed(TwoWallsError):
    """An `assert:` line of the scenario does not hold."""

    exit_code = 1


class InputError(TwoWallsError):
    """The user's input is wrong.

    The message reads `where: what was got; what is allowed; how to fix it`.
    """

    exit_code = 2

    def __init__(self, where: str, problem: str, hint: str = "") -> None:
        self.where = where
        self.problem = problem
        self.hint = hint
        super().__init__(f"{where}: {problem}" + (f"\n  {hint}" if hint else ""))

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        return InputError, (self.where, self.problem, self.hint)  # so that it crosses process boundaries whole


class DoesNotFit(TwoWallsError):
    """The deployment cannot hold its weights, or its longest request, in GPU memory."""

    exit_code = 3


class CheckFailed(TwoWallsError):
    """A self-check of a finished run does not hold: a bug of the simulator, never of the user."""


class ClockStuck(TwoWallsError):
    """Requests are left but nothing can happen any more."""


_KEY_PATH = re.compile(r"[a-z_]+(\.\w+)*")


@contextmanager
def located(where: str) -> Iterator[None]:
    """Puts `where`, a scenario's file, before the key path of an `InputError` that knows only the latter."""
    try:
        yield
    except InputError as error:
        if not _KEY_PATH.fullmatch(error.where):
            raise
        raise InputError(f"{where}: {error.where}", error.problem, error.hint) from None


MOST_OPTIONS = 25
"""More allowed entries than this (models) are listed only where none is near; `twowalls list` has them."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A hint that names the allowed entry nearest to `name`, if one is near, and lists them."""
    options = sorted(allowed)
    folded = {option.casefold(): option for option in reversed(options)}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    every = "allowed: " + ", ".join(options)
    if not close:
        return every
    found = f"did you mean '{folded[close[0]]}'?"
    return found if len(options) > MOST_OPTIONS else f"{found} {every}"
