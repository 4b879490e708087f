"""The scenario file: what is read, what is refused and how, what is written back."""

import copy
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import InputError
from sim.scenario import Assertion, Scenario
from sim.scenario.fields import duration_text
from sim.scenario.schema import schema, schema_text
from sim.units import parse

ROOT = Path(__file__).resolve().parents[1]

SMALLEST = """
model: llama-3.1-8b
cluster: {topology: dgx-h100}
workload:
  arrivals: {kind: closed_loop, concurrency: 64}
  lengths: {kind: fixed, input_tokens: 1536, output_tokens: 512}
"""

FULL = """
# yaml-language-server: $schema=../schema/scenario.schema.json
name: llama3-70b-2xh100-64way
description: Sixty-four users at once on two H100s.
model: llama-3.1-70b
precision: {weights: bf16, kv_cache: bf16}
cluster: {topology: dgx-h100, nodes: 2, gpu: h200-sxm, oversubscription: 2, nic_bandwidth: 100 Gbit/s}
deployment:
  tensor_parallel_size: 2
  pipeline_parallel_size: 1
  data_parallel_size: 1
  enable_expert_parallel: false
  placement: [n0.gpu0, n1.gpu0]
engine:
  preset: vllm
  scheduler: vllm
  max_num_seqs: 256
  max_num_batched_tokens: 8192
  enable_chunked_prefill: true
  enable_prefix_caching: false
  gpu_memory_utilization: 0.95
  max_model_len: null
  block_size: 16
  num_gpu_blocks_override: null
  version: null
  async_scheduling: null
  scheduler_reserve_full_isl: true
  watermark: 0.0
  long_prefill_token_threshold: 0
  on_kv_full: preempt
workload:
  arrivals: {kind: closed_loop, concurrency: 64, think_time: 2 s, ramp: 500 ms}
  lengths: {kind: fixed, input_tokens: 1536, output_tokens: 512}
  num_requests: 512
  time_limit: 1 h
  warmup_requests: 0
  seed: 0
costs: roofline
granularity: leap
fusion: {attention: true, elementwise: true}
slo: {ttft: 2 s, tpot: 50 ms}
assert: ["ttft.p99 < 10 min"]
"""


def load(text: str, tmp_path: Path, **overrides: object) -> Scenario:
    path = tmp_path / "case.yaml"
    path.write_text(text)
    return Scenario.load(path, overrides)


def smallest(**changes: object) -> dict:
    data = yaml.safe_load(SMALLEST)
    for key, value in changes.items():
        section = data
        *parents, last = key.split("__")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return data


def refused(data: object) -> InputError:
    with pytest.raises(InputError) as caught:
        Scenario.from_dict(data, "a.yaml")
    assert "pydantic" not in str(caught.value)
    assert caught.value.exit_code == 2
    return caught.value


def schema_accepts(data: object) -> bool:
    """What an editor with the committed schema thinks of a file."""
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft7Validator.check_schema(schema())
    return jsonschema.Draft7Validator(schema()).is_valid(data)


def test_the_smallest_file_has_three_keys_and_the_rest_is_vllms_default(tmp_path):
    scenario = load(SMALLEST, tmp_path)
    assert scenario.name == "case"
    assert scenario.engine.max_num_seqs == 256
    assert scenario.engine.max_num_batched_tokens == 8192
    assert scenario.engine.gpu_memory_utilization == 0.95
    assert scenario.engine.async_scheduling is None
    assert scenario.deployment.tensor_parallel_size == 1
    assert scenario.precision.weights is None
    assert scenario.cluster.parameters == {}
    assert scenario.slo is None
    assert scenario.assertions == []
    assert (scenario.costs, scenario.granularity) == ("roofline", "leap")


def test_units_become_si_floats_and_the_attribute_names_the_unit(tmp_path):
    scenario = load(FULL, tmp_path)
    assert scenario.slo.limits_s == {"ttft": 2.0, "tpot": 0.05}
    assert scenario.workload.time_limit_s == 3600.0
    assert scenario.workload.arrivals.think_time_s == 2.0
    assert scenario.workload.arrivals.ramp_s == 0.5
    assert scenario.assertions == [Assertion("ttft.p99 < 10 min", "ttft.p99", "<", 600.0)]
    assert scenario.cluster.parameters == {"nodes": 2, "oversubscription": 2, "nic_bandwidth": "100 Gbit/s"}
    assert scenario.deployment.placement == ["n0.gpu0", "n1.gpu0"]


