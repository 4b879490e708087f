"""What happens to the replicas of a fleet while it serves, as a scenario says it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sim.scenario.fields import Duration, PositiveDuration, Section, refuse


class FleetEvent(Section):
    """One thing that happens to one replica."""

    at_s: Duration = Field(alias="at")
    """When."""
    replica: Annotated[int, Field(ge=0)]
    """Its number, from 0."""
    event: Literal["fail", "start"]
    """fail: it is gone at once, and its requests go back to the router; start: it begins to start, cold. A replica whose
    first event is start is not there before."""


class ColdStart(Section):
    """How a replica comes up."""

    weights_from: Literal["host", "network"] = "host"
    """Where its weights are: in the memory of its hosts, or beyond the network ports of its nodes."""
    startup_s: Duration = Field(default=0.0, alias="startup")
    """Time beside the weights: processes, profiling, CUDA graphs."""


class Autoscale(Section):
    """Replicas follow the load: as many as have `target_outstanding` requests each, cold when they start."""

    min: Annotated[int, Field(ge=1)] = 1
    """Replicas that are always there."""
    max: Annotated[int, Field(ge=1)] | None = None
    """Most replicas; null: all that are deployed."""
    target_outstanding: Annotated[float, Field(gt=0)]
    """Requests that a replica should have."""
    interval_s: PositiveDuration = Field(default=15.0, alias="interval", json_schema_extra={"default": "15 s"})
    """Time between two looks."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.max is not None and self.max < self.min:
            raise refuse(f"max ({self.max}) is less than min ({self.min})", "raise max or lower min")
        return self
