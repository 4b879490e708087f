"""Which replica takes a request."""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappush, heapreplace
from itertools import count
from random import Random
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim.engine.sequence import Sequence
from sim.engine.serving import ServingReplica
from sim.errors import InputError, nearest

ROUTERS = (
    "least_outstanding", "round_robin", "random", "least_kv", "power_of_two", "prefix_affinity", "session_affinity",
    "session_hash",
)  # fmt: skip
AFFINITY_TOKENS = 128
"""A prefix router looks at prompts in steps of about this many tokens, as engine-side caches hash blocks."""
REMEMBERED_TOKENS = 2**22
"""Tokens of prefixes a replica that a prefix router remembers, the least recently used forgotten first: the 2^24 characters of
SGLang's cache-aware router (`max_tree_size`), at about four characters a token."""
IMBALANCE_REQUESTS = 32
"""More outstanding requests than the least loaded replica has by this, and affinity is given up for balance
(`balance_abs_threshold` of SGLang's cache-aware router, default 32)."""
STALE_SHARE = 4
"""The heap is built anew when it holds so many entries a replica."""


class Router(Protocol):
    """Chooses a replica for each request as it arrives."""

    def choose(self, replicas: list[ServingReplica], seq: Sequence) -> ServingReplica:
        """The replica that `seq` is submitted to, now."""
        ...

    def over(self, replica: ServingReplica) -> None:
        """A request of `replica` is over."""
        ...

    def changed(self, replica: ServingReplica) -> None:
        """`replica` joined those to choose from, or left them with all that its cache held."""
        ...


class _Careless:
    """A router that does not care how requests end, nor who else there is."""

    def over(self, replica: ServingReplica) -> None:
        return

    def changed(self, replica: ServingReplica) -> None:
        return


class LeastOutstanding:
    """The replica with the fewest requests that are not over; the first of them if several have as few.

    A heap of (outstanding, place), written as one number, follows every change; an entry that is not true any more is set
    right when it comes to the top. So a choice costs a few microseconds however many replicas there are.
    """

    def __init__(self) -> None:
        self._heap: list[int] = []
        self._places: dict[ServingReplica, int] = {}
        self._count = 0

    def choose(self, replicas: list[ServingReplica], seq: Sequence) -> ServingReplica:
        count, heap = len(replicas), self._heap
        if count == 1:
            return replicas[0]
        if count != self._count or len(heap) > STALE_SHARE * count:
            self._build(replicas)
            heap = self._heap
        while True:
            entry = heap[0]
            replica = replicas[entry % count]
            if replica.outstanding == entry // count:
                heapreplace(heap, entry + count)
                return replica
            heapreplace(heap, replica.outstanding * count + entry % count)

    def over(self, replica: ServingReplica) -> None:
        place = self._places.get(replica)
        if place is not None:
            heappush(self._heap, replica.outstanding * self._count + place)

    def changed(self, replica: ServingReplica) -> None:
        self._count, self._heap, self._places = 0, [], {}

    def _build(self, replicas: list[ServingReplica]) -> None:
        self._count = count = len(replicas)
        self._places = {replica: place for place, replica in enumerate(replicas)}
        self._heap = [replica.outstanding * count + place for place, replica in enumerate(replicas)]
        heapify(self._heap)


class RoundRobin(_Careless):
    """One replica after another."""

    def __init__(self) -> None:
        self._next = count()

    def choose(self, replicas: list[ServingReplica], seq: Sequence) -> ServingReplica:
        return replicas[next(self._next) % len(replicas)]


