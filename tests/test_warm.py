"""Deployments that are built once for scenarios on the same machines and engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sim import Scenario
from sim.engine.warm import warm_deployment

FILE = "source: by hand\nengine: {{preset: vllm, layer: {{factor: {factor}}}}}\n"


def scenario(**changes: Any) -> Scenario:
    data = {
        "model": "llama-3.1-8b",
        "cluster": {"topology": "dgx-h100"},
        "workload": {
            "arrivals": {"kind": "burst"},
            "lengths": {"kind": "fixed", "input_tokens": 64, "output_tokens": 4},
            "num_requests": 2,
        },
    }
    return Scenario.from_dict(data).with_overrides(changes)


@pytest.mark.parametrize(
    "changes", [{}, {"engine.cuda_graphs": False}, {"engine.api_server": False}, {"engine.preset": "trtllm-cpp"}]
)
def test_another_workload_finds_the_tables_of_the_first(changes: dict[str, Any]) -> None:
    first, second = scenario(**changes), scenario(**changes, **{"workload.num_requests": 3, "name": "again"})
    cost = warm_deployment(first).cost(0)
    assert warm_deployment(second).cost(0) is cost
    assert warm_deployment(second).scenario is second


def test_a_calibration_file_is_warm_until_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(FILE.format(factor=2))
    asked = scenario(**{"engine.calibration": str(file)})
    first = warm_deployment(asked)
    assert warm_deployment(asked).cost(0) is first.cost(0)
    file.write_text(FILE.format(factor=3))
    changed = warm_deployment(asked)
    assert changed.preset.layer_s == pytest.approx(1.5 * first.preset.layer_s)
    assert changed.cost(0) is not first.cost(0)
