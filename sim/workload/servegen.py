"""ServeGen clients (Alibaba, arXiv 2505.09999): files of rates and length distributions, drawn into requests.

A client is `chunk-<n>-trace.csv` (no header; a row a window of 600 s: start_s, requests a second, cv, pattern, shape,
scale) and `chunk-<n>-dataset.json` (by window start: distributions of input and output tokens, as dicts in strings).
Clients are superposed. The gaps have the pattern and shape of the file, and the mean that its rate asks for.
"""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sim.errors import InputError
from sim.workload.trace_formats import Rows

WINDOW_S = 600.0
MOST_REQUESTS = 20_000_000
"""More are not drawn at once: the two weeks of one client can hold 150 million requests, several gigabytes."""


class _Window(NamedTuple):
    start_s: float
    request_rate: float
    pattern: str
    shape: float


class _Lengths(NamedTuple):
    start_s: float
    values: tuple[NDArray[np.int64], NDArray[np.int64]]
    weights: tuple[NDArray[np.float64], NDArray[np.float64]]


class _Client(NamedTuple):
    windows: dict[float, _Window]
    lengths: list[_Lengths]


def generate(path: Path, start_s: float, end_s: float | None, max_requests: int | None, random: Generator) -> Rows:
    """Requests of the client(s) in `path` from `start_s` to `end_s`, the times counted from `start_s`.

    Args:
        path: a `chunk-<n>-trace.csv`, or a folder with one or more of them.
        max_requests: stop after the window in which this many are there; None: all.

    Raises:
        InputError: no client there, a bad row, or more than `MOST_REQUESTS`.
    """
    files = sorted(path.glob("*-trace.csv")) if path.is_dir() else [path]
    if not files:
        raise InputError(str(path), "holds no ServeGen client", "expected files named chunk-<n>-trace.csv")
    clients = [_read_client(file) for file in files]
    expected = _expected(clients, start_s, end_s)
    if max_requests is None and expected > MOST_REQUESTS:
        hint = "give num_requests, or a shorter time (start, end)"
        raise InputError(str(path), f"holds about {expected:,.0f} requests in the time asked for", hint)
    parts: list[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]] = []
    count = 0
    for window_s in sorted({start for client in clients for start in client.windows}):
        if window_s + WINDOW_S <= start_s:
            continue
        if (end_s is not None and window_s >= end_s) or (max_requests is not None and count >= max_requests):
            break
        for client in clients:
            part = _draw(client, window_s, start_s, end_s, random)
            parts.append(part)
            count += len(part[0])
    if not count:
        raise InputError(str(path), "has no request in the time asked for", "choose another start and end")
    arrival_s, inputs, outputs = (np.concatenate([part[i] for part in parts]) for i in range(3))
    order = np.argsort(arrival_s, kind="stable")
    return Rows(arrival_s[order], inputs[order], outputs[order])


def expected_requests(path: Path) -> float:
    """How many requests the client(s) in `path` send in the mean.

    Raises:
        InputError: as `generate`.
    """
    files = sorted(path.glob("*-trace.csv")) if path.is_dir() else [path]
    return _expected([_read_client(file) for file in files], 0.0, None)


def _expected(clients: list[_Client], start_s: float, end_s: float | None) -> float:
    last_s = math.inf if end_s is None else end_s
    return sum(
        window.request_rate * max(min(window.start_s + WINDOW_S, last_s) - max(window.start_s, start_s), 0.0)
        for client in clients
        for window in client.windows.values()
    )


def _draw(
    client: _Client, window_s: float, start_s: float, end_s: float | None, random: Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """(times, input tokens, output tokens) of one client in one window, cut to the time asked for."""
    window = client.windows.get(window_s)
    if window is None or window.request_rate == 0:
        return np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64)
    times = window_s + _gaps_until(WINDOW_S, window, random)
    inside = times >= start_s
    if end_s is not None:
        inside &= times < end_s
    times = times[inside]
    lengths = next((own for own in reversed(client.lengths) if own.start_s <= window_s), client.lengths[0])
    drawn = [random.choice(v, len(times), p=w) for v, w in zip(lengths.values, lengths.weights, strict=True)]
    return times - start_s, drawn[0], drawn[1]


def _gaps_until(limit_s: float, window: _Window, random: Generator) -> NDArray[np.float64]:
    """Arrival times before `limit_s` with the window's rate, pattern and shape."""
    mean_s = 1.0 / window.request_rate
    chunk = int(limit_s * window.request_rate * 1.1) + 16
    times = np.zeros(0)
    while not len(times) or times[-1] < limit_s:
        if window.pattern == "Weibull":
            gaps = random.weibull(window.shape, chunk) * mean_s / math.gamma(1 + 1 / window.shape)
        else:
            gaps = random.gamma(window.shape, mean_s / window.shape, chunk)
        times = np.concatenate([times, (times[-1] if len(times) else 0.0) + np.cumsum(gaps)])
    return times[times < limit_s]


def _read_client(file: Path) -> _Client:
    windows = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            window = _window(line.split(","), f"{file}:{number}")
            windows[window.start_s] = window
    dataset = file.with_name(file.name.replace("-trace.csv", "-dataset.json"))
    return _Client(windows, _read_lengths(dataset))


def _window(cells: list[str], where: str) -> _Window:
    expected = "expected start_s, rate, cv, Gamma|Weibull, shape, scale"
    if len(cells) != 6:
        raise InputError(where, f"has {len(cells)} values", expected)
    try:
        start_s, rate, shape = float(cells[0]), float(cells[1]), float(cells[4])
    except ValueError:
        raise InputError(where, f"got '{','.join(cells)}'", expected) from None
    pattern = cells[3].strip()
    if not (math.isfinite(rate) and rate >= 0) or (rate > 0 and (pattern not in ("Gamma", "Weibull") or shape <= 0)):
        raise InputError(where, f"got '{','.join(cells)}'", expected)
    return _Window(start_s, rate, pattern, shape)


def _read_lengths(dataset: Path) -> list[_Lengths]:
    """The length distributions of a client by window, those that are empty left out."""
    try:
        windows = json.loads(dataset.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(str(dataset), f"cannot be read ({error})", "every client needs its dataset.json") from None
    found = []
    for start, columns in sorted(windows.items(), key=lambda item: float(item[0])):
        pairs = [
            _distribution(columns, name, f"{dataset}: {start}.{name}") for name in ("input_tokens", "output_tokens")
        ]
        if all(len(values) for values, _ in pairs):
            (inputs, input_weights), (outputs, output_weights) = pairs
            found.append(_Lengths(float(start), (inputs, outputs), (input_weights, output_weights)))
    if not found:
        raise InputError(str(dataset), "has no length distribution", "every client needs one window with lengths")
    return found


def _distribution(columns: object, name: str, where: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    try:
        weights = ast.literal_eval(columns[name])  # type: ignore[index]
        values = np.array(list(weights), dtype=np.int64)
        shares = np.array(list(weights.values()), dtype=float)
    except (KeyError, TypeError, ValueError, SyntaxError, AttributeError):
        raise InputError(where, "is no distribution", 'expected "{tokens: share, ...}"') from None
    positive = values > 0
    total = shares[positive].sum()
    return values[positive], shares[positive] / (total if total > 0 else 1.0)