class RandomChoice(_Careless):
    """Any replica, all equally likely."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, replicas: list[ServingReplica], seq: Sequence) -> ServingReplica:
        return replicas[int(self._random.random() * len(replicas))]


class PowerOfTwo(_Careless):
    """Of two replicas drawn at random, the one with fewer requests outstanding; of equals the first drawn.

    Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.
    """

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, replicas: list[ServingReplica], seq: Sequence) -> ServingReplica:
        total = len(replicas)
        if total == 1:
            return replicas[0]
        first = int(self._random.random() * total)
        second = int(self._random.random() * (total - 1))
        second += second >= first
        return replicas[second] if replicas[second].outstanding < replicas[first].outstanding else replicas[first]


class LeastKv(_Careless):
    """The replica with the smallest share of its KV blocks in use at this moment; of equals the least outstanding."""

    def choose(self, replicas: list[ServingReplica], seq: Sequence) -> ServingReplica:
        return min(replicas, key=lambda replica: (replica.kv_usage, replica.outstanding))


class PrefixAffinity:
    """The replica that last got the longest beginning of this prompt, unless it is much busier than the least busy one.

    The router remembers what it sent, not what replicas still hold, as routers outside the engine do, and not for ever.
    """

    def __init__(self, block_size: int) -> None:
        self._least = LeastOutstanding()
        self._block_size = block_size
        self._stride = max(AFFINITY_TOKENS // block_size, 1)
        self._keys_a_replica = max(REMEMBERED_TOKENS // (self._stride * block_size), 1)
        self._sent_to: OrderedDict[int, ServingReplica] = OrderedDict()
        """By key of a prefix, the least recently sent first."""

    def choose(self, replicas: list[ServingReplica], seq: Sequence) -> ServingReplica:
        keys = self._keys(seq)
        known = next((self._sent_to[key] for key in reversed(keys) if key in self._sent_to), None)
        chosen = self._least.choose(replicas, seq)
        if known is not None and known.outstanding - chosen.outstanding <= IMBALANCE_REQUESTS:
            self._least.over(chosen)  # it is not sent there after all
            chosen = known
        self._remember(keys, chosen, self._keys_a_replica * len(replicas))
        return chosen

    def _remember(self, keys: list[int], replica: ServingReplica, most: int) -> None:
        """The beginning last: it must outlive what follows it, which nobody finds without it."""
        sent_to = self._sent_to
        for key in reversed(keys):
            sent_to[key] = replica
            sent_to.move_to_end(key)
        while len(sent_to) > most:
            sent_to.popitem(last=False)

    def over(self, replica: ServingReplica) -> None:
        self._least.over(replica)

    def changed(self, replica: ServingReplica) -> None:
        self._least.changed(replica)
        kept = ((key, known) for key, known in self._sent_to.items() if known is not replica)
        self._sent_to = OrderedDict(kept)

    def _keys(self, seq: Sequence) -> list[int]:
        if seq.content is None:
            return []
        blocks = seq.prompt_tokens // self._block_size
        return seq.content.keys(0, blocks, self._block_size)[self._stride - 1 :: self._stride]


class SessionAffinity:
    """Every turn of a conversation to the replica of its first one; that goes to the least outstanding.

    It remembers the conversations under way: one is forgotten when its last turn is sent.

    Args:
        last_turns: by number of a request, whether no other turn of its conversation follows; None: nobody knows.
    """

    def __init__(self, last_turns: NDArray[np.bool_] | None = None) -> None:
        self._least = LeastOutstanding()
        self._replica_of: dict[int, ServingReplica] = {}
        self._last = None if last_turns is None else last_turns.tobytes()

    def choose(self, replicas: list[ServingReplica], seq: Sequence) -> ServingReplica:
        replica_of, session = self._replica_of, seq.session
        chosen = replica_of.get(session)
        if chosen is None:
            chosen = self._least.choose(replicas, seq)
            if session >= 0:
                replica_of[session] = chosen
        if self._last is not None and self._last[seq.id]:
            replica_of.pop(session, None)
        return chosen

    def over(self, replica: ServingReplica) -> None:
        self._least.over(replica)

    def changed(self, replica: ServingReplica) -> None:
        self._least.changed(replica)
        self._replica_of = {session: known for session, known in self._replica_of.items() if known is not replica}


class SessionHash(_Careless):
    """Every turn of a conversation to one replica, by a hash of the conversation's number; a request alone is one of its own.

    Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4): consecutive numbers spread evenly over the replicas.
    """

    def choose(self, replicas: list[ServingReplica], seq: Sequence) -> ServingReplica:
        key = seq.session if seq.session >= 0 else seq.id
        return replicas[(key * 0x9E3779B9 % 2**32) * len(replicas) >> 32]


def make_router(
    name: str,
    random: Random,
    block_size: int,
    where: str = "deployment.router",
    last_turns: NDArray[np.bool_] | None = None,
) -> Router:
    """The router of this name.

    Args:
        name: one of `ROUTERS`.
        random: for the routers that draw.
        block_size: tokens of a KV block, for the one that looks at prefixes.
        last_turns: of `Workload.last_turns`, for the one that remembers conversations.

    Raises:
        InputError: no such router.
    """
    match name:
        case "least_outstanding":
            return LeastOutstanding()
        case "round_robin":
            return RoundRobin()
        case "random":
            return RandomChoice(random)
        case "power_of_two":
            return PowerOfTwo(random)
        case "least_kv":
            return LeastKv()
        case "prefix_affinity":
            return PrefixAffinity(block_size)
        case "session_affinity":
            return SessionAffinity(last_turns)
        case "session_hash":
            return SessionHash()
    raise InputError(where, f"got '{name}'", nearest(name, ROUTERS))
