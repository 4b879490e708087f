"""Axes as users write them, their product, and what several seeds and the Pareto front say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from small_scenarios import small
from test_cli import twowalls

from sim.errors import InputError
from sim.scenario import Scenario
from sim.studies.estimate import Estimate, estimate
from sim.studies.sweep import GPU_AXIS, USER_AXIS, Axis, Point, grid, metric_key, pareto
from sim.studies.sweep_plot import pareto_figure

SCENARIO = small(30)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.b=1,2,4", (1, 2, 4)),
        ("a.b=1..256*2", (1, 2, 4, 8, 16, 32, 64, 128, 256)),
        ("a.b=1..100*4", (1, 4, 16, 64)),
        ("a.b=0.5..4*2", (0.5, 1.0, 2.0, 4.0)),
        ("a.b=1..9+4", (1, 5, 9)),
        ("a.b=bf16, fp8", ("bf16", "fp8")),
        ("a.b=true,null,1e3", (True, None, 1000.0)),
        ("a.b={kind: burst},{kind: constant, request_rate: 2}", ({"kind": "burst"}, {"kind": "constant", "request_rate": 2})),
        ("a.b=[g0, g1],[g2]", (["g0", "g1"], ["g2"])),
    ],
)  # fmt: skip
def test_an_axis_as_it_is_written(text: str, values: tuple[Any, ...]) -> None:
    assert Axis.parse(text) == Axis("a.b", values)


@pytest.mark.parametrize("text", ["a.b", "=1", "a=", "a=1,,2", "a=4..1*2", "a=1..9*1", "a=0..9*2", "a=1..9+0"])
def test_what_is_no_axis_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--set"):
        Axis.parse(text)


def test_a_range_without_its_step_says_how_ranges_are_written() -> None:
    with pytest.raises(InputError, match=r"got '2\.\.16', a range without a step\n  ranges are written 1\.\.256\*2"):
        Axis.parse("a=2..16")


def test_product_and_pairs() -> None:
    base = Scenario.from_dict(SCENARIO)
    axes = [Axis.parse("deployment.tensor_parallel_size=1,2"), Axis.parse("workload.arrivals.request_rate=4,8")]
    cells = grid(base, axes, seeds=3)
    assert [tuple(cell.values.values()) for cell in cells] == [(1, 4), (1, 8), (2, 4), (2, 8)]
    assert [case.name for case in cells[1].cases] == [
        f"base-tensor_parallel_size=1-request_rate=8-seed={s}" for s in range(3)
    ]
    assert [tuple(cell.values.values()) for cell in grid(base, axes, zipped=True)] == [(1, 4), (2, 8)]
    with pytest.raises(InputError, match="unequal length"):
        grid(base, [axes[0], Axis("workload.seed", (1, 2, 3))], zipped=True)
    with pytest.raises(InputError, match="twice"):
        grid(base, [axes[0], axes[0]])
    with pytest.raises(InputError, match="1,000,000 runs"):
        grid(base, [Axis("workload.seed", tuple(range(1_000_000)))])
    with pytest.raises(InputError, match="at most 100,000"):
        grid(base, [Axis.parse("workload.seed=1..1000000+1")])  # never the first 100,000 of them alone


def test_a_sweep_that_is_wrong_at_every_point_does_not_start() -> None:
    base = Scenario.from_dict(SCENARIO)
    with pytest.raises(InputError, match=r"engine\.max_num_seq: is an unknown key\n  did you mean 'max_num_seqs'"):
        grid(base, [Axis.parse("engine.max_num_seq=4,8")])
    with pytest.raises(InputError, match=r"workload\.seed: got \"a\""):
        grid(base, [Axis.parse("workload.seed=a")], seeds=2)


def test_a_point_that_is_no_scenario_is_one_of_the_results() -> None:
    cells = grid(Scenario.from_dict(SCENARIO), [Axis("engine.max_num_seqs", (8, 0))])
    assert cells[0].cases[0].error is None
    assert cells[1].cases[0].error is not None
    assert "must be at least 1" in cells[1].cases[0].error.reason


def test_an_interval_over_seeds() -> None:
    assert estimate([]) is None
    assert estimate([3.0]) == Estimate(3.0, None, 1)
    found = estimate([9.0, 10.0, 11.0])
    assert found is not None
    assert found.mean == 10.0
    # Student's t of two degrees of freedom leaves 2.5 % above 4.3027
    assert found.half_width == pytest.approx(4.3027 * 1.0 / math.sqrt(3), rel=1e-4)
    assert (found.low, found.high) == (10.0 - found.half_width, 10.0 + found.half_width)


def test_metrics_by_either_name() -> None:
    assert [metric_key(name) for name in ("ttft.p99", "itl.p99.9", "p99_ttft_ms", "output_throughput")] == [
        "p99_ttft_ms", "p99.9_itl_ms", "p99_ttft_ms", "output_throughput",
    ]  # fmt: skip


def point(user: float, gpu: float) -> Point:
    return Point({}, {"done": 1}, "", {USER_AXIS: Estimate(user, None, 1), GPU_AXIS: Estimate(gpu, None, 1)})


@settings(derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=30))
def test_nothing_beats_a_point_of_the_front_and_something_beats_every_other(places: list[tuple[int, int]]) -> None:
    found = [point(*place) for place in places]
    front = {(p.metrics[USER_AXIS].mean, p.metrics[GPU_AXIS].mean) for p in pareto(found)}
    for user, gpu in places:
        beaten = any(u >= user and g >= gpu and (u, g) != (user, gpu) for u, g in places)
        assert beaten == ((user, gpu) not in front)


def test_no_label_of_the_front_is_cut_off_or_lies_under_the_legend() -> None:
    """Points that are much alike to a user stand at the right edge, the best of them at the top."""
    found = [
        Point({"a": n}, {"done": 1}, "", {USER_AXIS: Estimate(user, None, 1), GPU_AXIS: Estimate(gpu, None, 1)})
        for n, (user, gpu) in enumerate([(132.5, 674.0), (138.0, 491.0), (142.0, 269.0), (144.0, 142.0)])
    ]
    figure = pareto_figure([Axis("a", (0, 1, 2, 3))], found)
    figure.canvas.draw()
    (chart,) = figure.axes
    legend = chart.get_legend()
    assert legend is not None
    labels = [text.get_window_extent() for text in chart.texts]
    assert [text.get_text() for text in chart.texts] == ["3", "2", "1", "0"]
    for label in labels:
        assert label.x1 < chart.get_window_extent().x1
        assert not label.overlaps(legend.get_window_extent())


def test_the_command_sweeps_plots_and_resumes(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(SCENARIO))
    command = ["sweep", "base.yaml", "--set", "workload.arrivals.request_rate=2..8*2", "--set",
               "deployment.tensor_parallel_size=1,3", "--seeds", "2", "--plot", "ttft.p99", "--pareto",
               "--out", "out"]  # fmt: skip
    done = twowalls(*command, "--json", "--jobs", "1", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [p["parameters"]["workload.arrivals.request_rate"] for p in found["points"]] == [2, 2, 4, 4, 8, 8]
    assert [p["statuses"] for p in found["points"]] == [{"done": 2}, {"failed": 2}] * 3  # 3 does not divide the heads
    interval = found["points"][0]["metrics"]["p99_ttft_ms"]
    assert interval["low"] < interval["mean"] < interval["high"]
    assert interval["seeds"] == 2
    assert found["pareto"]
    for name in ("p99_ttft_ms.png", "pareto.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "out" / "ledger.csv").read_text().splitlines()) == 1 + 12
    written = (tmp_path / "out" / "journal.jsonl").read_text().count('"done"')
    assert twowalls(*command, folder=tmp_path).stdout.count(" ± ") >= 15
    assert (tmp_path / "out" / "journal.jsonl").read_text().count('"done"') == written
    wrong = twowalls("sweep", "base.yaml", "--set", "workload.seed=0", "--plot", "ttft.p9", folder=tmp_path)
    assert wrong.returncode == 2
