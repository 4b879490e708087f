"""What stands in a prompt, as far as a prefix cache can tell two prompts apart.

Tokens are named, not stored: token i of stream s equals another token exactly if both stream and index are equal. A system
prompt is a stream that many prompts share; the answer to request r is the stream `("o", r)`.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol


class Content(Protocol):
    """The token identity of one request, block by block."""

    def key(self, block: int, block_size: int) -> int:
        """A number for tokens 0 .. (block + 1) x block_size: equal for two requests exactly if those tokens are equal."""
        ...


class SegmentContent:
    """A prompt of segments (stream, tokens), followed by the request's own answer.

    Keys are chained: the key of a block names all tokens before it too. `interned` maps chains to numbers and is shared by all
    contents of one run.
    """

    __slots__ = ("_ends", "_interned", "_keys", "_segments")

    def __init__(
        self, segments: list[tuple[Hashable, int]], answer: Hashable, interned: dict[tuple[object, ...], int]
    ) -> None:
        self._segments = [*segments, (answer, 1 << 60)]
        self._ends: list[int] = []
        end = 0
        for _, tokens in self._segments:
            end += tokens
            self._ends.append(end)
        self._interned = interned
        self._keys: list[int] = []

    def key(self, block: int, block_size: int) -> int:
        keys = self._keys
        while len(keys) <= block:
            start = len(keys) * block_size
            parent = keys[-1] if keys else -1
            chain = (parent, *self._pieces(start, start + block_size))
            keys.append(self._interned.setdefault(chain, len(self._interned)))
        return keys[block]

    def _pieces(self, start: int, stop: int) -> list[tuple[Hashable, int, int]]:
        """(stream, first index, tokens) of each stretch of tokens start .. stop."""
        pieces = []
        segment_start = 0
        for (stream, _), end in zip(self._segments, self._ends, strict=True):
            if end > start:
                first, last = max(start, segment_start), min(stop, end)
                pieces.append((stream, first - segment_start, last - first))
                if end >= stop:
                    break
            segment_start = end
        return pieces


class HashedContent:
    """A prompt given as prefix hashes of large blocks (Mooncake's `hash_ids`: equal id, equal prefix up to its end).

    `hash_block_size` must be a multiple of the cache's block size. Blocks beyond the hashes (the answer) are the request's own.
    """

    __slots__ = ("_hash_ids", "_own", "_per_hash", "_shared_blocks")

    def __init__(
        self, hash_ids: list[int], prompt_tokens: int, request: int, hash_block_size: int, block_size: int
    ) -> None:
        self._hash_ids = hash_ids
        self._per_hash = hash_block_size // block_size
        self._shared_blocks = prompt_tokens // block_size
        self._own = -1 - (request << 24)

    def key(self, block: int, block_size: int) -> int:
        if block >= self._shared_blocks:
            return self._own - block
        index, part = divmod(block, self._per_hash)
        return self._hash_ids[index] * self._per_hash + part
