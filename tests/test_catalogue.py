"""Names that stand for files: GPUs, models, topologies, scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim import catalogue
from sim.errors import InputError, nearest


def test_a_scenario_in_a_folder_is_found_by_its_path_and_by_its_name_alone() -> None:
    entry = catalogue.files("scenarios")["cross-node-tp/tp8-one-node"]
    assert entry.is_file()
    assert catalogue.resolve("scenarios", "cross-node-tp/tp8-one-node", "SCENARIO") == entry
    assert catalogue.resolve("scenarios", "tp8-one-node", "SCENARIO") == entry


def test_a_file_of_ones_own_goes_before_the_name_alone_of_an_entry_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tp8-one-node").write_text("mine")
    assert catalogue.resolve("scenarios", "tp8-one-node", "SCENARIO") == Path("tp8-one-node")


def test_an_unknown_kind_is_refused_by_the_name_of_the_argument() -> None:
    with pytest.raises(InputError, match=r"KIND: got 'scenario'\n.*did you mean 'scenarios'\? allowed: gpus, models, "):
        catalogue.files("scenario")


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("vLLM", ["vllm", "orca"], "did you mean 'vllm'? allowed: orca, vllm"),
        ("fast", ["leap", "layer"], "allowed: layer, leap"),
        ("model17x", [f"model{number}" for number in range(40)], "did you mean 'model17'?"),
    ],
)
def test_a_hint_names_the_nearest_and_what_is_allowed_unless_that_is_very_much(
    name: str, options: list[str], hint: str
) -> None:
    assert nearest(name, options) == hint
