"""A notebook is its script: the .ipynb that people read holds the code of the .py, executed without an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))


def test_there_is_a_notebook() -> None:
    assert "the_article" in [script.stem for script in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_notebook_has_the_cells_of_its_script_and_was_executed(script: Path) -> None:
    jupytext = pytest.importorskip("jupytext")
    notebook = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    written = [(cell.cell_type, cell.source) for cell in jupytext.read(script).cells]
    assert cells == written, "run `make notebooks`"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]
