"""How tokens spread over the experts of MoE layers, as a scenario says it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sim.scenario.fields import Section


class BalancedExperts(Section):
    """Every expert is picked as often as any other."""

    kind: Literal["balanced"]

    @property
    def skew(self) -> float:
        """Exponent of Zipf's law."""
        return 0.0


class ZipfExperts(Section):
    """The n-th most popular expert is picked in proportion to n ** -exponent; the GPU with the most tokens sets the pace."""

    kind: Literal["zipf"]
    exponent: Annotated[float, Field(ge=0)]
    """0: balanced; 1: the most popular expert is picked twice as often as the second."""

    @property
    def skew(self) -> float:
        """Exponent of Zipf's law."""
        return self.exponent


ExpertLoad = Annotated[BalancedExperts | ZipfExperts, Field(discriminator="kind")]