@pytest.mark.parametrize("text", [SMALLEST, FULL])
def test_what_is_written_reads_back_as_the_same_scenario(text, tmp_path):
    scenario = load(text, tmp_path)
    written = scenario.to_dict()
    again = Scenario.from_dict(json.loads(json.dumps(written)))
    assert again == scenario
    assert again.to_dict() == written
    assert again.content_hash() == scenario.content_hash()
    assert schema_accepts(written)


@settings(derandomize=True, deadline=None)
@given(st.floats(min_value=0, max_value=1e12))
def test_a_duration_is_written_without_loss(seconds):
    assert parse(duration_text(seconds), "s") == seconds


def test_overrides_set_values_by_key_path(tmp_path):
    scenario = load(SMALLEST, tmp_path, **{"deployment.tensor_parallel_size": 4, "slo.ttft": "2 s"})
    assert scenario.deployment.tensor_parallel_size == 4
    assert scenario.slo.ttft_s == 2.0
    wider = scenario.with_overrides({"deployment.tensor_parallel_size": 8, "workload.arrivals": {"kind": "burst"}})
    assert wider.deployment.tensor_parallel_size == 8
    assert wider.workload.arrivals.kind == "burst"
    assert scenario.deployment.tensor_parallel_size == 4
    assert wider.content_hash() != scenario.content_hash()
    with pytest.raises(InputError, match="tensor_paralel_size: is an unknown key"):
        scenario.with_overrides({"deployment.tensor_paralel_size": 4})
    with pytest.raises(InputError, match="'model' is a value and has no keys below it"):
        scenario.with_overrides({"model.name": "x"})


@pytest.mark.parametrize(
    ("changes", "where", "problem", "hint"),
    [
        ({"engine__max_num_sequs": 4}, "engine.max_num_sequs", "is an unknown key", "did you mean 'max_num_seqs'?"),
        ({"modle": "x"}, "modle", "is an unknown key", "did you mean 'model'?"),
        ({"slo__ttft": 2}, "slo.ttft", "got 2, a number without a unit", "such as 2 us, 50 ms"),
        ({"slo__ttft": "2 GB"}, "slo.ttft", "got '2 GB', a quantity of another kind", "such as 2 us, 50 ms"),
        ({"slo__ttft": "-2 s"}, "slo.ttft", "got '-2 s'; a time here is longer than zero", ""),
        ({"workload__lengths__input_tokens": -5}, "workload.lengths.input_tokens", "got -5", "at least 1"),
        ({"workload__lengths__input_tokens": 1.5}, "workload.lengths.input_tokens", "got 1.5", "whole number"),
        ({"workload__lengths__kind": "gaussian"}, "workload.lengths", "unknown kind 'gaussian'", "allowed: empirical"),
        ({"workload__lengths__kind": "unifrom"}, "workload.lengths", "unknown kind 'unifrom'", "'uniform'?"),
        ({"workload__arrivals": {"concurrency": 4}}, "workload.arrivals", "has no `kind`", "allowed kinds: burst"),
        ({"workload__arrivals": "burst"}, "workload.arrivals", 'got "burst"', "kind: burst | closed_loop"),
        ({"workload__arrivals__concurency": 4}, "workload.arrivals.concurency", "unknown key", "'concurrency'?"),
        ({"workload__arrivals__concurrency": "64"}, "workload.arrivals.concurrency", 'got "64"', "a whole number"),
        ({"workload__arrivals__concurrency": True}, "workload.arrivals.concurrency", "got true", "a whole number"),
        ({"workload__lengths": None}, "workload", "lengths is missing", "lengths: {kind: fixed"),
        ({"workload__num_requests": 0}, "workload.num_requests", "got 0", "at least 1"),
        ({"workload__num_requests": 10**12}, "workload.num_requests", "got 1000000000000", "at most 100,000,000"),
        ({"workload__time_limit": "soon"}, "workload.time_limit", "'soon', which is not a number", "such as"),
        ({"engine__preset": "vlm"}, "engine.preset", 'got "vlm"', "did you mean 'vllm'?"),
        ({"engine__scheduler": "orka"}, "engine.scheduler", "got 'orka'", "did you mean 'orca'? allowed: chunked"),
        ({"engine__gpu_memory_utilization": 1.5}, "engine.gpu_memory_utilization", "got 1.5", "at most 1"),
        ({"engine__max_model_len": "long"}, "engine.max_model_len", "got 'long'", "config, or null"),
        ({"engine__max_num_batched_tokens": 128}, "engine", "(128) is less than max_num_seqs (256)", "vLLM"),
        ({"engine": [1]}, "engine", "got [1]", "write keys and values here: preset, scheduler"),
        ({"engine__enable_chunked_prefill": "no"}, "engine.enable_chunked_prefill", 'got "no"', "true or false"),
        ({"precision__weights": "fp7"}, "precision.weights", 'got "fp7"', "did you mean 'fp8'?"),
        ({"deployment__placement": "packed"}, "deployment.placement", "got 'packed'", "did you mean 'pack'?"),
        ({"deployment__placement": ["a", "a"]}, "deployment.placement", "names a GPU twice", "of its own"),
        ({"cluster": {"nodes": 2}}, "cluster.topology", "is missing", "needed here: topology"),
        ({"cluster": "dgx-h100"}, "cluster", 'got "dgx-h100"', "write keys and values here: topology, nodes"),
        ({"model": 70}, "model", "got 70", "expected text"),
        ({"assert": ["ttft < 2 s"]}, "assert.0", "got ttft without a statistic", "such as p99"),
        ({"assert": ["ttft.p99 < 2"]}, "assert.0", "got '2', which is not a number and a unit", "such as"),
        ({"assert": ["tftt.p99 < 2 s"]}, "assert.0", "got the unknown metric 'tftt.p99'", "did you mean 'ttft.p99'?"),
        ({"assert": ["fast"]}, "assert.0", "got 'fast', which is not a comparison", "ttft.p99 < 10 min"),
        ({"assert": "ttft.p99 < 2 s"}, "assert", 'got "ttft.p99 < 2 s"', "expected a list"),
    ],
)
def test_one_mistake_gives_one_message(changes, where, problem, hint):
    data = smallest(**changes)
    if "modle" in changes:
        del data["model"]
    error = refused(data)
    assert error.where == f"a.yaml: {where}"
    assert problem in error.problem
    assert hint in error.hint


