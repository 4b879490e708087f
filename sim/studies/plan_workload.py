"""What a deployment is planned for: a named kind of traffic, or the workload of a scenario file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim import catalogue
from sim.errors import InputError, nearest
from sim.scenario.deployment import Slo

START_RATE = 1.0
"""Requests a second of the scenarios that are screened; the search finds the real ones."""
_LENGTHS = {
    "chat": (1155, 0.96, 211, 0.77, 8192),
    "code": (2048, 0.96, 28, 2.15, 8192),
    "reasoning": (512, 1.0, 4096, 1.0, 16384),
    "summary": (8192, 0.5, 256, 0.5, 16384),
}
"""Mean and coefficient of variation of prompts, then of outputs, and the longest of either, in tokens.

chat and code: the conversation and coding traces of the Azure LLM inference dataset 2023 (Patel et al., Splitwise, 2024);
reasoning and summary are round numbers, no measurement."""
KINDS: dict[str, dict[str, Any]] = {
    name: {"kind": "lognormal"}
    | dict(zip(("input_mean", "input_cv", "output_mean", "output_cv", "max_tokens"), numbers, strict=True))
    for name, numbers in _LENGTHS.items()
}
"""Lengths of the kinds of traffic that go by name."""


def limits_of(base: Mapping[str, Any]) -> Slo | None:
    """The limits of requests that a workload came with."""
    return Slo.model_validate(base["slo"]) if "slo" in base else None


def plan_base(model: str, workload: str) -> dict[str, Any]:
    """A scenario as plain data without machines: the model, the engine and the workload, open to any request rate.

    Args:
        model: a catalogue name or a path.
        workload: one of `KINDS`, or a scenario file whose workload, engine and slo are taken.

    Raises:
        InputError: neither; a workload in a closed loop, which has no request rate to plan for.
    """
    if workload in KINDS:
        arrivals = {"kind": "poisson", "request_rate": START_RATE}
        return {"model": model, "workload": {"arrivals": arrivals, "lengths": KINDS[workload], "num_requests": 1000}}
    if not Path(workload).exists() and workload not in catalogue.files("scenarios"):
        raise InputError("--workload", f"got '{workload}'", nearest(workload, KINDS) + " (or a scenario file)")
    from sim.scenario import Scenario

    found = Scenario.load(catalogue.resolve("scenarios", workload, "--workload"))
    if not hasattr(found.workload.arrivals, "request_rate"):
        hint = "give its arrivals as poisson with a request_rate"
        raise InputError(f"{found.where}: workload.arrivals", f"got {found.workload.arrivals.kind}", hint)
    data = found.to_dict()
    return {
        "model": model,
        **{section: data[section] for section in ("engine", "workload", "slo") if data.get(section)},
    }
