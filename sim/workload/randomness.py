"""One seed, one independent stream of random numbers for each purpose."""

from __future__ import annotations

from numpy.random import Generator, SeedSequence, default_rng

# The position of a purpose is its spawn key: append, never reorder, or old seeds mean new workloads.
PURPOSES = ("arrivals", "lengths", "think_time", "trace", "prefixes", "sessions", "tenants", "router")


def generator(seed: int, purpose: str) -> Generator:
    """The random numbers of `purpose` (one of `PURPOSES`): the child that `SeedSequence(seed).spawn` has at its place.

    Drawing more for one purpose leaves the others as they were.
    """
    return default_rng(SeedSequence(seed, spawn_key=(PURPOSES.index(purpose),)))
