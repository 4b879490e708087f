"""Arrivals, lengths and the requests that a scenario's workload section stands for."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import InputError
from sim.scenario import Scenario
from sim.scenario.loading import parse_yaml
from sim.workload import arrivals, lengths
from sim.workload.prompts import HashedPrompts, SharedPrefixPrompts
from sim.workload.randomness import PURPOSES, generator
from sim.workload.workload import think_times

MANY = 200_000


def scenario(arrival: dict, length: dict | None = None, **workload: object) -> Scenario:
    length = {"kind": "fixed", "input_tokens": 100, "output_tokens": 10} if length is None else length
    data = {
        "model": "m",
        "cluster": {"topology": "t"},
        "workload": {"arrivals": arrival, "lengths": length, **workload},
    }
    return Scenario.from_dict(data)


def gaps_s(arrival_s: np.ndarray) -> np.ndarray:
    return np.diff(arrival_s, prepend=0.0)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_rate_and_the_burstiness_of_vllm(burstiness):
    gaps = gaps_s(arrivals.gamma(MANY, 5.0, burstiness, generator(1, "arrivals")))
    cv = 1 / math.sqrt(burstiness)
    assert gaps.mean() == pytest.approx(0.2, abs=4 * 0.2 * cv / math.sqrt(MANY))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.02)


def test_poisson_gaps_are_exponential():
    from scipy import stats

    gaps = gaps_s(arrivals.gamma(MANY, 2.0, 1.0, generator(2, "arrivals")))
    assert stats.kstest(gaps, "expon", args=(0, 0.5)).pvalue > 0.01


@pytest.mark.parametrize("shape", [0.5, 1.0, 3.0])
def test_weibull_gaps_have_the_rate_asked_for(shape):
    gaps = gaps_s(arrivals.weibull(MANY, 8.0, shape, generator(3, "arrivals")))
    cv = math.sqrt(math.gamma(1 + 2 / shape) / math.gamma(1 + 1 / shape) ** 2 - 1)
    assert gaps.mean() == pytest.approx(1 / 8, rel=5 * cv / math.sqrt(MANY))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


def test_constant_and_burst_leave_nothing_to_chance():
    assert arrivals.constant(4, 2.0).tolist() == [0.5, 1.0, 1.5, 2.0]
    assert arrivals.burst(3).tolist() == [0.0, 0.0, 0.0]


def test_on_off_arrives_at_its_mean_rate_and_in_bursts():
    times = arrivals.on_off(MANY, 10.0, 20.0, 60.0, generator(4, "arrivals"))
    assert np.all(np.diff(times) >= 0)
    assert MANY / times[-1] == pytest.approx(10 * 20 / 80, rel=0.1)
    gaps = gaps_s(times)
    # interrupted Poisson: the squared variation of the gaps is 1 + 2 rate off^2 / (on + off)^2 x on
    assert (gaps.std() / gaps.mean()) ** 2 == pytest.approx(1 + 2 * 10 * 60**2 * 20 / 80**2, rel=0.15)


def test_piecewise_rates_hold_in_each_stage_and_a_silent_one_stays_silent():
    stages = [(100.0, 50.0), (100.0, 0.0), (200.0, 10.0), (50.0, 0.0)]
    times = arrivals.piecewise(None, stages, generator(5, "arrivals"))
    counts = np.histogram(times, [0, 100, 200, 400, 450])[0]
    assert counts[0] == pytest.approx(5000, abs=4 * math.sqrt(5000))
    assert counts[2] == pytest.approx(2000, abs=4 * math.sqrt(2000))
    assert (counts[1], counts[3]) == (0, 0)
    assert np.array_equal(arrivals.piecewise(100, stages, generator(5, "arrivals")), times[:100])


def test_a_day_swings_round_its_mean():
    times = arrivals.diurnal(MANY, 2.0, 1.0, 1000.0, generator(6, "arrivals"))
    assert np.all(np.diff(times) >= 0)
    assert times[0] >= 0
    days = times[: np.searchsorted(times, (times[-1] // 1000) * 1000)]
    quarter = np.histogram(days % 1000, 4, (0, 1000))[0] / len(days)
    # share of a quarter: 1/4 + (cos a - cos b) / 2 pi with amplitude 1
    expected = [0.25 + 1 / (2 * math.pi)] * 2 + [0.25 - 1 / (2 * math.pi)] * 2
    assert quarter == pytest.approx(expected, abs=0.006)


def test_a_flat_day_is_the_poisson_process():
    flat = arrivals.diurnal(1000, 2.0, 0.0, 1000.0, generator(7, "arrivals"))
    assert flat == pytest.approx(arrivals.gamma(1000, 2.0, 1.0, generator(7, "arrivals")), rel=1e-12)


def test_uniform_lengths_include_both_ends_equally():
    drawn = lengths.uniform(MANY, 3, 6, generator(1, "lengths"))
    shares = np.bincount(drawn)[3:] / MANY
    assert shares == pytest.approx([0.25] * 4, abs=0.005)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(mean=st.floats(1, 1e5), cv=st.floats(0, 5), most=st.one_of(st.none(), st.integers(1, 10**5)))
def test_lognormal_lengths_are_whole_and_within_bounds(mean, cv, most):
    drawn = lengths.lognormal(500, mean, cv, most, generator(1, "lengths"))
    assert drawn.dtype == np.int64
    assert drawn.min() >= 1
    assert most is None or drawn.max() <= most


def test_lognormal_mean_and_cv_are_those_of_the_length():
    drawn = lengths.lognormal(MANY, 1000.0, 0.8, None, generator(1, "lengths"))
    assert drawn.mean() == pytest.approx(1000, rel=0.01)
    assert drawn.std() / drawn.mean() == pytest.approx(0.8, rel=0.02)
    assert np.all(lengths.lognormal(10, 512.0, 0.0, None, generator(1, "lengths")) == 512)


def test_thinking_takes_its_mean_and_never_less_than_nothing():
    random = generator(1, "think_time")
    assert think_times(5, 0.0, 1.0, random) is None
    assert think_times(3, 2.0, 0.0, random).tolist() == [2.0, 2.0, 2.0]
    paused = think_times(MANY, 2.0, 0.5, random)
    assert paused.mean() == pytest.approx(2.0, rel=0.01)
    assert paused.std() == pytest.approx(1.0, rel=0.02)
    assert paused.min() >= 0


def test_every_purpose_has_the_stream_that_spawn_would_give_it():
    spawned = np.random.SeedSequence(9).spawn(len(PURPOSES))
    for purpose, child in zip(PURPOSES, spawned, strict=True):
        assert generator(9, purpose).random() == np.random.default_rng(child).random()


def test_changing_the_lengths_leaves_the_arrivals_alone():
    loaded = {"kind": "poisson", "request_rate": 3}
    short = scenario(loaded, {"kind": "uniform", "input_tokens": [1, 9], "output_tokens": [1, 9]}).build_workload()
    long = scenario(loaded, {"kind": "lognormal", "input_mean": 900, "input_cv": 1, "output_mean": 90, "output_cv": 1})
    assert np.array_equal(short.arrival_s, long.build_workload().arrival_s)
    assert not np.array_equal(short.arrival_s, scenario(loaded, seed=1).build_workload().arrival_s)


def test_a_thousand_requests_unless_told_otherwise():
    workload = scenario({"kind": "constant", "request_rate": 4}).build_workload()
    assert len(workload) == 1000
    assert workload.request_rate == pytest.approx(4)
    assert workload.longest_tokens == 110
    assert len(scenario({"kind": "burst"}, num_requests=7).build_workload()) == 7
    assert scenario({"kind": "burst"}).build_workload().request_rate == math.inf


def test_a_closed_loop_has_users_and_no_arrival_times():
    loop = {"kind": "closed_loop", "concurrency": 64, "think_time": "2 s", "think_time_cv": 1, "ramp": "10 s"}
    workload = scenario(loop, num_requests=512).build_workload()
    assert (workload.concurrency, workload.ramp_s, workload.arrival_s) == (64, 10.0, None)
    assert len(workload.think_time_s) == 512
    assert workload.request_rate is None


def test_on_and_off_are_names_where_they_are_keys():
    """YAML 1.1 takes them for true and false, the YAML of today does not."""
    text = "{kind: onoff, request_rate: 2, on: 5 s, off: 10 s}"
    arrival = parse_yaml(text, "case.yaml")
    assert arrival == {"kind": "onoff", "request_rate": 2, "on": "5 s", "off": "10 s"}
    assert parse_yaml("{key: on}", "case.yaml") == {"key": True}


@pytest.mark.parametrize(
    "arrival",
    [
        {"kind": "closed_loop", "concurrency": 3, "think_time": "1 s", "think_time_cv": 1},
        {"kind": "poisson", "request_rate": 2, "burstiness": 0.5},
        {"kind": "constant", "request_rate": 2},
        {"kind": "weibull", "request_rate": 2, "shape": 0.7},
        {"kind": "onoff", "request_rate": 2, "on": "5 s", "off": "10 s"},
        {"kind": "diurnal", "request_rate": 2, "amplitude": 0.5, "period": "1 h"},
        {"kind": "piecewise", "stages": [{"duration": "1 min", "request_rate": 2}]},
        {"kind": "burst"},
    ],
)
def test_the_same_scenario_gives_the_same_requests(arrival):
    length = {"kind": "uniform", "input_tokens": [1, 1000], "output_tokens": [1, 100]}
    one, two = (scenario(arrival, length, num_requests=50).build_workload() for _ in range(2))
    assert len(one) == 50
    for name in ("input_tokens", "output_tokens", "arrival_s", "think_time_s"):
        a, b = getattr(one, name), getattr(two, name)
        assert (a is None) == (b is None)
        assert a is None or np.array_equal(a, b)


def test_piecewise_stages_bound_the_number_of_requests():
    stages = [{"duration": "100 s", "request_rate": 2}, {"duration": "10 s", "request_rate": 0}]
    workload = scenario({"kind": "piecewise", "stages": stages}).build_workload()
    assert workload.arrival_s[-1] <= 100
    assert len(workload) == len(workload.input_tokens) == pytest.approx(200, abs=60)
    with pytest.raises(InputError, match="no request arrives"):
        scenario({"kind": "piecewise", "stages": [{"duration": "1 us", "request_rate": 1}]}).build_workload()
    with pytest.raises(InputError, match="every stage has request_rate 0"):
        scenario({"kind": "piecewise", "stages": [{"duration": "1 s", "request_rate": 0}]})


def keys(prompts: HashedPrompts | SharedPrefixPrompts, request: int, block_size: int, blocks: int) -> list[int]:
    content = prompts.content(request, block_size)
    return content.keys(0, blocks, block_size)


def hashed(ids: list[list[int]], tokens: list[int], size: int) -> HashedPrompts:
    offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids])])
    return HashedPrompts(np.array([b for i in ids for b in i]), offsets, np.array(tokens), size)


@pytest.mark.parametrize("block_size", [16, 48])
def test_prompts_with_equal_hashes_have_equal_blocks_and_answers_are_their_own(block_size):
    # two prompts of 1,000 tokens share their first 512; 48 does not divide 512, so one block straddles
    prompts = hashed([[0, 1], [0, 2]], [1000, 1000], 512)
    shared = 512 // block_size
    first, second = (keys(prompts, request, block_size, 70) for request in (0, 1))
    assert first[:shared] == second[:shared]
    assert not set(first[shared:]) & set(second[shared:])
    assert len(set(first)) == 70


def test_a_trace_that_hashes_full_blocks_only_leaves_the_rest_to_the_request():
    prompts = hashed([[5], [5]], [24, 24], 16)
    first, second = (keys(prompts, request, 8, 4) for request in (0, 1))
    assert first[:2] == second[:2]
    assert not set(first[2:]) & set(second[2:])


def test_taking_rows_takes_their_hashes():
    prompts = hashed([[0, 1, 2], [3], [0, 4]], [1500, 100, 600], 512).take(np.array([2, 0]))
    assert [prompts.ids(0).tolist(), prompts.ids(1).tolist()] == [[0, 4], [0, 1, 2]]
    assert prompts.input_tokens.tolist() == [600, 1500]


def test_a_system_prompt_is_shared_and_a_question_is_not():
    shared = {"tokens": 40, "prefixes": 2}
    workload = scenario({"kind": "burst"}, num_requests=60, shared_prefix=shared).build_workload()
    assert workload.input_tokens.tolist() == [140] * 60
    blocks = [keys(workload.prompts, request, 16, 8) for request in range(60)]
    assert len({tuple(b[:2]) for b in blocks}) == 2  # 40 tokens are two whole blocks of 16
    assert len({b[2] for b in blocks}) == 60  # the third holds 8 tokens of the prefix and 8 of the question
    plain = scenario({"kind": "burst"}, num_requests=60).build_workload()
    assert plain.prompts is None
