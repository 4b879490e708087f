"""Figures hold what the records say; how they look was judged by eye."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from records import ledger, make_result, two_users
from small_engine import busy_engine

from sim.results import plots
from sim.results.result import Result


@pytest.fixture
def full() -> Result:
    result = busy_engine(20, gap_s=0.5, blocks=17)
    result.ledger = ledger()
    return result


def test_every_figure_is_written_as_png(tmp_path: Path, full: Result) -> None:
    written = plots.save_plots(full, tmp_path)
    assert [path.name for path in written] == ["timeline.png", "latencies.png", "memory.png", "walls.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_a_figure_without_data_is_left_out(tmp_path: Path) -> None:
    empty = make_result([], [], walls_ms_per_token={})
    assert plots.save_plots(empty, tmp_path) == []


def test_the_timeline_shows_occupancy_and_preemptions(full: Result) -> None:
    kv, people = plots.timeline(full).axes
    used = np.asarray(kv.lines[0].get_ydata())
    assert used.max() == pytest.approx(100.0 * full.steps["used_blocks"].max() / 17)
    marks = next(line for line in kv.lines if "preemptions" in line.get_label())
    assert len(marks.get_xdata()) == (full.steps["preempted"] > 0).sum()
    assert max(people.lines[0].get_ydata()) == full.steps["running"].max()
    assert max(people.lines[1].get_ydata()) == full.steps["waiting"].max()


def test_the_timeline_marks_the_end_by_oom(full: Result) -> None:
    full.oom = {"time_s": 3.0, "gpu": "n0.g1", "request": 17, "kv_tokens": 1, "needed_bytes": 2e6, "free_bytes": 5e5}
    kv = plots.timeline(full).axes[0]
    told = "out of memory at 3 s\nn0.g1, request 17\nneeds 2 MB of KV, 500 kB free"
    assert any(text.get_text() == told for text in kv.texts)


def test_a_line_that_moves_too_often_is_its_mean_and_range() -> None:
    times, values = np.arange(30_001.0), np.tile([1.0, 3.0], 15_001)[:30_001]
    values[[17, 20_050]] = 9.0, -5.0
    edges, mean, low, high = plots._binned(times, values)
    assert (edges[0], edges[-1], len(mean)) == (0.0, 30_000.0, 300)
    assert (low.min(), high.max(), high[0], low[200]) == (-5.0, 9.0, 9.0, -5.0)
    assert (low[1], mean[1], high[1]) == (1.0, 2.0, 3.0)
    assert np.dot(mean, np.diff(edges)) == pytest.approx(np.dot(values[:-1], np.diff(times)))


def test_latencies_mark_the_percentiles_of_the_summary() -> None:
    result = two_users()
    axes = plots.latency_distributions(result).axes
    assert [one.get_title() for one in axes] == ["TTFT", "TPOT (excl. 1st token)", "ITL (single gaps)", "E2EL"]
    p50 = next(line for line in axes[0].lines if line.get_label().startswith("P50"))
    assert p50.get_xdata()[0] == pytest.approx(result.summary["p50_ttft_ms"])


def test_the_ledger_bars_stack_to_the_usable_memory(full: Result) -> None:
    axes = plots.memory_ledger(full).axes[0]
    tops = {round(bar.get_y() + bar.get_height(), 6) for bar in axes.patches}
    assert max(tops) == pytest.approx(70.56 + 1.41 + 3.88 + 4.94)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["n0.g0", "n0.g1"]


def test_walls_are_drawn_in_their_order(full: Result) -> None:
    axes = plots.token_by_wall(full).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()][::-1] == [
        "weights read",
        "KV read",
        "all-reduce latency",
    ]
    assert axes.get_title() == "busy: 17.00 ms a token"


def test_many_gpus_alike_share_a_bar(full: Result) -> None:
    first = full.ledger.per_gpu[0]
    crowd = SimpleNamespace(per_gpu=[SimpleNamespace(**vars(first) | {"gpu": f"n0.g{n}"}) for n in range(32)])
    axes = plots.memory_ledger(replace(full, ledger=crowd, kv_blocks=1)).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["n0.g0 .. n0.g31 (32)"]


def test_the_title_of_the_ledger_lies_on_the_page(full: Result) -> None:
    name = "a-scenario-with-a-name-that-is-longer than-the-narrow-figure-of-two-gpus-is-wide"
    figure = plots.memory_ledger(replace(full, scenario=full.scenario | {"name": name}))
    figure.draw_without_rendering()
    title = figure._suptitle.get_window_extent()
    assert title.x0 >= 0
    assert title.x1 <= figure.bbox.width
