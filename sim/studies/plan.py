"""Which deployment: every candidate screened, the survivors simulated, the best verified with several seeds.

Enumerate -> refuse what does not fit or is too slow even alone -> search the capacity of the rest in short runs, the most
promising first, until no other can be near -> search the best with long runs and five seeds -> rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sim.errors import TwoWallsError
from sim.model.transformer import load_model
from sim.scenario import Scenario
from sim.studies.capacity import Capacity, run_searches
from sim.studies.executor import Workers
from sim.studies.objective import Objective
from sim.studies.plan_candidates import Candidate, candidates
from sim.studies.plan_cost import TokenCost, metrics_of, token_cost
from sim.studies.plan_screen import Screened, screen
from sim.studies.prices import Offer
from sim.studies.search import Trial, loaded, search
from sim.studies.study import Study

USUAL_SLO = ("ttft.p99=2s", "tpot.p99=50ms")
"""What is asked of a deployment where nobody says."""
WAVE = 8
"""Candidates that are searched side by side before the field is thinned again."""
HOPELESS = 1.2
"""A candidate whose estimate, corrected by the least that the closed form has flattered any of its kind so far, costs so many
times the best found is not simulated."""
SHORT_REQUESTS, SHORT_TOLERANCE = 300, 0.12
LONG_REQUESTS, LONG_TOLERANCE = 2000, 0.1
"""Requests of a run at least, and width of the bracket that its search ends with: to sort the field, and to verify the best."""
VERIFIED = 3
"""Candidates that are searched again with long runs and every seed."""
SEEDS = 5
HEADROOM = 0.88
"""Of the lowest capacity of all seeds: the rate that is recommended, since the next five seeds may be unluckier."""


@dataclass
class Choice:
    """A candidate and what became of it."""

    candidate: Candidate
    status: str = "candidate"
    """ranked (verified with every seed), simulated (in short runs only), screened (not run), infeasible or failed."""
    reason: str = ""
    scenario: Scenario | None = None
    screened: Screened | None = None
    estimate_usd: float = float("inf")
    """Of a million output tokens, by the closed form."""
    cost: TokenCost | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    capacity: tuple[float, float] | None = None
    """Of the request rate, over the seeds."""

    @property
    def usd(self) -> float:
        return float("inf") if self.cost is None else self.cost.usd_per_million_output_tokens


@dataclass(frozen=True)
class Question:
    """What is to be deployed, and how well it has to serve."""

    base: Mapping[str, Any]
    slo: Sequence[Objective]
    offers: Sequence[Offer]
    max_gpus: int
    precisions: Sequence[str]


class Planner:
    """Works through the candidates of one question."""

    def __init__(
        self, question: Question, study: Study, workers: Workers, told: Callable[[str, int], None] | None = None
    ) -> None:
        """
        Args:
            study: keeps the runs.
            told: hears the stage and the number of runs in it.
        """
        self.question, self.study, self.workers = question, study, workers
        self._told = told or (lambda stage, runs: None)
        self.choices: list[Choice] = []
        self.output_tokens = 0.0

    def run(self) -> list[Choice]:
        """Every candidate: the verified by cost, then the simulated by cost, then the rest in the order tried."""
        self._screen()
        self._thin_out(self._in_order())
        best = sorted((c for c in self.choices if c.status == "simulated"), key=lambda c: c.usd)[:VERIFIED]
        self._verify(best)
        self._multiply()
        order = ("ranked", "simulated", "screened", "infeasible", "failed")
        self.choices.sort(key=lambda c: (order.index(c.status), c.usd if c.status in order[:2] else 0.0))
        return self.choices

    def _screen(self) -> None:
        asked = self.question
        model = load_model(asked.base["model"], "--model")
        workload = None
        for candidate in candidates(asked.offers, model, max_gpus=asked.max_gpus, precisions=asked.precisions):
            choice = Choice(candidate)
            self.choices.append(choice)
            self._told("screened", len(self.choices))
            try:
                choice.scenario = candidate.scenario(asked.base)
                if workload is None:
                    workload = choice.scenario.build_workload()
                    self.output_tokens = float(workload.output_tokens.mean())
                choice.screened = screen(choice.scenario, workload, asked.slo)
            except TwoWallsError as error:
                choice.status, choice.reason = "failed", " ".join(str(error).split())
                continue
            choice.reason = choice.screened.reason
            if choice.reason:
                choice.status = "infeasible" if choice.reason.startswith("does not fit") else "screened"
                continue
            choice.estimate_usd = self._estimate(choice)
            single = candidate.copy_of
            if single is not None:
                choice.status, choice.reason = "screened", f"copies of {single.name}: their tokens cost what its do"

    def _in_order(self) -> list[Choice]:
        """What may run: the most promising of every kind of GPU, so that each is judged by a run, then the others."""
        field = sorted((c for c in self.choices if not c.reason), key=lambda c: c.estimate_usd)
        first = {choice.candidate.offer.gpu: choice for choice in reversed(field)}
        ahead = {id(choice) for choice in first.values()}
        return sorted(field, key=lambda choice: id(choice) not in ahead)

    def _estimate(self, choice: Choice) -> float:
        """Dollars a million output tokens by the closed form."""
        assert choice.screened is not None
        rate, alone_s = choice.screened.request_rate, choice.screened.latency_alone_s
        return token_cost(choice.candidate, rate, self.output_tokens, 0.0, alone_s).usd_per_million_output_tokens

    def _thin_out(self, field: list[Choice]) -> None:
        """Short runs, a wave at a time, while the closed form leaves a chance."""
        best = float("inf")
        flattery: dict[tuple[int, int, int], float] = {}
        while field:
            wave, field = field[:WAVE], field[WAVE:]
            self._search(wave, [0], SHORT_REQUESTS, SHORT_TOLERANCE, "short runs")
            best = min([best, *(choice.usd for choice in wave)])
            for choice in wave:
                kind, ratio = _kind(choice), choice.usd / choice.estimate_usd
                flattery[kind] = min(flattery.get(kind, ratio), ratio)
            for choice in list(field):
                least = choice.estimate_usd * flattery.get(_kind(choice), 1.0)
                if least > HOPELESS * best:
                    field.remove(choice)
                    told = f"${least:.2f} a million output tokens at best, against ${best:.2f} of the best"
                    choice.status, choice.reason = "screened", f"too dear by the closed form: {told}"

    def _verify(self, best: list[Choice]) -> None:
        self._search(best, list(range(SEEDS)), LONG_REQUESTS, LONG_TOLERANCE, "verified with long runs")
        for choice in best:
            if choice.status == "simulated":
                choice.status = "ranked"

    def _multiply(self) -> None:
        """Short runs of the best replica as copies behind one router, whose queues even out."""
        copies: dict[Candidate | None, list[Choice]] = {}
        for choice in self.choices:
            if choice.screened is not None and choice.screened.request_rate:
                copies.setdefault(choice.candidate.copy_of, []).append(choice)
        for best in sorted((c for c in self.choices if c.status == "ranked"), key=lambda c: c.usd):
            if best.candidate in copies:
                self._search(copies[best.candidate], [0], SHORT_REQUESTS, SHORT_TOLERANCE, "copies of the best")
                return

    def _search(self, choices: list[Choice], seeds: list[int], requests: int, tolerance: float, stage: str) -> None:
        """Capacity of each of `choices` with each of `seeds`."""
        searches = []
        for choice in choices:
            assert choice.scenario is not None
            assert choice.screened is not None
            known = choice.cost is not None
            start = 0.95 * choice.cost.request_rate / HEADROOM if choice.cost else 0.7 * choice.screened.request_rate
            for seed in seeds:
                changed = choice.scenario.with_overrides({"workload.num_requests": requests, "workload.seed": seed})
                searches.append(search(changed, self.question.slo, start, tolerance, 1.2 if known else 2.0))
        found = run_searches(searches, self.study, self.workers, lambda runs: self._told(stage, runs))
        for number, choice in enumerate(choices):
            ours = tuple(found[number * len(seeds) : (number + 1) * len(seeds)])
            self._take(choice, Capacity("request_rate", self.question.slo, ours))

    def _take(self, choice: Choice, capacity: Capacity) -> None:
        best = capacity.best
        if best is None:
            choice.status, choice.reason = "screened", capacity.reason or "no load keeps the SLO"
            return
        rate = HEADROOM * capacity.value
        choice.status, choice.reason, choice.capacity = "simulated", "", capacity.interval
        first_s, latency_s = ((best.record.get(f"mean_{name}_ms") or 0.0) / 1e3 for name in ("ttft", "e2el"))
        choice.cost = token_cost(choice.candidate, rate, self.output_tokens, first_s, latency_s)
        choice.metrics = metrics_of(best.record) | {"binding": capacity.binding}
        choice.scenario = self._recommended(choice, rate, best)

    def _recommended(self, choice: Choice, rate: float, best: Trial) -> Scenario:
        """The scenario that is handed out: at the recommended rate, with the SLO as its assertions."""
        assert choice.scenario is not None
        lines = [objective.assertion for objective in self.question.slo]
        scenario = loaded(choice.scenario, "request_rate", rate, max(best.requests, LONG_REQUESTS))
        return scenario.with_overrides({"name": choice.candidate.name, "assert": lines, "workload.seed": 0})


def _kind(choice: Choice) -> tuple[int, int, int]:
    """What the closed form flatters alike: it knows nothing of bubbles, transfers, or ranks that wait for each other."""
    return choice.candidate.pipeline, choice.candidate.prefill, choice.candidate.data


def with_replicas(choice: Choice, request_rate: float) -> int:
    """Replicas of a choice that carry `request_rate` together."""
    if choice.cost is None:
        return 0
    return max(1, -int(-request_rate // choice.cost.request_rate))


def plan(
    question: Question, study: Study, workers: Workers, told: Callable[[str, int], None] | None = None
) -> list[Choice]:
    """Answer `question`; see `Planner.run`."""
    return Planner(question, study, workers, told).run()
