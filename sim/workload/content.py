"""What stands in a prompt, as far as a prefix cache can tell two prompts apart.

Tokens are named, not stored: token i of stream s equals another token exactly if both stream and index are equal. A system
prompt is a stream that many prompts share; the answer to request r is the stream `("o", r)`.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol


class Content(Protocol):
    """The token identity of one request, block by block."""

    def keys(self, start: int, stop: int, block_size: int) -> list[int]:
        """A number for each of the blocks start .. stop - 1: equal for two requests exactly if all tokens up to the end of
        that block are equal."""
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

    def keys(self, start: int, stop: int, block_size: int) -> list[int]:
        keys = self._keys
        while len(keys) < stop:
            first = len(keys) * block_size
            parent = keys[-1] if keys else -1
            chain = (parent, *self._pieces(first, first + block_size))
            keys.append(self._interned.setdefault(chain, len(self._interned)))
        return keys[start:stop]

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

    __slots__ = ("_own", "_shared")

    def __init__(
        self, hash_ids: list[int], prompt_tokens: int, request: int, hash_block_size: int, block_size: int
    ) -> None:
        per_hash = hash_block_size // block_size
        shared: list[int] = []
        for hash_id in hash_ids:
            shared += range(hash_id * per_hash, (hash_id + 1) * per_hash)
        self._shared = shared[: prompt_tokens // block_size]
        self._own = -1 - (request << 24)

    def keys(self, start: int, stop: int, block_size: int) -> list[int]:
        shared, own = len(self._shared), self._own
        if stop <= shared:
            return self._shared[start:stop]
        return self._shared[start:shared] + [own - block for block in range(max(start, shared), stop)]
