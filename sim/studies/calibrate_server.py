"""Fits an engine's own times to one benchmark run of a user's server, repeated by a scenario.

Factors on the times of the preset, least squares on log(simulated / measured). The run's own arrivals and lengths are not known,
only how they are distributed, so several seeds are simulated and each statistic weighs by how far it differs between seeds;
statistics that move together (those of TTFT; those of the gaps) count as one. Factors start at 1 with a log-normal prior as
wide as engines differ, so what a run cannot tell apart stays near 1 and keeps the prior's interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sim.cost.kernels import Floats
from sim.cost.preset import PRESETS
from sim.errors import InputError, nearest
from sim.results.result import Result
from sim.scenario import Scenario
from sim.simulate import simulate
from sim.studies.benchmark_files import Benchmark
from sim.studies.calibrate_engine import preset_with

PARAMETERS = ("layer", "host_step", "host_request", "entry")
"""What is fitted if nothing else is asked for."""
ALLOWED = ("layer", "step", "host_step", "host_request", "stream", "launch_layer", "entry", "exit")
PRIOR_LOG_STD = 1.0
"""Standard deviation of a factor's logarithm before anything is measured: published engines differ by up to e from each other
(`sim/cost/preset.py`: layer 3 to 14 us, host 0.1 to 2.0 ms an iteration, entry 2 to 20 ms)."""
FLOOR = 0.01
"""Relative error of a statistic at least: what two runs of one server differ by for other reasons than their requests."""
SEEDS, SEEDS_FOR_CHANCE = 4, 8
"""Seeds averaged for a prediction, and looked at to say how far chance moves a statistic."""
STEP = 0.1
"""Of a factor's logarithm, for slopes: enough that the jumps of single requests do not decide."""
SMOOTH = {
    "ttft": ("mean", "median", "p90"), "tpot": ("mean", "median", "p90"), "itl": ("mean", "median"),
}  # fmt: skip
"""Statistics that move smoothly with an engine's times; upper quantiles of single gaps jump between iterations with a prompt and
without, and extreme ones hang on a few requests."""
FAMILY = {"ttft": "first token", "tpot": "gaps", "itl": "gaps"}
ALIKE = 0.1
"""Share by which requests and lengths of the file may differ from the scenario's."""
NORMAL_95 = 1.96


@dataclass(frozen=True, slots=True)
class ServerFit:
    """What one run said."""

    engine: str
    factors: Mapping[str, float]
    """By time of the preset, 1: as built in."""
    intervals: Mapping[str, tuple[float, float]]
    """95 %, by the curvature of the fit."""
    log_std: float
    """Of the logarithm of one factor on all of them: what the run leaves open of their sum, which it knows best."""
    undetermined: Sequence[str]
    """Times that the run says next to nothing about."""
    before: Mapping[tuple[str, str], float]
    """(latency, statistic) -> simulated over measured less one, with the times built in."""
    after: Mapping[tuple[str, str], float]

    def text(self) -> str:
        """Factors with their intervals, and every statistic before and after."""
        lines = [f"{self.engine}: factors on its own times, 95 % intervals"]
        for name, factor in self.factors.items():
            low, high = self.intervals[name]
            left = "  (this run does not tell)" if name in self.undetermined else ""
            lines.append(f"  {name:<14}{factor:8.3f}  [{low:.3f}, {high:.3f}]{left}")
        lines.append("simulated over measured, before and after")
        for latency, statistic in self.before:
            pair = self.before[latency, statistic], self.after[latency, statistic]
            lines.append(f"  {latency} {statistic:<8}{pair[0]:+8.1%}{pair[1]:+8.1%}")
        return "\n".join(lines)


def calibrate_server(scenario: Scenario, measured: Benchmark, names: Sequence[str] = PARAMETERS) -> ServerFit:
    """Factors on the times `names` of the scenario's preset that bring its run nearest to `measured`.

    Raises:
        InputError: an unknown or absent time, a scenario that is calibrated already, or that is not what was measured.
    """
    engine = scenario.engine.preset
    _check(scenario, names)
    first = scenario.workload.seed
    runs = [scenario.with_overrides({"workload.seed": seed}) for seed in range(first, first + SEEDS_FOR_CHANCE)]
    _check_alike(scenario, simulate(scenario), measured)
    sigma = _chance(runs, measured)
    keys = list(sigma)
    logs = np.log([measured.latencies_s[key] for key in keys])
    weights = 1 / np.array([sigma[key] for key in keys])

    def errors(x: Floats) -> Floats:
        with preset_with(engine, _scaled(engine, names, np.exp(x))):
            found = [_latencies_s(simulate(run)) for run in runs[:SEEDS]]
        return np.asarray(np.log([[one[key] for key in keys] for one in found]).mean(axis=0) - logs)

    x, deviation, together = _solve(lambda x: np.concatenate([weights * errors(x), x / PRIOR_LOG_STD]), len(names))
    before, after = np.expm1(errors(np.zeros(len(names)))), np.expm1(errors(x))
    bounds = np.exp(x - NORMAL_95 * deviation), np.exp(x + NORMAL_95 * deviation)
    return ServerFit(
        engine,
        {name: float(factor) for name, factor in zip(names, np.exp(x), strict=True)},
        {name: (float(a), float(b)) for name, a, b in zip(names, *bounds, strict=True)},
        together,
        [name for name, std in zip(names, deviation, strict=True) if std > PRIOR_LOG_STD / 2],
        {key: float(error) for key, error in zip(keys, before, strict=True)},
        {key: float(error) for key, error in zip(keys, after, strict=True)},
    )


