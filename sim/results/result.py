"""What one simulated run tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim import units

if TYPE_CHECKING:
    from sim.model.balance import MemoryLedger
    from sim.results.provenance import Origin

Columns = Mapping[str, NDArray[Any]]
"""A table: column name to array, all of one length (docs/architecture.md, "engine records")."""


@dataclass
class Result:
    """Records of one run, with everything that is computed from them.

    Facts are stored once and flat; `summary` is computed when it is first asked for.
    """

    scenario: dict[str, Any]
    """The scenario as plain data, defaults filled in: enough to run it again."""
    requests: Columns = field(repr=False)
    """One row a request."""
    steps: Columns = field(repr=False)
    """One row a segment of iterations alike."""
    irregular_gaps_s: NDArray[np.float64] = field(repr=False)
    """Gaps of tokens that are not one iteration long."""
    ledger: MemoryLedger | None
    """Of the deployment; None in results that no deployment gave."""
    walls_ms_per_token: dict[str, float]
    """Cause to milliseconds of a mean output token."""
    self_checks: list[dict[str, Any]]
    """{name, held, detail} of every law that the run was checked against."""
    status: str
    """done | asserted | infeasible | oom | timed_out | stuck | failed."""
    events: int
    preemptions: int
    simulated_seconds: float
    wall_seconds: float
    num_gpus: int
    kv_blocks: int | None = None
    """KV blocks of one replica, for the share in use; None: those of the ledger."""
    lanes: int = 1
    """Batches of a replica in flight at a time; `replica` in requests and steps counts lanes where a pipeline has several."""
    exit_s: float = 0.0
    """From a sampled token to the client that reads it: the stamps of requests hold it, the times of steps do not."""
    oom: dict[str, Any] | None = None
    """{time_s, gpu, request, kv_tokens, needed_bytes, free_bytes} when the run ended out of memory."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know about where the numbers come from (extrapolations, fits of a relative)."""
    provenance: list[Origin] = field(default_factory=list, repr=False)
    """Of every number that the run rests on."""

    def __post_init__(self) -> None:
        if self.kv_blocks is None and self.ledger is not None:
            self.kv_blocks = self.ledger.usable_blocks

    @property
    def name(self) -> str:
        return str(self.scenario.get("name", "scenario"))

    @property
    def seed(self) -> int:
        return int(self.workload.get("seed", 0))

    @property
    def workload(self) -> Mapping[str, Any]:
        return self.scenario.get("workload") or {}

    @property
    def arrivals(self) -> Mapping[str, Any]:
        return self.workload.get("arrivals") or {}

    @property
    def concurrency(self) -> int | None:
        """Users of a closed loop; None for every other kind of arrivals."""
        found = self.arrivals.get("concurrency")
        return None if found is None else int(found)

    @property
    def slo_s(self) -> dict[str, float]:
        """The scenario's objectives in seconds, by metric (ttft, tpot, e2el); empty without any."""
        return {
            name: float(limit) if isinstance(limit, (int, float)) else units.parse(limit, "s", f"slo.{name}")
            for name, limit in (self.scenario.get("slo") or {}).items()
            if limit is not None
        }

    @property
    def broken_laws(self) -> list[str]:
        """Names of the self-checks that did not hold; empty unless the simulator itself is wrong."""
        return [check["name"] for check in self.self_checks if not check["held"]]

    @property
    def end_s(self) -> float:
        """When the last client had its last token, or the clock stopped, whichever is later."""
        finishes = self.requests["finish_s"]
        answered = finishes[~np.isnan(finishes)]
        return max(self.simulated_seconds, float(answered.max()) if len(answered) else 0.0)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """vLLM's result keys in order, then ours (`sim.results.metrics.summarise`)."""
        from sim.results.metrics import summarise

        return summarise(self)
