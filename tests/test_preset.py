"""Engine presets: what differs between a server and a library, and between versions."""

from dataclasses import fields

import numpy as np
import pytest

from sim.cost.preset import PRESETS, padded, preset_for, vllm_graph_sizes


@pytest.mark.parametrize("name", ["vllm", "trtllm", "sglang"])
def test_every_time_is_one_that_a_profile_could_show(name: str):
    preset = PRESETS[name]
    times = {field.name: getattr(preset, field.name) for field in fields(preset) if field.name.endswith("_s")}
    assert all(0 <= value < 0.1 for value in times.values())
    assert preset.layer_s < 50e-6
    assert 0.5 < preset.sustained_clock <= 1.0
    assert preset.source


def test_ideal_adds_nothing():
    preset = preset_for("ideal")
    assert all(getattr(preset, field.name) == 0 for field in fields(preset) if field.name.endswith("_s"))
    assert preset.sustained_clock == 1.0


def test_a_library_pays_neither_http_nor_streaming():
    served, called = preset_for("trtllm"), preset_for("trtllm", api_server=False)
    assert called.entry_s == called.exit_s == 0.0
    assert served.entry_s > 0
    assert served.host_request_s == pytest.approx(called.host_request_s + PRESETS["trtllm"].stream_s)


def test_vllm_schedules_asynchronously_since_0_14():
    assert not preset_for("vllm", "0.12.0").async_scheduling
    assert preset_for("vllm", "v0.15.1").async_scheduling
    assert preset_for("vllm").async_scheduling
    assert preset_for("vllm", "nightly, version unknown").async_scheduling


def test_batches_are_padded_to_the_next_captured_graph():
    sizes = vllm_graph_sizes()
    tokens = np.array([1, 3, 9, 256, 257, 512, 513, 8192])
    assert padded(tokens, sizes).tolist() == [1, 4, 16, 256, 272, 512, 513, 8192]
    assert padded(tokens, ()).tolist() == tokens.tolist()
