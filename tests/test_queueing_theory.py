"""One replica that serves one request at a time is a queue that theory knows."""

from __future__ import annotations

import numpy as np
from engine_runs import AffineCost, play
from numpy.typing import NDArray
from scipy import stats

from sim.workload.workload import Workload

SECONDS_PER_TOKEN = 0.01
SEEDS, REQUESTS, WARMUP = 20, 4000, 400


def waits(outputs: NDArray[np.int64], rate: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Seconds from arrival to the first iteration, in order of arrival."""
    arrivals = np.cumsum(random.exponential(1 / rate, len(outputs)))
    load = Workload(np.ones(len(outputs), dtype=np.int64), outputs, arrivals)
    run = play(load, max_num_seqs=1, blocks=4096, cost=AffineCost(SECONDS_PER_TOKEN, 0.0, 0.0, 0.0))
    service_s = run.requests["finish_s"] - run.requests["scheduled_s"]
    np.testing.assert_allclose(service_s, outputs * SECONDS_PER_TOKEN, rtol=1e-9, atol=1e-7)
    waited: NDArray[np.float64] = run.requests["scheduled_s"] - run.requests["arrival_s"]
    return waited


def interval(means: list[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the mean over seeds (Student's t)."""
    half = stats.t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means))
    return float(np.mean(means) - half), float(np.mean(means) + half)


def test_requests_of_one_length_wait_as_in_an_m_d_1_queue() -> None:
    tokens, load = 50, 0.7
    service_s = tokens * SECONDS_PER_TOKEN
    means = []
    for seed in range(SEEDS):
        outputs = np.full(REQUESTS, tokens, dtype=np.int64)
        means.append(float(waits(outputs, load / service_s, np.random.default_rng(seed))[WARMUP:].mean()))
    low, high = interval(means)
    expected_s = load * service_s / (2 * (1 - load))  # Pollaczek and Khinchine, constant service
    assert low < expected_s < high
    assert high - low < 0.2 * expected_s


def test_requests_of_exponential_length_wait_as_in_an_m_m_1_queue() -> None:
    mean_tokens, load = 1000, 0.5
    service_s = mean_tokens * SECONDS_PER_TOKEN
    means = []
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        outputs = np.maximum(np.rint(random.exponential(mean_tokens, REQUESTS)), 1).astype(np.int64)
        means.append(float(waits(outputs, load / service_s, random)[WARMUP:].mean()))
    low, high = interval(means)
    expected_s = load * service_s / (1 - load)
    assert low < expected_s < high
    assert high - low < 0.2 * expected_s
