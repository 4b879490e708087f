"""The workload section of a scenario: who asks, when, for how many tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from sim.scenario.fields import Duration, FilePath, PositiveDuration, Section, refuse

MOST_TOKENS = 10**9
"""Of a prompt or an output: a thousand times the longest context served; sums over a workload stay exact in 64 bits."""
Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
LEAST_RATE = 1e-9
"""Requests a second: one in thirty years. Below it the clock has too few decimals left for a token."""
Rate = Annotated[float, Field(gt=0, ge=LEAST_RATE)]


class ClosedLoop(Section):
    """A fixed number of users, each sending the next request when the last one is answered."""

    kind: Literal["closed_loop"]
    concurrency: Annotated[int, Field(ge=1)]
    """Users, and so requests in flight."""
    think_time_s: Duration = Field(default=0.0, alias="think_time")
    """Mean pause of a user between an answer and the next request."""
    think_time_cv: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of variation of the pause (gamma distributed); 0: always the mean, 1: exponential."""
    ramp_s: Duration = Field(default=0.0, alias="ramp")
    """Time over which the users start, evenly."""


class Poisson(Section):
    """Independent users: exponential gaps, or gamma gaps if burstiness is not 1."""

    kind: Literal["poisson"]
    request_rate: Rate
    """Requests a second."""
    burstiness: Annotated[float, Field(gt=0)] = 1.0
    """Shape of the gamma distributed gaps: below 1 in bursts, above 1 more even (coefficient of variation 1/sqrt)."""


class Constant(Section):
    """One request every 1 / request_rate seconds."""

    kind: Literal["constant"]
    request_rate: Rate
    """Requests a second."""


class Weibull(Section):
    """Weibull distributed gaps."""

    kind: Literal["weibull"]
    request_rate: Rate
    """Requests a second, on average."""
    shape: Annotated[float, Field(ge=0.1)]
    """Shape of the gaps: below 1 in bursts, 1 is Poisson, above 1 more even."""


class OnOff(Section):
    """Poisson while on, silent while off; both last exponential times. Starts on."""

    kind: Literal["onoff"]
    request_rate: Rate
    """Requests a second while on."""
    on_s: PositiveDuration = Field(alias="on")
    """Mean time on."""
    off_s: PositiveDuration = Field(alias="off")
    """Mean time off."""


class Stage(Section):
    """A stretch of time with one request rate."""

    duration_s: PositiveDuration = Field(alias="duration")
    """How long it lasts."""
    request_rate: Annotated[float, Field(ge=0)]
    """Requests a second; 0: none."""


class Piecewise(Section):
    """Poisson with a rate that changes in steps; nothing arrives after the last stage."""

    kind: Literal["piecewise"]
    stages: Annotated[list[Stage], Field(min_length=1)]
    """The stages, one after another."""

    @model_validator(mode="after")
    def _something_arrives(self) -> Self:
        if not any(stage.request_rate for stage in self.stages):
            raise refuse("every stage has request_rate 0", "give one stage a rate above 0")
        return self


class Diurnal(Section):
    """Poisson with a rate that swings like a sine: request_rate x (1 + amplitude x sin(2 pi t / period))."""

    kind: Literal["diurnal"]
    request_rate: Rate
    """Requests a second, averaged over a period."""
    amplitude: Annotated[float, Field(ge=0, le=1)]
    """Swing over the mean: at 0.5 the rate runs between half and one and a half times the mean."""
    period_s: PositiveDuration = Field(default=86400.0, alias="period", json_schema_extra={"default": "24 h"})
    """Length of a day."""


class Burst(Section):
    """All requests at once, at time zero."""

    kind: Literal["burst"]


class TraceArrivals(Section):
    """Requests as they were recorded; without `lengths`, their lengths too."""

    kind: Literal["trace"]
    path: FilePath
    """The trace file (ServeGen: a client's file or the folder of clients)."""
    format: Literal["azure", "burstgpt", "mooncake", "servegen", "timed_trace", "csv", "parquet"] | None = None
    """Format of the file; null: recognised by its header or extension."""
    time_scale: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies every time: 0.5 plays the trace twice as fast."""
    rate_scale: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the number of requests over the same time: below 1 by leaving some out at random."""
    start_s: Duration = Field(default=0.0, alias="start")
    """Time in the trace at which to begin."""
    end_s: PositiveDuration | None = Field(default=None, alias="end")
    """Time in the trace at which to stop; null: its end."""

    jitter_s: Duration = Field(default=0.0, alias="jitter")
    """Each time is moved by a random part of this, the order kept: for traces whose times are rounded to buckets."""

    @model_validator(mode="after")
    def _ends_after_start(self) -> Self:
        if self.end_s is not None and self.end_s <= self.start_s:
            raise refuse(f"end ({self.end_s:g} s) is not after start ({self.start_s:g} s)", "choose a later end")
        return self


Arrivals = Annotated[
    ClosedLoop | Poisson | Constant | Weibull | OnOff | Piecewise | Diurnal | Burst | TraceArrivals,
    Field(discriminator="kind"),
]


class Fixed(Section):
    """Every request alike."""

    kind: Literal["fixed"]
    input_tokens: Tokens
    """Tokens of the prompt."""
    output_tokens: Tokens
    """Tokens generated."""


