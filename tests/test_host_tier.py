"""Host memory below the prefix cache: what is evicted is fetched again where that is sooner, and never counted twice."""

from __future__ import annotations

from random import Random

import pytest
from reference.host_tier import Host, Production, TieredReference
from reference.random_cases import random_case
from reference.replay import drive
from reference.trace import Case, first_difference


def random_host(seed: int) -> Host:
    """Times that never make a fetch end just when an iteration does."""
    random = Random(f"host {seed}")
    out_s, back_s = random.choice([0.0107137, 0.3107137]), random.choice([0.0207139, 0.2107139, 1.0107139])
    return Host(random.choice([0, 2, 5, 20, 100]), out_s, back_s, random.choice([0.05, 0.5, 10.0]))


def played(seed: int) -> tuple[Case, TieredReference, str | None, str | None]:
    """(the case, the reference after it, the first difference to production, what is wrong with its host memory)."""
    case, host = random_case(seed, enable_prefix_caching=True), random_host(seed)
    plain, fast = TieredReference(case.config, host), Production(case.config, host)
    wanted, status = drive(plain, case, plain.check)
    found, _ = drive(fast, case)
    difference = first_difference(wanted, found)
    # keys are numbered in the order of their first look-up, so only numbers of blocks can be compared
    mine, theirs = len(fast.pool.host), len(plain.host.rows)
    return case, plain, difference, None if mine == theirs else f"{mine} blocks in host memory, should be {theirs}"


@pytest.mark.parametrize("start", range(0, 600, 100))
def test_random_cases_are_fetched_for_as_by_the_plain_reference(start: int) -> None:
    wrong = {}
    for seed in range(start, start + 100):
        _, _, *differences = played(seed)
        if any(differences):
            wrong[seed] = differences
    assert wrong == {}
