"""What a prefix cache can see of the prompts of a workload, stored compactly and handed out request by request."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim.workload.content import Content, HashedContent, SegmentContent


class Prompts(Protocol):
    """The token identities of all prompts of a workload."""

    def __len__(self) -> int: ...

    def content(self, request: int, block_size: int) -> Content:
        """The token identity of request `request` for a cache with blocks of `block_size` tokens."""
        ...


class HashedPrompts:
    """Prompts given as prefix hashes of blocks of `hash_block_size` tokens: equal id, equal prefix up to its end.

    The ids of request r are `hash_ids[offsets[r] : offsets[r + 1]]`; the last block may be partial.
    """

    def __init__(
        self,
        hash_ids: NDArray[np.int64],
        offsets: NDArray[np.int64],
        input_tokens: NDArray[np.int64],
        hash_block_size: int,
    ) -> None:
        self.hash_ids = hash_ids
        self.offsets = offsets
        self.input_tokens = input_tokens
        self.hash_block_size = hash_block_size
        self._interned: dict[tuple[object, ...], int] = {}

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def ids(self, request: int) -> NDArray[np.int64]:
        """The prefix hashes of one prompt."""
        return self.hash_ids[self.offsets[request] : self.offsets[request + 1]]

    def content(self, request: int, block_size: int) -> Content:
        """The token identity of one request; a block size that does not divide the hashed one is handled exactly.

        Tokens after the last hash (a trace may hash full blocks only) are the request's own.
        """
        ids, size = self.ids(request).tolist(), self.hash_block_size
        tokens = int(self.input_tokens[request])
        hashed = min(tokens, len(ids) * size)
        if size % block_size == 0:
            return HashedContent(ids, hashed, request, size, block_size)
        segments: list[tuple[Hashable, int]] = [(("hash", block), size) for block in ids[:-1]]
        segments += [(("hash", block), hashed - size * (len(ids) - 1)) for block in ids[-1:]]
        return SegmentContent([*segments, (("rest", request), tokens - hashed)], ("answer", request), self._interned)

    def take(self, rows: NDArray[np.int64]) -> HashedPrompts:
        """The prompts of `rows`, in that order."""
        counts = (self.offsets[1:] - self.offsets[:-1])[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        flat = np.repeat(self.offsets[rows], counts) + within
        return HashedPrompts(self.hash_ids[flat], offsets, self.input_tokens[rows], self.hash_block_size)


class SharedPrefixPrompts:
    """Prompts that begin with one of several shared prefixes (system prompts); the rest of each is its own.

    The first `prefix_tokens` tokens of request r are those of prefix `prefix_of[r]`.
    """

    def __init__(self, prefix_of: NDArray[np.int64], prefix_tokens: int, input_tokens: NDArray[np.int64]) -> None:
        self.prefix_of = prefix_of
        self.prefix_tokens = prefix_tokens
        self.input_tokens = input_tokens
        self._interned: dict[tuple[object, ...], int] = {}

    def __len__(self) -> int:
        return len(self.prefix_of)

    def content(self, request: int, block_size: int) -> Content:
        """The token identity of one request."""
        own = int(self.input_tokens[request]) - self.prefix_tokens
        shared: Hashable = ("prefix", int(self.prefix_of[request]))
        segments: list[tuple[Hashable, int]] = [(shared, self.prefix_tokens), (("own", request), own)]
        return SegmentContent(segments, ("answer", request), self._interned)
