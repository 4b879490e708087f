"""Batching policies: which class serves a scenario's `engine.scheduler`.

A policy is called as `policy(limits, pool, windows)` and answers as `VllmScheduler` does. Your own is a `module:object`; an order
of the queue takes five lines:

    from sim.engine.policies.ordered import OrderedScheduler

    class LongestFirst(OrderedScheduler):
        def rank(self, seq):
            return -seq.prompt_tokens  # the least goes first
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from sim.engine.batch import SchedulerLimits
from sim.engine.batching import VllmScheduler
from sim.engine.kv_cache import BlockPool
from sim.engine.policies.fair_share import FairShare
from sim.engine.policies.orca import Orca
from sim.engine.policies.ordered import ShortestJobFirst
from sim.engine.policies.prefill_first import PrefillFirst
from sim.engine.policies.priority import Priority
from sim.engine.policies.static import Static
from sim.errors import InputError, nearest

Policy = Callable[[SchedulerLimits, BlockPool, tuple[int, ...]], VllmScheduler]

POLICIES: dict[str, Policy] = {
    "vllm": VllmScheduler,
    "chunked": VllmScheduler,  # Sarathi's stall-free batching is what vLLM does with chunked prefill
    "prefill_first": PrefillFirst,
    "orca": Orca,
    "static": Static,
    "sjf": ShortestJobFirst,
    "priority": Priority,
    "fair_share": FairShare,
}


def find_policy(name: str, where: str = "engine.scheduler") -> Policy:
    """The policy of this name, or the user's own `module:object`, looked for beside the working directory too.

    Raises:
        InputError: no such policy, module or object.
    """
    if name in POLICIES:
        return POLICIES[name]
    module_name, colon, path = name.partition(":")
    if not colon:
        raise InputError(where, f"got '{name}'", f"{nearest(name, POLICIES)} (or module:object for your own)")
    found = _import(module_name, name, where)
    for part in path.split("."):
        if not hasattr(found, part):
            raise InputError(where, f"got '{name}', but {module_name} has no '{path}'", "name a class in that module")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(
            where, f"got '{name}', which is no class or function", "it is called with (limits, pool, windows)"
        )
    try:
        inspect.signature(found).bind(None, None, ())
    except (TypeError, ValueError) as error:
        reason = f"got '{name}', which cannot be called with three arguments ({error})"
        raise InputError(where, reason, "they are limits, pool and windows, as of VllmScheduler") from error
    return found


def _import(module_name: str, name: str, where: str) -> object:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        hint = "put the module into the working directory or on PYTHONPATH"
        raise InputError(where, f"got '{name}', but {module_name} cannot be imported ({error})", hint) from error
    finally:
        sys.path.remove(here)
