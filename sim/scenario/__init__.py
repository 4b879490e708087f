"""The file a user writes, validated."""

from sim.scenario.assertion import Assertion
from sim.scenario.deployment import Cluster, Deployment, Engine, Fusion, Precision, Slo
from sim.scenario.scenario import Scenario
from sim.scenario.schema import schema_text
from sim.scenario.workload_spec import WorkloadSpec

__all__ = [
    "Assertion",
    "Cluster",
    "Deployment",
    "Engine",
    "Fusion",
    "Precision",
    "Scenario",
    "Slo",
    "WorkloadSpec",
    "schema_text",
]
