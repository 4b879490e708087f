"""Scenarios of a few requests as plain data, and ways to change them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.scenario import Scenario


def small(num_requests: int) -> dict[str, Any]:
    """Llama-3.1-8B on one H100, five requests a second of 100 tokens in and 20 out."""
    return {
        "name": "base",
        "model": "llama-3.1-8b",
        "cluster": {"topology": "dgx-h100"},
        "workload": {
            "arrivals": {"kind": "poisson", "request_rate": 5.0},
            "lengths": {"kind": "fixed", "input_tokens": 100, "output_tokens": 20},
            "num_requests": num_requests,
        },
    }


def changed(content: Mapping[str, Any], changes: Mapping[str, Any]) -> Scenario:
    """The scenario in `content` with `changes`: keys of a section beside or instead of its own, anything else as a whole."""
    merged = dict(content)
    for section, value in changes.items():
        merged[section] = merged.get(section, {}) | value if isinstance(value, dict) else value
    return Scenario.from_dict(merged)
