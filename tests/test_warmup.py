"""MSER-5 finds where a run settles, and says so where it does not."""

from __future__ import annotations

import numpy as np
import pytest
from records import make_result, two_users

from sim.results.warmup import WarmUp, mser5, warm_up

RAMP = 100


def series(seed: int, ramp: int = RAMP, count: int = 1000) -> np.ndarray:
    """From three times the level down to it over `ramp` samples, then noise of a tenth around it."""
    level = np.concatenate([np.linspace(3.0, 1.0, ramp, endpoint=False), np.ones(count - ramp)])
    return level + np.random.default_rng(seed).normal(scale=0.1, size=count)


@pytest.mark.parametrize("seed", range(20))
def test_a_ramp_is_cut_off_and_little_more(seed: int) -> None:
    cut = mser5(series(seed))
    assert cut is not None
    assert cut % 5 == 0
    # the last tenth of the ramp is below the noise
    assert 0.85 * RAMP <= cut <= 2 * RAMP


def test_a_stationary_series_keeps_nearly_all_of_its_samples() -> None:
    cuts = [mser5(series(seed, ramp=0)) for seed in range(50)]
    assert np.median([np.inf if cut is None else cut for cut in cuts]) <= 50
    assert sum(cut is None for cut in cuts) <= 5


def test_equal_samples_are_steady_from_the_first() -> None:
    assert mser5(np.full(500, 0.3)) == 0
    assert mser5(np.concatenate([np.full(10, 9.0), np.full(490, 0.3)])) == 10


def test_a_series_that_grows_on_never_settles() -> None:
    assert mser5(np.linspace(0.0, 1.0, 1000)) is None
    assert mser5(np.ones(49)) is None


def requests(ttfts: np.ndarray) -> list[dict[str, float]]:
    return [
        {"id": i, "arrival_s": float(i), "first_token_s": i + ttft, "finish_s": i + ttft + 1.0,
         "input_tokens": 8, "output_tokens": 3, "generated_tokens": 3}
        for i, ttft in enumerate(ttfts)
    ]  # fmt: skip


def test_a_run_reports_its_warm_up_on_top_of_what_the_scenario_leaves_out() -> None:
    rows = requests(np.concatenate([np.full(40, 8.0), np.full(260, 1.0)]))
    scenario = {"name": "ramp", "workload": {"arrivals": {"kind": "poisson"}, "warmup_requests": 0}}
    assert warm_up(make_result(rows, [], scenario=scenario)) == WarmUp(40)
    scenario["workload"]["warmup_requests"] = 30  # type: ignore[index]
    assert warm_up(make_result(rows, [], scenario=scenario)) == WarmUp(40)


def test_an_overloaded_run_and_a_short_one_have_no_steady_state() -> None:
    assert warm_up(make_result(requests(np.linspace(0.1, 50.0, 300)), [])) == WarmUp(None)
    assert warm_up(two_users()) == WarmUp(None)
