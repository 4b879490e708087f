"""What a scenario's calibration file changes: the engine's own times, kernels, and the links of the cluster."""

from __future__ import annotations

from dataclasses import replace

from sim.cost.preset import EnginePreset, preset_for
from sim.errors import InputError
from sim.hardware.topology import Topology, load_topology
from sim.scenario import Scenario
from sim.scenario.calibration import Calibration, load_calibration


def calibration_of(scenario: Scenario) -> Calibration | None:
    """The calibration file that a scenario names, or None.

    Raises:
        InputError: it cannot be read, or calibrates another engine than the scenario's.
    """
    engine, where = scenario.engine, f"{scenario.where}: engine.calibration"
    if engine.calibration is None:
        return None
    found = load_calibration(engine.calibration, where)
    if engine.preset == "ideal":
        raise InputError(where, "got a file with the preset ideal, which has no times of its own", "leave one out")
    if found.engine is not None and found.engine.preset != engine.preset:
        hint = f"use engine.preset: {found.engine.preset}, or a file of {engine.preset}"
        raise InputError(where, f"got a file of {found.engine.preset} with the preset {engine.preset}", hint)
    return found


def preset_of(scenario: Scenario, calibration: Calibration | None) -> EnginePreset:
    """The engine that a scenario asks for, its own times as they were calibrated."""
    engine = scenario.engine
    factors = calibration.engine.by_field if calibration and calibration.engine else {}
    preset = preset_for(engine.preset, engine.version, engine.api_server, engine.cuda_graphs, factors)
    return replace(preset, source=calibration.origin) if calibration is not None and factors else preset


def topology_of(scenario: Scenario) -> Topology:
    """The scenario's cluster, its links as they were calibrated."""
    cluster, calibration = scenario.cluster, calibration_of(scenario)
    found = load_topology(cluster.topology, cluster.parameters, cluster.gpu)
    if calibration is None or not calibration.links:
        return found
    return replace(found, calibration={**found.calibration, **calibration.link_specs})
