"""What `import sim` offers, and that it costs next to nothing."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

import sim
from sim.results.result import Result
from sim.scenario import Scenario


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_public_names() -> None:
    assert set(sim.__all__) == {"Result", "Scenario", "simulate", "__version__"}
    assert set(sim.__all__) <= set(dir(sim))
    assert sim.Scenario is Scenario
    assert sim.Result is Result
    assert callable(sim.simulate)
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        _ = sim.simulat


def test_the_version_is_that_of_the_distribution() -> None:
    assert sim.__version__ == metadata.version("twowalls")


def test_importing_sim_imports_nothing_heavy() -> None:
    loaded = fresh("import sys, sim; print(*sorted({name.partition('.')[0] for name in sys.modules}))").split()
    assert {"numpy", "simpy", "networkx", "pydantic", "yaml", "matplotlib", "scipy", "pyarrow"}.isdisjoint(loaded)


@pytest.mark.parametrize(
    "imports",
    [
        "from sim import simulate",
        "from sim.simulate import plan_memory; from sim import simulate",
        "from sim import simulate; from sim.simulate import plan_memory",
        "import sim.simulate; simulate = sim.simulate",
        "from sim import *",
    ],
)
def test_simulate_is_the_function_in_whatever_order_things_are_imported(imports: str) -> None:
    assert fresh(f"{imports}; print(type(simulate).__name__)") == "function"


def test_the_example_of_the_design_runs() -> None:
    answer = fresh(
        "from sim import Scenario, simulate\n"
        "from sim import catalogue\n"
        "result = simulate(Scenario.load(catalogue.files('scenarios')['llama3-70b-32k-gqa-2xh100']))\n"
        "print(result.status, result.summary['completed'])"
    )
    assert answer == "done 4"
