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
from collections.abc import Iterable


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


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A hint that names the allowed entry nearest to `name`, or lists them all if none is near."""
    options = sorted(allowed)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return "allowed: " + ", ".join(options)
