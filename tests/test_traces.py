"""Recorded requests: every format, what is refused, how a trace is cut, scaled and described."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sim.errors import InputError
from sim.scenario import Scenario
from sim.workload.randomness import generator
from sim.workload.trace_summary import summary, summary_of
from sim.workload.traces import read_trace, scale_rate

TRACES = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"
needs_data = pytest.mark.skipif(not TRACES.exists(), reason="the public traces are not here")

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319601,3180,8
2023-11-16 23:59:59.9999999,110,27"""
BURSTGPT_1 = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
BURSTGPT_2 = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
100.0,17-22,43,GPT-4,906,446,1352,Conversation log
161.5,d5-98,2,ChatGPT,36,29,65,Conversation log
"""
PLAIN = "id,arrival_s,input_tokens,output_tokens\n1,0.5,10,1\n2,0.25,20,2\n3,2.5,30,3\n"


def write(tmp_path: Path, text: str, name: str = "trace.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def mooncake(rows: list[tuple[float, int, int]], size: int = 512) -> str:
    lines = [
        {"timestamp": t, "input_length": i, "output_length": o, "hash_ids": list(range(-(-i // size)))}
        for t, i, o in rows
    ]
    return "\n".join(json.dumps(line) for line in lines)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("zone", ["", "+00:00"])
def test_azure_times_keep_all_seven_digits(tmp_path, newline, zone):
    lines = AZURE.split("\n")
    text = newline.join([lines[0], *(line.replace(",", zone + ",", 1) for line in lines[1:])])
    trace = read_trace(write(tmp_path, text))
    assert trace.format == "azure"
    assert trace.arrival_s.tolist() == [0.0, 0.0520001, 20576.0200399]
    assert trace.input_tokens.tolist() == [4808, 3180, 110]
    assert trace.output_tokens.tolist() == [10, 8, 27]


def test_burstgpt_is_read_by_header_and_failures_are_counted(tmp_path):
    old = read_trace(write(tmp_path, BURSTGPT_1))
    assert (old.format, old.dropped) == ("burstgpt", 1)
    assert old.arrival_s.tolist() == [0.0, 113.0]
    assert old.output_tokens.tolist() == [18, 276]
    new = read_trace(write(tmp_path, BURSTGPT_2))
    assert new.arrival_s.tolist() == [0.0, 61.5]
    assert new.input_tokens.tolist() == [906, 36]


def test_a_plain_table_is_sorted_by_time(tmp_path):
    trace = read_trace(write(tmp_path, PLAIN))
    assert trace.format == "csv"
    assert trace.arrival_s.tolist() == [0.0, 0.25, 2.25]
    assert trace.input_tokens.tolist() == [20, 10, 30]


def test_parquet_is_the_same_table(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = {"arrival_s": [0.5, 0.25, 2.5], "input_tokens": [10, 20, 30], "output_tokens": [1, 2, 3]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    trace = read_trace(tmp_path / "t.parquet")
    assert trace.arrival_s.tolist() == [0.0, 0.25, 2.25]
    pq.write_table(pa.table({**table, "input_tokens": [10, None, 30]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t.parquet: row 2: got \(0.25, None, 2\)"):
        read_trace(tmp_path / "t.parquet")
    pq.write_table(pa.table({"arrival_s": [0.5]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="has no column 'input_tokens'"):
        read_trace(tmp_path / "t.parquet")


def test_mooncake_counts_milliseconds_and_vllm_seconds(tmp_path):
    rows = [(0, 600, 5), (1500, 1025, 6)]
    trace = read_trace(write(tmp_path, mooncake(rows), "m.jsonl"))
    assert (trace.format, trace.arrival_s.tolist()) == ("mooncake", [0.0, 1.5])
    assert [trace.prompts.ids(r).tolist() for r in (0, 1)] == [[0, 1], [0, 1, 2]]
    timed = read_trace(write(tmp_path, mooncake(rows, size=16), "v.jsonl"))
    assert (timed.format, timed.arrival_s.tolist()) == ("timed_trace", [0.0, 1500.0])
    assert timed.prompts.hash_block_size == 16
    with pytest.raises(InputError, match="name its format: mooncake"):
        read_trace(write(tmp_path, '{"timestamp": 0, "input_length": 5, "output_length": 5}', "n.jsonl"))
    bare = read_trace(tmp_path / "n.jsonl", "mooncake")
    assert bare.prompts is None


def test_servegen_clients_are_superposed_at_their_rates(tmp_path):
    for client, rate in ((1, 5), (2, 20)):
        windows = f"0,{rate},1.0,Gamma,1.0,0.2\n600,0,0,,0,0\n1200,{rate},2.0,Weibull,0.6,0.1\n"
        write(tmp_path, windows, f"chunk-{client}-trace.csv")
        lengths = {"0": {"input_tokens": f"{{{client}: 1.0}}", "output_tokens": "{7: 0.5, 9: 0.5}"}}
        write(tmp_path, json.dumps(lengths), f"chunk-{client}-dataset.json")
    trace = read_trace(tmp_path, random=generator(0, "trace"))
    counts = np.histogram(trace.arrival_s, [0, 600, 1200, 1800])[0]
    assert counts[0] == pytest.approx(15_000, abs=500)
    assert counts[1] == 0
    assert counts[2] == pytest.approx(15_000, rel=0.1)
    assert (trace.input_tokens == 2).mean() == pytest.approx(0.8, abs=0.02)
    assert set(trace.output_tokens) == {7, 9}
    one = read_trace(tmp_path / "chunk-1-trace.csv", start_s=1200, end_s=1300, random=generator(0, "trace"))
    assert len(one) == pytest.approx(500, rel=0.4)
    assert 0 <= one.arrival_s[0] < one.arrival_s[-1] < 100
    assert len(read_trace(tmp_path, max_requests=10, random=generator(0, "trace"))) == 10
    with pytest.raises(InputError, match="no request in the time asked for"):
        read_trace(tmp_path, start_s=600, end_s=1200)


def test_servegen_strings_are_data_and_never_code(tmp_path):
    write(tmp_path, "0,5,1.0,Gamma,1.0,0.2\n", "chunk-1-trace.csv")
    write(tmp_path, json.dumps({"0": {"input_tokens": "exit()", "output_tokens": "{1: 1}"}}), "chunk-1-dataset.json")
    with pytest.raises(InputError, match=r"0.input_tokens: is no distribution"):
        read_trace(tmp_path)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "t.csv", "t.csv: is empty"),
        ("arrival_s,input_tokens,output_tokens\n", "t.csv", "t.csv: holds no request"),
        ("a,b,c\n1,2,3\n", "t.csv", "t.csv:1: got the header 'a,b,c', which no known format has"),
        (PLAIN + "4,1.0,x,3\n", "t.csv", "t.csv:5: got 'x' for input_tokens"),
        (PLAIN + "4,1.0,-3,3\n", "t.csv", "t.csv:5: got '-3' for input_tokens"),
        (PLAIN + "4,1.0,3\n", "t.csv", "t.csv:5: has 3 values where the header has 4: '4,1.0,3'"),
        (PLAIN + "4,soon,3,3\n", "t.csv", "t.csv:5: got 'soon' for the time"),
        (PLAIN + "4,nan,3,3\n", "t.csv", "t.csv:5: got 'nan' for the time"),
        (PLAIN.replace("2,0.25,20,2", ""), "t.csv", "t.csv:3: has 1 values"),
        (AZURE + "\n2023-11-17,1,1", "t.csv", "t.csv:5: got '2023-11-17' for the time"),
        (AZURE + "\nnow,1,1", "t.csv", "t.csv:5: got 'now' for the time"),
        (AZURE + "\n2023-13-16 18:17:03.9,1,1", "t.csv", "t.csv:5: got '2023-13-16 18:17:03.9' for the time"),
        (AZURE + "\n2023-11-16 18:17:03.9,1,", "t.csv", "t.csv:5: got '' for GeneratedTokens"),
        ("\n".join(BURSTGPT_1.split("\n")[:3:2]), "t.csv", "holds no request that succeeded (1 failed)"),
        (mooncake([(0, 600, 5)]) + "\n{", "t.jsonl", "t.jsonl:2: is not JSON"),
        (mooncake([(0, 600, 5)]) + "\n[]", "t.jsonl", "t.jsonl:2: is not a JSON object"),
        (mooncake([(0, 600, 5)]) + '\n{"timestamp": "x"}', "t.jsonl", "t.jsonl:2: got 'x' for timestamp"),
        (mooncake([(0, 600, 5)]) + '\n{"timestamp": 1}', "t.jsonl", "t.jsonl:2: got None for input_length"),
        (mooncake([(0, 600, 5)]) + "\n" + mooncake([(0, 600, 5)], 16), "t.jsonl", "t.jsonl:2: has 38 hash_ids for 600"),
        ("0,5,1.0,Gamma,1.0\n", "chunk-1-trace.csv", "chunk-1-trace.csv:1: has 5 values"),
        ("0,5,1.0,Cauchy,1.0,1.0\n", "chunk-1-trace.csv", "chunk-1-trace.csv:1: got '0,5,1.0,Cauchy"),
        ("0,5,1.0,Gamma,1.0,1.0\n", "chunk-1-trace.csv", "chunk-1-dataset.json: cannot be read"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, text, name, message):
    with pytest.raises(InputError) as caught:
        read_trace(write(tmp_path, text, name))
    assert message in str(caught.value)


def test_a_wrong_door_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_trace(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="did you mean 'azure'"):
        read_trace(write(tmp_path, AZURE), "azur")
    with pytest.raises(InputError, match="has no column 'Timestamp'"):
        read_trace(write(tmp_path, AZURE), "burstgpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no ServeGen client"):
        read_trace(tmp_path / "empty")


def test_a_slice_starts_at_its_own_zero(tmp_path):
    path = write(tmp_path, PLAIN)
    assert read_trace(path, start_s=0.25).arrival_s.tolist() == [0.0, 2.0]
    assert read_trace(path, start_s=0.2, end_s=2.25).arrival_s.tolist() == pytest.approx([0.05])
    assert len(read_trace(path, max_requests=2)) == 2
    with pytest.raises(InputError, match="holds no request from 5 s to its end"):
        read_trace(path, start_s=5)


def test_scaling_the_rate_keeps_the_time_and_the_pattern(tmp_path):
    rows = "".join(f"{t / 10},{t % 7 + 1},1\n" for t in range(10_001))
    trace = read_trace(write(tmp_path, "arrival_s,input_tokens,output_tokens\n" + rows))
    for factor in (0.3, 1.0, 2.5):
        scaled = scale_rate(trace, factor, generator(0, "trace"))
        assert len(scaled) == pytest.approx(10_000 * factor, rel=0.05)
        assert np.all(np.diff(scaled.arrival_s) >= 0)
        assert scaled.arrival_s[-1] <= 1000.0
        assert scaled.input_tokens.mean() == pytest.approx(4, abs=0.2)
    with pytest.raises(InputError, match="leaves none of 10001 requests"):
        scale_rate(trace, 1e-12, generator(0, "trace"))


def test_a_scenario_plays_a_trace(tmp_path):
    write(tmp_path, PLAIN)

    def play(lengths: dict | None = None, num_requests: int | None = None, **arrival: object):
        workload = {"arrivals": {"kind": "trace", "path": "trace.csv", **arrival}, "num_requests": num_requests}
        data = {"model": "m", "cluster": {"topology": "t"}, "workload": {**workload, "lengths": lengths}}
        return Scenario.from_dict(data, base_dir=tmp_path).build_workload()

    assert play().arrival_s.tolist() == [0.0, 0.25, 2.25]
    assert play().input_tokens.tolist() == [20, 10, 30]
    assert play(time_scale=2).arrival_s.tolist() == [0.0, 0.5, 4.5]
    assert play(start="200 ms", end="2 s").input_tokens.tolist() == [10]
    assert play(num_requests=2).input_tokens.tolist() == [20, 10]
    fixed = play(lengths={"kind": "fixed", "input_tokens": 5, "output_tokens": 6})
    assert fixed.input_tokens.tolist() == [5, 5, 5]
    assert fixed.arrival_s.tolist() == [0.0, 0.25, 2.25]
    jittered = play(jitter="10 s").arrival_s
    assert np.all(np.diff(jittered) >= 0)
    assert 0 <= jittered[0] <= jittered[-1] <= 12.25
    pairs = {(20, 2), (10, 1), (30, 3)}
    drawn = play(lengths={"kind": "empirical", "path": "trace.csv"})
    assert set(zip(drawn.input_tokens.tolist(), drawn.output_tokens.tolist(), strict=True)) <= pairs
    with pytest.raises(InputError, match="is not after start"):
        play(start="2 s", end="1 s")


def test_a_trace_that_knows_its_prefixes_takes_no_other(tmp_path):
    write(tmp_path, mooncake([(0, 600, 5), (1500, 1025, 6)]), "m.jsonl")
    workload = {"arrivals": {"kind": "trace", "path": "m.jsonl"}}
    data = {"model": "m", "cluster": {"topology": "t"}, "workload": workload}
    assert len(Scenario.from_dict(data, base_dir=tmp_path).build_workload().prompts) == 2
    workload["shared_prefix"] = {"tokens": 100}
    with pytest.raises(InputError, match="the trace says itself which prompts begin alike"):
        Scenario.from_dict(data, base_dir=tmp_path).build_workload()


def test_a_summary_tells_how_many_how_fast_how_long(tmp_path):
    found = summary(read_trace(write(tmp_path, PLAIN)))
    assert (found["requests"], found["dropped"], found["format"]) == (3, 0, "csv")
    assert found["duration_s"] == 2.25
    assert found["request_rate"] == pytest.approx(2 / 2.25)
    assert found["gap_cv"] == pytest.approx(0.875 / 1.125)
    assert found["input_tokens"] == {
        "mean": 20.0, "std": pytest.approx(8.165, abs=1e-3), "min": 10, "p50": 20.0, "p90": 28.0, "p95": 29.0,
        "p99": pytest.approx(29.8), "max": 30, "total": 60,
    }  # fmt: skip
    lone = summary(read_trace(write(tmp_path, "arrival_s,input_tokens,output_tokens\n9,1,1\n")))
    assert (lone["request_rate"], lone["gap_cv"]) == (None, None)


def test_an_infinite_cache_hits_what_came_before(tmp_path):
    # the second prompt shares both its blocks with the first: 600 tokens of 600 + 600 + 100
    text = (
        mooncake([(0, 600, 5), (1, 600, 5)])
        + '\n{"timestamp": 2, "input_length": 100, "output_length": 1, "hash_ids": [9]}'
    )
    assert summary(read_trace(write(tmp_path, text, "m.jsonl")))["infinite_cache_hit_rate"] == 600 / 1300


@needs_data
@pytest.mark.parametrize(("name", "rows", "rate", "cv"), [("code", 8819, 2.57, 13.2), ("conv", 19366, 5.53, 1.09)])
def test_azure_2023_as_published(name, rows, rate, cv):
    found = summary(read_trace(TRACES / "azure2023" / f"AzureLLMInferenceTrace_{name}.csv"))
    assert found["requests"] == rows
    assert found["request_rate"] == pytest.approx(rate, abs=0.005)
    assert found["gap_cv"] == pytest.approx(cv, abs=0.05)


@needs_data
@pytest.mark.parametrize(
    ("name", "rows", "seconds", "hit_rate"),
    [("conversation", 12031, 3536.999, 0.374), ("synthetic", 3993, 1022.025, 0.651)],
)
def test_mooncake_as_published(name, rows, seconds, hit_rate):
    found = summary(read_trace(TRACES / "mooncake" / f"{name}_trace.jsonl"))
    assert found["requests"] == rows
    assert found["duration_s"] == pytest.approx(seconds, rel=1e-9)
    assert found["infinite_cache_hit_rate"] == pytest.approx(hit_rate, abs=0.0005)


@needs_data
def test_published_samples_of_burstgpt_and_servegen():
    for layout, rows in (("v1_layout_3rows", 3), ("v2_layout_4rows", 4)):
        assert len(read_trace(TRACES / "burstgpt_samples" / f"burstgpt_{layout}.csv")) == rows
    hour = read_trace(
        TRACES / "servegen_samples" / "language_m-small", start_s=0, end_s=600, random=generator(0, "trace")
    )
    # the rates of the three clients in their first window: 19.05 + 2.965 + 88.06 requests a second
    assert len(hour) / 600 == pytest.approx(110.1, rel=0.05)


# --- what people give by mistake ------------------------------------------------------------------------------------------


def test_a_table_may_have_its_cells_in_quotes(tmp_path):
    plain, quoted = tmp_path / "plain.csv", tmp_path / "quoted.csv"
    plain.write_text("arrival_s,input_tokens,output_tokens\n0,5,6\n1.5,7,8\n")
    quoted.write_text('"arrival_s","input_tokens","output_tokens"\n"0","5","6"\n"1.5","7","8"\n')
    assert summary(read_trace(plain)) == summary(read_trace(quoted))


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("chunk-3-dataset.json", "{\n", "holds the lengths of a ServeGen client, not its requests\n  give chunk-3-trace.csv"),
        ("licence.txt", "\nA licence\n", "begins with an empty line"),
        ("nothing.csv", "", "is empty"),
        ("huge.csv", "arrival_s,input_tokens,output_tokens\n0,99999999999999999999,3\n", ":2: got '9999999999999999"),
    ],
)  # fmt: skip
def test_what_is_no_trace_is_told_so(tmp_path, name, text, told):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_trace(path)
    assert told in str(error.value)


def test_two_weeks_of_a_busy_client_are_described_by_some_and_not_drawn_by_mistake(tmp_path):
    busy = tmp_path / "chunk-0-trace.csv"
    busy.write_text("".join(f"{600 * window},200.0,1.0,Gamma,1.0,0.005\n" for window in range(400)))
    lengths = {"0": {"input_tokens": "{10: 1.0}", "output_tokens": "{5: 1.0}"}}
    (tmp_path / "chunk-0-dataset.json").write_text(json.dumps(lengths))
    with pytest.raises(InputError, match="holds about 48,000,000 requests in the time asked for"):
        read_trace(busy)
    assert len(read_trace(busy, end_s=600.0)) == pytest.approx(120_000, rel=0.02)
    found = summary_of(busy)
    assert (found["expected_requests"], found["requests"]) == (48_000_000, 1_000_000)
    assert found["request_rate"] == pytest.approx(200, rel=0.01)


def test_the_command_takes_the_name_of_a_format_that_the_first_line_does_not_tell(tmp_path):
    path = tmp_path / "trace.jsonl"
    rows = [{"timestamp": ms, "input_length": 600, "output_length": 3} for ms in (0, 500)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="name its format"):
        summary_of(path)
    assert summary_of(path, "mooncake")["duration_s"] == 0.5
    command = [sys.executable, "-m", "sim", "workload", str(path), "--format", "mooncake"]
    assert b"requests: 2" in subprocess.run(command, capture_output=True, check=True).stdout
