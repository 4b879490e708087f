"""Versions of the mirrored engine: what is known is used, what is not known is said."""

from __future__ import annotations

from typing import Any

import pytest

from sim import Scenario, simulate
from sim.engine.versions import newer_than_known, parse_version, version_notes
from sim.errors import InputError


def scenario(engine: dict[str, Any]) -> Scenario:
    return Scenario.from_dict(
        {
            "model": "llama-3.1-8b",
            "cluster": {"topology": "dgx-h100"},
            "engine": engine,
            "workload": {
                "arrivals": {"kind": "burst"},
                "lengths": {"kind": "fixed", "input_tokens": 64, "output_tokens": 4},
                "num_requests": 2,
            },
        }
    )


def test_a_version_is_read_as_people_write_it() -> None:
    assert parse_version("0.18.1") == parse_version("v0.18") == (0, 18)
    assert parse_version(None) == (0, 33)


def test_a_version_from_the_future_is_refused_with_those_known() -> None:
    with pytest.raises(
        InputError, match=r"engine\.version: got '0\.99', newer (.|\n)*known: 0\.11, 0\.14, 0\.18, 0\.24, 0\.33"
    ):
        simulate(scenario({"version": "0.99"}))
    with pytest.raises(InputError, match=r"got 'newest'(.|\n)*write it like 0\.33\.0"):
        simulate(scenario({"version": "newest"}))
    assert newer_than_known("0.34")
    assert not newer_than_known("0.33.2")
    assert not newer_than_known("nightly")


def between(version: str, older: str, newer: str, like: str) -> str:
    beside = f"between {older} and {newer}, which differ"
    return f"vLLM {version} was not checked: it lies {beside}, and is scheduled by the rules of {like}"


@pytest.mark.parametrize(
    ("version", "told"),
    [
        (None, []),
        ("0.16", []),  # 0.14 and 0.18 decide alike
        ("0.33.0", []),
        ("0.9.2", ["vLLM 0.9.2 is scheduled by the rules of 0.11, the oldest that was checked"]),
        ("0.12", [between("0.12", "0.11", "0.14", "0.14")]),
        ("0.20", [between("0.20", "0.18", "0.24", "0.24")]),
        ("0.30", [between("0.30", "0.24", "0.33", "0.24")]),
    ],
)
def test_rules_of_a_version_nobody_recorded_are_said_to_be_a_neighbours(version: str | None, told: list[str]) -> None:
    assert version_notes(version, watermark=0.0) == told


def test_an_option_that_the_version_does_not_have_is_said_to_have_no_effect() -> None:
    result = simulate(scenario({"version": "0.18.1", "watermark": 0.1}))
    assert "vLLM 0.18.1 has no watermark: 0.1 is not applied" in result.notes
