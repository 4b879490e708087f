"""The house rules of docs/architecture.md that can be checked: who imports whom, and how long files and functions are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "sim").rglob("*.py"))
MOST_LINES, MOST_FUNCTION_LINES = 400, 50


def floors() -> dict[str, int]:
    """Floor of every part of the package, the lowest 0, as the page draws them."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = page[page.index("cli > ") :].split(".")[0]
    names = [floor.split(",") for floor in reversed(drawn.split(" > "))]
    return {name.strip(): number for number, floor in enumerate(names) for name in floor}


def imported(file: Path) -> Iterator[str]:
    """The part of the package that each import in `file` takes from."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "sim":
            modules = [f"sim.{alias.name}" for alias in node.names if alias.name != "__version__"]
        else:
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (module.split(".")[1] for module in modules if module.startswith("sim."))


def test_a_file_imports_only_from_its_own_floor_or_below() -> None:
    floor_of = floors()
    wrong = []
    for file in FILES:
        part = file.relative_to(ROOT / "sim").parts[0].removesuffix(".py")
        if not part.startswith("__"):
            wrong += [(file.name, other) for other in imported(file) if floor_of[other] > floor_of[part]]
    assert wrong == []


def test_files_and_functions_are_short() -> None:
    long = []
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        long += [file.name] if len(text.splitlines()) > MOST_LINES else []
        functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef))
        long += [f"{file.name}: {f.name}" for f in functions if (f.end_lineno or 0) - f.lineno >= MOST_FUNCTION_LINES]
    assert long == []
