"""The requests of a run, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sim.workload.prompts import Prompts


@dataclass(frozen=True, slots=True)
class Workload:
    """The requests of a run, one entry of every array a request, in the order in which they are sent.

    Attributes:
        input_tokens: tokens of the prompt, at least 1.
        output_tokens: tokens to generate, at least 1.
        arrival_s: arrival times, sorted; None for a closed loop.
        concurrency: users of a closed loop; None for an open one.
        think_time_s: pause of the user before each request of a closed loop and each later turn of a conversation; None:
            no pause.
        ramp_s: time over which the users of a closed loop start, evenly: user u of n at u x ramp_s / n.
        prompts: what a prefix cache can see: `prompts.content(r, block_size)`; None: no two prompts begin alike.
        next_turn: the row that is sent after this one is answered (its own arrival time does not count); -1 or None: none.
        session: the conversation a request belongs to, -1 for none; None: no conversations.
        tenant: who asks; None: all the same.
        priority: lower goes first, where the scheduler looks at it; None: all alike.
        dropped: rows of a trace that were left out because they ask for nothing (failed requests).
    """

    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    arrival_s: NDArray[np.float64] | None = None
    concurrency: int | None = None
    think_time_s: NDArray[np.float64] | None = None
    ramp_s: float = 0.0
    prompts: Prompts | None = None
    next_turn: NDArray[np.int64] | None = None
    session: NDArray[np.int64] | None = None
    tenant: NDArray[np.int64] | None = None
    priority: NDArray[np.int64] | None = None
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.input_tokens)

    @property
    def longest_tokens(self) -> int:
        """Longest prompt + output of any request."""
        return int((self.input_tokens + self.output_tokens).max())

    def last_turns(self, below_tokens: int) -> NDArray[np.bool_]:
        """Whether a row is the last of its conversation with a prompt of less than `below_tokens`.

        No row is where turns do not wait for the one before: they may come in any order.
        """
        last = np.zeros(len(self), dtype=bool)
        if self.session is None or self.next_turn is None:
            return last
        latest_first = np.flatnonzero(self.input_tokens < below_tokens)[::-1]
        _, place = np.unique(self.session[latest_first], return_index=True)
        last[latest_first[place]] = True
        return last

    @property
    def request_rate(self) -> float | None:
        """Requests a second that an open loop offers (infinite if all arrive at once); None for a closed loop."""
        if self.arrival_s is None:
            return None
        last_s = float(self.arrival_s[-1])
        return len(self) / last_s if last_s > 0 else float("inf")


def think_times(count: int, mean_s: float, cv: float, random: Generator) -> NDArray[np.float64] | None:
    """Gamma distributed pauses with this mean and coefficient of variation (0: all alike); None if the mean is 0."""
    if mean_s == 0:
        return None
    if cv == 0:
        return np.full(count, mean_s)
    return random.gamma(1 / cv**2, mean_s * cv**2, count)
