"""The README says what the code answers: its tables, its own scenario, its lines of Python."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import yaml

from sim import Scenario, simulate

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def test_the_answers_are_those_of_the_shipped_scenarios() -> None:
    tool = runpy.run_path(str(ROOT / "docs" / "refresh_readme.py"))
    assert tool["refreshed"](README, tool["blocks"]()) == README, "run `make readme`"


def test_the_example_scenario_runs_and_its_assertion_holds() -> None:
    scenario = Scenario.from_dict(yaml.safe_load(block("yaml")))
    result = simulate(scenario)
    assert result.status == "done"
    assert [line.text for line in scenario.assertions] == ["ttft.p99 < 2 s"]
    assert result.summary["p99_ttft_ms"] < 2000


def test_the_lines_of_python_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(block("python"), "README.md", "exec"), {})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [float(line[0]) for line in printed] == [0.9, 0.95]
    assert int(printed[0][1]) < int(printed[1][1])
