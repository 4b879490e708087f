"""Decode attention on vector units: what compiled engines did before their kernels put grouped heads on tensor cores."""

import numpy as np
import pytest

from sim.cost.preset import PRESETS, preset_for
from sim.cost.roofline import Roofline
from sim.cost.vector_attention import VectorAttention, VectorKernels
from sim.engine.deployment import Deployment
from sim.hardware.gpu import load_gpu
from sim.scenario import Scenario

H200 = load_gpu("h200-sxm")
ROOFLINE = Roofline(H200, fp8_attention=0.35)
MANY = np.array([64.0, 512.0])


def slope_s(vector: VectorAttention, heads: int, kv_heads: int, dtype: str = "fp8"):
    time = VectorKernels(ROOFLINE, H200, vector).decode_attention(MANY, heads, kv_heads, 128, dtype)
    return time.memory_s_per_token + time.compute_s_per_token


def plain_s(heads: int, kv_heads: int, dtype: str = "fp8"):
    time = ROOFLINE.decode_attention(MANY, heads, kv_heads, 128, dtype)
    return time.memory_s_per_token + time.compute_s_per_token


def test_a_token_takes_its_elements_for_every_query_head_over_what_all_sms_get_through():
    """32 heads of 128 elements, keys and values: 8192 elements, 12 a cycle on each of 132 SMs."""
    one = 8192 / (12 * H200.sm_count * H200.boost_hz)
    assert slope_s(VectorAttention(12.0, None), 32, 32) == pytest.approx(one)
    # heads that share keys and values work as long, though there is a quarter of them to read
    assert slope_s(VectorAttention(12.0, (8,)), 32, 8) == pytest.approx(one)


def test_groups_with_a_kernel_of_their_own_stay_on_tensor_cores():
    assert slope_s(VectorAttention(12.0, (8,)), 64, 8) == pytest.approx(plain_s(64, 8))
    assert slope_s(VectorAttention(12.0, None), 32, 8) == pytest.approx(plain_s(32, 8))


def test_vector_units_are_never_the_faster_way():
    assert (slope_s(VectorAttention(1e6, ()), 32, 32) == plain_s(32, 32)).all()


def test_everything_else_is_the_backends():
    kernels = VectorKernels(ROOFLINE, H200, VectorAttention(12.0, None))
    assert kernels.gemm(64.0, 4096, 4096, "fp8") == ROOFLINE.gemm(64.0, 4096, 4096, "fp8")
    assert kernels.gpu is H200


def test_compiled_engines_learned_to_share_heads_with_0_11():
    for version, grouped in (("v0.9.0", (8,)), ("0.10.0", (8,)), ("v0.11.0", None), (None, None)):
        vector = preset_for("trtllm-cpp", version).vector_attention
        assert vector is not None
        assert vector.grouped == grouped
    assert PRESETS["trtllm"].vector_attention is None
    assert preset_for("vllm", "0.10.0").vector_attention is None


def deployed(model: str, **engine: object) -> Deployment:
    workload = {"arrivals": {"kind": "burst"}, "lengths": {"kind": "fixed", "input_tokens": 1, "output_tokens": 1}}
    scenario = {"model": model, "cluster": {"topology": "dgx-h100"}, "engine": engine, "workload": workload}
    return Deployment.of(Scenario.from_dict(scenario))


def test_compiled_engines_ignore_sliding_windows():
    windows = {
        preset: {layer.attention.window for layer in deployed("mistral-7b", preset=preset).model.layers}
        for preset in ("vllm", "trtllm-cpp")
    }
    assert windows == {"vllm": {4096}, "trtllm-cpp": {None}}


def test_the_version_of_another_engine_says_nothing_about_vllms_scheduler():
    assert deployed("llama-3-8b", preset="trtllm-cpp", version="0.10.0").scenario.engine.rules_version is None
    assert deployed("llama-3-8b", preset="vllm", version="0.14.0").scenario.engine.rules_version == "0.14.0"
