"""Speculative decoding, as a scenario says it."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from sim.scenario.fields import NameOrPath, Section, refuse

_SUM_TOLERANCE = 1e-6


class Speculative(Section):
    """A draft proposes tokens, and the model verifies them all in one iteration."""

    num_speculative_tokens: Annotated[int, Field(ge=1)]
    """Tokens that the draft proposes for every sequence in every iteration."""
    acceptance_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Probability that a proposed token is accepted, if those before it were; or give acceptance_lengths."""
    acceptance_lengths: list[Annotated[float, Field(ge=0, le=1)]] | None = None
    """Probabilities that a sequence advances by 1, 2, ... num_speculative_tokens + 1 tokens; they sum to 1."""
    draft_model: NameOrPath | None = None
    """The model that proposes, on the same GPUs; or give draft_cost."""
    draft_cost: Annotated[float, Field(ge=0)] | None = None
    """Time of one proposed token over that of a decode iteration of the model: 0 for n-grams, some hundredths for a head."""

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        for first, second in (("acceptance_rate", "acceptance_lengths"), ("draft_model", "draft_cost")):
            one, other = (getattr(self, name) is not None for name in (first, second))
            if one == other:
                problem = f"got both {first} and {second}" if one else f"got neither {first} nor {second}"
                raise refuse(problem, "give one of the two")
        given = self.acceptance_lengths
        if given is not None and len(given) != self.num_speculative_tokens + 1:
            problem = f"acceptance_lengths has {len(given)} entries for {self.num_speculative_tokens} proposed tokens"
            raise refuse(problem, f"give {self.num_speculative_tokens + 1}: for 1, 2, ... tokens")
        if given is not None and abs(sum(given) - 1) > _SUM_TOLERANCE:
            raise refuse(f"acceptance_lengths sum to {sum(given):g}", "probabilities sum to 1")
        return self

    @property
    def lengths(self) -> list[float]:
        """Probabilities of advancing by 1, 2, ... tokens.

        With a rate a, n proposed tokens are accepted with a ** n x (1 - a), all k with a ** k (Leviathan, Kalman and Matias,
        "Fast Inference from Transformers via Speculative Decoding", 2023).
        """
        if self.acceptance_lengths is not None:
            return self.acceptance_lengths
        rate, most = self.acceptance_rate or 0.0, self.num_speculative_tokens
        return [rate**n * (1 - rate) for n in range(most)] + [rate**most]
