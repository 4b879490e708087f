"""Conversations that grow: every turn's prompt is all that was said before, and something new.

A chat pauses while its user reads and types, an agent while its tool runs; new in a turn is a question, or what a tool returned.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sim.workload.content import Content, SegmentContent

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Turns:
    """Which conversation each request belongs to: rows of one stand together, in the order of its turns."""

    session: Ints

    @property
    def first(self) -> NDArray[np.bool_]:
        """Whether a row begins a conversation."""
        return np.concatenate([[True], self.session[1:] != self.session[:-1]])

    @property
    def next_turn(self) -> Ints:
        """The row that follows each row in its conversation; -1 after the last."""
        rows = np.arange(len(self.session))
        follows = np.concatenate([~self.first[1:], [False]])
        return np.where(follows, rows + 1, -1)

    def grown(self, new_tokens: Ints, output_tokens: Ints, system_tokens: int = 0) -> Ints:
        """Prompt tokens of each turn: `system_tokens`, then new tokens and answers of the turns before, then its own new ones."""
        said = np.cumsum(new_tokens + output_tokens)
        starts = np.flatnonzero(self.first)
        before_session = np.repeat((said - new_tokens - output_tokens)[starts], np.diff([*starts, len(said)]))
        grown: Ints = said - output_tokens - before_session + system_tokens
        return grown


def draw_turns(requests: int | None, sessions: int | None, least: int, most: int, random: Generator) -> Turns:
    """Conversations of `least` to `most` turns each, all lengths equally likely.

    Args:
        requests: most turns, the last conversation cut to it; None: all of `sessions` conversations.
        sessions: most conversations; None: as many as `requests` turns need.
    """
    drawn = sessions if requests is None else -(-requests // least)
    lengths = random.integers(least, most, drawn, endpoint=True)[:sessions]
    return Turns(np.repeat(np.arange(len(lengths)), lengths)[:requests])


class SessionPrompts:
    """Each conversation is one stream of tokens, of which a turn's prompt is the beginning; a system prompt may go before it.

    Args:
        session: the conversation of each request.
        system_of: the system prompt of each conversation, by number; None: they have none.
        system_tokens: tokens of a system prompt.
    """

    def __init__(self, session: Ints, system_of: Ints | None = None, system_tokens: int = 0) -> None:
        self.session = session
        self.system_of = system_of
        self.system_tokens = system_tokens
        self._interned: dict[tuple[object, ...], int] = {}
        self._contents: dict[int, SegmentContent] = {}

    def __len__(self) -> int:
        return len(self.session)

    def content(self, request: int, block_size: int) -> Content:
        """The token identity of one request; all turns of a conversation share one."""
        session = int(self.session[request])
        content = self._contents.get(session)
        if content is None:
            segments: list[tuple[Hashable, int]] = []
            if self.system_of is not None:
                segments.append((("system", int(self.system_of[session])), self.system_tokens))
            content = self._contents[session] = SegmentContent(segments, ("session", session), self._interned)
        return content
