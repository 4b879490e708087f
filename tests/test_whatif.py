"""Half and twice of every resource, under the same random numbers."""

from __future__ import annotations

import pytest

from sim import Scenario
from sim.engine.scaling import Scaling
from sim.studies.whatif import METRICS, RESOURCES, Effect, WhatIf, table, tornado, whatif

SMALL = {
    "name": "small",
    "model": "llama-3.1-8b",
    "cluster": {"topology": "dgx-h100", "nodes": 2},
    "deployment": {"tensor_parallel_size": 2, "placement": ["n0.g0", "n1.g0"]},
    "workload": {
        "arrivals": {"kind": "poisson", "request_rate": 4.0},
        "lengths": {"kind": "fixed", "input_tokens": 512, "output_tokens": 64},
        "num_requests": 40,
    },
}


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return Scenario.from_dict(SMALL)


def metrics(scenario: Scenario, **factors: float) -> dict[str, float]:
    from sim import simulate

    return simulate(scenario, scaling=Scaling(**factors)).summary


def test_factors_of_one_change_nothing(scenario: Scenario) -> None:
    from sim import simulate

    plain, scaled = simulate(scenario).summary, metrics(scenario)
    assert all(plain[metric] == scaled[metric] for metric in METRICS)


def test_more_bandwidth_never_slows_a_token_and_less_never_speeds_it_up(scenario: Scenario) -> None:
    base = metrics(scenario)["mean_tpot_ms"]
    for name in ("hbm_bandwidth", "flops", "link_bandwidth", "network_bandwidth"):
        assert metrics(scenario, **{name: 2.0})["mean_tpot_ms"] <= base * (1 + 1e-9)
        assert metrics(scenario, **{name: 0.5})["mean_tpot_ms"] >= base * (1 - 1e-9)
    assert metrics(scenario, network_latency=2.0)["mean_tpot_ms"] > base
    assert metrics(scenario, host_overhead=2.0)["mean_ttft_ms"] > metrics(scenario)["mean_ttft_ms"]


def test_halving_the_kv_memory_halves_the_blocks(scenario: Scenario) -> None:
    from sim.simulate import plan_memory

    whole = plan_memory(scenario)
    assert Scaling(kv_memory=0.5).memory(whole).usable_blocks == whole.usable_blocks // 2


def test_the_tornado_has_every_resource_and_names_the_strongest_first(scenario: Scenario) -> None:
    found = whatif(scenario)
    swings = [max(effect.swing(metric, found.base) for metric in METRICS) for effect in found.effects]
    assert {effect.resource for effect in found.effects} == set(RESOURCES)
    assert swings == sorted(swings, reverse=True)
    assert len(table(found).splitlines()) == 2 + 2 * len(RESOURCES)
    assert len(tornado(found).axes) == 3


def test_the_tornado_says_what_has_no_effect_and_what_does_not_fit() -> None:
    base = dict.fromkeys(METRICS, 100.0)
    more, less = dict.fromkeys(METRICS, 120.0), dict.fromkeys(METRICS, 70.0)
    effects = [Effect("KV memory", None, less), Effect("FLOPs", more, less), Effect("network latency", base, base),
               Effect("host overhead", less, less)]  # fmt: skip
    figure = tornado(WhatIf("made up", base, effects))
    for axes in figure.axes:
        said = [text.get_text() for text in axes.texts]
        assert sorted(said) == sorted(["half does not fit", "-30.0", "+20.0", "-30.0", "no effect", "-30.0", "-30.0"])
    same_side = [bar for bar in figure.axes[0].patches if bar.get_height() == pytest.approx(0.3)]
    assert len(same_side) == 2  # both to the left: neither hides the other
    assert same_side[0].get_y() != same_side[1].get_y()
