"""twowalls: a discrete-event simulator of multi-GPU LLM inference.

    from sim import Scenario, simulate
    result = simulate(Scenario.load("my-scenario.yaml"))

Nothing heavy is imported before one of these names is used, so that the command answers at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.results.result import Result
    from sim.scenario import Scenario
    from sim.simulate import simulate

__version__ = "0.1.0"
__all__ = ["Result", "Scenario", "__version__", "simulate"]

_HOME = {"Result": "sim.results.result", "Scenario": "sim.scenario", "simulate": "sim.simulate"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sim' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `sim.simulate` the function whoever imports the module of that name, and whenever."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "simulate" and isinstance(value, ModuleType):
            value = value.simulate
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