def _range(value: object) -> object:
    numbers = value if isinstance(value, list) else []
    whole = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool)]
    if len(whole) != 2 or len(numbers) != 2 or not 1 <= whole[0] <= whole[1] <= MOST_TOKENS:
        raise refuse(
            f"got {value!r}", f"write [min, max], whole numbers of tokens with 1 <= min <= max <= {MOST_TOKENS:,}"
        )
    return value


_RANGE_SCHEMA: dict[str, Any] = {
    "type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2
}  # fmt: skip
TokenRange = Annotated[
    list[int],
    BeforeValidator(_range),
    WithJsonSchema(_RANGE_SCHEMA),
]


class Uniform(Section):
    """Whole numbers of tokens, all in the range equally likely, both ends included."""

    kind: Literal["uniform"]
    input_tokens: TokenRange
    """[min, max] tokens of the prompt."""
    output_tokens: TokenRange
    """[min, max] tokens generated."""


class Lognormal(Section):
    """Log-normal lengths; mean and coefficient of variation are those of the length itself, before truncation."""

    kind: Literal["lognormal"]
    input_mean: Annotated[float, Field(ge=1, le=MOST_TOKENS)]
    """Mean tokens of the prompt."""
    input_cv: Annotated[float, Field(ge=0)]
    """Standard deviation of the prompt's length over its mean."""
    output_mean: Annotated[float, Field(ge=1, le=MOST_TOKENS)]
    """Mean tokens generated."""
    output_cv: Annotated[float, Field(ge=0)]
    """Standard deviation of the generated length over its mean."""
    max_tokens: Tokens | None = None
    """No prompt and no output is longer than this; null: no limit."""


class Empirical(Section):
    """(prompt, output) pairs drawn with replacement from a file; every trace format will do."""

    kind: Literal["empirical"]
    path: FilePath
    """A file of a trace format, or a CSV with the columns input_tokens,output_tokens."""


Lengths = Annotated[Fixed | Uniform | Lognormal | Empirical, Field(discriminator="kind")]


class SharedPrefix(Section):
    """System prompts: every prompt begins with one of them, put before the tokens that `lengths` gives."""

    tokens: Tokens
    """Tokens of the prefix, on top of the prompt's own."""
    prefixes: Annotated[int, Field(ge=1)] = 1
    """How many different ones; each request takes one at random, all equally likely."""


def _turns(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return [value, value]
    return _range(value)


class Sessions(Section):
    """Conversations: every prompt is all that was said before and what `lengths` gives as new.

    The arrivals are those of conversations; a later turn comes a pause after the answer before it.
    """

    turns: Annotated[
        list[int],
        BeforeValidator(_turns),
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, _RANGE_SCHEMA]}),
    ]
    """Requests of a conversation: a number, or [min, max], all equally likely."""
    pause_s: Duration = Field(default=0.0, alias="pause")
    """Mean time from an answer to the next turn: a user reads and types, an agent's tool runs."""
    pause_cv: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of variation of the pause (gamma distributed); 0: always the mean, 1: exponential."""


class Tenant(Section):
    """One of several who share the replicas."""

    share: Annotated[float, Field(gt=0)] = 1.0
    """Weight of this tenant among the requests (or conversations)."""
    priority: int = 0
    """Lower goes first, under scheduler: priority."""


class WorkloadSpec(Section):
    """The requests of a run."""

    arrivals: Arrivals
    """When requests arrive; `kind` chooses how."""
    lengths: Lengths | None = None
    """Tokens of prompts and outputs; `kind` chooses how. Needed unless the arrivals are a trace."""
    shared_prefix: SharedPrefix | None = None
    """What prompts have in common at their beginning, for prefix caching; null: nothing, or what a trace says."""
    sessions: Sessions | None = None
    """Conversations of several turns; null: every request stands alone."""
    tenants: Annotated[list[Tenant], Field(min_length=1)] | None = None
    """Who asks, drawn at random for each request (conversation), for scheduler: priority or fair_share; null: one tenant."""
    num_requests: Annotated[int, Field(ge=1, le=10**8)] | None = None
    """Requests sent in all; null: 1000, or all of a trace or of piecewise stages."""
    time_limit_s: PositiveDuration | None = Field(default=None, alias="time_limit")
    """Simulated time at which the run is cut; null: it ends with the last answer."""
    warmup_requests: Annotated[int, Field(ge=0)] = 0
    """First requests that are served but left out of the statistics."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of every random number of the run."""

    @model_validator(mode="after")
    def _lengths_known(self) -> Self:
        if self.lengths is None and self.arrivals.kind != "trace":
            raise refuse(
                "lengths is missing", "add, for example, lengths: {kind: fixed, input_tokens: 512, output_tokens: 128}"
            )
        if self.sessions is not None and self.arrivals.kind == "trace":
            raise refuse("sessions with trace arrivals", "leave sessions out, or choose another kind of arrivals")
        if self.num_requests is not None and self.warmup_requests >= self.num_requests:
            problem = f"warmup_requests ({self.warmup_requests}) leaves nothing of num_requests ({self.num_requests})"
            raise refuse(problem, "warm up with fewer requests or send more")
        return self
