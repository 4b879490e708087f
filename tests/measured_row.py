"""Rows of made-up measurements, and the cases they become."""

from sim.studies.measured_rows import MeasuredRow
from sim.studies.measured_scenarios import Case, cases_of


def row(**changes: object) -> MeasuredRow:
    values: dict[str, object] = {
        "id": "mine-0001", "kind": "e2e", "model": "meta-llama/Llama-3.1-8B-Instruct", "precision": "BF16",
        "gpu": "H100-SXM-80GB", "gpus": 1, "nodes": 1, "tensor": "1", "pipeline": "1", "expert": "1",
        "engine": "vllm 0.24.0", "isl": "1024", "osl": "128", "load": "concurrency=8", "metric": "tpot", "value": 8.0,
        "unit": "ms", "conditions": "",
    }  # fmt: skip
    return MeasuredRow(**{**values, **changes})  # type: ignore[arg-type]


def case(**changes: object) -> Case:
    return cases_of([row(**changes)])[0]
