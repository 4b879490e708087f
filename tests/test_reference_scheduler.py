from __future__ import annotations

from pathlib import Path

import pytest
from reference.replay import replay
from reference.trace import load_case

RECORDED = Path(__file__).resolve().parents[2] / "shared" / "data" / "vllm_scheduler"
TRACES = sorted(RECORDED.glob("dev_*.jsonl")) + sorted(RECORDED.glob("async/dev_*.jsonl"))


@pytest.mark.skipif(not TRACES, reason="the recorded decisions of vLLM's scheduler are not here")
@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_replays_the_recorded_decisions_of_vllm_without_one_difference(path: Path) -> None:
    case = load_case(path)
    assert replay(case, check_every=1 if len(case.records) < 1000 else 50) is None