def test_several_mistakes_are_all_listed():
    error = refused(smallest(engine__blocksize=16, slo__ttft=2))
    assert error.where == "a.yaml"
    assert error.problem.startswith("2 mistakes\n")
    assert "engine.blocksize: is an unknown key; did you mean 'block_size'?" in error.problem
    assert "slo.ttft: got 2, a number without a unit" in error.problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "case.yaml: is empty"),
        ("# only a comment\n", "case.yaml: is empty"),
        ("- a\n- b\n", "case.yaml: holds a list, not keys and values"),
        ("model: [a\n", "case.yaml:2: is not valid YAML"),
        ("model: a\nmodel: b\n", "case.yaml:2: is not valid YAML: the key 'model' twice"),
        ("model: a\n\tcluster: b\n", "case.yaml:2: is not valid YAML"),
    ],
)
def test_a_file_that_is_no_scenario_names_its_line(text, message, tmp_path):
    with pytest.raises(InputError) as caught:
        load(text, tmp_path)
    assert message in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        Scenario.load(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        Scenario.load(tmp_path / "binary.yaml")


def test_a_rate_may_be_written_with_an_exponent_but_never_be_infinite(tmp_path):
    text = SMALLEST.replace("{kind: closed_loop, concurrency: 64}", "{kind: poisson, request_rate: 1e1}")
    assert load(text, tmp_path).workload.arrivals.request_rate == 10.0
    with pytest.raises(InputError, match="expected a finite number"):
        load(text.replace("1e1", ".inf"), tmp_path)


def test_own_files_are_found_beside_the_scenario_and_their_content_is_hashed(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    trace = folder / "my.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,5,5\n")
    data = smallest(model="./config.json", workload={"arrivals": {"kind": "trace", "path": "my.csv"}})
    (folder / "s.yaml").write_text(yaml.safe_dump(data))
    scenario = Scenario.load(folder / "s.yaml")
    assert scenario.workload.arrivals.path == str(trace)
    assert scenario.model == str(folder / "config.json")
    assert scenario.cluster.topology == "dgx-h100"
    assert len(scenario.build_workload()) == 1
    moved = scenario.to_dict(relative_to=tmp_path)
    assert moved["workload"]["arrivals"]["path"] == "a/my.csv"
    assert Scenario.from_dict(moved, base_dir=tmp_path) == scenario
    assert Scenario.from_dict(scenario.to_dict(relative_to=folder), base_dir=folder) == scenario
    before = scenario.content_hash()
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,5,6\n")
    assert scenario.content_hash() != before


def test_the_hash_does_not_depend_on_where_a_file_stands(tmp_path):
    hashes = set()
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "my.csv").write_text("arrival_s,input_tokens,output_tokens\n0,5,5\n")
        data = smallest(workload={"arrivals": {"kind": "trace", "path": "my.csv"}})
        hashes.add(Scenario.from_dict(data, base_dir=tmp_path / place).content_hash())
    assert len(hashes) == 1