def _solve(residuals: Callable[[Floats], Floats], count: int) -> tuple[Floats, Floats, float]:
    """(logarithms of the factors, their standard deviations, that of a factor common to all)."""
    from scipy.optimize import least_squares

    # steps are relative to the variable, so it must not start at 0
    found = least_squares(lambda u: residuals(u - 1), np.ones(count), diff_step=STEP, max_nfev=12, xtol=1e-2)
    information = found.jac.T @ found.jac
    deviation = np.sqrt(np.diag(np.linalg.inv(information)))
    return np.asarray(found.x - 1), deviation, float(information.sum() ** -0.5)


def _scaled(engine: str, names: Sequence[str], factors: Floats) -> dict[str, float]:
    """The times `names` of the preset, by field, with these factors on them."""
    usual = PRESETS[engine]
    return {f"{name}_s": getattr(usual, f"{name}_s") * float(f) for name, f in zip(names, factors, strict=True)}


def _latencies_s(result: Result) -> dict[tuple[str, str], float]:
    named = {
        (latency, statistic): result.summary.get(f"{statistic}_{latency}_ms")
        for latency, statistics in SMOOTH.items()
        for statistic in statistics
    }
    return {key: value * 1e-3 for key, value in named.items() if value}


def _chance(runs: Sequence[Scenario], measured: Benchmark) -> dict[tuple[str, str], float]:
    """Standard error of the logarithm of every statistic that both have, of the measured run and the seeds it is held against."""
    found = [_latencies_s(simulate(run)) for run in runs]
    keys = [key for key in found[0] if key in measured.latencies_s and all(key in one for one in found)]
    spread = {key: float(np.std(np.log([one[key] for one in found]), ddof=1)) for key in keys}
    alike = Counter(FAMILY[latency] for latency, _ in keys)
    own = (1 + 1 / SEEDS) ** 0.5
    return {key: max(own * error, FLOOR) * alike[FAMILY[key[0]]] ** 0.5 for key, error in spread.items()}


def _check(scenario: Scenario, names: Sequence[str]) -> None:
    preset = PRESETS[scenario.engine.preset]
    if preset.ideal:
        raise InputError(
            f"{scenario.where}: engine.preset", "got ideal, which has no times of its own", "name an engine"
        )
    if scenario.engine.calibration is not None:
        raise InputError(f"{scenario.where}: engine.calibration", "is given already", "leave it out while calibrating")
    for name in names:
        if name not in ALLOWED:
            raise InputError("--parameters", f"got '{name}'", nearest(name, ALLOWED))
        if not getattr(preset, f"{name}_s"):
            raise InputError("--parameters", f"got '{name}', which is 0 in the preset {preset.name}", "leave it out")


def _check_alike(scenario: Scenario, result: Result, measured: Benchmark) -> None:
    """Refuses a scenario that does not repeat the run of the file."""
    summary, arrivals = result.summary, scenario.workload.arrivals
    completed = summary["completed"] or 1
    pairs = {
        "requests": (completed, measured.requests),
        "mean prompt tokens": (summary["total_input_tokens"] / completed, measured.input_tokens),
        "mean output tokens": (summary["total_output_tokens"] / completed, measured.output_tokens),
        "users at a time": (getattr(arrivals, "concurrency", None), measured.concurrency),
        "requests a second": (getattr(arrivals, "request_rate", None), measured.request_rate),
    }
    for name, (ours, theirs) in pairs.items():
        if ours and theirs and abs(ours / theirs - 1) > ALIKE:
            problem = f"the scenario has {ours:,.4g} {name}, the file {theirs:,.4g}"
            raise InputError(f"{scenario.where}: workload", problem, "describe the run that was measured")
