"""Every command that the README shows is run; the first one must print what stands there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
SKIP = "<!-- not run in CI"
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
# these make an environment of their own, which is what runs this test
_SETUP = ("make ", "pip ", "git ", "python3 -m venv")


class Shown(NamedTuple):
    """One command of the README and the lines printed below it."""

    command: str
    output: list[str]


def shown_commands(text: str) -> list[Shown]:
    """The commands after `$ ` in ```console blocks, in order; a block right below a SKIP comment is left out."""
    found: list[Shown] = []
    for block in _BLOCK.finditer(text):
        before = text[: block.start()].rstrip().splitlines()
        if before and before[-1].startswith(SKIP):
            continue
        for line in block.group(1).splitlines():
            if line.startswith("$ "):
                found.append(Shown(line.removeprefix("$ "), []))
            elif found:
                found[-1].output.append(line.rstrip())
    return found


def as_run(command: str) -> str:
    """The command that stands behind a line: `make run` is the scenario that it runs."""
    if command == "make run":
        return "twowalls run scenarios/llama3-70b-2xh100-64way.yaml"
    return command


COMMANDS = shown_commands((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what commands read, so that what they write is thrown away."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("scenarios", "topologies", "schema", "notebooks"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name)
    return folder


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("shown", COMMANDS, ids=[shown.command for shown in COMMANDS])
def test_a_command_of_the_readme_works(shown: Shown, workspace: Path) -> None:
    command = as_run(shown.command)
    if command.startswith(_SETUP):
        assert shlex.split(command)
        return
    done = run(command, workspace)
    assert done.returncode == 0, done.stderr


def test_the_first_answer_is_what_is_printed(workspace: Path) -> None:
    answered = [shown for shown in COMMANDS if any(shown.output)]
    if not answered:
        pytest.skip("the README shows no answer")
    done = run(as_run(answered[0].command), workspace)
    assert (
        "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip() == "\n".join(answered[0].output).strip()
    )


def test_console_blocks_are_read() -> None:
    text = "```console\n$ one --flag\n  answer  \n\n$ two\n```\n<!-- not run in CI: minutes -->\n```console\n$ three\n```\n"
    assert shown_commands(text) == [Shown("one --flag", ["  answer", ""]), Shown("two", [])]