def test_a_matrix_stands_for_its_product(tmp_path):
    (tmp_path / "base.yaml").write_text(SMALLEST)
    text = """
    name: grid
    base: base.yaml
    matrix:
      deployment.tensor_parallel_size: [1, 2]
      workload.lengths:
        - {kind: fixed, input_tokens: 512, output_tokens: 128}
        - {kind: fixed, input_tokens: 2048, output_tokens: 128}
        - {kind: fixed, input_tokens: 8192, output_tokens: 128}
    """
    (tmp_path / "grid.yaml").write_text(text)
    cells = Scenario.load_all(tmp_path / "grid.yaml")
    assert len(cells) == 6
    assert cells[0].name == "grid-tensor_parallel_size=1-lengths=1"
    assert cells[5].name == "grid-tensor_parallel_size=2-lengths=3"
    assert [c.deployment.tensor_parallel_size for c in cells] == [1, 1, 1, 2, 2, 2]
    assert [c.workload.lengths.input_tokens for c in cells[:3]] == [512, 2048, 8192]
    assert len({c.content_hash() for c in cells}) == 6
    assert schema_accepts(yaml.safe_load(text))
    with pytest.raises(InputError, match="stands for 6 scenarios"):
        Scenario.load(tmp_path / "grid.yaml")
    assert len(Scenario.load_all(tmp_path / "base.yaml")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: absent.yaml", "cannot be read"),
        ("base: grid.yaml", "is its own base"),
        ("base: 5", "base: got 5"),
        ("base: base.yaml\nmatrix: {seed: 1}", "matrix.seed: got 1"),
        ("base: base.yaml\nmatrix: {seed: []}", "matrix.seed: got []"),
        ("base: base.yaml\nmatrix: {workload.sed: [1, 2]}", "workload.sed: is an unknown key"),
        ("base: base.yaml\nmatrx: {}", "did you mean 'matrix'?"),
        ("matrix: {workload.seed: [1]}", "base: got None"),
    ],
)
def test_a_wrong_matrix_is_refused(text, message, tmp_path):
    (tmp_path / "base.yaml").write_text(SMALLEST)
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        Scenario.load_all(tmp_path / "grid.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "metric", "operator", "value"),
    [
        ("ttft.p99 < 10 min", "ttft.p99", "<", 600.0),
        ("tpot.mean<=50ms", "tpot.mean", "<=", 0.05),
        ("e2el.p99.9 < 30 s", "e2el.p99.9", "<", 30.0),
        ("output_throughput >= 1_000 tok/s", "output_throughput", ">=", 1000.0),
        ("goodput > 1.5 req/s", "request_goodput", ">", 1.5),
        ("kv_usage.max <= 95 %", "kv_usage.max", "<=", 0.95),
        ("preemptions == 0", "preemptions", "==", 0.0),
        ("slo_attainment >= 0.99", "slo_attainment", ">=", 0.99),
    ],
)
def test_assertions_are_read_in_si(text, metric, operator, value):
    assert Assertion.parse(text) == Assertion(text, metric, operator, pytest.approx(value))


def test_the_committed_schema_is_the_one_of_the_code():
    committed = (ROOT / "schema" / "scenario.schema.json").read_text()
    assert committed == schema_text(), "write it again: python -c 'from sim.scenario.schema import ...'"


def test_every_key_of_the_schema_has_a_description():
    definitions = schema()["definitions"]
    bare = [
        f"{section}.{key}"
        for section, definition in definitions.items()
        for key, field in definition["properties"].items()
        if key != "kind" and not field.get("description")
    ]
    assert bare == []


@pytest.mark.parametrize("change", ["engine__blocksize", "slo__ttft", "workload__lengths__kind"])
def test_the_schema_refuses_what_the_loader_refuses(change):
    data = smallest(**{change: 5})
    refused(data)
    assert not schema_accepts(data)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.data())
def test_no_damage_to_a_file_gets_past_as_a_traceback(data):
    """Whatever value stands at whatever key, the answer is a scenario or an InputError."""
    damaged = copy.deepcopy(yaml.safe_load(FULL))
    section = damaged
    while True:
        key = data.draw(st.sampled_from(sorted(section)))
        if not isinstance(section[key], dict) or data.draw(st.booleans()):
            break
        section = section[key]
    junk = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.just([]),
        st.just({}),
        st.just([[]]),
    )
    section[key] = data.draw(junk)
    try:
        scenario = Scenario.from_dict(damaged, "a.yaml")
    except InputError as error:
        message = str(error)
    else:
        message = "a.yaml"
        assert Scenario.from_dict(scenario.to_dict()) == scenario
    assert message.startswith("a.yaml")
