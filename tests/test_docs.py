"""The pages say what the code does: numbers, examples, and the names of files and tests."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from sim import Scenario, simulate

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TOOL: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "refresh.py"))


def example(language: str) -> str:
    """The one block of README.md in this language."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.mark.parametrize("page", TOOL["PAGES"])
def test_a_page_says_what_the_code_answers(page: str) -> None:
    assert TOOL["refreshed"](page) == (ROOT / page).read_text(encoding="utf-8"), "run `make docs`"


def test_the_example_scenario_runs_and_its_assertion_holds() -> None:
    scenario = Scenario.from_dict(yaml.safe_load(example("yaml")))
    result = simulate(scenario)
    assert result.status == "done"
    assert [line.text for line in scenario.assertions] == ["ttft.p99 < 2 s"]
    assert result.summary["p99_ttft_ms"] < 2000


def test_the_lines_of_python_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(example("python"), "README.md", "exec"), {})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [float(line[0]) for line in printed] == [0.9, 0.95]
    assert int(printed[0][1]) < int(printed[1][1])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_every_test_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:sim|tests|docs|scenarios|topologies|schema|notebooks)/[\w./-]*\w", text))
    assert sorted(name for name in named if not (ROOT / name).exists() and not name.startswith("docs/kernels/")) == []
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    assert sorted(link for link in links if not (page.parent / link).exists()) == []
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    functions = set(re.findall(r"^def (test_\w+)", tests, re.MULTILINE))
    files = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    assert set(re.findall(r"\btest_\w+", text)) - functions - files == set()
