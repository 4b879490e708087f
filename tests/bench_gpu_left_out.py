"""What is lost end to end where a GPU's own kernels were not measured: its constants are those its relatives have without it.

Run: pytest -m benchmark tests/bench_gpu_left_out.py -s (some ten minutes; wants the folder of data beside the repository, and
takes the kernel tables that are installed, else those of that folder)
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

import pytest

from sim.cost.measured_tables import tables_root
from sim.errors import InputError
from sim.hardware.gpu import ALL_MEASURED, load_gpu
from sim.studies.calibrate_kernels import calibrate_together, measured_gpus
from sim.studies.write_fits import write_shared

pytestmark = pytest.mark.benchmark

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
RELATIVES = {"a100-sxm-80gb": ALL_MEASURED, "h100-sxm": "h200-sxm", "h200-sxm": "h100-sxm", "l40s": ALL_MEASURED}
"""Whose constants a GPU takes; rows of a B200 that serves are not at hand."""
MOST = 1.5
METRICS = ("throughput", "ttft", "first_token", "tpot", "itl", "per_token", "decode_speed")


def tables() -> Path:
    try:
        return tables_root("DIR")
    except InputError:
        return DATA / "kernels"


def without(gpu: str, relative: str, folder: Path) -> Path:
    """A copy of the simulator in `folder` that knows nothing of the kernels of `gpu`."""
    for part in ("sim", "topologies", "scenarios"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)  # by which a checkout is known
    names = [name for name in measured_gpus(tables()) if name != gpu]
    shared = calibrate_together(tables(), [load_gpu(name) for name in names])[1]
    write_shared(shared, folder / "sim" / "hardware" / "shared_fits.yaml")
    file = folder / "sim" / "hardware" / "gpus" / f"{gpu}.yaml"
    printed = file.read_text().split("\nkernels:")[0].splitlines()
    lines = [line for line in printed if not line.startswith("fitted_on:")]
    file.write_text("\n".join([*lines, f"fitted_on: {relative}"]) + "\n")
    return folder


def errors(simulator: Path, rows: Path, out: Path) -> dict[str, tuple[str, float]]:
    """Row -> metric and relative error of what serves, as the simulator in a folder predicts it."""
    command = [sys.executable, "-m", "sim", "validate", str(rows), "--out", str(out)]
    subprocess.run(
        command, cwd=simulator, env={**os.environ, "PYTHONPATH": str(simulator)}, check=True, capture_output=True
    )
    found = {}
    for row in csv.DictReader(out.open()):
        metric = next((name for name in METRICS if name in row["metric"]), None)
        if metric is not None and row["status"] == "simulated":
            found[row["id"]] = (metric, abs(float(row["predicted"]) / float(row["measured"]) - 1))
    return found


@pytest.mark.parametrize("gpu", RELATIVES)
def test_a_gpu_left_out_costs_at_most_half_again_the_error(tmp_path: Path, gpu: str) -> None:
    if not (DATA / "measured.csv").exists():
        pytest.skip("no published measurements beside the repository")
    published = list(csv.DictReader((DATA / "measured.csv").open()))
    mine = [row for row in published if row["kind"] == "e2e" and _is(row["gpu"], gpu)]
    rows = tmp_path / "rows.csv"
    with rows.open("w", newline="") as file:
        writer = csv.DictWriter(file, published[0].keys())
        writer.writeheader()
        writer.writerows(mine)
    own = errors(ROOT, rows, tmp_path / "own.csv")
    left_out = errors(without(gpu, RELATIVES[gpu], tmp_path / "simulator"), rows, tmp_path / "left_out.csv")
    pairs = defaultdict(list)
    for name in own.keys() & left_out.keys():
        for group in (own[name][0], "all"):
            pairs[group].append((own[name][1], left_out[name][1]))
    print(f"\n{gpu}")
    for group, both in pairs.items():
        print(f"  {group}: {len(both)} rows, {median(a for a, _ in both):.1%} -> {median(b for _, b in both):.1%}")
    assert median(b for _, b in pairs["all"]) <= MOST * median(a for a, _ in pairs["all"])


def _is(said: str, gpu: str) -> bool:
    try:
        return load_gpu(said).name == gpu
    except InputError:
        return False
