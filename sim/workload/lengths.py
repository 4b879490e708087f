"""How long prompts and outputs are: whole numbers of tokens, at least one."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Tokens = NDArray[np.int64]


def fixed(count: int, tokens: int) -> Tokens:
    """`tokens`, `count` times."""
    return np.full(count, tokens, dtype=np.int64)


def uniform(count: int, least: int, most: int, random: Generator) -> Tokens:
    """Whole numbers from `least` to `most`, both included, all equally likely."""
    return random.integers(least, most, count, endpoint=True, dtype=np.int64)


def lognormal(count: int, mean: float, cv: float, max_tokens: int | None, random: Generator) -> Tokens:
    """Log-normal lengths with this mean and coefficient of variation, rounded, between 1 and `max_tokens`.

    `mean` and `cv` are those of the length itself: sigma^2 = ln(1 + cv^2), mu = ln(mean) - sigma^2 / 2.
    """
    variance = math.log1p(cv * cv)
    drawn = random.lognormal(math.log(mean) - variance / 2, math.sqrt(variance), count)
    return np.clip(np.rint(drawn), 1, max_tokens or np.iinfo(np.int64).max).astype(np.int64)


def resample(count: int, inputs: Tokens, outputs: Tokens, random: Generator) -> tuple[Tokens, Tokens]:
    """`count` (input, output) pairs drawn with replacement from those given: what belongs together stays together."""
    rows = random.integers(0, len(inputs), count)
    return inputs[rows], outputs[rows]
