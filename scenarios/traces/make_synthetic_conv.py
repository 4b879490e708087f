"""Writes synthetic-conv.csv: five hundred invented chat requests in the format of the Azure 2023 traces.

Run `python scenarios/traces/make_synthetic_conv.py` to write it again; the same numpy gives the same file. Nothing in it was
recorded: arrivals are Poisson with a rate that swings between 1 and 9 requests a second, lengths are log-normal.
"""

from __future__ import annotations

import csv
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

REQUESTS, SEED = 500, 2023
MEAN_RATE_PER_S, SWING, PERIOD_S = 5.0, 0.8, 40.0
# (median, sigma of the logarithm, longest) in tokens: short questions with some long documents, answers of a paragraph
PROMPT, ANSWER = (700.0, 1.1, 8000), (180.0, 0.8, 1000)


def arrival_times(random: np.random.Generator) -> list[float]:
    """Seconds of each arrival: a Poisson process thinned to the swinging rate."""
    times: list[float] = []
    now_s, fastest = 0.0, MEAN_RATE_PER_S * (1 + SWING)
    while len(times) < REQUESTS:
        now_s += random.exponential(1 / fastest)
        rate = MEAN_RATE_PER_S * (1 + SWING * np.sin(2 * np.pi * now_s / PERIOD_S))
        if random.uniform() < rate / fastest:
            times.append(now_s)
    return times


def tokens(random: np.random.Generator, median: float, sigma: float, longest: int) -> list[int]:
    """Token counts of every request, at least 1 and at most `longest`."""
    drawn = random.lognormal(np.log(median), sigma, REQUESTS)
    return np.clip(np.rint(drawn), 1, longest).astype(int).tolist()


def main() -> None:
    """Draws the trace and writes it beside this script."""
    random = np.random.default_rng(SEED)
    start = datetime(2023, 1, 1)
    rows = zip(arrival_times(random), tokens(random, *PROMPT), tokens(random, *ANSWER), strict=True)
    with (Path(__file__).parent / "synthetic-conv.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["TIMESTAMP", "ContextTokens", "GeneratedTokens"])
        for arrival_s, prompt, answer in rows:
            writer.writerow([f"{start + timedelta(seconds=arrival_s):%Y-%m-%d %H:%M:%S.%f}0", prompt, answer])


if __name__ == "__main__":
    main()
