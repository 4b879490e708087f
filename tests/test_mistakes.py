"""Files that are no scenario: every one ends with one message, never with a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sim import Scenario, simulate
from sim.errors import InputError
from sim.simulate import plan_memory

SCENARIO: dict[str, Any] = {
    "name": "small",
    "model": "llama-3.1-8b",
    "cluster": {"topology": "dgx-h100"},
    "workload": {
        "arrivals": {"kind": "burst"},
        "lengths": {"kind": "fixed", "input_tokens": 256, "output_tokens": 32},
        "num_requests": 4,
    },
}


def written(folder: Path, changes: dict[str, object]) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SCENARIO))
    changed = Scenario.load(path, changes).to_dict()
    path.write_text(yaml.safe_dump(changed))
    return path


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("? [a, b]\n: c\n", ":1: is not valid YAML: a key that is no name"),
        ("model: &a [*a]\n", "model: got [[...]]; expected text"),
        ("&a\nmodel: *a\n", "model: got {"),
        ("1: c\nmodel: x\n", "1: got 1; a key is a name"),
        ("model: a\n---\nmodel: b\n", ":2: is not valid YAML: but found another document"),
        ("".join(f"k{number}: 1\n" for number in range(50)), "... and 45 more"),
        ("model: \0", "is not valid YAML: unacceptable character"),
    ],
    ids=[
        "list as key",
        "alias of itself",
        "whole of itself",
        "number as key",
        "two documents",
        "another file",
        "binary",
    ],
)
def test_what_is_no_scenario_is_told_so(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        Scenario.load(path)
    assert told in str(error.value)
    assert "case.yaml" in error.value.where
    assert len(str(error.value).splitlines()) <= 10


@pytest.mark.parametrize(
    ("changes", "where", "hint"),
    [
        ({"cluster.ndoes": 2}, "cluster.ndoes", "did you mean 'nodes'?"),
        ({"cluster.topologie": 2}, "cluster.topologie", "did you mean 'topology'?"),
        ({"cluster.nodes": 10**7}, "cluster.nodes", "at most "),
        ({"cluster.gpu": "h100-smx"}, "cluster.gpu", "did you mean 'h100-sxm'?"),
        ({"cluster.topology": "dgx-h10"}, "cluster.topology", "did you mean 'dgx-h100'?"),
        ({"cluster.overrides": 3}, "cluster.overrides", "a list, such as"),
        ({"deployment.placement": ["n0.g9"]}, "deployment.placement", "did you mean 'n0.g"),
        ({"deployment.placement": ["n0.g1", "n0.g2"]}, "deployment.placement", "name 1: one for every rank"),
        ({"deployment.tensor_parallel_size": 16}, "deployment", "raise cluster.nodes"),
        ({"deployment.tensor_parallel_size": 3}, "deployment.tensor_parallel_size", "1, 2, 4, 8"),
    ],
)
def test_a_mistake_found_while_deploying_names_the_file_and_the_key(
    tmp_path: Path, changes: dict[str, object], where: str, hint: str
) -> None:
    scenario = Scenario.load(written(tmp_path, changes))
    for ask in (simulate, plan_memory):
        with pytest.raises(InputError) as error:
            ask(scenario)  # type: ignore[operator]
        assert error.value.where == f"{scenario.where}: {where}"
        assert hint in error.value.hint


@pytest.mark.parametrize("tokens", [0, -5, 10**9 + 1, 10**19])
def test_lengths_have_a_least_and_a_most(tmp_path: Path, tokens: int) -> None:
    with pytest.raises(InputError, match="input_tokens: got"):
        written(tmp_path, {"workload.lengths.input_tokens": tokens})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 10**9}, "'num_hidden_layers' is 1,000,000,000\n  allowed: 1 to 10,000"),
        ({"layer_types": ["full_attention"]}, "'layer_types' has 1 entries\n  one for each of the 2 layers"),
        ({"layer_types": "full_attention"}, "'layer_types' has 'full_attention'"),
    ],
)
def test_a_config_that_does_not_make_sense(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    config = {"model_type": "llama", "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
              "intermediate_size": 512, "vocab_size": 1000, "max_position_embeddings": 4096}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError) as error:
        plan_memory(Scenario.load(written(tmp_path, {"model": str(tmp_path)})))
    assert told in str(error.value)


def test_a_topology_file_that_is_none(tmp_path: Path) -> None:
    path = written(tmp_path, {})
    with pytest.raises(InputError, match=r"small\.yaml: \w+: unknown key"):
        plan_memory(Scenario.load(path, {"cluster.topology": str(path)}))
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        plan_memory(Scenario.load(path, {"cluster.topology": str(tmp_path)}))


def test_requests_end_at_max_model_len_and_the_result_says_so(tmp_path: Path) -> None:
    result = simulate(Scenario.load(written(tmp_path, {"engine.max_model_len": 260})))
    assert result.requests["generated_tokens"].tolist() == [4] * 4
    assert result.broken_laws == []
    assert "4 requests reached max_model_len (260) before they had all their tokens" in result.notes


def test_whole_prompts_need_a_budget_that_holds_them(tmp_path: Path) -> None:
    whole = {"engine.enable_chunked_prefill": False, "engine.max_num_seqs": 128}
    scenario = Scenario.load(written(tmp_path, whole | {"engine.max_num_batched_tokens": 287}))
    with pytest.raises(InputError, match=r"max_num_batched_tokens: got 287 without chunked prefill.*\(288\)"):
        simulate(scenario)
    assert simulate(scenario.with_overrides({"engine.max_num_batched_tokens": 288})).status == "done"


@pytest.mark.parametrize("rate", [1e-9, 1e-5, 1e12])
def test_rates_from_one_request_in_thirty_years_to_all_at_once(tmp_path: Path, rate: float) -> None:
    arrivals = {"workload.arrivals": {"kind": "poisson", "request_rate": rate}}
    result = simulate(Scenario.load(written(tmp_path, arrivals)))
    assert result.broken_laws == [], result.self_checks
    assert 4 < result.summary["median_tpot_ms"] < 12
    with pytest.raises(InputError, match=r"request_rate: got 1e-300\n.*at least 1e-09"):
        written(tmp_path, {"workload.arrivals": {"kind": "poisson", "request_rate": 1e-300}})
